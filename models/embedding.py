"""Texts as vectors: the mean of what an encoder's last layer says of their tokens, made one unit long.

What several requests ask for at the same time is computed together. Knows nothing of HTTP.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from models import catalog
from models.encoder import Encoder
from models.encoders import Encoders
from models.errand import Errand
from models.failure import Failure, FieldFailure

log = logging.getLogger("zopilot.embedding")

THREADS = 2  # so that who comes while many texts are computed takes turns with them


class Asked(Protocol):
    """What a request asks for. `model` "": the default; `truncate`: a text that is too long is read as far as it can
    be, else it is a Failure; `dimensions` None: the model's; `place` is where text `at` stands in the request."""

    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def model(self) -> str: ...
    @property
    def truncate(self) -> bool: ...
    @property
    def dimensions(self) -> int | None: ...
    def place(self, at: int) -> str: ...


@dataclass(frozen=True)
class Vectors:
    """One request's: float32 [texts, dimensions]. `truncated` are the numbers of texts of which only the beginning was
    read, `tokens` is how many were read, `seconds` runs from question to answer."""

    model: str
    vectors: np.ndarray
    truncated: list[int]
    tokens: int
    seconds: float


@dataclass(eq=False)
class Job:
    """A request under way: `rows` are its texts as the model reads them, each filled into `found` by its number."""

    asked: Asked
    row: catalog.Encoder
    ticket: Errand[Vectors]
    since: float = field(default_factory=time.monotonic)
    rows: list[list[int]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    found: dict[int, np.ndarray] = field(default_factory=dict)

    def read(self, encoder: Encoder) -> None:
        """Tokenise; Failure where a text is too long and must not be cut."""
        most = self.row.embeds - 2
        for at, ids in enumerate(encoder.tokenise(self.asked.texts)):
            if len(ids) > most:
                if not self.asked.truncate:
                    where = self.asked.place(at)
                    said = f"{where}: the text has {len(ids) + 2:,} tokens; the model reads {self.row.embeds:,}"
                    raise FieldFailure("context_length_exceeded", said, where)
                self.truncated.append(at)
            self.rows.append(encoder.frame(ids[:most]))

    @property
    def wanted(self) -> bool:
        """Whether anyone waits for it still; of who has left the place is given back."""
        if self.ticket.gone:
            self.ticket.end()
        return not self.ticket.settled

    def put(self, at: int, vector: np.ndarray, model: str) -> None:
        """Take one text's vector; the last one settles the ticket."""
        if not np.isfinite(vector).all():
            self.ticket.fail(Failure("model_error", f"the model has no vector for text {at}"))
        self.found[at] = vector
        self.ticket.progress = len(self.found) / len(self.rows)
        if len(self.found) == len(self.rows) and not self.ticket.settled:
            vectors = np.stack([self.found[each] for each in range(len(self.rows))])
            seconds = time.monotonic() - self.since
            self.ticket.finish(Vectors(model, vectors, self.truncated, sum(map(len, self.rows)), seconds))


class Embeddings:
    """Takes requests one by one; each `begin` has a thread compute whatever has been taken until then."""

    def __init__(self, encoders: Encoders, default: str) -> None:
        self._encoders, self._default = encoders, default
        self._taken: deque[Job] = deque()
        self._threads = ThreadPoolExecutor(THREADS, "embedding")

    def ask(self, asked: Asked, deadline: float) -> Errand[Vectors]:
        """A ticket for these texts' vectors. Failure where the model is not there or makes none."""
        row = self._encoders.find(asked.model or self._default)
        if not row.embeds:
            raise FieldFailure("invalid_value", f"model: {row.name} makes no embeddings", "model")
        if asked.dimensions not in (None, width := row.config["hidden_size"]):
            raise FieldFailure("invalid_value", f"dimensions: {asked.dimensions}; {row.name} has {width}", "dimensions")
        job = Job(asked, row, self._encoders.admit(deadline))
        self._taken.append(job)
        return job.ticket

    def begin(self) -> None:
        """Compute what has been taken, in a thread."""
        self._threads.submit(self._work)

    def _work(self) -> None:
        jobs = list(self._take())
        for row in {job.row.name: job.row for job in jobs}.values():
            alike = [job for job in jobs if job.row is row]
            try:
                with self._encoders.use(row.name) as encoder:
                    embed(encoder, alike)
            except Failure as failure:
                for job in alike:
                    job.ticket.fail(failure)
            except BaseException as error:
                log.error("texts could not be embedded: %s", type(error).__name__)
            finally:
                for job in alike:
                    job.ticket.end()

    def _take(self) -> Iterator[Job]:
        while self._taken:
            try:
                yield self._taken.popleft()
            except IndexError:  # the other thread was faster
                return


def embed(encoder: Encoder, jobs: Sequence[Job]) -> None:
    """Settle the tickets of these jobs, each as soon as its last text is done. One that fails or whose caller has left
    is no trouble to the others."""
    rows: list[tuple[Job, int]] = []
    for job in jobs:
        if not job.wanted:
            continue
        try:
            job.read(encoder)
        except Failure as failure:
            job.ticket.fail(failure)
        else:
            rows += [(job, at) for at in range(len(job.rows))]
    found: Iterator[tuple[int, np.ndarray]] = encoder.run(
        [job.rows[at] for job, at in rows],
        encoder.layers,
        pool,
        lambda number: rows[number][0].wanted,
    )
    for number, vector in found:
        job, at = rows[number]
        job.put(at, vector, encoder.tag)


def pool(said: Tensor, mask: Tensor) -> list[np.ndarray]:
    """For each row the mean over its tokens, of length 1: [dimensions]."""
    weights = mask[..., None].to(said.dtype)
    return list(normalize((said * weights).sum(1) / weights.sum(1)).cpu().numpy())
