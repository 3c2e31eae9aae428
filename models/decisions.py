"""Typed questions about one input, answered by scoring: is this true, which of these, how much. Knows nothing of HTTP.

The input comes first and each question behind it, so that all of them share what is computed of the input. What a label
gets behind inputs that say nothing is taken off, as in models/labels.py.
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from transformers import PreTrainedTokenizerFast

from models.catalog import Model
from models.engine.admission import CAUTION, DECODE_COST, HORIZON
from models.engine.cache import BLOCK
from models.engine.engine import Engine
from models.failure import Failure
from models.priors import Prior, Priors
from models.question import compact, render
from models.scoring import EMPTY, PRIOR_SECONDS, Scoring, Tree, spell, weigh
from models.template import Template, Turn

LEAD = "Read this input. One question about it follows."
FENCE = "```"  # `render` ends with it, or with a longer one
YES_OR_NO = (("Yes", ""), ("No", ""))
TREES = 256  # kept, by labels
SHARE = 2  # a request may bring this part of the work that may wait


class Inquiry(Protocol):
    """What is read of a question; serving/openai.py has three. `labels` are texts with descriptions: of a score in
    their order, of a predicate none."""

    @property
    def type(self) -> str: ...  # predicate, choice or score
    @property
    def task(self) -> str: ...
    @property
    def labels(self) -> Listing[tuple[str, str]]: ...


class Request(Protocol):
    """What is read of a request; `parts` are the input's texts by name."""

    @property
    def model(self) -> str: ...
    @property
    def parts(self) -> Mapping[str, str]: ...
    @property
    def questions(self) -> Listing[Inquiry]: ...


@dataclass(frozen=True)
class Question:
    """An inquiry as ids: the `tail` that comes behind any input, and what may be said then."""

    tail: list[int]
    tree: Tree
    key: bytes

    @property
    def longest(self) -> int:
        return len(self.tail) + max(map(len, self.tree.rows))

    @property
    def cost(self) -> int:
        """At most what the engine counts for it, the input not included."""
        return len(self.tail) + sum(BLOCK + len(row) + DECODE_COST for row in self.tree.rows)


@dataclass(frozen=True)
class Findings:
    """`shares`: for each question the probabilities of its labels in their order, of a predicate of yes and no; None
    where the model failed on it. `input_tokens`: of the input, once, and of all questions."""

    model: str
    shares: list[list[float] | None]
    input_tokens: int


@dataclass(eq=False)
class Hearing:
    """A request's questions on their way. Cancelling it frees all their rows before the engine's next step."""

    model: str
    input_tokens: int
    deadline: float
    kept: Priors
    scorings: list[Scoring] = field(default_factory=list)
    priors: list[Prior] = field(default_factory=list)
    owed: list[Prior] = field(default_factory=list)  # of these, what is to be given back

    @property
    def progress(self) -> float:
        return sum(scoring.progress for scoring in self.scorings) / len(self.scorings)

    def cancel(self) -> None:
        for scoring in self.scorings:
            scoring.cancel()
        self.kept.give_back(self.owed)

    async def answer(self) -> Findings:
        """Wait for all scores. Where the model fails on one question, that one alone has none; raises Failure for
        anything else, and where nothing has been answered."""
        pairs = list(zip(self.scorings, self.priors, strict=True))
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                shares = [await judge(scoring, prior) for scoring, prior in pairs]
        except TimeoutError:
            raise Failure("deadline_exceeded", "not all questions were answered in time") from None
        finally:
            self.cancel()
        if not any(shares):
            raise Failure("model_error", "the model failed on every question")
        return Findings(self.model, shares, self.input_tokens)


async def judge(scoring: Scoring, prior: Prior) -> list[float] | None:
    """Probabilities of one question's labels; None where the model failed on it. Raises Failure for anything else."""
    try:
        scores, before = await scoring.scores(), await prior.mean()
    except Failure as failure:
        if failure.code != "model_error":
            raise
        return None
    return weigh([score - less for score, less in zip(scores, before, strict=True)])


class Decisions:
    """Typed questions to one model, which goes by two names: its own and the `tag` of its weights."""

    def __init__(
        self, model: Model, tag: str, tokenizer: PreTrainedTokenizerFast, engine: Engine, queue_tokens: int
    ) -> None:
        """`queue_tokens`: the work that the engine lets wait."""
        self._model = model
        self._names = (model.name, tag)
        self._engine = engine
        self._most = queue_tokens // SHARE
        self._template = Template(tokenizer, model.markers, model.alternates)
        self._spell = lru_cache(TREES)(lambda names: spell(self._template, names, tokenizer.eos_token_id))
        self._priors = Priors(engine)
        bare = self._encode(FENCE)
        self._fenced = count_common(bare, self._encode(f"{FENCE}\n\nx"))
        self._closing = len(bare) - self._fenced
        self._empty = [self._open({"input": text}) for text in EMPTY]

    def ask(self, request: Request, deadline: float) -> Hearing:
        """Render, tokenise and submit all; `deadline` is on the monotonic clock. Raises Failure, and then nothing is on
        its way. May take seconds where questions are many and long."""
        if request.model not in self._names:
            raise Failure("model_not_found", f"model: {self._model.name} is served here")
        front = self._open(request.parts)
        questions = self._read_all(front, request.questions)
        tokens = len(front) + sum(len(question.tail) for question in questions)
        hearing = Hearing(self._model.name, tokens, deadline, self._priors)
        try:
            self._submit(hearing, front, questions)
        except Failure as refused:
            hearing.cancel()
            if refused.code != "queue_full":
                raise
            raise self._put_off(refused, questions[len(hearing.scorings) :]) from None
        return hearing

    def _open(self, parts: Mapping[str, str]) -> list[int]:
        """Ids of the user's turn up to the end of the input."""
        return self._encode(render(LEAD, parts, []))[: -self._closing]

    def _read(self, inquiry: Inquiry) -> Question:
        text = put(inquiry, self._model.lists_labels)
        names = tuple(label for label, _ in inquiry.labels or YES_OR_NO)
        tail = self._encode(f"{FENCE}\n\n{text}")[self._fenced :]  # as behind any input: no token crosses a fence's end
        return Question(tail, self._spell(names), hashlib.sha256(compact([text, names]).encode()).digest())

    def _encode(self, text: str) -> list[int]:
        return self._template.encode([Turn("user", text)])

    def _read_all(self, front: list[int], inquiries: Listing[Inquiry]) -> list[Question]:
        """One by one, so that what will never do is refused before much is made of it."""
        cost = len(front)
        questions: list[Question] = []
        for inquiry in inquiries:
            question = self._read(inquiry)
            tokens = len(front) + question.longest
            if tokens > self._model.context_length:
                told = f"the input and a question have {tokens} tokens; the model's context is"
                raise Failure("context_length_exceeded", f"{told} {self._model.context_length}")
            cost += (1 + len(EMPTY)) * question.cost + sum(map(len, self._empty))
            if cost > self._most:
                told = f"the first {len(questions) + 1} may take work worth {cost} tokens, a request {self._most}"
                raise Failure("invalid_value", f"questions: {told}; ask fewer at once")
            questions.append(question)
        return questions

    def _submit(self, hearing: Hearing, front: list[int], questions: list[Question]) -> None:
        until = max(hearing.deadline, time.monotonic() + PRIOR_SECONDS)
        known = 0
        for question in questions:
            stem = [*front, *question.tail]
            scoring = Scoring(self._engine, stem, question.tree, hearing.deadline, "interactive", known=known)
            hearing.scorings.append(scoring)
            stems = [[*empty, *question.tail] for empty in self._empty]
            prior = self._priors.take(question.key, stems, question.tree, until)
            hearing.priors.append(prior)
            hearing.owed.append(prior)
            known = len(front)

    def _put_off(self, refused: Failure, left: list[Question]) -> Failure:
        """A refusal of one row as that of the whole request, of which `left` was not tried."""
        seconds = sum(question.cost for question in left) / (self._engine.admission.rate * CAUTION)
        return Failure(
            "queue_full",
            f"about {self._engine.admission.wait:.0f} s of work are waiting; no place is kept for several questions",
            min((refused.retry_after or 0.0) + seconds, HORIZON),
        )


def put(inquiry: Inquiry, listed: bool) -> str:
    """The question as the model reads it; `listed`: choices are shown to it even where nothing describes them."""
    if inquiry.type == "predicate":
        return f"Statement: {inquiry.task}\n\nIs this statement about the input true? Answer Yes or No."
    lines = "\n".join(f"- {label}" + (f": {told}" if told else "") for label, told in inquiry.labels)
    if inquiry.type == "score":
        order = "Answer with one of these levels and nothing else; they go from the lowest to the highest:"
        return f"Question: {inquiry.task}\n\n{order}\n{lines}"
    if listed or any(told for _, told in inquiry.labels):
        return f"Question: {inquiry.task}\n\nAnswer with one of these and nothing else:\n{lines}"
    return f"Question: {inquiry.task}"


def count_common(one: Listing[int], other: Listing[int]) -> int:
    """How many leading ids both have."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
