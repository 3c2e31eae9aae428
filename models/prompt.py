"""A document question: what the model is shown, what it may answer, and an answer that is whole or refused.

Knows nothing of HTTP. `Prompts.ask` gives a Ticket at once; its answer comes when the engine is done.
"""

import asyncio
import json
import math
import re
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jsonschema_rs
from transformers import PreTrainedTokenizerFast

from models.catalog import Model
from models.engine.engine import Engine
from models.engine.grammar import Grammars
from models.engine.schema import Schema
from models.engine.sequence import Completion, FinishReason, Lane, Sampling, Sequence
from models.failure import Failure
from models.template import Template, Turn

TEMPLATE = "1"
WARM_UP_SECONDS = 300.0


class Question(Protocol):
    """What `ask` reads; serving/protocol.py's Prompt is one."""

    prompt: str
    context: dict[str, Any]
    json_schema: Schema | None
    labels: list[str] | None
    format: Literal["json", "text"]
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    lane: Lane
    allow_partial: bool


@dataclass(frozen=True)
class Answer:
    """A whole answer: `output` parses and fits the schema (or is text, where text was asked for)."""

    output: str
    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True)
class Ticket:
    """A question on its way. Cancelling it frees its row before the engine's next step."""

    future: Future[Completion]
    prompts: "Prompts"
    schema: Schema | None
    allow_partial: bool

    def cancel(self) -> None:
        self.future.cancel()

    async def answer(self) -> Answer:
        """Wait for the completion and close it; raises Failure."""
        return self.prompts.close(await asyncio.wrap_future(self.future), self.schema, self.allow_partial)


class Prompts:
    """Questions to one model."""

    def __init__(self, model: Model, tokenizer: PreTrainedTokenizerFast, engine: Engine, stops: set[int]) -> None:
        self._model = model
        self._engine = engine
        self._template = Template(tokenizer, model.markers, model.alternates)
        self._grammars = Grammars(tokenizer, engine.vocabulary, stops)

    def ask(self, question: Question, deadline: float) -> Ticket:
        """Check, render, tokenise and submit; `deadline` is on the monotonic clock. Raises Failure."""
        schema = answer_schema(question)
        grammar = None if schema is None else self._grammars.compile(schema)
        if schema is not None:
            validator(schema)
        ids = self._template.encode([Turn("user", render(question, schema))])
        sampling = self._sampling(question, len(ids))
        sequence = Sequence(ids, sampling, deadline=deadline, lane=question.lane)
        if grammar is not None:
            if grammar.shortest > sampling.max_new_tokens:
                raise Failure(
                    "invalid_value",
                    f"max_new_tokens: the shortest answer found that fits the schema takes {grammar.shortest} tokens",
                )
            sequence.matcher, sequence.guard = grammar.start()
        self._engine.submit(sequence)
        return Ticket(sequence.future, self, schema, question.allow_partial)

    def warm_up(self) -> None:
        """One short answer through every part, before the first caller's."""
        ids = self._template.encode([Turn("user", "Ready?")])
        sequence = Sequence(ids, Sampling(8))
        sequence.matcher, sequence.guard = self._grammars.compile({"type": "object"}).start()
        self._engine.submit(sequence)
        sequence.future.result(timeout=WARM_UP_SECONDS)

    def _sampling(self, question: Question, prompt_tokens: int) -> Sampling:
        room = self._model.context_length - prompt_tokens
        wanted = question.max_new_tokens or min(self._model.max_new_tokens, max(room, 1))
        if wanted > room:
            raise Failure(
                "context_length_exceeded",
                f"the prompt has {prompt_tokens} tokens and the answer may take {wanted}; "
                f"the model's context is {self._model.context_length}",
            )
        model = self._model
        return Sampling(
            max_new_tokens=wanted,
            temperature=model.temperature if question.temperature is None else question.temperature,
            top_p=model.top_p if question.top_p is None else question.top_p,
            seed=question.seed,
        )

    def close(self, completion: Completion, schema: Schema | None, allow_partial: bool = False) -> Answer:
        """The answer, if it ended by itself, or less is allowed, and if it is what was asked for; else Failure."""
        made = len(completion.tokens)
        if completion.finish_reason != "stop" and not allow_partial:
            raise Failure(
                "answer_truncated",
                f"the answer was ended at {made} tokens (prompt: {completion.prompt_tokens}); "
                "raise max_new_tokens, bound the schema or ask for allow_partial",
            )
        output = self._template.decode(completion.tokens)
        if schema is not None:
            check(output, schema)
        return Answer(
            output=output,
            model=self._model.name,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=made,
            seconds=completion.waited + completion.generated,
        )


def answer_schema(question: Question) -> Schema | None:
    """The schema the answer must fit; None for text."""
    if question.format == "text":
        return None
    if question.labels is not None:
        return {
            "type": "object",
            "properties": {"label": {"enum": question.labels}},
            "required": ["label"],
            "additionalProperties": False,
        }
    return question.json_schema or {"type": "object"}


def validator(schema: Schema) -> jsonschema_rs.Validator:
    """A validator that fetches nothing and whose patterns run in linear time; Failure for what is no schema."""
    try:
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except ValueError:
        raise Failure("schema_invalid", "the schema is not a valid JSON Schema") from None


def check(output: str, schema: Schema) -> None:
    """Raise Failure unless `output` parses and fits, whatever the grammar promised."""
    try:
        value = json.loads(output, parse_float=_finite, parse_constant=_finite)
        _compact(value).encode()  # no half of a surrogate pair
        fits = validator(schema).is_valid(value)
    except (ValueError, RecursionError):
        raise Failure("answer_invalid", "the answer is not JSON") from None
    if not fits:
        raise Failure("answer_invalid", "the answer does not fit the schema")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def render(question: Question, schema: Schema | None) -> str:
    """The user's turn. What many prompts share comes first, reference data last."""
    parts = []
    if schema is not None:
        parts += ["Answer with one JSON object that fits this JSON Schema:", _compact(schema)]
    parts.append(question.prompt)
    texts = {key: value if isinstance(value, str) else _compact(value) for key, value in question.context.items()}
    # Longer than any run of backticks inside, so no document can close its own block.
    longest = max((len(run[0]) for text in texts.values() for run in re.finditer("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    for key, text in texts.items():
        parts.append(f"{json.dumps(key, ensure_ascii=False)}:\n{fence}\n{text}\n{fence}")
    return "\n\n".join(parts)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
