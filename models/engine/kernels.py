"""What a decode step does besides its NF4 products, in Triton: norms, the router, rotary embedding, paged attention.

All may be captured in a CUDA graph: what changes from step to step is read from device tensors. A row's bits depend on
nothing but that row, neither on the others nor on their number. Knows no weights' format and not who owns a block.
"""

import triton
import triton.language as tl
from torch import Tensor, float32, int32
from triton.language import constexpr

from models.engine.cache import BLOCK

LOG2_E = 1.4426950408889634
TILE, ROWS = 64, 16  # keys that are read at once; the fewest that tl.dot multiplies
SETTLE_WARPS, ROTATE_WARPS, ATTEND_WARPS, JOIN_WARPS, ATTEND_STAGES = 16, 1, 4, 4, 2


@triton.jit
def _choose(normed, gate, live, chosen, shares, token, H: constexpr, E: constexpr, K: constexpr):
    column, expert = tl.arange(0, normed.shape[0]), tl.arange(0, triton.next_power_of_2(E))
    known = expert < E
    mask = known[:, None] & (column < H)[None, :]
    factors = tl.load(gate + expert[:, None] * H + column[None, :], mask=mask, other=0.0)
    logits = tl.sum(factors.to(tl.float32) * normed.to(tl.float32)[None, :], axis=1)
    logits = tl.where(known, logits.to(normed.dtype).to(tl.float32), float("-inf"))
    odds = tl.exp(logits - tl.max(logits, axis=0))
    # A row of NaN must still choose experts that there are, each once: products read the weights of all that is chosen.
    odds = tl.where(known, tl.where(odds == odds, odds, 0.0), -1.0)
    rank = tl.arange(0, triton.next_power_of_2(K))
    picked, share = tl.zeros(rank.shape, tl.int32), tl.zeros(rank.shape, tl.float32)
    for at in tl.static_range(K):
        most, index = tl.max(odds, axis=0, return_indices=True)
        picked, share = tl.where(rank == at, index, picked), tl.where(rank == at, most, share)
        odds = tl.where(expert == index, -1.0, odds)
    alive = token < tl.load(live)
    tl.store(chosen + token * K + rank, tl.where(alive, picked, -1), mask=rank < K)
    tl.store(shares + token * K + rank, tl.where(alive, share / tl.sum(share, axis=0), 0.0), mask=rank < K)


@triton.jit
def _settle(
    partials, residual, weight, eps, gate, live, chosen, shares, normed,
    H: constexpr, S: constexpr, E: constexpr, K: constexpr, HALVES: constexpr,
):  # fmt: skip
    token, tokens = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    width: constexpr = triton.next_power_of_2(H)
    column = tl.arange(0, width)
    inside = column < H
    kept = tl.load(residual + token * H + column, mask=inside, other=0.0)
    if partials is not None:
        weighed: constexpr = gate is None and shares is not None
        fan: constexpr = K if weighed else 1
        added = tl.zeros([width], tl.float32)
        for at in tl.static_range(fan):
            share = tl.load(shares + token * K + at) if weighed else 1.0
            used = column < tl.where(share != 0, H, 0) if weighed else inside  # padding has none
            product = tl.zeros([width], tl.float32)
            for split in tl.static_range(S):
                row = (split * tokens + token) * fan + at
                product += tl.load(partials + row * H + column, mask=used, other=0.0).to(tl.float32)
            added += product * share
        kept = (kept.to(tl.float32) + added).to(kept.dtype)
        tl.store(residual + token * H + column, kept, mask=inside)
    values = kept.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / H + eps)
    factors = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    result = ((values * scale).to(kept.dtype).to(tl.float32) * factors).to(kept.dtype)
    _write(normed, result, token, tokens, H, HALVES)
    if gate is not None:
        _choose(result, gate, live, chosen, shares, token, H, E, K)


@triton.jit
def _write(output, values, row, rows, N: constexpr, HALVES: constexpr):
    """A row of an activation [rows, N], whole or in halves."""
    width: constexpr = values.shape[0]
    if HALVES:
        even, odd = tl.split(tl.reshape(values, [width // 2, 2]))
        pair = tl.arange(0, width // 2)
        tl.store(output + row * (N // 2) + pair, even, mask=pair < N // 2)
        tl.store(output + (rows + row) * (N // 2) + pair, odd, mask=pair < N // 2)
    else:
        tl.store(output + row * N + tl.arange(0, width), values, mask=tl.arange(0, width) < N)


def settle(
    partials: Tensor | None, residual: Tensor, weight: Tensor, eps: float, *,
    shares: Tensor | None = None, halves: bool = True,
) -> Tensor:  # fmt: skip
    """Add a product to the residual stream [T, H], in place, and norm the sum (RMSNorm, arXiv 1910.07467).

    `partials` [S, T*k, H], or None for the norm alone, is summed over S and, where `shares` fp32 [T, k] weigh the
    outputs of a token's k experts, over these; in fp32, rounded once. From there on rounded as MixtralRMSNorm does.
    The result is [2, T, H/2], even columns before odd ones, or [T, H] where not in `halves`.
    """
    return _launch(partials, residual, weight, eps, None, None, None, shares, halves)


def route(
    partials: Tensor | None, residual: Tensor, weight: Tensor, eps: float, gate: Tensor, top_k: int, live: Tensor, *,
    halves: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """settle() and Mixtral's router (arXiv 2401.04088, section 2.1): the normed rows, and the experts each chooses.

    gate [E, H]; int32 [T, top_k] experts, the likeliest first and of equals the first, and their shares, fp32, whose
    sum is 1. Rows from `live` (int32 [1]) on choose none: -1, with shares of 0.
    """
    chosen = gate.new_empty((len(residual), top_k), dtype=int32)
    shares = gate.new_empty((len(residual), top_k), dtype=float32)
    return _launch(partials, residual, weight, eps, gate, live, chosen, shares, halves), chosen, shares


def _launch(
    partials: Tensor | None, residual: Tensor, weight: Tensor, eps: float, gate: Tensor | None,
    live: Tensor | None, chosen: Tensor | None, shares: Tensor | None, halves: bool,
) -> Tensor:  # fmt: skip
    rows, columns = residual.shape
    normed = residual.new_empty((2, rows, columns // 2) if halves else (rows, columns))
    splits, experts = 0 if partials is None else partials.shape[0], 0 if gate is None else gate.shape[0]
    _settle[(rows,)](
        partials, residual, weight, eps, gate, live, chosen, shares, normed, columns, splits, experts,
        1 if shares is None else shares.shape[1], halves, num_warps=SETTLE_WARPS,
    )  # fmt: skip
    return normed


@triton.jit
def _rotate(
    partials, cos, sin, slots, keys, values, queries, live,
    S: constexpr, HEADS: constexpr, KV_HEADS: constexpr, DIM: constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if token >= tl.load(live):
        return
    dtype: constexpr = keys.dtype.element_ty
    dim = tl.arange(0, DIM // 2)
    x, y = tl.zeros([DIM // 2], tl.float32), tl.zeros([DIM // 2], tl.float32)
    for split in tl.static_range(S):
        row = split * tl.num_programs(0) + token
        start = partials + (row * (HEADS + 2 * KV_HEADS) + head) * DIM + dim
        x, y = x + tl.load(start), y + tl.load(start + DIM // 2)
    x, y = x.to(dtype).to(tl.float32), y.to(dtype).to(tl.float32)
    if head < HEADS + KV_HEADS:
        at = token * DIM + dim
        before = x * tl.load(cos + at).to(tl.float32) - y * tl.load(sin + at).to(tl.float32)
        at += DIM // 2
        x, y = before, y * tl.load(cos + at).to(tl.float32) + x * tl.load(sin + at).to(tl.float32)
    to = queries + (token * HEADS + head) * DIM
    if head >= HEADS:
        pool = tl.where(head < HEADS + KV_HEADS, keys, values)
        to = pool + (tl.load(slots + token).to(tl.int64) * KV_HEADS + (head - HEADS) % KV_HEADS) * DIM
    tl.store(to + dim, x.to(dtype))
    tl.store(to + DIM // 2 + dim, y.to(dtype))


def rotate(
    partials: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor, heads: int, live: Tensor
) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of queries and keys; keys and values go into the pool.

    `partials` fp32 [S, T, (heads + 2*kv_heads) * dim]: queries, keys, values. cos and sin [T, dim] as transformers has
    them, for dimensions in two halves. Row t goes to slot `slots`[t] of keys and values [slots, kv_heads, dim].
    Queries [T, heads, dim]; nothing is written for rows from `live` (int32 [1]) on.
    """
    (splits, rows, _), (_, kv_heads, dim) = partials.shape, keys.shape
    queries = keys.new_empty((rows, heads, dim))
    _rotate[(rows, heads + 2 * kv_heads)](
        partials, cos, sin, slots, keys, values, queries, live, splits, heads, kv_heads, dim, num_warps=ROTATE_WARPS
    )
    return queries


@triton.jit(do_not_specialize=["width"])
def _attend(
    queries, keys, values, tables, positions, live, parts, sums, scale, width,
    GROUP: constexpr, DIM: constexpr, TILE: constexpr, BLOCK: constexpr, ROWS: constexpr,
):  # fmt: skip
    token, kv, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    if token >= tl.load(live):
        return
    kv_heads, splits = tl.num_programs(1), tl.num_programs(2)
    last = tl.load(positions + token).to(tl.int32)
    share = tl.cdiv(last // TILE + 1, splits) * TILE
    start, end = split * share, tl.minimum(split * share + share, last + 1)
    member, dim, key = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, TILE)
    inside = member < GROUP
    head = (token * kv_heads + kv) * GROUP + member
    part = head * splits + split
    if start >= end:
        tl.store(sums + part, float("-inf"), mask=inside)
        return
    asked = tl.load(queries + head[:, None] * DIM + dim[None, :], mask=inside[:, None], other=0.0)
    most, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    made = tl.zeros([ROWS, DIM], tl.float32)
    # Behind its end a row reads its last key again, and nothing that is not its own. A tile's blocks are looked up a
    # tile ahead: Triton keeps no more than one tile in flight where a loop's loads wait for each other.
    table, at = tables + token * width, tl.minimum(start + key, last)
    slot = tl.load(table + at // BLOCK).to(tl.int64) * BLOCK + at % BLOCK
    for first in range(start, end, TILE):
        place = (slot * kv_heads + kv)[:, None] * DIM + dim[None, :]
        at = tl.minimum(first + TILE + key, last)
        slot = tl.load(table + at // BLOCK).to(tl.int64) * BLOCK + at % BLOCK
        scores = tl.dot(asked, tl.trans(tl.load(keys + place)), input_precision="ieee") * scale
        scores = tl.where((first + key <= last)[None, :], scores, float("-inf"))
        highest = tl.maximum(most, tl.max(scores, axis=1))
        powers, faded = tl.exp2(scores - highest[:, None]), tl.exp2(most - highest)
        told = tl.load(values + place)
        made = tl.dot(powers.to(told.dtype), told, made * faded[:, None], input_precision="ieee")
        total, most = total * faded + tl.sum(powers, axis=1), highest
    tl.store(sums + part, most + tl.log2(total), mask=inside)
    tl.store(parts + part[:, None] * DIM + dim[None, :], made / total[:, None], mask=inside[:, None])


@triton.jit
def _join(parts, sums, live, output, SPLITS: constexpr, DIM: constexpr, HALVES: constexpr):
    token, heads = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    row, rows = token * heads + tl.program_id(1), tl.num_programs(0) * heads
    split, dim = tl.arange(0, triton.next_power_of_2(SPLITS)), tl.arange(0, DIM)
    joined = tl.zeros([DIM], tl.float32)
    if token < tl.load(live):
        total = tl.load(sums + row * SPLITS + split, mask=split < SPLITS, other=float("-inf"))
        weights = tl.exp2(total - tl.max(total, axis=0))
        place = (row * SPLITS + split)[:, None] * DIM + dim[None, :]
        # An empty share has written no part.
        part = tl.load(parts + place, mask=(total != float("-inf"))[:, None], other=0.0)
        joined = tl.sum(part * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    _write(output, joined.to(output.dtype.element_ty), row, rows, DIM, HALVES)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, tables: Tensor, positions: Tensor, scaling: float, splits: int,
    live: Tensor, *, halves: bool = True,
) -> Tensor:  # fmt: skip
    """Attention of single tokens over the pool, each row cut in `splits` parts (online softmax: arXiv 2205.14135).

    Row t of queries [T, heads, dim] sees the first positions[t]+1 tokens of the sequence whose blocks are tables[t]
    (int32 [T, blocks]), in keys and values [slots, kv_heads, dim]. The result is [2, T, heads*dim/2], even columns
    before odd ones, or [T, heads*dim] where not in `halves`; 0 for rows from `live` (int32 [1]) on.
    """
    (rows, heads, dim), (_, kv_heads, _) = queries.shape, keys.shape
    parts = queries.new_empty((rows, heads, splits, dim), dtype=float32)
    sums, group = queries.new_empty((rows, heads, splits), dtype=float32), heads // kv_heads
    _attend[(rows, kv_heads, splits)](
        queries, keys, values, tables, positions, live, parts, sums, scaling * LOG2_E, tables.stride(0), group, dim,
        TILE, BLOCK, max(ROWS, triton.next_power_of_2(group)), num_warps=ATTEND_WARPS, num_stages=ATTEND_STAGES,
    )  # fmt: skip
    output = queries.new_empty((2, rows, heads * dim // 2) if halves else (rows, heads * dim))
    _join[(rows, heads)](parts, sums, live, output, splits, dim, halves, num_warps=JOIN_WARPS)
    return output
