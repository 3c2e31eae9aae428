"""What sees in a network: pictures as rows that stand where tokens' embeddings do, the last ones kept.

Knows nothing of sequences.
"""

from collections import OrderedDict

import torch
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.picture import Picture

KEPT = 8192  # tokens of pictures: rows that read pieces of theirs by turns, and a picture asked about again


class Tower:
    """One picture at a time, so that memory is bounded by the largest."""

    def __init__(self, network: PreTrainedModel) -> None:
        vision = network.config.vision_config
        vision._attn_implementation = "sdpa"
        self._visual = network.model.visual
        self._processor = Qwen2VLImageProcessorPil(patch_size=vision.patch_size, merge_size=vision.spatial_merge_size)
        self._made: OrderedDict[int, torch.Tensor] = OrderedDict()
        self.looked = 0  # how often it was asked and did not know

    def rows(self, picture: Picture) -> torch.Tensor:
        """[tokens, hidden], in the network's dtype and on its device."""
        made = self._made.get(picture.id)
        if made is None:
            made = self._look(picture)
            self._made[picture.id] = made
        self._made.move_to_end(picture.id)
        while len(self._made) > 1 and sum(map(len, self._made.values())) > KEPT:
            self._made.popitem(last=False)
        return made

    def _look(self, picture: Picture) -> torch.Tensor:
        self.looked += 1
        made = self._processor(picture.pixels, do_resize=False, input_data_format="channels_last", return_tensors="pt")
        weight = self._visual.patch_embed.proj.weight
        patches = made["pixel_values"].to(weight.device, weight.dtype)
        rows: torch.Tensor = self._visual(patches, grid_thw=made["image_grid_thw"].to(weight.device)).pooler_output
        return rows
