"""Drafts of what a row says next, looked up in what it has read: values of an answer are copied from the document.

Prompt lookup (arXiv 2304.04487; the drafts change no token, only how many are chosen in one step). Whether they pay is
measured, not assumed: how many are right, and what a step of so many tokens takes.
"""

from collections import deque
from statistics import median

LONGEST = 8  # tokens of a draft
PROBE = 64  # steps after which drafts that did not pay are tried again
LEARN = 0.1  # what the last drafts weigh in the share that was right


class Lookup:
    """Where in a sequence each pair of tokens was seen last."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], int] = {}
        self._upto = 1

    def draft(self, ids: list[int], most: int) -> list[int]:
        """What followed when the last two tokens of `ids` stood there before."""
        for at in range(self._upto, len(ids) - 1):
            self._seen[ids[at - 1], ids[at]] = at + 1
        self._upto = max(len(ids) - 1, 1)
        if len(ids) < 2 or (found := self._seen.get((ids[-2], ids[-1]))) is None:
            return []
        copied = ids[found : found + most]
        end = next((at for at, token in enumerate(copied) if token < 0), most)  # pictures are not said
        return copied[:end]


class Utility:
    """Measures drafts and steps; says how long drafts are to be, 0 where none pay."""

    def __init__(self) -> None:
        self._right = 0.5
        self._seconds: dict[int, deque[float]] = {}
        self._since = 0

    def length(self, rows: int, drafting: int) -> int:
        """The draft length that makes most tokens a second where `drafting` of `rows` rows have a draft."""
        self._since += 1
        if self._since >= PROBE:
            self._since = 0
            return LONGEST
        best, most = 0, self._rate(rows, drafting, 0)
        if most is None:
            return 0
        for length in (2, 4, LONGEST):
            rate = self._rate(rows, drafting, length)
            if rate is None:
                return length  # never seen: to be measured
            if rate > most:
                best, most = length, rate
        return best

    def _rate(self, rows: int, drafting: int, length: int) -> float | None:
        """Tokens a second with drafts of `length`; None where a step of that size was not measured."""
        times = self._seconds.get(bucket(rows + drafting * length))
        if not times:
            return None
        extra = sum(self._right**right for right in range(1, length + 1))
        return (rows + drafting * extra) / median(times)

    def note_step(self, tokens: int, seconds: float) -> None:
        self._seconds.setdefault(bucket(tokens), deque(maxlen=16)).append(seconds)

    def note_draft(self, drafted: int, accepted: int) -> None:
        """Of a draft of `drafted` tokens the first `accepted` were right."""
        tried = min(accepted + 1, drafted)  # behind the first wrong one nothing is known
        self._right += LEARN * (accepted / tried - self._right)


def bucket(tokens: int) -> int:
    """Step sizes that take about as long: powers of two."""
    return (tokens - 1).bit_length()
