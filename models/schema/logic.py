"""`not`, `oneOf` and `if` in terms of `anyOf` and `allOf`.

Where the opposite of a schema can only be said in part, that part is taken: what it allows is right, though it is not
all. Knows schemas as reader.py leaves them, nothing of what enforces them.
"""

from collections.abc import Callable, Collection
from typing import Any

from models.schema.dialect import LISTS, MAPS, SINGLE, Node, Schema
from models.schema.kinds import Kinds
from models.schema.opposites import Opposites, all_of, any_of

MOST = 64  # ways that one branch of a oneOf may split into
# Branches are held against each other: 500 take a second, 3,000 a minute, and the interpreter stands still meanwhile.
MOST_PAIRS = 250_000  # in one schema


class Logic:
    """Rewrites definitions. Keywords and pointers of what cannot be said are `faults`; if only in part, `narrowed`."""

    def __init__(self, definitions: dict[str, Node], narrowed: Collection[str] = ()) -> None:
        self._known = Kinds(definitions, narrowed)
        self._opposites = Opposites(definitions, narrowed)
        self.faults: dict[tuple[str, str], None] = {}
        self.narrowed: dict[tuple[str, str], None] = {}
        self._pairs = 0
        self.definitions = {pointer: self._lower(node) for pointer, node in definitions.items()}

    def _lower(self, node: Node) -> Node:
        if isinstance(node, bool):
            return node
        made: Schema = {}
        extra: list[Node] = []
        for key, value in node.items():
            if key in REWRITTEN:
                extra += [] if (part := REWRITTEN[key](self, node)) is True else [part]
            elif key in MAPS:
                made[key] = {name: self._lower(part) for name, part in value.items()}
            elif key in LISTS:
                made[key] = [self._lower(part) for part in value]
            elif key == "items" or key in SINGLE:
                made[key] = self._lower(value)
            else:
                made[key] = value
        if len(extra) == 1 and isinstance(extra[0], dict) and extra[0].keys() == {"anyOf"} and "anyOf" not in made:
            return made | extra[0]
        return made | {"allOf": made.get("allOf", []) + extra} if extra else made

    def _one_of(self, node: Schema) -> Node:
        """Each branch with the opposite of the others."""
        self._pairs += len(node["oneOf"]) ** 2
        if self._pairs > MOST_PAIRS:
            self.faults["oneOf", f"{node['$comment']}/oneOf"] = None
            return True
        ways = []
        for number, branch in enumerate(node["oneOf"]):
            others = [other for at, other in enumerate(node["oneOf"]) if at != number]
            against = all_of([self._against("oneOf", other, node, branch) for other in others])
            ways.append(all_of([self._lower(branch), against]))
            if _split(against) > MOST:
                self.faults["oneOf", f"{node['$comment']}/oneOf"] = None
        return any_of(ways)

    def _not(self, node: Schema) -> Node:
        return self._against("not", node["not"], node, True)

    def _if(self, node: Schema) -> Node:
        """What `if`, `then` and `else` say together."""
        condition, then, other = node["if"], node.get("then", True), node.get("else", True)
        if then is True and other is True:
            return True
        without = self._against("if", condition, node, True)
        return any_of([all_of([self._lower(condition), self._lower(then)]), all_of([without, self._lower(other)])])

    def _against(self, keyword: str, part: Node, node: Schema, branch: Node) -> Node:
        """What `part` does not allow of what `node`, without what is rewritten here, and `branch` do."""
        rest = {key: value for key, value in node.items() if key not in REWRITTEN}
        found = self._opposites.find(part, self._known.conjuncts(rest) + self._known.conjuncts(branch))
        if not found.all and True not in found.ways:
            (self.narrowed if found.ways else self.faults)[keyword, f"{node['$comment']}/{keyword}"] = None
        return self._lower(any_of(found.ways))


def _split(node: Node) -> int:
    """How many ways there are when all choices in conjunctions are made."""
    if isinstance(node, bool):
        return 1
    count = sum(map(_split, node["anyOf"])) if "anyOf" in node else 1
    for part in node.get("allOf", ()):
        count *= _split(part)
    return count


REWRITTEN: dict[str, Callable[[Logic, Schema], Any]] = {
    "oneOf": Logic._one_of,
    "not": Logic._not,
    "if": Logic._if,
    "then": lambda logic, node: True,
    "else": lambda logic, node: True,
}
