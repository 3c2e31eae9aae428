"""Rows whose truth is known, as JSON lines: reading them, and when a value of an answer is the expected one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verification.failure import Unusable


@dataclass(frozen=True)
class Row:
    """One line: the body to send, and what to expect if `judged`. A label's `expected` is the label, None for none of
    these; a schema's is the object."""

    line: int
    request: dict[str, Any]
    expected: Any = None
    judged: bool = False

    @property
    def asks_label(self) -> bool:
        return "labels" in self.request


def read(path: Path, labels: Sequence[Any] | None = None) -> tuple[list[Row], str]:
    """All rows, and the file's sha256. `labels` are for rows with neither labels nor a schema. Raises Unusable."""
    data = _load(path)
    rows = []
    for line, fields in _objects(path, data):
        judged = "expected" in fields
        expected = fields.pop("expected", None)
        if labels is not None and "labels" not in fields and "schema" not in fields:
            fields["labels"] = list(labels)
        row = Row(line, fields, expected, judged)
        if judged and row.asks_label and not isinstance(expected, str | None):
            raise Unusable(f"{path.name}, line {line}: a label is expected, or null")
        rows.append(row)
    return rows, hashlib.sha256(data).hexdigest()


def read_labels(path: Path) -> list[Any]:
    """A JSON array, as a request has it. Raises Unusable."""
    try:
        found = json.loads(_load(path))
    except ValueError:
        found = None
    if not isinstance(found, list) or not found:
        raise Unusable(f"{path.name} is no JSON array of labels")
    return found


def read_replies(path: Path) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Line, request and reply of each, as `run --record` wrote them. Raises Unusable."""
    found = []
    for line, fields in _objects(path, _load(path)):
        request, reply = fields.get("request"), fields.get("reply")
        if not isinstance(request, dict) or not isinstance(reply, dict):
            raise Unusable(f'{path.name}, line {line}: not {{"request": {{…}}, "reply": {{…}}}}')
        found.append((line, request, reply))
    return found


def _load(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None


def _objects(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    count = 0
    for line, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text.decode())
            json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()  # what cannot be sent is found here
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise Unusable(f"{path.name}, line {line}: no JSON object")
        count += 1
        yield line, fields
    if not count:
        raise Unusable(f"{path.name} holds no rows")


def leaves(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """All scalars (and what is empty) with their JSON pointers, RFC 6901."""
    if not isinstance(value, dict | list) or not value:
        yield pointer, value
        return
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(item, f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}")


def compare(expected: Any, found: Any, pointer: str = "") -> Iterator[tuple[str, bool]]:
    """Every expected scalar by its pointer, places in arrays as `*`, and whether it was found there.

    Strings must be the same, character for character; numbers the same in value (12 is 12.0, "12" is not 12). What is
    in an object and not expected is not judged; an element more than expected is as wrong as one that is missing.
    """
    if isinstance(expected, dict) and expected:
        for name, item in expected.items():
            inner = found.get(name, MISSING) if isinstance(found, dict) else MISSING
            yield from compare(item, inner, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(expected, list) and expected:
        given = found if isinstance(found, list) else []
        for place, item in enumerate(expected):
            yield from compare(item, given[place] if place < len(given) else MISSING, f"{pointer}/*")
        for item in given[len(expected) :]:
            yield from ((f"{pointer}/*{below}", False) for below, _ in leaves(item))
    else:
        yield pointer, same(expected, found)


MISSING = object()


def same(expected: Any, found: Any) -> bool:
    """Of scalars, or of what is empty."""
    numbers = isinstance(expected, int | float) and isinstance(found, int | float)
    if numbers and not isinstance(expected, bool) and not isinstance(found, bool):
        return bool(expected == found)
    return type(expected) is type(found) and bool(expected == found)
