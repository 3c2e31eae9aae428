"""models/decisions.py and models/priors.py: many questions about one input, which is read once; each answer is what the
model says of the labels' own texts."""

import asyncio
import math
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from models import catalog, manifest, store
from models.catalog import MIXTRAL, SMOLLM2, Model
from models.decisions import FENCE, LEAD, SHARE, Decisions, Findings, put
from models.engine.cache import BLOCK
from models.engine.engine import Engine
from models.engine.sequence import Sampling, Sequence
from models.failure import Failure
from models.question import render
from models.runtime import stop_ids
from models.scoring import EMPTY, spell
from models.template import Template, Turn
from tests.conftest import started

NEVER = float("inf")
TAG = "smollm2-135m-instruct:tiny"
DOCUMENT = "INVOICE no. 77\nTwo chairs, 12.50 EUR each.\nPaid in cash, thank you. " * 6
LISTING = replace(SMOLLM2, lists_labels=True)


@dataclass(frozen=True)
class Asked:
    """An inquiry."""

    task: str
    labels: tuple[tuple[str, str], ...] = ()
    type: str = "predicate"


@dataclass(frozen=True)
class Request:
    questions: Listing[Asked]
    parts: Mapping[str, str] = field(default_factory=lambda: {"input": DOCUMENT})
    model: str = "smollm2-135m-instruct"


def choose(task: str, *labels: str) -> Asked:
    return Asked(task, tuple((label, "") for label in labels), "choice")


def rate(task: str, *labels: str) -> Asked:
    return replace(choose(task, *labels), type="score")


def load(home: Path) -> store.Loaded:
    return store.load(manifest.locate(catalog.SMOLLM2, home / "models"), torch.device("cpu"))


@pytest.fixture(scope="module")
def small(tiny_home: Path) -> store.Loaded:
    return load(tiny_home)


@pytest.fixture(scope="module")
def apart(tiny_home: Path) -> store.Loaded:
    """The same model, computed by transformers alone: no engine has touched it."""
    return load(tiny_home)


def make(loaded: store.Loaded, queue_tokens: int = 1_000_000, kv_tokens: int = 16_384) -> Engine:
    return Engine(loaded.network, stop_ids(loaded), kv_tokens=kv_tokens, step_tokens=512, queue_tokens=queue_tokens)


def decide(loaded: store.Loaded, engine: Engine, model: Model = SMOLLM2, most: int = 1_000_000) -> Decisions:
    return Decisions(model, TAG, loaded.tokenizer, engine, SHARE * most)


@pytest.fixture(scope="module")
def running(small: store.Loaded) -> Iterator[Engine]:
    with started(make(small)) as engine:
        yield engine


def ask(decisions: Decisions, *questions: Asked, deadline: float = NEVER, **more: Any) -> Findings:
    return asyncio.run(wait(decisions, Request(questions, **more), deadline))


async def wait(decisions: Decisions, request: Request, deadline: float = NEVER) -> Findings:
    deadline = min(deadline, time.monotonic() + 60)
    return await decisions.ask(request, deadline).answer()


def shares(found: Findings) -> list[list[float]]:
    return [share for share in found.shares if share is not None]


# ---- what the model is shown ---------------------------------------------------------------------------------------

TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(["```", "````", "`", "\n", " ", "\n```\n", "[INST]", "[/INST]", "</s>", "<|im_end|>", "x", "“"]),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module", params=["smollm2", "mixtral"])
def unstarted(
    request: pytest.FixtureRequest, small: store.Loaded, mixtral_tokenizer: PreTrainedTokenizerFast
) -> tuple[Decisions, Template]:
    """With each model's own tokenizer and chat template."""
    model, tokenizer = (SMOLLM2, small.tokenizer) if request.param == "smollm2" else (MIXTRAL, mixtral_tokenizer)
    template = Template(tokenizer, model.markers, model.alternates)
    return Decisions(model, TAG, tokenizer, make(small), 1_000_000), template


@settings(deadline=None, max_examples=150)
@given(TEXTS, TEXTS)
def test_input_and_question_in_pieces_are_the_ids_of_the_whole_turn(
    unstarted: tuple[Decisions, Template], text: str, task: str
) -> None:
    """So the input can be read once, and whatever stands in it cannot end its block or reach into the question."""
    decisions, template = unstarted
    inquiry = Asked(task)
    front, question = decisions._open({"input": text}), decisions._read(inquiry)
    whole = render(LEAD, {"input": text}, []) + "\n\n" + put(inquiry, False)
    assert front + question.tail == template.encode([Turn("user", whole)])


@given(TEXTS)
def test_no_text_closes_its_own_block(text: str) -> None:
    shown = render(LEAD, {"input": text}, [])
    fence = shown.rsplit("\n", 1)[1]
    assert set(fence) == {"`"} and fence.startswith(FENCE)
    assert shown == f'{LEAD}\n\n"input":\n{fence}\n{text}\n{fence}'
    assert fence not in text


def test_each_type_has_its_form() -> None:
    pay, sure = choose("Who pays?", "we", "they"), rate("How sure?", "not", "very")
    assert put(Asked("It is paid."), False) == (
        "Statement: It is paid.\n\nIs this statement about the input true? Answer Yes or No."
    )
    assert put(pay, False) == "Question: Who pays?"
    assert put(pay, True).endswith("Answer with one of these and nothing else:\n- we\n- they")
    described = replace(pay, labels=(("we", "the sender"), ("they", "")))
    assert put(described, False).endswith("- we: the sender\n- they")
    assert put(sure, False).endswith("they go from the lowest to the highest:\n- not\n- very")


# ---- what is answered ----------------------------------------------------------------------------------------------


def batched(labels: Listing[Any], size: int) -> Iterator[Listing[Any]]:
    return (labels[first : first + size] for first in range(0, len(labels), size))


class Oracle:
    """Scores each label in a row of its own, through transformers alone."""

    def __init__(self, loaded: store.Loaded, model: Model) -> None:
        self._loaded = loaded
        self._model = model
        self._template = Template(loaded.tokenizer, model.markers, model.alternates)

    def scores(self, stem: list[int], labels: Listing[tuple[int, ...]]) -> list[float]:
        rows = [torch.tensor([*stem, *label]) for label in labels]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # what stands behind a label changes nothing
        with torch.inference_mode():
            told = self._loaded.network(ids, logits_to_keep=ids.shape[1] - len(stem) + 1).logits.float()
        return [
            math.fsum(float(row[at, token] - row[at].logsumexp(-1)) for at, token in enumerate(label))
            for row, label in zip(told, labels, strict=True)
        ]

    def shares(self, inquiry: Asked, text: str) -> list[float]:
        names = [label for label, _ in inquiry.labels] or ["Yes", "No"]
        labels = spell(self._template, names, self._loaded.tokenizer.eos_token_id).labels

        def scores(text: str) -> list[float]:
            whole = render(LEAD, {"input": text}, []) + "\n\n" + put(inquiry, self._model.lists_labels)
            stem = self._template.encode([Turn("user", whole)])
            return [score for chunk in batched(labels, 20) for score in self.scores(stem, chunk)]

        columns = zip(*[scores(empty) for empty in EMPTY], strict=True)
        prior = [sum(column) / len(EMPTY) for column in columns]
        logits = torch.tensor([a - b for a, b in zip(scores(text), prior, strict=True)], dtype=torch.float64)
        return list(logits.softmax(0).tolist())


@pytest.mark.parametrize("model", [SMOLLM2, LISTING], ids=["unlisted", "listed"])
def test_probabilities_are_those_of_scoring_each_label_alone(
    small: store.Loaded, apart: store.Loaded, running: Engine, model: Model
) -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
    questions = [
        Asked("It has been paid."),
        choose("Which?", "invoice", "credit note", "credit", "a letter of complaint"),
        choose("Which?", "true", "false"),
        choose("How long?", *(" ".join(words[: end + 1]) for end in range(len(words)))),
        rate("How friendly?", "not at all", "somewhat", "very", "very much so"),
        replace(choose("Who?", "we", "they"), labels=(("we", "the sender"), ("they", "someone else"))),
    ]
    found = ask(decide(small, running, model), *questions)
    oracle = Oracle(apart, model)
    for question, share in zip(questions, found.shares, strict=True):
        assert share == pytest.approx(oracle.shares(question, DOCUMENT), abs=1e-5)


def test_a_hundred_choices_of_a_dozen_tokens(small: store.Loaded, apart: store.Loaded, running: Engine) -> None:
    labels = [f"department {number} of the office for chairs, tables and lamps" for number in range(100)]
    template = Template(small.tokenizer, (), False)
    assert min(len(template.reply(label)) for label in labels) >= 12
    question = choose("Who is to answer?", *labels)
    (share,) = shares(ask(decide(small, running), question))
    assert share == pytest.approx(Oracle(apart, SMOLLM2).shares(question, DOCUMENT), abs=1e-5)


LABEL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=25)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(LABEL, min_size=2, max_size=9, unique=True), min_size=1, max_size=4), TEXTS)
def test_whatever_is_asked_the_shares_are_probabilities(
    small: store.Loaded, running: Engine, labels: list[list[str]], text: str
) -> None:
    found = ask(decide(small, running), *(choose(text, *names) for names in labels), parts={"input": text})
    assert [len(share) for share in shares(found)] == [len(names) for names in labels]
    for share in shares(found):
        assert math.fsum(share) == pytest.approx(1, abs=1e-12)
        assert min(share) >= 0


def test_an_input_that_says_nothing_decides_nothing(small: store.Loaded, running: Engine) -> None:
    """What labels get behind such inputs is what is taken off; with a single such input nothing would be left."""
    question = choose("Which?", "invoice", "a letter of complaint from a customer")
    decisions = decide(small, running)
    full, empty = (ask(decisions, question, parts={"input": text}) for text in (DOCUMENT, "N/A"))
    assert abs(shares(empty)[0][0] - 0.5) < 0.1
    assert full.shares != empty.shares


# ---- what is computed ----------------------------------------------------------------------------------------------


def count(engine: Engine, decisions: Decisions, *questions: Asked) -> int:
    """Prompt tokens that are computed for these questions."""
    before = engine.tokens["prompt"]
    ask(decisions, *questions)
    return engine.tokens["prompt"] - before


def test_questions_on_one_input_share_its_reading(small: store.Loaded) -> None:
    with started(make(small)) as engine:
        decisions = decide(small, engine)
        front = len(decisions._open({"input": DOCUMENT}))
        assert front > 150
        questions = [Asked(f"There are {number} chairs.") for number in range(20)]
        tails = [len(decisions._read(question).tail) for question in questions]
        priors = sum(len(ids) for ids in decisions._empty) * 20 + sum(tails) * len(EMPTY)
        computed = count(engine, decisions, *questions)
        assert computed <= front + sum(tails) + 20 * BLOCK + priors
        assert computed < 20 * front  # which is what they would have taken apart
        # Asked again about another input: no priors. A further question about that one: its own tail alone.
        other = {"input": DOCUMENT[::-1]}
        before = engine.tokens["prompt"]
        found = ask(decisions, questions[0], parts=other)
        assert engine.tokens["prompt"] - before <= found.input_tokens
        before = engine.tokens["prompt"]
        ask(decisions, questions[1], parts=other)
        assert engine.tokens["prompt"] - before <= tails[1] + BLOCK


def test_the_input_is_counted_once(small: store.Loaded, running: Engine) -> None:
    decisions = decide(small, running)
    questions = [Asked("It is paid."), choose("Which?", "a", "b")]
    front = len(decisions._open({"input": DOCUMENT}))
    tails = sum(len(decisions._read(question).tail) for question in questions)
    assert ask(decisions, *questions).input_tokens == front + tails


def test_other_labels_or_words_have_their_own_prior(small: store.Loaded, running: Engine) -> None:
    """The same question with other labels, which this model is not shown, after each other and at once."""
    asked = [choose("Which?", "invoice", "letter"), choose("Which?", "red", "blue"), choose("Which?", "letter", "red")]
    alone = [ask(decide(small, running), question).shares[0] for question in asked]
    decisions = decide(small, running)
    assert [ask(decisions, question).shares[0] for question in asked] == [pytest.approx(share) for share in alone]
    assert ask(decide(small, running), *asked).shares == [pytest.approx(share) for share in alone]


# ---- what can go wrong ---------------------------------------------------------------------------------------------


def refusal(decisions: Decisions, request: Request, deadline: float = NEVER) -> Failure:
    with pytest.raises(Failure) as caught:
        asyncio.run(wait(decisions, request, deadline))
    return caught.value


def test_the_model_goes_by_its_name_and_its_tag(small: store.Loaded, running: Engine) -> None:
    decisions = decide(small, running)
    assert ask(decisions, Asked("x"), model=TAG).model == "smollm2-135m-instruct"
    assert refusal(decisions, Request([Asked("x")], model="gpt-6-luna")).code == "model_not_found"


def test_too_long_an_input_or_question_is_refused_with_the_counts(small: store.Loaded, running: Engine) -> None:
    decisions = decide(small, running)
    for request in (
        Request([Asked("x")], parts={"input": "word " * 9000}),
        Request([Asked("x"), Asked("word " * 9000)]),
        Request([choose("Which?", "short", "long " * 40)], parts={"input": "word " * 8120}),
    ):
        refused = refusal(decisions, request)
        assert refused.code == "context_length_exceeded"
        assert "context is 8192" in refused.message
    assert (running.waiting, running.running) == (0, 0)


def test_more_than_a_request_may_bring_is_refused_for_good(small: store.Loaded, running: Engine) -> None:
    decisions = decide(small, running, most=2000)
    assert len(ask(decisions, Asked("x")).shares) == 1
    refused = refusal(decisions, Request([Asked(f"x{number}") for number in range(20)]))
    assert (refused.code, refused.retry_after) == ("invalid_value", None)
    assert "questions" in refused.message and "2000" in refused.message


def test_the_most_that_a_request_may_bring_finds_room_where_nothing_waits(small: store.Loaded) -> None:
    questions = [choose(f"{number}?", "one of them", "the other one of them") for number in range(50)]
    decisions = decide(small, make(small))
    front = decisions._open({"input": DOCUMENT})

    def is_taken(most: int) -> bool:
        decisions._most = most
        try:
            return len(decisions._read_all(front, questions)) == 50
        except Failure:
            return False

    most = bisect_left(range(1_000_000), True, key=is_taken)
    assert not is_taken(most - 1)
    with started(make(small, queue_tokens=SHARE * most)) as engine:
        assert len(ask(decide(small, engine, most=most), *questions).shares) == 50


def test_a_full_queue_in_the_middle_leaves_nothing_on_its_way(small: store.Loaded) -> None:
    engine = make(small, queue_tokens=3000)
    engine.submit(Sequence([7] * 1500, Sampling(1)))
    refused = refusal(decide(small, engine), Request([Asked(f"x{number}") for number in range(20)]))
    assert refused.code == "queue_full"
    assert 0 < (refused.retry_after or 0) <= 120
    assert engine.waiting > 5  # some had been let in
    with torch.inference_mode():
        engine.step()
    assert engine.waiting + engine.running <= 1
    assert engine.cache.used <= 1504


async def depart(decisions: Decisions, engine: Engine, waits: bool) -> None:
    """Ask, and leave as soon as something is computed."""
    request = Request([Asked(f"There are {number} chairs.") for number in range(100)])
    hearing = decisions.ask(request, time.monotonic() + 60)
    answer = asyncio.create_task(hearing.answer())
    while waits and not engine.running:
        await asyncio.sleep(0)
    hearing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    end = time.monotonic() + 10
    while engine.running + engine.waiting and time.monotonic() < end:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "before"])
def test_who_leaves_takes_all_rows_along(small: store.Loaded, waits: bool) -> None:
    with started(make(small)) as engine:
        asyncio.run(depart(decide(small, engine), engine, waits))
        assert (engine.running, engine.waiting, engine.cache.used) == (0, 0, 0)


def test_who_leaves_takes_no_prior_from_others_who_wait(small: store.Loaded) -> None:
    question = choose("Which?", "invoice", "letter")
    with started(make(small)) as engine:
        expected = ask(decide(small, engine), question).shares
        decisions = decide(small, engine)

        async def both() -> Findings:
            first = decisions.ask(Request([question], parts={"input": "x " * 3000}), time.monotonic() + 60)
            second = decisions.ask(Request([question]), time.monotonic() + 60)
            first.cancel()
            return await second.answer()

        assert asyncio.run(both()).shares == [pytest.approx(expected[0])]
        # And what was given up for want of anybody is computed anew.
        decisions = decide(small, engine)
        decisions.ask(Request([question]), time.monotonic() + 60).cancel()
        assert ask(decisions, question).shares == [pytest.approx(expected[0])]


def test_where_the_model_fails_on_one_question_the_others_are_answered(
    small: store.Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    (poison,) = small.tokenizer.encode(" zebra", add_special_tokens=False)

    def fail(_: Any, __: Any, named: dict[str, torch.Tensor]) -> None:
        if poison in named["input_ids"]:
            raise RuntimeError("secret words of a document")

    questions = [Asked("It is paid."), Asked("There is a zebra."), Asked("It is a letter.")]
    with started(make(small)) as engine:
        expected = ask(decide(small, engine), *questions).shares
    with started(make(small)) as engine:
        decisions = decide(small, engine)
        with small.network.model.register_forward_pre_hook(fail, with_kwargs=True):
            found = ask(decisions, *questions).shares
            assert found == [pytest.approx(expected[0]), None, pytest.approx(expected[2])]
            assert refusal(decisions, Request([questions[1]])).code == "model_error"
        assert ask(decisions, *questions).shares == [pytest.approx(share) for share in expected]
    assert "secret" not in caplog.text


def test_the_deadline_is_that_of_the_whole_request(small: store.Loaded) -> None:
    engine = make(small)  # is never started, so nothing ever comes
    decisions = decide(small, engine)
    assert refusal(decisions, Request([Asked("x")]), time.monotonic() + 0.05).code == "deadline_exceeded"
    with torch.inference_mode():
        engine.step()
    assert (engine.waiting, engine.running) == (0, 0)


def test_a_service_that_shuts_down_says_so(small: store.Loaded) -> None:
    with started(make(small)) as engine:
        decisions = decide(small, engine)
    assert refusal(decisions, Request([Asked("x")])).code == "draining"
