"""Which tiles are fast on this card: for every product and every path of the table a bounded search around its tile."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from benchmarks.card import operations
from benchmarks.card.check import distance
from benchmarks.card.clock import captured, timed
from benchmarks.card.operations import KINDS, Given, Weights
from benchmarks.card.rig import Rig
from models.engine.cache import BLOCK, blocks
from models.engine.kernels import attend
from models.nf4 import paths
from models.nf4.paths import Path, Tile

# What is varied together, since the best of one hangs on the other; in this order.
GROUPS = (("rows", "warps"), ("splits",), ("unroll", "stages"), ("tokens", "warps"), ("rows", "splits"))
PASSES = 2
VALUES = {
    "rows": (32, 64, 128),
    "tokens": (8, 16, 32, 64),
    "splits": (1, 2, 4, 8),
    "unroll": (1, 2, 4),
    "warps": (2, 4, 8),
    "stages": (2, 3, 4, 5),
}
SUMS = 64  # fp32 sums a thread: there are as many of the block under way, and with more of both it spills
PARTS = (1, 2, 4, 8, 16, 32, 64)
WORTH = 0.02  # a faster tile by less is noise


@dataclass(frozen=True)
class Cell:
    """A product of a path, at so many tokens. `columns` is K."""

    kind: str
    path: Path
    tokens: int
    columns: int
    given: Given


@torch.inference_mode()
def measure(rig: Rig, *, steps: tuple[int, ...] = (), context: int = 1560) -> dict[str, Any]:
    """For each cell the table's tile and the best one found; the paths of few tokens first.

    A layer's `seconds` count what the next kernel has to read of the parts that a split product leaves, at the copy's
    rate. `steps`: only these paths (by their most tokens).
    """
    table = paths.of(operations.capability(rig.device))
    layers = operations.layers_of(rig.network)
    cells: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for path in table:
        if steps and path.tokens not in steps:
            continue
        tokens = 1 if path.tokens <= 2 else path.tokens
        given = operations.draw(rig, tokens, path.gathered)
        for kind in KINDS:
            if time.monotonic() > rig.ends:
                return {"cells": cells, "parts": parts, "ended": "out of time"}
            columns = rig.config.intermediate_size if kind == "down" else rig.config.hidden_size
            cells.append(search(rig, layers, Cell(kind, path, tokens, columns, given)))
            rig.note({"cells": cells, "parts": parts})
        if tokens <= 64 and tokens * blocks(context) * BLOCK <= rig.room:
            parts.append(_parts(rig, path, tokens, context))
            rig.note({"cells": cells, "parts": parts})
    return {"cells": cells, "parts": parts}


def search(rig: Rig, layers: list[Weights], cell: Cell) -> dict[str, Any]:
    """Go through the groups, each time from the best tile so far; what does not fit the card is left out."""
    current: Tile = getattr(cell.path, cell.kind).fit(cell.columns)
    seconds = {current: _time(rig, layers, cell, current)}
    expected = operations.whole(cell.kind, operations.ours(cell.kind, layers[0], cell.given, current), cell.given)
    refused = 0
    for group in GROUPS * PASSES:
        best = min(seconds, key=seconds.__getitem__)
        coming = [tile for tile in candidates(cell, best, group) if tile not in seconds]
        fitting = _compiled(layers[0], cell, coming)
        refused += len(coming) - len(fitting)
        for tile in fitting:
            if time.monotonic() < rig.ends:
                seconds[tile] = _time(rig, layers, cell, tile)
    best = min(seconds, key=seconds.__getitem__)
    again = {tile: _time(rig, layers, cell, tile) for tile in {current, best}}
    made = operations.whole(cell.kind, operations.ours(cell.kind, layers[0], cell.given, best), cell.given)
    gain = again[current] / again[best] - 1
    count = operations.read_bytes(cell.kind, layers[0], cell.given)
    return {
        "operation": cell.kind,
        "path": cell.path.tokens,
        "tokens": cell.tokens,
        "gathered": cell.path.gathered,
        "current": _row(current, again[current], count, rig),
        "best": _row(best, again[best], count, rig),
        "gain": gain,
        "worth_it": gain > WORTH,
        "tried": len(seconds),
        "refused": refused,
        "error": distance(made, expected),
        "next": [_row(tile, seconds[tile], count, rig) for tile in sorted(seconds, key=seconds.__getitem__)[1:4]],
    }


def candidates(cell: Cell, base: Tile, group: tuple[str, ...]) -> list[Tile]:
    """`base` with all values of the fields in `group`, each once, that cannot be told to be slow beforehand."""
    found: dict[Tile, None] = {}
    for values in product(*(VALUES[name] for name in group)):
        tile = base._replace(**dict(zip(group, values, strict=True))).fit(cell.columns)
        if cell.kind == "gate_up" and tile.splits > 1:
            continue
        # Wider than the step's tokens it would multiply padding.
        if tile.tokens > max(8, cell.tokens) or tile.rows * tile.tokens > SUMS * 32 * tile.warps:
            continue
        found[tile] = None
    return list(found)


def _compiled(layer: Weights, cell: Cell, tiles: list[Tile]) -> list[Tile]:
    """Those that the card can take. Compiled side by side: most of a compiler's time is not Python's."""

    def fits(tile: Tile) -> bool:
        try:
            operations.ours(cell.kind, layer, cell.given, tile)
        except Exception:  # of many kinds: too much shared memory, too many registers, what the compiler cannot do
            return False
        return True

    # In the interpreter nothing is compiled, and it computes in one thread only.
    workers = max(os.cpu_count() or 1, 1) if cell.given.x.is_cuda else 1
    with ThreadPoolExecutor(workers) as pool:
        return [tile for tile, well in zip(tiles, pool.map(fits, tiles), strict=True) if well]


def _time(rig: Rig, layers: list[Weights], cell: Cell, tile: Tile) -> float:
    seconds = operations.over(rig.device, layers, lambda layer: operations.ours(cell.kind, layer, cell.given, tile))
    return seconds + parts_bytes(layers[0], cell, tile) / rig.limits.bandwidth


def parts_bytes(layer: Weights, cell: Cell, tile: Tile) -> int:
    """What the next kernel reads of this one's result: fp32 parts, or an activation."""
    given = cell.given
    if cell.kind == "gate_up":
        return given.hidden.nbytes
    if cell.kind == "down":
        return tile.splits * given.hidden.shape[0] * given.x.shape[1] * 4
    rows: int = sum(matrix.packed.shape[0] for matrix in getattr(layer, cell.kind))
    return tile.splits * given.x.shape[0] * rows * 4


def _row(tile: Tile, seconds: float, count: int, rig: Rig) -> dict[str, Any]:
    rate = count / seconds
    return {
        "tile": tile._asdict(),
        "seconds": seconds,
        "bytes_per_second": rate,
        "fraction": rate / rig.limits.bandwidth,
    }


def _parts(rig: Rig, path: Path, tokens: int, context: int) -> dict[str, Any]:
    """Attention of `tokens` rows, their keys cut in so many parts: seconds of a layer."""
    cache, config = rig.cache(tokens * blocks(context) * BLOCK), rig.config
    dim = config.hidden_size // config.num_attention_heads
    queries = torch.randn(tokens, config.num_attention_heads, dim, device=rig.device).to(cache.pool.dtype)
    tables = torch.arange(tokens * blocks(context), dtype=torch.int32, device=rig.device).view(tokens, -1)
    positions = torch.full((tokens,), context - 1, dtype=torch.int32, device=rig.device)
    live = torch.tensor([tokens], dtype=torch.int32, device=rig.device)
    seconds: dict[int, float] = {}

    def through(parts: int) -> Callable[[], object]:
        return lambda: [
            attend(queries, keys, values, tables, positions, dim**-0.5, parts, live) for keys, values in cache.pool
        ]

    for parts in PARTS:
        replay = captured(rig.device, through(parts))
        seconds[parts] = timed(rig.device, replay, 10).seconds / len(cache.pool)
    read = tokens * context * cache.bytes_per_token // len(cache.pool)
    return {
        "path": path.tokens,
        "tokens": tokens,
        "context": context,
        "current": path.parts,
        "best": min(seconds, key=seconds.__getitem__),
        "seconds": {str(parts): spent for parts, spent in seconds.items()},
        "fraction": read / min(seconds.values()) / rig.limits.bandwidth,
    }
