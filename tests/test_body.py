"""serving/body.py: JSON as the standard has it comes through as it is, and nothing else does."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.failure import Failure
from serving.body import MAX_DEPTH, MAX_VALUES, read_json


def refusal(body: bytes) -> str:
    with pytest.raises(Failure) as caught:
        read_json(body)
    return caught.value.code


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{} x",
        b"{'a': 1}",
        b"[1,]",
        b"// a\n1",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'"\xc3"',
        b'"\xed\xa0\x80"',
        "{}".encode("utf-16"),
        b'{"a": 1, "a": 1}',
        b'[{"a": {"b": 1, "b": 2}}]',
        b'{"a": 1, "\\u0061": 2}',
        b"NaN",
        b'{"a": NaN}',
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"[-1e999]",
        b"9" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert refusal(body) == "invalid_json"


@pytest.mark.parametrize(
    "body", [b'"a\\u0000b"', b'{"\\u0000": 1}', b'"\\ud800"', b'[["\\udfff"]]', b'{"a": {"\\udc00": 1}}']
)
def test_what_is_no_text_is_refused(body: bytes) -> None:
    assert refusal(body) == "invalid_text"


def test_a_refusal_quotes_nothing() -> None:
    for body in (b'{"secret": NaN}', b'"secret\\u0000"', b"secret", b"[" * 65 + b'"secret"' + b"]" * 65):
        with pytest.raises(Failure) as caught:
            read_json(body)
        assert "secret" not in caught.value.message
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_at_the_limit(opening: str) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]

    def nested(levels: int) -> bytes:
        return (opening * (levels - 1) + "[]" + closing * (levels - 1)).encode()

    read_json(nested(MAX_DEPTH))
    assert refusal(nested(MAX_DEPTH + 1)) == "invalid_value"


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_whatever_is_json_comes_through_unchanged(value: Any) -> None:
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@given(st.binary(max_size=100))
def test_whatever_comes_through_is_json_to_the_last_byte(body: bytes) -> None:
    try:
        value = read_json(body)
    except Failure as refused:
        assert refused.code in ("invalid_json", "invalid_text", "invalid_value")
        return
    assert value == json.loads(body)
    assert not (isinstance(value, float) and not math.isfinite(value))


@pytest.mark.timeout(30)
def test_a_large_body_is_read_in_linear_time() -> None:
    value = {"document": ["line of a page " * 50] * 5_000, "numbers": list(range(20_000))}
    assert read_json(json.dumps(value).encode()) == value


def test_count_at_the_limit() -> None:
    values = MAX_VALUES - 1  # beside the list itself
    read_json(json.dumps([0] * values).encode())
    assert refusal(json.dumps([0] * (values + 1)).encode()) == "invalid_value"
    pairs: dict[str, list[Any]] = {str(at): [] for at in range(values // 2)}
    read_json(json.dumps(pairs).encode())
    assert refusal(json.dumps(pairs | {"x": []}).encode()) == "invalid_value"
