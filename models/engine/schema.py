"""What a schema may cost: refuses, before anything compiles it, what would take time or memory without bound.

The bounds are measured with the pinned llguidance and jsonschema_rs. Knows nothing of tokens.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from math import lcm
from typing import Any
from urllib.parse import unquote

from models.failure import Failure

Schema = dict[str, Any]

MAX_BYTES = 65_536
# llguidance intersects patterns in 2^n: 16 take 0.1 s, 24 take 45 s and 4 GB. Those of property names in n^2.
MAX_PATTERNS = 16
# Its automaton for multipleOf has a state for every remainder: 10^5 take 0.5 s, 10^7 take 60 s and 2 GB.
MAX_DIVISOR = 100_000
# A validator follows every $ref anew, so 28 doublings take 3 s, and the interpreter stands still meanwhile.
MAX_VISITS = 10_000


def admit(schema: Schema) -> str:
    """The schema as JSON; Failure where it costs too much or a $ref leads out of it."""
    text = json.dumps(schema)
    if len(text) > MAX_BYTES:
        raise _refusal(f"it is larger than {MAX_BYTES} bytes")
    nodes = list(_nodes(schema))
    if len({pattern for node in nodes for pattern in _patterns(node)}) > MAX_PATTERNS:
        raise _refusal(f"it has more than {MAX_PATTERNS} different patterns")
    if lcm(*(_digits(node["multipleOf"]) for node in nodes if _is_number(node.get("multipleOf")))) > MAX_DIVISOR:
        raise _refusal(f"its values of multipleOf come together only beyond {MAX_DIVISOR}")
    if any(isinstance(node.get("$id"), str) for node in nodes[1:]):
        raise _refusal("it has an $id below its top")
    try:
        if _visits(schema, schema, {}) > MAX_VISITS:
            raise _refusal(f"it has more than {MAX_VISITS} parts when every $ref is followed")
    except RecursionError:
        raise _refusal("it is nested too deeply") from None
    return text


def _refusal(why: str) -> Failure:
    return Failure("schema_unsupported", f"the schema cannot be enforced: {why}")


def _nodes(schema: Schema) -> Iterator[Schema]:
    """Every object in the schema, the top first."""
    level: list[Any] = [schema]
    while level:
        yield from (node for node in level if isinstance(node, dict))
        level = [
            part
            for node in level
            if isinstance(node, dict | list)
            for part in (node.values() if isinstance(node, dict) else node)
        ]


def _patterns(node: Schema) -> list[str]:
    own, names = node.get("pattern"), node.get("patternProperties")
    return [*([own] if isinstance(own, str) else []), *(names if isinstance(names, dict) else [])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digits(value: float) -> int:
    """The value without sign, point and zeros at its ends: 12 for 0.0012 and for 1200."""
    return int("".join(map(str, Decimal(str(value)).normalize().as_tuple().digits)))


def _visits(node: Any, schema: Schema, known: dict[str, int]) -> int:
    """How many parts lie in `node` when every $ref is followed; into a recursive one, once."""
    if isinstance(node, list):
        return sum(_visits(part, schema, known) for part in node)
    if not isinstance(node, dict):
        return 0
    count = 1 + sum(_visits(part, schema, known) for part in node.values())
    ref = node.get("$ref")
    if isinstance(ref, str):
        if ref not in known:
            known[ref] = 1
            known[ref] = _visits(_target(ref, schema), schema, known)
        count += known[ref]
    return count


def _target(ref: str, schema: Schema) -> Any:
    """What a $ref into the schema itself points at (RFC 6901)."""
    found: Any = schema
    try:
        if ref != "#" and not ref.startswith("#/"):
            raise KeyError(ref)
        for part in unquote(ref).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found[int(name)] if isinstance(found, list) else found[name]
    except (KeyError, IndexError, ValueError, TypeError):
        raise _refusal("a $ref does not lead to a part of the schema itself") from None
    return found
