"""deploy/results.py: what goes to RunPod can be read there, whatever it holds."""

import json
from typing import Any

import pytest

from deploy import results
from models.failure import Failure
from serving.errors import failure


@pytest.mark.parametrize(
    "output",
    [
        {},
        None,
        "hi",
        True,
        [],
        {"error": "bad", "refresh_worker": True},
        {"result": {"error": {}}},
        ["\u4e2d\U0001f389"],
    ],
)
def test_any_answer_is_an_output(output: Any) -> None:
    """The SDK's own would make a failure of `error`, drop `{}` and end the worker on `refresh_worker`."""
    assert json.loads(results.pack(output)) == {"output": output}


@pytest.mark.parametrize("output", [float("nan"), [float("inf")], b"bytes", {"x": {1, 2}}, "\ud800", {"a": object()}])
def test_what_json_cannot_say_is_an_error(output: Any) -> None:
    with pytest.raises(Failure) as refused:
        results.pack(output)
    assert refused.value.code == "internal_error"


def test_a_circle_is_an_error() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(Failure):
        results.pack(circle)


def test_the_limit_is_that_of_the_body() -> None:
    frame = len(results.pack(""))
    assert len(results.pack("x" * (results.MAX_RESULT - frame))) == results.MAX_RESULT
    with pytest.raises(Failure, match="10,000,001 bytes; RunPod takes at most 10,000,000") as refused:
        results.pack("x" * (results.MAX_RESULT - frame + 1))
    assert refused.value.code == "answer_too_large"
    with pytest.raises(Failure, match="1,000,000"):
        results.pack_chunk("\u00e9" * 500_000)


@pytest.mark.parametrize(
    ("why", "retryable"),
    [
        (failure("draining"), True),
        (failure("internal_error"), False),
        (Failure("queue_full", "full", 3.0), True),
        (Failure("answer_too_large", "large"), False),
    ],
)
def test_an_error_is_a_string(why: Failure, retryable: bool) -> None:
    body = json.loads(results.pack_error(why, "job-1"))
    assert list(body) == ["error"] and isinstance(body["error"], str)
    told = {"success": False, "error": why.message, "error_type": why.code}
    assert json.loads(body["error"]) == {**told, "retryable": retryable, "request_id": "job-1"}


@pytest.mark.parametrize("body", [b"NaN", b'{"a": -Infinity}', b"{", b""])
def test_what_resembles_json_is_none(body: bytes) -> None:
    with pytest.raises(ValueError):
        results.parse(body)
