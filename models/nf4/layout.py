"""How a weight lies in memory in NF4: six plain tensors a matrix. Arithmetic only; knows no torch.

For a matrix [N, K]; a stack of E matrices has E in front of every shape:

packed   uint8 [N, K/2]      two 4-bit codes a byte, the even column in the high nibble
absmax   uint8 [N*K/64]      scale of each block of 64 weights (row-major), itself a code
absmax2  fp32  [blocks/256]  scale of each block of 256 absmax codes
offset   fp32  []            mean of the absmax values
code     fp32  [16]          what a 4-bit code stands for
code2    fp32  [256]         what an absmax code stands for

The code tables travel with each matrix, as in bitsandbytes' own checkpoints (quant_map, nested_quant_map), so what
stored bytes mean does not hang on a library's version.
"""

from math import prod
from typing import NamedTuple

BLOCK = 64
BLOCK2 = 256
ITEM_BYTES = {"uint8": 1, "bfloat16": 2, "float16": 2, "float32": 4}


class Spec(NamedTuple):
    """A tensor's dtype and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def specs(rows: int, columns: int, *stack: int) -> dict[str, Spec]:
    """The six tensors of a [rows, columns] matrix, or of a stack of them; ValueError unless 64 divides columns."""
    if columns % BLOCK:
        raise ValueError(f"{columns} columns are not a multiple of {BLOCK}")
    blocks = rows * columns // BLOCK
    return {
        "packed": Spec("uint8", (*stack, rows, columns // 2)),
        "absmax": Spec("uint8", (*stack, blocks)),
        "absmax2": Spec("float32", (*stack, -(-blocks // BLOCK2))),
        "offset": Spec("float32", stack),
        "code": Spec("float32", (*stack, 16)),
        "code2": Spec("float32", (*stack, 256)),
    }


def nbytes(rows: int, columns: int, *stack: int) -> int:
    """Exact size in bytes of all six; 4.127 bits a weight where the matrix is large."""
    return sum(spec.nbytes for spec in specs(rows, columns, *stack).values())
