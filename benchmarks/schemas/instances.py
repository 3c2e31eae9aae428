"""Instances against masks: which are let through, and why one that is valid is not.

A reason is found by taking away, one at a time, what we do beyond the letter of the schema.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.schemas.cases import Case
from benchmarks.schemas.spelling import Speller
from models.engine.grammar import Grammar, Grammars
from models.failure import Failure
from models.schema.admitted import Admitted, admit
from models.schema.dialect import KEYWORDS, Schema, parts
from models.schema.keywords import is_plain
from models.schema.writer import Writer

RIGHT, LET_THROUGH, UNEXPLAINED = "right", "invalid, let through", "valid, blocked for no known reason"
# Why a valid instance may be blocked, each with how the schema is without that.
REASONS: dict[str, Callable[[Schema], Any]] = {
    "format: stricter, and an assertion": lambda node: node.pop("format", None),
    "pattern: classes as every dialect has them, or too large an automaton": lambda node: node.pop("pattern", None),
    "$ref: what stands beside it holds in every draft": lambda node: _alone(node),
}


def _alone(node: Schema) -> None:
    if "$ref" in node:
        for key in node.keys() & (KEYWORDS - {"$ref"}):
            del node[key]


class Instances:
    """Feeds the instances of cases to what `grammars` makes of their schemas."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars

    def feed(self, case: Case, grammar: Grammar) -> Iterator[tuple[str, Any]]:
        """For each instance what became of it, RIGHT, LET_THROUGH or the reason why it is blocked; and the instance."""
        self._ids = grammar.closer.ids
        admitted = admit(case.schema)
        speller = Speller(self._ids, next(admitted.candidates()).text)
        for value, valid in case.tests:
            through = speller.lets_through(grammar.template, value)
            if through == valid:
                yield RIGHT, value
            else:
                yield LET_THROUGH if through else self._reason(case.schema, admitted, value), value

    def _reason(self, schema: Schema, admitted: Admitted, value: Any) -> str:
        if not is_plain(value):
            return "characters or integers without one plain form"
        if self._passes(admitted, value):
            return "a bound that was supplied"
        if admitted.narrowed:
            return "oneOf, not or if: said in part"
        for reason, strip in REASONS.items():
            loose = json.loads(json.dumps(schema))
            for _, node in list(parts(loose)):
                strip(node)
            try:
                if self._passes(admit(loose), value):
                    return reason
            except Failure:
                continue
        return UNEXPLAINED

    def _passes(self, admitted: Admitted, value: Any) -> bool:
        text = Writer(admitted.definitions, None).text
        matcher = self._grammars.match(text)
        return matcher is not None and Speller(self._ids, text).lets_through(matcher, value)
