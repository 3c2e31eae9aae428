"""deploy/front.py on its own server, before a service that does what ours must not, and clients who take nothing."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy import http, limits
from deploy.front import Front
from deploy.jobs import Jobs
from settings import Settings
from tests import edge
from tests.conftest import free_port


@asynccontextmanager
async def fronted(url: str, seconds: float = 30) -> AsyncIterator[tuple[Front, http.Server, int]]:
    """A front of the service at `url`, which waits `seconds` for it; its server and port."""
    backend: Any = SimpleNamespace(url=url, ready=True, failed="", headers={})
    async with httpx.AsyncClient(timeout=seconds) as client:
        front = Front(backend, client, Jobs(backend, client, keep_hours=1), limits.ELSEWHERE, Settings())
        server, serving = http._listen(front, "127.0.0.1", port := free_port())
        yield front, server, port
        server.should_exit = server.force_exit = True
        await serving


def play(app: ASGIApp, scenario: Callable[[Front, http.Server, int], Awaitable[None]], seconds: float = 30) -> None:
    async def run(url: str) -> None:
        async with fronted(url, seconds) as (front, server, port):
            await asyncio.wait_for(scenario(front, server, port), 30)

    with edge.serving(app) as url:
        asyncio.run(run(url))


async def get(port: int, **headers: str) -> httpx.Response:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.get(f"http://127.0.0.1:{port}/health", headers=raw)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"agent": Request(scope).headers["agent"]})(scope, receive, send)


def test_a_header_of_any_bytes_is_passed_on() -> None:
    async def scenario(_: Front, __: http.Server, port: int) -> None:
        answer = await get(port, agent="M\u00fcller")
        assert (answer.status_code, answer.json()) == (200, {"agent": "M\u00fcller"})

    play(echo, scenario)


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def test_a_service_that_hangs_is_not_waited_for_for_ever() -> None:
    async def scenario(_: Front, __: http.Server, port: int) -> None:
        answer = await get(port)
        assert (answer.status_code, answer.json()["error_type"]) == (504, "deadline_exceeded")

    play(hang, scenario, seconds=0.3)


def test_no_more_bodies_are_read_than_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.front.MAX_OPEN", 1)

    async def scenario(front: Front, _: http.Server, port: int) -> None:
        async with httpx.AsyncClient(timeout=20) as client:
            first = asyncio.create_task(client.post(f"http://127.0.0.1:{port}/prompt", json={}))
            while not front.under_way:
                await asyncio.sleep(0.02)
            second = await client.post(f"http://127.0.0.1:{port}/prompt", json={})
            assert (second.status_code, second.json()["error_type"]) == (429, "queue_full")
            assert "retry-after" in second.headers
            first.cancel()

    play(hang, scenario)


def test_what_nobody_thought_of_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Front, "_ask", fail)

    async def scenario(_: Front, __: http.Server, port: int) -> None:
        answer = await get(port)
        assert (answer.status_code, answer.json()["error_type"]) == (500, "internal_error")

    play(echo, scenario)
    assert capsys.readouterr().err == "zopilot-gpu: a request has failed: RuntimeError\n"


def test_a_reader_who_takes_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system: a connection that is closed would still wait for the reader to take what was written to it."""
    monkeypatch.setattr(http, "SEND_SECONDS", 1.0)
    left = asyncio.Event()

    async def pour(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not left.is_set():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)

    async def scenario(front: Front, server: http.Server, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as reader:
            reader.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            while not front.under_way:
                await asyncio.sleep(0.02)
            while front.under_way or server.server_state.connections:
                await asyncio.sleep(0.02)
        left.set()

    play(pour, scenario)
