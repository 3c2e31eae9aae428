"""A schema in the one dialect as text for llguidance, with bounds supplied where it has none of their kind.

Knows schemas as logic.py leaves them; nothing of what they were before.
"""

import json
from collections.abc import Iterable, Iterator

from models.schema.bounds import Limits
from models.schema.dialect import LISTS, MAPS, NUMBERS, SINGLE, Node, Schema
from models.schema.kinds import NUMBERS as NUMERIC
from models.schema.kinds import Kinds
from models.schema.patterns import bounded, ended, other_than

Bounds = dict[str, int | bool]
IN_PLACE = {"allOf", "anyOf", "$ref"}
OF_OBJECTS = {"properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"}
ANY = ("null boolean", "number", "string", "array", "object")
SPEAKS_OF = {
    **dict.fromkeys(("pattern", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("prefixItems", "items", "minItems", "maxItems"), "array"),
    **dict.fromkeys(OF_OBJECTS, "object"),
    **dict.fromkeys(NUMBERS, "number"),
}
STRUCTURED = OF_OBJECTS | {"prefixItems", "items"}
COSTLY = {"pattern", "minimum", "maximum"}
DEPTH = 8
LONG = 200  # characters of a name that is told from others


class Writer:
    """`text`: the definitions as one JSON; `supplied`: the bounds that they did not have, by keyword.

    `to_measure`: without patterns, for a validator that is to say which bounds a value exceeds.
    """

    def __init__(self, definitions: dict[str, Node], limits: Limits | None, to_measure: bool = False) -> None:
        self._definitions = definitions
        self._limits = limits
        self._to_measure = to_measure
        self._kinds = Kinds(definitions)
        self._composed = _composed(definitions)
        self._names: dict[str, str] = {}
        self._shared: dict[str, tuple[str, Node]] = {}
        self._any = False
        self.supplied: Bounds = {}
        self.text = self._write()

    def _write(self) -> str:
        root = self._node(self._definitions[""], False)
        written: dict[str, Node] = {}
        while len(written) < len(self._names):  # which grow meanwhile
            pointer = list(self._names)[len(written)]
            written[self._names[pointer]] = self._node(self._definitions[pointer], pointer in self._composed)
        if self._any and self._limits:
            for depth in range(self._limits.depth + 1):
                written |= self._any_at(depth, self._limits)
        written |= dict(self._shared.values())
        if isinstance(root, bool):
            root = {} if root else {"enum": []}
        return json.dumps(root | {"$defs": written} if written else root)

    def _node(self, node: Node, composed: bool) -> Node:
        """`composed`: another schema looks at the same value, which may have properties that this one does not know."""
        if isinstance(node, bool) or node.keys() <= {"$comment"}:
            return self._anything() if node is not False and not composed else node is not False
        if self._limits is not None and not composed and not node.keys() & (IN_PLACE | {"type", "enum"}):
            return {"anyOf": [self._typed(node, kind) for kind in ANY]}
        made: Schema = {}
        for key, value in node.items():
            if key == "$ref":
                made[key] = "#/$defs/" + self._names.setdefault(value, f"d{len(self._names)}")
            elif key in ("allOf", "anyOf"):
                shared = composed or _is_shared(node, key)
                made[key] = [self._node(_of_type(part, node), shared) for part in value]
            elif key in LISTS:
                made[key] = [self._node(part, False) for part in value]
            elif key in MAPS:
                loose = key == "patternProperties" and node.get("additionalProperties", True) is True
                parts = {ended(name) if loose else name: part for name, part in value.items()}
                made[key] = {name: self._node(part, False) for name, part in parts.items()}
            elif key in SINGLE or key == "items":
                made[key] = value is True or self._node(value, False)
            elif key != "$comment" and not (self._to_measure and key == "pattern"):
                made[key] = value
        if self._limits is not None and "enum" not in made:
            self._bound(node, made, composed, self._limits)
        return made if composed else self._share(made)

    def _share(self, made: Schema) -> Schema:
        """Strings and numbers of which llguidance makes large automata are written once."""
        if not made.keys() & COSTLY or made.keys() & (IN_PLACE | STRUCTURED):
            return made
        name, _ = self._shared.setdefault(json.dumps(made), (f"s{len(self._shared)}", made))
        return {"$ref": f"#/$defs/{name}"}

    def _typed(self, node: Schema, types: str) -> Node:
        """What a node that may be anything asks of these types."""
        said = {key: value for key, value in node.items() if SPEAKS_OF.get(key) in types.split()}
        return self._node({"type": types.split(), **said}, False) if said else self._anything(types)

    def _anything(self, types: str = "any") -> Node:
        """Any value, or any of some types."""
        if self._limits is None or not self._limits.closed:
            return True if types == "any" else {"type": types.split()}
        self._any = True
        self.supplied["depth"] = self._limits.depth
        return {"$ref": f"#/$defs/{types.replace(' ', '-')}{self._limits.depth}"}

    def _any_at(self, depth: int, limits: Limits) -> dict[str, Node]:
        """Any JSON with arrays and objects so deep in each other; and of each type."""
        ways: dict[str, Node] = {
            "null-boolean": {"type": ["null", "boolean"]},
            "number": self._node({"type": "number"}, False),
            "string": {"type": "string", "maxLength": limits.characters},
            "array": {"type": "array", "maxItems": 0},
            "object": {"type": "object", "maxProperties": 0},
        }
        if depth:
            inner = {"$ref": f"#/$defs/any{depth - 1}"}
            ways["array"] = {"type": "array", "items": inner, "maxItems": limits.items}
            ways["object"] = {"type": "object", "maxProperties": limits.properties, **self._named([], inner, limits)}
        any_of = [{"$ref": f"#/$defs/{name}{depth}"} for name in ways]
        return {f"{name}{depth}": way for name, way in (ways | {"any": {"anyOf": any_of}}).items()}

    def _bound(self, node: Schema, made: Schema, composed: bool, limits: Limits) -> None:
        """Supply what each type of the node lacks."""
        mixed = bool(node.keys() & IN_PLACE)
        types = made.get("type", [])
        types = [types] if isinstance(types, str) else types
        if "maxLength" not in made and ("string" in types or "pattern" in made):
            # llguidance may fail at a pattern and a length together.
            short = bounded(made["pattern"], limits.characters) if "pattern" in made else None
            if short is None or short != made["pattern"]:
                made["maxLength" if short is None else "pattern"] = limits.characters if short is None else short
                self.supplied["maxLength"] = limits.characters
        if "array" in types and made.get("items") is not False:
            if made.get("items", True) is True and not composed and not mixed:
                made["items"] = self._anything()
            if "maxItems" not in made:
                made["maxItems"] = self.supplied["maxItems"] = limits.items
        if "number" in types or "integer" in types:
            self._bound_number(made, "number" in types, limits)
        if not composed and limits.closed and mixed:
            self._bound_together(node, made, limits)
        elif not composed and limits.closed and "object" in types:
            self._close(made, limits)

    def _bound_number(self, made: Schema, broken: bool, limits: Limits) -> None:
        for key, bound in (("minimum", -1), ("maximum", 1)):
            if limits.whole is not None and key not in made and f"exclusive{key.capitalize()}" not in made:
                made[key] = bound * limits.whole
                self.supplied["maximum"] = limits.whole
        if broken and limits.decimals is not None and "multipleOf" not in made:
            made["multipleOf"] = float(f"1e-{limits.decimals}")
            self.supplied["decimals"] = limits.decimals

    def _close(self, made: Schema, limits: Limits) -> None:
        """No properties but those that are listed; where others are allowed, short names and, if possible, not many."""
        listed, needed = made.get("properties", {}), made.get("required", [])
        enough = set(needed) <= listed.keys() and made.get("minProperties", 0) <= len(listed)
        if listed and enough and not made.keys() & {"additionalProperties", "patternProperties"}:
            made["additionalProperties"] = self.supplied["additionalProperties"] = False
        other = made.get("additionalProperties", True)
        if other is not False and not made.get("patternProperties") and max(map(len, listed), default=0) <= LONG:
            made |= self._named(listed, self._anything() if other is True else other, limits)
            self.supplied["propertyNames"] = limits.name
        if made.get("patternProperties") and "maxProperties" not in made and listed.keys() <= set(needed):
            made["maxProperties"] = self.supplied["maxProperties"] = max(limits.properties, len(needed) + 1)

    def _named(self, listed: Iterable[str], node: Node, limits: Limits) -> Schema:
        """Properties with names that are not too long, besides those that are listed."""
        if self._to_measure:
            longest = max([limits.name, *map(len, listed)])
            return {"additionalProperties": node, "propertyNames": {"maxLength": longest}}
        return {"patternProperties": {other_than(listed, limits.name): node}, "additionalProperties": False}

    def _bound_together(self, node: Schema, made: Schema, limits: Limits) -> None:
        """Where several schemas look at the same value, it has no properties but those that one of them lists."""
        if not any(_is_shared(node, key) for key in IN_PLACE & node.keys()):
            return
        more: Schema = {}
        kinds = self._kinds.kinds(node)
        if "object" in kinds and (names := self._known(node, DEPTH)):
            more |= {"properties": {name: True for name in names}, "additionalProperties": False}
            self.supplied["additionalProperties"] = False
        if kinds & NUMERIC and "type" not in made:
            self._bound_number(more, "fraction" in kinds, limits)
        if "array" in kinds and "type" not in made:
            more["maxItems"] = self.supplied["maxItems"] = limits.items
        if "string" in kinds and not any("pattern" in part for part in self._kinds.conjuncts(node)):
            more["maxLength"] = self.supplied["maxLength"] = limits.characters
        if more:
            made["allOf"] = [*made.get("allOf", ()), more]

    def _known(self, node: Node, depth: int) -> list[str] | None:
        """All names that these schemas speak of; None where they speak of others as well."""
        if isinstance(node, bool):
            return []
        if depth == 0 or node.keys() & {"additionalProperties", "patternProperties"}:
            return None
        names = [*node.get("properties", {}), *node.get("required", ())]
        inner = [self._definitions[node["$ref"]]] if "$ref" in node else []
        for part in [*inner, *node.get("allOf", ()), *node.get("anyOf", ())]:
            if (more := self._known(part, depth - 1)) is None:
                return None
            names += more
        return list(dict.fromkeys(names))


def _of_type(part: Node, node: Schema) -> Node:
    """`part` of `node` as what it is there."""
    if "type" not in node or not isinstance(part, dict) or part.keys() & {"type", "enum", "$ref"}:
        return part
    return {"type": node["type"]} | part


def _is_shared(node: Schema, key: str) -> bool:
    """Whether more than one schema says something of one value, or of its properties."""
    if key == "allOf":
        return len(node) > 2 or len(node[key]) > 1
    return bool(node.keys() & (IN_PLACE | OF_OBJECTS) - {key})


def _composed(definitions: dict[str, Node]) -> set[str]:
    """The definitions that somewhere look at a value together with another schema."""
    todo, seen = [("", False)], set[tuple[str, bool]]()
    while todo:
        if (use := todo.pop()) not in seen:
            seen.add(use)
            todo += _uses(definitions[use[0]], use[1])
    return {pointer for pointer, composed in seen if composed}


def _uses(node: Node, composed: bool) -> Iterator[tuple[str, bool]]:
    """The definitions that a node leads to, and whether they are composed there."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key == "$ref":
            yield value, composed or _is_shared(node, key)
        elif key in ("allOf", "anyOf"):
            for part in value:
                yield from _uses(part, composed or _is_shared(node, key))
        elif key in LISTS or key in MAPS:
            for part in value.values() if key in MAPS else value:
                yield from _uses(part, False)
        elif key == "items" or key in SINGLE:
            yield from _uses(value, False)
