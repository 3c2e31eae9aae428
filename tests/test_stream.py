"""models/engine/stream.py: tokens as they come, and nothing left behind by those who leave."""

import asyncio
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


@pytest.fixture(scope="module")
def engine(tiny_home: Path) -> Iterator[Engine]:
    loaded = store.load(manifest.locate(catalog.SMOLLM2, tiny_home / "models"), torch.device("cpu"))
    made = Engine(loaded.network, stop_ids(loaded), kv_tokens=8192, step_tokens=512, queue_tokens=1 << 30)
    made.start()
    yield made
    made.stop()


def sequence(answer: int, seed: int = 0) -> Sequence:
    return Sequence([*range(200, 220), 100 + seed], Sampling(answer))


async def read(engine: Engine, *rows: Sequence) -> list[list[int]]:
    """The tokens of each row as they were told."""
    stream = Stream(engine, rows)
    await asyncio.to_thread(stream.submit)
    heard: list[list[int]] = [[] for _ in rows]
    ends = 0
    async for at, token in stream:
        ends += token is None
        if token is not None:
            heard[at].append(token)
    assert ends == len(rows)
    return heard


def test_tokens_come_as_they_are_chosen(engine: Engine) -> None:
    async def first() -> int:
        row = sequence(30)
        stream = Stream(engine, [row])
        stream.submit()
        async for _ in stream:
            return row.made
        return 0

    assert 0 < asyncio.run(first()) < 30


def test_rows_of_one_stream_and_many_streams_do_not_mix(engine: Engine) -> None:
    async def all_of_them() -> list[tuple[list[list[int]], list[Sequence]]]:
        rows = [[sequence(20, 3 * at + seed) for seed in range(3)] for at in range(8)]
        return list(zip(await asyncio.gather(*(read(engine, *each) for each in rows)), rows, strict=True))

    answers = asyncio.run(all_of_them())
    for heard, rows in answers:
        assert heard == [row.future.result().tokens for row in rows]
    assert len({tuple(tokens) for heard, _ in answers for tokens in heard}) > 10


def test_what_comes_before_it_is_listened_to_is_told(engine: Engine) -> None:
    """Submitted in one thread, heard in a loop that begins later, when all is over."""
    row = sequence(30)
    stream = Stream(engine, [row])
    stream.submit()
    tokens = row.future.result(timeout=60).tokens

    async def listen() -> list[int | None]:
        return [token async for _, token in stream]

    assert asyncio.run(listen()) == [*tokens, None]


@pytest.mark.parametrize("leave", ["task", "cancel"])
def test_who_leaves_frees_the_rows(leave: str, engine: Engine) -> None:
    async def listen() -> None:
        stream = Stream(engine, [sequence(6000), sequence(6000, 1)])
        stream.submit()
        try:
            async for _ in stream:
                if leave == "cancel":
                    stream.cancel()
        finally:
            stream.cancel()

    async def go() -> None:
        task = asyncio.create_task(listen())
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


def test_a_row_can_be_left_alone(engine: Engine) -> None:
    rows = [sequence(6000), sequence(40, 1)]

    async def listen() -> list[int]:
        stream = Stream(engine, rows)
        stream.submit()
        heard = []
        async for at, token in stream:
            if at == 0:
                rows[0].future.cancel()
            elif token is not None:
                heard.append(token)
        return heard

    assert asyncio.run(listen()) == rows[1].future.result().tokens
    assert rows[0].future.cancelled()


def test_a_failure_ends_the_tokens_and_is_in_the_future(engine: Engine) -> None:
    row = sequence(6000)

    async def listen() -> int:
        stream = Stream(engine, [row])
        stream.submit()
        heard = 0
        async for _ in stream:
            heard += 1
            row.deadline = 0.0
        return heard

    assert 0 < asyncio.run(listen()) < 6000
    with pytest.raises(Failure, match="deadline_exceeded"):
        row.future.result()


def test_where_one_row_is_refused_none_is_on_its_way(engine: Engine) -> None:
    rows = [sequence(6000), sequence(100_000)]
    with pytest.raises(Failure, match="context_length_exceeded"):
        Stream(engine, rows).submit()
    assert rows[0].future.cancelled()


def test_a_loop_that_is_gone_harms_nobody(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    row = sequence(200)

    async def leave() -> None:
        stream = Stream(engine, [row])
        stream.submit()
        async for _ in stream:
            return

    asyncio.run(leave())
    assert len(row.future.result(timeout=60).tokens) == 200
    assert engine.alive
    assert not caplog.records
