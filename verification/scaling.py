"""The numbers of a calibration from scores and truth, by scipy. Arrays in, numbers out; knows neither rows nor HTTP."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit, log_expit, log_softmax, softmax  # type: ignore[import-untyped]

from verification.measures import Floats, Whole

FOLDS = 5
RIDGES = (0.1, 1.0, 10.0)
FLATTEST, STEEPEST = 1e-3, 1e4  # logits between the best and the worst of an ordinary row
LOG_ODDS = (-9.0, 0.0)  # of noise
FEWEST_ANSWERED = 20  # rows that must be answered before their accuracy is believed; more for more than 0.95


@dataclass(frozen=True)
class Scale:
    """(1 - noise) * softmax(slope * scores + bias) + noise / columns."""

    slope: float
    bias: Floats
    noise: float = 0.0

    def weigh(self, scores: Floats) -> Floats:
        """Probabilities, [rows, columns]."""
        sure: Floats = softmax(self.slope * scores + self.bias, axis=1)
        shares: Floats = (1 - self.noise) * sure + self.noise / scores.shape[1]
        return shares


@dataclass(frozen=True)
class Candidate:
    """One way to fit, judged by rows that it was not fitted on: nats a row, and their probabilities. Without a `ridge`
    there is no bias."""

    ridge: float | None
    nll: float
    probabilities: Floats

    @property
    def name(self) -> str:
        return "temperature" if self.ridge is None else f"temperature and bias (ridge {self.ridge:g})"


def fit(scores: Floats, targets: Floats, ridge: float | None, noisy: bool = True, flattest: float = FLATTEST) -> Scale:
    """What brings probabilities nearest to `targets`, [rows, columns]; without noise there is one nearest.

    `ridge` draws the biases to 0 as so many rows would; None keeps them there. Noise keeps the few rows that are wrong
    by far from flattening all others.
    """
    size = scores.max(axis=1, keepdims=True) - scores.min(axis=1, keepdims=True)
    unit = float(np.median(size)) or 1.0  # so that all numbers are near 1 while they are looked for
    given = (scores - scores.max(axis=1, keepdims=True)) / unit
    columns = scores.shape[1]
    free = 0 if ridge is None else columns

    def take_apart(numbers: Floats) -> tuple[float, Floats, float]:
        """Slope, bias, and the logarithm of the odds of noise."""
        bias = numbers[1 : 1 + free] if free else np.zeros(columns)
        return float(numbers[0]), bias, float(numbers[-1]) if noisy else -np.inf

    def loss(numbers: Floats) -> tuple[float, Floats]:
        slope, bias, odds = take_apart(numbers)
        log_sure = log_softmax(slope * given + bias, axis=1) + log_expit(-odds)
        log_shares = np.logaddexp(log_sure, log_expit(odds) - np.log(columns))
        owed = targets * np.exp(log_sure - log_shares)  # what of a target the scores have to answer for
        off = softmax(slope * given + bias, axis=1) * owed.sum(axis=1, keepdims=True) - owed
        value = -(targets * log_shares).sum() + 0.5 * (ridge or 0.0) * (bias**2).sum()
        slopes = [(off * given).sum(), *(off.sum(axis=0) + (ridge or 0.0) * bias)[:free]]
        slopes += [(expit(odds) * targets - (targets - owed)).sum()] if noisy else []
        return float(value) / len(given), np.array(slopes) / len(given)

    bounds = [(flattest, STEEPEST), *[(None, None)] * free, *[LOG_ODDS] * noisy]
    start = np.array([1.0, *[0.0] * free, *[-4.0] * noisy])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000, "ftol": 1e-13})
    slope, bias, odds = take_apart(found.x)
    return Scale(slope / unit, bias, float(expit(odds)))


def pick(truth: Whole, columns: int) -> Floats:
    """[rows, columns] with a 1 where the truth is."""
    return np.eye(columns)[truth]


def try_all(scores: Floats, truth: Whole, floor: int, seed: int) -> list[Candidate]:
    """All ways to fit that `floor` rows a label allow, the best first: by rows left out in five turns."""
    fewest = np.bincount(truth, minlength=scores.shape[1]).min()
    ridges = (None, *RIDGES) if fewest >= floor else (None,)
    fold = np.random.default_rng(seed).permutation(len(truth)) % FOLDS
    found = []
    for ridge in ridges:
        shares = np.empty_like(scores)
        for turn in range(FOLDS):
            kept, left = fold != turn, fold == turn
            shares[left] = fit(scores[kept], pick(truth[kept], scores.shape[1]), ridge).weigh(scores[left])
        nll = float(-np.log(np.maximum(shares[np.arange(len(truth)), truth], 1e-300)).mean())
        found.append(Candidate(ridge, nll, shares))
    return sorted(found, key=lambda candidate: candidate.nll)


def fit_chances(logits: Floats, right: Floats) -> tuple[float, float]:
    """Slope and offset of Platt's scaling: sigmoid(slope * logit + offset), the slope never negative.

    The truth is drawn in as Platt does, so that a few rows that are all right do not make a certainty.
    """
    yes, no = float(right.sum()), float((1 - right).sum())
    soft = np.where(right == 1, (yes + 1) / (yes + 2), 1 / (no + 2))
    pairs, targets = np.stack([np.zeros_like(logits), logits], 1), np.stack([1 - soft, soft], 1)
    found = fit(pairs, targets, 1e-6, noisy=False, flattest=0.0)
    return found.slope, float(found.bias[1] - found.bias[0])


def find_threshold(confidence: Floats, right: Floats, target: float) -> float | None:
    """The lowest probability from which on the answers reach the target accuracy; None where none does, or only for
    so few rows that one wrong answer among them would have been too much."""
    order = np.argsort(-confidence, kind="stable")
    reached = np.cumsum(right[order]) / np.arange(1, len(order) + 1) >= target
    ordered = confidence[order]
    ends = np.append(ordered[1:] < ordered[:-1], True)  # equals are answered together
    counts = np.flatnonzero(reached & ends) + 1
    if not len(counts) or counts[-1] < max(FEWEST_ANSWERED, 1 / (1 - target)):
        return None
    return 0.0 if counts[-1] == len(order) else float(ordered[counts[-1] - 1])
