"""models/schema/patterns.py: patterns of ECMA-262 for an engine of Rust's kind, held against Python's and Rust's."""

import re

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schema.patterns import bounded, ended, literal, other_than, portable

ODD = "\t\n\v\r \x1c\x85\u00a0\u2028\ufeffaZ_09\u0663é\u0301-[]&^.\\/"  # where dialects differ, and signs of patterns
PIECES = [
    *("a", "b", "ab", ".", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "[ab]", "[^a]", r"[\w-]", r"[^\s@]", r"[\S]"),
    *(r"[^\W]", r"[^\D]", "[&a]", "[a-]", "[-a]", "[a^]", r"[\]a]", "[[a]", "[a&&b]", r"\.", r"\/", r"\-", r"\t"),
    *(r"\x41", r"\u00e9", r"[\u0041-\u0043]", r"[\d.]", "[+--]", "{", "(?:a|b)", "(a)", "(?<n>a)", r"[\b]"),
]
patterns = st.lists(st.sampled_from(PIECES).flatmap(lambda p: st.sampled_from([p, p, f"{p}?", f"{p}*", f"{p}{{1,2}}"])))


def matches(pattern: str, text: str) -> bool:
    """By Rust's engine in linear time, as it is."""
    judge = {"pattern": pattern}
    return jsonschema_rs.is_valid(judge, text, pattern_options=jsonschema_rs.RegexOptions())


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # Python warns of [[a], and reads it as meant
@settings(max_examples=400, deadline=None)
@given(parts=patterns, anchored=st.booleans(), text=st.text(st.sampled_from(ODD), max_size=4))
def test_what_fits_it_fits_in_every_dialect(parts: list[str], anchored: bool, text: str) -> None:
    pattern = "".join(parts)
    pattern = f"^{pattern}$" if anchored else pattern
    made = portable(pattern)
    if made is None:  # `{` after something is a count to some
        assert re.search(r"[*?}\w\])/]\{|\{[?*]", pattern) or "{{" in pattern, pattern
        return
    python = re.compile(pattern.replace("(?<n>", "(?:"))
    if matches(made, text):
        assert python.search(text), ascii(made)
    elif text.isascii() and text.isprintable():
        assert not python.search(text), ascii(made)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?=a)", "(?!a)", "(?<=a)", "(?<!a)", r"(a)\1", r"\k<n>", r"a\b", r"\B", "(?i)a", "(?s:a)", "a++", "a**"),
        *(r"\A", r"\Z", r"\z", r"\h", r"\cA", r"\a", r"\ud83d\ude00", r"\u12", r"\u{110000}", "[]a]", "[^]a]", "[a"),
        *(
            "\\",
            "[\\",
            r"[\A]",
            r"[\1]",
            "a?+",
            "[b-a]",
            r"[\x00-\x07]",
            r"\x01".join("[]"),
            r"\p{Cc}",
            r"[\p{gc=Other}]",
        ),
    ],
)
def test_what_takes_more_than_linear_time_or_differs_between_dialects(pattern: str) -> None:
    assert portable(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "made"),
    [
        ("[[a-z]]", r"[\[a-z]]"),  # no class in a class
        ("[a&&b]", r"[a\&\&b]"),  # no intersection
        ("[a~~+--c]", r"[a\~\~\+-\-c]"),
        (r"\<a\>", "<a>"),  # no words' ends
        ("(?P<n>a)", "(?:a)"),
        (r"\u{1F600}", "\U0001f600"),
        ("a{,3}", r"a\{,3\}"),
        (r"\p{L}", r"[\p{L}]"),
        (r"[\x00-\x7f]", "[\b-\n\f-\r -\x7f]"),
        (r"[-\P{Nd}a]", r"(?:[\-a]|[^\p{Nd}\x00-\x07\x0b\x0e-\x1f])"),
    ],
)
def test_what_rust_reads_otherwise_is_put_so_that_it_does_not(pattern: str, made: str) -> None:
    assert portable(pattern) == made


words = st.lists(st.text("ab^]-\\é", max_size=3), max_size=4)


@settings(max_examples=300, deadline=None)
@given(ruled_out=words, text=st.text("ab^]-\\éx\n", max_size=5))
def test_all_strings_but_some(ruled_out: list[str], text: str) -> None:
    assert matches(other_than(ruled_out), text) == (text not in ruled_out)
    if text not in ruled_out and len(text) <= 3:
        assert matches(other_than(ruled_out, 3), text)
    assert not matches(other_than(ruled_out, 3), text + "x" * 9)


@given(text=st.text(max_size=5))
def test_a_text_alone(text: str) -> None:
    assert matches(f"^{literal(text)}$", text)
    assert not matches(f"^{literal(text)}$", text + "x")


@pytest.mark.parametrize(
    ("pattern", "made"),
    [
        ("^a+$", "^a{1,9}$"),
        ("^[a*]*b{3,}$", "^[a*]{0,9}b{3,9}$"),
        (r"^\*+(a|b)*\+$", r"^\*{1,9}(a|b){0,9}\+$"),
        ("^b{20,}?$", "^b{20,20}$"),
        ("^(a+)*$", "^(a+)*$"),  # too much for what runs it
        ("^(?:(a*)b){2}c*$", "^(?:(a*)b){2}c{0,9}$"),
        ("^((a*)b)?c$", "^((a{0,9})b)?c$"),
        ("^a{2,5}$", "^a{2,5}$"),
    ],
)
def test_what_is_repeated_without_end_gets_one(pattern: str, made: str) -> None:
    assert bounded(pattern, 9) == made


@pytest.mark.parametrize(("pattern", "made"), [("^a$", r"^a\n?$"), (r"^a\$", r"^a\$"), ("a", "a"), ("$", r"\n?$")])
def test_an_end_before_a_last_line_feed(pattern: str, made: str) -> None:
    assert ended(pattern) == made
    assert all(bool(re.search(pattern, text)) == matches(made, text) for text in ("a", "a\n", "b\n", "a$", ""))


def test_a_long_pattern_takes_no_longer_than_it_is() -> None:
    long = "(" * 20_000 + "a*" + ")" * 20_000
    assert portable(long) == long
    assert bounded(long, 5) == long.replace("a*", "a{0,5}")
