"""An encoder in memory: texts to tokens, tokens to what a layer says of them, in small batches that take turns.

Knows nothing of what the vectors are for, nor of when it was loaded.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import torch
from torch import Tensor

from models import catalog, store

Found = TypeVar("Found")
Reduce = Callable[[Tensor, Tensor], Sequence[Found]]


class Encoder:
    """All that compute with it wait in `turns`, the one thread that does; so whoever has many batches lets others pass.

    At most `rows` texts are in a batch, and no more tokens than the row's `batch_tokens`, padding included.
    """

    def __init__(self, row: catalog.Encoder, loaded: store.Loaded, rows: int, turns: Executor) -> None:
        self.row, self.tag = row, loaded.manifest.tag
        self._network, self._rows, self._turns = loaded.network, rows, turns
        self._device = next(loaded.network.parameters()).device
        self._tokenizer = loaded.tokenizer.backend_tokenizer
        self._tokenizer.encode_special_tokens = True  # "[SEP]" in a text is five characters, not the end of it
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._first, self._last = self._tokenizer.encode("").ids

    @property
    def dimensions(self) -> int:
        return int(self._network.config.hidden_size)

    @property
    def layers(self) -> int:
        return int(self._network.config.num_hidden_layers)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, whole and without the two special tokens around it."""
        return [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def frame(self, ids: Sequence[int]) -> list[int]:
        """Ids as the model reads them: a special token before them and one behind."""
        return [self._first, *ids, self._last]

    def run(
        self, rows: Sequence[Sequence[int]], layer: int, reduce: "Reduce[Found]", wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, Found]]:
        """Each row's number and what `reduce` makes of it, longest rows first.

        `rows` are framed. `reduce` gets what `layer` says of a batch [rows, tokens, dimensions] and which tokens are
        no padding [rows, tokens], on the device, and gives one thing for each row. A row is left out where `wanted`
        says so just before its batch.
        """
        for batch in self._batches(rows):
            if left := [number for number in batch if wanted(number)]:
                computed = self._turns.submit(self._compute, [rows[number] for number in left], layer, reduce)
                yield from zip(left, computed.result(), strict=True)

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        ordered = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
        while ordered:
            count = min(self._rows, max(1, self.row.batch_tokens // len(rows[ordered[0]])))
            yield ordered[:count]
            del ordered[:count]

    @torch.inference_mode()
    def _compute(self, rows: list[Sequence[int]], layer: int, reduce: "Reduce[Found]") -> Sequence[Found]:
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        mask = mask.to(self._device)
        said = self._network(ids.to(self._device), attention_mask=mask, output_hidden_states=True)
        return reduce(said.hidden_states[layer], mask)
