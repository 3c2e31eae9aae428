"""JSON Schemas of drafts 4 to 2020-12 read into one dialect: 2020-12, with what constrains an answer and no more.

What can be said in other words is said in them (keywords.py); what cannot is a fault: a keyword and its pointer. `not`,
`oneOf` and `if` are left to logic.py. Knows nothing of what enforces the result.
"""

from functools import cached_property
from typing import Any
from urllib.parse import quote

import jsonschema_rs

from models.schema.dialect import KEYWORDS, LISTS, MAPS, SINGLE, Node, Refs, Schema, escape, is_near_miss
from models.schema.keywords import RULES, is_plain

LATEST = "https://json-schema.org/draft/2020-12/schema"
WHOLE = "http://schema.invalid/whole"
# Keywords that came later than some drafts. They hold there as well.
LATER = {
    ("draft-04",): ("const", "contains", "propertyNames"),
    ("draft-04", "draft-06"): ("if", "then", "else"),
    ("draft-04", "draft-06", "draft-07"): (
        *("dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"),
        *("minContains", "maxContains"),
    ),
    ("draft-04", "draft-06", "draft-07", "2019-09"): ("prefixItems",),
}
# Each side by side, since what is additional depends on what is listed.
TOGETHER = (
    ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
    ("prefixItems", "items", "minItems", "maxItems"),
)


class Reader:
    """Reads one schema that its metaschema finds well-formed.

    `definitions` is the result by pointer, the whole being ""; a $ref in it is such a pointer. `faults`: what cannot
    be said. `narrowed`: pointers of schemas that are read more strictly than a validator may read them, so that what
    they rule out is not known from them.
    """

    def __init__(self, schema: Schema, refs: Refs) -> None:
        self.schema = schema
        self.refs = refs
        self.definitions: dict[str, Node] = {}
        self.faults: dict[tuple[str, str], None] = {}
        self.narrowed: set[str] = set()
        self.reading: set[str] = set()
        # What its own metaschema has not looked at.
        dialect = str(schema.get("$schema", LATEST))
        self._later = {key for name, keys in LATER.items() for key in keys if any(old in dialect for old in name)}
        self.define("", schema)

    def define(self, pointer: str, schema: Any) -> None:
        if pointer not in self.definitions:
            self.definitions[pointer] = True  # while it is read
            self.reading.add(pointer)
            self.definitions[pointer] = self.node(schema, pointer)
            self.reading.remove(pointer)

    def fault(self, keyword: str, at: str) -> None:
        self.faults[keyword, at] = None

    def narrow(self, at: str) -> None:
        """By the keyword at `at`."""
        self.narrowed |= {at, at.rpartition("/")[0]}

    def node(self, schema: Any, at: str) -> Node:
        """One subschema in the one dialect."""
        if isinstance(schema, bool):
            return schema
        if (values := self._listed(schema, at)) is not None:
            return {"$comment": at, "enum": values}
        made: Schema = {"$comment": at}
        extra: list[Node] = []
        for key, value in schema.items():
            place = f"{at}/{escape(key)}"
            if key in self._later and not jsonschema_rs.meta.is_valid({key: value}):
                self.fault(key, place)
            elif key in RULES:
                extra += RULES[key](self, key, schema, made, place) or ()
            elif key in MAPS:
                made[key] = {name: self.node(part, f"{place}/{escape(name)}") for name, part in value.items()}
            elif key in LISTS:
                made[key] = [self.node(part, f"{place}/{number}") for number, part in enumerate(value)]
            elif key in SINGLE:
                made[key] = self.node(value, place)
            elif key in ("type", "required"):
                made[key] = value
            elif (key == "x-check" and at) or is_near_miss(key):
                self.fault(key, place)
        if extra:
            made["allOf"] = made.get("allOf", []) + extra
        return _in_order(made)

    def _listed(self, schema: Schema, at: str) -> list[Any] | None:
        """The values that fit, where the schema lists some and says more of them; None where it does not."""
        values = _values(schema)
        more = schema.keys() & KEYWORDS - {"type"}
        if values is None or (len(more) == 1 and more <= {"enum", "const"}):
            return None
        whole = {"$schema": self.schema.get("$schema", LATEST), "$ref": f"{WHOLE}#{quote(at)}"}
        validator = jsonschema_rs.validator_for(whole, registry=self._registry, offline=True)
        fitting = [value for value in values if validator.is_valid(value)]
        if not is_plain(fitting):
            self.fault("enum", f"{at}/enum")
        return fitting

    @cached_property
    def _registry(self) -> jsonschema_rs.Registry:
        return jsonschema_rs.Registry([(WHOLE, self.schema)])


def _values(schema: Any) -> list[Any] | None:
    """The values that fit a schema at most, where it lists them."""
    if not isinstance(schema, dict):
        return None
    if "enum" in schema or "const" in schema:
        return list(schema["enum"]) if "enum" in schema else [schema["const"]]
    found = (_values(part) for part in schema.get("allOf", ()))
    return next((values for values in found if values is not None), None)


def _in_order(made: Schema) -> Schema:
    """The same with what belongs together side by side, where the first of it was."""
    ordered: Schema = {}
    for key in made:
        group = next((group for group in TOGETHER if key in group), (key,))
        ordered |= {name: made[name] for name in group if name in made and name not in ordered}
    return ordered
