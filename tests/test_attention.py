"""models/engine/attention.py: every row sees its own past and nothing else, however it is cut and mixed."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.attention import Rows, Span, flat_attention
from models.engine.cache import Cache

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS, KV_HEADS, DIM = 6, 2, 8
SCALING = DIM**-0.5


def attend(cache: Cache, spans: list[Span], layer: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """flat_attention on query, key and value [heads, T, dim]; the result is [heads, T, dim]."""
    module = torch.nn.Identity()
    module.layer_idx = layer  # type: ignore[assignment]
    query, key, value = (tensor[None] for tensor in tensors)
    output, weights = flat_attention(module, query, key, value, None, SCALING, rows=Rows(spans, cache))
    assert weights is None
    assert output.shape == (1, query.shape[2], HEADS, DIM)
    return output[0].transpose(0, 1)


def inputs_of(length: int) -> list[torch.Tensor]:
    """Random query, key and value of one sequence."""
    return [torch.randn(heads, length, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention written out in fp64: query [heads, n, dim], key and value [kv_heads, n, dim]."""
    key = key.repeat_interleave(HEADS // KV_HEADS, 0).double()
    value = value.repeat_interleave(HEADS // KV_HEADS, 0).double()
    scores = query.double() @ key.transpose(1, 2) * SCALING
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    weights: torch.Tensor = scores.masked_fill(future, -torch.inf).softmax(-1)
    return (weights @ value).float()


def cut(length: int, largest: int, rng: random.Random) -> list[tuple[int, int]]:
    """Random pieces (start, count) that cover `length`."""
    pieces = []
    start = 0
    while start < length:
        count = min(rng.randint(1, largest), length - start)
        pieces.append((start, count))
        start += count
    return pieces


def by_steps(inputs: list[list[torch.Tensor]], largest: int, rng: random.Random, layer: int) -> list[torch.Tensor]:
    """Outputs of all sequences, computed in steps that mix pieces of random sequences."""
    cache = Cache(2, KV_HEADS, DIM, torch.float32, torch.device("cpu"), 10_000)
    outputs = [torch.full_like(query, torch.nan) for query, _, _ in inputs]
    left = {number: cut(query.shape[1], largest, rng) for number, (query, _, _) in enumerate(inputs)}
    for number, (query, _, _) in enumerate(inputs):
        cache.reserve(number, query.shape[1])
    while left:
        spans: list[Span] = []
        flat: list[list[torch.Tensor]] = []
        offset = 0
        for number in rng.sample(sorted(left), rng.randint(1, len(left))):
            start, count = left[number].pop(0)
            spans.append(Span(number, offset, start, count))
            flat.append([tensor[:, start : start + count] for tensor in inputs[number]])
            offset += count
        output = attend(cache, spans, layer, [torch.cat(parts, 1) for parts in zip(*flat, strict=True)])
        for span in spans:
            here = output[:, span.offset : span.offset + span.count]
            outputs[span.number][:, span.start : span.start + span.count] = here
        left = {number: pieces for number, pieces in left.items() if pieces}
    return outputs


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    largest=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    layer=st.integers(0, 1),
)
def test_any_mix_of_pieces_equals_each_sequence_at_once(
    lengths: list[int], largest: int, seed: int, layer: int
) -> None:
    torch.manual_seed(seed)
    inputs = [inputs_of(length) for length in lengths]
    outputs = by_steps(inputs, largest, random.Random(seed), layer)
    for output, (query, key, value) in zip(outputs, inputs, strict=True):
        torch.testing.assert_close(output, reference(query, key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("past", [0, 1, 31])
def test_a_single_token_equals_the_last_of_a_piece(past: int) -> None:
    torch.manual_seed(past)
    inputs = inputs_of(past + 1)
    cache = Cache(1, KV_HEADS, DIM, torch.float32, torch.device("cpu"), 200)
    cache.reserve(1, past + 1)
    cache.reserve(2, past + 1)
    whole = attend(cache, [Span(1, 0, 0, past + 1)], 0, inputs)
    if past:
        attend(cache, [Span(2, 0, 0, past)], 0, [tensor[:, :past] for tensor in inputs])
    single = attend(cache, [Span(2, 0, past, 1)], 0, [tensor[:, past:] for tensor in inputs])
    torch.testing.assert_close(single[:, 0], whole[:, past], rtol=1e-5, atol=1e-6)


def test_a_row_does_not_see_what_lies_beyond_its_own_tokens() -> None:
    """Slabs are not cleared: what memory held before must not count, not even as NaN."""
    cache = Cache(1, KV_HEADS, DIM, torch.float32, torch.device("cpu"), 100)
    cache.reserve(1, 16)
    dirt = torch.full((KV_HEADS, 16, DIM), torch.nan)
    cache.extend(1, 0, 0, dirt, dirt)
    torch.manual_seed(0)
    query, key, value = inputs_of(8)
    output = attend(cache, [Span(1, 0, 0, 8)], 0, [query, key, value])
    torch.testing.assert_close(output, reference(query, key, value), rtol=1e-5, atol=1e-6)
