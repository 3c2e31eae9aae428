"""Calibrations from answered rows: what part is fitted on, what is measured on the rest, what is chosen and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from models.calibration import Calibration, FieldCalibration, Fit, Measures, logit_of
from verification import golden, measures, scaling
from verification.client import Reply
from verification.failure import Unusable
from verification.golden import Row
from verification.measures import Floats, Whole
from verification.scaling import Candidate, Scale

FEWEST = 20  # rows, or values, on either side of the split
NONE = "none of these"  # as the service names it among the probabilities


@dataclass(frozen=True)
class Plan:
    """`share` of the rows are fitted on; a bias is tried where each label has `floor` of them. `data` is the sha256 of
    the file."""

    data: str
    share: float = 0.5
    floor: int = 10
    target: float = 0.95
    seed: int = 1


@dataclass(frozen=True)
class Curve:
    """Probabilities of rows that were not fitted on, and whether each was right, 0 or 1."""

    chances: Floats
    right: Floats


@dataclass(frozen=True)
class LabelFit:
    """A calibration and how it was come by. `answered` and `kept`: what share of the rest is answered from
    `abstain_below` on, and how often rightly; `reached`: the target was, on the fitted rows. `honest_ece`: by chance
    alone."""

    calibration: Calibration
    candidates: list[Candidate]
    reached: bool
    answered: float
    kept: float | None
    honest_ece: float
    before: Curve
    after: Curve


@dataclass(frozen=True)
class FieldFit:
    """The same of the values of one schema."""

    calibration: FieldCalibration
    honest_ece: float
    before: Curve
    after: Curve


@dataclass(frozen=True)
class Question:
    """What all rows of one calibration have in common."""

    model: str
    labels: tuple[str, ...]
    prior: str
    task: str


def fit_labels(model: str, rows: Sequence[Row], replies: Sequence[Reply], plan: Plan) -> LabelFit:
    """From label rows that were answered; raises Unusable where they are too few or not of one question."""
    question, scores, truth = gather_scores(model, rows, replies)
    fitted, rest = split(len(truth), plan)
    candidates = scaling.try_all(scores[fitted], truth[fitted], plan.floor, plan.seed)
    best = candidates[0]
    scale = scaling.fit(scores[fitted], scaling.pick(truth[fitted], scores.shape[1]), best.ridge)
    threshold = scaling.find_threshold(*measures.judge(best.probabilities, truth[fitted]), plan.target)
    plain, fair = Scale(1.0, np.zeros_like(scale.bias)).weigh(scores[rest]), scale.weigh(scores[rest])
    confidence, right = measures.judge(fair, truth[rest])
    answered = confidence >= (threshold or 0.0)
    before, after = measures.measure(plain, truth[rest]), measures.measure(fair, truth[rest])
    calibration = Calibration(
        question.model,
        question.labels,
        question.prior,
        question.task,
        1 / scale.slope,
        tuple(map(float, scale.bias)),
        scale.noise,
        threshold or 0.0,
        _describe(plan, fitted, rest, before, after),
    )
    return LabelFit(
        calibration,
        candidates,
        threshold is not None,
        float(answered.mean()),
        float(right[answered].mean()) if answered.any() else None,
        measures.expect_ece(confidence, plan.seed),
        Curve(*measures.judge(plain, truth[rest])),
        Curve(confidence, right),
    )


def fit_fields(model: str, rows: Sequence[Row], replies: Sequence[Reply], plan: Plan) -> list[FieldFit]:
    """One for each schema among the rows that were answered; raises Unusable where one has too little to fit."""
    values: dict[str, list[list[tuple[float, bool]]]] = {}
    for row, reply in zip(rows, replies, strict=True):
        values.setdefault(reply.tell("receipt")["form"], []).append(judge_confidence(row, reply))
    return [_fit_schema(model, schema, found, plan) for schema, found in values.items()]


def _fit_schema(model: str, schema: str, documents: list[list[tuple[float, bool]]], plan: Plan) -> FieldFit:
    """Split by documents: what one gets wrong, it often gets wrong twice."""
    sides = [
        np.array([value for place in side for value in documents[place]], np.float64).reshape(-1, 2)
        for side in split(len(documents), plan)
    ]
    for side in sides:
        if min(side[:, 1].sum(), (1 - side[:, 1]).sum()) < FEWEST // 2:
            raise Unusable(f"{FEWEST // 2} right and as many wrong values are needed on either side of the split")
    (raw, right), (raw_rest, right_rest) = sides[0].T, sides[1].T
    slope, offset = scaling.fit_chances(_logits(raw), right)
    fair = 1 / (1 + np.exp(-(slope * _logits(raw_rest) + offset)))
    before, after = measures.measure_chances(raw_rest, right_rest), measures.measure_chances(fair, right_rest)
    described = _describe(plan, raw, raw_rest, before, after)
    return FieldFit(
        FieldCalibration(model, schema, slope, offset, described),
        measures.expect_ece(fair, plan.seed),
        Curve(raw_rest, right_rest),
        Curve(fair, right_rest),
    )


def judge_confidence(row: Row, reply: Reply) -> list[tuple[float, bool]]:
    """The raw confidence of every value of an answer whose truth is known, and whether it is right."""
    told = reply.tell("confidence")
    expected, found = dict(golden.leaves(row.expected)), dict(golden.leaves(reply.output))
    shared = [pointer for pointer in expected if pointer in found and pointer in told]
    return [(float(told[at]["raw"]), golden.same(expected[at], found[at])) for at in shared]


def split(count: int, plan: Plan) -> tuple[Whole, Whole]:
    """Places to fit on, and the rest; the same for the same seed."""
    order = np.random.default_rng(plan.seed).permutation(count)
    cut = round(count * plan.share)
    if min(cut, count - cut) < FEWEST:
        raise Unusable(f"{count} answered rows are too few: {FEWEST} are needed on either side of the split")
    return order[:cut], order[cut:]


def gather_scores(model: str, rows: Sequence[Row], replies: Sequence[Reply]) -> tuple[Question, Floats, Whole]:
    """What was asked, the scores, [rows, labels], and the place of each true label; raises Unusable."""
    told = [reply.tell("labels") for reply in replies]
    asked = Counter(
        Question(model, tuple(sorted(each["scores"])), each["prior"], each.get("task", "")) for each in told
    )
    if len(asked) > 1:
        raise Unusable(f"the rows ask {len(asked)} different questions (labels, prior, task); fit them one by one")
    (question,) = asked
    places = {label: place for place, label in enumerate(question.labels)}
    truth = [places.get(NONE if row.expected is None else row.expected) for row in rows]
    if None in truth:
        raise Unusable(f"line {rows[truth.index(None)].line}: what is expected is none of its labels")
    scores = [[each["scores"][label] for label in question.labels] for each in told]
    return question, np.array(scores, np.float64), np.array(truth, np.int64)


def _logits(raw: Floats) -> Floats:
    return np.array([logit_of(value) for value in raw])


def _describe(plan: Plan, fitted: Any, rest: Any, before: Measures, after: Measures) -> Fit:
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    return Fit(plan.data, len(fitted), len(rest), before, after, created)
