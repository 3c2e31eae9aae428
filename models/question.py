"""A question as it was asked, the form of its answer, and which part of it is the document. Knows no tokens."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeGuard

from models.catalog import Model
from models.engine.sequence import FinishReason, Lane, Sampling
from models.failure import Failure
from models.schema.dialect import Schema

DOCUMENT, IMAGES = "document", "images"  # the names in the context under which these are looked for
MAX_SEED = 1 << 63
BLANK_LINE = re.compile(r"\n[ \t\r]*\n\s*")


@dataclass(frozen=True)
class Choice:
    """One of a question's labels."""

    label: str
    description: str = ""


class Question(Protocol):
    """What is read of it; serving/protocol.py's Prompt is one."""

    prompt: str
    context: dict[str, Any]
    json_schema: Schema | None
    labels: list[Choice] | None
    none_of_these: bool
    abstain_below: float | None
    require_evidence: bool
    format: Literal["json", "text"]
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    lane: Lane
    allow_partial: bool
    on_conflict: Literal["error", "report"]


@dataclass(frozen=True)
class Answer:
    """A whole answer: `output` parses and fits the schema (or is text, where text was asked for); `detail` is what else
    is known about it, by name."""

    output: str
    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """The caller's own text. `pages` as they were sent; `paged`: as a list of them; `shift`: where the first one begins
    in the prompt, if that is where it was found."""

    pages: tuple[str, ...]
    paged: bool = False
    shift: int = 0


def find_document(prompt: str, context: Mapping[str, Any]) -> Document | None:
    """`context.document`, a string or a list of them, else the prompt after its first blank line."""
    given = context.get(DOCUMENT)
    if isinstance(given, str):
        return Document((given,))
    if _is_paged(given):
        return Document(tuple(given), paged=True)
    found = BLANK_LINE.search(prompt)
    if found is None or found.end() == len(prompt):
        return None
    return Document((prompt[found.end() :],), shift=found.end())


def replace_document(prompt: str, context: Mapping[str, Any], pages: list[str]) -> tuple[str, dict[str, Any]]:
    """Prompt and context with other pages (one, unless the document is paged) where the document was found."""
    document = find_document(prompt, context)
    assert document is not None
    if DOCUMENT in context and not document.shift:
        return prompt, {**context, DOCUMENT: pages if document.paged else pages[0]}
    return prompt[: document.shift] + pages[0], dict(context)


def images_of(question: Question) -> dict[str, Any]:
    """What its context has under `images`, each by its path; Failure where that is no list of some."""
    if IMAGES not in question.context:
        return {}
    given = question.context[IMAGES]
    if not isinstance(given, list) or not given:
        raise Failure("invalid_value", f"context.{IMAGES}: a list of data URLs is needed")
    return {f"context.{IMAGES}.{number}": url for number, url in enumerate(given)}


def is_divisible(question: Question) -> bool:
    """Whether it can be asked of parts of its document, which it cannot beside images."""
    if IMAGES in question.context:
        return False
    return question.format == "json" and find_document(question.prompt, question.context) is not None


def sampling_of(question: Question, model: Model, prompt_tokens: int) -> Sampling:
    """How the answer is chosen; Failure where there is no room for it behind so many tokens."""
    room = model.context_length - prompt_tokens
    wanted = question.max_new_tokens or model.max_new_tokens
    if question.max_new_tokens is None and not is_divisible(question):
        wanted = min(wanted, max(room, 1))
    if wanted > room:
        raise Failure(
            "context_length_exceeded",
            f"the prompt has {prompt_tokens} tokens and the answer may take {wanted}; "
            f"the model's context is {model.context_length}",
        )
    return warm(question, model, wanted)


class Warmth(Protocol):
    """How it is asked to be chosen; None: as the model has it."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def seed(self) -> int | None: ...


def warm(asked: Warmth, model: Model, most: int) -> Sampling:
    """An answer of `most` tokens at most."""
    warmth = model.temperature if asked.temperature is None else asked.temperature
    return Sampling(
        max_new_tokens=most,
        temperature=warmth,
        top_p=model.top_p if asked.top_p is None else asked.top_p,
        # Drawn here, so that the receipt can tell it and the same answer can be had again.
        seed=secrets.randbelow(MAX_SEED) if asked.seed is None and warmth > 0 else asked.seed,
    )


def answer_schema(question: Question) -> Schema | None:
    """The schema the answer must fit; None for text and labels."""
    if question.format == "text" or question.labels is not None:
        return None
    return question.json_schema or {"type": "object"}


def task(schema: Schema | None) -> list[str]:
    """What the model is told of the answer's form."""
    if schema is None:
        return []
    shown = {keyword: value for keyword, value in schema.items() if keyword != "x-check"}
    return ["Answer with one JSON object that fits this JSON Schema:", compact(shown)]


def render(prompt: str, context: Mapping[str, Any], task: list[str]) -> str:
    """The user's turn: `task` says what form the answer is to have. What many prompts share comes first, the document
    last. Images are no text."""
    parts = [*task, prompt]
    told = ((key, value) for key, value in context.items() if key != IMAGES)
    texts = {name: text for key, value in told for name, text in _texts(key, value)}
    # Longer than any run of backticks inside, so no document can close its own block.
    longest = max((len(run[0]) for text in texts.values() for run in re.finditer("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    for name, text in texts.items():
        parts.append(f"{name}:\n{fence}\n{text}\n{fence}")
    return "\n\n".join(parts)


def _texts(key: str, value: Any) -> list[tuple[str, str]]:
    name = compact(key)
    if key == DOCUMENT and _is_paged(value):
        numbers = getattr(value, "numbers", range(1, len(value) + 1))  # of some pages of a longer document (inquiry.py)
        return [(f"{name}, page {number}", page) for number, page in zip(numbers, value, strict=True)]
    return [(name, value if isinstance(value, str) else compact(value))]


def _is_paged(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(page, str) for page in value)


def compact(value: Any) -> str:
    """JSON without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
