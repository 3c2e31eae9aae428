"""Labels' probabilities from several windows of one document as one decision.

The windows' log-probabilities are averaged by weight, and the shares made to sum to 1. That windows taken alone would
have decided otherwise is reported as a conflict, but no error: the probability says it too. Knows of windows but their
weights.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from models.question import Answer, Question

TINY = 1e-300  # for a probability of 0, which has no logarithm
Shares = dict[str, float]


def decide(
    question: Question, answers: Sequence[Answer], weights: Sequence[float]
) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The output, what is told of the labels, and where windows differ."""
    told: list[Shares] = [json.loads(answer.output)["probabilities"] for answer in answers]
    shares = pool(told, weights)
    each = [answer.detail.get("labels", {}) for answer in answers]
    # Windows of more pages may be fitted otherwise, or not at all; the most careful of them counts.
    fitted = max(labels.get("abstain_below", 0.0) for labels in each)
    least = fitted if question.abstain_below is None else question.abstain_below
    labels = agreed(each) | {"abstain_below": least}
    if "scores" in each[0]:
        labels["scores"] = mean([one["scores"] for one in each], weights)
    tops = [top_of(one) for one in told]
    candidates = [{"value": top, "window": at, "probability": told[at][top]} for at, top in enumerate(tops)]
    conflicts = [{"pointer": "/label", "candidates": candidates}] if set(tops) != {top_of(shares)} else []
    return write(question, shares, least), labels, conflicts


def top_of(shares: Shares) -> str:
    return max(shares, key=shares.__getitem__)


def write(question: Question, shares: Shares, least: float) -> str:
    """The output: the most probable label, unless that is too improbable, or none of these."""
    best = top_of(shares)
    abstained = shares[best] < least
    none = question.none_of_these and best == list(shares)[-1]
    output = {
        "label": None if abstained or none else best,
        "probability": shares[best],
        "probabilities": shares,
        "abstained": abstained,
    }
    return json.dumps(output, ensure_ascii=False)


def agreed(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in all."""
    return {name: value for name, value in told[0].items() if all(each.get(name) == value for each in told)}


def pool(shares: Sequence[Shares], weights: Sequence[float]) -> Shares:
    """Probabilities from several, by the weighted mean of their logarithms."""
    logs = mean([{name: math.log(max(share, TINY)) for name, share in each.items()} for each in shares], weights)
    most = max(logs.values())
    raised = {name: math.exp(log - most) for name, log in logs.items()}
    return {name: share / math.fsum(raised.values()) for name, share in raised.items()}


def mean(values: Sequence[Shares], weights: Sequence[float]) -> Shares:
    """The weighted mean by name; all have the same names."""
    total = math.fsum(weights)
    return {
        name: math.fsum(each[name] * weight for each, weight in zip(values, weights, strict=True)) / total
        for name in values[0]
    }
