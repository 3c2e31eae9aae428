"""A request's body as JSON, read strictly. Knows nothing of what it says."""

import json
import math
from typing import Any

from models.failure import Failure
from serving.errors import failure

MAX_DEPTH = 64
MAX_VALUES = 100_000  # keys among them: pydantic lists all that are wrong, which for millions takes gigabytes


def read_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it, bounded: no duplicate keys, no NaN, no infinity, no NUL, no lone surrogates."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise failure("invalid_json") from None
    level, count = [value], 1
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below += [*node.keys(), *node.values()]
            elif isinstance(node, list):
                below += node
            elif isinstance(node, str):
                _check_text(node)
            elif isinstance(node, float) and not math.isfinite(node):
                raise failure("invalid_json")
        if not below:
            return value
        count += len(below)
        if count > MAX_VALUES:
            raise Failure("invalid_value", f"the body has more than {MAX_VALUES:,} values")
        level = below
    raise Failure("invalid_value", f"the body is nested deeper than {MAX_DEPTH} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate key")
    return found


def _refuse(_: str) -> None:
    raise ValueError("not a JSON number")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise failure("invalid_text") from None
    if "\0" in text:
        raise failure("invalid_text")
