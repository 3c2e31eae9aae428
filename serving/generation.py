"""What requests for generated text have in common on the wire, and how answers go out: at once or as server-sent
events.

An unset temperature or top_p means the model's own, as on /prompt: greedy.
"""

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, Protocol, Self

import bentoml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from models.failure import Failure, FieldFailure
from serving.arrival import Arrival, receive, settle
from serving.caller import Caller
from serving.errors import REFUSALS, describe, failure
from serving.openai import Off, Wire, as_list, read

log = logging.getLogger("zopilot.generation")
LEAST = -9999.0  # stands for minus infinity, which JSON cannot say


class Token(Protocol):
    """A token of an answer, and where in its text it begins (models/speech.py)."""

    piece: bytes
    start: int
    logprob: float
    tops: Sequence[tuple[bytes, float]]


class Call(Protocol):
    name: str
    arguments: str


class Delta(Protocol):
    """What choice `index` says next, or all of it (models/speech.py)."""

    index: int
    text: str
    tokens: Sequence[Token]
    calls: Sequence[Call]
    finish_reason: str | None


class Speech(Protocol):
    """Choices on their way (models/speech.py)."""

    model: str
    fingerprint: str
    prompt_tokens: int
    completion_tokens: int
    voices: Sequence[object]

    def cancel(self) -> None: ...
    async def answer(self) -> list[Delta]: ...
    def deltas(self) -> AsyncIterator[Delta]: ...


def _refuse(given: Any) -> Any:
    if given:
        raise PydanticCustomError("unsupported", "unsupported; only what has no effect is taken")
    return given


Stop = Annotated[str, Field(min_length=1, max_length=500)]
Penalty = Annotated[float | None, AfterValidator(_refuse)]


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: Off = None


class Generation(bentoml.IODescriptor):
    """Fields of both routes, and what models/chat.py reads of them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    __root_input__ = True

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=4)
    stop: (
        Annotated[list[Stop], Field(max_length=4), BeforeValidator(as_list, json_schema_input_type=str | list[Stop])]
        | None
    ) = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: Annotated[dict[str, Any] | None, AfterValidator(_refuse)] = None
    user: str | None = None

    @property
    def rows(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        return self.stop or []

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return await receive(request, cls.parse)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The request in `body`; raises Failure with what is wrong, naming fields but quoting no value."""
        asked = read(cls, body)
        for param, why in asked.contradictions():
            raise FieldFailure("invalid_value", f"{param}: {why}", param)
        return asked

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Fields that make no sense beside others, and why."""
        if self.stream_options is not None and not self.stream:
            yield "stream_options", "it is for streams"


class Kind(NamedTuple):
    """How a route's answers are called, how it writes a whole choice, and one's next piece as choices of chunks;
    `opening`: what a choice's first chunk has."""

    prefix: str
    whole: str
    piece: str
    write: Callable[[Delta], dict[str, Any]]
    cut: Callable[[Delta], list[dict[str, Any]]]
    opening: dict[str, Any] | None = None


async def reply(arrival: Arrival, kind: Kind) -> Response:
    """The answer at once or as a stream, which begins when it is admitted; a refusal has its status in both cases."""
    speech: Speech | None = arrival.ticket
    if speech is None or not arrival.asked.stream:
        return await settle(arrival, lambda said: _whole(arrival.ticket, kind, said))
    options: StreamOptions | None = arrival.asked.stream_options
    chunks = _chunks(speech, kind, options is not None and bool(options.include_usage))
    headers = {"X-Request-Id": arrival.caller.request_id, "Cache-Control": "no-cache"}
    return StreamingResponse(_frames(chunks, speech, arrival.caller), headers=headers, media_type="text/event-stream")


def _head(speech: Speech, kind: Kind, name: str) -> dict[str, Any]:
    return {
        "id": f"{kind.prefix}-{uuid.uuid4().hex}",
        "object": name,
        "created": int(time.time()),
        "model": speech.model,
        "system_fingerprint": speech.fingerprint,
    }


def _whole(speech: Speech, kind: Kind, said: list[Delta]) -> dict[str, Any]:
    return {**_head(speech, kind, kind.whole), "choices": list(map(kind.write, said)), "usage": _usage(speech)}


def _usage(speech: Speech) -> dict[str, int]:
    return {
        "prompt_tokens": speech.prompt_tokens,
        "completion_tokens": speech.completion_tokens,
        "total_tokens": speech.prompt_tokens + speech.completion_tokens,
    }


async def _chunks(speech: Speech, kind: Kind, tell_usage: bool) -> AsyncIterator[dict[str, Any]]:
    head = _head(speech, kind, kind.piece)
    if tell_usage:
        head["usage"] = None
    if kind.opening is not None:
        for at in range(len(speech.voices)):
            yield {**head, "choices": [{"index": at, **kind.opening, "finish_reason": None}]}
    async for delta in speech.deltas():
        for choice in kind.cut(delta):
            yield {**head, "choices": [choice]}
    if tell_usage:
        yield {**head, "choices": [], "usage": _usage(speech)}


async def _frames(chunks: AsyncIterator[dict[str, Any]], speech: Speech, caller: Caller) -> AsyncIterator[str]:
    """Server-sent events. A fault on the way is one of them, and the last."""
    try:
        async for chunk in chunks:
            yield _frame(chunk)
        yield "data: [DONE]\n\n"
    except Exception as error:
        if not isinstance(error, Failure):
            log.error("a stream has failed: %s", type(error).__name__)
            error = failure("internal_error")
        REFUSALS.labels(error.code).inc()
        caller.outcome = error.code
        yield _frame({"error": describe(error, caller.request_id)})
    finally:
        speech.cancel()


def _frame(event: dict[str, Any]) -> str:
    """In ASCII: some clients take other characters for ends of lines."""
    return f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
