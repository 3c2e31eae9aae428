"""Attention over a flat batch: rows of different sequences lie end to end, each sees its own blocks and nothing else.

Registered with transformers' attention interface under the name "flat"; the step's rows travel as a keyword argument.
Rows that begin alike read the beginning together, once; parts of a row are joined by their softmax sums
(as in arXiv 2501.01005, section 3).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from models.engine.cache import BLOCK, Cache

FEW = 16  # tokens of a row that are computed part by part; a longer piece of a prompt reads a copy side by side
CUT = 128
COMMON = 2  # blocks that several rows must begin with to read them together


@dataclass(frozen=True)
class Span:
    """`count` tokens of a sequence in blocks `table`: at `offset` in the flat batch, at `start` in the sequence."""

    table: list[int]
    offset: int
    start: int
    count: int

    @property
    def here(self) -> slice:
        return slice(self.offset, self.offset + self.count)

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass(frozen=True)
class Part:
    """Flat rows `index` (a slice or [n]) that read the pool's slots `run`; `mask` [n, slots] where not each reads all.

    Of the parts that a row reads the first one is its `own`, which begins the sum.
    """

    index: slice | torch.Tensor
    run: slice
    own: bool = False
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """What attention must know of a step: where keys and values go, and who reads what."""

    cache: Cache
    slots: torch.Tensor  # [T]
    pieces: list[tuple[Span, list[slice]]]
    parts: list[Part]


def arrange(cache: Cache, spans: list[Span]) -> Rows:
    """Find out, once for all layers, which rows read what."""
    device = cache.pool.device
    written = [slot for span in spans for slot in slots(span.table, span.start, span.end)]
    pieces: list[tuple[Span, list[slice]]] = []
    alike: dict[tuple[int, ...], list[Span]] = {}
    for span in spans:
        runs = _runs(span.table, 0, span.end)
        if span.count <= FEW and runs[-1].stop - runs[-1].start >= span.count:
            # Whoever has not got as far as COMMON blocks begins like nobody else: no other has its offset.
            begins = tuple(span.table[:COMMON]) if span.start >= COMMON * BLOCK else (-span.offset,)
            alike.setdefault(begins, []).append(span)
        else:
            pieces.append((span, runs))
    parts = [part for group in alike.values() for part in _parts(group, device)]
    return Rows(cache, torch.tensor(written, device=device), pieces, parts)


def slots(table: list[int], start: int, end: int) -> list[int]:
    """Where tokens `start` to `end` of a sequence with blocks `table` lie in the pool."""
    return [table[at // BLOCK] * BLOCK + at % BLOCK for at in range(start, end)]


def _runs(table: list[int], start: int, end: int) -> list[slice]:
    """Where tokens `start` (a block's first) to `end` of a sequence lie in the pool, what lies side by side as one."""
    runs: list[slice] = []
    for at in range(start, end, BLOCK):
        first = table[at // BLOCK] * BLOCK
        last = first + min(BLOCK, end - at)
        if runs and runs[-1].stop == first:
            runs[-1] = slice(runs[-1].start, last)
        else:
            runs.append(slice(first, last))
    return runs


def _parts(group: list[Span], device: torch.device) -> list[Part]:
    """What rows read that begin with the same blocks: each its own, and together what they share."""
    common = _common(group) if len(group) > 1 else 0
    parts = []
    for span in group:
        *others, own = _runs(span.table, common * BLOCK, span.end)
        mask = None
        if span.count > 1:
            seen = own.stop - own.start
            mask = torch.ones(span.count, seen, dtype=torch.bool, device=device).tril(seen - span.count)
        parts.append(Part(span.here, own, own=True, mask=mask))
        parts += [Part(span.here, run) for run in others]
    if common:
        index = torch.tensor([at for span in group for at in range(span.offset, span.here.stop)], device=device)
        parts += [Part(index, run) for run in _runs(group[0].table, 0, common * BLOCK)]
    return parts


def _common(group: list[Span]) -> int:
    """Leading blocks that all have, and that lie before what each computes now."""
    least, most = min(span.table for span in group), max(span.table for span in group)
    limit = min(span.start for span in group) // BLOCK
    return next((at for at in range(limit) if least[at] != most[at]), limit)


def flat_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    rows: Rows,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] → [1, T, heads, dim]."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = rows.cache.pool[layer]
    keys.index_copy_(0, rows.slots, key[0].transpose(0, 1).to(keys.dtype))
    values.index_copy_(0, rows.slots, value[0].transpose(0, 1).to(values.dtype))
    output = torch.empty_like(query[0])
    for span, runs in rows.pieces:
        seen, told = _gather(keys, runs), _gather(values, runs)
        # On a CPU a piece is cut, since what its first tokens must not see would be computed too.
        size = CUT if query.device.type == "cpu" else span.count
        for start in range(0, span.count, size):
            here = slice(span.offset + start, span.offset + min(start + size, span.count))
            end = span.start + here.stop - span.offset
            output[:, here] = attend(query[0, :, here], seen[:, :end], told[:, :end], scaling)
    sums = output.new_empty(output.shape[:2], dtype=torch.float32)
    for part in rows.parts:
        asked = query[0, :, part.index]
        made, total = _read(asked, keys[part.run].transpose(0, 1), values[part.run].transpose(0, 1), part.mask, scaling)
        if part.own:
            output[:, part.index] = made
            sums[:, part.index] = total
        else:
            _join(output, sums, part.index, made, total)
    return output.transpose(0, 1).unsqueeze(0), None


def _gather(stored: torch.Tensor, runs: list[slice]) -> torch.Tensor:
    """stored [slots, kv_heads, dim] → [kv_heads, n, dim]; a copy only where there are several runs."""
    found = stored[runs[0]] if len(runs) == 1 else torch.cat([stored[run] for run in runs])
    return found.transpose(0, 1)


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """query [heads, n, dim], the last n of keys [kv_heads, m, dim] → [heads, n, dim]."""
    heads, count, _ = query.shape
    seen = keys.shape[1]
    mask = None
    if seen > count:
        mask = torch.ones(count, seen, dtype=torch.bool, device=query.device).tril(seen - count)
        if query.is_cuda:
            # With a mask and shared keys only the math kernel is left there, which takes gigabytes in fp32.
            keys, values = (each.repeat_interleave(heads // keys.shape[0], dim=0) for each in (keys, values))
    return scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=heads != keys.shape[0],
    )[0]


def _read(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [heads, n, dim] over one part → [heads, n, dim] and the logarithms of its softmax sums, fp32 [heads, n]."""
    heads, count, dim = query.shape
    # The heads of a group share their keys, so they can stand where the queries of one head would.
    grouped = query.reshape(keys.shape[0], -1, dim)
    scores = torch.matmul(grouped * scaling, keys.transpose(1, 2)).float()
    if mask is not None:
        scores = scores.view(-1, count, mask.shape[1]).masked_fill_(~mask, -torch.inf).view_as(scores)
    top = scores.amax(dim=-1, keepdim=True)
    weights = (scores - top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    made = torch.matmul(weights.to(values.dtype), values) / total
    return made.view(heads, count, dim), (top + total.log()).view(heads, count)


def _join(
    output: torch.Tensor, sums: torch.Tensor, index: slice | torch.Tensor, made: torch.Tensor, total: torch.Tensor
) -> None:
    """Add what rows `index` have read in another part to their output, by weight of the softmax sums."""
    before = sums[:, index]
    both = torch.logaddexp(before, total)
    kept = output[:, index] * (before - both).exp_().unsqueeze(-1)
    output[:, index] = (kept + made * (total - both).exp_().unsqueeze(-1)).to(output.dtype)
    sums[:, index] = both


def _no_mask(*_: Any, **__: Any) -> None:
    """Each span masks itself."""


AttentionInterface.register("flat", flat_attention)
AttentionMaskInterface.register("flat", _no_mask)
