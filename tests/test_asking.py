"""deploy/asking.py against the real service where it refuses, and against one that does what ours must never do."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from aiohttp import web

from deploy.asking import Asker
from deploy.backend import Backend
from deploy.inputs import read
from models.failure import Failure
from tests.conftest import serve

PROMPT = read({"prompt": "x", "format": "text", "max_new_tokens": 100})
CHAT = read({"route": "/v1/chat/completions", "body": {"model": "any", "stream": True}})


@dataclass
class Front:
    """What an Asker sees of a Backend."""

    url: str
    ready: bool = True
    failed: str = ""
    headers: dict[str, str] = field(default_factory=dict)


def asker(front: Front, seconds: float = 60.0) -> Asker:
    return Asker(cast(Backend, front), seconds)


async def ask(front: Front, request: Any = PROMPT, seconds: float = 60.0) -> tuple[Any, list[Any]]:
    """The answer or the failure, and the pieces that came before."""
    told: list[Any] = []

    async def tell(piece: Any) -> None:
        told.append(piece)

    asking = asker(front, seconds)
    try:
        return await asking.ask(request, "job-1", tell), told
    except Failure as refused:
        return refused, told
    finally:
        await asking.close()


@pytest.mark.slow  # a queue that was never full promises a place within a minute
def test_a_full_queue_is_waited_out(tiny_home: Path, tmp_path: Path) -> None:
    """Of some that are too much for it together, each is answered in its turn; who may not wait is told so."""

    def prompt(name: str) -> Any:
        return read({"prompt": name, "format": "text", "max_new_tokens": 100})

    async def all_at_once(front: Front) -> list[Any]:
        asked = [asyncio.create_task(ask(front, prompt(f"x{at}"), 250)) for at in range(6)]
        await asyncio.sleep(0.5)
        hasty, _ = await ask(front, prompt("y"), 0.1)
        return [hasty, *(answer for answer, _ in await asyncio.gather(*asked))]

    with serve(tiny_home, tmp_path / "log", ZOPILOT_QUEUE_TOKENS="1000") as server:
        hasty, *others = asyncio.run(all_at_once(Front(server.url)))
        assert [other.code for other in others] == ["answer_truncated"] * 6
        assert 'zopilot_refusals_total{code="queue_full"}' in httpx.get(f"{server.url}/metrics").text
        assert hasty.code in ("queue_full", "answer_truncated")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[Front]:
    """A service that answers every request by `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Front(f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


def outcome(handler: Handler, request: Any = PROMPT, seconds: float = 60.0) -> tuple[Any, list[Any]]:
    async def go() -> tuple[Any, list[Any]]:
        async with answering(handler) as front:
            return await ask(front, request, seconds)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"a": NaN}'),
        (200, b'{"a": 1'),
        (200, b"\xff"),
        (500, b"Traceback (most recent call last)"),
        (500, b'{"error": 1}'),
        (500, b"[]"),
        (502, b"<html>"),
    ],
)
def test_what_is_no_answer_of_ours_is_an_error_and_not_passed_on(status: int, body: bytes) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, content_type="application/json")

    refused, _ = outcome(handle)
    assert (refused.code, refused.message) == ("internal_error", "an unexpected error happened here")


def test_refusals_keep_their_words_in_either_envelope() -> None:
    for body in (
        {"success": False, "error": "too long", "error_type": "context_length_exceeded"},
        {"error": {"code": "context_length_exceeded", "message": "too long", "type": "x"}},
    ):

        async def handle(_: web.Request, body: Any = body) -> web.Response:
            return web.json_response(body, status=400, headers={"Retry-After": "1"})

        refused, _ = outcome(handle)
        assert (refused.code, refused.message, refused.retry_after) == ("context_length_exceeded", "too long", None)


def test_what_passes_is_asked_again_when_it_says() -> None:
    seen: list[tuple[str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.headers["X-Request-Id"], await request.text()))
        if len(seen) < 3:
            code = {"error": "busy", "error_type": "busy"}
            return web.json_response(code, status=503 if len(seen) == 1 else 429, headers={"Retry-After": "0"})
        return web.json_response({"success": True})

    answer, _ = outcome(handle)
    assert answer == {"success": True}
    assert PROMPT.body is not None
    assert seen == [("job-1", PROMPT.body.decode())] * 3


def _stream(parts: list[bytes], *, cut: bool = False) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0.05)
        if cut and request.transport is not None:
            request.transport.abort()
        return response

    return handle


WORD = b'data: {"choices":[{"delta":{"content":"\xc3\xa9"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def test_pieces_of_a_stream_are_whole_events() -> None:
    everything = WORD + WORD + DONE
    parts = [everything[:7], everything[7:44], everything[44 : len(WORD) + 5], everything[len(WORD) + 5 :]]
    answer, told = outcome(_stream(parts), CHAT)
    assert answer == told and "".join(told).encode() == everything
    assert all(piece.startswith("data: ") and piece.endswith("\n\n") for piece in told)


def test_an_error_in_a_stream_ends_it_and_is_told() -> None:
    last = {"error": {"message": "too late", "code": "deadline_exceeded", "type": "timeout_error"}}
    frame = f"data: {json.dumps(last, separators=(',', ':'))}\n\n".encode()
    refused, told = outcome(_stream([WORD, frame]), CHAT)
    assert (refused.code, refused.message) == ("deadline_exceeded", "too late")
    assert "".join(told).encode() == WORD + frame


@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_that_ends_before_its_end_is_an_error(cut: bool) -> None:
    """And is not begun again: pieces of it are out."""
    refused, told = outcome(_stream([WORD, WORD[:9]], cut=cut), CHAT)
    assert refused.code == "interrupted"
    assert told == [WORD.decode()]


@pytest.mark.parametrize("deaths", [1, 2])
def test_who_dies_is_asked_once_more(deaths: int) -> None:
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(await request.text())
        if len(seen) <= deaths and request.transport is not None:
            request.transport.abort()
        return web.json_response({"success": True})

    answer, _ = outcome(handle)
    assert len(seen) == 2
    if deaths == 1:
        assert answer == {"success": True}
    else:
        assert answer.code == "interrupted"


def test_what_is_not_there_is_waited_for_and_no_longer_than_it_may_be() -> None:
    async def go() -> list[Any]:
        front = Front("http://127.0.0.1:9", ready=False)
        never, _ = await ask(front, seconds=0.3)
        front.failed = "it has died 3 times"
        failed, _ = await ask(front)
        nobody, _ = await ask(Front("http://127.0.0.1:9"), seconds=0.3)
        return [never, failed, nobody]

    never, failed, nobody = asyncio.run(go())
    assert [never.code, failed.code, nobody.code] == ["model_loading", "model_unavailable", "model_loading"]


def test_who_hangs_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.asking.MARGIN_SECONDS", 0.0)

    async def handle(_: web.Request) -> web.Response:
        await asyncio.sleep(20)
        return web.Response()

    refused, _ = outcome(handle, seconds=0.5)
    assert refused.code == "deadline_exceeded"


def test_more_than_runpod_takes_is_not_even_read() -> None:
    sent = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" " * 1_000_000)
            sent += 1_000_000
        return response

    refused, _ = outcome(handle)
    assert refused.code == "answer_too_large" and "10,000,000" in refused.message
    assert sent < 100_000_000
