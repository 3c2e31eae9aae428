"""models/catalog.py: the rows, which one a machine gets, and what it is told where none fits."""

import re
from dataclasses import FrozenInstanceError

import pytest

from models import catalog
from models.failure import Failure

GB = 2**30
RTX_5090 = int(31.36 * GB)  # what the driver shows of its 32 GB


def test_rows_are_found_by_name() -> None:
    assert sorted(catalog.ROWS) == ["mixtral-8x7b-instruct", "smollm2-135m-instruct"]
    for name, row in catalog.ROWS.items():
        assert row.name == name
        assert catalog.row(name, 0) is row
        assert catalog.row(name, RTX_5090) is row


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        catalog.SMOLLM2.bits = 8  # type: ignore[misc]


def test_the_default_depends_on_the_card() -> None:
    assert catalog.row("", RTX_5090) is catalog.MIXTRAL
    assert catalog.row("", 8 * GB) is catalog.MIXTRAL  # refused by require_card, not served something smaller
    assert catalog.row("", 0) is catalog.SMOLLM2


@pytest.mark.parametrize("name", ["gpt-2", "SMOLLM2-135M-INSTRUCT", " ", "../x"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(Failure) as refused:
        catalog.row(name, 0)
    assert refused.value.code == "model_not_found"
    assert refused.value.message == (
        f"no model is called {name!r}; known: smollm2-135m-instruct, mixtral-8x7b-instruct"
    )


def test_a_24_gb_card_is_refused_with_the_numbers() -> None:
    with pytest.raises(Failure) as refused:
        catalog.require_card(catalog.MIXTRAL, int(23.99 * GB))
    assert refused.value.code == "card_too_small"
    assert refused.value.message == (
        "mixtral-8x7b-instruct needs 25.8 GiB of GPU memory (27,705,740,800 bytes: weights, workspace and "
        "8,192 tokens of KV cache); the card has 24.0 GiB"
    )


def test_no_card_is_refused_with_the_numbers() -> None:
    with pytest.raises(Failure) as refused:
        catalog.require_card(catalog.MIXTRAL, 0)
    assert refused.value.code == "card_too_small"
    assert "needs 25.8 GiB" in refused.value.message
    assert refused.value.message.endswith("; there is no GPU here")


def test_a_5090_holds_mixtral() -> None:
    catalog.require_card(catalog.MIXTRAL, RTX_5090)


def test_the_limit_is_exact() -> None:
    catalog.require_card(catalog.MIXTRAL, catalog.MIXTRAL.card_bytes)
    with pytest.raises(Failure):
        catalog.require_card(catalog.MIXTRAL, catalog.MIXTRAL.card_bytes - 1)


@pytest.mark.parametrize("card_bytes", [0, 1, RTX_5090])
def test_smollm2_runs_anywhere(card_bytes: int) -> None:
    catalog.require_card(catalog.SMOLLM2, card_bytes)


def test_markers_are_those_of_the_template() -> None:
    assert set(catalog.MIXTRAL.markers) == {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}
    assert catalog.SMOLLM2.markers == ()  # its <|im_start|> are special tokens


def test_every_source_is_pinned() -> None:
    for row in catalog.ROWS.values():
        if isinstance(row.source, catalog.Hub):
            assert re.fullmatch(r"[0-9a-f]{40}", row.source.revision)
        else:
            assert re.fullmatch(r"[0-9a-f]{64}", row.source.sha256)
            assert row.source.revision == row.source.sha256


def test_every_row_can_be_served() -> None:
    for row in catalog.ROWS.values():
        assert row.bits == 4
        assert row.dtype in ("float32", "bfloat16")
        assert 0 < row.max_new_tokens < row.context_length
        assert 0 <= row.temperature <= 2
        assert 0 < row.top_p <= 1
        assert row.card
