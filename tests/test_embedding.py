"""models/embedding.py beside sentence-transformers: the same vectors, whoever else asks at the same time."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from models import machine
from models.embedding import Embeddings, Vectors, pool
from models.encoders import Encoders
from models.errand import Errand
from models.failure import Failure, FieldFailure

NAME = "all-minilm-l6-v2"
TEXTS = [
    "hello",
    "",
    "a cat sat on the mat",
    "😀 👩‍👩‍👧 ❤️",
    "word " * 253,
    "word " * 254,
    "word " * 255,
    "long " * 3000,
]
TEXTS += [
    "ご請求金額は1,000円です。",
    "e\u0301" * 400,
    " \n\t ",
    "UPPER lower",
    "\u202eright to left",
    "x" * 5000,
    "hello",
]


@dataclass
class Asked:
    texts: list[str]
    model: str = ""
    truncate: bool = True
    dimensions: int | None = None

    def place(self, at: int) -> str:
        return f"texts.{at}"


@pytest.fixture(scope="module")
def encoders(encoder_home: Path) -> Iterator[Encoders]:
    found = Encoders(encoder_home / "models", machine.look("cpu"), rows=4, most=40)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def embeddings(encoders: Encoders) -> Embeddings:
    return Embeddings(encoders, NAME)


@pytest.fixture(scope="module")
def official(minilm_folder: Path) -> SentenceTransformer:
    """As modules.json, 1_Pooling/config.json and sentence_bert_config.json of the publisher say."""
    read = Transformer(str(minilm_folder), max_seq_length=256)
    return SentenceTransformer(modules=[read, Pooling(384, pooling_mode="mean"), Normalize()], device="cpu")


def take(embeddings: Embeddings, asked: Asked) -> Errand[Vectors]:
    return embeddings.ask(asked, time.monotonic() + 60)


def ask(embeddings: Embeddings, texts: list[str], **more: object) -> Vectors:
    ticket = take(embeddings, Asked(texts, **more))  # type: ignore[arg-type]
    embeddings.begin()
    return asyncio.run(ticket.answer())


def test_vectors_are_those_of_sentence_transformers(embeddings: Embeddings, official: SentenceTransformer) -> None:
    theirs = official.encode(TEXTS)
    ours = ask(embeddings, TEXTS)
    assert ours.vectors.dtype == np.float32
    assert np.abs(ours.vectors - theirs).max() < 1e-5
    assert ours.truncated == [6, 7]
    read = [min(len(ids), 256) for ids in official.tokenizer(TEXTS, truncation=False)["input_ids"]]
    assert ours.tokens == sum(read)
    assert ours.model.startswith(f"{NAME}:") and ours.seconds > 0
    for text, vector in zip(TEXTS, theirs, strict=True):
        assert np.abs(ask(embeddings, [text]).vectors[0] - vector).max() < 1e-5


WRITTEN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(WRITTEN, min_size=1, max_size=9))
def test_any_text_has_their_vector(texts: list[str], embeddings: Embeddings, official: SentenceTransformer) -> None:
    assert np.abs(ask(embeddings, texts).vectors - official.encode(texts)).max() < 1e-5


def test_a_special_token_in_a_text_is_text(embeddings: Embeddings, official: SentenceTransformer) -> None:
    """There it would end the text, or hide what it stands for."""
    ours = ask(embeddings, ["one [SEP] two", "one [ SEP ] two", "one [PAD] two"]).vectors
    assert np.abs(ours[0] - ours[1]).max() < 1e-5
    assert np.abs(ours[0] - official.encode("one [SEP] two")).max() > 0.01


def test_what_is_gathered_is_computed_together_and_echoed_to_each(embeddings: Embeddings) -> None:
    alone = ask(embeddings, TEXTS).vectors
    tickets = [take(embeddings, Asked(TEXTS[at:] + TEXTS[:at])) for at in range(5)]
    refused = take(embeddings, Asked(["short", *TEXTS], truncate=False))
    left = take(embeddings, Asked(TEXTS))
    left.cancel()
    late = embeddings.ask(Asked(TEXTS), time.monotonic() - 1)
    embeddings.begin()
    for at, ticket in enumerate(tickets):
        assert np.abs(asyncio.run(ticket.answer()).vectors - np.roll(alone, -at, axis=0)).max() < 1e-5
    for ticket, code in ((left, "client_closed_request"), (late, "deadline_exceeded")):
        with pytest.raises(Failure) as failed:
            asyncio.run(ticket.answer())
        assert failed.value.code == code
    with pytest.raises(FieldFailure) as overlong:
        asyncio.run(refused.answer())
    assert (overlong.value.code, overlong.value.param) == ("context_length_exceeded", "texts.7")
    assert overlong.value.message == "texts.7: the text has 257 tokens; the model reads 256"


def test_what_cannot_be_asked_for_is_refused_at_once(embeddings: Embeddings, encoders: Encoders) -> None:
    for asked, code, said in (
        (Asked(["a"], model="gpt-2"), "model_not_found", "model: no encoder is called so"),
        (Asked(["a"], model="deberta-xlarge-mnli"), "model_not_found", "run scripts/import_model deberta-xlarge-mnli"),
        (Asked(["a"], dimensions=383), "invalid_value", "dimensions: 383; all-minilm-l6-v2 has 384"),
    ):
        with pytest.raises(Failure, match=said) as refused:
            take(embeddings, asked)
        assert refused.value.code == code
    assert encoders.under_way == 0
    assert ask(embeddings, ["a"], dimensions=384).vectors.shape == (1, 384)


def test_more_than_may_be_under_way_is_busy(embeddings: Embeddings, encoders: Encoders) -> None:
    tickets = [take(embeddings, Asked(["a"])) for _ in range(40)]
    with pytest.raises(Failure) as busy:
        take(embeddings, Asked(["a"]))
    assert (busy.value.code, busy.value.message) == ("busy", "40 requests are under way, as many as may be")
    embeddings.begin()
    assert all(asyncio.run(ticket.answer()).tokens == 3 for ticket in tickets)
    assert encoders.under_way == 0


def test_a_vector_that_is_no_number_is_a_failure_of_its_request_alone(
    embeddings: Embeddings, encoders: Encoders
) -> None:
    with encoders.use(NAME) as encoder:
        table: Any = encoder._network.get_input_embeddings().weight
        (broken,) = encoder.tokenise(["zebra"])[0]
        kept = table[broken].clone()
        table[broken] = torch.nan
        bad, good = take(embeddings, Asked(["zebra"])), take(embeddings, Asked(["cat", "dog"]))
        embeddings.begin()
        with pytest.raises(Failure) as failed:
            asyncio.run(bad.answer())
        assert np.isfinite(asyncio.run(good.answer()).vectors).all()
        table[broken] = kept
    assert (failed.value.code, failed.value.message) == ("model_error", "the model has no vector for text 0")


def test_padding_has_no_part_in_the_mean() -> None:
    said = torch.tensor([[[3.0, 4.0], [100.0, -7.0]], [[0.0, 2.0], [0.0, 4.0]]])
    first, second = pool(said, torch.tensor([[1, 0], [1, 1]]))
    assert first.tolist() == pytest.approx([0.6, 0.8])
    assert second.tolist() == pytest.approx([0.0, 1.0])
