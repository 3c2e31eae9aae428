"""Cross-field rules as the caller writes them: "x-check" at the root of a schema, read and refused up front.

Pointers are RFC 6901's, with "*" for every element of an array. What comes of a rule stands in models/verdict.py.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, reduce
from typing import Any, Literal
from urllib.parse import unquote

from models.failure import Failure
from models.reading import number

Schema = dict[str, Any]
Path = tuple[str, ...]  # a pointer's parts

MAX_RULES = 64
MAX_POINTERS = 16  # in a list of a rule
MAX_TEXT = 512  # characters of a pointer or a name
DIGITS = {"iban", "vat", "luhn"}  # judged pointer by pointer


@dataclass(frozen=True)
class Rule:
    """One rule, valid for its schema."""

    kind: str
    name: str
    of: tuple[Path, ...]
    minus: tuple[Path, ...]
    equals: Path | None
    tolerance: Decimal
    on_fail: Literal["report", "error"]

    @cached_property
    def lines(self) -> Path:
        """The rule is judged anew for each place here: in a sum that is `equals`, else the path with most stars."""
        paths = () if self.kind == "sum" else self.of
        return max((*paths, self.equals or ()), key=lambda path: path.count("*"))


@dataclass(frozen=True)
class Kind:
    """`least` pointers in `of`, to values of these JSON types; `keys` beside the common ones."""

    least: int
    types: frozenset[str]
    keys: frozenset[str]


_AMOUNT, _TEXT = frozenset({"number", "integer", "string"}), frozenset({"string"})
KINDS = {
    "sum": Kind(1, _AMOUNT, frozenset({"minus", "equals", "tolerance"})),
    "product": Kind(2, _AMOUNT, frozenset({"equals", "tolerance"})),
    "equal": Kind(2, _AMOUNT, frozenset({"tolerance"})),
    "order": Kind(2, _TEXT, frozenset()),
    "iban": Kind(1, _TEXT, frozenset()),
    "vat": Kind(1, _TEXT, frozenset()),
    "luhn": Kind(1, _AMOUNT, frozenset()),
}


def read(schema: Schema) -> tuple[Rule, ...]:
    """The rules of "x-check"; Failure `schema_invalid` begins with the pointer of what is wrong.

    A rule is an object of `rule` (below), `of` (pointers), and where wanted `name` (else the rule's own pointer) and
    `on_fail`: "report" (default) or "error". Refused are also pointers to what no answer that fits the schema can have,
    as far as that is plain to see, and an "x-check" below the root.

    - sum: all of `of`, less all of `minus`, are `equals`. product: `of` multiplied are `equals`. equal: `of` are one.
      They may be `tolerance` apart; by default 0, as sums of printed amounts are exact, and how a product was rounded
      only the caller knows. A text counts where it has one reading ("1,234" and "12%" have two): ask for JSON numbers.
    - order: `of` are days, none before its predecessor, whatever they may mean; ask for ISO dates.
    - iban, vat (of the EU, its country in front), luhn: the check digits of each of `of`.

    Over "*" a rule is judged line by line: a sum over the stars of `equals`, where its other stars are added up.
    """
    for path in _strays(schema):
        _demand(False, pointer(path), "at the root of the schema")
    given = schema.get("x-check", [])
    _demand(isinstance(given, list) and len(given) <= MAX_RULES, "/x-check", f"a list of at most {MAX_RULES} rules")
    return tuple(_rule(each, f"/x-check/{at}", schema) for at, each in enumerate(given))


def _demand(holds: Any, at: str, what: str) -> None:
    if not holds:
        raise Failure("schema_invalid", f"{at}: it must be {what}")


def _rule(given: Any, at: str, schema: Schema) -> Rule:
    _demand(isinstance(given, dict), at, "an object")
    word, name, on_fail = given.get("rule"), given.get("name", at), given.get("on_fail", "report")
    _demand(isinstance(word, str) and word in KINDS, f"{at}/rule", f"one of {', '.join(KINDS)}")
    kind = KINDS[word]
    for key in sorted(given.keys() - {"rule", "name", "of", "on_fail"} - kind.keys):
        _demand(False, at + pointer([key[:MAX_TEXT]]), f"left out: {word} does not take it")
    _demand(isinstance(name, str) and 0 < len(name) <= MAX_TEXT, f"{at}/name", f"a text of 1 to {MAX_TEXT} characters")
    _demand(on_fail in ("report", "error"), f"{at}/on_fail", '"report" or "error"')
    of = _paths(given.get("of"), f"{at}/of", kind.least)
    minus = _paths(given.get("minus", []), f"{at}/minus", 0)
    equals = {f"{at}/equals": _path(given.get("equals"), f"{at}/equals")} if "equals" in kind.keys else {}
    tolerance = _tolerance(given.get("tolerance", 0), f"{at}/tolerance")
    last = next(iter(equals.values()), None)
    rule = Rule(word, name, tuple(of.values()), tuple(minus.values()), last, tolerance, on_fail)
    for place, path in (of | minus | equals).items():
        _demand(_in_step(rule, path), place, "over the same arrays as the rule's other pointers")
        types = " or ".join(sorted(kind.types))
        _demand(_may_have(schema, path, kind.types), place, f"a pointer to what the schema allows to be {types}")
    return rule


def _tolerance(given: Any, at: str) -> Decimal:
    exact = None if isinstance(given, str) else number(given)
    if exact is None or exact < 0:
        raise Failure("schema_invalid", f"{at}: it must be a number, 0 or more")
    return exact


def _paths(given: Any, at: str, least: int) -> dict[str, Path]:
    """Paths, by where they are given."""
    fits = isinstance(given, list) and least <= len(given) <= MAX_POINTERS
    _demand(fits, at, f"a list of {least} to {MAX_POINTERS} pointers")
    return {f"{at}/{place}": _path(each, f"{at}/{place}") for place, each in enumerate(given)}


def _path(given: Any, at: str) -> Path:
    fits = isinstance(given, str) and len(given) <= MAX_TEXT and re.fullmatch(r"(?:/(?:[^~/]|~[01])*)+", given)
    _demand(fits, at, f"a JSON pointer of at most {MAX_TEXT} characters")
    return _parts(given)[1:]


def _in_step(rule: Rule, path: Path) -> bool:
    """Whether the path has one place a line; in a sum it may have many. Check digits are judged path by path."""
    end = shared(path, rule.lines)
    return rule.kind in DIGITS or "*" not in path[end:] or (rule.kind == "sum" and "*" not in rule.lines[end:])


def _parts(pointer: str) -> Path:
    """What stands between the slashes, the first part in front of them."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/"))


def pointer(path: Iterable[str]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def shared(path: Path, lines: Path) -> int:
    """How many parts they begin with in common."""
    pairs = enumerate(zip(path, lines, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(path), len(lines)))


def step(value: Any, key: str) -> Any:
    """What lies one part of a pointer further; None for what is missing."""
    if isinstance(value, list) and re.fullmatch("0|[1-9][0-9]*", key) and int(key) < len(value):
        return value[int(key)]
    return value.get(key) if isinstance(value, dict) else None


def _strays(schema: Schema) -> Iterator[Path]:
    """Where "x-check" is a keyword below the root; as a property's name, or in data, it is none."""
    named = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
    nodes: list[tuple[Path, Any, bool]] = [((), schema, False)]
    while nodes:
        path, node, names = nodes.pop()
        if isinstance(node, list):
            nodes += [((*path, str(at)), part, False) for at, part in enumerate(node)]
        for key, part in node.items() if isinstance(node, dict) else ():
            if names or key not in ("x-check", "const", "enum", "default", "examples"):
                nodes.append(((*path, key), part, key in named and not names))
            elif key == "x-check" and path:
                yield (*path, key)


def _may_have(schema: Schema, path: Path, types: frozenset[str]) -> bool:
    """Whether an answer may have a value of these types at the path; True where that is not plain to see."""
    node: Any = schema
    for key in (*path, None):
        node = _followed(node, schema)
        if not isinstance(node, dict):
            break
        wanted = types if key is None else _holders(key)
        given = node.get("type")
        if isinstance(given, str | list) and not wanted & set(map(str, [given] if isinstance(given, str) else given)):
            return False
        node = _inside(node, key)
    return node is not False


def _followed(node: Any, schema: Schema) -> Any:
    """What the node's $ref leads to; True where it leads out of the schema, or too far."""
    for _ in range(MAX_RULES):
        if not isinstance(node, dict) or not isinstance(node.get("$ref"), str):
            return node
        start, *parts = _parts(unquote(node["$ref"]))
        node = reduce(step, parts, schema) if start == "#" else True
    return True


def _holders(key: str) -> frozenset[str]:
    return frozenset({"array"} if key == "*" else {"object", "array"} if key.isdigit() else {"object"})


def _inside(node: Schema, key: str | None) -> Any:
    """The schema of what lies there; True where it is not plain to see which that is."""
    items, names = node.get("items", True), node.get("properties")
    if key is None or key.isdigit() or "patternProperties" in node:
        return True
    if key == "*":
        return True if "prefixItems" in node or isinstance(items, list) else items
    return names[key] if isinstance(names, dict) and key in names else node.get("additionalProperties", True)
