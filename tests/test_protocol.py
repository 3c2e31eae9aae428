"""serving/protocol.py: which bodies are prompts, and what is said of those that are not."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.failure import Failure
from serving.arrival import Arrival
from serving.caller import Caller
from serving.errors import failure
from serving.protocol import Prompt, Reply


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
        "require_evidence": True,
        "lane": "bulk",
        "allow_partial": True,
    }
    prompt = Prompt.parse(json.dumps(body).encode())
    assert prompt.json_schema == {"type": "object"}
    assert (prompt.max_new_tokens, prompt.temperature, prompt.seed) == (5, 0, 7)
    assert (prompt.labels, prompt.none_of_these, prompt.abstain_below, prompt.require_evidence) == (
        None,
        False,
        None,
        True,
    )


def test_labels_are_strings_or_have_a_description() -> None:
    labels = ["invoice", {"label": "letter"}, {"label": "credit note", "description": "gives money back"}]
    body = {"prompt": "x", "labels": labels, "none_of_these": True, "abstain_below": 0.5}
    prompt = Prompt.parse(json.dumps(body).encode())
    assert prompt.labels is not None
    assert [(each.label, each.description) for each in prompt.labels] == [
        ("invoice", ""),
        ("letter", ""),
        ("credit note", "gives money back"),
    ]
    assert (prompt.none_of_these, prompt.abstain_below) == (True, 0.5)


@pytest.mark.parametrize(
    "labels", [["one"], ["none of these"], ["x" * 200], [str(n) for n in range(256)], ["a", "A", " a"]]
)
def test_labels_that_may_be(labels: list[str]) -> None:
    prompt = Prompt.parse(json.dumps({"prompt": "x", "labels": labels}).encode())
    assert prompt.labels is not None and [each.label for each in prompt.labels] == labels


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
    (b'{"prompt": "a", "labels": []}', "invalid_value"),
    (b'{"prompt": "a", "labels": [""]}', "invalid_value"),
    (b'{"prompt": "a", "labels": [5]}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["' + b"x" * 201 + b'"]}', "invalid_value"),
    (b'{"prompt": "a", "labels": [' + b",".join(b'"%d"' % number for number in range(257)) + b"]}", "invalid_value"),
    (b'{"prompt": "a", "labels": [{"description": "x"}]}', "invalid_value"),
    (b'{"prompt": "a", "labels": [{"label": "x", "text": "y"}]}', "unknown_parameter"),
    (b'{"prompt": "a", "labels": ["x", {"label": "x", "description": "y"}]}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["none of these"], "none_of_these": true}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["x"], "abstain_below": 1.1}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["x"], "abstain_below": -0.1}', "invalid_value"),
    (b'{"prompt": "a", "labels": ["x"], "require_evidence": true}', "invalid_value"),
    (b'{"prompt": "a", "none_of_these": true}', "invalid_value"),
    (b'{"prompt": "a", "abstain_below": 0.5}', "invalid_value"),
    (b'{"prompt": "a", "format": "text", "require_evidence": true}', "invalid_value"),
    (b'{"prompt": "a", "format": "text", "schema": {}}', "invalid_value"),
    (b'{"prompt": "a", "require_evidence": 1}', "invalid_value"),
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
    progress: float = 0.0
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
    detail: dict[str, Any] = field(default_factory=dict)


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


def test_what_is_known_of_an_answer_is_in_its_metadata() -> None:
    detail = {
        "evidence": [],
        "confidence": {"/a": {"raw": 0.5, "calibrated": None}},
        "checks": [{"rule": "r", "pointers": ("/a",)}],
        "receipt": {"input": "00", "sampling": None},
    }
    status, body = reply(Arrival(Caller("id"), ticket=FakeTicket(FakeAnswer(detail=detail))))
    assert status == 200
    told = {name: body["metadata"].pop(name) for name in detail}
    assert told == {**detail, "checks": [{"rule": "r", "pointers": ["/a"]}]}
    assert body["metadata"].keys() == {"model", "generation_time", "finish_reason", "usage", "request_id"}


def test_what_nobody_has_named_never_goes_out() -> None:
    answer = FakeAnswer(detail={"labels": {"prior": "none"}, "secret": "text"})
    assert reply(Arrival(Caller("id"), ticket=FakeTicket(answer)))[1]["metadata"].keys() == {
        "model",
        "generation_time",
        "finish_reason",
        "usage",
        "request_id",
        "labels",
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
