"""models/catalog.py: the rows, and which one a machine gets."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import bert_score
import pytest

from models import catalog, origin
from models.failure import Failure


def test_rows_are_found_by_name() -> None:
    assert sorted(catalog.ROWS) == [
        "mixtral-8x7b-instruct",
        "shizhengpt-32b-vl",
        "shizhengpt-32b-vl-nf4",
        "smollm2-135m-instruct",
    ]
    for name, row in catalog.ROWS.items():
        assert row.name == name
        assert catalog.row(name, False) is row
        assert catalog.row(name, True) is row


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        catalog.SMOLLM2.bits = 8  # type: ignore[misc]


def test_the_default_depends_on_the_card() -> None:
    assert catalog.row("", True) is catalog.MIXTRAL  # a card that is too small is refused, not given a smaller model
    assert catalog.row("", False) is catalog.SMOLLM2


@pytest.mark.parametrize("name", ["gpt-2", "SMOLLM2-135M-INSTRUCT", " ", "../x"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(Failure) as refused:
        catalog.row(name, False)
    assert refused.value.code == "model_not_found"
    assert refused.value.message == (f"no model is called {name!r}; known: {', '.join(catalog.ROWS)}")


def test_markers_are_those_of_the_template() -> None:
    assert set(catalog.MIXTRAL.markers) == {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>"}
    assert catalog.MIXTRAL.alternates
    assert catalog.SMOLLM2.markers == ()  # its <|im_start|> are special tokens
    assert not catalog.SMOLLM2.alternates


def test_the_rows_that_see_are_those_of_one_kind_and_differ_in_bits() -> None:
    assert [row for row in catalog.ROWS.values() if row.sees] == [catalog.SHIZHENGPT, catalog.SHIZHENGPT_NF4]
    assert (catalog.SHIZHENGPT.bits, catalog.SHIZHENGPT_NF4.bits) == (16, 4)
    assert catalog.SHIZHENGPT.config == catalog.SHIZHENGPT_NF4.config


def test_encoders_are_kept_apart_from_what_is_served() -> None:
    assert sorted(catalog.ENCODERS) == ["all-minilm-l6-v2", "deberta-xlarge-mnli"]
    assert {**catalog.ROWS, **catalog.ENCODERS} == catalog.IMPORTS
    for name, row in catalog.ENCODERS.items():
        assert catalog.encoder(name) is row
        with pytest.raises(Failure, match="no model is called"):
            catalog.row(name, False)
    with pytest.raises(Failure, match="model: no encoder is called so; known: all-minilm-l6-v2, deberta"):
        catalog.encoder("mixtral-8x7b-instruct")


def test_an_encoder_is_read_within_what_it_knows() -> None:
    for row in catalog.ENCODERS.values():
        assert 0 < row.layer <= row.config["num_hidden_layers"]
        assert 0 <= row.embeds <= row.window <= min(row.config["max_position_embeddings"], row.batch_tokens)
        assert (row.bits, row.dtype) == (32, "float32")
        assert row.architecture in row.published and row.card


def test_the_baseline_is_the_official_one() -> None:
    """And so is the layer: the package's table has a line for each that the model has."""
    folder = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / "microsoft"
    lines = (folder / "deberta-xlarge-mnli.tsv").read_text().splitlines()[1:]
    assert len(lines) == 49  # the embeddings and 48 layers
    assert lines[40] == ",".join(map(str, (catalog.DEBERTA.layer, *(catalog.DEBERTA.baseline or ()))))
    assert bert_score.utils.model2layers["microsoft/deberta-xlarge-mnli"] == catalog.DEBERTA.layer


def test_every_source_that_is_known_is_pinned() -> None:
    for row in catalog.IMPORTS.values():
        if row in (catalog.DEBERTA, catalog.SHIZHENGPT, catalog.SHIZHENGPT_NF4):
            assert row.source.revision == ""  # --revision or --source has to say
        elif isinstance(row.source, origin.Hub):
            assert re.fullmatch(r"[0-9a-f]{40}", row.source.revision)
        else:
            assert re.fullmatch(r"[0-9a-f]{64}", row.source.sha256)
            assert row.source.revision == row.source.sha256
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in row.source.beside.values())


def test_every_row_can_be_served() -> None:
    for row in catalog.ROWS.values():
        assert row.bits in (4, 16)
        assert row.dtype in ("float32", "bfloat16")
        assert 0 < row.max_new_tokens < row.context_length
        assert 0 <= row.temperature <= 2
        assert 0 < row.top_p <= 1
        assert row.card
