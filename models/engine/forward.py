"""What computes a step's logits: our kernels on a card, for what they are written for; else transformers' layers."""

from typing import Protocol

import torch
from transformers import PreTrainedModel

from models.engine.batch import Batch
from models.engine.cache import Cache
from models.engine.reference import Reference


class Forward(Protocol):
    """A batch in, logits [n, vocabulary] behind the places that are wanted out; `name` is for /health."""

    name: str

    def __call__(self, batch: Batch) -> torch.Tensor: ...


def pick(network: PreTrainedModel, cache: Cache) -> Forward:
    """The fastest one for `network`; keys and values go to `cache`."""
    if cache.pool.is_cuda and cache.pool.dtype == torch.bfloat16:
        # Triton comes with torch's builds for cards alone.
        from models.engine.decoder import computes
        from models.engine.graphs import Graphs

        if computes(network):
            return Graphs(network, cache, torch.cuda.get_device_capability(cache.pool.device))
    return Reference(network, cache)
