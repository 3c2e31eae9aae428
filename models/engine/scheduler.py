"""Who is computed in the next step. Knows token counts and the cache's room, not the model.

Order is by `turn`, on a clock that counts computed tokens: a sequence's turn comes when the engine has done STRETCH
times its own cost since it arrived, in the bulk lane BULK tokens later. Short ones so pass a long one that came before
them, but only for a while that grows with its length, and everyone's turn comes: nobody starves.
"""

import time
from bisect import insort
from dataclasses import dataclass, field, replace
from operator import attrgetter

from models.engine import metrics
from models.engine.admission import Admission
from models.engine.cache import BLOCK, Cache, blocks
from models.engine.sequence import Sequence
from models.failure import Failure

STRETCH = 8.0
BULK = 32_768  # tokens
DECODING = 64  # a row with no more tokens due is not reading its prompt any longer
LOOKED_AT = 64  # that wait, a step
ORDER = attrgetter("turn", "number")


@dataclass(frozen=True)
class Piece:
    """The next `count` tokens of a row, and behind them a `draft` of what it may say next."""

    sequence: Sequence
    count: int
    draft: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        start = self.sequence.computed
        return self.sequence.ids[start : start + self.count] + self.draft

    @property
    def prompt_tokens(self) -> int:
        """How many of them are the prompt's."""
        return max(min(len(self.sequence.prompt) - self.sequence.computed, self.count), 0)

    @property
    def due(self) -> bool:
        """Whether the row's next token can be chosen after it."""
        return self.count == self.sequence.due

    @property
    def places(self) -> int:
        """Behind how many of its last tokens it is to be known what may come."""
        row = self.sequence
        if row.probes:
            return max(row.computed + self.count - max(row.computed, row.reusable), 0)
        return 1 + len(self.draft) if self.due else 0


class Scheduler:
    """Rows join and leave between steps, and the books of `admission` are kept. The caller holds a lock."""

    def __init__(self, cache: Cache, admission: Admission, step_tokens: int) -> None:
        self._cache = cache
        self._admission = admission
        self._step_tokens = step_tokens
        self._clock = 0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preempted = 0

    def admit(self, sequence: Sequence) -> None:
        """Queue a new sequence; raises Failure where it can never fit or would wait too long."""
        if sequence.capacity > self._cache.budget:
            raise Failure(
                "context_length_exceeded",
                f"{sequence.capacity} tokens are needed (prompt {len(sequence.prompt)}, answer "
                f"{sequence.sampling.max_new_tokens}); {self._cache.budget} fit at once",
            )
        now = time.monotonic()
        known = sequence.follows or self._find(sequence)[0] * BLOCK
        unknown = len(sequence.prompt) - known // BLOCK * BLOCK
        sequence.cost = self._admission.estimate(unknown, sequence.sampling.max_new_tokens)
        content = (tuple(sequence.prompt), sequence.sampling)
        self._admission.admit(sequence.cost, content, sequence.deadline - now, now)
        sequence.turn = self._clock + STRETCH * self._final(sequence) + (BULK if sequence.lane == "bulk" else 0)
        self._wait(sequence)

    def plan(self) -> list[Piece]:
        """Drop what nobody wants any more, admit what fits, and share out the step's tokens.

        Rows that are decoding come first, the rest of the budget is filled with pieces of prompts.
        """
        self._drop()
        self._admit()
        budget = self._step_tokens
        planned: list[Piece] = []
        for row in sorted(self.running, key=lambda row: (row.due > DECODING, ORDER(row))):
            count = min(row.due, budget)
            if count and row in self.running and self._make_room(row, row.computed + count):
                budget -= count
                planned.append(Piece(row, count))
        # A row whose grammar forces much has come late in this order, and may have put back one that is planned.
        planned = [piece for piece in planned if piece.sequence in self.running]
        self._clock += sum(piece.count for piece in planned)
        return planned

    def allow(self, piece: Piece, draft: list[int]) -> Piece:
        """`piece` with as much of `draft` behind it as there is room for without taking any from others."""
        row = piece.sequence
        fits = bool(draft) and self._cache.extend(row.number, row.computed + piece.count + len(draft))
        return replace(piece, draft=draft) if fits else piece

    def end(
        self, sequence: Sequence, *, complete: bool = False, failed: bool = False, now: float | None = None
    ) -> None:
        """Take a row out for good and give its room back.

        The length of a `complete` answer tells about the next ones; what a `failed` one has computed is not used again.
        """
        self._release(sequence, sound=not failed)
        share = sequence.made / sequence.sampling.max_new_tokens if complete and not sequence.probes else None
        self._admission.finish(sequence.cost, time.monotonic() if now is None else now, share)

    def _release(self, sequence: Sequence, *, sound: bool = True) -> None:
        self.running.remove(sequence)
        self._cache.close(sequence.number, sound=sound)

    def _wait(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=ORDER)

    def _admit(self) -> None:
        for sequence in self.waiting[:LOOKED_AT]:
            if len(self.running) >= max(self._step_tokens // 2, 1):
                return
            known, idle, writer = self._find(sequence)
            if writer:
                # Its beginning is being computed and need not be again; nor must it wait for a later turn.
                for row in self.running:
                    row.turn = min(row.turn, sequence.turn) if row.number == writer else row.turn
            elif self._fits(sequence, known, idle):
                self.waiting.remove(sequence)
                self._enter(sequence)
            elif sequence.turn <= self._clock:
                return  # its turn has come, so what gets free is for it

    def _find(self, sequence: Sequence) -> tuple[int, int, int]:
        return self._cache.find(sequence.ids[: sequence.reusable + 1])

    def _fits(self, sequence: Sequence, known: int, idle: int) -> bool:
        """Whether there is room for it and for what it and the others are expected to say."""
        room = self._cache.available() - idle + known
        if not self.running:
            return room >= blocks(len(sequence.ids))
        growth = sum(blocks(self._final(row)) - blocks(len(row.ids)) for row in self.running)
        return room >= blocks(self._final(sequence)) + growth

    def _final(self, sequence: Sequence) -> int:
        """Tokens that it will have in the end, going by the answers that are finished."""
        answer = max(round(self._admission.answer_share * sequence.sampling.max_new_tokens), sequence.made, 1)
        return len(sequence.prompt) + answer

    def _enter(self, sequence: Sequence) -> None:
        spare = blocks(self._final(sequence)) - blocks(len(sequence.ids))
        sequence.computed = self._cache.open(sequence.number, sequence.ids, spare, sequence.reusable)
        metrics.count("reused", sequence.computed)
        if not sequence.started:
            sequence.started = time.monotonic()
            self._admission.start(sequence.cost, sequence.started)
        self.running.append(sequence)

    def _make_room(self, row: Sequence, tokens: int) -> bool:
        """Room for a row's first `tokens` tokens, if need be at the cost of those whose turn is the last."""
        while not self._cache.extend(row.number, tokens):
            last = max(self.running, key=ORDER)
            self._preempt(last)
            if last is row:
                return False
        return True

    def _preempt(self, row: Sequence) -> None:
        """Back to the queue, its turn kept; what it has said stays said and is only computed again."""
        self._release(row)
        row.computed = 0
        self.preempted += 1
        metrics.PREEMPTED.inc()
        self._wait(row)

    def _drop(self) -> None:
        now = time.monotonic()
        for sequence in [*self.waiting, *self.running]:
            if not sequence.future.cancelled() and now < sequence.deadline:
                continue
            if sequence in self.running:
                self.end(sequence, now=now)
            else:
                self.waiting.remove(sequence)
                (self._admission.finish if sequence.started else self._admission.leave)(sequence.cost, now)
            sequence.fail(Failure("deadline_exceeded", f"not finished in time; {sequence.made} tokens were made"))
