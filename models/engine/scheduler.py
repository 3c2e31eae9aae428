"""Which tokens are computed in the next step. Knows token counts and the cache's room, not the model."""

import time
from collections import deque

from models.engine.cache import Cache
from models.engine.sequence import Sequence
from models.failure import Failure


class Scheduler:
    """First come, first served; rows join and leave between steps. Owned by the engine's thread."""

    def __init__(self, cache: Cache, step_tokens: int) -> None:
        self._cache = cache
        self._step_tokens = step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def plan(self) -> list[tuple[Sequence, list[int]]]:
        """Drop what nobody wants any more, admit what fits, and share out the step's tokens.

        Rows that are decoding come first with one token each, the rest of the budget is filled with prompt pieces.
        """
        self._drop()
        while self.waiting and self._cache.fits(self.waiting[0].capacity):
            sequence = self.waiting.popleft()
            self._cache.reserve(sequence.number, sequence.capacity)
            sequence.started = time.monotonic()
            self.running.append(sequence)
        budget = self._step_tokens
        planned = []
        for sequence in sorted(self.running, key=lambda row: row.computed < len(row.prompt)):
            if budget == 0:
                break
            tokens = sequence.pending(budget)
            budget -= len(tokens)
            planned.append((sequence, tokens))
        return planned

    def release(self, sequence: Sequence) -> None:
        """Take a row out of the batch and give its room back."""
        self.running.remove(sequence)
        self._cache.free(sequence.number)

    def _drop(self) -> None:
        now = time.monotonic()
        for sequence in [*self.waiting, *self.running]:
            if not sequence.future.cancelled() and now < sequence.deadline:
                continue
            if sequence in self.running:
                self.release(sequence)
            else:
                self.waiting.remove(sequence)
            sequence.fail(
                Failure("deadline_exceeded", f"not finished in time; {len(sequence.output)} tokens were made")
            )
