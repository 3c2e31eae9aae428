"""models/engine/stream.py: tokens as they come, one final record, and nothing left behind by those who leave."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models import catalog, manifest, store
from models.engine.engine import Engine
from models.engine.sequence import Sampling, Sequence
from models.engine.stream import Stream
from models.failure import Failure
from models.runtime import stop_ids

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine(tiny_home: Path) -> Iterator[Engine]:
    loaded = store.load(manifest.locate(catalog.SMOLLM2, tiny_home / "models"), torch.device("cpu"))
    made = Engine(loaded.network, stop_ids(loaded), kv_tokens=8192, step_tokens=512, queue_tokens=1 << 30)
    made.start()
    yield made
    made.stop()


def sequence(answer: int, seed: int = 0) -> Sequence:
    return Sequence([*range(200, 220), 100 + seed], Sampling(answer))


def test_tokens_come_as_they_are_chosen_and_the_record_at_the_end(engine: Engine) -> None:
    async def read() -> tuple[list[int], list[int], int]:
        row = sequence(30)
        async with Stream(engine, row) as stream:
            heard = []
            first = 0
            async for token in stream:
                heard.append(token)
                first = first or row.made
            return heard, (await stream.completion()).tokens, first

    heard, tokens, made_when_first_was_heard = asyncio.run(read())
    assert heard == tokens
    assert len(heard) == 30
    assert made_when_first_was_heard < 30


def test_many_streams_do_not_mix(engine: Engine) -> None:
    async def read(seed: int) -> tuple[list[int], list[int]]:
        async with Stream(engine, sequence(20, seed)) as stream:
            return [token async for token in stream], (await stream.completion()).tokens

    async def all_of_them() -> list[tuple[list[int], list[int]]]:
        return await asyncio.gather(*(read(seed) for seed in range(20)))

    answers = asyncio.run(all_of_them())
    assert all(heard == tokens for heard, tokens in answers)
    assert len({tuple(tokens) for _, tokens in answers}) > 10


@pytest.mark.parametrize("leave", ["block", "task", "cancel"])
def test_who_leaves_frees_the_row(leave: str, engine: Engine) -> None:
    async def read() -> None:
        async with Stream(engine, sequence(6000)) as stream:
            async for _ in stream:
                if leave == "block":
                    return
                if leave == "cancel":
                    stream.cancel()

    async def go() -> None:
        task = asyncio.create_task(read())
        if leave == "task":
            await asyncio.sleep(0.2)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(200):
            if not engine.running:
                return
            await asyncio.sleep(0.01)

    asyncio.run(go())
    assert (engine.running, engine.waiting, engine.cache.used) == (0, 0, 0)


def test_who_leaves_while_it_is_submitted_frees_the_row(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = engine.submit

    def slow(row: Sequence) -> None:
        time.sleep(0.3)
        submit(row)

    monkeypatch.setattr(engine, "submit", slow)
    row = sequence(6000)

    async def enter() -> None:
        async with Stream(engine, row):
            pytest.fail("nobody comes in")

    async def go() -> None:
        task = asyncio.create_task(enter())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.5)

    asyncio.run(go())
    assert row.future.cancelled()
    assert (engine.running, engine.cache.used) == (0, 0)


def test_a_second_reader_is_told_that_it_is_over(engine: Engine) -> None:
    async def read() -> list[int]:
        async with Stream(engine, sequence(5)) as stream:
            assert len([token async for token in stream]) == 5
            return [token async for token in stream]

    assert asyncio.run(read()) == []


def test_a_failure_ends_the_tokens_and_is_raised_by_the_record(engine: Engine) -> None:
    async def read() -> int:
        row = sequence(6000)
        heard = 0
        async with Stream(engine, row) as stream:
            async for _ in stream:
                heard += 1
                row.deadline = 0.0
            with pytest.raises(Failure, match="deadline_exceeded"):
                await stream.completion()
        return heard

    assert 0 < asyncio.run(read()) < 6000


def test_a_refusal_is_raised_on_entering(engine: Engine) -> None:
    async def read() -> None:
        async with Stream(engine, sequence(100_000)):
            pass

    with pytest.raises(Failure, match="context_length_exceeded"):
        asyncio.run(read())


def test_a_loop_that_is_gone_harms_nobody(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> Stream:
        stream = Stream(engine, sequence(200))
        await stream.__aenter__()
        return stream

    stream = asyncio.run(leave())
    assert len(stream._sequence.future.result(timeout=60).tokens) == 200
    assert engine.alive
    assert not caplog.records
