"""Where subschemas stand in a JSON Schema, drafts 4 to 2020-12, what its keywords are, and where a $ref leads.

Knows nothing of what the keywords mean.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]
# A schema that reader.py has read: True, False, or keywords and, under "$comment", the pointer that they come from.
Node = Any

MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
SINGLE = {
    *("not", "if", "then", "else", "additionalItems", "additionalProperties", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties"),
}
COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
OTHERS = {
    *("$ref", "$dynamicRef", "$recursiveRef", "items", "dependentRequired", "const", "enum", "type", "required"),
    *("pattern", "format", "uniqueItems", "minContains", "maxContains"),
}
KEYWORDS = (MAPS | LISTS | SINGLE | COUNTS | NUMBERS | OTHERS) - {"$defs", "definitions"}
IN_PLACE = {
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "$dynamicRef", "$recursiveRef"),
    *("dependentSchemas", "dependentRequired", "dependencies"),
}
# Words that say as much as a keyword, but not to JSON Schema.
MISTAKEN = {"min", "max", "minvalue", "maxvalue", "constant", "ref"}
FOLDED = {keyword.casefold() for keyword in KEYWORDS}


def parts(schema: Any, at: str = "") -> Iterator[tuple[str, Schema]]:
    """Every subschema that is an object with its pointer, definitions as well, the schema itself first."""
    level = [(at, schema)]
    while level:
        yield from ((place, node) for place, node in level if isinstance(node, dict))
        level = [child for place, node in level if isinstance(node, dict) for child in children(node, place)]


def children(node: Schema, at: str) -> Iterator[tuple[str, Any]]:
    """The subschemas in the keywords of `node`, with their pointers."""
    for key, value in node.items():
        place = f"{at}/{escape(key)}"
        if key in SINGLE or (key == "items" and not isinstance(value, list)):
            yield place, value
        elif key in MAPS and isinstance(value, dict):
            yield from ((f"{place}/{escape(name)}", part) for name, part in value.items())
        elif (key in LISTS or key == "items") and isinstance(value, list):
            yield from ((f"{place}/{number}", part) for number, part in enumerate(value))


def escape(name: str) -> str:
    """One step of a pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def is_near_miss(key: str) -> bool:
    """Whether a key that is no keyword looks as if it was meant to be one; a leading _ is how one is struck out."""
    folded = key.casefold().rstrip(": ").replace("_", "").replace("-", "")
    return (
        key not in ("id", "$id")
        and key[:1] != "_"
        and (folded in MISTAKEN or bool(get_close_matches(folded, FOLDED, 1, 0.91)))
    )


def moves(base: Any) -> bool:
    """Whether an $id is another base for what is below it; one that begins with # is only a name."""
    return isinstance(base, str) and base[:1] not in ("", "#")


class Refs:
    """Where each $ref of one schema leads."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        base = schema.get("$id", schema.get("id"))
        self._base = base.rstrip("#") if isinstance(base, str) else ""
        nested = [f"{at}/" for at, node in parts(schema) if at and any(map(moves, (node.get("$id"), node.get("id"))))]
        self._anchors = {
            name if name[0] == "#" else f"#{name}": at
            for at, node in parts(schema)
            for key in ("$anchor", "$dynamicAnchor", "$id", "id")
            if isinstance(name := node.get(key), str) and name[:2] not in ("", "#", "#/")
            if key not in ("$id", "id") or name[0] == "#"
            if not f"{at}/".startswith(tuple(nested))  # what is called so there is so for the refs there
        }

    def parts(self) -> Iterator[tuple[str, Schema]]:
        """Every subschema with its pointer, those as well that stand where only a $ref leads."""
        seen = set[str]()
        todo: list[tuple[str, Any]] = [("", self._schema)]
        while todo:
            at, node = todo.pop()
            for place, part in parts(node, at):
                if place not in seen:
                    seen.add(place)
                    yield place, part
                    if isinstance(ref := part.get("$ref"), str) and (found := self.find(ref)):
                        todo.append(found)
            todo = [each for each in todo if each[0] not in seen]

    def find(self, ref: str) -> tuple[str, Any] | None:
        """The pointer of what `ref` leads to, and that; None where it leads out of the schema, or to no schema."""
        if self._base and ref.partition("#")[0] == self._base:
            ref = ref[len(self._base) :] or "#"
        pointer = self._anchors.get(ref, unquote(ref[1:]) if ref[:1] == "#" else "-")
        found: Any = self._schema
        if pointer and pointer[0] != "/":
            return None
        try:
            for step in pointer.split("/")[1:]:
                name = step.replace("~1", "/").replace("~0", "~")
                found = found[int(name)] if isinstance(found, list) else found[name]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
        return (pointer, found) if isinstance(found, dict | bool) else None
