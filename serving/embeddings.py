"""What crosses the wire on /embed and /v1/embeddings, the latter as the public API's client 3.54.0 has it.

BentoML batches lists: a body comes in as a list of one arrival, and an answer goes out of the one that came back.
"""

import base64
from typing import Annotated, Any, Literal, Protocol

import bentoml
import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from serving.arrival import receive, settle
from serving.limits import Limits
from serving.openai import as_list, read


class Vectors(Protocol):
    """What a ticket turns into (models/embedding.py)."""

    model: str
    vectors: np.ndarray
    truncated: list[int]
    tokens: int
    seconds: float


class Texts(bentoml.IODescriptor):
    """The body of POST /embed."""

    model_config = ConfigDict(extra="forbid", strict=True)
    __root_input__ = True

    texts: list[str] = Field(min_length=1, description="each gets one vector")
    model: str = Field("", description="an imported encoder; default: ZOPILOT_EMBEDDING_MODEL")
    truncate: bool = Field(True, description="read the beginning of a text that is too long, and say so; or refuse it")

    @property
    def dimensions(self) -> int | None:
        return None

    def place(self, at: int) -> str:
        return f"texts.{at}"

    def check(self, limits: Limits) -> None:
        limits.check("texts", self.texts)

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return [await receive(request, lambda body: read(cls, body))]


class Embedded(bentoml.IODescriptor):
    """The answer of POST /embed; `truncated` are the numbers of texts of which only the beginning was read, if any."""

    embeddings: list[list[float]]
    model: str
    dim: int
    normalized: bool
    processing_time: float
    truncated: list[int] | None = None

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        (arrival,) = obj
        return await settle(arrival, write)


def write(found: Vectors) -> dict[str, Any]:
    """The answer of /embed."""
    told: dict[str, Any] = {
        "embeddings": found.vectors.tolist(),
        "model": found.model,
        "dim": found.vectors.shape[1],
        "normalized": True,
        "processing_time": round(found.seconds, 4),
    }
    return told | ({"truncated": found.truncated} if found.truncated else {})


def _as_texts(given: Any) -> Any:
    if isinstance(given, list) and any(isinstance(each, int | list) for each in given):
        raise PydanticCustomError("tokens", "token arrays are not read here; send texts")
    return as_list(given)


class Inputs(bentoml.IODescriptor):
    """The body of POST /v1/embeddings. `user` is taken and has no effect."""

    model_config = ConfigDict(extra="forbid", strict=True)
    __root_input__ = True

    model: str
    input: Annotated[list[str], Field(min_length=1), BeforeValidator(_as_texts, json_schema_input_type=str | list[str])]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, lt=2**63, description="refused unless it is the model's own")
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        return self.input

    @property
    def truncate(self) -> bool:
        return False

    def place(self, at: int) -> str:
        return f"input.{at}"

    def check(self, limits: Limits) -> None:
        limits.check("input", self.input)

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return [await receive(request, lambda body: read(cls, body))]


class Listed(bentoml.IODescriptor):
    """The answer of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    model: str
    usage: dict[str, int]

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        (arrival,) = obj
        return await settle(arrival, lambda found: write_list(arrival.asked, found))


def write_list(asked: Inputs, found: Vectors) -> dict[str, Any]:
    """The answer of /v1/embeddings; base64 holds little-endian float32."""
    vectors: list[Any] = found.vectors.tolist()
    if asked.encoding_format == "base64":
        vectors = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in found.vectors]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)],
        "model": found.model,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
    }
