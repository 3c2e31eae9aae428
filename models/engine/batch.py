"""A step laid flat: the tokens of all its rows end to end, without padding. Knows nothing of how they were chosen."""

from dataclasses import dataclass

from models.engine.attention import Span
from models.engine.cache import Cache
from models.engine.scheduler import Piece


@dataclass(frozen=True)
class Batch:
    """`ids` and `positions` of T tokens; `wanted`: behind which places it is to be known what may come."""

    ids: list[int]
    positions: list[int]
    spans: list[Span]
    wanted: list[int]


def flatten(planned: list[Piece], cache: Cache) -> Batch:
    """Lay pieces end to end."""
    spans: list[Span] = []
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for piece in planned:
        start, tokens = piece.sequence.computed, piece.ids
        spans.append(Span(cache.table(piece.sequence.number), len(ids), start, len(tokens)))
        ids += tokens
        positions += range(start, start + len(tokens))
        wanted += range(len(ids) - piece.places, len(ids))
    return Batch(ids, positions, spans, wanted)
