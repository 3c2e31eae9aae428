"""models/viewing.py: POST /prompt with images, on the real server over a tiny random model."""

import asyncio
import base64
import json
import time
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from models.failure import Failure
from models.picture import Picture
from models.ticket import Pending
from models.viewing import Viewing
from models.vision import Vision
from serving.arrival import Arrival, prepare
from serving.caller import Caller, Wait
from tests.conftest import Server

LONG = "Total 12.50 EUR. "


def url(width: int = 84, height: int = 56, colour: str = "red", kind: str = "PNG") -> str:
    out = BytesIO()
    Image.new("RGB", (width, height), colour).save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def ask(server: Server, images: Any, status: int = 200, **fields: Any) -> Any:
    context = {"document": "Total: 12.50", **fields.pop("context", {}), "images": images}
    body = {"prompt": "What is the total?", "context": context, "allow_partial": True, "max_new_tokens": 40, **fields}
    answer = httpx.post(f"{server.url}/prompt", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


SCHEMA = {"type": "object", "properties": {"total": {"type": "string", "maxLength": 5}}, "required": ["total"]}


def test_a_question_with_images_is_answered(seeing_server: Server) -> None:
    told = ask(seeing_server, [url(), url(112, 112, "blue", "JPEG")], schema=SCHEMA)
    assert len(json.loads(told["output"])["total"]) <= 5
    assert told["metadata"]["images"] == {"tokens": [6, 16], "evidence": "of the text alone"}
    assert [each["pointer"] for each in told["metadata"]["evidence"]] == ["/total"]
    without = ask(seeing_server, [url()], schema=SCHEMA)["metadata"]["usage"]["prompt_tokens"]
    assert told["metadata"]["usage"]["prompt_tokens"] == without + 16 + 2  # and its two marks


def test_labels_are_scored_behind_an_image(seeing_server: Server) -> None:
    red, blue, again = (
        ask(seeing_server, [url(colour=colour)], labels=["invoice", "letter"], prompt="Which?")
        for colour in ("red", "blue", "red")
    )
    scores = [each["metadata"]["labels"]["scores"] for each in (red, blue, again)]
    assert scores[0] == pytest.approx(scores[2], rel=1e-3)  # in bf16
    assert scores[0] != pytest.approx(scores[1], rel=1e-2)
    assert red["metadata"]["labels"]["prior"] == "none"
    assert red["metadata"]["images"]["tokens"] == [6]


def test_the_receipt_covers_images(seeing_server: Server) -> None:
    inputs = [
        ask(seeing_server, [url(colour=colour)], schema=SCHEMA)["metadata"]["receipt"]["input"]
        for colour in ("red", "red", "blue")
    ]
    assert inputs[0] == inputs[1] != inputs[2]


def test_text_is_answered_as_ever(seeing_server: Server) -> None:
    body = {"prompt": "Hi", "max_new_tokens": 4, "format": "text", "allow_partial": True}
    told = httpx.post(f"{seeing_server.url}/prompt", json=body, timeout=60).json()
    assert told["success"] and "images" not in told["metadata"]


@pytest.mark.parametrize("images", [[], "data:image/png;base64,", {}, None])
def test_images_are_a_list(seeing_server: Server, images: Any) -> None:
    told = ask(seeing_server, images, 400)
    assert (told["error_type"], told["error"]) == ("invalid_value", "context.images: a list of data URLs is needed")


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("https://example.org/a.png", "an image is a data URL in base64 of PNG, JPEG or WebP; nothing is fetched"),
        (7, "an image is a data URL in base64 of PNG, JPEG or WebP; nothing is fetched"),
        ("data:image/png;base64,####", "the data URL is not valid base64"),
        ("data:image/png;base64,aGFsbG8=", "it is no PNG, JPEG or WebP image"),
        (url(2000, 10), "the image is 200 times as long as wide, or more"),
    ],
)
def test_the_image_that_is_refused_is_named(seeing_server: Server, image: Any, why: str) -> None:
    told = ask(seeing_server, [url(), image], 400)
    assert (told["error_type"], told["error"]) == ("invalid_image", f"context.images.1: {why}")


def test_a_damaged_image_is_unprocessable(seeing_server: Server) -> None:
    head, _, data = url(300, 300).partition(",")
    cut = base64.b64encode(base64.b64decode(data)[:120]).decode()
    told = ask(seeing_server, [f"{head},{cut}"], 422)
    assert told["error_type"] == "image_unprocessable"
    assert told["error"] == "context.images.0: the image is damaged, or takes too much to decode"


def test_five_images_are_too_many(seeing_server: Server) -> None:
    told = ask(seeing_server, [url()] * 5, 400)
    assert told["error"] == "context.images.0: a request may have 4 images, this one 5"


def test_a_long_document_beside_an_image_is_refused(seeing_server: Server) -> None:
    told = ask(seeing_server, [url()], 400, context={"document": LONG * 9000})
    assert told["error_type"] == "context_length_exceeded"
    assert told["error"].endswith("; beside images a document is not split")


def test_a_deadline_counts_what_is_decoded(seeing_server: Server) -> None:
    told = ask(seeing_server, [url()] * 4, 504, deadline_ms=1)
    assert told["error_type"] == "deadline_exceeded"


def test_a_model_that_reads_no_images_says_so(tiny_server: Server) -> None:
    told = ask(tiny_server, [url()], 400)
    assert (told["error_type"], told["error"]) == ("invalid_value", "the served model reads no images")


def test_whoever_has_left_is_not_asked_for() -> None:
    def ask(pictures: list[Picture]) -> Pending:
        raise AssertionError("nobody waits")

    viewing = Viewing(Vision(28, 1280), {"images.0": url()}, ask, time.monotonic() + 60)
    assert viewing.progress == 0
    viewing.cancel()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(viewing.answer())


def test_a_refusal_of_what_is_asked_is_passed_on() -> None:
    def ask(pictures: list[Picture]) -> Pending:
        assert [picture.tokens for picture in pictures] == [6]
        raise Failure("queue_full", "later", 3)

    viewing = Viewing(Vision(28, 1280), {"images.0": url()}, ask, time.monotonic() + 60)
    with pytest.raises(Failure) as refused:
        asyncio.run(viewing.answer())
    assert (refused.value.code, refused.value.retry_after) == ("queue_full", 3)


def test_whoever_leaves_ends_the_reading() -> None:
    """And so does one who has left before it began."""

    class Slow(Vision):
        begun = 0

        async def read(self, urls: Any, few: Any = ()) -> list[Picture]:
            Slow.begun += 1
            await asyncio.sleep(60)
            return []

    def never(_: list[Picture]) -> Pending:
        raise AssertionError

    async def leave(wait: float) -> None:
        viewing = Viewing(Slow(28, 64), {"context.images.0": url()}, never, time.monotonic() + 60)
        answer = asyncio.ensure_future(viewing.answer())
        await asyncio.sleep(wait)
        viewing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(answer, 5)

    asyncio.run(leave(0.05))
    asyncio.run(leave(0))
    assert Slow.begun == 1


def test_a_wait_can_be_left() -> None:
    async def leave() -> None:
        caller = Caller("id")
        wait = Wait(asyncio.sleep(60))
        caller.hold(wait)
        caller.leave()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(wait.answer(), 5)
        assert await Wait(asyncio.sleep(0, "seen")).answer() == "seen"

    asyncio.run(leave())


def test_what_is_prepared_fails_for_its_arrival_alone() -> None:
    async def refuse() -> None:
        raise Failure("invalid_image", "no image")

    async def run() -> None:
        arrival = Arrival(Caller("id"))
        assert await prepare(arrival, asyncio.sleep(0, "seen")) == "seen" and arrival.failure is None
        assert await prepare(arrival, refuse()) is None
        assert arrival.failure and arrival.failure.code == "invalid_image"
        left = Arrival(Caller("id"))
        left.caller.leave()
        assert await prepare(left, asyncio.sleep(60)) is None
        assert left.failure and left.failure.code == "client_closed_request"

    asyncio.run(run())
