"""Figures of runs, and how those of two servers compare. Knows neither servers nor documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.load import Run


@dataclass(frozen=True)
class Figures:
    """Of one run. Rates are of all that was asked; latencies are of what was done, None where nothing was."""

    documents: float
    usable: float
    tokens: float
    p50: float | None
    p95: float | None
    p99: float | None
    first: float | None
    json: float
    schema: float
    refused: int
    failed: int


@dataclass(frozen=True)
class Compared:
    """A figure over rounds: its median, and that, least and most of the ratio to ours in the same round."""

    value: float
    ratio: float | None
    low: float | None
    high: float | None


def measure(run: Run) -> Figures:
    """The figures of one run."""
    done = [answer for answer in run.answers if answer.outcome not in ("refused", "failed")]
    outcomes = [answer.outcome for answer in run.answers]
    seconds = [answer.seconds for answer in done]
    valid = outcomes.count("valid")
    return Figures(
        documents=len(done) / run.seconds,
        usable=valid / run.seconds,
        tokens=sum(answer.tokens for answer in done) / run.seconds,
        p50=percentile(seconds, 50),
        p95=percentile(seconds, 95),
        p99=percentile(seconds, 99),
        first=percentile([answer.first for answer in done if answer.first is not None], 50),
        json=(valid + outcomes.count("unfit")) / len(outcomes),
        schema=valid / len(outcomes),
        refused=outcomes.count("refused"),
        failed=outcomes.count("failed"),
    )


def percentile(values: Sequence[float], rank: float) -> float | None:
    """Linear between the two nearest, as numpy has it; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * rank / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def compare(theirs: Sequence[float | None], ours: Sequence[float | None]) -> Compared | None:
    """One figure round by round; None where theirs was never measured."""
    known = [value for value in theirs if value is not None]
    if not known:
        return None
    ratios = [a / b for a, b in zip(theirs, ours, strict=True) if a is not None and b]
    if not ratios:
        return Compared(median(known), None, None, None)
    return Compared(median(known), median(ratios), min(ratios), max(ratios))


def spread(values: Sequence[float | None]) -> Compared | None:
    """Our own figure: the ratios are those of each round to the median of all."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    middle = median(known)
    return compare(known, [middle] * len(known))
