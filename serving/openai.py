"""What the public API's routes have in common on the wire: messages of texts, and what is said of a wrong body.

Knows no route. A provider's own cache marks are taken and have no effect.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from models.failure import Failure, FieldFailure
from serving.body import read_json

Body = TypeVar("Body", bound=BaseModel)


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Text(Wire):
    type: Literal["input_text", "output_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class Refusal(Wire):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class Data(Wire):
    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    @property
    def text(self) -> str:
        return json.dumps(self.data, ensure_ascii=False, separators=(",", ":"))


class Image(Wire):
    """Nothing here can look at one."""

    type: Literal["input_image"]
    text: str = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, _: Any) -> NoReturn:
        raise PydanticCustomError("image", "images are not read here; send texts")


def as_list(given: Any) -> Any:
    """A text alone is a list of one."""
    return [given] if isinstance(given, str) else given


def _require_bool(given: Any) -> Any:
    """Python's 0 is False, JSON's is not."""
    if not isinstance(given, bool | None):
        raise PydanticCustomError("bool", "not a truth value")
    return given


Off = Annotated[Literal[False] | None, BeforeValidator(_require_bool)]


def _as_parts(given: Any) -> Any:
    return [{"type": "input_text", "text": given}] if isinstance(given, str) else given


def _as_messages(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


Part = Annotated[Text | Refusal | Data | Image, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1), BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]


class Message(Wire):
    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: Parts
    phase: Literal["commentary", "final_answer"] | None = None


Messages = Annotated[
    list[Message], Field(min_length=1), BeforeValidator(_as_messages, json_schema_input_type=str | list[Message])
]


def join(parts: Parts) -> str:
    """A content's texts, a line each."""
    return "\n".join(part.text for part in parts)


def name_parts(messages: Messages) -> dict[str, str]:
    """The messages' texts, by a name that tells who speaks where there are several."""
    if len(messages) == 1:
        return {"input": join(messages[0].content)}
    return {f"message {at}, {message.role}": join(message.content) for at, message in enumerate(messages, 1)}


def read(model: type[Body], body: bytes) -> Body:
    """`body` as a `model`; raises Failure with what is wrong, naming fields but quoting no value."""
    fields = read_json(body)
    if not isinstance(fields, dict):
        raise Failure("invalid_value", "the body must be a JSON object")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise explain(error, fields) from None


def explain(error: ValidationError, fields: Any) -> FieldFailure:
    """The first thing that is wrong, by the path that it has in the body; a union's path also says what was tried."""
    first = error.errors(include_input=False, include_url=False)[0]
    path = _walk(first["loc"], fields)
    if first["type"] == "missing":
        path.append(first["loc"][-1])
    where = ".".join(str(step)[:64] for step in path) or "body"
    if first["type"] == "extra_forbidden":
        return FieldFailure("unknown_parameter", f"{where}: unknown field", where)
    if first["type"] == "union_tag_invalid":  # whose message quotes what was sent
        told = first["ctx"]
        where, said = f"{where}.{told['discriminator'].strip(chr(39))}", f"not one of {told['expected_tags']}"
    else:
        said = first["msg"]
    return FieldFailure("invalid_value", f"{where}: {said}", where)


def _walk(steps: Sequence[int | str], fields: Any) -> list[int | str]:
    """As many of the steps as lead on, and rather the last one: a union's tag may also be the name of a field."""
    if not steps:
        return []
    step, rest = steps[0], steps[1:]
    if isinstance(fields, list) and isinstance(step, int):
        return [step, *_walk(rest, fields[step])]
    without = _walk(rest, fields)
    if not isinstance(fields, dict) or step not in fields:
        return without
    return max([step, *_walk(rest, fields[step])], without, key=lambda path: (len(path), path[-1:] == [*steps[-1:]]))
