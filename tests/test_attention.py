"""models/engine/attention.py: every row sees its own past and nothing else, however it is cut and mixed."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.attention import Span, arrange, flat_attention
from models.engine.cache import BLOCK, Cache

HEADS, KV_HEADS, DIM = 6, 2, 8
SCALING = DIM**-0.5


def span(cache: Cache, number: int, offset: int, start: int, count: int) -> Span:
    return Span(cache.table(number), offset, start, count)


def distinct(number: int, length: int) -> list[int]:
    """Ids that no other sequence begins with."""
    return [number] * length


def attend(cache: Cache, spans: list[Span], layer: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """flat_attention on query, key and value [heads, T, dim]; the result is [heads, T, dim]."""
    module = torch.nn.Identity()
    module.layer_idx = layer  # type: ignore[assignment]
    query, key, value = (tensor[None] for tensor in tensors)
    output, weights = flat_attention(module, query, key, value, None, SCALING, rows=arrange(cache, spans))
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
        cache.open(number, distinct(number, query.shape[1]), 0)
    while left:
        spans: list[Span] = []
        numbers = rng.sample(sorted(left), rng.randint(1, len(left)))
        flat: list[list[torch.Tensor]] = []
        offset = 0
        for number in numbers:
            start, count = left[number].pop(0)
            spans.append(span(cache, number, offset, start, count))
            flat.append([tensor[:, start : start + count] for tensor in inputs[number]])
            offset += count
        output = attend(cache, spans, layer, [torch.cat(parts, 1) for parts in zip(*flat, strict=True)])
        for number, there in zip(numbers, spans, strict=True):
            outputs[number][:, there.start : there.end] = output[:, there.here]
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
    cache.open(1, distinct(1, past + 1), 0)
    cache.open(2, distinct(2, past + 1), 0)
    whole = attend(cache, [span(cache, 1, 0, 0, past + 1)], 0, inputs)
    if past:
        attend(cache, [span(cache, 2, 0, 0, past)], 0, [tensor[:, :past] for tensor in inputs])
    single = attend(cache, [span(cache, 2, 0, past, 1)], 0, [tensor[:, past:] for tensor in inputs])
    torch.testing.assert_close(single[:, 0], whole[:, past], rtol=1e-5, atol=1e-6)


def test_a_row_does_not_see_what_lies_beyond_its_own_tokens() -> None:
    """Blocks are not cleared: what they held before must not count, not even as NaN."""
    cache = Cache(1, KV_HEADS, DIM, torch.float32, torch.device("cpu"), 100)
    cache.open(1, distinct(1, 16), 0)
    cache.pool.fill_(torch.nan)
    torch.manual_seed(0)
    query, key, value = inputs_of(8)
    output = attend(cache, [span(cache, 1, 0, 0, 8)], 0, [query, key, value])
    torch.testing.assert_close(output, reference(query, key, value), rtol=1e-5, atol=1e-6)


def scatter(cache: Cache) -> None:
    """Leave free every other block, so that nothing lies side by side."""
    numbers = range(100, 100 + cache.blocks)
    for number in numbers:
        cache.open(number, distinct(number, BLOCK), 0)
    for number in numbers[::2]:
        cache.close(number)


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("shared", [0, 16, 32, 64, 80])
def test_rows_that_begin_alike_read_the_beginning_together(shared: int, scattered: bool) -> None:
    """Four sequences share their first tokens, then each goes on by pieces of 1 to 9 tokens, in one batch."""
    torch.manual_seed(shared)
    rng = random.Random(shared)
    cache = Cache(1, KV_HEADS, DIM, torch.float32, torch.device("cpu"), 2000)
    if scattered:
        scatter(cache)
    common = inputs_of(shared)
    lengths = [shared + own for own in (5, 17, 40, 63)]
    inputs = [
        [torch.cat(parts, 1) for parts in zip(common, inputs_of(length - shared), strict=True)] for length in lengths
    ]
    written = 0
    at = []
    for number, length in enumerate(lengths):
        ids = [7] * shared + distinct(1000 + number, length - shared)
        written = cache.open(number, ids, 0)
        assert written == (0 if number == 0 else shared)
        start = max(shared, 1)
        if start > written:
            attend(
                cache, [span(cache, number, 0, written, start - written)], 0, cut_out(inputs[number], written, start)
            )
            cache.fill(number, ids, start)
        at.append(start)
    together = 0
    while any(start < length for start, length in zip(at, lengths, strict=True)):
        due = [number for number in range(4) if at[number] < lengths[number]]
        counts = [min(rng.choice([1, 1, 1, 4, 9]), lengths[number] - at[number]) for number in due]
        offsets = [sum(counts[:place]) for place in range(len(due))]
        spans = [span(cache, *each) for each in zip(due, offsets, (at[number] for number in due), counts, strict=True)]
        together += any(isinstance(part.index, torch.Tensor) for part in arrange(cache, spans).parts)
        flat = [
            cut_out(inputs[number], at[number], at[number] + count) for number, count in zip(due, counts, strict=True)
        ]
        output = attend(cache, spans, 0, [torch.cat(parts, 1) for parts in zip(*flat, strict=True)])
        for number, there in zip(due, spans, strict=True):
            expected = reference(*(tensor[:, : there.end] for tensor in inputs[number]))[:, there.start :]
            torch.testing.assert_close(output[:, there.here], expected, rtol=1e-5, atol=1e-6)
            at[number] = there.end
    assert bool(together) == (shared >= 2 * BLOCK)


def test_strangers_in_the_batch_do_not_keep_others_from_reading_together() -> None:
    """Two kinds of prompts that have only their first block in common."""
    cache = Cache(1, KV_HEADS, DIM, torch.float32, torch.device("cpu"), 2000)
    spans = []
    for number in range(6):
        ids = [1] * BLOCK + [number % 2] * (3 * BLOCK) + distinct(10 + number, 5)
        cache.open(number + 1, ids, 0)
        cache.fill(number + 1, ids, len(ids) - 1)
        spans.append(Span(cache.table(number + 1), number, len(ids) - 1, 1))
    together: dict[tuple[int, ...], int] = {}
    for part in arrange(cache, spans).parts:
        if isinstance(part.index, torch.Tensor):
            who = tuple(part.index.tolist())
            together[who] = together.get(who, 0) + part.run.stop - part.run.start
    assert together == {(0, 2, 4): 4 * BLOCK, (1, 3, 5): 4 * BLOCK}


def cut_out(tensors: Sequence[torch.Tensor], start: int, end: int) -> list[torch.Tensor]:
    return [tensor[:, start:end] for tensor in tensors]
