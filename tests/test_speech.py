"""models/speech.py: what rows say in pieces is what they say at once, and a faulty row is nobody's answer."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import manifest, store
from models.catalog import MIXTRAL, SMOLLM2
from models.chat import Chats
from models.engine.engine import Engine
from models.engine.grammar import Grammars
from models.engine.sequence import Completion, Sampling, Sequence
from models.failure import Failure
from models.runtime import stop_ids
from models.speech import Delta, Form, Speech, Voice, join
from models.template import Template
from models.text import LOST, Stops, Text
from serving.chat import Request
from tests.conftest import started

NEVER = float("inf")
RECORD = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "kind": {"enum": ["one", "two"]}, "text": {"type": "string"}},
    "required": ["a", "kind", "text"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def small(tiny_home: Path) -> store.Loaded:
    return store.load(manifest.locate(SMOLLM2, tiny_home / "models"), torch.device("cpu"))


@pytest.fixture(scope="module")
def template(small: store.Loaded) -> Template:
    return Template(small.tokenizer, (), alternates=False)


@pytest.fixture(scope="module")
def grammars(small: store.Loaded) -> Grammars:
    return Grammars(small.tokenizer, small.network.config.vocab_size, stop_ids(small))


@pytest.fixture(scope="module")
def engine(small: store.Loaded) -> Iterator[Engine]:
    made = Engine(small.network, stop_ids(small), kv_tokens=16_384, step_tokens=512, queue_tokens=1_000_000)
    with started(made) as engine:
        yield engine


@pytest.fixture(scope="module")
def chats(engine: Engine, template: Template, grammars: Grammars) -> Chats:
    return Chats(SMOLLM2, "tag", "fp", template, grammars, engine)


def say(chats: Chats, **more: Any) -> Speech:
    body = {"model": SMOLLM2.name, "messages": [{"role": "user", "content": "Hello"}], **more}
    return chats.talk(Request.parse(json.dumps(body).encode()), time.monotonic() + 60)


def answer(chats: Chats, **more: Any) -> list[Delta]:
    return asyncio.run(say(chats, **more).answer())


def pieces(speech: Speech) -> list[Delta]:
    async def listen() -> list[Delta]:
        return [delta async for delta in speech.deltas()]

    return asyncio.run(listen())


def row_of(deltas: list[Delta], at: int = 0) -> Delta:
    return join([delta for delta in deltas if delta.index == at])


WARM = {"temperature": 1.5, "seed": 5, "max_tokens": 60}
TOPS = {"logprobs": True, "top_logprobs": 3}
LIKE = {"response_format": {"type": "json_schema", "json_schema": {"name": "record", "schema": RECORD}}}
TOOLS = {"tools": [{"type": "function", "function": {"name": name, "parameters": RECORD}} for name in ("f", "g")]}


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 40},
        WARM,
        {**WARM, **TOPS},
        {**WARM, "n": 3, "logprobs": True},
        {"max_tokens": 80, **LIKE, **TOPS},
        {**WARM, **LIKE, "n": 2},
        {**WARM, **TOOLS, "tool_choice": "required"},
        {**WARM, **TOOLS},
    ],
    ids=range(8),
)
def test_pieces_joined_are_the_whole(more: dict[str, Any], chats: Chats, template: Template) -> None:
    whole = answer(chats, **more)
    speech = say(chats, **more)
    deltas = pieces(speech)
    for at, said in enumerate(whole):
        told = row_of(deltas, at)
        assert replace(told, tokens=()) == replace(said, tokens=())
        assert [(token.piece, token.start) for token in told.tokens] == [
            (token.piece, token.start) for token in said.tokens
        ]
        # What is cached of a prompt rounds otherwise than what is computed with it.
        assert [token.logprob for token in told.tokens] == pytest.approx(
            [token.logprob for token in said.tokens], abs=1e-3
        )
    for at, row in enumerate(speech.rows):
        made = row.future.result()
        assert sum(delta.finish_reason is not None for delta in deltas if delta.index == at) == 1
        if not speech.voices[at]._form:
            assert whole[at].text == template.decode(made.tokens)
    assert speech.completion_tokens == sum(len(row.future.result().tokens) for row in speech.rows)
    if "tools" not in more:
        assert len(deltas) > len(whole) * 10


def test_a_stop_ends_the_text_and_frees_the_row(chats: Chats, engine: Engine) -> None:
    (free,) = answer(chats, **WARM, **TOPS)
    assert free.finish_reason == "length" and len(free.text) > 100
    for first, length in ((40, 3), (41, 12), (77, 1), (0, 2)):
        stop = free.text[first : first + length]
        at = free.text.index(stop)
        speech = say(chats, **{**WARM, "max_tokens": 4000}, stop=["never", stop], **TOPS)
        deltas = pieces(speech)
        told = row_of(deltas)
        assert (told.text, told.finish_reason) == (free.text[:at], "stop")
        assert told.tokens == tuple(token for token in free.tokens if token.start < at)
        assert not any(stop in "".join(delta.text for delta in deltas[:end]) for end in range(len(deltas)))
        assert speech.rows[0].future.cancelled()
        assert speech.completion_tokens < 60
    end = time.monotonic() + 10
    while engine.running and time.monotonic() < end:
        time.sleep(0.01)
    assert (engine.running, engine.cache.used) == (0, 0)


def test_of_several_rows_one_may_stop_before_the_others(chats: Chats) -> None:
    first, second = answer(chats, **WARM, n=2)
    stop = first.text[50:60]
    assert stop not in second.text
    told = answer(chats, **WARM, n=2, stop=stop)
    assert (told[0].finish_reason, told[1].finish_reason) == ("stop", "length")
    assert told[1].text == second.text


def test_rows_have_seeds_of_their_own(chats: Chats) -> None:
    together = answer(chats, **WARM, n=3)
    for at, said in enumerate(together):
        (alone,) = answer(chats, **{**WARM, "seed": 5 + at})
        assert (alone.text, alone.finish_reason) == (said.text, said.finish_reason)
    assert len({said.text for said in together}) == 3
    unseeded = {answer(chats, **{**WARM, "seed": None})[0].text for _ in range(3)}
    assert len(unseeded) == 3
    assert len({said.text for said in answer(chats, max_tokens=20, n=3)}) == 1  # greedy


def test_tokens_spell_the_text(chats: Chats) -> None:
    for more in ({}, LIKE):
        (said,) = answer(chats, **WARM, **more, **TOPS)
        assert b"".join(token.piece for token in said.tokens).decode(errors="replace") == said.text
        for token in said.tokens:
            piece = token.piece.decode(errors="replace")
            # Behind bytes that come to be no character, their place is told.
            assert LOST in piece or token.start <= said.text.find(piece, token.start) <= token.start + 4
            ranked = [logprob for _, logprob in token.tops]
            assert ranked == sorted(ranked, reverse=True) and 1 <= len(ranked) <= 3
            assert token.logprob <= ranked[0]
    forced = [token for token in said.tokens if token.logprob == 0]
    assert forced and all(token.tops == ((token.piece, 0.0),) for token in forced)


def test_an_answer_closed_for_want_of_tokens_is_whole_but_not_all(chats: Chats) -> None:
    (said,) = answer(chats, **LIKE, max_tokens=30)
    assert said.finish_reason == "length"
    assert json.loads(said.text).keys() == {"a", "kind", "text"}
    (called,) = answer(chats, **TOOLS, tool_choice="required", max_tokens=60)
    assert (len(called.calls) > 0, called.finish_reason, called.text) == (True, "length", "")
    assert [json.loads(call.arguments).keys() == {"a", "kind", "text"} for call in called.calls]


def test_a_bound_that_was_supplied_is_an_end_for_want_of_length(chats: Chats) -> None:
    """The schema has none for its items, of which the model says as many as it may."""
    items = {"type": "array", "items": {"enum": [0]}}
    like = {"response_format": {"type": "json_schema", "json_schema": {"name": "items", "schema": items}}}
    found = {
        (len(json.loads(said.text)), said.finish_reason)
        for seed in range(4)
        for said in answer(chats, **like, temperature=2.0, seed=seed, n=4, max_tokens=1000)
    }
    assert all((reason == "length") == (length >= 199) for length, reason in found)
    assert len(found) > 3


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_that_is_cut_is_a_failure(chats: Chats, whole: bool) -> None:
    """Where nothing keeps it able to close; in a stream after what has been told."""
    speech = say(chats, max_tokens=16, **LIKE)
    speech.rows[0].guard = None
    heard: list[Delta] = []

    async def listen() -> None:
        async for delta in speech.deltas():
            heard.append(delta)

    with pytest.raises(Failure) as caught:
        asyncio.run(answer_of(speech) if whole else listen())
    assert caught.value.code == "answer_truncated"
    assert whole or not any(delta.finish_reason for delta in heard)


async def answer_of(speech: Speech) -> Any:
    return await speech.answer()


def test_what_does_not_fit_is_a_failure_whatever_was_promised(template: Template, grammars: Grammars) -> None:
    form = Form(RECORD, grammars.compile(RECORD))
    for text, code in (('{"a":1,"kind":"three","text":""}', "answer_invalid"), ('{"a":', "answer_invalid")):
        ids = template.continued(text)
        row = Sequence([1], Sampling(100))
        voice = Voice(0, row, Text(template), Stops([]), form)
        assert "".join(delta.text for id in ids if (delta := voice.hear(id))) == text
        with pytest.raises(Failure) as caught:
            voice.close(Completion(ids, "stop", 1, 0.0, 0.0))
        assert caught.value.code == code
        assert "three" not in caught.value.message


def test_where_one_row_fails_all_do(chats: Chats, engine: Engine) -> None:
    speech = say(chats, **{**WARM, "max_tokens": 4000}, n=3)

    async def listen() -> None:
        async for _ in speech.deltas():
            speech.rows[1].deadline = 0.0

    with pytest.raises(Failure, match="deadline_exceeded"):
        asyncio.run(listen())
    assert all(row.future.done() for row in speech.rows)
    assert speech.rows[0].future.cancelled() and speech.rows[2].future.cancelled()


def test_who_leaves_is_told_so(chats: Chats) -> None:
    speech = say(chats, **{**WARM, "max_tokens": 4000}, n=2)

    async def listen() -> None:
        async for _ in speech.deltas():
            speech.cancel()

    with pytest.raises(Failure, match="client_closed_request"):
        asyncio.run(listen())


def test_rows_of_a_prompt_share_what_is_computed_of_it(chats: Chats, engine: Engine) -> None:
    before = engine.tokens["prompt"]
    speech = say(chats, messages=[{"role": "user", "content": "word " * 400}], **WARM, n=4)
    asyncio.run(speech.answer())
    assert speech.prompt_tokens > 400
    assert engine.tokens["prompt"] - before < speech.prompt_tokens + 4 * 32


def test_the_same_over_mixtrals_tokenizer(tiny_mixtral_home: Path) -> None:
    """SentencePiece: a first blank that is none of the answer's, byte tokens, and joiners in markers."""
    loaded = store.load(manifest.locate(MIXTRAL, tiny_mixtral_home / "models"), torch.device("cpu"))
    template = Template(loaded.tokenizer, MIXTRAL.markers, MIXTRAL.alternates)
    grammars = Grammars(loaded.tokenizer, loaded.network.config.vocab_size, stop_ids(loaded))
    made = Engine(loaded.network, stop_ids(loaded), kv_tokens=8192, step_tokens=512, queue_tokens=1_000_000)
    with started(made) as engine:
        chats = Chats(MIXTRAL, SMOLLM2.name, "fp", template, grammars, engine)
        for more in ({}, LIKE, {**TOOLS, "tool_choice": "required"}, TOOLS):
            for seed in range(2):
                asked = {**WARM, "seed": seed, "max_tokens": 60, **more}
                speech = say(chats, **asked)
                told = row_of(pieces(speech))
                (whole,) = answer(chats, **asked)
                assert (told.text, told.calls, told.finish_reason) == (whole.text, whole.calls, whole.finish_reason)
                spelled = template.decode(speech.rows[0].future.result().tokens)
                if more is LIKE:
                    assert told.text == spelled.strip()
                    assert json.loads(told.text).keys() == {"a", "kind", "text"}
                elif not more:
                    assert told.text == spelled or LOST in spelled
                else:
                    assert told.calls or "tool_choice" not in more
                    for call in told.calls:
                        assert json.loads(call.arguments).keys() == {"a", "kind", "text"}
