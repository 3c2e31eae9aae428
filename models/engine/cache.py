"""Keys and values of the sequences in flight, within a fixed budget of tokens. Knows nothing of scheduling."""

import torch


class Cache:
    """One slab a sequence, reserved whole at admission so that a running row never lacks room.

    A slab is [2, layers, kv_heads, capacity, head_dim].
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, budget: int
    ) -> None:
        self.budget = budget
        self.reserved = 0
        self._shape = (2, layers, kv_heads, head_dim)
        self._dtype, self._device = dtype, device
        self._slabs: dict[int, torch.Tensor] = {}

    @property
    def bytes_per_token(self) -> int:
        planes, layers, heads, dim = self._shape
        return planes * layers * heads * dim * self._dtype.itemsize

    def fits(self, tokens: int) -> bool:
        return self.reserved + tokens <= self.budget

    def reserve(self, number: int, tokens: int) -> None:
        """Room for `tokens` tokens of sequence `number`; the caller has asked `fits` first."""
        assert self.fits(tokens) and number not in self._slabs
        planes, layers, heads, dim = self._shape
        self._slabs[number] = torch.empty(planes, layers, heads, tokens, dim, dtype=self._dtype, device=self._device)
        self.reserved += tokens

    def free(self, number: int) -> None:
        """Give the room of sequence `number` back; harmless if it has none."""
        slab = self._slabs.pop(number, None)
        if slab is not None:
            self.reserved -= slab.shape[3]

    def extend(
        self, number: int, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values [kv_heads, n, head_dim] at position `start`; give back all of them up to there."""
        slab = self._slabs[number][:, layer]
        end = start + keys.shape[1]
        slab[0, :, start:end] = keys
        slab[1, :, start:end] = values
        return slab[0, :, :end], slab[1, :, :end]
