"""A linear layer whose weight stays in NF4. Knows nothing of where the bytes come from."""

import torch
from bitsandbytes.autograd._functions import matmul_4bit
from torch import nn

from models.nf4 import layout


class NF4Linear(nn.Module):
    """y = x @ W.T for x [..., K] and W [N, K] in NF4; no bias. Its parameters are the tensors of layout.Packed."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        blocks = rows * columns // layout.BLOCK
        shapes = layout.Packed(
            torch.empty(rows, columns // 2, dtype=torch.uint8),
            torch.empty(blocks, dtype=torch.uint8),
            torch.empty(-(-blocks // layout.BLOCK2), dtype=torch.float32),
            torch.empty((), dtype=torch.float32),
        )
        for name, tensor in shapes._asdict().items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def weight(self) -> layout.Packed:
        return layout.Packed(*(self.get_parameter(name) for name in layout.Packed._fields))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight()
        result: torch.Tensor = matmul_4bit(x, weight.packed.reshape(-1, 1), layout.state(weight, x.dtype))
        return result
