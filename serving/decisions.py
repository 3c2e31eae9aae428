"""What crosses the wire on /v1/decisions: the public Decisions API as its client 3.54.0 has it, for texts.

`Questions` reads a body, `Answers` writes what was found. Fields that steer a provider's cache or name the caller's own
user are taken and have no effect.
"""

import json
import math
from typing import Annotated, Any, Literal, Protocol

import bentoml
from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from serving.arrival import receive, settle
from serving.errors import OPENAI
from serving.openai import Messages, Parts, Wire, join, name_parts, read


def _require_text(parts: Parts) -> Parts:
    if not join(parts).strip():
        raise PydanticCustomError("blank", "it says nothing")
    return parts


def _require_distinct(labels: list[Any]) -> list[Any]:
    if len({(type(each.answer), each.answer) for each in labels}) < len(labels):
        raise PydanticCustomError("alike", "they must differ")
    return labels


Instructions = Annotated[Parts, AfterValidator(_require_text)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Description = Annotated[str, Field(max_length=2000)]


class Ask(Wire):
    """What questions have in common; what models/decisions.py reads of one."""

    instructions: Instructions
    name: str | None = None

    @property
    def task(self) -> str:
        return join(self.instructions)


class Predicate(Ask):
    type: Literal["predicate"]

    @property
    def labels(self) -> list[tuple[str, str]]:
        return []


class Option(Wire):
    answer: Name | bool = Field(alias="value")
    description: Description = ""


class Choice(Ask):
    type: Literal["choice"]
    choices: Annotated[list[Option], Field(min_length=2, max_length=255), AfterValidator(_require_distinct)]

    @property
    def labels(self) -> list[tuple[str, str]]:
        """As they would be said; where a text and a truth value would sound alike, all as JSON writes them."""
        values = [option.answer for option in self.choices]
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        if len(set(texts)) < len(texts):
            texts = [json.dumps(value, ensure_ascii=False) for value in values]
        return [(text, option.description) for text, option in zip(texts, self.choices, strict=True)]


class Level(Wire):
    answer: Name = Field(alias="label")
    description: Description = ""


class Score(Ask):
    type: Literal["score"]
    levels: Annotated[list[Level], Field(min_length=2, max_length=10), AfterValidator(_require_distinct)]

    @property
    def labels(self) -> list[tuple[str, str]]:
        return [(level.answer, level.description) for level in self.levels]


Question = Annotated[Predicate | Choice | Score, Field(discriminator="type")]


class Findings(Protocol):
    """What a ticket turns into (models/decisions.py)."""

    model: str
    shares: list[list[float] | None]
    input_tokens: int


class Questions(bentoml.IODescriptor):
    """The body of POST /v1/decisions."""

    model_config = ConfigDict(extra="forbid", strict=True)
    __root_input__ = True

    model: str
    input: Messages
    questions: Annotated[list[Question], Field(min_length=1, max_length=400)]
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    @property
    def parts(self) -> dict[str, str]:
        return name_parts(self.input)

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return await receive(request, lambda body: read(cls, body))


class Answers(bentoml.IODescriptor):
    """The answer of POST /v1/decisions."""

    model: str
    answers: list[dict[str, Any]]
    usage: dict[str, Any]

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        return await settle(obj, lambda found: write_all(obj.asked.questions, found), OPENAI)


def write_all(questions: list[Question], found: Findings) -> dict[str, Any]:
    told = zip(questions, found.shares, strict=True)
    return {
        "model": found.model,
        "answers": [write(question, shares) for question, shares in told],
        "usage": {
            "input_tokens": found.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": found.input_tokens,
        },
    }


def write(question: Predicate | Choice | Score, shares: list[float] | None) -> dict[str, Any]:
    """One answer, from the probabilities of the question's labels; without any, the model has failed on it."""
    if shares is None:
        return {"type": "refusal", "name": question.name}
    head = {"type": question.type, "name": question.name}
    if isinstance(question, Predicate):
        return {**head, "probability": shares[0]}
    sure = max(shares)
    if isinstance(question, Choice):
        values = [option.answer for option in question.choices]
        listed = [{"value": value, "probability": share} for value, share in zip(values, shares, strict=True)]
        return {**head, "choice": values[shares.index(sure)], "probabilities": listed, "confidence": sure}
    expected = math.fsum(at * share for at, share in enumerate(shares))
    levels = [
        {"value": at, "label": level.answer, "probability": share}
        for at, (level, share) in enumerate(zip(question.levels, shares, strict=True))
    ]
    # Rounding may carry it beyond the last.
    return {**head, "score": min(expected, len(shares) - 1.0), "probabilities": levels, "confidence": sure}
