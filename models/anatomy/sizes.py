"""A config's numbers, read with suspicion, and the parts that all kinds of models are made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

from models.nf4 import layout
from models.nf4.layout import ITEM_BYTES, Spec

CONSTANTS = "quantisation constants"
FLOATS = ("bfloat16", "float16", "float32")
Parameter = tuple[str, str, Spec]  # its group in the ledger, its name in transformers, dtype and shape


@dataclass(frozen=True)
class Anatomy:
    """Every parameter of a model, and how many numbers it keeps of each token that it has read. `reading`: numbers
    that an encoder holds for a token while it reads, by itself and for each token beside it."""

    parameters: list[Parameter]
    kept: int = 0
    reading: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Form:
    """How matrices lie in memory: NF4 where `bits` is 4; all else, and all where it is not, in the float `dtype`."""

    dtype: str
    bits: int

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str) or self.dtype not in FLOATS:
            raise ValueError(f"dtype is {shown(self.dtype)}; {', '.join(FLOATS)} are known")
        if self.bits not in (4, 8 * ITEM_BYTES[self.dtype]):
            raise ValueError(f"bits is {shown(self.bits)}; a {self.dtype} model has 4 or {8 * ITEM_BYTES[self.dtype]}")

    def plain(self, group: str, name: str, *shape: int) -> Parameter:
        return group, name, Spec(self.dtype, shape)

    def matrix(self, group: str, path: str, rows: int, columns: int, *stack: int) -> Iterator[Parameter]:
        """A matrix that is multiplied with, or a stack of them, which is known in NF4 alone."""
        if self.bits != 4:
            if stack:
                raise ValueError(f"experts of {self.bits} bits are not known")
            yield self.plain(group, f"{path}.weight", rows, columns)
            return
        for part, spec in layout.specs(rows, columns, *stack).items():
            yield (group if part == "packed" else CONSTANTS), f"{path}.{part}", spec


def size(config: Mapping[str, Any], key: str, most: int = 1 << 24, default: int | None = None) -> int:
    """A whole number from 1 to `most`; ValueError names what cannot be used."""
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(f"{key} is {shown(value)}, not a whole number from 1 to {most:,}")
    return value


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Whether it is set; absent or null: no."""
    if not isinstance(config.get(key), bool | None):
        raise ValueError(f"{key} is {shown(config[key])}, neither true nor false")
    return bool(config.get(key))
