"""The encoders of this process: loaded when first asked for, dropped when idle and another needs their memory.

Knows nothing of what is computed with them.
"""

import gc
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from models import catalog, manifest, plan, store
from models.encoder import Encoder
from models.errand import Errand
from models.failure import Failure, FieldFailure
from models.machine import Machine

log = logging.getLogger("zopilot.encoders")


class Asked(Protocol):
    """Which encoders are to be loaded."""

    @property
    def models(self) -> Sequence[str]: ...


@dataclass(eq=False)
class Place:
    """One row's. `loaded` is there from when a load begins until it has failed or the encoder is dropped."""

    row: catalog.Encoder
    loaded: Future[Encoder] | None = None
    bytes: int = 0
    users: int = 0
    used: float = 0.0

    @property
    def idle(self) -> bool:
        return self.loaded is not None and not self.users


class Encoders:
    """At no time do those in memory take more than `room` bytes, working memory included.

    `rows` texts at most in a batch of any of them; `most` requests at most under way.
    """

    def __init__(self, models: Path, here: Machine, *, rows: int, most: int) -> None:
        self.room = plan.set_aside(models)
        self._models, self._device = models, torch.device(here.device)
        self._rows, self._most, self.under_way = rows, most, 0
        self._places = {row.name: Place(row) for row in catalog.ENCODERS.values()}
        self._changed = threading.Condition()
        self._next: Place | None = None  # who waits for room; until there is some, nobody passes
        self._turns = ThreadPoolExecutor(1, "encoder")
        self._loads = ThreadPoolExecutor(1, "warmup")

    def admit(self, deadline: float) -> Errand[Any]:
        """A ticket for one more request; Failure busy where too many are under way."""
        with self._changed:
            if self.under_way >= self._most:
                raise Failure("busy", f"{self._most} requests are under way, as many as may be")
            self.under_way += 1
        return Errand(deadline, self._settled)

    def _settled(self) -> None:
        with self._changed:
            self.under_way -= 1

    def find(self, name: str) -> catalog.Encoder:
        """The row called `name`, or whose item has that tag; Failure model_not_found where none is, or not imported."""
        row = catalog.encoder(name.partition(":")[0])
        item = self._locate(row)
        if ":" in name and name != f"{row.name}:{item.name}":
            told = f"model: {row.name} is here as {row.name}:{item.name} alone"
            raise FieldFailure("model_not_found", told, "model")
        return row

    def best(self) -> str:
        """The name of the one to score with: DeBERTa where it is imported."""
        return catalog.DEBERTA.name if catalog.DEBERTA.name in plan.imported(self._models) else catalog.MINILM.name

    def _locate(self, row: catalog.Encoder) -> Path:
        try:
            return manifest.locate(row, self._models)
        except Failure as failure:
            code = "model_not_found" if failure.code == "model_not_imported" else "model_unavailable"
            raise Failure(code, failure.message) from None

    @contextmanager
    def use(self, name: str) -> Iterator[Encoder]:
        """The encoder, in memory until the block ends. Failure where it cannot be loaded; the next one tries again."""
        place = self._places[name]
        encoder = self._enter(place)
        try:
            yield encoder
        finally:
            self._leave(place)

    def _enter(self, place: Place) -> Encoder:
        item = self._locate(place.row)
        needed = plan.needed(place.row, item)
        if needed > self.room:
            raise Failure(
                "model_unavailable",
                f"{place.row.name} takes {needed:,} bytes; {self.room:,} are set aside: "
                "what is imported while the service runs is counted at its next start",
            )
        first = False
        with self._changed:
            self._changed.wait_for(lambda: self._may_enter(place, needed))
            place.users += 1
            if place.loaded is None:
                place.loaded, place.bytes, first = Future(), needed, True
            loaded = place.loaded
            self._changed.notify_all()  # those whom he would not let pass
        if first:
            self._load(place, item, loaded)
        try:
            return loaded.result()
        except BaseException:
            self._leave(place)
            raise

    def _may_enter(self, place: Place, needed: int) -> bool:
        if self._next not in (None, place):
            return False
        self._next = None
        if place.loaded is None and not self._make_room(needed):
            self._next = place
            return False
        return True

    def _make_room(self, needed: int) -> bool:
        """Drop the idle ones that were used longest ago until `needed` bytes fit, if that is enough."""
        held = [place for place in self._places.values() if place.loaded]
        idle = sorted((place for place in held if place.idle), key=lambda place: place.used)
        over = needed + sum(place.bytes for place in held) - self.room
        if over > sum(place.bytes for place in idle):
            return False
        while over > 0:
            over -= idle[0].bytes
            self._drop(idle.pop(0))
        return True

    def _drop(self, place: Place) -> None:
        log.info("%s is dropped", place.row.name)
        place.loaded, place.bytes = None, 0
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, place: Place, item: Path, loaded: Future[Encoder]) -> None:
        """Load it for all who wait; where that fails, each of them is told why."""
        try:
            encoder = Encoder(place.row, store.load(item, self._device), self._rows, self._turns)
        except BaseException as error:
            log.error("%s could not be loaded: %s", place.row.name, error)
            why = error.message if isinstance(error, Failure) else type(error).__name__
            with self._changed:
                place.loaded, place.bytes = None, 0
            loaded.set_exception(Failure("model_unavailable", f"{place.row.name} could not be loaded: {why}"))
        else:
            loaded.set_result(encoder)

    def _leave(self, place: Place) -> None:
        with self._changed:
            place.users -= 1
            place.used = time.monotonic()
            self._changed.notify_all()

    def ask(self, asked: Asked, deadline: float) -> Errand[dict[str, Any]]:
        """A ticket for loading these in turn (none named: all that are imported). Failure where one is not there."""
        names = [self.find(name).name for name in asked.models] or list(plan.imported(self._models))
        ticket: Errand[dict[str, Any]] = self.admit(deadline)
        self._loads.submit(self._warm_up, names, ticket)
        return ticket

    def _warm_up(self, names: list[str], ticket: Errand[dict[str, Any]]) -> None:
        began = time.monotonic()
        try:
            for name in names:
                with self.use(name):
                    pass
            seconds = round(time.monotonic() - began, 4)
            ticket.finish({"encoders": self.detail(), "processing_time": seconds})
        except Failure as failure:
            ticket.fail(failure)
        finally:
            ticket.end()

    def detail(self) -> list[dict[str, Any]]:
        """Every imported encoder: its tag, whether it is in memory, the bytes it takes there, and by how many used."""
        told = []
        with self._changed:
            for name, item in plan.imported(self._models).items():
                place = self._places[name]
                state = "not loaded" if place.loaded is None else "loaded" if place.loaded.done() else "loading"
                about = {"name": name, "tag": f"{name}:{item.name}", "state": state}
                told.append({**about, "bytes": place.bytes, "users": place.users})
        return told

    def stop(self) -> None:
        """Let nothing more be computed; who waits for it fails."""
        self._turns.shutdown(wait=False, cancel_futures=True)
