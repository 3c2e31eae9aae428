"""Products of many tokens: a slice of a matrix is dequantised into scratch memory that stays in the card's L2 cache,
then multiplied by cuBLAS. Knows no modules."""

from itertools import pairwise

import torch
from torch.nn.functional import silu

from models.nf4.matrix import Packed
from models.nf4.products import Members, dequantise

SCRATCH = 32 << 20  # bytes; an RTX 5090 has 96 MB of L2 cache, an H200 50


class Slices:
    """One scratch memory and what is multiplied through it. Calls must be on one stream."""

    def __init__(self, dtype: torch.dtype, device: torch.device, nbytes: int = SCRATCH) -> None:
        self._scratch = torch.empty(nbytes // dtype.itemsize, dtype=dtype, device=device)

    def multiply(self, x: torch.Tensor, weight: Packed, index: int, out: torch.Tensor) -> None:
        """out [T, N] = x [T, K] @ W.T, W a matrix or number `index` of a stack; ValueError if 16 rows do not fit."""
        rows, columns = weight.packed.shape[-2], x.shape[1]
        step = self._scratch.numel() // columns // 16 * 16
        if step == 0:
            raise ValueError(f"16 rows of {columns} columns do not fit the scratch memory")
        for first in range(0, rows, step):
            count = min(step, rows - first)
            piece = self._scratch[: count * columns].view(count, columns)
            dequantise(weight, index, first, piece)
            torch.mm(x, piece.T, out=out[:, first : first + count])

    def project(self, x: torch.Tensor, matrices: list[Packed]) -> torch.Tensor:
        """x [T, K] times each of the matrices, side by side → [1, T, N]."""
        rows = [matrix.packed.shape[0] for matrix in matrices]
        out = x.new_empty(1, x.shape[0], sum(rows))
        for at, matrix in enumerate(matrices):
            self.multiply(x, matrix, 0, out[0, :, sum(rows[:at]) : sum(rows[: at + 1])])
        return out

    def experts(self, x: torch.Tensor, members: Members, gate: Packed, up: Packed, down: Packed) -> torch.Tensor:
        """x [T, K] through each token's k experts → [1, T*k, K]. Waits for the routing: cuBLAS wants sizes."""
        starts: list[int] = members.starts.tolist()
        order = members.order[: starts[-1]].long()
        seen = x[order // members.chosen.shape[1]]
        made = torch.empty_like(seen)
        for expert, (begin, end) in enumerate(pairwise(starts)):
            if begin < end:
                left = x.new_empty(end - begin, gate.packed.shape[1])
                right = torch.empty_like(left)
                self.multiply(seen[begin:end], gate, expert, left)
                self.multiply(seen[begin:end], up, expert, right)
                self.multiply(silu(left, inplace=True).mul_(right), down, expert, made[begin:end])
        out = x.new_empty(1, members.chosen.numel(), x.shape[1])
        out[0].index_copy_(0, order, made)
        return out
