"""What a caller's schema comes to: refused by keyword and pointer, or put as llguidance enforces it.

Refuses, before anything compiles it, what would take time or memory without bound; the limits are measured with the
pinned llguidance and jsonschema_rs. Knows nothing of tokens.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import jsonschema_rs

from models.failure import Failure
from models.schema.blame import Blame
from models.schema.bounds import LARGEST, limits_for, nodes_of, places
from models.schema.dialect import KEYWORDS, Node, Refs, Schema, children, escape, is_near_miss, moves, parts
from models.schema.logic import Logic
from models.schema.reader import LATEST, Reader
from models.schema.writer import Bounds, Writer

Fault = tuple[str, str]  # a keyword and its pointer
DIALECTS = {
    *(f"https://json-schema.org/draft/{name}/schema" for name in ("2020-12", "2019-09")),
    *(f"http://json-schema.org/draft-0{number}/schema" for number in (4, 6, 7)),
}

MAX_BYTES = 65_536  # without what is only for readers
MAX_ALL = 262_144
# llguidance intersects patterns in 2^n: 16 take 0.1 s, 24 take 45 s and 4 GB. Those of property names in n^2.
MAX_PATTERNS = 16
# Its automaton for multipleOf has a state for every remainder: 10^5 take 0.5 s, 10^7 take 60 s and 2 GB.
MAX_DIVISOR = 100_000
# A validator follows every $ref anew, so 28 doublings take 3 s, and the interpreter stands still meanwhile.
MAX_VISITS = 10_000
TOLD = ("title", "description", "$comment")
NAMED = 3  # faults in one message
DEEP = "it is nested too deeply"
LONGEST = 200  # characters of a pointer in it


@dataclass(frozen=True)
class Written:
    """What is enforced, as JSON; the bounds that were supplied; and the same with tighter ones, which an answer fits
    unless it has come up against one (None where there are none)."""

    text: str
    supplied: Bounds
    inner: str | None


@dataclass(frozen=True)
class Admitted:
    """A schema that can be enforced, as far as can be told without compiling it.

    `narrowed`: keywords and pointers of which only a part can be said.
    """

    definitions: dict[str, Node]
    narrowed: list[Fault]
    refs: Refs

    def candidates(self) -> Iterator[Written]:
        """With all bounds first, for the case that llguidance refuses some, and without any last."""
        limits = limits_for(self.definitions)
        for each in (limits, replace(limits, closed=False), None):
            writer = Writer(self.definitions, each)
            inner = each and writer.supplied.keys() - {"additionalProperties", "decimals"}
            yield Written(
                writer.text,
                writer.supplied,
                Writer(self.definitions, each.inner(), to_measure=True).text if each and inner else None,
            )

    def blame(self, compiles: Callable[[str], bool]) -> Fault:
        """The keyword without which it could be compiled; rather what could only be said in part."""
        if self.narrowed:
            return self.narrowed[0]
        return Blame(self.definitions, self.refs, lambda some: compiles(Writer(some, None).text)).find()


def dump(schema: Schema) -> str:
    """The schema as JSON; Failure where it is too large or not JSON."""
    try:
        text = json.dumps(schema, allow_nan=False)
        json.dumps(schema, ensure_ascii=False).encode()
        told = sum(len(node[key]) for _, node in parts(schema) for key in TOLD if isinstance(node.get(key), str))
    except ValueError:
        raise refusal([largest(schema)], "it holds what is not JSON") from None
    except RecursionError:
        raise refusal([largest(schema)], DEEP) from None
    for size, most in ((len(text) - told, MAX_BYTES), (len(text), MAX_ALL)):
        if size > most:
            raise refusal([largest(schema)], f"it is larger than {most} bytes")
    return text


def admit(schema: Schema) -> Admitted:
    """Failure names a keyword that cannot be enforced, or costs too much, and its pointer."""
    try:
        return _admit(schema)
    except RecursionError:
        raise refusal([largest(schema)], DEEP) from None


def refusal(faults: Iterable[Fault], why: str = "") -> Failure:
    """`schema_unsupported`, with the first faults by keyword and pointer."""
    named = ", ".join(map(name, list(faults)[:NAMED]))
    return Failure("schema_unsupported", f"the schema cannot be enforced: {named}{why and ': '}{why}")


def name(fault: Fault) -> str:
    """A keyword and its pointer, as in all refusals."""
    keyword, at = fault
    strange = keyword not in KEYWORDS and is_near_miss(keyword)
    return f'"{keyword}" at {at[:LONGEST]}{"…" * (len(at) > LONGEST)}{" (no keyword of JSON Schema)" * strange}'


def _admit(schema: Schema) -> Admitted:
    refs = Refs(schema)
    _check_references(schema, refs)
    judge(schema)
    _check_strays(schema, refs)
    reader = Reader(schema, refs)
    if reader.faults:
        raise refusal(reader.faults)
    _check_loops(reader.definitions)
    logic = Logic(reader.definitions, reader.narrowed)
    if logic.faults:
        raise refusal(logic.faults)
    _check_cost(logic.definitions)
    return Admitted(logic.definitions, list(logic.narrowed), refs)


def judge(schema: Schema) -> jsonschema_rs.Validator:
    """A validator that fetches nothing and whose patterns run in linear time; Failure names what is no schema."""
    try:
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except jsonschema_rs.ValidationError as error:
        path = [str(step) for step in error.instance_path] or ["$schema"]
    keyword = next((step for step in reversed(path) if step in KEYWORDS), path[-1])
    fault = keyword, "/" + "/".join(map(escape, path))
    if keyword in ("pattern", "patternProperties", "$schema"):
        raise refusal([fault])
    raise Failure("schema_invalid", f"the schema is not a valid JSON Schema: {name(fault)}")


def largest(schema: Schema) -> Fault:
    """The keyword at the top that has most in it."""
    keyword = max(schema, key=lambda key: len(repr(schema[key])), default="type")
    return keyword, f"/{escape(keyword)}"


def _check_references(schema: Schema, refs: Refs) -> None:
    """Every $ref leads to a part of the schema, nothing moves what one means, and following all ends soon."""
    faults: dict[Fault, None] = {}
    for at, node in refs.parts():
        if "$ref" in node and (not isinstance(node["$ref"], str) or refs.find(node["$ref"]) is None):
            faults["$ref", f"{at}/$ref"] = None
        if at and str(node.get("$schema", LATEST)).rstrip("#") not in DIALECTS:
            faults["$schema", f"{at}/$schema"] = None
        for key in ("$id", "id") if at else ():
            if moves(node.get(key)) and any("$ref" in inner for _, inner in parts(node)):
                faults[key, f"{at}/{key}"] = None
    if faults:
        raise refusal(faults)
    if _visits("", schema, refs, {}) > MAX_VISITS:
        found = next((("$ref", f"{at}/$ref") for at, node in refs.parts() if "$ref" in node), None)
        raise refusal([found or largest(schema)], f"it has more than {MAX_VISITS} parts when every $ref is followed")


def _visits(at: str, node: Any, refs: Refs, known: dict[str, int]) -> int:
    """How many parts lie in `node` when every $ref is followed; into a recursive one, once."""
    if not isinstance(node, dict):
        return 1
    count = 1 + sum(_visits(place, child, refs, known) for place, child in children(node, at))
    if "$ref" in node and (found := refs.find(node["$ref"])):
        pointer, target = found
        if pointer not in known:
            known[pointer] = 1
            known[pointer] = _visits(pointer, target, refs, known)
        count += known[pointer]
    return count


def _check_strays(schema: Schema, refs: Refs) -> None:
    """What a $ref leads to outside of where schemas stand has not been looked at by the metaschema."""
    placed = {at for at, _ in parts(schema)}
    for at, node in refs.parts():
        if at not in placed and not jsonschema_rs.meta.is_valid({"$schema": schema.get("$schema", LATEST)} | node):
            raise Failure("schema_invalid", f"the schema is not a valid JSON Schema: {name(('$ref', at))}")


def _check_loops(definitions: dict[str, Node]) -> None:
    """A $ref may come back to itself only by way of a property or an item."""
    for start in definitions:
        seen, todo = set[str](), [definitions[start]]
        while todo:
            if isinstance(node := todo.pop(), dict):
                todo += [node[key] for key in ("not", "if", "then", "else") if key in node]
                todo += [part for key in ("allOf", "anyOf", "oneOf") for part in node.get(key, ())]
                if (pointer := node.get("$ref")) == start:
                    raise refusal([("$ref", f"{node['$comment']}/$ref")], "it leads to itself")
                if pointer is not None and pointer not in seen:
                    seen.add(pointer)
                    todo.append(definitions[pointer])


def _check_cost(definitions: dict[str, Node]) -> None:
    nodes = [node for definition in definitions.values() for node in nodes_of(definition)]
    divisors = {node["multipleOf"]: node.get("$comment", "") for node in nodes if "multipleOf" in node}
    whole = [round(value * 10 ** max(map(places, divisors))) for value in divisors]
    alike = lcm(*(int(str(value).rstrip("0")) for value in whole))
    others = ((value, whole[:at] + whole[at + 1 :]) for at, value in enumerate(whole))
    if alike > MAX_DIVISOR or any(value * lcm(*rest) >= LARGEST for value, rest in others if rest):
        fault = "multipleOf", f"{divisors[max(divisors)]}/multipleOf"
        raise refusal([fault], f"values of multipleOf come together only beyond {MAX_DIVISOR}")
    for node in nodes:
        if len(node.get("patternProperties", ())) > MAX_PATTERNS:
            raise refusal([("patternProperties", f"{node['$comment']}/patternProperties")], f"more than {MAX_PATTERNS}")
    if len({node["pattern"] for node in nodes if "pattern" in node}) > MAX_PATTERNS:
        _check_patterns(definitions, nodes)


def _check_patterns(definitions: dict[str, Node], nodes: list[Schema]) -> None:
    """Patterns under one allOf may have to hold at once."""
    for node in nodes:
        if "allOf" in node or (node.keys() & {"anyOf", "$ref"} and len(node.keys() - {"$comment"}) > 1):
            found, seen, todo, last = set[str](), set[str](), [node], ""
            while todo and len(found) <= MAX_PATTERNS:
                for part in nodes_of(todo.pop()):
                    if "pattern" in part:
                        found.add(part["pattern"])
                        last = f"{part.get('$comment', '')}/pattern"
                    if (pointer := part.get("$ref")) is not None and pointer not in seen:
                        seen.add(pointer)
                        todo.append(definitions[pointer])
            if len(found) > MAX_PATTERNS:
                raise refusal([("pattern", last)], f"more than {MAX_PATTERNS} patterns may have to hold at once")
