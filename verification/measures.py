"""How far probabilities are from the truth. Arrays in, figures out; knows neither rows nor service."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.calibration import Measures

BINS = 15  # equally wide, the upper end belonging to a bin
TINY = 1e-12  # a probability of nothing counts as this in a logarithm
DRAWS = 200

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """Of all probabilities between two marks: how many, their mean, and the share of them that was right."""

    count: int
    confidence: float
    right: float


def measure(probabilities: Floats, truth: Whole) -> Measures:
    """Of labels: one row of probabilities each, [rows, labels], and the true label's place."""
    rows = np.arange(len(truth))
    confidence, right = judge(probabilities, truth)
    exact = np.zeros_like(probabilities)
    exact[rows, truth] = 1.0
    return Measures(
        accuracy=float(right.mean()),
        ece=ece(confidence, right),
        brier=float(((probabilities - exact) ** 2).sum(axis=1).mean()),
        nll=float(-np.log(np.maximum(probabilities[rows, truth], TINY)).mean()),
    )


def measure_chances(chances: Floats, right: Floats) -> Measures:
    """Of single values: the chance that each is right, and whether it was, 0 or 1."""
    true = np.maximum(np.where(right == 1, chances, 1 - chances), TINY)
    return Measures(
        accuracy=float(right.mean()),
        ece=ece(chances, right),
        brier=float(((chances - right) ** 2).mean()),
        nll=float(-np.log(true).mean()),
    )


def judge(probabilities: Floats, truth: Whole) -> tuple[Floats, Floats]:
    """The likeliest label's probability in each row, and whether it was the true one, 0 or 1."""
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == truth).astype(np.float64)


def bin_up(confidence: Floats, right: Floats) -> list[Bin]:
    """Those of the bins that hold something, from low to high."""
    places = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
    found = [(confidence[places == place], right[places == place]) for place in np.unique(places)]
    return [Bin(len(some), float(some.mean()), float(true.mean())) for some, true in found]


def ece(confidence: Floats, right: Floats) -> float:
    """Expected calibration error: over the bins, the mean distance of confidence and accuracy, by rows."""
    return sum(item.count * abs(item.confidence - item.right) for item in bin_up(confidence, right)) / len(right)


def expect_ece(confidence: Floats, seed: int) -> float:
    """What `ece` would be, on the mean, if these confidences were perfectly honest: chance alone, on as many rows."""
    chance = np.random.default_rng(seed)
    draws = (chance.random(len(confidence)) < confidence for _ in range(DRAWS))
    return float(np.mean([ece(confidence, draw.astype(np.float64)) for draw in draws]))
