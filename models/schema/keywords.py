"""How a keyword is read that is not taken as it stands: put in other words, or found to be a fault.

A rule gets the reader, the keyword, the schema it stands in, what has been made of that so far, and the keyword's
pointer. It writes into what has been made, and returns what must hold besides. Knows nothing of what enforces it.
"""

import re
from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING, Any

from models.schema.dialect import COUNTS, IN_PLACE, Node, Schema, escape
from models.schema.formats import FREE, INTEGERS, PATTERNS
from models.schema.patterns import portable

if TYPE_CHECKING:
    from models.schema.reader import Reader

SAFE = 2**53 - 1  # beyond it one integer may be taken for another
MOST = 10**6  # characters, items or properties that a schema may ask for at least
UNWRITTEN = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")  # what has no plain form in JSON


def is_plain(value: Any) -> bool:
    """Whether everybody reads the same in the JSON of a value."""
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, str):
        return not UNWRITTEN.search(value)
    return value is None or (isfinite(value) and (isinstance(value, float) or abs(value) <= SAFE))


def _nothing(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    """Read elsewhere, or says nothing by itself."""


def _beyond(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    reader.fault(key, at)


def _ref(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    found = reader.refs.find(schema[key])
    if found is None:
        reader.fault(key, at)
    else:
        made[key] = found[0]
        reader.define(*found)
        if len(schema) > 1:  # what stands beside it says nothing in older drafts
            reader.narrow(at)


def _enum(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    made["enum"] = schema["enum"] if "enum" in schema else [schema["const"]]
    if not is_plain(made["enum"]):
        reader.fault(key, at)


def _limit(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    """As far as it lies within what can be told apart. In draft 4 `exclusiveMinimum` says something of `minimum`."""
    value, exclusive = schema[key], f"exclusive{key.capitalize()}"
    upper = key.endswith("aximum")
    if isinstance(value, bool):
        return
    name = exclusive if schema.get(exclusive) is True else key
    if abs(value) <= SAFE:
        made[name] = value
    elif isfinite(value) and (value > 0) == upper:
        made[name] = SAFE if upper else -SAFE
        reader.narrow(at)
    else:
        reader.fault(key, at)


def _divisor(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    made[key] = schema[key]
    if not 1 / SAFE <= schema[key] <= SAFE:
        reader.fault(key, at)


def _count(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    made[key] = min(int(schema[key]), MOST, made.get(key, MOST))
    if schema[key] > MOST:
        reader.narrow(at)
        if key.startswith("min"):
            reader.fault(key, at)


def _pattern(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> list[Node]:
    if (pattern := portable(schema[key])) is None:
        reader.fault(key, at)
    return _put_pattern(pattern, made, at)


def _format(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> list[Node]:
    """The pattern of a format of strings, the range of one of integers; of other types a format says nothing."""
    name, types = schema[key], schema.get("type", "string")
    reader.narrow(at)  # to some it is a note
    if "string" in types and name in PATTERNS:
        pattern, longest = PATTERNS[name]
        if longest is not None:
            made["maxLength"] = min(longest, made.get("maxLength", longest))
        return _put_pattern(pattern, made, at)
    if "string" in types and name not in FREE:
        reader.fault(key, at)
    elif "string" not in types and name in INTEGERS:
        low, high = INTEGERS[name]
        return [{"$comment": at, "minimum": low, "maximum": high}]
    return []


def _put_pattern(pattern: str | None, made: Schema, at: str) -> list[Node]:
    """A node has one pattern; another must hold besides."""
    if "pattern" in made:
        return [{"$comment": at, "pattern": pattern}]
    made["pattern"] = pattern
    return []


def _pattern_properties(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    made[key] = {}
    for name, part in schema[key].items():
        place = f"{at}/{escape(name)}"
        if (pattern := portable(name)) is None:
            reader.fault(key, place)
        node = reader.node(part, place)
        # Two patterns may come to the same.
        made[key][pattern] = {"$comment": place, "allOf": [made[key][pattern], node]} if pattern in made[key] else node


def _property_names(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> list[Node]:
    """Names that are listed, or told by one pattern or by their length."""
    node = reader.node(schema[key], at)
    while isinstance(node, dict) and node.keys() == {"$comment", "$ref"}:
        if node["$ref"] in reader.reading:
            reader.fault(key, at)
            return []
        node = reader.definitions[node["$ref"]]
    if isinstance(node, bool):
        return [] if node else [{"$comment": at, "maxProperties": 0}]
    said = {name: value for name, value in node.items() if name not in ("$comment", "type")}
    closed: Schema = {"$comment": at, "additionalProperties": False}
    if "string" not in node.get("type", "string"):
        return [closed]
    if said.keys() == {"enum"}:
        return [{"properties": {name: True for name in said["enum"] if isinstance(name, str)}, **closed}]
    if said.keys() == {"pattern"}:
        return [{"patternProperties": {said["pattern"]: True}, **closed}]
    if said.keys() <= {"minLength", "maxLength"}:
        if said.get("minLength", 0) > said.get("maxLength", MOST):
            return [closed]
        lengths = f"{{{said.get('minLength', 0)},{said.get('maxLength', '')}}}"
        return [{"patternProperties": {rf"^[\s\S]{lengths}$": True}, **closed}]
    reader.fault(key, at)
    return []


def _items(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    """A list of schemas is what 2020-12 calls `prefixItems`, and what comes after it `items`."""
    if not isinstance(schema[key], list):
        made[key] = reader.node(schema[key], at)
        return
    made["prefixItems"] = [reader.node(part, f"{at}/{number}") for number, part in enumerate(schema[key])]
    if "additionalItems" in schema:
        made["items"] = reader.node(schema["additionalItems"], at.removesuffix(key) + "additionalItems")


def _contains(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    if schema.get("minContains") != 0 or "maxContains" in schema:
        reader.fault(key, at)


def _unique(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    if schema[key] and schema.get("maxItems", 2) > 1:
        reader.fault(key, at)


def _unevaluated(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> None:
    """Where no other schema looks at the same value, what is not evaluated is what is additional."""
    name, taken = "additionalProperties", "additionalProperties" in schema
    if key == "unevaluatedItems":
        listed = isinstance(schema.get("items"), list)
        name, taken = "items", "additionalItems" in schema if listed else "items" in schema
    if schema.keys() & (IN_PLACE | {"contains"}):
        reader.fault(key, at)
    elif not taken:
        made[name] = reader.node(schema[key], at)


def _dependencies(reader: "Reader", key: str, schema: Schema, made: Schema, at: str) -> list[Node]:
    """Either the property is absent, or what depends on it holds."""
    extra = []
    for name, needed in schema[key].items():
        place = f"{at}/{escape(name)}"
        then = {"$comment": place, "required": needed} if isinstance(needed, list) else reader.node(needed, place)
        without = {"$comment": place, "properties": {name: False}}
        if then is not True and needed != []:
            extra.append({"$comment": place, "anyOf": [without, then]})
    return extra


Rule = Callable[["Reader", str, Schema, Schema, str], list[Node] | None]
RULES: dict[str, Rule] = {
    "$ref": _ref,
    "const": _enum,
    "enum": _enum,
    "multipleOf": _divisor,
    "pattern": _pattern,
    "format": _format,
    "patternProperties": _pattern_properties,
    "propertyNames": _property_names,
    "items": _items,
    "contains": _contains,
    "uniqueItems": _unique,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _limit),
    **dict.fromkeys(COUNTS, _count),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), _unevaluated),
    **dict.fromkeys(("dependencies", "dependentRequired", "dependentSchemas"), _dependencies),
    **dict.fromkeys(("$dynamicRef", "$recursiveRef", "x-guidance"), _beyond),
    **dict.fromkeys(("$defs", "definitions", "additionalItems", "minContains", "maxContains"), _nothing),
}
