"""Steps by our own kernels: small ones replay a captured CUDA graph, others are launched one kernel after the other.

On a CPU, in Triton's interpreter, nothing is captured; all else is the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from models.engine.attention import FEW, Span, slots
from models.engine.batch import Batch
from models.engine.cache import BLOCK, Cache, blocks
from models.engine.decoder import Decoder, Step
from models.engine.varlen import Pieces
from models.failure import Failure
from models.nf4 import paths

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Captured:
    """A graph, and where its logits [size, vocabulary] come to lie."""

    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor

    def replay(self) -> torch.Tensor:
        self.graph.replay()
        return self.logits


class Graphs:
    """Computes batches over one cache, as Reference does. Captures all buckets at once, which takes seconds."""

    name = "kernels"

    def __init__(self, network: PreTrainedModel, cache: Cache, capability: tuple[int, int]) -> None:
        """Failure machine_unfit where a step of any kind does not compute, before anyone relies on it."""
        self._decoder = Decoder(network, cache)
        self._capability = capability
        self._device = cache.pool.device
        self._width = blocks(min(cache.budget, network.config.max_position_embeddings))
        self._pinned = self._device.type == "cuda"
        # One for all buckets.
        self._sent = torch.zeros(BUCKETS[-1] * (4 + self._width), dtype=torch.int32, pin_memory=self._pinned)
        self._read = torch.zeros_like(self._sent, device=self._device)
        self._copied = torch.cuda.Event() if self._pinned else None
        self._pool = torch.cuda.graph_pool_handle() if self._pinned else None
        # The largest first, so that the smaller ones find room in what it has taken.
        self._captured = {size: self._capture(size) for size in reversed(BUCKETS) if self._pinned}
        if self._pinned:
            self._warm_up()

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [n, vocabulary] behind the places that are wanted."""
        logits = self._replay(batch) if len(batch.ids) <= BUCKETS[-1] else self._launch(batch)
        if self._pinned and not batch.wanted:
            torch.cuda.synchronize(self._device)  # nobody waits for a token, and a fault must show in its own step
        return logits

    def _replay(self, batch: Batch) -> torch.Tensor:
        """A small step, padded to the next bucket."""
        tokens = len(batch.ids)
        size = next(size for size in BUCKETS if tokens <= size)
        self._fill(batch, size)
        logits = self._captured[size].replay() if self._captured else self._compute(self._step(size))
        return logits[batch.wanted] if len(batch.wanted) < tokens else logits[:tokens]

    def _warm_up(self) -> None:
        """Every kind of step once. What it writes into the cache nobody has a claim to yet."""
        for batch in batches(self._capability):
            if len(batch.ids) <= self._width * BLOCK and not torch.isfinite(self(batch)).all():
                raise Failure("machine_unfit", f"a step of {len(batch.ids)} tokens is not finite on this card")

    def _compute(self, step: Step) -> torch.Tensor:
        hidden = self._decoder(step, paths.choose(self._capability, len(step.ids)))
        return self._decoder.logits(hidden)

    def _step(self, size: int) -> Step:
        """Views of what is read."""
        heads, tables = self._parts(self._read, size)
        ids, positions, written, live = heads[:, :size]
        return Step(ids, positions, written, tables, live[:1])

    def _parts(self, numbers: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Four lines and `size` tables. Each line begins at 16 bytes, as kernels are compiled for."""
        line = max(size, 4)
        heads, tables = numbers[: 4 * line + size * self._width].split([4 * line, size * self._width])
        return heads.view(4, line), tables.view(size, -1)

    def _capture(self, size: int) -> Captured:
        step = self._step(size)
        self._compute(step)  # compiles, and takes what libraries take once
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._compute(step)
        return Captured(graph, logits)

    def _fill(self, batch: Batch, size: int) -> None:
        """Send a batch to where the bucket of `size` reads it."""
        if self._copied:
            self._copied.synchronize()  # nobody need have waited for the logits of the step before
        tokens = len(batch.ids)
        heads, tables = (part.numpy() for part in self._parts(self._sent, size))
        heads[:, tokens:] = 0
        heads[0, :tokens] = batch.ids
        heads[1, :tokens] = batch.positions
        heads[2, :tokens] = [slot for span in batch.spans for slot in slots(span.table, span.start, span.end)]
        heads[3, 0] = tokens
        for span in batch.spans:
            tables[span.here, : len(span.table)] = span.table
        sent = heads.size + tables.size
        self._read[:sent].copy_(self._sent[:sent], non_blocking=True)
        if self._copied:
            self._copied.record()

    def _launch(self, batch: Batch) -> torch.Tensor:
        """A large step, kernel after kernel: of prompts, with decoding rows beside them."""
        long = [span for span in batch.spans if span.count > FEW]
        short = [span for span in batch.spans if span.count <= FEW]
        rows = [row for span in short for row in range(span.offset, span.here.stop)]
        width = max((len(span.table) for span in short), default=1)
        tables = [span.table + [0] * (width - len(span.table)) for span in short for _ in range(span.count)]
        written = [slot for span in batch.spans for slot in slots(span.table, span.start, span.end)]
        step = Step(
            self._tensor(batch.ids),
            self._tensor(batch.positions),
            self._tensor(written),
            self._tensor(tables).view(-1, width),
            self._tensor([len(batch.ids)]),
            Pieces.lay(long, self._device) if long else None,
            self._tensor(rows).long() if long and rows else None,
        )
        hidden = self._decoder(step, paths.choose(self._capability, len(batch.ids)))
        return self._decoder.logits(hidden[batch.wanted])

    def _tensor(self, numbers: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self._device)


def batches(capability: tuple[int, int]) -> Iterator[Batch]:
    """Steps that between them launch all there is: one for each bucket; larger ones, on either side of the table's end,
    of single tokens, of one prompt, and of both."""
    longest = paths.of(capability)[-1].tokens
    for tokens in BUCKETS:
        yield _batch([1] * tokens)
    for tokens in (longest, longest + 1):
        yield _batch([1] * tokens)
        yield _batch([tokens])
        yield _batch([1] * FEW + [tokens - FEW])


def _batch(counts: list[int]) -> Batch:
    """Rows that begin, in the cache's first blocks."""
    starts = [0, *accumulate(counts)]
    spans = [Span(list(range(blocks(count))), start, 0, count) for start, count in zip(starts, counts, strict=False)]
    positions = [at for count in counts for at in range(count)]
    return Batch([1] * starts[-1], positions, spans, list(range(len(counts))))
