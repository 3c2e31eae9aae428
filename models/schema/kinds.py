"""Which kinds of values may fit a schema, and whether two schemas are sure to have none in common.

Knows schemas as reader.py leaves them.
"""

import json
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

import jsonschema_rs

from models.schema.dialect import Node, Schema

NUMBERS = {"integer", "fraction"}  # a number is the one or the other
KINDS = {"null", "boolean", "object", "array", "string"} | NUMBERS
STRUCTURE = {"$comment", "type", "properties", "patternProperties", "additionalProperties", "required"}
STRUCTURE |= {"prefixItems", "items", "allOf", "anyOf", "oneOf"}
DEPTH = 8  # how deep it is looked for a difference
FUEL = 200_000  # schemas that may be looked at, some 3 microseconds each; beyond that nothing is known


def kinds_of(types: str | Iterable[str]) -> set[str]:
    """The kinds of these types of JSON Schema."""
    names = {types} if isinstance(types, str) else set(types)
    return (names & KINDS) | (NUMBERS if "number" in names else set())


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "fraction"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "null" if value is None else "object"


def identity(value: Any) -> tuple[str, Any]:
    """Equal for values that JSON Schema calls equal."""
    return kind_of(value), json.dumps(_whole(value), sort_keys=True) if isinstance(value, list | dict) else value


def _whole(value: Any) -> Any:
    """The same, with numbers spelled alike."""
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def sure_of(node: Schema, narrowed: Collection[str]) -> Schema:
    """A node without what is read more strictly than a validator may read it."""
    if node.get("$comment") not in narrowed:
        return node
    kept = {"$comment", "$ref"} if "$ref" in node else STRUCTURE
    return {key: value for key, value in node.items() if key in kept}


class Kinds:
    """What is known of the schemas that refer to each other by these pointers."""

    def __init__(self, definitions: dict[str, Node], narrowed: Collection[str] = ()) -> None:
        self._definitions = definitions
        self._narrowed = narrowed
        self._fuel = FUEL

    @property
    def tired(self) -> bool:
        return self._fuel <= 0

    def conjuncts(self, node: Node, depth: int = DEPTH) -> list[Schema]:
        """The schemas that must all hold where this one does, as far as they are no choice; none for True."""
        self._fuel -= 1
        if isinstance(node, bool) or depth == 0 or self.tired:
            return [{"enum": []}] if node is False else []
        node = sure_of(node, self._narrowed)
        inner = [self._definitions[node["$ref"]]] if "$ref" in node else []
        return [node, *(part for each in [*inner, *node.get("allOf", ())] for part in self.conjuncts(each, depth - 1))]

    def kinds(self, node: Node, depth: int = DEPTH) -> set[str]:
        """All kinds of which a value may fit, perhaps others as well."""
        found = set(KINDS)
        for part in self.conjuncts(node, depth):
            if "type" in part:
                found &= kinds_of(part["type"])
            if "enum" in part:
                found &= {kind_of(value) for value in part["enum"]}
            for way in _choices(part) if depth else ():
                found &= set[str]().union(*(self.kinds(choice, depth - 1) for choice in way))
        return found

    def apart(self, one: Node, other: Node, depth: int = DEPTH) -> bool:
        """Whether it is certain that no value fits both."""
        common = self.kinds(one) & self.kinds(other)
        if depth == 0 or not common:
            return not common
        mine, yours = self.conjuncts(one), self.conjuncts(other)
        for these, whole in ((mine, other), (yours, one)):
            if any(all(self.apart(way, whole, depth - 1) for way in ways) for part in these for ways in _choices(part)):
                return True
        listed = [part["enum"] for part in mine + yours if "enum" in part]
        if listed and not any(all(_may_fit(value, part) for part in mine + yours) for value in listed[0]):
            return True
        return all(self._apart_as(kind, mine, yours, depth) for kind in common)

    def _apart_as(self, kind: str, mine: list[Schema], yours: list[Schema], depth: int) -> bool:
        if kind == "object":
            names = {name for part in mine + yours for name in part.get("required", ())}
            pairs = ((property_of(x, name), property_of(y, name)) for name in names for x in mine for y in yours)
            return any(self.apart(*pair, depth - 1) for pair in pairs)
        if kind in NUMBERS:
            return _is_empty(mine + yours, "minimum", "maximum")
        length = {"string": "Length", "array": "Items"}.get(kind)
        return length is not None and _is_empty(mine + yours, f"min{length}", f"max{length}")


def _choices(node: Schema) -> list[list[Node]]:
    return [node[key] for key in ("anyOf", "oneOf") if key in node]


def _may_fit(value: Any, node: Schema) -> bool:
    """Whether a value is in a node's list, and a string fits its pattern."""
    if "enum" in node and identity(value) not in map(identity, node["enum"]):
        return False
    if not isinstance(value, str) or "pattern" not in node or not value.isascii():  # where dialects differ
        return True
    return _may_match(node["pattern"], value)


@lru_cache(256)
def _may_match(pattern: str, text: str) -> bool:
    """Whether a text fits a pattern, or that is too large to tell in linear time."""
    try:
        return jsonschema_rs.is_valid({"pattern": pattern}, text, pattern_options=jsonschema_rs.RegexOptions())
    except ValueError:
        return True


def property_of(node: Schema, name: str) -> Node:
    """What a node asks of one property, or less."""
    if name in node.get("properties", {}):
        return node["properties"][name]
    return True if node.get("patternProperties") else node.get("additionalProperties", True)


def _is_empty(parts: list[Schema], low: str, high: str) -> bool:
    """Whether no number lies within all of these limits."""
    exclusive = "exclusive{}".format
    lows = [(part[key], key != low) for part in parts for key in (low, exclusive(low.capitalize())) if key in part]
    highs = [(part[key], key == high) for part in parts for key in (high, exclusive(high.capitalize())) if key in part]
    if not lows or not highs:
        return False
    (least, above), (most, closed) = max(lows), min(highs)
    return least > most or (least == most and (above or not closed))
