"""models/engine/sampler.py: the draws follow the distribution, and nothing outside its support is ever drawn."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.sampler import Choices, draw, forbid
from models.engine.sequence import Sampling
from models.failure import Failure

DRAWS = 4000


def drawn(probabilities: list[float], sampling: Sampling, draws: int = DRAWS) -> Counter[int]:
    """How often each id is chosen, from logits whose softmax is `probabilities`."""
    logits = torch.tensor(probabilities).log()
    generator = torch.Generator().manual_seed(1)
    return Counter(draw(logits, sampling, generator) for _ in range(draws))


def chi_square(counts: Counter[int], expected: list[float]) -> float:
    draws = sum(counts.values())
    return sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in enumerate(expected) if p)


GREEDY = Sampling(1)


def test_each_row_takes_its_best() -> None:
    choices = Choices(torch.tensor([[0.1, 3.0, 2.9], [-50.0, -70.0, -60.0]]), None)
    assert [choices.choose(at, GREEDY, None) for at in range(2)] == [1, 0]


def test_what_is_not_allowed_is_passed_over() -> None:
    """Bits of one row say nothing of another; nobody draws what is forbidden either."""
    logits = torch.tensor([[9.0] * 8 + [1.0, 2.0, 9.0], [9.0] * 10 + [1.0]])
    choices = Choices(logits, np.array([[0, 0b011], [0, 0b100]], dtype=np.uint8))
    assert [choices.choose(at, GREEDY, None) for at in range(2)] == [9, 10]
    warm, generator = Sampling(1, temperature=1.0), torch.Generator().manual_seed(0)
    assert {choices.choose(0, warm, generator) for _ in range(100)} == {8, 9}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_says_so_and_the_others_choose(odd: float) -> None:
    choices = Choices(torch.tensor([[1.0, 2.0], [odd, 1.0], [4.0, 3.0]]), None)
    assert [choices.choose(at, GREEDY, None) for at in (0, 2)] == [1, 0]
    with pytest.raises(Failure, match="model_error"):
        choices.choose(1, GREEDY, None)


def test_a_step_in_which_nobody_is_due_has_no_choices() -> None:
    Choices(torch.empty(0, 5), None)


def fixed(*rows: list[float], allowed: list[list[int]] | None = None) -> tuple[Choices, list[torch.Tensor]]:
    """Choices, and what they say of all tokens behind each place, by the definition: ln softmax over those allowed."""
    logits = torch.tensor(rows)
    masks = None if allowed is None else np.array([[sum(1 << id for id in ids)] for ids in allowed], dtype=np.uint8)
    expected = []
    for at, row in enumerate(logits.double()):
        ids = range(len(row)) if allowed is None else allowed[at]
        mass = sum(math.exp(row[id]) for id in ids)
        expected.append(torch.tensor([math.exp(row[id]) / mass if id in ids else 0.0 for id in range(len(row))]).log())
    return Choices(logits, masks), expected


@pytest.mark.parametrize("allowed", [None, [[0, 1, 2], [0, 1, 2]], [[0, 2], [1]], [[1, 2], [2, 0]]])
def test_a_log_probability_is_that_among_the_tokens_allowed(allowed: list[list[int]] | None) -> None:
    choices, expected = fixed([0.5, -1.0, 2.0], [3.0, 3.5, -40.0], allowed=allowed)
    for at in range(2):
        assert choices.logprobs(at, [0, 1, 2, 1]) == pytest.approx(expected[at][[0, 1, 2, 1]].tolist(), abs=1e-6)
        assert choices.logprobs(at, []) == []
        for token in range(3):
            assert choices.logprob(at, token) == choices.logprobs(at, [token])[0]
        assert sum(math.exp(choices.logprob(at, token)) for token in range(3)) == pytest.approx(1, abs=1e-6)


def test_a_token_without_a_rival_is_certain_and_a_forbidden_one_impossible() -> None:
    choices, _ = fixed([9.0, -9.0, 0.0], allowed=[[1]])
    assert choices.choose(0, GREEDY, None) == 1
    assert choices.logprob(0, 1) == 0.0
    assert choices.logprobs(0, [0, 2]) == [-math.inf] * 2


@pytest.mark.parametrize("temperature", [0.0, 0.3, 2.0])
def test_a_log_probability_does_not_depend_on_how_the_token_was_drawn(temperature: float) -> None:
    choices, expected = fixed([0.5, -1.0, 2.0, 1.9])
    generator = torch.Generator().manual_seed(0) if temperature else None
    for _ in range(20):
        token = choices.choose(0, Sampling(1, temperature, top_p=0.8), generator)
        assert choices.logprob(0, token) == pytest.approx(float(expected[0][token]), abs=1e-6)


@pytest.mark.parametrize("allowed", [None, [[0, 2, 3], [1]]])
def test_the_likeliest_come_first_and_none_that_is_forbidden(allowed: list[list[int]] | None) -> None:
    choices, expected = fixed([0.5, -1.0, 2.0, 1.9], [3.0, 3.5, -40.0, 0.0], allowed=allowed)
    for at in range(2):
        for most in range(6):
            told = choices.tops(at, most)
            order = sorted(range(4), key=lambda token: -float(expected[at][token]))
            may_come = [token for token in order if expected[at][token] > -math.inf][:most]
            assert [token for token, _ in told] == may_come
            assert [logprob for _, logprob in told] == pytest.approx(choices.logprobs(at, may_come))


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_place_that_is_not_finite_has_no_log_probabilities(odd: float) -> None:
    choices = Choices(torch.tensor([[odd, 1.0], [4.0, 4.0]]), None)
    with pytest.raises(Failure, match="model_error"):
        choices.logprobs(0, [1])
    assert choices.logprobs(1, [0, 1]) == pytest.approx([math.log(0.5)] * 2)


def test_the_largest_of_ids_is_told_exactly() -> None:
    """They travel as floats."""
    logits = torch.zeros(1, 151_936)
    for best in (151_935, 131_073, 65_537):
        choices = Choices(logits.scatter(1, torch.tensor([[best]]), 50.0), None)
        assert choices.choose(0, GREEDY, None) == best
        assert choices.logprob(0, best) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.gpu
def test_bits_are_spread_on_a_card_as_here() -> None:
    allowed = np.random.default_rng(0).integers(0, 256, (5, 13), dtype=np.uint8)
    here, there = torch.zeros(5, 100), torch.zeros(5, 100, device="cuda")
    forbid(here, allowed)
    forbid(there, allowed)
    assert torch.equal(here, there.cpu())


def test_draws_follow_the_softmax() -> None:
    expected = [0.5, 0.3, 0.15, 0.05]
    counts = drawn(expected, Sampling(1, temperature=1.0))
    assert chi_square(counts, expected) < 16.3  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature: float) -> None:
    given_ = [0.5, 0.3, 0.15, 0.05]
    powers = [p ** (1 / temperature) for p in given_]
    expected = [power / sum(powers) for power in powers]
    counts = drawn(given_, Sampling(1, temperature=temperature))
    assert chi_square(counts, expected) < 16.3
    assert chi_square(counts, given_) > 100


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.05, {2}),
        (0.5, {2}),
        (0.51, {2, 0}),
        (0.79, {2, 0}),
        (0.81, {2, 0, 3}),
        (0.96, {2, 0, 3, 1}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    given_ = [0.3, 0.05, 0.5, 0.15]
    counts = drawn(given_, Sampling(1, temperature=1.0, top_p=top_p))
    assert set(counts) == kept
    mass = sum(given_[i] for i in kept)
    expected = [p / mass if i in kept else 0.0 for i, p in enumerate(given_)]
    assert chi_square(counts, expected) < 16.3


def test_temperature_comes_before_top_p() -> None:
    counts = drawn([0.5, 0.3, 0.2], Sampling(1, temperature=0.2, top_p=0.9), 500)
    assert set(counts) == {0}


def test_equal_seeds_draw_equally() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def run(seed: int, top_p: float) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [draw(logits, Sampling(1, temperature=1.0, top_p=top_p), generator) for _ in range(20)]

    for top_p in (1.0, 0.9):
        assert run(7, top_p) == run(7, top_p)
        assert run(7, top_p) != run(8, top_p)


@pytest.mark.parametrize("top_p", [0.3, 0.999, 1.0])
def test_forbidden_tokens_are_never_drawn(top_p: float) -> None:
    logits = torch.zeros(500)
    logits[torch.arange(500) % 5 != 0] = -torch.inf
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(1, temperature=2.0, top_p=top_p)
    assert {draw(logits, sampling, generator) % 5 for _ in range(1000)} == {0}


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=30),
    temperature=st.one_of(st.floats(0, 2, exclude_min=True), st.just(math.ulp(0.0)), st.just(1e-40)),
    top_p=st.one_of(st.floats(0, 1, exclude_min=True), st.just(math.ulp(0.0)), st.just(math.nextafter(1, 0))),
    forbidden=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_any_allowed_sampling_draws_an_allowed_token(
    logits: list[float], temperature: float, top_p: float, forbidden: list[bool]
) -> None:
    """Every temperature and top_p that may come over the wire, the smallest positive numbers included."""
    masked = [-math.inf if out else logit for logit, out in zip(logits, forbidden, strict=False)]
    if all(math.isinf(logit) for logit in masked):
        masked[0] = 0.0
    chosen = draw(torch.tensor(masked), Sampling(1, temperature, top_p), torch.Generator().manual_seed(0))
    assert math.isfinite(masked[chosen])


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_almost_no_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([30.0, 31.0, -torch.inf, 29.0])
    generator = torch.Generator().manual_seed(0)
    assert {draw(logits, Sampling(1, temperature), generator) for _ in range(50)} == {1}
