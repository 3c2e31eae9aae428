"""models/engine/scheduler.py: what is computed next, who comes in, and who leaves at once."""

import time
from concurrent.futures import CancelledError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.cache import Cache
from models.engine.scheduler import Scheduler
from models.engine.sequence import Sampling, Sequence
from models.failure import Failure

Plan = list[tuple[Sequence, list[int]]]
NEVER = float("inf")


def scheduler(budget: int = 1000, step_tokens: int = 16) -> tuple[Scheduler, Cache]:
    cache = Cache(1, 1, 1, torch.float32, torch.device("cpu"), budget)
    return Scheduler(cache, step_tokens), cache


def sequence(prompt: int, answer: int = 4, deadline: float = NEVER) -> Sequence:
    """Ids count up, so that a piece says where it comes from."""
    return Sequence(list(range(prompt)), Sampling(answer), deadline=deadline)


def compute(planner: Scheduler, planned: Plan) -> None:
    """What the engine does with a plan, with token 0 for every choice."""
    for row, tokens in planned:
        row.computed += len(tokens)
        if row.computed == row.length:
            row.output.append(0)
            if len(row.output) == row.sampling.max_new_tokens:
                planner.release(row)
                row.finish("length")


def step(planner: Scheduler) -> Plan:
    planned = planner.plan()
    compute(planner, planned)
    return planned


def test_nothing_to_do_is_an_empty_plan() -> None:
    planner, _ = scheduler()
    assert planner.plan() == []


def test_rows_that_decode_come_before_prompt_pieces() -> None:
    planner, _ = scheduler(step_tokens=16)
    first, second = sequence(4), sequence(40)
    planner.waiting.append(first)
    step(planner)
    planner.waiting.append(second)
    planned = planner.plan()
    assert [row for row, _ in planned] == [first, second]
    assert [len(tokens) for _, tokens in planned] == [1, 15]


def test_a_row_that_decodes_overtakes_an_earlier_one_still_in_its_prompt() -> None:
    planner, _ = scheduler(step_tokens=16)
    long, short = sequence(60), sequence(4)
    planner.waiting.extend([long, short])
    for _ in range(4):
        step(planner)
    assert (long.computed, len(short.output)) == (60, 1)
    assert [row for row, _ in planner.plan()] == [long, short]
    late = sequence(60)
    planner.running.insert(0, late)
    assert [row for row, _ in planner.plan()] == [long, short, late]


def test_a_long_prompt_is_cut_into_pieces_of_the_budget() -> None:
    planner, _ = scheduler(step_tokens=16)
    row = sequence(40)
    planner.waiting.append(row)
    pieces = [step(planner)[0][1] for _ in range(4)]
    assert pieces == [list(range(16)), list(range(16, 32)), list(range(32, 40)), [0]]


def test_who_does_not_fit_waits_until_room_is_given_back() -> None:
    planner, cache = scheduler(budget=20)
    first, second = sequence(8, 4), sequence(8, 4)
    planner.waiting.extend([first, second])
    for _ in range(4):
        assert [row for row, _ in step(planner)] == [first]
        assert list(planner.waiting) == [second]
    assert first.future.done()
    assert cache.reserved == 0
    assert [row for row, _ in step(planner)] == [second]
    assert cache.reserved == second.capacity


def test_a_small_one_does_not_overtake_a_large_one_that_waits() -> None:
    planner, _ = scheduler(budget=30)
    running, large, small = sequence(8, 12), sequence(8, 12), sequence(1, 1)
    planner.waiting.extend([running, large, small])
    step(planner)
    assert planner.running == [running]
    assert list(planner.waiting) == [large, small]


def test_admission_notes_the_time() -> None:
    planner, _ = scheduler()
    row = sequence(4)
    planner.waiting.append(row)
    planner.plan()
    assert row.submitted <= row.started <= time.monotonic()


def test_a_cancelled_sequence_never_comes_in() -> None:
    planner, cache = scheduler()
    row = sequence(4)
    planner.waiting.append(row)
    row.future.cancel()
    assert planner.plan() == []
    assert not planner.waiting and not planner.running
    assert cache.reserved == 0


def test_a_cancelled_row_leaves_and_its_room_goes_to_the_next() -> None:
    planner, cache = scheduler(budget=12)
    row, following = sequence(8), sequence(8)
    planner.waiting.extend([row, following])
    step(planner)
    row.future.cancel()
    assert [planned for planned, _ in planner.plan()] == [following]
    assert cache.reserved == following.capacity
    with pytest.raises(CancelledError):
        row.future.result(timeout=0)


@pytest.mark.parametrize("steps", [0, 2])
def test_an_expired_sequence_fails_wherever_it_is(steps: int) -> None:
    planner, cache = scheduler()
    row, neighbour = sequence(4), sequence(4)
    planner.waiting.extend([row, neighbour])
    for _ in range(steps):
        step(planner)
    row.deadline = time.monotonic()
    assert [planned for planned, _ in planner.plan()] == [neighbour]
    assert cache.reserved == neighbour.capacity
    failure = row.future.exception(timeout=0)
    assert isinstance(failure, Failure)
    assert failure.code == "deadline_exceeded"
    assert f"{steps} tokens" in failure.message
    assert not neighbour.future.done()


def test_release_gives_the_room_back() -> None:
    planner, cache = scheduler()
    row = sequence(4)
    planner.waiting.append(row)
    planner.plan()
    planner.release(row)
    assert planner.running == []
    assert cache.reserved == 0


# One arrival: the step it comes in, prompt, answer, the step it is cancelled in (mostly none).
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 30), st.integers(1, 8), st.integers(0, 80)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=200)
@given(arrivals=ARRIVALS, step_tokens=st.integers(1, 24), budget=st.integers(38, 90))
def test_whatever_arrives_the_rules_hold(
    arrivals: list[tuple[int, int, int, int]], step_tokens: int, budget: int
) -> None:
    planner, cache = scheduler(budget, step_tokens)
    rows = [(when, sequence(prompt, answer), cancelled) for when, prompt, answer, cancelled in sorted(arrivals)]
    computed: dict[int, list[int]] = {row.number: [] for _, row, _ in rows}
    admitted: list[Sequence] = []
    for now in range(1000):
        for when, row, cancelled in rows:
            if when == now:
                planner.waiting.append(row)
            if cancelled == now and cancelled % 2:
                row.future.cancel()
        planned = planner.plan()
        # Budgets.
        assert sum(len(tokens) for _, tokens in planned) <= step_tokens
        assert cache.reserved == sum(row.capacity for row in planner.running) <= budget
        # Nobody sits idle while there is work, nobody is left outside while there is room for the first.
        assert bool(planned) == bool(planner.running)
        assert not planner.waiting or not cache.fits(planner.waiting[0].capacity)
        # Whoever decodes comes first.
        decoding = [row.computed >= len(row.prompt) for row, _ in planned]
        assert decoding == sorted(decoding, reverse=True)
        if not all(decoding):
            assert sum(decoding) == sum(row.computed >= len(row.prompt) for row in planner.running)
        # Nobody who left is computed.
        assert not any(row.future.cancelled() for row, _ in planned)
        admitted += [row for row in planner.running if row not in admitted]
        for row, tokens in planned:
            computed[row.number] += tokens
        compute(planner, planned)
        if now > 20 and not planner.running and not planner.waiting:
            break
    else:
        pytest.fail("not finished after 1000 steps")
    assert cache.reserved == 0
    assert [row for _, row, _ in rows if row in admitted] == admitted
    for _, row, _ in rows:
        assert row.future.done()
        if not row.future.cancelled():
            assert computed[row.number] == [*row.prompt, *row.output[:-1]]
