"""A step through transformers' own layers: any model, any device, and what every faster way must agree with."""

import torch
from transformers import PreTrainedModel

from models.engine.attention import arrange
from models.engine.batch import Batch
from models.engine.cache import Cache
from models.nf4.matrix import dense


class Reference:
    """Computes batches over one cache."""

    name = "reference"

    def __init__(self, network: PreTrainedModel, cache: Cache) -> None:
        network.config._attn_implementation = "flat"
        self._network = network
        self._cache = cache

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [n, vocabulary] behind the places that are wanted."""
        device = self._cache.pool.device
        hidden = self._network.model(
            input_ids=torch.tensor([batch.ids], device=device),
            position_ids=torch.tensor([batch.positions], device=device),
            use_cache=False,
            rows=arrange(self._cache, batch.spans),
        ).last_hidden_state
        return dense(hidden[0, batch.wanted], self._network.lm_head.weight)
