"""One matrix in NF4: quantised, dequantised and multiplied by bitsandbytes. Knows no modules and no files."""

from functools import cache
from typing import NamedTuple

import torch
from bitsandbytes import functional as bnb

from models.nf4.layout import BLOCK, BLOCK2, specs

CHUNK = 1 << 22  # weights quantised at once: bounds the working memory, which is some 20 bytes a weight on a CPU


class Packed(NamedTuple):
    """The six tensors of one matrix [N, K]; models/nf4/layout.py says what is in them."""

    packed: torch.Tensor
    absmax: torch.Tensor
    absmax2: torch.Tensor
    offset: torch.Tensor
    code: torch.Tensor
    code2: torch.Tensor


@cache
def codes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The 16 NF4 values and the 256 values of bitsandbytes' dynamic 8-bit map."""
    return bnb.get_4bit_type("nf4", device=device), bnb.create_dynamic_map().to(device)


def quantise(weight: torch.Tensor, device: torch.device) -> Packed:
    """Quantise a float matrix [N, K] on `device`, some rows at a time; ValueError unless 64 divides K.

    The same bytes as bitsandbytes' quantize_4bit with compress_statistics: blocks never cross a row.
    """
    rows, columns = weight.shape
    shapes = specs(rows, columns)
    packed = torch.empty(shapes["packed"].shape, dtype=torch.uint8, device=device)
    absmax = torch.empty(shapes["absmax"].shape, dtype=torch.float32, device=device)
    step = max(CHUNK // columns, 1)
    for start in range(0, rows, step):
        piece = weight[start : start + step].to(device, torch.float32).contiguous()
        nibbles, state = bnb.quantize_4bit(piece, blocksize=BLOCK, compress_statistics=False, quant_type="nf4")
        packed[start : start + step] = nibbles.reshape(-1, columns // 2)
        absmax[start * columns // BLOCK :][: state.absmax.numel()] = state.absmax
    offset = absmax.mean()
    absmax8, state2 = bnb.quantize_blockwise(absmax - offset, blocksize=BLOCK2)
    nf4, dynamic = codes(device)
    return Packed(packed, absmax8, state2.absmax, offset, nf4, dynamic)


def dequantise(weight: Packed, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [N, K] that `weight` stands for."""
    rows, half = weight.packed.shape
    state = bnb.QuantState(
        absmax=weight.absmax,
        shape=torch.Size((rows, half * 2)),
        dtype=dtype,
        blocksize=BLOCK,
        code=weight.code,
        quant_type="nf4",
        offset=weight.offset,
        state2=bnb.QuantState(absmax=weight.absmax2, blocksize=BLOCK2, code=weight.code2, dtype=torch.float32),
    )
    return bnb.dequantize_4bit(weight.packed.reshape(-1, 1), state)


def multiply(x: torch.Tensor, weight: Packed, products: torch.dtype | None = None) -> torch.Tensor:
    """x [..., K] @ W.T → [..., N], W never whole in memory where bitsandbytes has a fused kernel.

    In x's dtype; on a CPU factors and result are of dtype `products`, where that is given, and sums are fp32.
    """
    rows, half = weight.packed.shape
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], rows)
    if x.device.type == "cpu":  # there it has none
        products = products or x.dtype
        return dense(x.to(products), dequantise(weight, products))
    product: torch.Tensor = torch.ops.bitsandbytes.gemm_4bit.default(
        x,
        weight.packed.reshape(-1, 1),
        (rows, half * 2),
        weight.absmax2,
        BLOCK,
        "nf4",
        absmax_8bit=weight.absmax,
        absmax_code=weight.code2,
        absmax_offset=weight.offset,
    )
    return product


def dense(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [..., K] @ weight [N, K].T → [..., N].

    fp32 on a CPU goes to oneDNN, as torch.compile would have it, and not to MKL as in eager mode, which leaves AVX-512
    of AMD's processors unused: 3-6 times as fast for 4 to 128 rows on an EPYC with AVX512-BF16.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return product
    return torch.nn.functional.linear(x, weight)
