"""models/engine/scheduler.py: what is computed next, who comes in, who gives way, and who leaves at once."""

import time
from concurrent.futures import CancelledError
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.admission import Admission
from models.engine.cache import BLOCK, Cache
from models.engine.scheduler import BULK, Piece, Scheduler
from models.engine.sequence import Lane, Sampling, Sequence
from models.failure import Failure

NEVER = float("inf")
NO_STOPS: frozenset[int] = frozenset()
_words = count(1000)


def scheduler(blocks: int = 60, step_tokens: int = 16, answer_share: float = 1.0) -> tuple[Scheduler, Cache]:
    cache = Cache(1, 1, 1, torch.float32, torch.device("cpu"), blocks * BLOCK)
    admission = Admission(1 << 30)
    admission.answer_share = answer_share
    return Scheduler(cache, admission, step_tokens), cache


def sequence(prompt: int, answer: int = 4, deadline: float = NEVER, lane: Lane = "interactive") -> Sequence:
    """A prompt that begins like no other."""
    return Sequence([next(_words)] * prompt, Sampling(answer), deadline=deadline, lane=lane)


def queued(planner: Scheduler, *rows: Sequence) -> None:
    for row in rows:
        planner.admit(row)


def compute(planner: Scheduler, cache: Cache, planned: list[Piece]) -> None:
    """What the engine does with a plan, with token 0 for every choice."""
    for piece in planned:
        row, due = piece.sequence, piece.due
        row.computed += piece.count
        cache.fill(row.number, row.ids, row.computed)
        if due:
            row.take(0, NO_STOPS)
            if row.made == row.sampling.max_new_tokens:
                planner.end(row, complete=True)
                row.finish(ended=False)


def step(planner: Scheduler, cache: Cache) -> list[tuple[Sequence, int]]:
    planned = planner.plan()
    told = [(piece.sequence, piece.count) for piece in planned]
    compute(planner, cache, planned)
    return told


def finish(planner: Scheduler, cache: Cache, rows: list[Sequence], most: int = 10_000) -> list[Sequence]:
    """Step until all are done; in which order they were."""
    done: list[Sequence] = []
    for _ in range(most):
        step(planner, cache)
        done += [row for row in rows if row.future.done() and row not in done]
        if len(done) == len(rows):
            return done
    pytest.fail(f"not finished after {most} steps")


def test_nothing_to_do_is_an_empty_plan() -> None:
    planner, _ = scheduler()
    assert planner.plan() == []


def test_rows_that_decode_come_before_prompt_pieces() -> None:
    planner, cache = scheduler(step_tokens=80)
    first, second = sequence(4), sequence(140)
    queued(planner, first)
    step(planner, cache)
    queued(planner, second)
    assert step(planner, cache) == [(first, 1), (second, 79)]


def test_a_long_prompt_is_cut_into_pieces_of_the_budget() -> None:
    planner, cache = scheduler(step_tokens=16)
    row = sequence(40)
    queued(planner, row)
    assert [step(planner, cache) for _ in range(4)] == [[(row, 16)], [(row, 16)], [(row, 8)], [(row, 1)]]


def test_who_does_not_fit_waits_until_room_is_given_back() -> None:
    planner, cache = scheduler(blocks=3)
    first, second = sequence(20), sequence(20)
    queued(planner, first, second)
    while not first.future.done():
        assert [row for row, _ in step(planner, cache)] == [first]
        assert planner.waiting == [second]
    assert [row for row, _ in step(planner, cache)] == [second]
    assert cache.used == 2 * BLOCK


def test_short_ones_pass_a_long_one_and_the_long_one_gets_its_turn() -> None:
    """A hundred short prompts keep coming after one of 30,000 tokens; it waits no longer than its size allows."""
    planner, cache = scheduler(blocks=4000, step_tokens=512)
    long = sequence(30_000)
    queued(planner, long)
    step(planner, cache)
    came: dict[Sequence, int] = {}
    waits = []
    for now in range(1000):
        short = sequence(400)
        came[short] = now
        queued(planner, short)
        step(planner, cache)
        waits += [now - came.pop(row) for row in list(came) if row.future.done()]
        if long.future.done():
            break
    assert now > 100
    assert max(waits) <= 4  # one step for its prompt, three more for its tokens


def test_a_long_one_gets_its_turn_even_where_short_ones_are_more_than_can_be_done() -> None:
    planner, cache = scheduler(blocks=4000, step_tokens=512)
    long = sequence(3000)
    queued(planner, long)
    computed = 0
    while not long.future.done():
        queued(planner, sequence(400), sequence(400))
        computed += sum(count for _, count in step(planner, cache))
        assert computed < 16 * 3000, "it starves"  # 8 times its size, while 1.6 times as much arrives
    assert computed > 5 * 3000


def test_a_long_one_that_finds_no_room_is_passed_only_until_its_turn() -> None:
    planner, cache = scheduler(blocks=40, step_tokens=64)
    queued(planner, *(sequence(100, 30) for _ in range(3)))
    step(planner, cache)
    long = sequence(500, 4)
    queued(planner, long)
    came_later = 0
    while long in planner.waiting:
        if len(planner.waiting) == 1:
            queued(planner, sequence(100, 30))
            came_later += 1
        step(planner, cache)
        assert came_later < 60, "the long one starves"
    assert came_later > 5


def test_the_bulk_lane_gives_way_and_does_not_starve() -> None:
    planner, cache = scheduler(blocks=2000, step_tokens=512)
    bulk = sequence(600, lane="bulk")
    queued(planner, bulk)
    computed = 0
    while bulk.computed < 600:
        # More than a step's worth of interactive work, always.
        queued(planner, sequence(600, 1))
        computed += sum(count for _, count in step(planner, cache))
        assert computed < 2 * BULK, "the bulk lane starves"
    assert computed > BULK / 2


def test_bulk_rows_use_what_the_others_leave() -> None:
    planner, cache = scheduler(step_tokens=64)
    bulk, short = sequence(100, lane="bulk"), sequence(10, 2)
    queued(planner, bulk, short)
    assert step(planner, cache) == [(short, 10), (bulk, 54)]


def test_those_that_begin_alike_wait_until_the_beginning_is_computed() -> None:
    """64 documents behind 600 tokens that are the same: those are computed once."""
    planner, cache = scheduler(blocks=1000, step_tokens=512)
    rows = [Sequence([7] * 600 + [next(_words)] * 100, Sampling(4)) for _ in range(64)]
    queued(planner, *rows)
    total = 0
    while not all(row.future.done() for row in rows):
        total += sum(count for _, count in step(planner, cache))
    shared = 600 // BLOCK * BLOCK
    assert total == shared + 64 * (700 - shared) + 64 * 3
    assert cache.used == 0


def test_who_waits_for_a_writer_of_a_later_turn_lends_it_its_own() -> None:
    planner, cache = scheduler(blocks=1000, step_tokens=16)
    common = [3] * 64
    bulk = Sequence(common + [1] * 8, Sampling(4), lane="bulk")
    queued(planner, bulk)
    step(planner, cache)
    quick = Sequence(common + [2] * 8, Sampling(4))
    crowd = [sequence(400) for _ in range(5)]
    queued(planner, *crowd, quick)
    assert finish(planner, cache, [bulk, quick, *crowd])[:2] == [bulk, quick]


def test_a_cancelled_writer_leaves_the_work_to_the_next() -> None:
    planner, cache = scheduler(blocks=100, step_tokens=16)
    rows = [Sequence([3] * 64 + [number] * 8, Sampling(4)) for number in range(3)]
    queued(planner, *rows)
    step(planner, cache)
    assert planner.running == rows[:1]
    rows[0].future.cancel()
    assert finish(planner, cache, rows[1:]) == rows[1:]
    assert cache.used == 0


def test_answers_longer_than_expected_preempt_the_last_and_lose_nothing() -> None:
    planner, cache = scheduler(blocks=12, step_tokens=64, answer_share=0.01)
    rows = [sequence(40, 100) for _ in range(4)]
    queued(planner, *rows)
    step(planner, cache)
    assert len(planner.running) == 4
    assert finish(planner, cache, rows)[0] is rows[0]
    assert planner.preempted > 0
    assert all(row.made == 100 for row in rows)
    assert cache.used == 0


def test_a_row_that_is_put_back_is_not_planned() -> None:
    """One with much to compute comes late in the order, however early its turn, and may need another's room."""
    planner, cache = scheduler(blocks=9, step_tokens=512, answer_share=0.01)
    early, late = sequence(16, 128), sequence(100, 20)
    queued(planner, early, late)
    while not late.made:
        step(planner, cache)
    for _ in range(100):
        early.take(0, NO_STOPS)
    planned = planner.plan()
    assert [piece.sequence for piece in planned] == [early]
    assert planner.waiting == [late]
    compute(planner, cache, planned)
    late.deadline = early.deadline = 0.0
    planner.plan()
    assert cache.used == 0


def test_a_draft_takes_room_from_nobody() -> None:
    planner, cache = scheduler(blocks=5, step_tokens=64)
    first, second = sequence(15, 30), sequence(15, 2)
    queued(planner, first, second)
    step(planner, cache)
    (piece, *_) = planner.plan()
    assert planner.allow(piece, [1] * 48).draft == [1] * 48
    assert planner.allow(piece, [1] * 49).draft == []
    assert planner.allow(piece, []) == piece
    assert planner.preempted == 0


def probing(stem: int, path: int, **more: Any) -> Sequence:
    """Asks behind the last token of its stem and each of its path."""
    return Sequence([next(_words)] * (stem + path), Sampling(1), probes=[[1, 2]] * (path + 1), **more)


@pytest.mark.parametrize(
    ("step_tokens", "counts", "places"),
    [
        (512, [49], [10]),
        (16, [16, 16, 16, 1], [0, 0, 9, 1]),
        (39, [39, 10], [0, 10]),
        (40, [40, 9], [1, 9]),
        (3, [3] * 16 + [1], [0] * 13 + [3, 3, 3, 1]),
    ],
)
def test_each_place_is_known_in_the_piece_that_computes_it(
    step_tokens: int, counts: list[int], places: list[int]
) -> None:
    """Of 49 tokens the last ten are asked about; however they are cut, each of them once."""
    planner, cache = scheduler(step_tokens=step_tokens)
    row = probing(40, 9)
    queued(planner, row)
    told = []
    while row.due:
        (piece,) = planner.plan()
        told.append((piece.count, piece.places))
        row.computed += piece.count
        cache.fill(row.number, row.ids, row.computed)
    assert told == list(zip(counts, places, strict=True))


def test_a_row_that_answers_has_a_place_where_it_is_due() -> None:
    row = sequence(20)
    assert Piece(row, 19).places == 0
    assert Piece(row, 20).places == 1
    assert Piece(row, 20, [5, 6]).places == 3


def test_probes_are_asked_of_whoever_has_read_the_same_before() -> None:
    """What is known of a row goes up to what it asks about, and no further."""
    planner, cache = scheduler(blocks=60, step_tokens=512)
    ids = [7] * 100
    queued(planner, Sequence(ids, Sampling(1)))
    step(planner, cache)
    for asked, known in [(1, 96), (4, 96), (5, 80), (20, 80), (21, 64), (99, 0), (100, 0)]:
        row = Sequence(ids, Sampling(1), probes=[[]] * asked)
        queued(planner, row)
        (piece,) = planner.plan()
        assert (row.reusable, row.computed, piece.places) == (100 - asked, known, asked)
        planner.end(row, complete=True)
    assert cache.used == 0


@pytest.mark.parametrize("blocks", [14, 15])
def test_what_is_asked_about_needs_room_of_its_own(blocks: int) -> None:
    """Even where another row has read the same: of 100 tokens 10 could be shared, which is no block."""
    planner, cache = scheduler(blocks=blocks, step_tokens=512)
    answering = Sequence([7] * 100, Sampling(20))
    row = Sequence([7] * 100, Sampling(1), probes=[[]] * 90)
    queued(planner, answering)
    step(planner, cache)
    queued(planner, row)
    planned = planner.plan()
    assert [piece.sequence for piece in planned] == ([answering, row] if blocks == 15 else [answering])
    assert (row in planner.waiting) == (blocks == 14)
    if blocks == 15:
        assert not set(cache.table(row.number)) & set(cache.table(answering.number))


def test_who_follows_costs_little_and_waits_for_whom_it_follows() -> None:
    planner, cache = scheduler(blocks=200, step_tokens=64)
    stem = [next(_words)] * 1000
    rows = [Sequence([*stem, path], Sampling(1), probes=[[], []], follows=999 * (path > 0)) for path in range(5)]
    queued(planner, *rows)
    assert [row.cost for row in rows] == [1001 + 8] + 4 * [1001 - 999 // BLOCK * BLOCK + 8]
    assert planner._admission.queued == sum(row.cost for row in rows)
    assert [piece.sequence for piece in planner.plan()] == rows[:1]
    for row in rows:
        row.future.cancel()
    assert planner.plan() == []
    assert (planner._admission.queued, planner._admission.running, cache.used) == (0, 0, 0)


def test_who_can_never_fit_is_refused_and_counted_nowhere() -> None:
    planner, _ = scheduler(blocks=4)
    for row in (sequence(61), probing(60, 4)):
        with pytest.raises(Failure, match="context_length_exceeded"):
            planner.admit(row)
    assert not planner.waiting and planner._admission.queued == 0
    queued(planner, sequence(60), probing(60, 3))
    assert len(planner.waiting) == 2


def test_admission_notes_the_time() -> None:
    planner, _ = scheduler()
    row = sequence(4)
    queued(planner, row)
    planner.plan()
    assert row.submitted <= row.started <= time.monotonic()


def test_a_cancelled_sequence_never_comes_in() -> None:
    planner, cache = scheduler()
    row = sequence(4)
    queued(planner, row)
    row.future.cancel()
    assert planner.plan() == []
    assert not planner.waiting and not planner.running
    assert cache.used == 0


def test_a_cancelled_row_leaves_and_its_room_goes_to_the_next() -> None:
    planner, cache = scheduler(blocks=2)
    row, following = sequence(20), sequence(20)
    queued(planner, row, following)
    step(planner, cache)
    row.future.cancel()
    assert [piece.sequence for piece in planner.plan()] == [following]
    with pytest.raises(CancelledError):
        row.future.result(timeout=0)


@pytest.mark.parametrize("steps", [0, 2])
def test_an_expired_sequence_fails_wherever_it_is(steps: int) -> None:
    planner, cache = scheduler()
    row, neighbour = sequence(4), sequence(4)
    queued(planner, row, neighbour)
    for _ in range(steps):
        step(planner, cache)
    row.deadline = time.monotonic()
    assert [piece.sequence for piece in planner.plan()] == [neighbour]
    assert cache.used == BLOCK
    failure = row.future.exception(timeout=0)
    assert isinstance(failure, Failure)
    assert failure.code == "deadline_exceeded"
    assert f"{steps} tokens" in failure.message
    assert not neighbour.future.done()


# One arrival: the step it comes in, prompt, answer, words of a common beginning, the step it is cancelled in, bulk.
ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 20), st.integers(1, 60), st.integers(1, 20), st.integers(0, 3), st.integers(0, 80), st.booleans()
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=200)
@given(arrivals=ARRIVALS, step_tokens=st.integers(1, 40), blocks=st.integers(9, 20))
def test_whatever_arrives_the_rules_hold(
    arrivals: list[tuple[int, int, int, int, int, bool]], step_tokens: int, blocks: int
) -> None:
    planner, cache = scheduler(blocks, step_tokens)
    rows = []
    for when, prompt, answer, common, cancelled, bulk in sorted(arrivals):
        ids = [7] * (common * BLOCK) + [next(_words)] * prompt
        rows.append((when, Sequence(ids, Sampling(answer), lane="bulk" if bulk else "interactive"), cancelled))
    for now in range(3000):
        for when, row, cancelled in rows:
            if when == now:
                queued(planner, row)
            if cancelled == now and cancelled % 2:
                row.future.cancel()
        planned = planner.plan()
        assert sum(piece.count for piece in planned) <= step_tokens
        assert all(1 <= piece.count <= piece.sequence.due for piece in planned)
        # Nobody sits idle while there is work; nobody who left is computed; who waits is in order.
        assert bool(planned) == bool(planner.running)
        assert not any(piece.sequence.future.cancelled() for piece in planned)
        turns = [row.turn for row in planner.waiting]
        assert turns == sorted(turns)
        # Rows have room for all that is planned, and the same room is nobody else's unless it is read only.
        for piece in planned:
            table = cache.table(piece.sequence.number)
            assert len(table) * BLOCK >= piece.sequence.computed + piece.count
            for other in planned:
                if other is not piece:
                    writes = set(table[piece.sequence.computed // BLOCK :])
                    assert not writes & set(cache.table(other.sequence.number))
        compute(planner, cache, planned)
        if now > 20 and not planner.running and not planner.waiting:
            break
    else:
        pytest.fail("not finished after 3000 steps")
    assert cache.used == 0
    for _, row, _ in rows:
        assert row.future.done()
        assert row.future.cancelled() or row.made == row.sampling.max_new_tokens
