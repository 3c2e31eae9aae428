"""Which strings of an answer are copy-only: those that a part of the schema with `"x-verbatim": true` applies to.

The schema is walked along the way that an answer takes, so that it may be recursive. Knows nothing of documents.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs

from models.failure import Failure
from models.schema.dialect import Refs, Schema, children, escape

KEYWORD = "x-verbatim"
Site = frozenset[str]  # pointers to all parts of the schema that may apply to one value
# Keywords whose schemas apply to the same value, and those that say nothing of what a value may be.
AT_ONCE = {"allOf", "anyOf", "oneOf", "then", "else", "dependentSchemas", "dependencies"}
UNSAID = {"not", "if", "contains", "propertyNames"}
OTHER_PROPERTIES = ("additionalProperties", "unevaluatedProperties")
OTHER_ITEMS = ("items", "additionalItems", "unevaluatedItems")
# With one of these a string that could go on may not be able to end.
NARROWING = {"pattern", "format", "minLength", "enum", "const", "not", "if"}
KEPT = 1024  # steps


def fields(schema: Schema) -> "Fields | None":
    """The copy-only strings of a schema that was found well-formed; None where it has none.

    Failure `schema_invalid` where the keyword's value is not true or false, or what it stands at can be no string;
    `schema_unsupported` where it stands in what says nothing of a value.
    """
    found = Fields(schema)
    for pointer, node in found.nodes.items():
        wanted = node.get(KEYWORD, False)
        if not isinstance(wanted, bool):
            raise Failure("schema_invalid", f"{KEYWORD} must be true or false: #{pointer}/{KEYWORD}")
        if wanted and not found.may_be_text(pointer):
            raise Failure("schema_invalid", f"{KEYWORD} stands at what cannot be a string: #{pointer}")
        if wanted and pointer not in found.said:
            raise Failure("schema_unsupported", f"{KEYWORD} cannot be enforced here: #{pointer}")
    return found if any(node.get(KEYWORD) for node in found.nodes.values()) else None


class Fields:
    """Steps from a value's site to those of the values in it. All alternatives count: what one of them wants copied
    is copied, whichever the answer is in.

    `nodes`: all parts of the schema by pointer; `said`: those that may apply to a value, and definitions.
    """

    def __init__(self, schema: Schema) -> None:
        self._refs = Refs(schema)
        self.nodes: dict[str, Schema] = {}
        self.said: set[str] = set()
        self._gather(schema)
        self.member: Callable[[Site, str], Site] = lru_cache(KEPT)(self._member)
        self.item: Callable[[Site, int], Site] = lru_cache(KEPT)(self._item)
        self.copied: Callable[[Site], str | None] = lru_cache(KEPT)(self._copied)
        self.root = self._closed([""])

    def at(self, pointer: str) -> Schema:
        """The part of the schema that a site names."""
        return self.nodes[pointer]

    def _gather(self, schema: Schema) -> None:
        todo: list[tuple[str, Any, bool]] = [("", schema, True)]
        while todo:
            at, node, said = todo.pop()
            if not isinstance(node, dict) or (at in self.nodes and (at in self.said or not said)):
                continue
            self.nodes[at] = node
            self.said |= {at} if said else set()
            for place, child in children(node, at):
                keyword = place.removeprefix(f"{at}/").split("/")[0]
                todo.append((place, child, said and keyword not in UNSAID))
            todo += [(*target, said) for target in self._target(node)]

    def _target(self, node: Schema) -> list[tuple[str, Any]]:
        """What the node's $ref leads to."""
        found = self._refs.find(node["$ref"]) if isinstance(node.get("$ref"), str) else None
        return [] if found is None else [found]

    def _at_once(self, pointer: str) -> Iterator[str]:
        """Pointers to what applies to the same value."""
        node = self.at(pointer)
        yield from (place for place, _ in self._target(node))
        yield from (place for place, _ in children({key: node[key] for key in node.keys() & AT_ONCE}, pointer))

    def _closed(self, pointers: list[str]) -> Site:
        """The site of a value to which these apply, as far as they are objects."""
        found = set[str]()
        while pointers:
            pointer = pointers.pop()
            if pointer in self.nodes and pointer not in found:
                found.add(pointer)
                pointers += self._at_once(pointer)
        return frozenset(found)

    def _member(self, site: Site, name: str) -> Site:
        """The site of the property `name`."""
        found = list[str]()
        for pointer in site:
            node = self.at(pointer)
            own = [f"properties/{escape(name)}"] if name in node.get("properties", ()) else []
            patterns = (pattern for pattern in node.get("patternProperties", ()) if _pattern(pattern).is_valid(name))
            own += [f"patternProperties/{escape(pattern)}" for pattern in patterns]
            found += [f"{pointer}/{step}" for step in own or OTHER_PROPERTIES]
        return self._closed(found)

    def _item(self, site: Site, index: int) -> Site:
        """The site of the item `index`."""
        found = list[str]()
        for pointer in site:
            node = self.at(pointer)
            listed = next((key for key in ("prefixItems", "items") if isinstance(node.get(key), list)), None)
            own = [f"{listed}/{index}"] if listed and index < len(node[listed]) else OTHER_ITEMS
            found += [f"{pointer}/{step}" for step in own]
        return self._closed(found)

    def _copied(self, site: Site) -> str | None:
        """Where the schema says that a string here is copy-only; None where it does not."""
        return min((pointer for pointer in site if self.at(pointer).get(KEYWORD)), default=None)

    def narrowed(self, site: Site) -> bool:
        """Whether the schema wants more of a string here than that it is one and not too long."""
        return any(self.at(pointer).keys() & NARROWING for pointer in site)

    def may_be_text(self, pointer: str, within: Site = frozenset()) -> bool:
        """Whether a string may fit this part of the schema, as far as types and listed values tell."""
        node = self.nodes.get(pointer)
        if node is None or pointer in within:
            return True
        within |= {pointer}
        kinds = node.get("type", "string")
        values = [node["const"]] if "const" in node else node.get("enum", [""])
        if "string" not in ([kinds] if isinstance(kinds, str) else kinds):
            return False
        if not any(isinstance(value, str) for value in values):
            return False
        both = [place for place, _ in self._target(node)]
        both += [place for place, _ in children({"allOf": node.get("allOf", [])}, pointer)]
        ways = [children({key: node[key]}, pointer) for key in ("anyOf", "oneOf") if key in node]
        return all(self.may_be_text(place, within) for place in both) and all(
            any(self.may_be_text(place, within) for place, _ in way) for way in ways
        )


@lru_cache(256)
def _pattern(pattern: str) -> jsonschema_rs.Validator:
    """In linear time, whatever the pattern."""
    return jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=jsonschema_rs.RegexOptions())
