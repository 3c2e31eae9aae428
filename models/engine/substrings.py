"""Which tokens go on with a text so that it stays a substring of a document: a suffix array joined with the vocabulary.

All text is as it stands between the quotes of a JSON string, without \\u: what has no other spelling is not copied.
Knows nothing of schemas or of where in an answer a string stands.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from llguidance import LLTokenizer
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from models.engine.place import QUOTE
from models.failure import Failure

# How a token begins: in a string, in one and behind a backslash, or before the quote that opens one.
INSIDE, ESCAPED, OPENING = range(3)
MOST_BYTES = 1 << 20  # of a document in JSON, each of which takes 75 while it is read and 9 after
KEPT, BRANCHES = 64, 1024  # masks and branchings of one document; those of the first bytes come again and again
UNQUOTED = re.compile(rb'(?:[^"\\]|\\.|\\\Z)*', re.DOTALL)
UNWRITTEN = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f]")

Numbers = NDArray[np.int64]


def split(token: bytes, mode: int) -> tuple[bytes, bytes]:
    """What of the token stands in the string, and what comes behind the quote that ends it."""
    if mode == OPENING and token[:1] != b'"':
        return b"", token
    skipped = 0 if mode == INSIDE else 1
    end = _end(token, skipped)
    return token[skipped if mode == OPENING else 0 : end], token[end + 1 :]


def _end(token: bytes, start: int) -> int:
    found = UNQUOTED.match(token, min(start, len(token)))
    return found.end() if found else start


class Vocabulary:
    """A tokenizer's tokens, by what of them stands in a string: their heads, sorted, and as a trie level by level.

    A head is known by its rank, a node of the trie by the rank of the first head in it. One tokenizer needs one.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """`tokens`: the bytes of each id; none for control tokens, of which others decide."""
        self.tokens = tokens
        number = {token: at for at, token in reversed(list(enumerate(tokens)))}
        # A byte that is no token, for which one without any stands, is in none that has more.
        self.ids = [number.get(bytes([byte]), number.get(b"", 0)) for byte in range(256)]
        parts = [[split(token, mode) for token in tokens] for mode in (INSIDE, ESCAPED, OPENING)]
        heads = sorted({head for mode in parts for head, _ in mode} | {b""})
        rank = {head: number for number, head in enumerate(heads)}
        self.ranks = [np.array([rank[head] for head, _ in mode], np.int32) for mode in parts]
        # Tokens with more of a string behind the one they are in or open: some 100 of 50,000.
        self.risky = [np.array([i for i, (_, rest) in enumerate(mode) if b'"' in rest], int) for mode in parts]
        self.lengths = np.array([len(head) for head in heads])
        self.ends = np.full(len(heads), len(heads), np.int32)  # the rank behind the last head that begins with this one
        self.levels = list(self._levels(b"".join(heads)))

    def _levels(self, text: bytes) -> Iterator[tuple[Numbers, Numbers]]:
        """For each level of the trie its edges, parent << 8 | byte, sorted, and the nodes they lead to."""
        data, starts = np.frombuffer(text, np.uint8), np.cumsum(self.lengths) - self.lengths
        node = np.zeros_like(self.lengths)
        for level in range(int(self.lengths.max())):
            rows = np.flatnonzero(self.lengths > level)
            edges, first, counts = np.unique(
                node[rows] << 8 | data[starts[rows] + level], return_index=True, return_counts=True
            )
            nodes = rows[first]
            node[rows] = np.repeat(nodes, counts)
            whole = self.lengths[nodes] == level + 1
            self.ends[nodes[whole]] = rows[first + counts - 1][whole] + 1
            yield edges, nodes


def vocabulary_of(tokenizer: LLTokenizer, size: int) -> Vocabulary:
    """Of the first `size` ids, some of which the tokenizer may not know."""
    known = min(size, tokenizer.vocab_size)
    tokens = [b"" if tokenizer.is_special_token(token) else tokenizer.decode_bytes([token]) for token in range(known)]
    return Vocabulary(tokens + [b""] * (size - known))


class Match(NamedTuple):
    """Where a text stands in a document: `depth`, its length, and the range of the suffixes that begin with it."""

    low: int
    high: int
    depth: int


class Substrings:
    """All substrings of a document's pages, none across two of them or across what has no plain form in JSON.

    Each piece ends with a quote, which no string holds without a backslash.
    """

    def __init__(self, pages: Sequence[str], vocabulary: Vocabulary) -> None:
        """Takes 0.1 s for 100 kB; Failure where it is too large."""
        pieces = (piece for page in pages for piece in UNWRITTEN.split(page))
        text = b"".join(json.dumps(piece, ensure_ascii=False).encode()[1:] for piece in pieces)
        if len(text) > MOST_BYTES:
            raise Failure("context_length_exceeded", f"a document to copy from may take {MOST_BYTES} bytes in JSON")
        self.vocabulary = vocabulary
        self._text = text
        self._data = np.frombuffer(text, np.uint8)
        order = sort_suffixes(text)
        self._suffixes = order[_begins(text)[order]].astype(np.int32)
        self._starts = self._suffixes.data  # whose items are ints, and soon had
        self._longest = _longest(text, vocabulary)
        self.root = Match(0, len(self._suffixes), 0)
        self.allowed: Callable[[Match, int], NDArray[np.uint8]] = lru_cache(KEPT)(self._allowed)
        self.branches: Callable[[Match, bool], list[tuple[int, Match]]] = lru_cache(BRANCHES)(self._branches)
        for mode in (INSIDE, OPENING):
            self.allowed(self.root, mode)  # the slowest, before anyone waits for it

    def narrow(self, match: Match, byte: int) -> Match | None:
        """`match` with one byte more; None where the document has no such text."""
        low, high, depth = match
        text = self._text
        if high - low > 1:

            def following(start: int) -> int:
                return text[start + depth]

            low = bisect_left(self._starts, byte, low, high, key=following)
            high = bisect_right(self._starts, byte, low, high, key=following)
        elif low < high and text[self._starts[low] + depth] != byte:
            return None
        return Match(low, high, depth + 1) if low < high else None

    def _branches(self, match: Match, escaped: bool) -> list[tuple[int, Match]]:
        """Every byte that may come next, `escaped`: behind a backslash; with the match that it makes."""
        low, high, depth = match
        if high - low < 2:  # most are
            found = [(self._text[start + depth], match._replace(depth=depth + 1)) for start in self._starts[low:high]]
            return [each for each in found if each[0] != QUOTE or escaped]
        following = self._data[self._suffixes[low:high] + depth]  # sorted
        first = [0, *(np.flatnonzero(following[1:] != following[:-1]) + 1).tolist(), high - low]
        return [
            (byte, Match(low + start, low + end, depth + 1))
            for start, end in pairwise(first)
            if (byte := int(following[start])) != QUOTE or escaped
        ]

    def _allowed(self, match: Match, mode: int) -> NDArray[np.uint8]:
        """One bit for each token whose head goes on with `match`."""
        low, high, depth = match
        known = self.vocabulary
        reached = np.zeros(len(known.ends), np.bool_)
        reached[0] = True  # nothing more may come anywhere
        reached[self._longest[self._suffixes[low:high] + depth]] = True
        before = np.zeros(len(reached) + 1, np.int32)
        np.cumsum(reached, out=before[1:])
        heads = before[known.ends] > before[:-1]
        return np.packbits(heads[known.ranks[mode]], bitorder="little")


def sort_suffixes(text: bytes) -> Numbers:
    """Where each suffix of `text` begins, in order; ranks are doubled in length (Manber and Myers, 1990)."""
    count, length = len(text), 8
    padded = np.frombuffer(text + bytes(length), np.uint8)
    keys = np.ascontiguousarray(sliding_window_view(padded, length)[:count]).view(">u8").ravel().astype(np.uint64)
    ranks = np.zeros(count + 1, np.uint64)  # the last: of what lies behind the end
    while True:
        order = np.argsort(keys)
        keys = keys[order]
        ranks[order] = np.cumsum(np.concatenate([[1], keys[1:] != keys[:-1]])[:count])
        if count == 0 or ranks[order[-1]] == count:
            return order
        behind = np.minimum(np.arange(count) + length, count)
        keys = ranks[:count] << np.uint64(32) | ranks[behind]
        length *= 2


def _begins(text: bytes) -> NDArray[np.bool_]:
    """Where in the text a character begins; no string begins at others, nor at the quotes behind pieces."""
    data = np.frombuffer(text, np.uint8)
    begins: NDArray[np.bool_] = (data & 0xC0 != 0x80) & (data != QUOTE)
    escaped = np.array([found.end() - 1 for found in re.finditer(rb"\\.", text)], int)
    begins[escaped] = False
    return begins


def _longest(text: bytes, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """For each place in the text the longest head that goes on from there, as its rank."""
    data = np.frombuffer(text, np.uint8)
    longest = np.zeros(len(text), np.int32)
    places = np.arange(len(text))
    nodes = np.zeros(len(text), np.int64)
    for level, (edges, reached) in enumerate(vocabulary.levels):
        inside = places + level < len(text)
        places, nodes = places[inside], nodes[inside]
        wanted = nodes << 8 | data[places + level]
        found = np.minimum(np.searchsorted(edges, wanted), len(edges) - 1)
        hit = edges[found] == wanted
        places, nodes = places[hit], reached[found[hit]]
        whole = vocabulary.lengths[nodes] == level + 1
        longest[places[whole]] = nodes[whole]
    return longest
