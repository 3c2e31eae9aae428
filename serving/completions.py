"""What crosses the wire on /v1/completions: texts to go on with, and the public API's older form of answers."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import bentoml
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from serving.generation import LEAST, Delta, Generation, Kind, Token, reply
from serving.openai import Off, as_list

DEFAULT = 16  # tokens


def _as_texts(given: Any) -> Any:
    if isinstance(given, list) and any(not isinstance(each, str) for each in given):
        raise PydanticCustomError("tokens", "unsupported; tokens are not read here, send texts")
    return as_list(given)


Texts = Annotated[
    list[str],
    Field(min_length=1, max_length=16),
    BeforeValidator(_as_texts, json_schema_input_type=str | list[str]),
]


class Request(Generation):
    """The body of POST /v1/completions; models/chat.py says what its properties mean."""

    prompt: Texts
    max_tokens: int | None = Field(None, ge=1, lt=2**63)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Off = None
    best_of: None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str]:
        return self.prompt

    @property
    def most(self) -> int:
        return self.max_tokens or DEFAULT

    @property
    def tops(self) -> int | None:
        return self.logprobs


class Completion(bentoml.IODescriptor):
    """The answer of POST /v1/completions, unless it is streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[dict[str, Any]]
    usage: dict[str, int]

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        return await reply(obj, KIND)


def write(said: Delta) -> dict[str, Any]:
    """A choice, or its next piece."""
    return {
        "index": said.index,
        "text": said.text,
        "logprobs": write_tokens(said.tokens) if said.tokens else None,
        "finish_reason": said.finish_reason,
    }


KIND = Kind("cmpl", "text_completion", "text_completion", write, lambda said: [write(said)])


def write_tokens(tokens: Sequence[Token]) -> dict[str, Any]:
    """The alternatives to a token are by their texts, itself among them; of two that read the same the likelier."""
    alternatives = []
    for token in tokens:
        pairs = [(token.piece, token.logprob), *reversed(token.tops)]
        alternatives.append({piece.decode(errors="replace"): max(logprob, LEAST) for piece, logprob in pairs})
    return {
        "tokens": [token.piece.decode(errors="replace") for token in tokens],
        "token_logprobs": [max(token.logprob, LEAST) for token in tokens],
        "top_logprobs": alternatives,
        "text_offset": [token.start for token in tokens],
    }
