"""A finished answer held against what was asked: its schema, its document, its rules. Knows no model and no tokens.

What comes out is what the answer's metadata says of it, or the Failure that it is instead.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import jsonschema_rs

from models import evidence, rules, verdict
from models.failure import Failure
from models.question import Document, Question, compact, find_document
from models.rules import Rule
from models.schema.dialect import Schema
from models.schema.fields import Fields, Site

KEYWORD = "x-evidence"
NAMED = 5  # values named in a refusal
DOUBLES = (
    "a number is a multiple in decimals but not in binary floating point, in which validators divide; "
    "a factor like 0.01 says that of many amounts, multipleOf 1 in cents of none"
)


@dataclass(frozen=True)
class Demand:
    """What an answer must keep: the caller's own `schema`, the rules in it, and evidence for some of its values."""

    schema: Schema
    document: Document | None
    rules: tuple[Rule, ...] = ()
    all_evident: bool = False
    fields: Fields = field(init=False)
    some_evident: bool = field(init=False)
    copies: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", Fields(self.schema))
        object.__setattr__(self, "some_evident", any(KEYWORD in node for node in self.fields.nodes.values()))
        object.__setattr__(self, "copies", any(node.get("x-verbatim") for node in self.fields.nodes.values()))


def read(question: Question, schema: Schema) -> Demand:
    """What `question` demands of its answer; Failure where that makes no sense."""
    validator(schema)
    document = find_document(question.prompt, question.context)
    demand = Demand(schema, document, rules.read(schema), question.require_evidence)
    for pointer, node in demand.fields.nodes.items():
        if node.get(KEYWORD, "required") != "required":
            raise Failure("schema_invalid", f'{KEYWORD} must be "required": #{pointer}/{KEYWORD}')
        if KEYWORD in node and pointer not in demand.fields.said:
            raise Failure("schema_unsupported", f"{KEYWORD} cannot be enforced here: #{pointer}")
    if document is None and (demand.all_evident or demand.some_evident):
        raise Failure("invalid_value", "evidence needs a document: context.document, or text after a blank line")
    return demand


class MultipleOf:
    """The keyword in decimals, and also in doubles, as most validators divide: what some of them would not take is
    not called a success."""

    def __init__(self, parent: Schema, factor: float, path: list[str | int]) -> None:
        self._factor = factor

    def validate(self, value: Any) -> None:
        """ValueError where it is none."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if (Fraction(str(value)) / Fraction(str(self._factor))).denominator != 1:
            raise ValueError("not a multiple")
        quotient = value / self._factor if isinstance(self._factor, float) else 0.0
        if not quotient.is_integer():  # nor is it if infinite
            raise ValueError(DOUBLES)


def validator(schema: Schema) -> jsonschema_rs.Validator:
    """A validator that fetches nothing and whose patterns run in linear time; Failure for what is no schema."""
    try:
        return jsonschema_rs.validator_for(
            schema,
            offline=True,
            pattern_options=jsonschema_rs.RegexOptions(),
            keywords={"multipleOf": MultipleOf},
        )
    except ValueError:
        raise Failure("schema_invalid", "the schema is not a valid JSON Schema") from None


def parse(output: str, schema: Schema) -> Any:
    """The value of `output`; Failure unless it is JSON and fits, whatever the grammar promised."""
    try:
        value = json.loads(output, parse_float=_finite, parse_constant=_finite)
        compact(value).encode()  # no half of a surrogate pair
        errors = [error.message for error in validator(schema).iter_errors(value)]
    except (ValueError, RecursionError):
        raise Failure("answer_invalid", "the answer is not JSON") from None
    if errors:
        told = f": {DOUBLES}" if set(errors) == {DOUBLES} else ""
        raise Failure("answer_invalid", f"the answer does not fit the schema{told}")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def audit(output: str, demand: Demand, found: list[evidence.Evidence] | None = None) -> dict[str, Any]:
    """Evidence and rules of a JSON answer, by name; Failure where it is not what was demanded. `found`: the evidence,
    where that is known already."""
    value = parse(output, demand.schema)
    told: dict[str, Any] = {}
    if demand.document is not None:
        found = trace(value, demand) if found is None else found
        absent = [each.pointer for each in found if each.match == "absent" and demanded(demand, value, each.pointer)]
        if absent:
            named = _names([_say(demand, value, pointer) for pointer in absent])
            raise Failure("evidence_absent", f"values that are not in the document: {named}")
        if any(_is_stray(demand, value, each) for each in found):
            raise Failure("answer_invalid", "a copy-only value is no piece of the document")
        told["evidence"] = [asdict(each) for each in found]
    if demand.rules:
        results = verdict.check(demand.rules, value)
        if broken := verdict.broken(results):
            raise Failure("check_failed", f"rules that the answer breaks: {_names([each.rule for each in broken])}")
        told["checks"] = [asdict(each) for each in results]
    return told


def trace(value: Any, demand: Demand) -> list[evidence.Evidence]:
    """Where each scalar of `value` stands in the document; offsets are into the caller's own text."""
    assert demand.document is not None
    pages, shift = demand.document.pages, demand.document.shift
    index = evidence.Document(pages if demand.document.paged else pages[0])
    found = evidence.locate(index, value)
    return [_moved(each, shift) for each in found] if shift else found


def _moved(found: evidence.Evidence, by: int) -> evidence.Evidence:
    if found.start is None or found.end is None:
        return found
    return evidence.Evidence(**{**asdict(found), "start": found.start + by, "end": found.end + by})


def demanded(demand: Demand, answer: Any, pointer: str) -> bool:
    """Whether the value at `pointer` must be in the document, by itself or with all that it is part of."""
    if demand.all_evident or not demand.some_evident:
        return demand.all_evident
    return any(KEYWORD in demand.fields.at(place) for site, _ in _way(demand, answer, pointer) for place in site)


def _is_stray(demand: Demand, answer: Any, found: evidence.Evidence) -> bool:
    """Whether a value is copy-only and still no piece of the document, whatever decoding promised."""
    if found.match == "exact" or not demand.copies or demand.document is None or not isinstance(found.value, str):
        return False
    *_, (site, _) = _way(demand, answer, found.pointer)
    return demand.fields.copied(site) is not None and not any(found.value in page for page in demand.document.pages)


def _way(demand: Demand, answer: Any, pointer: str) -> Iterator[tuple[Site, str]]:
    """From the answer itself down to the value at `pointer`: sites, and names as far as they are the schema's own."""
    site, value = demand.fields.root, answer
    yield site, ""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            site, value = demand.fields.item(site, int(name)), value[int(name)]
            yield site, part
        else:
            ours = any(name in demand.fields.at(place).get("properties", ()) for place in site)
            site, value = demand.fields.member(site, name), value[name]
            yield site, part if ours else "*"


def _say(demand: Demand, answer: Any, pointer: str) -> str:
    """The pointer without names that may be the document's."""
    return "/".join(name for _, name in _way(demand, answer, pointer))


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(name[:100] for name in names[:NAMED]) + more
