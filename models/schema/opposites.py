"""What a schema does not allow, as a schema, as far as that can be said.

Knows schemas as reader.py leaves them.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from models.schema.dialect import Node, Schema
from models.schema.kinds import KINDS, NUMBERS, Kinds, kind_of, kinds_of, property_of, sure_of
from models.schema.patterns import other_than

LIMITS = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}
COUNTED = {"Length": "string", "Items": "array", "Properties": "object"}
SPEAKS_OF = {
    key: kinds
    for kinds, keys in (
        (NUMBERS, ("multipleOf", *LIMITS)),
        ({"string"}, ("pattern", "minLength", "maxLength")),
        ({"array"}, ("prefixItems", "items", "minItems", "maxItems")),
        ({"object"}, ("properties", "patternProperties", "additionalProperties", "required")),
        ({"object"}, ("minProperties", "maxProperties")),
    )
    for key in keys
}
LONGEST, LONG = 2000, 200  # characters of strings that are ruled out one by one, together and each
MOST = 64  # numbers


class Opposite(NamedTuple):
    """Ways not to fit, and whether there are no others."""

    ways: list[Node]
    all: bool


class Opposites:
    """Opposites of schemas that refer to each other by these pointers."""

    def __init__(self, definitions: dict[str, Node], narrowed: Collection[str] = ()) -> None:
        """`narrowed`: pointers of schemas that say more than is sure."""
        self._definitions = definitions
        self._narrowed = narrowed
        self._known = Kinds(definitions, narrowed)
        self._inside: list[str] = []  # of these definitions the opposite is being looked for

    def find(self, node: Node, beside: list[Schema]) -> Opposite:
        """How a value that fits all `beside` can be one that does not fit `node`; True: in any case."""
        within = self._known.kinds({"allOf": beside})
        if self._known.tired:
            return Opposite([], False)
        if node is False or self._known.apart({"allOf": beside}, node):
            return Opposite([True], True)
        if node is True:
            return Opposite([], True)
        ways: list[Node] = []
        said, node = node, sure_of(node, self._narrowed)
        sure = said.keys() == node.keys()
        if "type" in node:
            missing = within - kinds_of(node["type"])
            within = within - missing
            told = missing & NUMBERS != {"fraction"}  # no keyword tells these from integers
            sure = sure and told
            ways.append(_of(missing if told else missing - NUMBERS))
        for key, value in node.items():
            if key not in ("$comment", "type") and within & SPEAKS_OF.get(key, KINDS):
                found = self._of_keyword(key, value, beside, within)
                ways += found.ways
                sure = sure and found.all
        return Opposite([way for way in ways if way is not False], sure)

    def _of_keyword(self, key: str, value: Any, beside: list[Schema], within: set[str]) -> Opposite:
        if key == "$ref" and value not in self._inside:
            self._inside.append(value)
            found = self.find(self._definitions[value], beside)
            self._inside.pop()
            return found
        if key == "enum":
            return _unlisted(value, within)
        if key == "not":
            return Opposite([value], True)
        if key == "required":
            needed = {name for part in beside for name in part.get("required", ())}
            return Opposite(
                [{"type": "object", "properties": {name: False}} for name in value if name not in needed], True
            )
        if key == "properties":
            return self._of_properties(value, beside)
        if key in LIMITS:
            return Opposite([{"type": "number", LIMITS[key]: value}], True)
        if key[:3] in ("min", "max") and key[3:] in COUNTED:
            return _uncounted(key, value)
        if key in ("allOf", "anyOf"):
            each = [self.find(part, beside) for part in value]
            ways = [any_of(found.ways) for found in each]
            return Opposite(ways if key == "allOf" else [all_of(ways)], all(found.all for found in each))
        return Opposite([], value is True or value == {})

    def _of_properties(self, properties: dict[str, Node], beside: list[Schema]) -> Opposite:
        """One of them is there and does not fit."""
        ways: list[Node] = []
        sure = True
        for name, node in properties.items():
            known = [part for each in beside for part in self._known.conjuncts(property_of(each, name))]
            found = self.find(node, known)
            sure = sure and found.all
            if found.ways and self._known.kinds({"allOf": known}):
                way = any_of(found.ways)
                there: Schema = {"type": "object", "required": [name]}
                ways.append(there if way is True else there | {"properties": {name: way}})
        return Opposite(ways, sure)


def _uncounted(key: str, value: int) -> Opposite:
    name = key[3:]
    if key[:3] == "max":
        return Opposite([{"type": COUNTED[name], f"min{name}": value + 1}], True)
    return Opposite([{"type": COUNTED[name], f"max{name}": value - 1}] if value else [], True)


def _unlisted(values: list[Any], within: set[str]) -> Opposite:
    """How a value of these kinds can be that is none of `values`."""
    kinds = {kind_of(value) for value in values}
    numbers = sorted({value for value in values if kind_of(value) in NUMBERS})
    strings = [value for value in values if isinstance(value, str)]
    few = sum(map(len, strings)) <= LONGEST and all(len(each) <= LONG for each in strings) and len(numbers) <= MOST
    ways = [_of(within - kinds - (NUMBERS if numbers else set()))]
    if "boolean" in kinds & within and len(kinds_left := {True, False} - {v for v in values if isinstance(v, bool)}):
        ways.append({"enum": list(kinds_left)})
    if few and numbers and NUMBERS & within:
        for low, high in zip([None, *numbers], [*numbers, None], strict=True):
            limits = {"exclusiveMinimum": low, "exclusiveMaximum": high}
            kind = "number" if "fraction" in within else "integer"
            ways.append({"type": kind} | {key: limit for key, limit in limits.items() if limit is not None})
    if few and "string" in kinds & within:
        ways.append({"type": "string", "pattern": other_than(strings)})
    return Opposite(ways, few and not kinds & within & {"array", "object"})


def _of(kinds: set[str]) -> Node:
    """Any value of these kinds; fractions come with integers or not at all."""
    types = sorted(kinds - NUMBERS) + (["number"] if kinds >= NUMBERS else sorted(kinds & {"integer"}))
    return {"type": types} if types else False


def any_of(ways: list[Node]) -> Node:
    ways = [way for number, way in enumerate(ways) if way is not False and way not in ways[:number]]
    if True in ways or not ways:
        return True in ways
    return ways[0] if len(ways) == 1 else {"anyOf": ways}


def all_of(parts: list[Node]) -> Node:
    parts = [part for number, part in enumerate(parts) if part is not True and part not in parts[:number]]
    if False in parts or not parts:
        return False not in parts
    return parts[0] if len(parts) == 1 else {"allOf": parts}
