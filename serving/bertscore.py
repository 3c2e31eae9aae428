"""What crosses the wire on /bertscore and on /warmup. Knows nothing of how either is done."""

from typing import Annotated, Any, Protocol

import bentoml
from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from models.failure import FieldFailure
from serving.arrival import receive, settle
from serving.limits import Limits
from serving.openai import as_list, read

References = Annotated[list[str], Field(min_length=1), BeforeValidator(as_list, json_schema_input_type=str | list[str])]


class Found(Protocol):
    """What a ticket turns into (models/bertscore.py)."""

    model: str
    scores: list[dict[str, Any]]
    signature: dict[str, Any]
    seconds: float


class Pairs(bentoml.IODescriptor):
    """The body of POST /bertscore."""

    model_config = ConfigDict(extra="forbid", strict=True)
    __root_input__ = True

    candidates: list[str] = Field(min_length=1, description="the texts to judge")
    references: list[References] = Field(min_length=1, description="one for each candidate, or a list of several")
    model: str = Field("", description="an imported encoder; default: ZOPILOT_BERTSCORE_MODEL")
    idf: bool = Field(False, description="weigh a token by how rare it is among the references of this request")
    rescale_with_baseline: bool = Field(False, description="so that unrelated texts have about 0")

    @model_validator(mode="after")
    def _alike(self) -> "Pairs":
        if len(self.candidates) != len(self.references):
            raise ValueError(f"{len(self.candidates)} candidates and {len(self.references)} references; one for each")
        return self

    def check(self, limits: Limits) -> None:
        limits.check("candidates", self.candidates)
        count = 0
        for at, references in enumerate(self.references):
            limits.check(f"references.{at}", references)
            count += len(references)
        if count > limits.texts:
            said = f"references: {count:,} pairs; at most {limits.texts:,} are taken (GPU_MAX_BATCH_SIZE)"
            raise FieldFailure("invalid_value", said, "references")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return await receive(request, lambda body: read(cls, body))


class Scored(bentoml.IODescriptor):
    """The answer of POST /bertscore. An entry of `scores` has precision, recall and f1, and if it applies `empty` (a
    text without a token: 0), `windows` (a text was longer than the model reads at once), `unweighted` (with idf, where
    no token of a text has any weight: they count alike)."""

    scores: list[dict[str, Any]]
    signature: dict[str, Any]
    model: str
    processing_time: float

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        return await settle(obj, write)


def write(found: Found) -> dict[str, Any]:
    """The answer of /bertscore."""
    return {
        "scores": found.scores,
        "signature": found.signature,
        "model": found.model,
        "processing_time": round(found.seconds, 4),
    }


class Warmup(bentoml.IODescriptor):
    """The body of POST /warmup."""

    model_config = ConfigDict(extra="forbid", strict=True)
    __root_input__ = True

    models: list[str] = Field([], max_length=16, description="encoders to load; default: all that are imported")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return await receive(request, lambda body: read(cls, body))


class Warm(bentoml.IODescriptor):
    """The answer of POST /warmup: what is in memory now. The last one named is; others may have had to give way."""

    encoders: list[dict[str, Any]]
    processing_time: float

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        return await settle(obj, dict)
