"""models/engine/tower.py and the engine with pictures, against transformers' own Qwen2.5-VL in float32."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from models.engine import tower as towers
from models.engine.batch import flatten
from models.engine.cache import BLOCK
from models.engine.engine import Engine
from models.engine.reference import Reference
from models.engine.sequence import Completion, Sampling, Sequence
from models.engine.tower import Tower
from models.failure import Failure
from models.picture import Picture
from tests import seeing

VOCABULARY = 200
A, B = seeing.picture(2, 3, 1), seeing.picture(6, 4, 2)
TEXT = [5, 6, 7, 8] * 6
PROMPTS: list[tuple[list[int], list[Picture]]] = [
    (TEXT, []),
    ([5, 6, *A.ids, 7, 8], [A]),
    ([*TEXT, *B.ids, 9, 8, *A.ids, 4], [B, A]),
    ([*TEXT, *B.ids, 9, 8, *B.ids, 10], [B, B]),
]


@pytest.fixture(scope="module")
def oracle() -> Qwen2_5_VLForConditionalGeneration:
    return seeing.network(VOCABULARY)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def engine(step_tokens: int = 64, kv_tokens: int = 2048, **options: Any) -> Engine:
    """One that the test steps itself."""
    return Engine(
        seeing.network(VOCABULARY), set(), kv_tokens=kv_tokens, step_tokens=step_tokens, queue_tokens=1 << 30, **options
    )


def tower_of(made: Engine) -> Tower:
    assert isinstance(made.forward, Reference) and made.forward._tower is not None
    return made.forward._tower


def run(made: Engine, rows: list[Sequence]) -> list[Completion]:
    for row in rows:
        made.submit(row)
    while made.waiting or made.running:
        made.step()
    return [row.future.result() for row in rows]


def ask(at: int, answer: int = 8) -> Sequence:
    ids, pictures = PROMPTS[at]
    return Sequence(ids, Sampling(answer), pictures=pictures)


def greedy(oracle: Qwen2_5_VLForConditionalGeneration, at: int, answer: int = 8) -> list[int]:
    ids, pictures = list(PROMPTS[at][0]), PROMPTS[at][1]
    for _ in range(answer):
        ids.append(int(seeing.logits(oracle, ids, pictures)[-1].argmax()))
    return ids[-answer:]


@pytest.fixture(scope="module")
def expected(oracle: Qwen2_5_VLForConditionalGeneration) -> list[list[int]]:
    return [greedy(oracle, at) for at in range(len(PROMPTS))]


@pytest.mark.parametrize("at", range(len(PROMPTS)))
def test_a_picture_s_rows_and_the_logits_behind_it_are_those_of_transformers(
    oracle: Qwen2_5_VLForConditionalGeneration, at: int
) -> None:
    made = engine(step_tokens=1024)
    ids, pictures = PROMPTS[at]
    probes = [[0]] * len(ids)  # behind every token
    made.submit(Sequence(ids, Sampling(1), probes=probes, pictures=pictures))
    batch = flatten(made.scheduler.plan(), made.cache)
    found = made.forward(batch)
    theirs = seeing.logits(oracle, ids, pictures)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.1
    if pictures:
        blank = [Picture(255 - each.pixels, 28) for each in pictures]
        swapped = {old.id: new.id for old, new in zip(pictures, blank, strict=True)}
        other = seeing.logits(oracle, [swapped.get(token, token) for token in ids], blank)
        assert not torch.allclose(other[-1], theirs[-1], rtol=1e-2, atol=1e-2)  # it does look at them


@pytest.mark.parametrize("at", range(len(PROMPTS)))
def test_alone_it_says_what_transformers_says(expected: list[list[int]], at: int) -> None:
    assert run(engine(), [ask(at)])[0].tokens == expected[at]


@pytest.mark.parametrize("step_tokens", [1, 3, 7, 16, 33, 500])
def test_batched_and_in_pieces_of_any_size_it_says_the_same(expected: list[list[int]], step_tokens: int) -> None:
    rows = [ask(at) for at in (2, 0, 1, 3)]
    found = run(engine(step_tokens), rows)
    assert [each.tokens for each in found] == [expected[at] for at in (2, 0, 1, 3)]


def test_a_picture_is_looked_at_once_and_known_again_in_the_cache(expected: list[list[int]]) -> None:
    made = engine()
    run(made, [ask(2), ask(3), ask(1)])
    assert tower_of(made).looked == 2
    tower_of(made)._made.clear()
    before = made.tokens["prompt"]
    assert run(made, [ask(2)])[0].tokens == expected[2]
    known = len(PROMPTS[2][0]) // BLOCK * BLOCK
    assert made.tokens["prompt"] - before == len(PROMPTS[2][0]) - known
    assert list(tower_of(made)._made) == [A.id]  # in the last block; what lies before is in the cache


def test_another_picture_is_no_known_beginning(oracle: Qwen2_5_VLForConditionalGeneration) -> None:
    made = engine()
    other = seeing.picture(6, 4, 3)
    ids = [*TEXT, *B.ids, 9]
    run(made, [Sequence(ids, Sampling(4), pictures=[B])])
    found = run(made, [Sequence([*TEXT, *other.ids, 9], Sampling(1), pictures=[other])])[0].tokens
    assert found == [int(seeing.logits(oracle, [*TEXT, *other.ids, 9], [other])[-1].argmax())]
    assert tower_of(made).looked == 2


def test_put_back_and_taken_up_again_it_says_the_same(expected: list[list[int]]) -> None:
    """There is room for both prompts, not for both answers."""
    rows = [ask(2, 40), ask(3, 40)]
    made = engine(kv_tokens=128, speculate=False)
    made.admission.answer_share = 0.1  # as if answers had been short so far
    found = run(made, rows)
    assert made.scheduler.preempted
    assert [each.tokens[:8] for each in found] == [expected[2], expected[3]]


def test_a_picture_that_cannot_be_computed_fails_its_own_row(
    expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine()
    bad, look = seeing.picture(1, 1, 9), Tower._look

    def fail(self: Tower, picture: Picture) -> torch.Tensor:
        if picture.id == bad.id:
            raise RuntimeError("broken")
        return look(self, picture)

    monkeypatch.setattr(Tower, "_look", fail)
    rows = [ask(1), Sequence([5, *bad.ids, 6], Sampling(4), pictures=[bad]), ask(0)]
    for row in rows:
        made.submit(row)
    while made.waiting or made.running:
        made.step()
    assert [rows[at].future.result().tokens for at in (0, 2)] == [expected[1], expected[0]]
    refused = rows[1].future.exception()
    assert isinstance(refused, Failure) and refused.code == "model_error"


def test_what_is_kept_of_pictures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "KEPT", 12)
    tower = Tower(seeing.network(VOCABULARY))
    for seed in range(4):
        assert tower.rows(seeing.picture(2, 3, seed)).shape == (6, 64)
        assert sum(map(len, tower._made.values())) <= 12
    assert tower.rows(B).shape == (24, 64)  # larger than all that is kept, and kept alone
    assert list(tower._made) == [B.id]


def test_a_label_s_probes_stand_behind_pictures(oracle: Qwen2_5_VLForConditionalGeneration) -> None:
    ids, pictures = PROMPTS[2]
    row = Sequence([*ids, 11, 12], Sampling(1), probes=[[11], [12], [13, 14]], pictures=pictures)
    (found,) = run(engine(7), [row])
    theirs = seeing.logits(oracle, [*ids, 11, 12], pictures).log_softmax(-1)
    flat = [theirs[-3, 11], theirs[-2, 12], theirs[-1, 13], theirs[-1, 14]]
    assert [each for told in found.probed for each in told] == pytest.approx([float(each) for each in flat], abs=1e-4)


def test_a_picture_is_never_drafted() -> None:
    row = Sequence([5, 6, *A.ids, 7, 5, 6], Sampling(20), pictures=[A])
    assert row.draft(frozenset()) == []
    row = Sequence([5, 6, 9, *A.ids, 7, 5, 6], Sampling(20), pictures=[A])
    assert row.draft(frozenset()) == [9]


@pytest.mark.parametrize("ids", [[5, -7, 6], [*A.ids], [5, *A.ids, VOCABULARY]])
def test_ids_that_are_nothing_are_refused(ids: list[int]) -> None:
    pictures = [A] if A.id in ids else []
    with pytest.raises(ValueError, match="ids of the model's vocabulary"):
        engine().submit(Sequence(ids, Sampling(1), pictures=pictures))
