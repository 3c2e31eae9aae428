"""Which elements of the arrays that two neighbouring windows have given are one and the same.

Knows where values stand (models/sightings.py), nothing of how they are merged.

Both windows show the text where one ends and the other begins, so the elements that end one array are those that begin
the other. How many they are follows from how often their values stand in the text that both show: where an array names
a value at all its places, that number is exact. It must not be told by equality alone, as rows may be equal that are
not one. What does not fit into this, since a window has missed a row or misread it, is paired one by one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from models.sightings import Bound, Given, Sightings


@dataclass
class Pairing:
    """By the index in the later array, that in the earlier one; and in each, those that may be one with another."""

    pairs: dict[int, int] = field(default_factory=dict)
    doubtful: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))


def pair(sightings: Sightings, before: Sequence[Given], after: Sequence[Given]) -> Pairing:
    """Pair the elements, each of which has a value that stands in the text; both arrays in their order."""
    found = Pairing()
    if not before or not after:
        return found
    bounds = sightings.bounds(before, after)
    most = _most(sightings, after[: len(before)], bounds)
    sizes = [size for size in range(most + 1) if _fits(sightings, before[len(before) - size :], after[:size], bounds)]
    size = sizes[-1] if sizes else 0
    start = len(before) - size
    found.pairs = {index: start + index for index in range(size)}
    if len(sizes) > 1:
        found.doubtful[0].update(range(start, len(before)))
    used = Counter(value for each in after[:size] for value in sightings.values(each))
    bounds = {value: bound.less(used[value]) for value, bound in bounds.items()}
    _pair_equal(sightings, before[:start], after, size, bounds, found)
    _pair_alike(sightings, before, after, found)
    return found


def _most(sightings: Sightings, after: Sequence[Given], bounds: dict[Any, Bound]) -> int:
    """How many of `after` may be in both arrays, as far as counting tells; of what is cut the next may be one more."""
    counts: Counter[Any] = Counter()
    for index, each in enumerate(after[1:], 1):
        values = sightings.values(each)
        counts.update(values)
        if any(counts[value] > bounds[value].most for value in values):
            return index + 1
    return len(after)


def _fits(sightings: Sightings, end: Sequence[Given], begin: Sequence[Given], bounds: dict[Any, Bound]) -> bool:
    """Whether these may be the elements that both arrays have. The first may be cut in one, the last in the other."""
    for at, (one, other) in enumerate(zip(end, begin, strict=True)):
        edge = at in (0, len(end) - 1)
        if one.canonical != other.canonical and not (edge and sightings.are_one(one, other)):
            return False
    counts = [Counter(value for each in side for value in sightings.values(each)) for side in (end, begin)]
    return all(
        bound.least <= max(count[value] for count in counts) and min(count[value] for count in counts) <= bound.most
        for value, bound in bounds.items()
    )


def _pair_equal(
    sightings: Sightings,
    before: Sequence[Given],
    after: Sequence[Given],
    size: int,
    bounds: dict[Any, Bound],
    found: Pairing,
) -> None:
    """Of `before`, and of `after` behind its first `size`, equal elements as often as they may be in both."""
    groups: dict[Any, tuple[list[int], list[int]]] = {}
    for side, elements in enumerate((before, after)):
        for index in range(size * side, len(elements)):
            groups.setdefault(elements[index].canonical, ([], []))[side].append(index)
    for theirs, mine in groups.values():
        if theirs and mine:
            within = [bounds[value] for value in sightings.values(after[mine[0]]) if value in bounds]
            most = max(0, min(len(theirs), len(mine), *(bound.most for bound in within)))
            both = min((bound.both for bound in within), default=0)
            outside = [min((bound.outside[side] for bound in within), default=0) for side in (0, 1)]
            inside = [max(0, len(each) - out) for each, out in zip((theirs, mine), outside, strict=True)]
            least = min(most, max(0, sum(inside) - both))
            one, two = sightings.likeness(before[theirs[-1]], after[mine[0]])
            count = most if one > two else least
            found.pairs |= dict(zip(mine[:count], theirs[len(theirs) - count :], strict=True))
            if least < most:
                found.doubtful[0].update(theirs[-most:])
                found.doubtful[1].update(mine[:most])


def _pair_alike(sightings: Sightings, before: Sequence[Given], after: Sequence[Given], found: Pairing) -> None:
    """Elements that are not equal and yet at one place."""
    taken = set(found.pairs.values())
    cells: dict[Any, list[int]] = {}
    for index in (index for index in range(len(before)) if index not in taken):
        for cell in sightings.cells(before[index]):
            cells.setdefault(cell, []).append(index)
    for index in sorted(set(range(len(after))) - found.pairs.keys()):
        item = after[index]
        near = sorted({at for cell in sightings.cells(item) for at in cells.get(cell, ())} - taken)
        near = [at for at in near if before[at].canonical != item.canonical]
        likeness = {at: sightings.likeness(before[at], item) for at in near}
        best = max(near, key=lambda at: likeness[at][0] - likeness[at][1], default=-1)
        one, two = likeness.get(best, (0, 0))
        if best >= 0 and sightings.are_one(before[best], item):
            found.pairs[index] = best
            taken.add(best)
        elif 0 < one >= two:
            found.doubtful[0].add(best)
            found.doubtful[1].add(index)
