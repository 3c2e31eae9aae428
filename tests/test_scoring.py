"""models/scoring.py: labels laid into as few rows as can be, and each scored by exactly its own tokens."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.scoring import Ids, Tree, lay, weigh

LABELS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12, unique=True)


def questions(tree: Tree) -> list[tuple[Ids, int]]:
    """What is asked: behind which ids, about which one."""
    return [
        (row[:at], token)
        for row, asked in zip(tree.rows, tree.asked, strict=True)
        for at, tokens in enumerate(asked)
        for token in tokens
    ]


@settings(deadline=None)
@given(LABELS, st.integers(0, 1000))
def test_a_score_is_the_sum_of_its_own_tokens(labels: list[Ids], seed: int) -> None:
    tree = lay(labels)
    rng = random.Random(seed)
    values = {(label[:at], label[at]): -rng.expovariate(1) for label in labels for at in range(len(label))}
    told = [
        [[values[row[:at], token] for token in tokens] for at, tokens in enumerate(asked)]
        for row, asked in zip(tree.rows, tree.asked, strict=True)
    ]
    expected = [sum(values[label[:at], label[at]] for at in range(len(label))) for label in labels]
    assert tree.scores(told) == pytest.approx(expected)


@given(LABELS)
def test_each_question_is_asked_once_in_as_few_rows_as_can_be(labels: list[Ids]) -> None:
    tree = lay(labels)
    asked = questions(tree)
    assert len(set(asked)) == len(asked)
    assert set(asked) == {(label[:at], label[at]) for label in labels for at in range(len(label))}
    assert [len(asked) for asked in tree.asked] == [len(row) + 1 for row in tree.rows]
    assert tree.labels == tuple(labels)
    # No row could be left out: each alone reads its own end, which is where a label's last token is asked for.
    ends = {label[:-1] for label in labels}
    assert ends >= set(tree.rows)
    assert len(set(tree.rows)) == len(tree.rows)
    assert not any(one != other and one == other[: len(one)] for one in tree.rows for other in tree.rows)


def test_an_example_of_rows() -> None:
    tree = lay([(1, 2, 3), (1, 2, 4), (1, 5), (6,)])
    assert tree.rows == ((1, 2),)
    assert tree.asked == (((1, 6), (2, 5), (3, 4)),)
    assert lay([(7,)]) == Tree(((7,),), ((),), (((7,),),))
    assert lay([(1, 2, 3), (4, 5, 6)]).rows == ((1, 2), (4, 5))
    assert lay([(1, 2, 3), (4, 5, 6)]).asked == (((1, 4), (2,), (3,)), ((), (5,), (6,)))


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=20), st.floats(-500, 500))
def test_weights_are_a_softmax(scores: list[float], shift: float) -> None:
    shares = weigh(scores)
    assert shares == pytest.approx(np.exp(np.array(scores) - np.logaddexp.reduce(scores)).tolist(), abs=1e-9)
    assert sum(shares) == pytest.approx(1)
    assert weigh([score + shift for score in scores]) == pytest.approx(shares, abs=1e-9)


def test_scores_far_apart_or_far_below_have_weights() -> None:
    assert weigh([-1e6, -2e6]) == [1.0, 0.0]
    assert weigh([-1e6, -1e6 - math.log(3)]) == pytest.approx([0.75, 0.25])
    assert weigh([-7.0]) == [1.0]
