"""Who may queue, by predicted cost, and when a refused one may come back. Knows costs and times, nothing of sequences.

Time is passed in, as monotonic seconds that never go back. Nothing here is locked: the caller does that.
"""

import math
from collections.abc import Hashable
from typing import NamedTuple, NoReturn

from models.failure import Failure

DECODE_COST = 8  # a token made alone takes about as long as this many of a prompt; how much exactly cancels in the rate
HORIZON = 120  # seconds; nobody is told to wait longer
GRACE = 5.0  # seconds that a place is kept beyond its due time: rounding, networks and clients only ever add to it
MOST_PLACES = 1024
FIRST_DRAIN = 60.0  # seconds in which a full queue is taken to drain until that was measured
RESERVE, RESERVE_SECONDS = 1 / 8, 2.0  # of the room, left to those who come back as told: work is drained in lumps
CAUTION = 0.9  # of the measured rate, for what is promised
WINDOW_SECONDS, WINDOW_FINISHES, WINDOW_ANSWERS = 30.0, 16, 32  # the rate forgets by the slower of the first two
LEVEL_FADES = 0.98  # with each sequence that is admitted


class Promise(NamedTuple):
    due: float
    cost: int


class Admission:
    """The queue is bounded in cost, and a refused request is told when to come back: a promise, kept in a second queue.

    The promise holds for a request of the same fingerprint from its due time until GRACE later. Room is held for it:
    whoever is behind it is refused unless the drain, cautiously taken, leaves enough for both. Coming back too early
    neither helps nor harms; after GRACE the place is gone. Requests of the same fingerprint share one place.

    No place is kept, and the message says so, where the wait would exceed HORIZON (Retry-After then says HORIZON),
    where MOST_PLACES are kept already, and where the queue has lately been too long for the request's deadline. A
    promise that cannot be kept because the drain has slowed down is told a new time, and stays ahead of those behind.

    An empty queue refuses nobody, so places that are never taken up cannot leave the model idle.
    """

    def __init__(self, max_cost: int) -> None:
        self._max_cost = max_cost
        self.queued = 0
        self.running = 0
        self.rate = max_cost / FIRST_DRAIN  # cost per second while something waits
        self._work, self._seconds = self.rate, 1.0  # the default weighs as much as one measured second
        self._unmeasured = 0.0  # seconds since the last finish in which something waited
        self.answer_share = 1.0  # of max_new_tokens that answers use
        self._level = 0.0  # how long the queue has been of late
        self._now = 0.0
        self._promises: dict[int, Promise] = {}  # in the order of their first refusal

    @property
    def promises(self) -> int:
        """How many places are kept."""
        return len(self._promises)

    @property
    def wait(self) -> float:
        """Seconds until a sequence that is queued now would start."""
        return self.queued / self.rate

    def estimate(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """What a sequence is expected to cost, of whose prompt so many tokens are not shared; at least 1."""
        return max(prompt_tokens + round(DECODE_COST * max_new_tokens * self.answer_share), 1)

    def admit(self, cost: int, fingerprint: Hashable, deadline_left: float, now: float) -> None:
        """Count a sequence into the queue, or raise the Failure that says when to come back."""
        self._pass_time(now)
        for key in [key for key, promise in self._promises.items() if promise.due + GRACE < now]:
            del self._promises[key]
        key = hash(fingerprint)
        if self.queued:
            self._require_room(key, cost, deadline_left, now)
        self._promises.pop(key, None)
        self.queued += cost
        self._level = max(min(self.queued, self._max_cost), self._level * LEVEL_FADES)

    def leave(self, cost: int, now: float) -> None:
        """A waiting sequence is given up."""
        self._pass_time(now)
        self.queued -= cost

    def start(self, cost: int, now: float) -> None:
        """A waiting sequence joins the batch."""
        self.leave(cost, now)
        self.running += cost
        # Half of its work is credited now and half when it is done: at any time the running rows are half done.
        if self.queued:
            self._work += cost / 2

    def finish(self, cost: int, now: float, answer_share: float | None = None) -> None:
        """A running sequence has ended, after this share of its max_new_tokens; None: it was given up."""
        self._pass_time(now)
        self.running -= cost
        keep = math.exp(-min(self._unmeasured / WINDOW_SECONDS, 1 / WINDOW_FINISHES))
        self._work *= keep
        self._seconds = self._seconds * keep + self._unmeasured
        self._unmeasured = 0.0
        if answer_share is not None:
            self.answer_share += (answer_share - self.answer_share) / WINDOW_ANSWERS
            if self.queued:
                self._work += cost / 2
        self.rate = max(self._work / self._seconds, 1.0)

    def _pass_time(self, now: float) -> None:
        """Only time in which something waits is measured: with fewer rows than fit, less is done than could be."""
        if self.queued:
            self._unmeasured += now - self._now
        self._now = now

    def _require_room(self, key: int, cost: int, deadline_left: float, now: float) -> None:
        known = self._promises.get(key)
        if known and now < known.due:
            self._refuse(known.due - now, True)
        # Who comes in now is done after (queued + running) / rate seconds: beyond this room that is too late.
        room = min(self._max_cost, self.rate * deadline_left - self.running)
        reserve = min(max(room * RESERVE, self.rate * RESERVE_SECONDS), room / 2)
        wait = math.ceil(self._find_wait(key, cost, room - reserve))
        if wait <= 0 or (known and self._find_wait(key, cost, room) <= 0):
            return
        kept = known is not None or (wait <= HORIZON and self.promises < MOST_PLACES and self._level <= room)
        wait = min(wait, HORIZON)
        if kept:
            self._promises[key] = Promise(now + wait, cost)
        self._refuse(wait, kept)

    def _find_wait(self, key: int, cost: int, room: float) -> float:
        """Seconds until there is room besides each promise ahead when that one is due; 0 or less: there is now."""
        ahead = list(self._promises.values())
        if key in self._promises:
            ahead = ahead[: list(self._promises).index(key)]
        rate = self.rate * CAUTION
        taken = self.queued + cost
        excess = taken - room
        for due, promised in sorted(ahead):
            taken += promised
            if taken - room > rate * max(due - self._now, 0.0):
                excess = taken - room
        return excess / rate

    def _refuse(self, seconds: float, kept: bool) -> NoReturn:
        place = f"a place is kept for this one until {GRACE:.0f} s after Retry-After" if kept else "no place is kept"
        figures = f"work worth {self.queued} tokens of {self._max_cost} is waiting, about {self.wait:.0f} s"
        raise Failure("queue_full", f"{figures}; places kept: {self.promises}; {place}", seconds)
