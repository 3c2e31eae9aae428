"""What crosses the wire on /v1/chat/completions: the public API's requests, completions and chunks.

A field that changes nothing here is taken, any other that is not honoured is refused by its name.
"""

import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import bentoml
from pydantic import Field
from starlette.responses import Response

from serving.generation import LEAST, Delta, Generation, Kind, reply
from serving.messages import Message
from serving.openai import Off, Wire

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Function(Wire):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="arguments fit their schema whether it is said or not")


class Tool(Wire):
    type: Literal["function"]
    function: Function


class Choice(Wire):
    name: Name


class Named(Wire):
    type: Literal["function"]
    function: Choice


class Plain(Wire):
    type: Literal["text"]

    @property
    def answer(self) -> dict[str, Any] | None:
        """The schema of the answer."""
        return None


class AnyObject(Wire):
    type: Literal["json_object"]

    @property
    def answer(self) -> dict[str, Any] | None:
        return {"type": "object"}


class Described(Wire):
    name: Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="the answer fits whether it is said or not")


class OfSchema(Wire):
    type: Literal["json_schema"]
    json_schema: Described

    @property
    def answer(self) -> dict[str, Any] | None:
        return self.json_schema.schema_ or {"type": "object"}


class Request(Generation):
    """The body of POST /v1/chat/completions; models/chat.py says what its properties mean."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**63)
    max_tokens: int | None = Field(None, ge=1, lt=2**63)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Annotated[Plain | AnyObject | OfSchema, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Named | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Off = None

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def tops(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def answer(self) -> dict[str, Any] | None:
        return None if self.response_format is None else self.response_format.answer

    @property
    def functions(self) -> list[Function]:
        return [] if self.tool_choice == "none" else [tool.function for tool in self.tools or ()]

    @property
    def named(self) -> str | None:
        return self.tool_choice.function.name if isinstance(self.tool_choice, Named) else None

    @property
    def may_talk(self) -> bool:
        return self.tool_choice in (None, "auto")

    @property
    def parallel(self) -> bool:
        return self.parallel_tool_calls is not False

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from super().contradictions()
        names = [tool.function.name for tool in self.tools or ()]
        if None not in (self.max_completion_tokens, self.max_tokens):
            yield "max_tokens", "max_completion_tokens says it already"
        if self.top_logprobs is not None and not self.logprobs:
            yield "top_logprobs", "it needs logprobs"
        if len(set(names)) < len(names):
            yield "tools", "two functions have one name"
        if (self.tool_choice == "required" or self.named is not None) and not names:
            yield "tool_choice", "there are no tools"
        if self.named is not None and self.named not in names:
            yield "tool_choice", "none of the tools is called so"
        if self.functions and self.answer is not None:
            yield "response_format", "beside tools only text; set tool_choice to none where none is to be called"
        if self.functions and self.logprobs:
            yield "logprobs", "beside tools there are none: the tokens are those of calls as JSON"
        if self.stop and (self.functions or self.answer is not None):
            yield "stop", "an answer of a given form ends by itself"


class Completion(bentoml.IODescriptor):
    """The answer of POST /v1/chat/completions, unless it is streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[dict[str, Any]]
    usage: dict[str, int]

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        return await reply(obj, KIND)


def write(said: Delta) -> dict[str, Any]:
    """A whole choice."""
    message: dict[str, Any] = {"role": "assistant", "content": None if said.calls else said.text, "refusal": None}
    if said.calls:
        message["tool_calls"] = write_calls(said)
    return {
        "index": said.index,
        "message": message,
        "logprobs": write_tokens(said),
        "finish_reason": said.finish_reason,
    }


def cut(said: Delta) -> list[dict[str, Any]]:
    """A choice's next piece: what is said, and in a chunk of its own that it has ended."""
    delta: dict[str, Any] = {"content": said.text} if said.text else {}
    if said.calls:
        delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(write_calls(said))]
    head: dict[str, Any] = {"index": said.index, "logprobs": write_tokens(said)}
    told = [{**head, "delta": delta, "finish_reason": None}] if delta or said.tokens else []
    if said.finish_reason is not None:
        told.append({"index": said.index, "logprobs": None, "delta": {}, "finish_reason": said.finish_reason})
    return told


KIND = Kind(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    write,
    cut,
    {"delta": {"role": "assistant", "content": ""}, "logprobs": None},
)


def write_calls(said: Delta) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in said.calls
    ]


def write_tokens(said: Delta) -> dict[str, Any] | None:
    if not said.tokens:
        return None
    told = [
        {**write_token(token.piece, token.logprob), "top_logprobs": [write_token(*top) for top in token.tops]}
        for token in said.tokens
    ]
    return {"content": told, "refusal": None}


def write_token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode(errors="replace"), "logprob": max(logprob, LEAST), "bytes": list(piece)}
