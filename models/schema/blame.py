"""Which keyword is to blame where a schema cannot be compiled as a whole.

Knows schemas as logic.py leaves them, and what their keywords were before.
"""

from collections.abc import Callable
from copy import deepcopy
from time import thread_time
from typing import Any

from models.schema.dialect import KEYWORDS, LISTS, MAPS, SINGLE, Node, Refs, Schema

LAST = {"type", "required"}
HOLDERS = MAPS | LISTS | SINGLE | {"items", "$ref"}
SECONDS = 0.5  # for the search; a keyword further up is named when they are gone
# What a keyword may have been before it was put in other words.
BEFORE = {
    "allOf": ["oneOf", "not", "if", "propertyNames", "dependencies", "dependentRequired", "dependentSchemas"],
    "anyOf": ["oneOf", "not", "if"],
    "enum": ["const", "allOf"],
    "pattern": ["format"],
    "maxLength": ["format"],
    "prefixItems": ["items"],
    "items": ["additionalItems", "unevaluatedItems"],
    "additionalProperties": ["unevaluatedProperties", "propertyNames"],
}


class Blame:
    """A search in one schema; `compiles` tells whether definitions do."""

    def __init__(self, definitions: dict[str, Node], refs: Refs, compiles: Callable[[dict[str, Node]], bool]) -> None:
        self._whole = deepcopy(definitions)
        self._refs = refs
        self._compiles = compiles
        self._until = thread_time() + SECONDS

    def find(self) -> tuple[str, str]:
        """A keyword and its pointer, without which, and perhaps others, the schema compiles."""
        node, at, found = self._whole[""], "", ("type", "/type")
        seen = set[int]()
        while isinstance(node, dict) and id(node) not in seen:
            seen.add(id(node))
            at = node.get("$comment", at)
            if (key := self._cause(node)) is None:
                break
            found = self._before(at, key)
            inner = [self._whole[node[key]]] if key == "$ref" else _inner(key, node[key])
            node = next((part for part in inner if self._is_cause(part)), None)
        return found

    def _works(self) -> bool:
        return thread_time() < self._until and self._compiles(self._whole)

    def _cause(self, node: Schema) -> str | None:
        """The keyword whose removal, after those before it, is enough; they stay away, it comes back."""
        # First what says something by itself, then what holds others, last what makes others matter.
        order = sorted(node.keys() - {"$comment"}, key=lambda key: (key in LAST, key in HOLDERS, key))
        for key in order:
            value = node.pop(key)
            if self._works():
                node[key] = value
                return key
        return None

    def _is_cause(self, node: Node) -> bool:
        if not isinstance(node, dict):
            return False
        kept = dict(node)
        node.clear()
        enough = self._works()
        node.update(kept)
        return enough

    def _before(self, at: str, key: str) -> tuple[str, str]:
        """The caller's own keyword, there or further up."""
        found = self._refs.find(f"#{at}")
        own = found[1] if found and isinstance(found[1], dict) else {}
        for name in (key, *BEFORE.get(key, ()), *own):
            if name in own and name in KEYWORDS:
                return name, f"{at}/{name}"
        steps = at.split("/")
        last = max((number for number, step in enumerate(steps) if step in KEYWORDS), default=0)
        return steps[last] or key, "/".join(steps[: last + 1]) or f"/{key}"


def _inner(key: str, value: Any) -> list[Node]:
    if key in MAPS:
        return list(value.values())
    if key in LISTS:
        return list(value)
    return [value] if key == "items" or key in SINGLE else []
