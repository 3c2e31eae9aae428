"""models/catalog.py: the rows, and which one a machine gets."""

import re
from dataclasses import FrozenInstanceError

import pytest

from models import catalog
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


def test_every_source_that_is_known_is_pinned() -> None:
    for row in catalog.ROWS.values():
        if row.sees:
            assert isinstance(row.source, catalog.Hub) and not row.source.revision
        elif isinstance(row.source, catalog.Hub):
            assert re.fullmatch(r"[0-9a-f]{40}", row.source.revision)
        else:
            assert re.fullmatch(r"[0-9a-f]{64}", row.source.sha256)
            assert row.source.revision == row.source.sha256


def test_every_row_can_be_served() -> None:
    for row in catalog.ROWS.values():
        assert row.bits in (4, 16)
        assert row.dtype in ("float32", "bfloat16")
        assert 0 < row.max_new_tokens < row.context_length
        assert 0 <= row.temperature <= 2
        assert 0 < row.top_p <= 1
        assert row.card
