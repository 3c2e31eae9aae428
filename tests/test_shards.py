"""models/shards.py: what goes into which file, and what does not go in at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from models import catalog, manifest, network, shards
from models.failure import Failure
from models.network import Need

CPU = torch.device("cpu")


def plain(*names: str) -> list[Need]:
    return [Need(name, (4,), name, None) for name in names]


def test_there_is_one_file_a_layer() -> None:
    needs = plain("model.norm.weight", "model.layers.10.a", "model.layers.2.a", "model.layers.10.b", "lm_head.weight")
    assert [(file, [need.name for need in found]) for file, found in shards.by_layer(needs)] == [
        ("layer-002.safetensors", ["model.layers.2.a"]),
        ("layer-010.safetensors", ["model.layers.10.a", "model.layers.10.b"]),
        ("outside-layers.safetensors", ["model.norm.weight", "lm_head.weight"]),
    ]
    assert shards.by_layer([]) == []


def test_every_tensor_is_in_its_file(tiny_mixtral_home: Path) -> None:
    item = manifest.locate(catalog.MIXTRAL, tiny_mixtral_home / "models")
    for file in item.glob("*.safetensors"):
        for name in load_file(file):
            assert shards.by_layer(plain(name))[0][0] == file.name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_weight_that_is_no_number_is_refused_by_name(name: str, value: float) -> None:
    """One NaN would make a whole matrix NaN, since all its scales share one mean."""
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
    model = network.build(config, torch.float32)
    (need,) = [need for need in network.needs(model) if need.name == name]
    weight = torch.ones(need.shape)
    weight.view(-1)[17] = value
    with pytest.raises(Failure) as refused:
        shards.put(need, weight, network.specs(model), {}, CPU)
    assert refused.value.code == "source_invalid"
    assert refused.value.message == f"{name} of the source holds NaN or infinity"
