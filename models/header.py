"""A safetensors file, opened: its header parsed and checked, so that reading by it is safe.

Knows nothing of threads, devices or models.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import torch

from models.failure import Failure

LONGEST = 16 << 20
MOST_ELEMENTS = 1 << 62
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file; its bytes are those from `start` to before `end` after the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Shard:
    """A file, open where its header ends; its tensors follow in this order, without a gap. `header` is as it lies."""

    name: str
    file: FileIO
    header: bytes
    entries: list[Entry]


def open_shard(path: Path, stack: ExitStack) -> Shard:
    """The file at `path`, open until `stack` ends. At most LONGEST bytes of it are held.

    Failure model_broken unless its tensors fill what follows the header end to end.
    """
    with errors_told(path.name):
        file = stack.enter_context(path.open("rb", buffering=0))
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if length > LONGEST:
            raise broken(path.name, "its header is too long")
        header = prefix + file.read(length)
        if len(header) != 8 + length:
            raise broken(path.name, "it ends within its header")
        try:
            entries = parse(header[8:], os.fstat(file.fileno()).st_size - len(header))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise broken(path.name, "its header does not describe what it holds") from error
    return Shard(path.name, file, header, entries)


def entries_of(shards: Iterable[Shard]) -> list[Entry]:
    """All their tensors, file by file; Failure model_broken where a name comes twice."""
    found: dict[str, Entry] = {}
    for entry in (entry for shard in shards for entry in shard.entries):
        if found.setdefault(entry.name, entry) is not entry:
            raise Failure("model_broken", f"the tensor {entry.name} is stored twice")
    return list(found.values())


def parse(header: bytes, size: int) -> list[Entry]:
    """The tensors in the order of the file, if they fill `size` bytes end to end.

    ValueError if not; that, TypeError, KeyError, AttributeError or RecursionError if this is no header.
    """
    table = json.loads(header.decode(), object_pairs_hook=_distinct)
    entries = [_entry(name, **about) for name, about in table.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    if [*(entry.start for entry in entries), size] != [0, *(entry.end for entry in entries)]:
        raise ValueError("the tensors do not lie end to end")
    return entries


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _entry(name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    start, end = data_offsets
    # JSON may hold true, 1.0 or -1 where a count is due, and a shape with a zero in it takes no bytes however large.
    if not all(type(count) is int and 0 <= count < MOST_ELEMENTS for count in (*shape, start, end)):
        raise ValueError("not a count")
    if prod(count or 1 for count in shape) >= MOST_ELEMENTS:
        raise ValueError("more than torch can address")
    if prod(shape) * DTYPES[dtype].itemsize != end - start:
        raise ValueError("not the bytes of this shape")
    return Entry(name, DTYPES[dtype], tuple(shape), start, end)


@contextmanager
def errors_told(name: str) -> Iterator[None]:
    """Give a Failure for what the system refuses about the file called `name`."""
    try:
        yield
    except OSError as error:  # no path: the message may travel further than this machine
        raise broken(name, error.strerror or type(error).__name__) from error


def broken(name: str, why: str) -> Failure:
    """The Failure of a file that cannot be used."""
    return Failure("model_broken", f"{name} cannot be loaded: {why}")
