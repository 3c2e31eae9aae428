"""A step laid flat: the tokens of all its rows end to end, without padding. Knows nothing of how they were chosen."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from models.engine.attention import Span
from models.engine.cache import Cache
from models.engine.scheduler import Piece
from models.picture import Picture, positions


class Look(NamedTuple):
    """At the places `here` of the flat batch stand tokens of `picture`, from its `first` on."""

    here: slice
    picture: Picture
    first: int


@dataclass(frozen=True)
class Batch:
    """`ids` and `positions` of T tokens; `wanted`: behind which places it is to be known what may come. Where rows have
    pictures, `looks` says where these stand (their ids are 0), and `axes` the three positions of each token."""

    ids: list[int]
    positions: list[int]
    spans: list[Span]
    wanted: list[int]
    looks: list[Look] = field(default_factory=list)
    axes: list[tuple[int, int, int]] | None = None


def flatten(planned: list[Piece], cache: Cache) -> Batch:
    """Lay pieces end to end."""
    spans: list[Span] = []
    ids: list[int] = []
    places: list[int] = []
    wanted: list[int] = []
    for piece in planned:
        start, tokens = piece.sequence.computed, piece.ids
        spans.append(Span(cache.table(piece.sequence.number), len(ids), start, len(tokens)))
        ids += tokens
        places += range(start, start + len(tokens))
        wanted += range(len(ids) - piece.places, len(ids))
    if not any(piece.sequence.shown for piece in planned):
        return Batch(ids, places, spans, wanted)
    looks = [look for piece, span in zip(planned, spans, strict=True) for look in _look(piece, span)]
    rows = zip(planned, spans, strict=True)
    axes = [each for piece, span in rows for each in positions(piece.sequence.shown, span.start, span.end)]
    return Batch([max(token, 0) for token in ids], places, spans, wanted, looks, axes)


def _look(piece: Piece, span: Span) -> Iterator[Look]:
    """What of its pictures a piece holds."""
    by = span.offset - span.start
    for picture, first, _ in piece.sequence.shown:
        start, end = max(first, span.start), min(first + picture.tokens, span.end)
        if start < end:
            yield Look(slice(start + by, end + by), picture, start - first)
