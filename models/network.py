"""The torch module of a model: built on the meta device with NF4 weights, filled from shards, proven against its plan.

Knows nothing of downloads, of the store's layout or of generation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from models import loading
from models.catalog import SEEING
from models.failure import Failure
from models.header import Entry
from models.nf4 import experts
from models.nf4.layout import Spec
from models.nf4.linear import NF4Linear, NF4Weight
from models.nf4.matrix import codes

ENCODERS: dict[str, dict[str, bool]] = {"BertModel": {"add_pooling_layer": False}, "DebertaModel": {}}


@dataclass(frozen=True)
class Need:
    """A tensor of the float checkpoint, and where it goes.

    `index` is None for one that stays as it is (`target` is a parameter), else the place in the stack of the
    NF4Weight at path `target`; () where that is a single matrix.
    """

    name: str
    shape: tuple[int, ...]
    target: str
    index: tuple[int, ...] | None


def build(config: PreTrainedConfig, dtype: torch.dtype, bits: int = 4) -> PreTrainedModel:
    """The model on the meta device. With 4 bits linear layers and experts are in NF4; routers, norms, biases,
    embeddings, `lm_head` and what sees stay float, and so does all with more."""
    with torch.device("meta"):
        try:
            network = _blank(config, dtype)
        except Exception as error:  # of many kinds: what a config may hold is transformers' to say
            raise Failure("model_unsupported", f"it cannot be built: {type(error).__name__}") from error
        if config.architectures not in (None, [type(network).__name__]):
            raise Failure(
                "model_unsupported",
                f"config.json names {config.architectures}, describes a {type(network).__name__}",
            )
        if getattr(network.get_output_embeddings(), "bias", None) is not None:
            raise Failure("model_unsupported", "its lm_head has a bias")
        if bits == 4:
            _pack(network)
    network.requires_grad_(False)
    network.eval()
    return network


def _blank(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model that writes, and may see, or one that reads alone, without the pooler that nothing here asks for."""
    auto: Any = AutoModelForImageTextToText if config.architectures == [SEEING] else AutoModelForCausalLM
    if (options := ENCODERS.get((config.architectures or [""])[0])) is not None:
        auto = AutoModel
    network: PreTrainedModel = auto.from_config(config, dtype=dtype, **(options or {}))
    return network


def _pack(network: PreTrainedModel) -> None:
    """Put modules that hold NF4 in place of those that are quantised."""
    for path, module in list(network.named_modules()):
        parent, _, name = path.rpartition(".")
        if experts.is_stack(module):
            try:
                setattr(network.get_submodule(parent), name, experts.pack(module))
            except ValueError as error:
                raise Failure("model_unsupported", f"{path} cannot be quantised: {error}") from error
        elif type(module) is nn.Linear and name != "lm_head" and not name.endswith("gate") and not sees(path):
            biased = None if module.bias is None else module.bias.dtype
            setattr(network.get_submodule(parent), name, NF4Linear(module.out_features, module.in_features, biased))


def sees(path: str) -> bool:
    """Whether a module is part of what turns pixels into tokens."""
    return path.startswith("model.visual.")


def needs(network: PreTrainedModel) -> list[Need]:
    """What a checkpoint must hold to fill `network`, under transformers' names; an expert's matrices one by one."""
    found: list[Need] = []
    packed = {path: module for path, module in network.named_modules() if isinstance(module, NF4Weight)}
    for name, weight in network.named_parameters():
        path, _, part = name.rpartition(".")
        if path not in packed or part == "bias":
            found.append(Need(name, tuple(weight.shape), name, None))
    for path, module in packed.items():
        parent, _, name = path.rpartition(".")
        for index in product(*map(range, module.stack)):
            stored = ".".join([parent, *map(str, index), name, "weight"])
            found.append(Need(stored, (module.rows, module.columns), path, index))
    return found


def specs(network: nn.Module) -> dict[str, Spec]:
    """Dtype and shape of every parameter."""
    return {
        name: Spec(str(weight.dtype).removeprefix("torch."), tuple(weight.shape))
        for name, weight in network.named_parameters()
    }


def fill(network: PreTrainedModel, shards: Iterable[Path], device: torch.device) -> loading.Report:
    """Give every parameter its tensor; raise Failure if one is missing, left over or misshapen."""
    expected = {name: (weight.shape, weight.dtype) for name, weight in network.named_parameters()}

    def admit(entry: Entry) -> None:
        if expected.pop(entry.name, None) != (entry.shape, entry.dtype):
            raise Failure("model_broken", f"the stored tensor {entry.name} does not fit the model")

    tensors, report = loading.load(shards, device, admit)
    for name, tensor in tensors.items():
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Parameter(tensor, requires_grad=False))
    network.tie_weights()
    if missing := [name for name, weight in network.named_parameters() if weight.is_meta]:
        raise Failure("model_broken", f"the store has no tensor {missing[0]}")
    fill_constants(network, device)
    return report


def fill_constants(network: nn.Module, device: torch.device) -> None:
    """Rotary frequencies are not stored: such a module is made anew from the config. Nor are the numbers of an
    encoder's positions, whose module holds weights besides."""
    for path, module in list(network.named_modules()):
        if isinstance(table := getattr(module, "position_ids", None), torch.Tensor):
            module.position_ids = torch.arange(table.shape[-1], device=device)[None]
            if hasattr(module, "token_type_ids"):
                module.token_type_ids = torch.zeros_like(module.position_ids)
        elif any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, type(module)(module.config).to(device))


def multiply_in(network: nn.Module, products: torch.dtype) -> None:
    """Have a CPU round both factors of every product with NF4 weights to `products`."""
    for module in network.modules():
        if isinstance(module, NF4Weight):
            module.products = products


def prove(network: nn.Module, planned: Mapping[str, Spec], device: torch.device) -> None:
    """Walk the loaded model, parameter by parameter; Failure names the first that is not what was planned."""
    require(specs(network), planned)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.device.type != device.type:
            raise Failure("model_broken", f"{name} lies on {tensor.device.type}, not on {device.type}")
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            raise Failure("model_broken", f"{name} keeps more memory alive than it needs")
    tables = codes(device)
    for path, module in network.named_modules():
        if isinstance(module, NF4Weight):
            for name, table in zip(("code", "code2"), tables, strict=True):
                if not bool((module.get_parameter(name) == table).all()):
                    raise Failure("model_broken", f"{path}.{name} is not the table of this NF4")


def require(found: Mapping[str, Spec], planned: Mapping[str, Spec]) -> None:
    """Failure names the first parameter that `found` and `planned` do not share."""
    for name in sorted(found.keys() | planned.keys()):
        if found.get(name) != planned.get(name):
            raise Failure("model_broken", f"{name} is {_tell(found.get(name))}, planned: {_tell(planned.get(name))}")


def _tell(spec: Spec | None) -> str:
    return f"{spec.dtype} {list(spec.shape)}" if spec else "absent"


def resident_bytes(network: nn.Module) -> int:
    """Bytes of all parameters as they lie in memory, shared ones once."""
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage() for weight in network.parameters()}
    return sum(storage.nbytes() for storage in storages.values())
