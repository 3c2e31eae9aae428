"""Attention of long pieces of prompts by the best kernel that torch brings: its own flash attention, else SDPA."""

import logging
from dataclasses import dataclass
from functools import cache
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from models.engine.attention import Span, attend, slots

log = logging.getLogger("zopilot.engine")
# Earlier releases of torch cannot say "causal, aligned at the end", or cannot share keys between heads.
FLASH = "window_size" in signature(varlen_attn).parameters
SHARES = "enable_gqa" in signature(varlen_attn).parameters


@dataclass(frozen=True)
class Pieces:
    """`rows` [n] of the flat batch read the pool's slots `reads` [m], piece by piece: `counts` says how many each."""

    rows: torch.Tensor
    reads: torch.Tensor
    counts: list[tuple[int, int]]
    starts: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def lay(cls, spans: list[Span], device: torch.device) -> "Pieces":
        rows = [row for span in spans for row in range(span.offset, span.here.stop)]
        reads = [slot for span in spans for slot in slots(span.table, 0, span.end)]
        counts = [(span.count, span.end) for span in spans]
        first, second = (
            torch.tensor([0, *accumulate(count[at] for count in counts)], dtype=torch.int32, device=device)
            for at in (0, 1)
        )
        return cls(torch.tensor(rows, device=device), torch.tensor(reads, device=device), counts, (first, second))

    def attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
        """queries [T, heads, dim] of all rows, keys and values of the pool [slots, kv_heads, dim] → [n, heads, dim]."""
        asked, seen, told = queries[self.rows], keys[self.reads], values[self.reads]
        flash = asked.is_cuda and works(asked.device, asked.dtype, asked.shape[1], seen.shape[1], asked.shape[2])
        return self.by_flash(asked, seen, told, scaling) if flash else self.by_sdpa(asked, seen, told, scaling)

    def by_flash(self, asked: torch.Tensor, seen: torch.Tensor, told: torch.Tensor, scaling: float) -> torch.Tensor:
        """asked [n, heads, dim], seen and told [m, kv_heads, dim] → [n, heads, dim]; all pieces in one launch."""
        most = max(count for count, _ in self.counts), max(end for _, end in self.counts)
        shared: dict[str, Any] = {"enable_gqa": True} if SHARES else {}
        if not SHARES:
            seen, told = (each.repeat_interleave(asked.shape[1] // each.shape[1], 1) for each in (seen, told))
        found = varlen_attn(asked, seen, told, *self.starts, *most, scale=scaling, window_size=(-1, 0), **shared)
        assert isinstance(found, torch.Tensor)
        return found

    def by_sdpa(self, asked: torch.Tensor, seen: torch.Tensor, told: torch.Tensor, scaling: float) -> torch.Tensor:
        """The same, piece by piece."""
        made: list[torch.Tensor] = []
        row = read = 0
        for count, end in self.counts:
            query, key, value = (
                each.transpose(0, 1)
                for each in (asked[row : row + count], seen[read : read + end], told[read : read + end])
            )
            made.append(attend(query, key, value, scaling).transpose(0, 1))
            row, read = row + count, read + end
        return torch.cat(made)


@cache
def works(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> bool:
    """Whether torch's flash attention computes here what SDPA does: tried once, on two pieces of random tokens."""
    if not FLASH or dtype == torch.float32:
        return False
    pieces = Pieces.lay([Span([0, 1], 0, 0, 20), Span([2, 3], 20, 7, 18)], device)
    asked = torch.randn(38, heads, dim, device=device).to(dtype)
    seen, told = torch.randn(2, 45, kv_heads, dim, device=device).to(dtype)
    try:
        found = pieces.by_flash(asked, seen, told, dim**-0.5).float()
    except RuntimeError as error:
        log.warning("torch's flash attention does not run on this card (%s): SDPA takes its place", error)
        return False
    expected = pieces.by_sdpa(asked, seen, told, dim**-0.5).float()
    if (found - expected).norm() < 0.02 * expected.norm():
        return True
    log.error("torch's flash attention is wrong on this card: SDPA takes its place")
    return False
