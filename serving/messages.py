"""Messages of a conversation on the wire of /v1/chat/completions. Knows nothing of who reads them.

Calls of functions and their results are part of it. What the public API's own answers bring along when they are sent
back, always null or empty here, is taken.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serving.openai import Refusal, Wire


class Text(Wire):
    type: Literal["text"]
    text: str


class Link(Wire):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Image(Wire):
    """A data URL; `detail` low: of few tokens, else of as many as it needs."""

    type: Literal["image_url"]
    image_url: Link

    @property
    def url(self) -> str:
        return self.image_url.url

    @property
    def detail(self) -> str | None:
        return self.image_url.detail


def _as_parts(given: Any) -> Any:
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


One = BeforeValidator(_as_parts, json_schema_input_type=str | list[Any])  # a text alone is one part
Texts = Annotated[list[Text], Field(min_length=1), One]
Mixed = Annotated[list[Annotated[Text | Image, Field(discriminator="type")]], Field(min_length=1), One]
Said = Annotated[list[Annotated[Text | Refusal, Field(discriminator="type")]], Field(min_length=1), One]


class Made(Wire):
    """A function that was called; `arguments` as the model wrote them."""

    name: str
    arguments: str


class Call(Wire):
    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: Made


class Turn(Wire):
    """What messages have in common; what models/chat.py reads of one."""

    @property
    def parts(self) -> Sequence[str | Image]:
        """Its texts and images in their order."""
        return [part if isinstance(part, Image) else part.text for part in getattr(self, "content", None) or ()]

    @property
    def calls(self) -> list[tuple[str, Made]]:
        """What it calls, with the calls' ids."""
        return []

    @property
    def answers(self) -> str | None:
        """The id of the call that it is the result of."""
        return None


class Instruction(Turn):
    role: Literal["system", "developer"]
    content: Texts


class User(Turn):
    role: Literal["user"]
    content: Mixed


class Assistant(Turn):
    role: Literal["assistant"]
    content: Said | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def parts(self) -> Sequence[str | Image]:
        return [*super().parts, *([self.refusal] if self.refusal else [])]

    @property
    def calls(self) -> list[tuple[str, Made]]:
        return [(call.id, call.function) for call in self.tool_calls or ()]


class Result(Turn):
    role: Literal["tool"]
    content: Texts
    tool_call_id: str

    @property
    def answers(self) -> str | None:
        return self.tool_call_id


Message = Annotated[Instruction | User | Assistant | Result, Field(discriminator="role")]
