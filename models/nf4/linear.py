"""Modules that hold weights in NF4: one matrix or a stack of them. Know nothing of where the bytes come from."""

import torch
from torch import nn

from models.nf4 import layout
from models.nf4.matrix import Packed, multiply


class NF4Weight(nn.Module):
    """A matrix [rows, columns], or a stack of `stack` of them; its parameters are the six tensors of the layout."""

    products: torch.dtype | None = None  # what a CPU multiplies in; None: what it is given

    def __init__(self, rows: int, columns: int, *stack: int) -> None:
        super().__init__()
        self.rows, self.columns, self.stack = rows, columns, stack
        for name, spec in layout.specs(rows, columns, *stack).items():
            tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def matrix(self, *index: int) -> Packed:
        """The matrix at `index` of the stack: views, no copies."""
        return Packed(*(self.get_parameter(name)[index] for name in Packed._fields))


class NF4Linear(NF4Weight):
    """y = x @ W.T + bias for x [..., columns]; the bias is float, of dtype `biased`, and None where that is None."""

    bias: nn.Parameter | None

    def __init__(self, rows: int, columns: int, biased: torch.dtype | None = None) -> None:
        super().__init__(rows, columns)
        bias = None if biased is None else nn.Parameter(torch.empty(rows, dtype=biased), requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = multiply(x, self.matrix(), self.products)
        return y if self.bias is None else y + self.bias.to(y.dtype)
