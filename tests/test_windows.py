"""models/windows.py: nothing is lost or out of place, each window fits, and what one cuts the next has whole."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from models.catalog import MIXTRAL
from models.failure import Failure
from models.template import Template, Turn
from models.windows import CAP, LEAST, LINES, MOST, SHARE, Measure, Piece, Window, split

ALONE = 10  # tokens of a prompt without a document
PAGE = 3  # and of a page's heading
Count = Callable[[str], int]


def words(text: str) -> int:
    """A token for each beginning of a word, mark or run of blanks, and for each 7 characters of long ones."""
    return sum(-(-len(run) // 7) for run in re.findall(r"\w+|\s+|[^\w\s]", text))


def octets(text: str) -> int:
    return len(text.encode())


def quarters(text: str) -> int:
    return -(-len(text) // 4)


def meter(pages: Sequence[str], count: Count = words) -> Measure:
    return lambda pieces: ALONE + sum(PAGE + count(piece.text(pages)) for piece in pieces)


def flat(windows: Sequence[Window], pages: Sequence[str]) -> list[tuple[int, int]]:
    """Each window's beginning and end in all pages laid end to end."""
    starts = [sum(map(len, pages[:number])) for number in range(len(pages))]
    return [
        (starts[window.pieces[0].page] + window.pieces[0].start, starts[window.pieces[-1].page] + window.pieces[-1].end)
        for window in windows
    ]


def check(pages: Sequence[str], room: int, measure: Measure) -> list[Window]:
    """Split, and look at all that is promised of any document."""
    windows = split(pages, room, measure)
    text = "".join(pages)
    assert [window.number for window in windows] == list(range(len(windows)))
    assert len(windows) <= MOST
    assert all(measure(window.pieces) <= room for window in windows)
    for window in windows:
        shown = [number for number, page in enumerate(pages) if page]
        numbers = [piece.page for piece in window.pieces]
        assert numbers == [page for page in shown if numbers[0] <= page <= numbers[-1]]
        for piece, after in pairwise(window.pieces):
            assert piece.end == len(pages[piece.page])
            assert after.start == 0
        assert all(0 <= piece.start < piece.end <= len(pages[piece.page]) for piece in window.pieces)
    spans = flat(windows, pages)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for (start, end), (first, last) in pairwise(spans):
        assert start < first <= end < last
        assert (end - first) * 2 <= end - start + 1
    for (_, end), _, (first, _) in zip(spans, spans[1:], spans[2:], strict=False):
        assert end <= first
    return windows


MARKS = ["Total: 1,234.50", "\n", "\n\n", "\r\n", " ", "\t", ". ", "word ", "\f", "\u2028", " " * 60, "1" * 40]
SIGNS = ["Rechnung", "請求書。", "e\u0301", "x" * 90, "👩‍👩‍👧", "각", "नमस्ते "]
PIECES = st.sampled_from(MARKS + SIGNS)
TEXTS = st.lists(PIECES, max_size=120).map("".join)
DOCUMENTS = st.lists(TEXTS, min_size=1, max_size=5).filter(any)


@settings(deadline=None, max_examples=150)
@given(DOCUMENTS, st.integers(1, 8), st.integers(LEAST, 400), st.sampled_from([words, octets, quarters]))
def test_any_document_is_covered_in_order(parts: list[str], times: int, left: int, count: Count) -> None:
    pages = [part * times for part in parts]
    try:
        windows = check(pages, ALONE + left, meter(pages, count))
    except Failure as refused:
        assert refused.code == "context_length_exceeded"
        assert sum(map(count, pages)) > MOST * left / 4
        return
    for window in windows:
        for piece in window.pieces:
            page = pages[piece.page]
            assert {piece.start, piece.end} <= {0, *(cluster.end() for cluster in regex.finditer(r"\X", page))}


def rows(count: int, width: int = 6) -> str:
    return "".join(f"item {number:05} " + "word " * width + f"{number % 97}.50\n" for number in range(count))


def test_what_fits_is_one_window() -> None:
    pages = ["one page\n", "", "another"]
    measure = meter(pages)
    assert split(pages, 1000, measure) == [Window(0, (Piece(0, 0, 9), Piece(2, 0, 7)))]
    assert split([""], 1000, measure) == split([], 1000, measure) == [Window(0, ())]


@pytest.mark.parametrize("paged", [False, True])
def test_windows_are_full_and_overlap_by_an_eighth(paged: bool) -> None:
    text = rows(3000)
    pages = text.split("item 00500")[:1] + re.findall(r"(?s).{1,4000}", text) if paged else [text]
    measure, room = meter(pages), 3000
    windows = check(pages, room, measure)
    assert len(windows) > 10
    for window in windows[:-1]:
        assert measure(window.pieces) > room * (1 - 1 / SHARE) * 0.9
    for (start, end), (first, _) in pairwise(flat(windows, pages)):
        assert (end - start) / SHARE - 1 <= end - first <= (end - start) / 4


def test_long_lines_overlap_by_whole_ones() -> None:
    text = rows(200, width=160)
    windows = check([text], 2500, meter([text]))
    for (start, end), (first, _) in pairwise(flat(windows, [text])):
        assert text[end - 1] == "\n"
        assert text[first:end].count("\n") >= LINES
        assert text[first - 1] == "\n"
        assert (end - first) <= (end - start) / 2


def test_lines_longer_than_a_window_overlap_no_more_than_they_must() -> None:
    text = "word " * 20_000
    windows = check([text], 2500, meter([text]))
    for (start, end), (first, _) in pairwise(flat(windows, [text])):
        assert (end - start) / SHARE - 1 <= end - first <= (end - start) / CAP


# Before each mark the text could be cut as well, but not so well.
ENDINGS = ["\n\n", "\n", ". ", " ", ""]


@pytest.mark.parametrize("best", range(len(ENDINGS)))
def test_the_best_end_within_reach_is_taken(best: int) -> None:
    fillers = ENDINGS[best + 1 :]
    unit = "".join("abcdefg" * 3 + filler for filler in fillers) * 2 + "abcdefg" * 3 + ENDINGS[best]
    text = unit * 600
    windows = check([text], 800, meter([text]))
    assert len(windows) > 2
    for (_, end), (first, _) in pairwise(flat(windows, [text])):
        for place in (end, first):
            assert text[:place].endswith(ENDINGS[best])
            assert ENDINGS[best] or regex.match(r"\S", text[place])


def test_pages_are_kept_whole_where_one_ends_within_reach() -> None:
    pages = [rows(3)] * 300
    windows = check(pages, 1200, meter(pages))
    for window in windows:
        assert all((piece.start, piece.end) == (0, len(pages[piece.page])) for piece in window.pieces)
    for window, after in pairwise(windows):
        assert after.pieces[0].page <= window.pieces[-1].page


def test_a_long_word_is_cut_between_characters() -> None:
    family, flag = "👩‍👩‍👧", "🇩🇪"
    for text in (family * 900, "e\u0301" * 3000, "x" * 9000, f"{flag}x" * 2000, "각" * 4000):
        borders = {cluster.end() for cluster in regex.finditer(r"\X", text)} | {0}
        windows = check([text], 1500, meter([text], octets))
        assert len(windows) > 3
        assert borders.issuperset(place for span in flat(windows, [text]) for place in span)


def test_a_character_longer_than_a_window_is_cut_all_the_same() -> None:
    text = "e" + "\u0301" * 3000
    check([text], 1000, meter([text], octets))


def test_a_prompt_that_leaves_no_room_is_refused_with_counts() -> None:
    text = rows(50)
    assert split([text], ALONE + LEAST, meter([text]))
    for room in (ALONE + LEAST - 1, 0, -5):
        with pytest.raises(Failure, match=rf"has {ALONE} tokens; of the {max(room, 0)} .*{LEAST}") as refused:
            split([text], room, meter([text]))
        assert refused.value.code == "context_length_exceeded"


def test_more_windows_than_allowed_are_refused_without_reading_the_rest() -> None:
    text = rows(200_000)
    read = 0

    def measure(pieces: tuple[Piece, ...]) -> int:
        nonlocal read
        read += sum(piece.end - piece.start for piece in pieces)
        return ALONE + sum(quarters(piece.text([text])) for piece in pieces)

    with pytest.raises(
        Failure, match=f"more than {MOST} windows of 1000 tokens; \\d+ of its {len(text)} char"
    ) as refused:
        split([text], ALONE + 1000, measure)
    assert refused.value.code == "context_length_exceeded"
    assert "item" not in refused.value.message
    assert read < MOST * 4000 * 4


def test_a_few_counts_a_window_are_enough() -> None:
    sparse, dense = " " * 30_000, "a.b.c." * 5_000
    for text in (rows(4000), sparse + dense + sparse + dense, dense + sparse, rows(300) + sparse + rows(300)):
        calls: list[int] = []
        inner = meter([text])

        def measure(pieces: tuple[Piece, ...], calls: list[int] = calls, inner: Measure = inner) -> int:
            calls.append(sum(piece.end - piece.start for piece in pieces))
            return inner(pieces)

        windows = check([text], 4000, measure)
        counted = len(calls) - len(windows)  # those of the check itself
        assert counted <= 6 * len(windows) + 4
        assert sum(calls) <= 12 * len(text)


def test_a_part_that_has_more_tokens_than_the_whole_is_made_shorter() -> None:
    """As it is where the tokenizer joins what the cut has parted."""
    text = "wonderful day " * 3000

    def measure(pieces: tuple[Piece, ...]) -> int:
        shown = "".join(piece.text([text]) for piece in pieces)
        return ALONE + len(shown) // 4 + (40 if shown.endswith(" ") else 0)

    windows = check([text], 1000, measure)
    assert len(windows) > 10


def test_an_overlap_takes_at_most_half_of_the_tokens() -> None:
    """Where the end of a window is so much denser than the rest that alone it would all but fill the next."""
    text = (" " * 4000 + "a.b.c." * 300 + "\n") * 6

    def measure(pieces: tuple[Piece, ...]) -> int:
        return ALONE + sum(len("".join(piece.text([text]).split())) for piece in pieces)

    for before, after in pairwise(check([text], 1000, measure)):
        assert measure((Piece(0, after.pieces[0].start, before.pieces[0].end),)) - ALONE <= (1000 - ALONE) / 2


def test_real_tokens(mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(mixtral_tokenizer, MIXTRAL.markers, MIXTRAL.alternates)
    pages = [
        "".join(f"№ {row}\tStück ({page}) 商品\t{row * 7919 % 9973}.{row % 100:02}\r\n" for row in range(60))
        for page in range(12)
    ]

    def measure(pieces: tuple[Piece, ...]) -> int:
        return len(template.encode([Turn("user", "Sum?\n\n" + "\n\n".join(piece.text(pages) for piece in pieces))]))

    windows = check(pages, 4000, measure)
    assert len(windows) > 4
    assert all(measure(window.pieces) > 3000 for window in windows[:-1])
