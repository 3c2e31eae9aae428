"""models/engine/sequence.py: what is pending, what is needed, and exactly one outcome."""

from concurrent.futures import CancelledError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.sequence import Completion, Sampling, Sequence
from models.failure import Failure


def draws(sampling: Sampling) -> list[int]:
    generator = Sequence([1], sampling).generator
    assert generator is not None
    return torch.randint(1 << 30, (8,), generator=generator).tolist()


@settings(deadline=None)
@given(prompt=st.lists(st.integers(0, 99), min_size=1, max_size=50), limits=st.lists(st.integers(1, 20), min_size=50))
def test_pieces_cover_the_prompt_in_order(prompt: list[int], limits: list[int]) -> None:
    sequence = Sequence(prompt, Sampling(4))
    computed: list[int] = []
    for limit in limits:
        if sequence.computed == len(prompt):
            break
        piece = sequence.pending(limit)
        assert 1 <= len(piece) <= limit
        computed += piece
        sequence.computed += len(piece)
    assert computed == prompt


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, 99), min_size=1, max_size=20),
    output=st.lists(st.integers(0, 99), max_size=20),
    computed=st.integers(0, 39),
    limit=st.integers(1, 50),
)
def test_what_is_pending_is_what_is_not_computed(
    prompt: list[int], output: list[int], computed: int, limit: int
) -> None:
    sequence = Sequence(prompt, Sampling(40), computed=computed, output=output)
    assert sequence.pending(limit) == (prompt + output)[computed : computed + limit]


def test_length_counts_what_is_there_and_capacity_what_may_come() -> None:
    sequence = Sequence([1, 2, 3], Sampling(10), output=[7, 8])
    assert sequence.length == 5
    assert sequence.capacity == 13


def test_every_sequence_has_a_number_of_its_own() -> None:
    numbers = [Sequence([1], Sampling(1)).number for _ in range(100)]
    assert len(set(numbers)) == 100


def test_greedy_needs_no_generator() -> None:
    assert Sequence([1], Sampling(4)).generator is None
    assert Sequence([1], Sampling(4, seed=3)).generator is None


def test_equal_seeds_make_equal_draws() -> None:
    assert draws(Sampling(4, temperature=1.0, seed=5)) == draws(Sampling(4, temperature=0.3, seed=5))
    assert draws(Sampling(4, temperature=1.0, seed=5)) != draws(Sampling(4, temperature=1.0, seed=6))


def test_the_largest_seed_on_the_wire_is_a_seed() -> None:
    assert draws(Sampling(4, temperature=1.0, seed=2**63 - 1)) != draws(Sampling(4, temperature=1.0, seed=0))


def test_without_a_seed_draws_differ() -> None:
    assert draws(Sampling(4, temperature=1.0)) != draws(Sampling(4, temperature=1.0))


def test_finish_gives_the_completion() -> None:
    sequence = Sequence([1, 2, 3], Sampling(4), output=[7, 8], submitted=10.0, started=12.5)
    sequence.finish("stop")
    done = sequence.future.result(timeout=0)
    assert (done.tokens, done.finish_reason, done.prompt_tokens, done.waited) == ([7, 8], "stop", 3, 2.5)


def test_fail_gives_the_failure() -> None:
    sequence = Sequence([1], Sampling(4))
    failure = Failure("model_error", "no")
    sequence.fail(failure)
    assert sequence.future.exception(timeout=0) is failure


def test_finish_and_fail_after_cancel_are_harmless() -> None:
    sequence = Sequence([1], Sampling(4))
    assert sequence.future.cancel()
    sequence.finish("stop")
    sequence.fail(Failure("model_error", "no"))
    with pytest.raises(CancelledError):
        sequence.future.result(timeout=0)


def test_the_first_outcome_stands() -> None:
    sequence = Sequence([1], Sampling(4), output=[7])
    sequence.finish("length")
    sequence.fail(Failure("draining", "too late"))
    done = sequence.future.result(timeout=0)
    assert isinstance(done, Completion) and done.finish_reason == "length"
    assert not sequence.future.cancel()
