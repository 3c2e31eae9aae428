"""What crosses the wire on our own routes, and the two hooks that let BentoML's batcher gather single prompts.

BentoML batches lists. `Prompt.from_http_request` makes a list of one out of a body that is one prompt, and
`Reply.to_http_response` awaits the ticket of the one that came back. Tests pin both hooks to the pinned BentoML.
"""

from typing import Annotated, Any, Literal, Protocol

import bentoml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import Response

from models.failure import Failure
from serving.arrival import receive, settle
from serving.body import read_json


class Label(BaseModel):
    """One of a prompt's labels; a string alone is one without a description."""

    model_config = ConfigDict(extra="forbid", strict=True)

    label: str = Field(min_length=1, max_length=200)
    description: str = Field("", max_length=2000)


def _described(given: Any) -> Any:
    return {"label": given} if isinstance(given, str) else given


Named = Annotated[Label, BeforeValidator(_described, json_schema_input_type=str | Label)]


class Answer(Protocol):
    """What a ticket turns into (models/question.py)."""

    output: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    detail: dict[str, Any]


class Prompt(bentoml.IODescriptor):
    """The body of POST /prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)
    __root_input__ = True

    prompt: str = Field(min_length=1, description="what to do; may hold the document itself")
    context: dict[str, Any] = Field(
        {}, description="reference data by name; strings are shown as they are, `images`: data URLs"
    )
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="JSON Schema of the answer")
    labels: list[Named] | None = Field(None, min_length=1, max_length=256, description="how probable is each of these")
    none_of_these: bool = Field(False, description="with labels: none of them may be right")
    abstain_below: float | None = Field(None, ge=0, le=1, description="with labels: the least probability to decide")
    require_evidence: bool = Field(False, description="a value that is not in the document is an error")
    format: Literal["json", "text"] = "json"
    max_new_tokens: int | None = Field(None, ge=1, le=32_768)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    deadline_ms: int | None = Field(None, ge=1, le=3_600_000)
    lane: Literal["interactive", "bulk"] = Field("interactive", description="bulk gives way to interactive prompts")
    on_conflict: Literal["error", "report"] = Field("error", description="where parts of a long document differ")
    allow_partial: bool = Field(False, description="take an answer that max_new_tokens has ended early, flagged")

    @model_validator(mode="after")
    def _one_form(self) -> "Prompt":
        if self.json_schema is not None and self.labels is not None:
            raise ValueError("schema and labels exclude each other")
        if self.format == "text" and (self.json_schema is not None or self.labels is not None or self.require_evidence):
            raise ValueError("format text takes neither schema nor labels, and gives no evidence")
        if self.labels is None and (self.none_of_these or self.abstain_below is not None):
            raise ValueError("none_of_these and abstain_below need labels")
        if self.labels is not None:
            self._check_labels({each.label for each in self.labels})
        return self

    def _check_labels(self, names: set[str]) -> None:
        assert self.labels is not None
        if len(names) < len(self.labels):
            raise ValueError("labels must differ")
        if self.none_of_these and "none of these" in names:
            raise ValueError("with none_of_these no label can be that")
        if self.require_evidence:
            raise ValueError("labels have no evidence")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return [await receive(request, cls.parse)]

    @classmethod
    def parse(cls, body: bytes) -> "Prompt":
        """The prompt in `body`; raises Failure with what is wrong, naming fields but quoting no value."""
        fields = read_json(body)
        if not isinstance(fields, dict):
            raise Failure("invalid_value", "the body must be a JSON object")
        try:
            prompt: Prompt = cls.model_validate(fields)
            return prompt
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(str(part)[:64] for part in first["loc"]) or "body"
            if first["type"] == "extra_forbidden":
                raise Failure("unknown_parameter", f"{where}: unknown field") from None
            raise Failure("invalid_value", f"{where}: {first['msg']}") from None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class Metadata(BaseModel):
    """`generation_time` in seconds, waiting included. `finish_reason`: "stop", or if `allow_partial` was asked for
    "closed" (max_new_tokens was near, so the JSON was ended by the shortest way) or "length" (text that was cut).
    What does not apply is left out."""

    model: str
    generation_time: float
    finish_reason: str
    usage: Usage
    request_id: str
    evidence: list[dict[str, Any]] | None = None
    confidence: dict[str, Any] | None = None
    checks: list[dict[str, Any]] | None = None
    bounds: Any = None
    labels: dict[str, Any] | None = None
    windows: dict[str, Any] | None = None
    images: dict[str, Any] | None = None
    receipt: dict[str, Any] | None = None


class Reply(bentoml.IODescriptor):
    """The answer of POST /prompt. `output` holds JSON unless `format` was "text"."""

    success: Literal[True]
    output: str
    metadata: Metadata

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        (arrival,) = obj
        return await settle(arrival, lambda answer: cls.write(answer, arrival.caller.request_id))

    @classmethod
    def write(cls, answer: Answer, request_id: str) -> dict[str, Any]:
        """The body of a whole answer."""
        metadata = Metadata(
            model=answer.model,
            generation_time=round(answer.seconds, 3),
            finish_reason=answer.finish_reason,
            usage=Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens),
            request_id=request_id,
            **answer.detail,
        )
        told = {name: value for name, value in metadata.model_dump().items() if value is not None}
        return {"success": True, "output": answer.output, "metadata": told}
