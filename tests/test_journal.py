"""deploy/journal.py: what is accepted is on disk, and gets one final state."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import journal
from deploy.journal import FINAL, Job, Journal


def job(body: bytes = b"{}", key: str | None = None, owner: str = "o", running: bool = False) -> Job:
    return journal.make(owner, key, f"digest of {body[:1]!r}", "an-id", "/prompt", body, running)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Journal]:
    kept = await Journal.open(path)
    try:
        yield kept
    finally:
        await kept.close()


def test_what_is_accepted_is_there_for_the_next_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = job(b'{"prompt": "a"}')
        async with opened(tmp_path / "jobs" / "pod.sqlite3") as kept:
            assert await kept.accept(made) == made
        async with opened(tmp_path / "jobs" / "pod.sqlite3") as kept:
            assert await kept.find(made.id, "o") == made
            assert await kept.find(made.id, "another") is None

    asyncio.run(scenario())


def test_the_oldest_due_is_claimed_first_and_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "j") as kept:
            first, second = [await kept.accept(job(bytes([at]))) for at in b"ab"]
            claimed = [await kept.claim() for _ in range(3)]
            assert [each and each.id for each in claimed] == [first.id, second.id, None]
            assert claimed[0] is not None and (claimed[0].state, claimed[0].attempts) == ("running", 1)
            assert await kept.put_back(first.id, 60)
            assert await kept.claim() is None  # not due yet
            assert not await kept.put_back(first.id, 0)  # it is not running
            assert await kept.put_back(second.id, 0, tried=False)
            again = await kept.claim()
            assert again is not None and (again.id, again.attempts) == (second.id, 1)

    asyncio.run(scenario())


def test_a_clock_that_is_set_back_holds_nothing_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "j") as kept:
            before = [await kept.accept(replace(job(), created=at, due=at)) for at in (time.time() + 3600,) * 2]
            after = await kept.accept(job())
            claimed = [await kept.claim() for _ in range(3)]
            assert [each and each.id for each in claimed] == [before[0].id, before[1].id, after.id]

    asyncio.run(scenario())


def test_what_is_accepted_is_on_disk_however_much_goes_on(tmp_path: Path) -> None:
    """Read beside the lock: what one writes may not wait for another's statement to end."""
    lost: list[str] = []

    async def scenario() -> None:
        async with opened(tmp_path / "j") as kept:

            async def accept() -> None:
                made = await kept.accept(job())
                if made.id.encode() not in (tmp_path / "j").read_bytes():
                    lost.append(made.id)

            async def work() -> None:
                while (claimed := await kept.claim()) is not None:
                    await kept.finish(claimed.id, "succeeded", 200, b"1")
                    if b"1" not in (tmp_path / "j").read_bytes():
                        lost.append(claimed.id)

            await kept.accept(job())
            await asyncio.gather(*(each() for _ in range(60) for each in (accept, work)))

    asyncio.run(scenario())
    assert lost == []


def test_the_first_final_state_stands_and_the_body_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        secret = b"the text of a document that nobody keeps"
        async with opened(tmp_path / "j") as kept:
            made = await kept.accept(job(secret))
            ended = await kept.finish(made.id, "succeeded", 200, b"1")
            assert ended is not None and (ended.state, ended.answer, ended.body) == ("succeeded", b"1", None)
            assert await kept.finish(made.id, "cancelled", 499, b"2") is None
            assert await kept.find(made.id, "o") == ended
            assert await kept.waiting() == (0, 0)
            assert not [each for each in tmp_path.iterdir() if secret in each.read_bytes()]

    asyncio.run(scenario())


def test_an_idempotency_key_stands_for_one_job_of_its_owner(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "j") as kept:
            first = await kept.accept(job(b"a", "k"))
            assert await kept.accept(job(b"b", "k")) == first
            assert (await kept.accept(job(b"b", "k", owner="another"))).digest == "digest of b'b'"
            assert (await kept.accept(job(b"a"))).id != (await kept.accept(job(b"a"))).id
            assert await kept.waiting() == (4, 4)

    asyncio.run(scenario())


def test_answers_are_forgotten_after_their_time_and_nothing_else_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "j") as kept:
            ended, waiting = await kept.accept(job()), await kept.accept(job())
            await kept.finish(ended.id, "failed", 500, b"{}")
            await kept.forget(60)
            assert await kept.find(ended.id, "o") is not None
            time.sleep(0.01)
            await kept.forget(0)
            assert await kept.find(ended.id, "o") is None
            assert await kept.find(waiting.id, "o") == waiting

    asyncio.run(scenario())


def test_a_second_process_does_not_get_the_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "j"):
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await Journal.open(tmp_path / "j")

    asyncio.run(scenario())


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"something else entirely" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        asyncio.run(Journal.open(tmp_path / "j"))
    assert (tmp_path / "j").read_bytes() == b"something else entirely" * 100


STEPS = st.lists(
    st.tuples(st.sampled_from(["accept", "claim", "put_back", "finish", "cancel", "reopen"]), st.integers(0, 5)),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_no_order_of_events_gives_a_job_two_final_states(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def scenario(path: Path) -> None:
        kept = await Journal.open(path)
        made: list[Job] = []
        final: dict[str, Job] = {}
        for step, which in steps:
            picked = made[which % len(made)] if made else None
            if step == "accept":
                made.append(await kept.accept(job(bytes([which]))))
            elif step == "claim":
                claimed = await kept.claim()
                assert claimed is None or claimed.id not in final
            elif step == "reopen":
                await kept.close()
                kept = await Journal.open(path)
            elif picked is not None and step == "put_back":
                await kept.put_back(picked.id, 0)
            elif picked is not None:
                ended = await kept.finish(
                    picked.id, "succeeded" if step == "finish" else "cancelled", 200, b"%d" % which
                )
                assert (ended is None) == (picked.id in final)
                if ended is not None:
                    final[picked.id] = ended
        for each in made:
            found = await kept.find(each.id, "o")
            assert found is not None
            assert (found.state in FINAL) == (each.id in final)
            assert found == final.get(each.id, found)
        await kept.close()

    asyncio.run(scenario(tmp_path_factory.mktemp("journal") / "j"))
