"""The torch module of a model: built on the meta device with NF4 linear layers, filled from shards, counted in bytes.

Knows nothing of downloads, of the store's layout or of generation.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from models.failure import Failure
from models.nf4.linear import NF4Linear


def outline(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The float model on the meta device: names and shapes, no bytes."""
    with torch.device("meta"):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if stacked := [name for name, weight in network.named_parameters() if weight.dim() > 2]:
        # transformers 5 keeps experts as 3-D parameters; left alone they would stay unquantised without a word.
        raise Failure("model_unsupported", f"{stacked[0]} is a stack of experts; quantising it is not supported yet")
    return network


def build(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device, every linear layer but `lm_head` replaced by NF4Linear."""
    network = outline(config, dtype)
    for path in linear_paths(network):
        parent, _, name = path.rpartition(".")
        linear = network.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        with torch.device("meta"):
            packed = NF4Linear(linear.out_features, linear.in_features)
        setattr(network.get_submodule(parent), name, packed)
    network.requires_grad_(False)
    network.eval()
    return network


def linear_paths(network: nn.Module) -> list[str]:
    """Paths of the layers whose weight is quantised."""
    return [
        path
        for path, module in network.named_modules()
        if type(module) is nn.Linear and path != "lm_head" and module.bias is None
    ]


def fill(network: PreTrainedModel, shards: Iterable[Path], device: torch.device) -> None:
    """Give every parameter its tensor, one at a time; raise Failure if one is missing, left over or misshapen."""
    expected = {name: (weight.shape, weight.dtype) for name, weight in network.named_parameters()}
    for name, tensor in _tensors(shards):
        if name not in expected or (tensor.shape, tensor.dtype) != expected.pop(name):
            raise Failure("model_broken", f"the stored tensor {name} does not fit the model")
        parent, _, attribute = name.rpartition(".")
        # clone: the file is mapped, and what is served must not change or vanish with it.
        owned = nn.Parameter(tensor.to(device, copy=True), requires_grad=False)
        setattr(network.get_submodule(parent), attribute, owned)
    network.tie_weights()
    if missing := [name for name, weight in network.named_parameters() if weight.is_meta]:
        raise Failure("model_broken", f"the store has no tensor {missing[0]}")
    _fill_constants(network, device)


def _tensors(shards: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in shards:
        with safe_open(path, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors file is no mapping
                yield name, shard.get_tensor(name)


def _fill_constants(network: nn.Module, device: torch.device) -> None:
    """Rotary frequencies are not stored: such a module is made anew from the config."""
    for path, module in list(network.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, type(module)(module.config).to(device))


def resident_bytes(network: nn.Module) -> int:
    """Bytes of all parameters as they lie in memory, shared ones once."""
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage() for weight in network.parameters()}
    return sum(storage.nbytes() for storage in storages.values())
