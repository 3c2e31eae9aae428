"""models/confidence.py: each value of an answer by its pointer, with exactly the tokens that say it."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.confidence import Span, measure, spans

TEXTS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ['"', "\\", "a/b", "~1", "{[,]}", "\\u00e9"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.just(1e-30)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
LAYOUTS = st.sampled_from([{"separators": (",", ":")}, {}, {"indent": 2}, {"indent": "\t", "ensure_ascii": False}])


def leaves(value: Any, pointer: str = "") -> list[tuple[str, Any]]:
    """The scalars of a value in order, with their pointers."""
    if isinstance(value, dict):
        below = [(str(key).replace("~", "~0").replace("/", "~1"), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        below = [(str(at), inner) for at, inner in enumerate(value)]
    else:
        return [(pointer, value)]
    return [leaf for key, inner in below for leaf in leaves(inner, f"{pointer}/{key}")]


@settings(deadline=None)
@given(VALUES, LAYOUTS)
def test_every_scalar_is_found_where_it_stands(value: Any, layout: dict[str, Any]) -> None:
    text = json.dumps(value, **layout).encode()
    found = list(spans(text))
    assert [(span.pointer, json.loads(text[span.start : span.end])) for span in found] == leaves(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", []),
        ("[]", []),
        ('{"a":{},"b":[[]]}', []),
        ("7", [("", 0, 1)]),
        (' "x" ', [("", 1, 4)]),
        ('{"a":1,"b":[true,"é"]}', [("/a", 5, 6), ("/b/0", 12, 16), ("/b/1", 17, 21)]),
        ('{"":{"":-1.5e+3}}', [("//", 8, 15)]),
        ('[{"a":null},{"a":"b"}]', [("/0/a", 6, 10), ("/1/a", 17, 20)]),
        ('{"a,b":"c:d","e":"\\\\"}', [("/a,b", 7, 12), ("/e", 17, 21)]),
    ],
)
def test_offsets_are_bytes_and_quotes_belong_to_strings(text: str, expected: list[tuple[str, int, int]]) -> None:
    assert list(spans(text.encode())) == [Span(*each) for each in expected]


def cut(text: bytes, rng: random.Random) -> list[bytes]:
    """Pieces of any length, which may end within a character."""
    pieces = []
    while text:
        length = rng.randint(1, 6)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


@settings(deadline=None)
@given(VALUES, st.integers(0, 10_000))
def test_a_value_is_as_sure_as_the_tokens_that_touch_it(value: Any, seed: int) -> None:
    """Of a string its bytes with both quotes; of anything else its bytes and the one behind, which says it ends."""
    rng = random.Random(seed)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    pieces = cut(text, rng)
    logprobs = [rng.choice([0.0, -rng.expovariate(1)]) for _ in pieces]
    starts = [sum(map(len, pieces[:at])) for at in range(len(pieces))]
    expected = {}
    for pointer, start, end in spans(text):
        reach = end if text[start : start + 1] == b'"' else end + 1
        touching = [at for at, begun in enumerate(starts) if begun < reach and begun + len(pieces[at]) > start]
        expected[pointer] = math.exp(sum(logprobs[at] for at in touching))
    found = measure(pieces, logprobs)
    assert found == pytest.approx(expected)
    assert all(0 <= share <= 1 for share in found.values())


HALF, THIRD, TENTH = math.log(0.5), math.log(1 / 3), math.log(0.1)


@pytest.mark.parametrize(
    ("pieces", "logprobs", "expected"),
    [
        ([b'{"', b"a", b'":', b"1", b"2", b"}"], [0, 0, 0, HALF, THIRD, TENTH], {"/a": 1 / 60}),
        ([b'{"a":', b'"x', b'y"', b"}"], [0, HALF, THIRD, TENTH], {"/a": 1 / 6}),
        ([b'{"a":"', b"x", b'"}'], [HALF, THIRD, TENTH], {"/a": 1 / 60}),
        ([b"[", b"1,", b"2", b"]"], [0, HALF, THIRD, TENTH], {"/0": 1 / 2, "/1": 1 / 30}),
        ([b"[1", b",2]"], [HALF, THIRD], {"/0": 1 / 6, "/1": 1 / 3}),
        ([b"4", b"2"], [HALF, THIRD], {"": 1 / 6}),
        ([b"tru", b"e"], [HALF, 0], {"": 1 / 2}),
        ([b'{"a"', b":{", b"}}"], [HALF, HALF, HALF], {}),
        ([b'"', b"\xc3", b"\xa9", b'"'], [0, HALF, THIRD, 0], {"": 1 / 6}),
        ([b'{"a":"b"}'], [-2000.0], {"/a": 0.0}),
    ],
)
def test_examples(pieces: list[bytes], logprobs: list[float], expected: dict[str, float]) -> None:
    assert measure(pieces, logprobs) == pytest.approx(expected)


def test_what_was_forced_is_certain() -> None:
    assert measure([b'{"a":', b'"only"', b',"b":', b"true", b"}"], [HALF, 0, HALF, 0, 0]) == {"/a": 1.0, "/b": 1.0}
