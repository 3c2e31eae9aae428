"""Prompts read in one step, beside the card's rate for products: as served, and by slices of one size or another."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.card import limits, rows
from benchmarks.card.clock import timed
from benchmarks.card.operations import capability
from benchmarks.card.rig import Rig
from models.engine import decoder
from models.engine.cache import BLOCK, blocks
from models.engine.forward import Forward
from models.engine.reference import Reference
from models.nf4 import paths, slices

SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)
SCRATCH = (32 << 20, 128 << 20)  # bytes: what stays in the L2 cache, and a whole matrix of an expert


@torch.inference_mode()
def measure(
    rig: Rig, *, sizes: tuple[int, ...] = SIZES, scratch: tuple[int, ...] = SCRATCH, slow: int = 512
) -> dict[str, Any]:
    """A row for each way and size: seconds, tokens a second, MFU (operations done / the rate of a large product).

    "as served" takes the way of the table; "tiles" its largest tiles, the others slices, whatever the step's size.
    """
    fitting = [size for size in sizes if size + BLOCK <= rig.room]
    cache = rig.cache(blocks(max(fitting)) * BLOCK)
    found: list[dict[str, Any]] = []
    tiles = paths.of(capability(rig.device))[-1]
    ways: list[tuple[str, int, Callable[..., paths.Path | None]]] = [
        ("as served", slices.SCRATCH, paths.choose),
        ("tiles", slices.SCRATCH, lambda *_: tiles),
        *((f"slices of {each >> 20} MiB", each, lambda *_: None) for each in scratch),
    ]
    for way, nbytes, choose in ways:
        with patch.object(decoder, "Slices", partial(slices.Slices, nbytes=nbytes)):
            forward = rig.forward(rig.network, cache)
        # Only now: while graphs were captured, their small steps had to find their paths.
        with patch.object(paths, "choose", choose):
            found += [row(rig, forward, way, size) for size in fitting]
        del forward
        rig.note({"rows": found})
    if slow in fitting:
        found.append(row(rig, Reference(rig.network, cache), "reference", slow))
    return {"rows": found}


def row(rig: Rig, forward: Forward, way: str, tokens: int) -> dict[str, Any]:
    """One prompt of so many tokens, read at once."""
    step = rows.reading([rows.random_ids(tokens, rig.config.vocab_size)], [range(tokens - 1, tokens)])
    seconds = timed(rig.device, lambda: forward(step), repeats=5, warm=2).seconds
    flop = limits.prefill_flop(rig.config, tokens)
    return {
        "way": way,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "flop": flop,
        "mfu": flop / seconds / rig.limits.matmul,
    }
