"""One answer from those to several windows, by rule; where no rule says which value is right, a conflict.

Knows answers and where their values stand (models/sightings.py); no model and no schema.

- Objects are merged property by property. Null, "", [] and {} say that a window has nothing.
- Of scalars one that stands in its window's text counts before one that does not, and that before nothing. Booleans
  stand nowhere, so a window that cannot tell should say null; windows that can must agree.
- What the edge of a window has cut in two loses to what contains it.
- Equal but for case, blanks and compatible forms of letters is equal; the first window's is taken. Different scalars
  that count alike are a conflict: the first window's is put in their place, and all of them are listed.
- Arrays are joined. Elements of neighbours most of whose values stand at one place are one, merged as above; equal
  elements are one as often as their text stands in what both windows show, and so are those that stand nowhere.
- A value is uncertain where it stands at a cut and no other window has it whole, an element where the text says no
  better how often it is there.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from models.failure import Failure
from models.pairing import pair
from models.schema.dialect import escape
from models.sightings import Given, Reading, Sightings


@dataclass
class Merged:
    """The merged answer; by pointer, where each of its scalars is from, and which others counted as much."""

    value: Any = None
    origin: dict[str, Given] = field(default_factory=dict)
    conflicts: dict[str, list[Given]] = field(default_factory=dict)
    uncertain: list[str] = field(default_factory=list)

    def tell(self, readings: Sequence[Reading]) -> dict[str, Any]:
        """What is known of it, by name, as JSON."""
        found = {at: readings[given.window].evidence.get(given.pointer) for at, given in self.origin.items()}
        sure = {at: readings[given.window].confidence.get(given.pointer) for at, given in self.origin.items()}
        conflicts = [
            {"pointer": at, "candidates": [_candidate(each, readings) for each in given]}
            for at, given in self.conflicts.items()
        ]
        return {
            "evidence": [asdict(replace(each, pointer=at)) for at, each in found.items() if each],
            "confidence": {at: each for at, each in sure.items() if each},
            "windows": {
                "from": {at: given.window for at, given in self.origin.items()},
                "conflicts": conflicts,
                "uncertain": self.uncertain,
            },
        }


@dataclass(eq=False)
class _Slot:
    """An element of a joined array."""

    given: list[Given]
    uncertain: bool = False

    @property
    def last(self) -> Given:
        return self.given[-1]

    @property
    def window(self) -> int:
        return self.last.window


def merge(readings: Sequence[Reading], pages: Sequence[str]) -> Merged:
    """Merge the answers to all windows of `pages`, in order; Failure where they are nested too deeply for that."""
    merger = _Merger(readings, pages)
    try:
        given = [Given(number, "", reading.value) for number, reading in enumerate(readings)]
        merger.merged.value = merger.merge(given, "")
    except RecursionError:
        raise Failure("answer_invalid", "the answer is nested too deeply to be merged") from None
    return merger.merged


class _Merger:
    def __init__(self, readings: Sequence[Reading], pages: Sequence[str]) -> None:
        self.merged = Merged()
        self._sightings = Sightings(readings, pages)

    def merge(self, given: list[Given], at: str) -> Any:
        """What several windows have given for one value, as one."""
        told = [each for each in given if each.value not in (None, "", [], {})]
        if not told:
            self.merged.origin[at] = next((each for each in given if each.value is not None), given[0])
            return self.merged.origin[at].value
        counted = [each for each in told if self._sightings.leaves(each)] or told
        kind = _kind(counted[0])
        if any(_kind(each) is not kind for each in counted):
            self.merged.conflicts[at] = counted
        if kind is dict:
            return self._unite([each for each in told if _kind(each) is kind], at)
        if kind is list:
            return self._join([each for each in told if _kind(each) is kind], at)
        return self._choose([each for each in counted if _kind(each) is kind], at)

    def _unite(self, given: list[Given], at: str) -> dict[str, Any]:
        """Objects as one."""
        names = dict.fromkeys(name for each in given for name in each.value)
        members = {name: [each.member(name) for each in given if name in each.value] for name in names}
        return {name: self.merge(values, f"{at}/{escape(name)}") for name, values in members.items()}

    def _choose(self, given: list[Given], at: str) -> Any:
        """One of several scalars that count alike."""
        whole = [each for each in given if not any(self._sightings.is_cut(each, other) for other in given)]
        chosen = next((each for each in whole if not self._sightings.is_doubtful(each, given)), whole[0])
        if len({each.canonical for each in whole}) > 1:
            self.merged.conflicts.setdefault(at, whole)
            chosen = whole[0]
        elif self._sightings.is_doubtful(chosen, given):
            self.merged.uncertain.append(at)
        self.merged.origin[at] = chosen
        return chosen.value

    def _join(self, given: list[Given], at: str) -> list[Any]:
        """Arrays as one; what is new in a window comes behind what it follows there."""
        slots: list[_Slot] = []
        for each in (each for each in given if each.value):
            slots = self._append(slots, [each.member(index) for index in range(len(each.value))])
        self.merged.uncertain += [f"{at}/{index}" for index, slot in enumerate(slots) if slot.uncertain]
        return [self.merge(slot.given, f"{at}/{index}") for index, slot in enumerate(slots)]

    def _append(self, slots: list[_Slot], items: list[Given]) -> list[_Slot]:
        """The slots with the next window's items: each in its own, or in a new one, where its place in the text, or
        what comes before and behind it, says."""
        standing = [index for index, item in enumerate(items) if self._sightings.leaves(item)]
        recent = [slot for slot in slots if slot.window == items[0].window - 1 and self._sightings.leaves(slot.last)]
        found = pair(self._sightings, [slot.last for slot in recent], [items[index] for index in standing])
        doubtful = {standing[index] for index in found.doubtful[1]}
        for index in found.doubtful[0]:
            recent[index].uncertain = True
        partners = {standing[index]: recent[other] for index, other in found.pairs.items()}
        bare = self._bare(slots, {index: items[index] for index in range(len(items)) if index not in standing})
        places = {slot: place for place, slot in enumerate(slots)}
        anchors = {*partners.values()}
        last = min((places[slot] for slot in recent), default=len(slots)) - 1
        behind: dict[int, list[_Slot]] = {}
        for index, item in enumerate(items):
            if (slot := partners.get(index) or bare.get(index)) is not None:
                slot.given.append(item)
                last = max(last, places[slot]) if slot in anchors else last
                continue
            while last + 1 < len(slots) and not self._comes_after(slots[last + 1], item, anchors):
                last += 1
            behind.setdefault(last, []).append(_Slot([item], index in doubtful))
        return [*behind.get(-1, ()), *(one for at, slot in enumerate(slots) for one in (slot, *behind.get(at, ())))]

    def _comes_after(self, slot: _Slot, item: Given, anchors: set[_Slot]) -> bool:
        return slot in anchors or self._sightings.is_before(item, slot.last)

    def _bare(self, slots: list[_Slot], items: dict[int, Given]) -> dict[int, _Slot]:
        """Where the items belong that stand nowhere: with their equals, which cannot be told from them."""
        free = [slot for slot in slots if not self._sightings.leaves(slot.last)]
        partners = {}
        for index, item in items.items():
            slot = next((slot for slot in free if slot.last.canonical == item.canonical), None)
            if slot is not None:
                free.remove(slot)
                slot.uncertain = True
                partners[index] = slot
        return partners


def _candidate(given: Given, readings: Sequence[Reading]) -> dict[str, Any]:
    found = readings[given.window].evidence.get(given.pointer)
    place = {name: getattr(found, name, None) for name in ("page", "start", "end")}
    return {"value": given.value, "window": given.window, **place}


def _kind(given: Given) -> type:
    return type(given.value) if isinstance(given.value, dict | list) else object
