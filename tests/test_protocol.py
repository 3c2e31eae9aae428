"""serving/protocol.py: which bodies are prompts, and what is said of those that are not."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.failure import Failure
from serving.errors import failure
from serving.protocol import MAX_DEPTH, Arrival, Caller, Prompt, Reply, read_json


def refusal(body: bytes) -> Failure:
    with pytest.raises(Failure) as caught:
        Prompt.parse(body)
    return caught.value


def test_the_documented_body() -> None:
    prompt = Prompt.parse(b'{"prompt": "Total?", "context": {"document": "12.50"}}')
    assert (prompt.prompt, prompt.context, prompt.format) == ("Total?", {"document": "12.50"}, "json")


def test_every_optional_field() -> None:
    body = {
        "prompt": "x",
        "context": {},
        "schema": {"type": "object"},
        "format": "json",
        "max_new_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 7,
        "deadline_ms": 1000,
    }
    prompt = Prompt.parse(json.dumps(body).encode())
    assert prompt.json_schema == {"type": "object"}
    assert (prompt.max_new_tokens, prompt.temperature, prompt.seed) == (5, 0, 7)


MALFORMED = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b'{"prompt": "a"} x', "invalid_json"),
    (b"\xff\xfe", "invalid_json"),
    (b'{"prompt": "\xc3"}', "invalid_json"),
    (b'{"prompt": "a", "prompt": "b"}', "invalid_json"),
    (b'{"prompt": "a", "context": {"x": 1, "x": 2}}', "invalid_json"),
    (b'{"prompt": "a", "temperature": NaN}', "invalid_json"),
    (b'{"prompt": "a", "temperature": 1e999}', "invalid_json"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
    (b"[" * 100_000, "invalid_json"),
    (b'{"prompt": "a", "context": {"x": ' + b"[" * 80 + b"]" * 80 + b"}}", "invalid_value"),
    (b'{"prompt": "a\\u0000b"}', "invalid_text"),
    (b'{"prompt": "a", "context": {"\\u0000": 1}}', "invalid_text"),
    (b'{"prompt": "\\ud800"}', "invalid_text"),
    (b"[]", "invalid_value"),
    (b'"prompt"', "invalid_value"),
    (b"null", "invalid_value"),
    (b"{}", "invalid_value"),
    (b'{"prompt": ""}', "invalid_value"),
    (b'{"prompt": 5}', "invalid_value"),
    (b'{"prompt": ["a"]}', "invalid_value"),
    (b'{"prompt": "a", "context": "text"}', "invalid_value"),
    (b'{"prompt": "a", "context": null}', "invalid_value"),
    (b'{"prompt": "a", "schema": "object"}', "invalid_value"),
    (b'{"prompt": "a", "format": "xml"}', "invalid_value"),
    (b'{"prompt": "a", "max_new_tokens": 0}', "invalid_value"),
    (b'{"prompt": "a", "max_new_tokens": "5"}', "invalid_value"),
    (b'{"prompt": "a", "max_new_tokens": 2147483648}', "invalid_value"),
    (b'{"prompt": "a", "temperature": -1}', "invalid_value"),
    (b'{"prompt": "a", "top_p": 0}', "invalid_value"),
    (b'{"prompt": "a", "seed": -1}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["one"]}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["x", "x"]}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["x", "y"], "schema": {}}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["x", "y"], "format": "text"}', "invalid_value"),
    (b'{"prompt": "a", "foo": 1}', "unknown_parameter"),
    (b'{"prompt": "a", "json_schema": {}}', "unknown_parameter"),
]


@pytest.mark.parametrize(("body", "code"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_bodies(body: bytes, code: str) -> None:
    assert refusal(body).code == code


def test_a_refusal_names_the_field_but_quotes_no_value() -> None:
    refused = refusal(b'{"prompt": "a", "max_new_tokens": "a secret of the document"}')
    assert "max_new_tokens" in refused.message
    assert "secret" not in refused.message


def test_the_name_of_an_unknown_field_is_cut() -> None:
    assert len(refusal(json.dumps({"prompt": "a", "b" * 5000: 1}).encode()).message) < 100


def test_depth_at_the_limit() -> None:
    def nested(levels: int) -> bytes:
        return b"[" * levels + b"]" * levels

    read_json(nested(MAX_DEPTH))
    with pytest.raises(Failure, match="nested deeper"):
        read_json(nested(MAX_DEPTH + 1))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_whatever_is_json_comes_through_unchanged(value: Any) -> None:
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=200))
def test_whatever_is_not_gets_a_typed_refusal(body: bytes) -> None:
    try:
        Prompt.parse(body)
    except Failure as refused:
        assert refused.code in ("invalid_json", "invalid_value", "invalid_text", "unknown_parameter")


@dataclass
class FakeTicket:
    """Stands for models/prompt.py's, which needs a model."""

    outcome: Any
    cancelled: list[bool] = field(default_factory=list)

    def cancel(self) -> None:
        self.cancelled.append(True)

    async def answer(self) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@dataclass
class FakeAnswer:
    output: str = '{"a":1}'
    model: str = "m"
    finish_reason: str = "stop"
    prompt_tokens: int = 3
    completion_tokens: int = 2
    seconds: float = 0.12345


def reply(arrival: Arrival) -> tuple[int, dict[str, Any]]:
    response = asyncio.run(Reply.to_http_response([arrival], None))
    return response.status_code, json.loads(bytes(response.body))


def test_an_answer_on_the_wire() -> None:
    status, body = reply(Arrival(Caller("id"), ticket=FakeTicket(FakeAnswer())))
    assert status == 200
    assert body == {
        "success": True,
        "output": '{"a":1}',
        "metadata": {
            "model": "m",
            "generation_time": 0.123,
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
            "request_id": "id",
        },
    }


def test_a_failure_on_the_wire() -> None:
    status, body = reply(Arrival(Caller("id"), ticket=FakeTicket(Failure("answer_truncated", "cut at 5 tokens"))))
    assert (status, body["error_type"], body["error"]) == (422, "answer_truncated", "cut at 5 tokens")


def test_a_row_with_neither_ticket_nor_failure_is_an_internal_error() -> None:
    assert reply(Arrival(Caller("id")))[1]["error_type"] == "internal_error"


def test_a_refusal_keeps_its_own_code() -> None:
    assert reply(Arrival(Caller("id"), failure=failure("invalid_text")))[1]["error_type"] == "invalid_text"


def test_two_rows_in_one_reply_are_an_error_not_a_mixup() -> None:
    arrival = Arrival(Caller("id"), ticket=FakeTicket(FakeAnswer()))
    with pytest.raises(ValueError, match="too many values"):
        asyncio.run(Reply.to_http_response([arrival, arrival], None))


def test_leaving_before_the_ticket_is_held_cancels_it_too() -> None:
    early, late = FakeTicket(None), FakeTicket(None)
    caller = Caller("id")
    caller.leave()
    caller.hold(early)
    other = Caller("id")
    other.hold(late)
    other.leave()
    assert early.cancelled == late.cancelled == [True]
