"""models/engine/speculation.py: drafts are what followed before, and are made only while they pay."""

import random

from hypothesis import given
from hypothesis import strategies as st

from models.engine.speculation import LONGEST, PROBE, Lookup, Utility, bucket


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 10), st.lists(st.integers(0, 3), max_size=20))
def test_a_draft_is_what_followed_the_same_pair_last(ids: list[int], most: int, more: list[int]) -> None:
    lookup = Lookup()
    lookup.draft(ids, most)  # what it has seen does not depend on when it looked
    ids = ids + more
    places = [at for at in range(2, len(ids)) if ids[at - 2 : at] == ids[-2:]]
    expected = ids[places[-1] :][:most] if places else []
    assert lookup.draft(ids, most) == expected


def test_nothing_is_drafted_from_nothing() -> None:
    assert Lookup().draft([], 5) == Lookup().draft([1], 5) == Lookup().draft([1, 2], 5) == []


def simulate(right: float, seconds: float, rows: int, steps: int = 600) -> list[int]:
    """Draft lengths that are chosen where each drafted token is right with probability `right`, and each token of a
    step takes `seconds` beside a second that every step takes."""
    rng = random.Random(1)
    utility = Utility()
    lengths = []
    for _ in range(steps):
        length = utility.length(rows, rows)
        lengths.append(length)
        tokens = rows * (1 + length)
        for _ in range(rows):
            accepted = 0
            while accepted < length and rng.random() < right:
                accepted += 1
            if length:
                utility.note_draft(length, accepted)
        utility.note_step(tokens, 1 + seconds * tokens)
    return lengths[100:]


def test_where_tokens_cost_nothing_and_are_right_drafts_are_long() -> None:
    assert set(simulate(0.9, 0.0, rows=4)) == {LONGEST}


def test_where_they_are_wrong_none_are_made_but_for_a_probe() -> None:
    lengths = simulate(0.02, 0.05, rows=4)
    assert lengths.count(0) >= 0.97 * len(lengths)
    assert LONGEST in lengths
    assert lengths.count(LONGEST) <= len(lengths) // PROBE + 1


def test_where_every_token_costs_its_full_price_none_are_made() -> None:
    lengths = simulate(0.6, 10.0, rows=32)
    assert lengths.count(0) >= 0.97 * len(lengths)


def test_in_between_they_are_short() -> None:
    lengths = simulate(0.5, 0.1, rows=1)
    assert 0 < sum(lengths) / len(lengths) < LONGEST


def test_few_drafts_among_many_rows_cost_little() -> None:
    """Whether they pay is asked for the rows that have one."""
    utility = Utility()
    for tokens in (32, 33, 64, 128, 300):
        utility.note_step(tokens, 1 + 0.01 * tokens)
    for _ in range(50):
        utility.note_draft(8, 6)
    assert utility.length(32, 2) > 0


@given(st.integers(1, 10_000))
def test_buckets_are_powers_of_two(tokens: int) -> None:
    assert 2 ** bucket(tokens) >= tokens > 2 ** (bucket(tokens) - 1) or tokens == 1
