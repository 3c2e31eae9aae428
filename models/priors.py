"""What labels get behind texts that say nothing, kept by question. Knows no text.

Computed once for all who wait for it; what nobody waits for any longer is given up, unless it is done.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence as Listing

from models.engine.engine import Engine
from models.failure import Failure
from models.scoring import Scoring, Tree

KEPT = 4096


class Prior:
    """Of one question. `users` wait for it."""

    def __init__(self) -> None:
        self.scorings: list[Scoring] = []
        self.users = 0
        self._mean: list[float] | None = None

    @property
    def lost(self) -> bool:
        """Whether it will never be known."""
        return any(scoring.lost for scoring in self.scorings)

    async def mean(self) -> list[float]:
        """Sums of log-probabilities by label; raises Failure."""
        if self._mean is None:
            columns = list(zip(*[await scoring.scores() for scoring in self.scorings], strict=True))
            self._mean = [math.fsum(column) / len(column) for column in columns]
            self.scorings = []  # they hold far more
        return self._mean

    def cancel(self) -> None:
        for scoring in self.scorings:
            scoring.cancel()


class Priors:
    """Those of the last questions asked. To be used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: OrderedDict[bytes, Prior] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: bytes, stems: Listing[list[int]], tree: Tree, until: float) -> Prior:
        """What is kept under `key`, else of `tree` behind `stems`, to be done `until` then. Raises Failure, and then
        nothing of it is on its way. Whoever takes it gives it back."""
        prior = self._find(key)
        if prior is None:
            prior = self._start(stems, tree, until)  # twice, where two come at once: no lock is held so long
            with self._lock:
                prior.users += 1
                self._kept[key] = prior
                self._kept.move_to_end(key)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return prior

    def _find(self, key: bytes) -> Prior | None:
        with self._lock:
            prior = self._kept.get(key)
            if prior is None or prior.lost:
                return None
            prior.users += 1
            self._kept.move_to_end(key)
            return prior

    def give_back(self, owed: list[Prior]) -> None:
        """Empties `owed`, so that it does no harm to come again."""
        with self._lock:
            while owed:
                prior = owed.pop()
                prior.users -= 1
                if not prior.users:
                    prior.cancel()

    def _start(self, stems: Listing[list[int]], tree: Tree, until: float) -> Prior:
        prior = Prior()
        try:
            for stem in stems:
                prior.scorings.append(Scoring(self._engine, stem, tree, until, "interactive"))
        except Failure:
            prior.cancel()
            raise
        return prior
