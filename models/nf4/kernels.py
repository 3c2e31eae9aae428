"""NF4 weights in Triton: packed bytes are decoded in registers, no matrix is ever written out.

A product is split along K into S parts, fp32 [S, rows, N], which the next kernel adds in their order: no atomics, so a
row's bits depend on its own factors alone. A matrix, or a stack of them, comes as the tuple Packed of nf4/matrix.py.
Knows no modules and no sizes of tiles.
"""

import torch
import triton
import triton.language as tl

from models.nf4 import ptx
from models.nf4.matrix import codes

# The 16 values fall nearer to bf16 numbers when they are multiplied by it: they are off by 0.06 % (rms) and not 0.11.
STRETCH = 1.437004918719598
NF4 = codes(torch.device("cpu"))[0]


def _bits(values: torch.Tensor) -> list[int]:
    return [int(value) & 0xFFFF for value in values.view(torch.int16)]


BF16_VALUES = tl.constexpr(ptx.decoder(_bits((NF4 * STRETCH).bfloat16())))
FP16_VALUES = tl.constexpr(ptx.decoder(_bits(NF4.half())))
REGISTERS = tl.constexpr("=r,=r,=r,=r,r")


@triton.jit
def _scales(weight, absmax, absmax2, offset, at, block):
    """fp32 scale of each row's `block`; `absmax` points at a row's first one, `at` is its number in the matrix."""
    return tl.load(weight.code2 + tl.load(absmax + block)) * tl.load(absmax2 + ((at + block) >> 8)) + offset


@triton.jit
def _sums(
    x, plane, rows, live, packed, absmax, absmax2, offset, at, weight, values, first, last,
    K: tl.constexpr, UNROLL: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """fp32 [ROWS, TOKENS]: rows of matrices times rows of x, over the blocks `first` to `last` of 64 columns.

    `packed` and `absmax` [ROWS] point at each row's beginning, `absmax2` at its matrix's, in which `at` is the row's
    first block. The scale goes to a block's partial sum, where it costs less than on weights and is not rounded.
    """
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    k = tl.arange(0, 32)
    for step in range(first, last, UNROLL):
        for ahead in tl.static_range(UNROLL):
            block = step + ahead
            found = tl.load(packed[:, None] + block * 32 + k[None, :])
            if PTX:
                even, odd = tl.inline_asm_elementwise(
                    BF16_VALUES, REGISTERS, [found], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
                )
            else:
                even, odd = tl.load(values + (found >> 4)), tl.load(values + (found & 15))
            column = rows[None, :] * (K // 2) + block * 32 + k[:, None]
            part = tl.dot(even, tl.load(x + column, live[None, :], 0.0), input_precision="ieee")
            part = tl.dot(odd, tl.load(x + plane + column, live[None, :], 0.0), part, input_precision="ieee")
            total += part * _scales(weight, absmax, absmax2, offset, at, block)[:, None]
    return total


@triton.jit(do_not_specialize=["T"])
def project(
    x, T, q, k, v, values, out, Q, KV, shrink,
    K: tl.constexpr, UNROLL: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Three matrices that read the same x, as one of Q + 2 KV rows; grid [tiles of tokens, tiles of rows, splits].

    In all grids programs that read the same weights stand side by side, so that they are read from DRAM once.
    """
    BLOCKS: tl.constexpr = K // 64
    PART: tl.constexpr = BLOCKS // SPLITS
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(2)
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    live = row < T
    N = Q + 2 * KV
    inside = tl.minimum(n, N - 1)
    is_q, is_k = inside < Q, inside < Q + KV
    own = tl.where(is_q, inside, tl.where(is_k, inside - Q, inside - Q - KV))
    packed = tl.where(is_q, q.packed, tl.where(is_k, k.packed, v.packed)) + own * (K // 2)
    absmax = tl.where(is_q, q.absmax, tl.where(is_k, k.absmax, v.absmax)) + own * BLOCKS
    absmax2 = tl.where(is_q, q.absmax2, tl.where(is_k, k.absmax2, v.absmax2))
    offset = tl.where(is_q, tl.load(q.offset), tl.where(is_k, tl.load(k.offset), tl.load(v.offset)))
    total = _sums(
        x, T * (K // 2), tl.where(live, row, 0), live, packed, absmax, absmax2, offset, own * BLOCKS, q, values,
        split * PART, (split + 1) * PART, K, UNROLL, TOKENS, ROWS, PTX,
    )  # fmt: skip
    place = out + (split * T + row)[None, :] * N + n[:, None]
    tl.store(place, total * shrink, live[None, :] & (n < N)[:, None])


@triton.jit
def _assign(members, E: tl.constexpr, TOKENS: tl.constexpr, GATHERED: tl.constexpr):
    """What tile program_id(0) is to compute: an expert, -1 for none, assignments [TOKENS] and which of them are."""
    tile = tl.program_id(0)
    place = tl.arange(0, TOKENS)
    if GATHERED:
        experts = tl.arange(0, E)
        begin, end = tl.load(members.starts + experts), tl.load(members.starts + experts + 1)
        tiles = (end - begin + TOKENS - 1) // TOKENS
        before = tl.cumsum(tiles) - tiles
        here = (before <= tile) & (tile < before + tiles)
        expert = tl.max(tl.where(here, experts, -1))
        first = tl.sum(tl.where(here, begin + (tile - before) * TOKENS, 0))
        live = first + place < tl.sum(tl.where(here, end, 0))
        assigned = tl.load(members.order + first + place, live, 0)
    else:
        expert = tl.load(members.chosen + tile)
        live = place == 0
        assigned = tl.where(live, tile, 0)
    return expert, assigned, live


@triton.jit(do_not_specialize=["T", "A"])
def gate_up(
    x, T, A, members, gate, up, values, out, shrink,
    N: tl.constexpr, K: tl.constexpr, SCALES: tl.constexpr, E: tl.constexpr, TOP: tl.constexpr, UNROLL: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, GATHERED: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """silu(x @ gate.T) * (x @ up.T) in halves; grid [tiles of assignments, tiles of rows].

    Of a tile's rows every other one is gate's and the next one up's, so that both meet in one thread.
    """
    expert, assigned, live = _assign(members, E, TOKENS, GATHERED)
    if expert >= 0:
        BLOCKS: tl.constexpr = K // 64
        local = tl.arange(0, ROWS)
        n = tl.minimum(tl.program_id(1) * (ROWS // 2) + local // 2, N - 1)
        is_gate = local % 2 == 0
        row = expert.to(tl.int64) * N + n
        packed = tl.where(is_gate, gate.packed, up.packed) + row * (K // 2)
        absmax = tl.where(is_gate, gate.absmax, up.absmax) + row * BLOCKS
        absmax2 = tl.where(is_gate, gate.absmax2, up.absmax2) + expert * SCALES
        offset = tl.where(is_gate, tl.load(gate.offset + expert), tl.load(up.offset + expert))
        total = _sums(
            x, T * (K // 2), assigned // TOP, live, packed, absmax, absmax2, offset, n * BLOCKS, gate, values,
            0, BLOCKS, K, UNROLL, TOKENS, ROWS, PTX,
        )  # fmt: skip
        left, right = tl.split(tl.permute(tl.reshape(total * shrink, [ROWS // 2, 2, TOKENS]), [0, 2, 1]))
        n = tl.program_id(1) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        place = (n % 2)[:, None] * (A * (N // 2)) + assigned[None, :] * (N // 2) + (n // 2)[:, None]
        made = left * right / (1 + tl.exp(-left))
        tl.store(out + place, made.to(out.dtype.element_ty), live[None, :] & (n < N)[:, None])


@triton.jit(do_not_specialize=["A"])
def down(
    x, A, members, weight, values, out, shrink,
    N: tl.constexpr, K: tl.constexpr, SCALES: tl.constexpr, E: tl.constexpr, UNROLL: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr, GATHERED: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Each assignment's own row of x, [2, A, K/2], times its expert's matrix; grid [assignments, rows, splits]."""
    expert, assigned, live = _assign(members, E, TOKENS, GATHERED)
    if expert >= 0:
        BLOCKS: tl.constexpr = K // 64
        PART: tl.constexpr = BLOCKS // SPLITS
        n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        split = tl.program_id(2)
        inside = tl.minimum(n, N - 1)
        row = expert.to(tl.int64) * N + inside
        absmax2 = weight.absmax2 + expert * SCALES + inside * 0
        total = _sums(
            x, A * (K // 2), assigned, live, weight.packed + row * (K // 2), weight.absmax + row * BLOCKS, absmax2,
            tl.load(weight.offset + expert), inside * BLOCKS, weight, values,
            split * PART, (split + 1) * PART, K, UNROLL, TOKENS, ROWS, PTX,
        )  # fmt: skip
        place = out + (split * A + assigned)[None, :] * N + n[:, None]
        tl.store(place, total * shrink, live[None, :] & (n < N)[:, None])


@triton.jit(do_not_specialize=["A"])
def sort(chosen, order, starts, A, E: tl.constexpr, CHUNK: tl.constexpr):
    """Assignments by expert, in one program: a stable counting sort; what has no expert is left out."""
    experts, place = tl.arange(0, E), tl.arange(0, CHUNK)
    counts = tl.zeros([E], tl.int32)
    for first in range(0, A, CHUNK):
        mine = tl.load(chosen + first + place, first + place < A, -1)[:, None] == experts[None, :]
        counts += tl.sum(mine.to(tl.int32), 0)
    ends = tl.cumsum(counts)
    begin = ends - counts
    tl.store(starts + experts, begin)
    tl.store(starts + experts + 1, ends, experts == E - 1)
    for first in range(0, A, CHUNK):
        mine = tl.load(chosen + first + place, first + place < A, -1)[:, None] == experts[None, :]
        target = tl.sum(tl.where(mine, begin[None, :] + tl.cumsum(mine.to(tl.int32), 0) - 1, 0), 1)
        tl.store(order + target, first + place, tl.sum(mine.to(tl.int32), 1) > 0)
        begin += tl.sum(mine.to(tl.int32), 0)


@triton.jit(do_not_specialize=["index", "first"])
def dequantise(
    weight, index, first, out, values,
    N: tl.constexpr, K: tl.constexpr, SCALES: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Rows of a stack's matrix from row `first` on into out [rows, K]; grid [rows, tiles of WIDE columns]."""
    row = tl.program_id(0)
    at = (first + row) * (K // 64)
    stacked = index.to(tl.int64) * N
    byte = tl.program_id(1) * (WIDE // 2) + tl.arange(0, WIDE // 2)
    inside = byte < K // 2
    found = tl.load(weight.packed + (stacked + first + row) * (K // 2) + byte, inside, 0)
    if PTX:
        even, odd = tl.inline_asm_elementwise(
            FP16_VALUES, REGISTERS, [found], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        even, odd = tl.load(values + (found >> 4)), tl.load(values + (found & 15))
    absmax, absmax2 = weight.absmax + stacked * (K // 64) + at, weight.absmax2 + index * SCALES
    scale = _scales(weight, absmax, absmax2, tl.load(weight.offset + index), at, tl.where(inside, byte // 32, 0))
    both = tl.interleave(even.to(tl.float32) * scale, odd.to(tl.float32) * scale)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    tl.store(out + row.to(tl.int64) * K + column, both.to(out.dtype.element_ty), column < K)
