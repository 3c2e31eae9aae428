"""benchmarks/mixed.py: everything at once over the real service, and that it would see an answer that is another's."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from benchmarks.mixed import KINDS, Alone, Ask, CrossTalk, Tally, ask_chat, ask_embeddings, ask_prompt, ask_scores, run
from tests.conftest import Server

ALONE = Alone({"a": [1.0, 0.0]}, {("a", "a"): 1.0})


def test_everything_at_once(tiny_server: Server) -> None:
    tally = asyncio.run(run(tiny_server.url, 8, 4.0, tiny_server.process.pid))
    told = tally.report()
    assert (told["lost"], told["crossed"]) == ([], [])
    assert told["done"].keys() == KINDS.keys()


@pytest.mark.slow
def test_everything_at_once_for_a_minute(tiny_server: Server) -> None:
    tally = asyncio.run(run(tiny_server.url, 32, 60.0, tiny_server.process.pid))
    told = tally.report()
    assert (told["lost"], told["crossed"]) == ([], [])
    before, after = told["memory"]
    assert after < before * 1.05


def client(say: Callable[[Any], httpx.Response]) -> httpx.AsyncClient:
    """Of a service that answers so whoever asks."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        return say(json.loads(request.content))

    return httpx.AsyncClient(base_url="http://localhost", transport=httpx.MockTransport(answer))


def ask(kind: Ask, say: Callable[[Any], httpx.Response]) -> int:
    async def once() -> int:
        async with client(say) as service:
            return await kind(service, ALONE, random.Random(1))

    return asyncio.run(once())


def scores(body: Any, f1: float) -> httpx.Response:
    return httpx.Response(200, json={"scores": [{"f1": f1} for _ in body["candidates"]]})


def vectors(body: Any, *vector: float) -> httpx.Response:
    return httpx.Response(200, json={"embeddings": [vector for _ in body["texts"]]})


def test_what_is_anothers_is_seen() -> None:
    other = {"metadata": {"request_id": "another"}, "output": "{}"}
    with pytest.raises(CrossTalk):
        ask(ask_prompt, lambda _: httpx.Response(200, json=other))
    assert ask(ask_embeddings, lambda body: vectors(body, 1.0, 1e-5)) == 200
    with pytest.raises(CrossTalk):
        ask(ask_embeddings, lambda body: vectors(body, 0.0, 1.0))
    assert ask(ask_scores, lambda body: scores(body, 0.99999)) == 200
    with pytest.raises(CrossTalk):
        ask(ask_scores, lambda body: scores(body, 0.5))
    assert ask(ask_scores, lambda _: httpx.Response(503)) == 503


@pytest.mark.parametrize(("ended", "fault"), [(True, CrossTalk), (False, ConnectionError)])
def test_a_stream_that_is_anothers_or_not_whole_is_seen(ended: bool, fault: type[Exception]) -> None:
    chunk = {"choices": [{"delta": {"content": json.dumps({"code": "another"})}}]}
    events = f"data: {json.dumps(chunk)}\n\n" + "data: [DONE]\n\n" * ended
    with pytest.raises(fault):
        ask(ask_chat, lambda _: httpx.Response(200, text=events))


def test_memory_is_told_as_two_means() -> None:
    tally = Tally(memory=[9 << 20, 2 << 20, 4 << 20, 4 << 20, 5 << 20, 5 << 20, 6 << 20, 8 << 20])
    assert tally.report()["memory"] == [4.0, 7.0]
    assert "memory" not in Tally().report()
