"""models/engine/substrings.py: what goes on with a text of the document, token by token, against looking for it."""

import json
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from models import store
from models.engine.substrings import (
    ESCAPED,
    INSIDE,
    MOST_BYTES,
    OPENING,
    Match,
    Substrings,
    Vocabulary,
    sort_suffixes,
    split,
    vocabulary_of,
)
from models.failure import Failure

MODES = [INSIDE, ESCAPED, OPENING]
LETTERS = [bytes([byte]) for byte in b'ab"\\nu01: ,e']
SMALL = Vocabulary(
    [b"", *LETTERS, b"ab", b"aba", b'",', b'a"', b'"a', b'","b', b"\\n", b'\\"', b'\\",', b"\\u0001", b"ab"]
)
TEXT = st.text('ab"\\\n\x01\x7f \u00e9\U0001f389e\u0301', max_size=30)
PAGES = {
    "receipt": ['Café "Zürich"\nTOTAL  12.50 CHF\tVAT\\7.7%', "Page 2\r\n— 1'234.00 €", ""],
    "symbols": ["🎉👩‍👧 e\u0301é\u2028 ' \x7f \x1f", '\\"\\\\""\\n', "\x01\x02\x00", "\\"],
    "repeats": ["a" * 200 + "b" + "a" * 150, "\\" * 50, '"' * 50, "ab" * 80, " " * 100],
    "empty": [""],
    "none": [],
}


def tails(pages: list[str]) -> list[bytes]:
    """From each character on to the end of its page, or to a character that JSON writes by number only."""
    pieces = [piece for page in pages for piece in re.split("[\x00-\x07\x0b\x0e-\x1f\x7f]", page)]
    return [json.dumps(piece[at:], ensure_ascii=False)[1:-1].encode() for piece in pieces for at in range(len(piece))]


def head_of(token: bytes, mode: int) -> bytes:
    """What stands in the string, by the letter."""
    if mode == OPENING:
        return head_of(token[1:], INSIDE) if token.startswith(b'"') else b""
    head, escaped = b"", mode == ESCAPED
    for byte in token:
        if byte == ord('"') and not escaped:
            break
        head += bytes([byte])
        escaped = byte == ord("\\") and not escaped
    return head


def members(mask: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist())


def states(pages: list[str], rng: random.Random, count: int) -> Iterator[bytes]:
    """The beginnings of some tails, the short ones more often; nothing first."""
    yield b""
    found = tails(pages)
    for _ in range(count if found else 0):
        tail = rng.choice(found)
        yield tail[: rng.choice([1, 2, 3, rng.randint(0, len(tail))])]


def escapes(text: bytes) -> bool:
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1


def extend(document: Substrings, text: bytes) -> Match | None:
    match: Match | None = document.root
    for byte in text:
        match = document.narrow(match, byte) if match else None
    return match


def assert_allowed(document: Substrings, pages: list[str], heads: list[list[bytes]], text: bytes) -> None:
    """What a mask allows behind `text` is what some tail goes on with."""
    match = extend(document, text)
    assert match is not None
    follow = {tail[len(text) :] for tail in tails(pages) if tail.startswith(text)}
    ways = {way[:size] for way in follow for size in range(min(len(way), 130) + 1)} | {b""}
    for mode in [ESCAPED] if escapes(text) else [INSIDE] if text else [INSIDE, OPENING]:
        expected = {token for token, head in enumerate(heads[mode]) if head in ways}
        assert members(document.allowed(match, mode)) == expected


@pytest.fixture(scope="module", params=["mixtral", "smollm2"])
def real(request: pytest.FixtureRequest, mixtral_tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    if request.param == "mixtral":
        return vocabulary_of(from_tokenizer(mixtral_tokenizer), len(mixtral_tokenizer))
    smollm2: store.Loaded = request.getfixturevalue("smollm2")
    return vocabulary_of(from_tokenizer(smollm2.tokenizer), 49_179)


@settings(deadline=None)
@given(st.text("ab", max_size=300) | st.binary(max_size=60).map(lambda text: text.decode("latin-1")) | TEXT)
def test_suffixes_are_in_order(text: str) -> None:
    data = text.encode("latin-1", "replace").replace(b"\0", b"\1")
    assert sort_suffixes(data).tolist() == sorted(range(len(data)), key=lambda start: data[start:])


@pytest.mark.parametrize("text", [b"a" * 5000, b"ab" * 3000, b"abaab" * 1000 + b"b", b"", b"a"])
def test_long_repeats_are_in_order(text: bytes) -> None:
    assert sort_suffixes(text).tolist() == sorted(range(len(text)), key=lambda start: text[start:])


@settings(deadline=None)
@given(st.lists(st.sampled_from(LETTERS), max_size=8).map(b"".join), st.sampled_from(MODES))
def test_a_token_is_split_where_its_string_ends(token: bytes, mode: int) -> None:
    head, rest = split(token, mode)
    assert head == head_of(token, mode)
    opened = mode == OPENING and token.startswith(b'"')
    whole = (b'"' if opened else b"") + head
    if mode == OPENING and not opened:
        assert rest == token
    else:
        assert token in (whole, whole + b'"' + rest)
        assert rest == token[len(whole) + 1 :]


@pytest.mark.parametrize("mode", MODES)
def test_tokens_that_begin_another_string_are_known(mode: int, real: Vocabulary) -> None:
    risky = {token for token, text in enumerate(real.tokens) if b'"' in split(text, mode)[1]}
    assert set(real.risky[mode].tolist()) == risky
    assert 0 < len(risky) < 200  # each is looked at by itself


def test_a_byte_is_known_by_its_token(real: Vocabulary) -> None:
    for byte in range(256):
        assert real.tokens[real.ids[byte]] in (bytes([byte]), b"")
    assert all(real.tokens[real.ids[byte]] for byte in range(0x20, 0x7F))


@settings(deadline=None, max_examples=200)
@given(st.lists(TEXT, max_size=3), st.randoms(use_true_random=False))
def test_a_small_vocabulary_goes_on_as_the_document_does(pages: list[str], rng: random.Random) -> None:
    document = Substrings(pages, SMALL)
    heads = [[head_of(token, mode) for token in SMALL.tokens] for mode in MODES]
    for text in states(pages, rng, 6):
        assert_allowed(document, pages, heads, text)


@pytest.mark.parametrize("name", PAGES)
def test_a_real_vocabulary_goes_on_as_the_document_does(name: str, real: Vocabulary) -> None:
    document, rng = Substrings(PAGES[name], real), random.Random(name)
    heads = [[head_of(token, mode) for token in real.tokens] for mode in MODES]
    for text in states(PAGES[name], rng, 25):
        assert_allowed(document, PAGES[name], heads, text)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=3), st.lists(st.sampled_from([*LETTERS, "é".encode()]), max_size=6))
def test_a_text_is_found_where_it_is(pages: list[str], pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    parts = text.split(b'"')
    if any(not escapes(part) for part in parts[:-1]):
        return  # a quote without a backslash ends a string, so nobody asks for it
    found = extend(Substrings(pages, SMALL), text)
    expected = sum(tail.startswith(text) for tail in tails(pages))
    assert (found.high - found.low if found else 0) == expected or not text
    assert found is None or found.depth == len(text)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=3), st.randoms(use_true_random=False))
def test_branches_are_all_bytes_that_may_come(pages: list[str], rng: random.Random) -> None:
    document = Substrings(pages, SMALL)
    for text in states(pages, rng, 6):
        match = extend(document, text)
        assert match is not None
        found = dict(document.branches(match, escapes(text)))
        follow = {tail[len(text)] for tail in tails(pages) if tail.startswith(text) and len(tail) > len(text)}
        assert found.keys() == follow
        assert all(document.narrow(match, byte) == branch for byte, branch in found.items())


def test_nothing_spans_two_pages() -> None:
    document = Substrings(["ab", "ba"], SMALL)
    assert extend(document, b"ab") and extend(document, b"ba")
    assert extend(document, b"abb") is None
    assert extend(document, b"bb") is None
    joined = Substrings(["abba"], SMALL)
    assert extend(joined, b"abb")


def test_no_text_begins_within_an_escape_or_a_character() -> None:
    document = Substrings(["\ne\u0301\\t"], SMALL)
    for text in (b"n", b"\x81", b"\x0a", b"\\t", b'"'):
        assert extend(document, text) is None
    for text in (b"\\n", b"\xcc\x81\\\\t", b"t", b"\\\\"):
        assert extend(document, text)


@pytest.mark.parametrize("character", ["\0", "\x1f", "\x7f"])
def test_what_has_no_plain_form_is_not_copied(character: str) -> None:
    document = Substrings([f"ab{character}ba"], SMALL)
    assert extend(document, b"ab") and extend(document, b"ba")
    for text in (f"b{character}".encode(), b"bb", b"ab\\", f"\\u{ord(character):04x}".encode()):
        assert extend(document, text) is None


def test_a_document_has_a_bound() -> None:
    with pytest.raises(Failure) as caught:
        Substrings(["\n" * (MOST_BYTES // 2)], SMALL)  # two bytes each in JSON
    assert caught.value.code == "context_length_exceeded"
    assert str(MOST_BYTES) in caught.value.message


def test_ids_beyond_the_tokenizers_have_no_text(mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    wide = vocabulary_of(from_tokenizer(mixtral_tokenizer), 32_017)
    assert len(wide.tokens) == 32_017
    assert not any(wide.tokens[32_000:])
    assert not any(wide.tokens[token] for token in mixtral_tokenizer.all_special_ids)
    assert len(Substrings(["a"], wide).allowed(Match(0, 1, 0), INSIDE)) == 32_017 // 8 + 1
