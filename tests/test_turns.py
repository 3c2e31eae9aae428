"""models/turns.py, and conversations with images on the real server, asked by the public client."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest

from models import catalog, vision
from models.failure import FieldFailure
from models.template import Placed, Turn
from models.tools import Call
from models.turns import images_of, read_turns
from tests import seeing
from tests.conftest import Server
from tests.test_viewing import url

A, B = seeing.picture(1, 2, 1), seeing.picture(2, 2, 2)


@dataclass
class Link:
    url: str = "a"
    detail: str | None = None


@dataclass
class Said:
    role: str
    parts: list[Any]
    calls: list[tuple[str, Call]] = field(default_factory=list)
    answers: str | None = None


@pytest.mark.parametrize(
    ("parts", "text", "places"),
    [
        (["a", "b"], "a\nb", []),
        ([A, "a"], "a", [0]),
        (["a", A], "a", [1]),
        (["a", A, "b"], "ab", [1]),
        (["a", "b", A, A, "c", "d"], "a\nbc\nd", [3, 3]),
        ([A, B], "", [0, 0]),
    ],
)
def test_parts_become_one_text_and_the_places_of_pictures(parts: list[Any], text: str, places: list[int]) -> None:
    pictures = [part for part in parts if not isinstance(part, str)]
    said = Said("user", [part if isinstance(part, str) else Link() for part in parts])
    (turn,) = read_turns([said], "", pictures)
    assert turn == Turn("user", text, [Placed(at, picture) for at, picture in zip(places, pictures, strict=True)])


def test_images_are_named_by_their_path() -> None:
    first, second = Link("x"), Link("y", "low")
    messages = [Said("system", ["s"]), Said("user", ["a", first]), Said("assistant", ["b"]), Said("user", [second])]
    assert images_of(messages) == {"messages.1.content.1": first, "messages.3.content.0": second}
    turns = read_turns(messages, "", [A, B])
    assert [[placed.picture for placed in turn.pictures] for turn in turns] == [[], [A], [], [B]]


def test_what_is_told_comes_first() -> None:
    asked = Said("user", ["hi"])
    assert read_turns([Said("system", ["s"]), asked], "t") == [Turn("system", "t\n\ns"), Turn("user", "hi", [])]
    assert read_turns([asked], "t") == [Turn("system", "t"), Turn("user", "hi", [])]


def test_a_result_without_its_call_is_refused() -> None:
    with pytest.raises(FieldFailure) as refused:
        read_turns([Said("user", ["a"]), Said("tool", ["b"], answers="c")], "")
    assert refused.value.param == "messages.1.tool_call_id"


@pytest.fixture(scope="module")
def client(seeing_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{seeing_server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def image(source: str, **more: Any) -> Any:
    return {"type": "image_url", "image_url": {"url": source, **more}}


def talk(client: openai.OpenAI, *parts: Any, most: int = 6, **more: Any) -> Any:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(
        model=catalog.SHIZHENGPT.name, messages=messages, max_completion_tokens=most, **more
    )


def test_the_public_client_shows_images(client: openai.OpenAI) -> None:
    red, large = url(), url(800, 600)
    alone = talk(client, "What is it?").usage.prompt_tokens
    assert talk(client, "What is it?", image(red)).usage.prompt_tokens == alone + 6 + 2
    assert talk(client, image(red), "What is it?", image(red)).usage.prompt_tokens == alone + 2 * (6 + 2)
    used = {
        detail: talk(client, "What is it?", image(large, detail=detail)).usage for detail in ("low", "auto", "high")
    }
    assert used["low"].prompt_tokens - alone - 2 <= vision.FEW < used["auto"].prompt_tokens - alone - 2
    assert used["auto"].prompt_tokens == used["high"].prompt_tokens
    assert used["low"].prompt_tokens - alone > 100


def test_images_change_what_is_said_and_a_stream_says_the_same(client: openai.OpenAI) -> None:
    def tops(colour: str) -> list[float]:
        told = talk(client, image(url(colour=colour)), "Colour?", logprobs=True, top_logprobs=3)
        return [each.logprob for each in told.choices[0].logprobs.content[0].top_logprobs]

    assert tops("red") == pytest.approx(tops("red"), rel=1e-3)
    assert tops("red") != pytest.approx(tops("blue"), rel=1e-2)
    stream = talk(client, image(url()), "Colour?", stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert said == talk(client, image(url()), "Colour?").choices[0].message.content


def test_an_answer_of_a_form_beside_an_image(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    told = talk(client, image(url()), response_format=form, most=40)
    assert told.choices[0].message.content in ('{"a":"x"}', '{"a":"y"}', '{"a": "x"}', '{"a": "y"}')


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("http://127.0.0.1:1/a.png", "invalid_image"),
        ("data:image/png;base64,AAAA", "invalid_image"),
        ("data:image/gif;base64,R0lGODlh", "invalid_image"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_image_is_named(client: openai.OpenAI, source: str, code: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        talk(client, "Look", image(url()), image(source), stream=stream)
    assert (refused.value.code, refused.value.param) == (code, "messages.0.content.2")


def test_more_than_four_images_in_all_messages_are_too_many(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="a request may have 4 images, this one 5"):
        talk(client, *[image(url())] * 5)


def test_a_model_that_reads_no_images_names_the_first(tiny_server: Server) -> None:
    body = {
        "model": catalog.SMOLLM2.name,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, image(url())]}],
    }
    told = httpx.post(f"{tiny_server.url}/v1/chat/completions", json=body, timeout=60)
    assert told.status_code == 400
    assert told.json()["error"]["message"] == "messages.0.content.1: the served model reads no images"
    assert told.json()["error"]["param"] == "messages.0.content.1"
