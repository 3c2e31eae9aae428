"""models/text.py: joined, what comes in pieces is what comes at once; nothing is told that may still change."""

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from models import store
from models.catalog import MIXTRAL, SMOLLM2
from models.markers import JOINER, guard
from models.template import Template
from models.text import LOST, Stops, Text

LENIENT = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200
)
WORDS = [
    "[INST]",
    "[/INST]",
    "<s>",
    "<<SYS>>",
    "[",
    "<",
    "</",
    JOINER,
    " ",
    "  ",
    "\n",
    "é",
    "日本",
    "😀",
    "👩‍👧",
    "a",
    "INST]",
]


@pytest.fixture(scope="module", params=["smollm2", "mixtral"])
def template(
    request: pytest.FixtureRequest, smollm2: store.Loaded, mixtral_tokenizer: PreTrainedTokenizerFast
) -> Template:
    """Bytes as tokens of byte-level BPE, and as SentencePiece's byte tokens behind its words."""
    if request.param == "smollm2":
        return Template(smollm2.tokenizer, SMOLLM2.markers, SMOLLM2.alternates)
    return Template(mixtral_tokenizer, MIXTRAL.markers, MIXTRAL.alternates)


def say(template: Template, ids: list[int], continues: bool = False) -> list[str]:
    text = Text(template, continues)
    return [*map(text.take, ids), text.end()]


def ids_of(template: Template, text: str) -> list[int]:
    return template.continued(text)[len(template.continued("")) :]


# ---- tokens to text ------------------------------------------------------------------------------------------------


@LENIENT
@given(st.lists(st.one_of(st.integers(0, 400), st.integers(0, 31_999)), max_size=40))
def test_random_tokens_read_the_same_in_pieces_and_at_once(template: Template, ids: list[int]) -> None:
    """Control tokens, byte tokens and what is no character among them."""
    joined, whole = "".join(say(template, ids)), template.decode(ids)
    if LOST not in whole or not template.continued(""):
        assert joined == whole
    # SentencePiece gives up all bytes that stand together where one is no character; here the others stay.
    assert joined.replace(LOST, "").startswith(whole.split(LOST)[0])


@LENIENT
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=12).map("".join))
def test_guarded_texts_come_back_as_they_were(template: Template, text: str) -> None:
    ids = ids_of(template, guard(text, MIXTRAL.markers if template.continued("") else ()))
    assert "".join(say(template, ids)) == template.decode(ids)


def test_a_character_is_told_when_it_is_whole(template: Template) -> None:
    pieces = say(template, ids_of(template, "Zoë 😀 ok"))
    assert "".join(pieces) == "Zoë 😀 ok"
    assert not any(LOST in piece for piece in pieces)
    assert sum("😀" in piece for piece in pieces) == 1


def test_bytes_that_are_no_character_are_told_as_lost(mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(mixtral_tokenizer, MIXTRAL.markers, MIXTRAL.alternates)

    def byte(value: int) -> int:
        token = mixtral_tokenizer.convert_tokens_to_ids(f"<0x{value:02X}>")
        assert isinstance(token, int)
        return token

    good = list(map(byte, "😀".encode()))
    bad = byte(0xFF)
    assert "".join(say(template, [*good, bad, *template.letter])) == f"😀{LOST} a"
    assert "".join(say(template, [bad])) == LOST
    assert "".join(say(template, good[:2])) == LOST * 2


def test_what_goes_on_from_a_text_keeps_its_first_blank(mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(mixtral_tokenizer, MIXTRAL.markers, MIXTRAL.alternates)
    ids = ids_of(template, "Paris is")
    assert "".join(say(template, ids)) == "Paris is"
    assert "".join(say(template, ids, continues=True)) == " Paris is"


def test_of_a_marker_only_what_is_settled_is_told(mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    """The joiner may be ours; whether it is shows at the marker's end."""
    template = Template(mixtral_tokenizer, MIXTRAL.markers, MIXTRAL.alternates)
    for text, told in (("a [INST] b", "a [INST] b"), (f"[{JOINER}x", f"[{JOINER}x"), ("[[/INST]", "[[/INST]")):
        said = ""
        for piece in say(template, ids_of(template, guard(text, MIXTRAL.markers))):
            said += piece
            assert told.startswith(said)
        assert said == told


@settings(deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "I", "N", "S", "T", "]", "/", "\u200b"]), max_size=14).map("".join), st.data())
def test_settled_text_is_freed_of_joiners_for_good(mixtral: Template, text: str, data: st.DataObject) -> None:
    upto = mixtral.settle(text)
    more = data.draw(st.lists(st.sampled_from([JOINER, *"INST]/<>[sY "]), max_size=8).map("".join))
    assert mixtral.unguard(text[:upto]) + mixtral.unguard(text[upto:] + more) == mixtral.unguard(text + more)


@pytest.fixture(scope="module")
def mixtral(mixtral_tokenizer: PreTrainedTokenizerFast) -> Template:
    return Template(mixtral_tokenizer, MIXTRAL.markers, MIXTRAL.alternates)


# ---- stops -----------------------------------------------------------------------------------------------------------


def cut(text: str, stops: list[str], at: list[int]) -> tuple[list[str], bool]:
    """What `Stops` tells of `text` that comes in pieces cut `at` these places."""
    places = sorted({0, len(text), *(place for place in at if place <= len(text))})
    listening, said = Stops(stops), []
    for first, last in pairwise(places):
        piece, ended = listening.take(text[first:last])
        said.append(piece)
        if ended:
            return said, True
    return [*said, listening.end()], False


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 30), max_size=30),
)
def test_a_text_ends_before_the_first_stop_wherever_it_is_cut(text: str, stops: list[str], at: list[int]) -> None:
    """With several stops in one piece the one that begins first counts, as far as it had come."""
    said, ended = cut(text, stops, at)
    told = "".join(said)
    assert text.startswith(told)
    assert ended == any(stop in text for stop in stops)
    if ended:
        assert any(text[len(told) :].startswith(stop) for stop in stops)
        assert not any(stop in told for stop in stops)
    else:
        assert told == text


def test_only_what_may_be_the_beginning_of_a_stop_is_held_back() -> None:
    stops = Stops(["\n\nUser:", "END"])
    assert [stops.take(piece) for piece in ("Hi", "\n", "\nUs", "e", "d. E", "N", "ENDX")] == [
        ("Hi", False),
        ("", False),
        ("", False),
        ("", False),
        ("\n\nUsed. ", False),
        ("", False),
        ("EN", True),
    ]


def test_without_stops_all_is_told_at_once() -> None:
    stops = Stops([])
    assert stops.take("END") == ("END", False)
    assert stops.end() == ""


def pieces(rng: random.Random, text: str) -> Iterator[str]:
    while text:
        length = rng.randint(1, 3)
        yield text[:length]
        text = text[length:]


def test_a_long_stop_is_found_whole() -> None:
    rng = random.Random(1)
    stop = "x" * 400 + "y"
    listening, told = Stops([stop]), ""
    for piece in pieces(rng, "x" * 450 + "y" + "z" * 10):
        said, ended = listening.take(piece)
        told += said
        if ended:
            break
    assert (told, ended) == ("x" * 50, True)
