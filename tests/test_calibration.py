"""models/calibration.py: what was fitted is found again exactly, at once, whole or not at all."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import calibration
from models.calibration import Calibration, FieldCalibration, Fit, Measures
from models.failure import Failure
from tests.conftest import ROOT

TAG = "smollm2-135m-instruct:0123-nf4-2"
MEASURES = Measures(0.5, 0.1, 0.6, 1.2)
FIT = Fit("ab" * 32, 200, 180, MEASURES, replace(MEASURES, ece=0.02), "2026-01-01T00:00:00+00:00")
LABELS = ("credit note", "invoice", "Ünïcode ✓")
MADE = Calibration(TAG, LABELS, "content-free", "t" * 64, 2.5, (0.25, -0.5, 0.0), 0.1, 0.4, FIT)
FIELDS = FieldCalibration(TAG, "c" * 64, 0.75, -0.1, FIT)
TEXTS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


def find(folder: Path, labels: tuple[str, ...] = LABELS, **other: str) -> Calibration | None:
    asked = {"model": TAG, "prior": "content-free", "task": "t" * 64} | other
    return calibration.find(folder, labels=labels, **asked)


# Found again


def test_what_was_written_is_found_exactly_in_whatever_order_the_labels_are_asked(tmp_path: Path) -> None:
    path = calibration.write(MADE, tmp_path)
    assert path == tmp_path / "smollm2-135m-instruct" / f"{MADE.key}.json"
    assert find(tmp_path) == find(tmp_path, LABELS[::-1]) == MADE
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_fields_are_found_by_schema(tmp_path: Path) -> None:
    calibration.write(FIELDS, tmp_path)
    assert calibration.find_fields(tmp_path, TAG, "c" * 64) == FIELDS
    assert calibration.find_fields(tmp_path, TAG, "d" * 64) is None
    assert calibration.find_fields(tmp_path / "none", TAG, "c" * 64) is None


@pytest.mark.parametrize("other", [{"model": f"{TAG}x"}, {"prior": "none"}, {"task": ""}, {"labels": LABELS[:2]}])
def test_other_weights_labels_prior_or_task_have_another(tmp_path: Path, other: dict[str, Any]) -> None:
    calibration.write(MADE, tmp_path)
    assert find(tmp_path, **other) is None


@given(TEXTS, TEXTS)
def test_two_sets_have_one_key_only_if_they_are_the_same_set(one: list[str], two: list[str]) -> None:
    same = calibration.key(TAG, one) == calibration.key(TAG, two)
    assert same == (set(one) == set(two))
    assert calibration.key(TAG, one) != calibration.field_key(TAG, one[0])


def test_a_new_file_a_changed_one_and_a_deleted_one_are_noticed(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    path = calibration.write(MADE, tmp_path)
    assert find(tmp_path) == MADE
    warmer = replace(MADE, temperature=3.5)  # as many bytes
    calibration.write(warmer, tmp_path)
    assert find(tmp_path) == warmer
    path.unlink()
    assert find(tmp_path) is None


def test_the_file_is_read_once(tmp_path: Path) -> None:
    calibration.write(MADE, tmp_path)
    assert find(tmp_path) is find(tmp_path)


def test_all_of_these_weights_are_listed_the_newest_first(tmp_path: Path) -> None:
    newer = replace(MADE, labels=("a", "b", "c"), fit=replace(FIT, created="2026-02-01T00:00:00+00:00"))
    for item in (MADE, newer, FIELDS, replace(MADE, model="smollm2-135m-instruct:other")):
        calibration.write(item, tmp_path)
    assert calibration.find_all(tmp_path, TAG)[0] == newer
    assert {item.key for item in calibration.find_all(tmp_path, TAG)} == {MADE.key, newer.key, FIELDS.key}
    assert calibration.find_all(tmp_path / "none", TAG) == []


def test_an_id_is_of_the_numbers(tmp_path: Path) -> None:
    calibration.write(MADE, tmp_path)
    found = find(tmp_path)
    assert found is not None and found.id == MADE.id
    others = [MADE, replace(MADE, temperature=2.6), replace(MADE, fit=replace(FIT, fitted=201))]
    assert len({FIELDS.id, *(item.id for item in others)}) == 4


def test_it_helps_if_the_rest_is_told_better() -> None:
    assert not FIT.helps
    assert replace(FIT, after=replace(MEASURES, nll=1.1)).helps
    assert not replace(FIT, after=replace(MEASURES, nll=1.3, ece=0.0)).helps


# Written whole


def test_whoever_reads_while_two_write_finds_one_of_both(tmp_path: Path) -> None:
    calibration.write(replace(MADE, temperature=2.0), tmp_path)

    def write_often(temperature: float) -> None:
        for _ in range(200):
            calibration.write(replace(MADE, temperature=temperature), tmp_path)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write_often, temperature) for temperature in (2.0, 3.0)]
        seen = set()
        while not all(writer.done() for writer in writers):
            found = find(tmp_path)
            assert found is not None
            seen.add(found.temperature)
    for writer in writers:
        writer.result()
    assert seen <= {2.0, 3.0}
    assert [item.suffix for item in (tmp_path / "smollm2-135m-instruct").iterdir()] == [".json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = calibration.write(MADE, tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        calibration.write(replace(MADE, temperature=9.0), tmp_path)
    assert find(tmp_path) == MADE
    assert list(path.parent.iterdir()) == [path]


# Read strictly


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        sealed = json.loads(path.read_text())
        change(sealed)
        path.write_text(json.dumps(sealed))

    return edit


def _forge(**changed: Any) -> Callable[[Path], None]:
    """A body that its digest is right for."""

    def forge(path: Path) -> None:
        sealed = json.loads(path.read_text())
        sealed["calibration"] |= changed
        sealed["sha256"] = calibration._digest(sealed["calibration"])
        path.write_text(json.dumps(sealed))

    return forge


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "not text": lambda path: path.write_bytes(b"\xff\xfe"),
    "not an object": lambda path: path.write_text("[1]"),
    "nested deeply": lambda path: path.write_text("[" * 100_000),
    "too large": lambda path: path.write_text(path.read_text() + " " * calibration.LARGEST),
    "a folder": _become_folder,
    "a digit changed": lambda path: path.write_text(path.read_text().replace("2.5", "2.6")),
    "another format": _edit(lambda sealed: sealed.update(format=2)),
    "no digest": _edit(lambda sealed: sealed.pop("sha256")),
    "an unknown field": _forge(colour="red"),
    "a missing fit": _forge(fit={}),
    "of other labels": _forge(labels=["a", "b", "c"]),
    "of other weights": _forge(model="smollm2-135m-instruct:other"),
    "unsorted": _forge(labels=list(LABELS[::-1])),
    "a label twice": _forge(labels=["a", "a", "b"]),
    "no labels": _forge(labels=[], bias=[]),
    "too few biases": _forge(bias=[0.0]),
    "a bias that is no number": _forge(bias=[0.0, "0", 0.0]),
    "no temperature": _forge(temperature=0.0),
    "a negative temperature": _forge(temperature=-1.0),
    "noise alone": _forge(noise=1.0),
    "less than no noise": _forge(noise=-0.1),
    "a threshold above 1": _forge(abstain_below=1.5),
    "a prior that is no text": _forge(prior=None),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_or_foreign_file_is_refused_and_mended_by_a_new_one(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    path = calibration.write(MADE, tmp_path)
    assert find(tmp_path) == MADE
    damage(path)
    for _ in range(2):  # not remembered as good, nor as bad
        with pytest.raises(Failure) as refused:
            find(tmp_path)
        assert refused.value.code == "calibration_invalid"
        assert str(tmp_path) not in refused.value.message
    if path.is_dir():
        path.rmdir()
    calibration.write(MADE, tmp_path)
    assert find(tmp_path) == MADE


def test_a_file_under_another_ones_name_is_refused(tmp_path: Path) -> None:
    path = calibration.write(MADE, tmp_path)
    path.rename(path.with_name(f"{FIELDS.key}.json"))
    with pytest.raises(Failure, match="something else"):
        calibration.find_fields(tmp_path, TAG, FIELDS.schema)
    with pytest.raises(Failure, match="something else"):
        calibration.find_all(tmp_path, TAG)


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 2},
        {"bias": (0.0, math.nan, 0.0)},
        {"abstain_below": -0.1},
        {"labels": ("b", "a", "c")},
    ],
)
def test_none_is_made_that_could_not_be_used(changed: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="calibration_invalid"):
        replace(MADE, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"data": "x"},
        {"data": 1},
        {"fitted": 0},
        {"measured": True},
        {"created": 1},
        {"after": replace(MEASURES, ece=math.nan)},
        {"before": replace(MEASURES, nll=1)},
    ],
)
def test_none_comes_from_nowhere(changed: dict[str, Any]) -> None:
    with pytest.raises(Failure):
        replace(FIT, **changed)


@pytest.mark.parametrize("numbers", [(-0.5, 0.0), (math.nan, 0.0), (1.0, math.inf)])
def test_the_surer_value_stays_the_surer(numbers: tuple[float, float]) -> None:
    with pytest.raises(Failure):
        FieldCalibration(TAG, "", *numbers, FIT)


@pytest.mark.parametrize("model", ["../escape", "", "/etc", "a/b", ".hidden", "UP", "x" * 200, "a\n"])
def test_a_models_name_cannot_lead_out_of_the_folder(tmp_path: Path, model: str) -> None:
    for ask in (
        lambda: calibration.write(replace(MADE, model=f"{model}:1"), tmp_path),
        lambda: calibration.find(tmp_path, model, LABELS),
    ):
        with pytest.raises(Failure, match="name"):
            ask()
    assert list(tmp_path.iterdir()) == []


# Applied


@given(st.lists(st.floats(-500, 500), min_size=3, max_size=3), st.permutations(range(3)))
def test_probabilities_are_a_softmax_that_knows_no_order(scores: list[float], order: list[int]) -> None:
    found = MADE.apply(LABELS, scores)
    logits = np.array(scores) / 2.5 + np.array(MADE.bias)
    shares = np.exp(logits - logits.max())
    assert found == pytest.approx(0.9 * shares / shares.sum() + 0.1 / 3, abs=1e-12)
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    shuffled = MADE.apply([LABELS[place] for place in order], [scores[place] for place in order])
    assert shuffled == pytest.approx([found[place] for place in order], abs=1e-15)


def test_labels_that_are_not_its_own_are_no_probabilities() -> None:
    with pytest.raises(KeyError):
        MADE.apply(["a", "b", "c"], [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="shorter"):
        MADE.apply(LABELS, [0.0, 0.0])


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_chance_lies_between_0_and_1_and_rises_with_the_confidence(low: float, high: float) -> None:
    low, high = sorted((low, high))
    steep = replace(FIELDS, slope=500.0)
    for made in (FIELDS, steep):
        assert 0 <= made.apply(low) <= made.apply(high) <= 1


def test_without_change_a_confidence_stays_what_it_is() -> None:
    same = replace(FIELDS, slope=1.0, offset=0.0)
    for raw in (0.001, 0.25, 0.5, 0.999):
        assert same.apply(raw) == pytest.approx(raw)
    assert (same.apply(0.0), same.apply(1.0)) == pytest.approx((calibration.SURE, 1 - calibration.SURE))


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import models.calibration; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    rooms = {name.partition(".")[0] for name in done.stdout.split()}
    assert {name for name in rooms if name not in sys.stdlib_module_names} <= {"models"}
