"""Which way the products of a step go, by card and by how many tokens the step has: one table. Knows no torch.

What no card has measured yet is a guess from what the compiler says: registers, instructions a weight, bytes in flight.
"""

from math import gcd
from typing import NamedTuple

from models.nf4.layout import BLOCK


class Tile(NamedTuple):
    """What one program computes: `tokens` x `rows`, K in `splits` parts, `unroll` blocks of 64 columns a step."""

    tokens: int
    rows: int
    splits: int = 1
    unroll: int = 4
    warps: int = 4
    stages: int = 4

    def fit(self, columns: int) -> "Tile":
        """The same where parts and steps come out even for a matrix of `columns`."""
        blocks = columns // BLOCK
        splits = gcd(self.splits, blocks)
        return self._replace(splits=splits, unroll=gcd(self.unroll, blocks // splits))


class Path(NamedTuple):
    """The way of a step of at most `tokens` tokens. `gathered`: an expert's tokens are brought together first;
    where they are not, each assignment reads its expert's weights for itself. `parts`: how many a row's keys make.
    `project` (q, k and v) and `output` may be None: then bitsandbytes' own fused kernel multiplies."""

    tokens: int
    gathered: bool
    parts: int
    project: Tile | None
    output: Tile | None
    gate_up: Tile
    down: Tile


# Not above: there matrices are dequantised, slice by slice, and multiplied by cuBLAS (models/nf4/slices.py).
SM_120 = (
    Path(2, False, 32, Tile(8, 32, 4, warps=2), Tile(8, 32, 4, warps=2), Tile(8, 64), Tile(8, 64, 4)),
    Path(8, True, 16, Tile(8, 32, 4, warps=2), Tile(8, 32, 4, warps=2), Tile(8, 64), Tile(8, 64, 4)),
    Path(16, True, 8, Tile(16, 32, 4, warps=2), Tile(16, 32, 4, warps=2), Tile(8, 64), Tile(8, 64, 2)),
    Path(32, True, 4, Tile(32, 64, 4, 2, stages=3), Tile(32, 64, 4, 2, stages=3), Tile(16, 64), Tile(16, 64, 2)),
    Path(64, True, 2, Tile(64, 64, 4, 2, stages=3), Tile(64, 64, 4, 2, stages=3), Tile(16, 64), Tile(16, 64, 2)),
    Path(512, True, 2, *(Tile(64, 64, splits, 2, stages=3) for splits in (1, 2, 1, 1))),
)
# 64 rows in four warps would be wgmma there, which decodes 30 % slower for few tokens.
SM_90 = (
    Path(2, False, 32, Tile(8, 32, 4, warps=2), Tile(8, 32, 4, warps=2), Tile(8, 32, warps=2), Tile(8, 32, 4, warps=2)),
    Path(8, True, 16, Tile(8, 32, 4, warps=2), Tile(8, 32, 4, warps=2), Tile(8, 32, warps=2), Tile(8, 32, 4, warps=2)),
    Path(16, True, 8, Tile(16, 32, 4, 2, 2), Tile(16, 32, 4, 2, 2), Tile(8, 32, warps=2), Tile(8, 32, 2, warps=2)),
    Path(32, True, 4, Tile(32, 32, 4, 2, 2), Tile(32, 32, 4, 2, 2), Tile(16, 32, 1, 2, 2), Tile(16, 32, 2, 2, 2)),
    Path(64, True, 2, Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(16, 32, 1, 2, 2), Tile(16, 32, 2, 2, 2)),
    Path(512, True, 2, Tile(64, 64, 1, 2), Tile(64, 64, 2, 2), Tile(64, 64, 1, 2), Tile(64, 64, 1, 2)),
)
TABLE = {(12, 0): SM_120, (9, 0): SM_90}


def of(capability: tuple[int, int]) -> tuple[Path, ...]:
    """A card's paths, those of few tokens first. Unknown cards go the 5090's way."""
    return TABLE.get(capability, SM_120)


def choose(capability: tuple[int, int], tokens: int) -> Path | None:
    """The path of a step of `tokens` tokens; None where slices are dequantised."""
    return next((path for path in of(capability) if tokens <= path.tokens), None)
