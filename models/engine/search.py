"""A short way from any state of a JSON grammar to a whole answer, in bytes.

Knows the matcher's masks and the syntax of compact JSON; knows nothing of schemas, of budgets or of the model.
"""

from bisect import bisect_left
from dataclasses import dataclass
from heapq import heappop, heappush
from time import thread_time

from models.engine.matcher import Matcher
from models.engine.pieces import Pieces, Plan
from models.engine.place import QUOTE, Place

Samples = tuple[bytes, ...]  # as they stand in JSON, without quotes
ENDS = b"}],"
NUMERIC = b"-0123456789.eE+"
FEW = 40  # fewer bytes than this are all tried
DRIFT = 64  # the longest string that is found by taking whatever comes first
TAILS = 8  # tails of the plan of an earlier state that are tried
# Where the schema allows it, an unknown value is null rather than one that looks like an answer.
SHORT_VALUES = (b"null", b'""', b"[]", b"{}", b"0", b"false", b"true")
FUEL = 2000  # states that one search may look at, 10 to 100 microseconds each
SCALAR_FUEL = 400  # of these for one string or number
SECONDS = 0.05  # for one search, where the masks of a schema are slow
NAMES = 40  # property names that are compared at one place
RUN = 4096  # the longest filler tried where a minLength asks for one


def _sample(allowed: bytes) -> bytes:
    """The bytes worth a try in a string: of letters and digits one of each kind where there are many."""
    if len(allowed) < FEW:
        return allowed
    return bytes(byte for byte in allowed if byte < 0x80 and (byte in b"aA0" or not chr(byte).isalnum()))


@dataclass
class Walk:
    """One way on from a matcher's state: a copy of the matcher, the bytes it has taken since, and the place."""

    matcher: Matcher
    place: Place
    ids: list[int]
    text: bytes = b""

    def branch(self, text: bytes) -> "Walk":
        walk = Walk(self.matcher.deep_copy(), self.place, self.ids, self.text)
        walk.put(text)
        return walk

    def put(self, text: bytes) -> None:
        self.matcher.consume_tokens([self.ids[byte] for byte in text])
        self.place = self.place.after(text)
        self.text += text

    def put_until(self, text: bytes, floor: int) -> bool:
        """Put `text`, but nothing after a value in `floor` brackets has ended; whether it has."""
        place = self.place
        for count, byte in enumerate(text):
            if not place.quoted and byte in ENDS and len(place.open) == floor:
                self.put(text[:count])
                return True
            place = place.next(byte)
        self.put(text)
        return False

    def put_quoted(self, text: bytes) -> bool:
        """Put `text` as far as it belongs to the string here; whether that has ended."""
        for byte in text:
            self.put(bytes([byte]))
            if not self.place.quoted:
                return True
        return False

    def fits(self, text: bytes) -> bool:
        return self.matcher.validate_tokens([self.ids[byte] for byte in text]) == len(text)


class Search:
    """One search for a short way to a whole answer: greedy where syntax decides, else the best of some branches."""

    def __init__(self, pieces: Pieces, samples: Samples, hint: Plan | None) -> None:
        self._pieces = pieces
        self._samples = samples
        self._hint = hint
        self._tails = [] if hint is None else pieces.tails(hint, TAILS)
        self._fuel = FUEL
        self._until = thread_time() + SECONDS

    def finish(self, walk: Walk, floor: int = 0) -> bool:
        """Move `walk` on to where the value in `floor` brackets ends; whether a way was found."""
        while self._fuel > 0 and not walk.matcher.is_error():
            if walk.matcher.is_accepting() or (floor == 0 and self._join(walk)):
                return True
            text = walk.matcher.compute_ff_bytes() or self._next(walk)
            if not text or walk.put_until(text, floor):
                return bool(text)
        return False

    def _join(self, walk: Walk) -> bool:
        """Whether a tail of the plan of an earlier state closes this one too."""
        for start, ids in reversed(self._tails):
            if self._hint is not None and walk.matcher.validate_tokens(ids) == len(ids):
                walk.put(self._hint.text[start:])
                return True
        return False

    def _look(self, walk: Walk) -> tuple[bytes, int]:
        """The bytes that may follow, those first that long tokens repeat, and a fingerprint of the state."""
        self._fuel = self._fuel - 1 if thread_time() < self._until else 0
        mask = walk.matcher.compute_bitmask()
        return self._pieces.allowed(mask), hash(mask)

    def _next(self, walk: Walk) -> bytes:
        """What to put where there is a choice; nothing where no way was found."""
        allowed, _ = self._look(walk)
        if walk.place.quoted:
            return self._name(walk, allowed) if walk.place.named else self._string(walk, allowed)
        ends = [byte for byte in ENDS if byte in allowed]
        if ends:
            return bytes(ends[:1])
        if walk.place.last in b"{[:,":
            return self._value(walk, allowed)
        return self._number(walk, allowed)

    def _value(self, walk: Walk, allowed: bytes) -> bytes:
        for text in SHORT_VALUES:
            if walk.fits(text):
                return text
        starts = [bytes([byte]) for byte in allowed if byte in b'"{[tfn']
        if any(byte in allowed for byte in NUMERIC):
            starts.append(self._number(walk, allowed))
        if len(starts) < 2:
            return b"".join(starts)
        ways = [way for share, text in enumerate(starts) if (way := self._try(walk, text, len(starts) - share))]
        return min(ways, key=lambda way: self._pieces.cover(way).size, default=b"")

    def _try(self, walk: Walk, text: bytes, share: int) -> bytes:
        """`text` and what it takes to end the value it begins; costs at most one part in `share` of the fuel."""
        branch, before = walk.branch(text), self._fuel
        self._fuel //= share
        given = self._fuel
        found = self.finish(branch, len(walk.place.open))
        self._fuel += before - given
        return branch.text[len(walk.text) :] if found else b""

    def _name(self, walk: Walk, allowed: bytes) -> bytes:
        """A property name and its value, the cheapest of those after which no other of the names may still come:
        what comes before another may be left out, as a schema fixes the order of its properties."""
        names = self._scalars(walk, allowed, NAMES)
        begun = b',"' + walk.place.name
        names = [name for name in names if begun[1:] + name + b":" not in walk.text] or names
        if len(names) < 2:
            return b"".join(names)
        last: list[bytes] = []
        spare: list[bytes] = []
        rest = list(names)
        while rest:
            name = rest.pop(0)
            if not (way := self._try(walk, name, len(rest) + 1)):
                continue
            after = walk.branch(way)
            later = {other for other in names if other != name and after.fits(begun + other)}
            rest = [other for other in rest if other in later] if later else rest
            (spare if later else last).append(way)
        return min(last or spare, key=lambda way: self._pieces.cover(way).size, default=b"")

    def _string(self, walk: Walk, allowed: bytes) -> bytes:
        """What ends the string here: filler where only its length is wanting, else the shortest or any found."""
        if QUOTE in allowed and not walk.place.escaped:
            return b'"'
        if count := self._filler(walk, allowed[:1]):
            return allowed[:1] * count + b'"'
        if end := self._sampled(walk):
            return end
        ways = self._scalars(walk, allowed, 4 if len(allowed) < FEW else 1)
        return min(ways, key=lambda way: self._pieces.cover(way).size, default=b"") or self._drift(walk)

    def _filler(self, walk: Walk, byte: bytes) -> int:
        """How often `byte` must come before the string may end, as far as its length decides that; else 0."""

        def closes(count: int) -> bool:
            return walk.fits(byte * count + b'"')

        count = 1
        while count <= RUN and walk.fits(byte * count) and not closes(count):
            count *= 2
        if count > RUN:
            return 0
        if not walk.fits(byte * count):  # the longest that fits lies below
            count = bisect_left(range(count), True, key=lambda more: not walk.fits(byte * more)) - 1
        return bisect_left(range(count), True, key=closes) if closes(count) else 0

    def _sampled(self, walk: Walk) -> bytes:
        """A sample that the string here may be, or one's end that may end it."""
        for start in range(0 if walk.place.escaped else max(map(len, self._samples), default=0)):
            for sample in self._samples:
                if start < len(sample) and walk.fits(sample[start:] + b'"'):
                    return sample[start:] + b'"'
        return b""

    def _drift(self, walk: Walk) -> bytes:
        """The string ended by always taking the first byte that is allowed."""
        at = walk.branch(b"")
        for _ in range(DRIFT):
            allowed, _ = self._look(at)
            if at.put_quoted(at.matcher.compute_ff_bytes() or (b'"' if QUOTE in allowed else allowed[:1])):
                return at.text[len(walk.text) :]
        return b""

    def _number(self, walk: Walk, allowed: bytes) -> bytes:
        if ways := self._scalars(walk, allowed, 1):
            return ways[0]
        for first in ["", *map(chr, allowed)]:
            for zeros in range(20):
                text = first.encode() + b"0" * zeros
                if walk.fits(text) and self._ended(walk.branch(text)):
                    return text
        return b""

    def _ended(self, walk: Walk) -> bool:
        """Whether the number here may end."""
        return walk.matcher.is_accepting() or any(walk.fits(bytes([end])) for end in ENDS)

    def _scalars(self, walk: Walk, allowed: bytes, most: int) -> list[bytes]:
        """Up to `most` ways to end the string or number here, shortest first; what follows a number is left out."""
        quoted, found, order = walk.place.quoted, list[bytes](), 0
        limit = max(self._fuel - SCALAR_FUEL, 0)
        heap = [(0, 0, 0, walk, allowed, b"" if quoted else 0)]
        seen = set[object]()
        while heap and len(found) < most and self._fuel > limit:
            _, _, turns, at, allowed, state = heappop(heap)
            # Ways that are alike so far end alike, but for names and numbers, which only their end tells apart.
            key = (len(at.text), state) if quoted and not (walk.place.named and len(allowed) < FEW) else at.text
            if key in seen:
                continue
            seen.add(key)
            for byte in _sample(allowed) if quoted else [byte for byte in allowed if byte in NUMERIC]:
                child = at.branch(bytes([byte]))
                if child.place.quoted:
                    child.put_quoted(child.matcher.compute_ff_bytes())
                text = child.text[len(walk.text) :]
                if not child.place.quoted and (quoted or self._ended(child)):
                    found.append(text)
                    continue
                more, new = self._look(child)
                order += 1
                heappush(heap, (len(text) - (turns + (new != state)), order, turns + (new != state), child, more, new))
        return found
