"""Products with NF4 weights on a card: what a layer multiplies, launched with the tiles that a path names.

An activation [T, K] lies in halves, [2, T, K/2], even columns before odd ones, as a packed byte holds one of each.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton

from models.nf4 import kernels
from models.nf4.matrix import Packed, multiply
from models.nf4.paths import Tile

CHUNK = 256  # assignments that the sort looks at together
WIDE = 2048  # columns that a program dequantises


class Members(NamedTuple):
    """Who takes which token. `chosen` int32 [T, k] experts, -1 for none; `order` int32 [T*k], the assignments t*k+j
    sorted by expert, and `starts` int32 [E+1], where each expert's begin: both empty where nothing is gathered."""

    chosen: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor


def halve(x: torch.Tensor) -> torch.Tensor:
    """[T, K] → [2, T, K/2]."""
    return x.view(x.shape[0], -1, 2).permute(2, 0, 1).contiguous()


@cache
def table(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, float]:
    """The 16 values as they are multiplied, [16], and what makes good for their stretching."""
    stretch = kernels.STRETCH if dtype == torch.bfloat16 else 1.0
    return (kernels.NF4 * stretch).to(device, dtype), 1 / stretch


def ptx(dtype: torch.dtype) -> bool:
    """Whether a kernel decodes in PTX: not in Triton's interpreter, which has none, and not for the tests' dtypes."""
    return dtype == torch.bfloat16 and not triton.knobs.runtime.interpret


def gather(chosen: torch.Tensor, experts: int) -> Members:
    """Sort assignments by expert; on the device, nobody waits for it."""
    order = torch.empty(chosen.numel(), dtype=torch.int32, device=chosen.device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=chosen.device)
    kernels.sort[(1,)](chosen, order, starts, chosen.numel(), experts, CHUNK)
    return Members(chosen, order, starts)


def scatter(chosen: torch.Tensor) -> Members:
    """Nothing is gathered: each assignment reads its expert's weights for itself."""
    none = chosen.new_empty(0)
    return Members(chosen, none, none)


def project(x: torch.Tensor, matrices: list[Packed], tile: Tile | None) -> torch.Tensor:
    """x [2, T, K/2] times one matrix, or q, k and v at once → fp32 parts [S, T, N], N all their rows.

    Without a tile by bitsandbytes, whose kernel is fused for few tokens (5 to 8) only: [1, T, N] in x's dtype.
    """
    if tile is None:
        whole = x.permute(1, 2, 0).flatten(1)
        return torch.cat([multiply(whole, matrix) for matrix in matrices], dim=1)[None]
    _, tokens, half = x.shape
    tile = tile.fit(2 * half)
    rows = [matrix.packed.shape[0] for matrix in matrices]
    first, second, third = matrices * 3 if len(matrices) == 1 else matrices
    values, shrink = table(x.dtype, x.device)
    out = x.new_empty(tile.splits, tokens, sum(rows), dtype=torch.float32)
    grid = (triton.cdiv(tokens, tile.tokens), triton.cdiv(sum(rows), tile.rows), tile.splits)
    kernels.project[grid](
        x, tokens, first, second, third, values, out, rows[0], rows[1] if len(rows) > 1 else 0, shrink,
        2 * half, tile.unroll, tile.tokens, tile.rows, tile.splits, ptx(x.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def gate_up(x: torch.Tensor, gate: Packed, up: Packed, members: Members, tile: Tile) -> torch.Tensor:
    """silu(x @ gate.T) * (x @ up.T) for each assignment: x [2, T, K/2] → [2, T*k, N/2]."""
    _, tokens, half = x.shape
    tile = tile.fit(2 * half)
    experts, rows, _ = gate.packed.shape
    count = members.chosen.numel()
    values, shrink = table(x.dtype, x.device)
    out = x.new_empty(2, count, rows // 2)
    kernels.gate_up[(_tiles(members, experts, tile), triton.cdiv(2 * rows, tile.rows))](
        x, tokens, count, members, gate, up, values, out, shrink,
        rows, 2 * half, gate.absmax2.shape[1], experts, members.chosen.shape[1], tile.unroll,
        tile.tokens, tile.rows, bool(members.order.numel()), ptx(x.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def down(x: torch.Tensor, weight: Packed, members: Members, tile: Tile) -> torch.Tensor:
    """x [2, T*k, K/2], a row for each assignment, times its expert's matrix → fp32 parts [S, T*k, N]."""
    _, count, half = x.shape
    tile = tile.fit(2 * half)
    experts, rows, _ = weight.packed.shape
    values, shrink = table(x.dtype, x.device)
    out = x.new_empty(tile.splits, count, rows, dtype=torch.float32)
    kernels.down[(_tiles(members, experts, tile), triton.cdiv(rows, tile.rows), tile.splits)](
        x, count, members, weight, values, out, shrink,
        rows, 2 * half, weight.absmax2.shape[1], experts, tile.unroll,
        tile.tokens, tile.rows, tile.splits, bool(members.order.numel()), ptx(x.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _tiles(members: Members, experts: int, tile: Tile) -> int:
    """As many as there can be, whoever is chosen: a grid does not wait for routing. What is empty leaves at once."""
    count = members.chosen.numel()
    return triton.cdiv(count, tile.tokens) + min(experts, count) - 1 if members.order.numel() else count


def dequantise(weight: Packed, index: int, first: int, out: torch.Tensor) -> None:
    """Rows of a matrix, or of matrix `index` of a stack, from `first` on into out [rows, K].

    On a card the 16 values are those of fp16, which are off by 0.05 % at most.
    """
    rows, columns = out.shape
    values = table(torch.float32, out.device)[0]
    kernels.dequantise[(rows, triton.cdiv(columns, WIDE))](
        weight, index, first, out, values,
        weight.packed.shape[-2], columns, weight.absmax2.shape[-1], WIDE, not triton.knobs.runtime.interpret,
        num_warps=4,
    )  # fmt: skip
