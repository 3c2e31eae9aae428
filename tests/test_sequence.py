"""models/engine/sequence.py: what is pending, what is needed, and exactly one outcome."""

from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.sequence import Completion, Sampling, Sequence
from models.failure import Failure

NO_STOPS: frozenset[int] = frozenset()


def draws(sampling: Sampling) -> list[int]:
    generator = Sequence([1], sampling).generator
    assert generator is not None
    return torch.randint(1 << 30, (8,), generator=generator).tolist()


def with_output(output: list[int], prompt: list[int] | None = None, most: int = 40, **more: Any) -> Sequence:
    sequence = Sequence(prompt or [1, 2, 3], Sampling(most), **more)
    for token in output:
        assert not sequence.take(token, NO_STOPS)
    return sequence


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, 99), min_size=1, max_size=20),
    output=st.lists(st.integers(0, 99), max_size=20),
    computed=st.integers(0, 20),
)
def test_what_is_due_is_what_is_not_computed(prompt: list[int], output: list[int], computed: int) -> None:
    sequence = with_output(output, prompt, computed=min(computed, len(prompt)))
    assert sequence.ids == prompt + output
    assert sequence.output == output
    assert sequence.made == len(output)
    assert sequence.due == len(prompt) + len(output) - min(computed, len(prompt))
    assert sequence.capacity == len(prompt) + 40
    assert sequence.prompt == prompt


def test_a_stop_ends_it_and_is_not_said() -> None:
    heard: list[int] = []
    sequence = with_output([7, 8], on_token=heard.append)
    assert sequence.take(5, frozenset({5}))
    assert sequence.output == heard == [7, 8]


def test_a_draft_is_what_followed_before() -> None:
    sequence = with_output([5, 6], [4, 5, 6, 7, 8, 9])
    assert sequence.draft(NO_STOPS) == [7, 8, 9, 5, 6]
    assert sequence.draft(frozenset({9})) == [7, 8]
    assert with_output([5, 6], [4, 5, 6, 7, 8, 9], most=4).draft(NO_STOPS) == [7]
    assert with_output([5, 9], [4, 5, 6, 7, 8, 9]).draft(NO_STOPS) == []
    assert with_output([], [4]).draft(NO_STOPS) == []


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
    sequence = with_output([7, 8], submitted=10.0, started=12.5)
    sequence.finish(ended=True)
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
    sequence.finish(ended=True)
    sequence.fail(Failure("model_error", "no"))
    with pytest.raises(CancelledError):
        sequence.future.result(timeout=0)


def test_the_first_outcome_stands() -> None:
    sequence = with_output([7])
    sequence.finish(ended=False)
    sequence.fail(Failure("draining", "too late"))
    done = sequence.future.result(timeout=0)
    assert isinstance(done, Completion) and done.finish_reason == "length"
    assert not sequence.future.cancel()
