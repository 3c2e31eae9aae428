"""A weight matrix in NF4 as four plain tensors, through bitsandbytes' functional API. Knows no modules and no files.

packed   uint8 [N, K/2]      two 4-bit codes a byte, the even column in the high nibble
absmax   uint8 [N*K/64]      scale of each block of 64 weights, itself quantised (row-major blocks)
absmax2  fp32  [blocks/256]  scale of each block of 256 absmax values
offset   fp32  []            mean of the absmax values
"""

from functools import cache
from typing import NamedTuple

import torch
from bitsandbytes import functional as bnb

BLOCK = 64
BLOCK2 = 256


class Packed(NamedTuple):
    """One matrix [N, K] in NF4; 4.127 bits a weight where N*K is large."""

    packed: torch.Tensor
    absmax: torch.Tensor
    absmax2: torch.Tensor
    offset: torch.Tensor


def nbytes(rows: int, columns: int) -> int:
    """Exact size in bytes of a [rows, columns] matrix in this form."""
    blocks = rows * columns // BLOCK
    return rows * columns // 2 + blocks + 4 * -(-blocks // BLOCK2) + 4


def quantise(weight: torch.Tensor) -> Packed:
    """Quantise a float matrix [N, K], K a multiple of 64, on the device it is on."""
    rows, columns = weight.shape
    if columns % BLOCK:
        raise ValueError(f"{columns} columns are not a multiple of {BLOCK}")
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    offset = torch.as_tensor(state.offset, dtype=torch.float32).reshape(())
    return Packed(packed.reshape(rows, columns // 2), state.absmax, state.state2.absmax, offset)


@cache
def _codes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The 16 NF4 values and the 256 values of bitsandbytes' dynamic 8-bit map."""
    nf4 = bnb.get_4bit_type("nf4", device=device)
    return nf4, bnb.create_dynamic_map().to(device)


def state(weight: Packed, dtype: torch.dtype) -> bnb.QuantState:
    """What bitsandbytes' operators want to know of `weight` beside its bytes."""
    nf4, dynamic = _codes(weight.packed.device)
    return bnb.QuantState(
        absmax=weight.absmax,
        shape=torch.Size((weight.packed.shape[0], weight.packed.shape[1] * 2)),
        dtype=dtype,
        blocksize=BLOCK,
        code=nf4,
        quant_type="nf4",
        offset=weight.offset,
        state2=bnb.QuantState(absmax=weight.absmax2, blocksize=BLOCK2, code=dynamic, dtype=torch.float32),
    )


def dequantise(weight: Packed, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [N, K] that `weight` stands for."""
    return bnb.dequantize_4bit(weight.packed.reshape(-1, 1), state(weight, dtype))
