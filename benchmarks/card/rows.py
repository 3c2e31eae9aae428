"""Rows of random tokens: as flat batches over a pool, and as sequences on their way through an engine."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from models.engine.attention import Span
from models.engine.batch import Batch
from models.engine.cache import blocks
from models.engine.engine import Engine
from models.engine.sequence import Sampling, Sequence
from models.nf4.experts import NF4Experts


def random_ids(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    """The same ones every time."""
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(3, vocabulary, (count,), generator=generator).tolist()
    return found


def decoding(rows: int, context: int, vocabulary: int, seed: int = 0) -> Batch:
    """One token of each row, the last of `context`, wanted; each row has blocks of its own, one behind the other."""
    each = blocks(context)
    spans = [Span(list(range(row * each, (row + 1) * each)), row, context - 1, 1) for row in range(rows)]
    return Batch(random_ids(rows, vocabulary, seed), [context - 1] * rows, spans, list(range(rows)))


def reading(prompts: list[list[int]], wanted: list[range]) -> Batch:
    """Whole prompts, none of which is known; `wanted`: the places of each behind which logits are."""
    spans: list[Span] = []
    places: list[int] = []
    offset = block = 0
    for prompt, behind in zip(prompts, wanted, strict=True):
        spans.append(Span(list(range(block, block + blocks(len(prompt)))), offset, 0, len(prompt)))
        places += [offset + at for at in behind]
        offset += len(prompt)
        block += blocks(len(prompt))
    positions = [at for prompt in prompts for at in range(len(prompt))]
    return Batch([token for prompt in prompts for token in prompt], positions, spans, places)


def sequences(count: int, prompt: int, answer: int, vocabulary: int, seed: int = 0, shared: int = 0) -> list[Sequence]:
    """`count` rows of their own `prompt` tokens, of which the first `shared` are all rows'."""
    ids = random_ids(count * prompt, vocabulary, seed + 1)
    beginning = random_ids(shared, vocabulary)
    return [
        Sequence([*beginning, *ids[at * prompt + shared : (at + 1) * prompt]], Sampling(answer)) for at in range(count)
    ]


def drive(engine: Engine, rows: Iterable[Sequence], clients: int) -> float:
    """Seconds until all rows are answered, `clients` of them at a time; raises the Failure of one that failed."""
    coming, live = iter(rows), list[Sequence]()
    began = time.perf_counter()
    while True:
        for ended in (row for row in live if row.future.done()):
            ended.future.result()
        live = [row for row in live if not row.future.done()]
        while len(live) < clients and (entering := next(coming, None)) is not None:
            engine.submit(entering)
            live.append(entering)
        if not live:
            return time.perf_counter() - began
        engine.step()


@contextmanager
def routing(network: PreTrainedModel) -> Iterator[list[int]]:
    """How many different experts each layer's tokens choose, layer by layer, as transformers' layers compute."""
    met: list[int] = []

    def note(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        met.append(len(given[1].unique()))

    hooks = [each.register_forward_pre_hook(note) for each in network.modules() if isinstance(each, NF4Experts)]
    try:
        yield met
    finally:
        for hook in hooks:
            hook.remove()
