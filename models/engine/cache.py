"""Keys and values of the sequences in flight, in memory taken once at the start. Knows nothing of scheduling."""

import torch


class Cache:
    """A pool of `budget` tokens, [2, layers, kv_heads, budget, head_dim]; a sequence's are reserved at admission.

    All memory is taken here, so that a running row never lacks room and a card that has too little says so at boot.
    A sequence's places lie side by side where there is such a run, and then are read without a copy.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, budget: int
    ) -> None:
        self.budget = budget
        self.reserved = 0
        self.bytes_per_token = 2 * layers * kv_heads * head_dim * dtype.itemsize
        self._pool = torch.empty(2, layers, kv_heads, budget, head_dim, dtype=dtype, device=device)
        self._taken = bytearray(budget)
        self._places: dict[int, range | torch.Tensor] = {}

    def fits(self, tokens: int) -> bool:
        return self.reserved + tokens <= self.budget

    def reserve(self, number: int, tokens: int) -> None:
        """Room for `tokens` tokens of sequence `number`; the caller has asked `fits` first."""
        assert self.fits(tokens) and number not in self._places
        start = self._taken.find(bytes(tokens))
        found = range(start, start + tokens) if start >= 0 else self._scattered(tokens)
        for place in found:
            self._taken[place] = 1
        on = self._pool.device
        self._places[number] = found if isinstance(found, range) else torch.tensor(found, device=on)
        self.reserved += tokens

    def _scattered(self, tokens: int) -> list[int]:
        return [place for place, taken in enumerate(self._taken) if not taken][:tokens]

    def free(self, number: int) -> None:
        """Give the room of sequence `number` back; harmless if it has none."""
        found = self._places.pop(number, range(0))
        for place in found if isinstance(found, range) else found.tolist():
            self._taken[place] = 0
        self.reserved -= len(found)

    def extend(
        self, number: int, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values [kv_heads, n, head_dim] at position `start`; give back all of them up to there."""
        places, end = self._places[number], start + keys.shape[1]
        pool = self._pool[:, layer]
        if isinstance(places, range):
            mine = pool[:, :, places.start : places.stop]
            mine[0, :, start:end] = keys
            mine[1, :, start:end] = values
            return mine[0, :, :end], mine[1, :, :end]
        pool[0].index_copy_(1, places[start:end], keys)
        pool[1].index_copy_(1, places[start:end], values)
        return pool[0].index_select(1, places[:end]), pool[1].index_select(1, places[:end])
