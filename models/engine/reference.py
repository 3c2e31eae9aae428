"""A step through transformers' own layers: any model, any device, and what every faster way must agree with."""

import torch
from transformers import PreTrainedModel

from models.engine.attention import arrange
from models.engine.batch import Batch, Look
from models.engine.cache import Cache
from models.engine.tower import Tower
from models.nf4.matrix import dense


class Reference:
    """Computes batches over one cache."""

    name = "reference"

    def __init__(self, network: PreTrainedModel, cache: Cache) -> None:
        network.config.get_text_config()._attn_implementation = "flat"
        self._network = network
        self._cache = cache
        self._tower = Tower(network) if hasattr(network.model, "visual") else None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [n, vocabulary] behind the places that are wanted."""
        device, rows = self._cache.pool.device, arrange(self._cache, batch.spans)
        ids = torch.tensor([batch.ids], device=device)
        places = torch.tensor([batch.positions], device=device)
        model = self._network.model
        if self._tower is None:
            hidden = model(input_ids=ids, position_ids=places, use_cache=False, rows=rows).last_hidden_state
        else:
            model = model.language_model
            shown = self._show(model.embed_tokens(ids), batch.looks, self._tower)
            if batch.axes is not None:
                places = torch.tensor(batch.axes, device=device).T[:, None]
            hidden = model(inputs_embeds=shown, position_ids=places, use_cache=False, rows=rows).last_hidden_state
        return dense(hidden[0, batch.wanted], self._network.lm_head.weight)

    def _show(self, embedded: torch.Tensor, looks: list[Look], tower: Tower) -> torch.Tensor:
        """Put what the tower makes of pictures where they stand among tokens [1, T, hidden]."""
        for here, picture, first in looks:
            embedded[0, here] = tower.rows(picture)[first : first + here.stop - here.start]
        return embedded
