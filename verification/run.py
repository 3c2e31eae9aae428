"""The figures of a run over golden rows, and the gate they have to pass. Asks nobody."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verification import golden
from verification.client import Reply
from verification.golden import Row

FOUND = ("exact", "normalised")
LABELS = ("label_accuracy", "answered_accuracy", "abstain_rate")
NAMES = ("field_accuracy", "evidence_rate", *LABELS, "error_rate", "p50", "p95", "documents_per_hour", "cost_per_1000")


@dataclass(frozen=True)
class Bound:
    """A figure may not be below (or, `above`: above) a value."""

    figure: str
    value: float
    above: bool = False

    def fails(self, figures: Mapping[str, float | None]) -> str:
        """Why it does not hold, else nothing. What was not measured does not hold: a gate that cannot fail is none."""
        found = figures.get(self.figure)
        if found is None:
            return f"{self.figure} was not measured"
        if found > self.value if self.above else found < self.value:
            return f"{self.figure} is {found:.4g}, {'above' if self.above else 'below'} {self.value:g}"
        return ""


@dataclass(frozen=True)
class Run:
    """Figures by name (None: there was nothing to measure), the share of right values by pointer, errors by type."""

    figures: dict[str, float | None]
    fields: dict[str, float]
    errors: dict[str, int]


def measure(rows: Sequence[Row], replies: Sequence[Reply], seconds: float, price: float | None) -> Run:
    """`seconds` from the first request to the last answer; `price` an hour, in whatever money.

    A row without an answer counts: all its values are wrong and its label is not right.
    """
    pairs = list(zip(rows, replies, strict=True))
    fields = _judge_fields(pairs)
    done = [reply for reply in replies if reply.answer is not None]
    rate = len(done) / seconds * 3600 if done else None
    latency = np.percentile([reply.seconds for reply in done], (50, 95)) if done else (None, None)
    figures = {
        "field_accuracy": _share([right for found in fields.values() for right in found]),
        "evidence_rate": _share([item["match"] in FOUND for reply in done for item in _evidence(reply)]),
        **_judge_labels(pairs),
        "error_rate": 1 - len(done) / len(pairs),
        "p50": latency[0],
        "p95": latency[1],
        "documents_per_hour": rate,
        "cost_per_1000": None if price is None or rate is None else price / rate * 1000,
    }
    shares = {pointer: sum(found) / len(found) for pointer, found in fields.items()}
    return Run(
        {name: None if figure is None else float(figure) for name, figure in figures.items()},
        shares,
        dict(Counter(reply.error for reply in replies if reply.error).most_common()),
    )


def check(run: Run, bounds: Sequence[Bound]) -> list[str]:
    """Why the gate stays shut; empty: it opens. A pointer is a figure as well."""
    known: dict[str, float | None] = {**run.figures, **run.fields}
    return [reason for bound in bounds if (reason := bound.fails(known))]


def read_bound(text: str, above: bool = False) -> Bound:
    """NAME=VALUE; raises ValueError, which says what a name is."""
    name, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or not (name in NAMES or name.startswith("/")):
        raise ValueError(f"{text!r} is not NAME=VALUE, where NAME is a JSON pointer or one of {', '.join(NAMES)}")
    return Bound(name, number, above)


def _judge_fields(pairs: Sequence[tuple[Row, Reply]]) -> dict[str, list[bool]]:
    fields: dict[str, list[bool]] = {}
    for row, reply in pairs:
        if row.judged and not row.asks_label:
            found = reply.output if reply.answer is not None else golden.MISSING
            for pointer, right in golden.compare(row.expected, found):
                fields.setdefault(pointer, []).append(right)
    return fields


def _judge_labels(pairs: Sequence[tuple[Row, Reply]]) -> dict[str, float | None]:
    """label_accuracy is of all that were asked, answered_accuracy of those neither refused nor abstained from."""
    asked = [(row, reply.output if reply.answer is not None else None) for row, reply in pairs if row.asks_label]
    judged = [(output, row.expected) for row, output in asked if row.judged]
    kept = [(output, expected) for output, expected in judged if output is not None and not output["abstained"]]
    right = [output["label"] == expected for output, expected in kept]
    figures = (
        sum(right) / len(judged) if judged else None,
        _share(right),
        _share([output["abstained"] for _, output in asked if output is not None]),
    )
    return dict(zip(LABELS, figures, strict=True))


def _evidence(reply: Reply) -> list[dict[str, Any]]:
    return reply.metadata.get("evidence") or []


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None
