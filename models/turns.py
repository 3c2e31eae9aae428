"""Messages of a conversation as the turns that a model reads: texts, images, calls of functions and their results."""

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from typing import Protocol

from models import tools
from models.failure import FieldFailure
from models.picture import Picture
from models.template import Placed, Turn
from models.tools import Made


class Image(Protocol):
    @property
    def url(self) -> str: ...
    @property
    def detail(self) -> str | None: ...


class Message(Protocol):
    """`role`: system, developer, user, assistant or tool. `parts`: texts and images. `calls` that it makes, with their
    ids; `answers`: the id of the call that a tool's message is the result of."""

    @property
    def role(self) -> str: ...
    @property
    def parts(self) -> Listing[str | Image]: ...
    @property
    def calls(self) -> Listing[tuple[str, Made]]: ...
    @property
    def answers(self) -> str | None: ...


def images_of(messages: Listing[Message]) -> dict[str, Image]:
    """All images by their path in the request."""
    return {
        f"messages.{at}.content.{number}": part
        for at, message in enumerate(messages)
        for number, part in enumerate(message.parts)
        if not isinstance(part, str)
    }


def read_turns(messages: Listing[Message], told: str, pictures: Listing[Picture] = ()) -> list[Turn]:
    """The conversation as the model reads it: `told` comes first; calls and their results are texts. `pictures`: one
    for each image."""
    turns: list[Turn] = []
    names: dict[str, str] = {}
    seen = iter(pictures)
    for at, message in enumerate(messages):
        text, placed = read_parts(message.parts, seen)
        if message.role == "tool":
            if message.answers not in names:
                param = f"messages.{at}.tool_call_id"
                raise FieldFailure("invalid_value", f"{param}: no call before it has this id", param)
            turns.append(Turn("user", tools.show_result(names[message.answers], text)))
        elif message.role == "assistant":
            names |= {id: call.name for id, call in message.calls}
            calls = [tools.show_calls([call for _, call in message.calls])] if message.calls else []
            turns.append(Turn("assistant", "\n".join([text] * bool(text or not calls) + calls)))
        else:
            turns.append(Turn("user" if message.role == "user" else "system", text, placed))
    if told and turns[0].role == "system":
        told = f"{told}\n\n{turns.pop(0).text}"
    return [Turn("system", told), *turns] if told else turns


def read_parts(parts: Listing[str | Image], pictures: Iterator[Picture]) -> tuple[str, list[Placed]]:
    """One text, each part on a line of its own, and where in it the pictures stand, which need no line."""
    text, placed, before = "", list[Placed](), False
    for part in parts:
        if isinstance(part, str):
            text += "\n" * before + part
        else:
            placed.append(Placed(len(text), next(pictures)))
        before = isinstance(part, str)
    return text, placed
