"""What the sections measure: a Mixtral with random NF4 weights made on the device, and what computes its steps.

Knows neither what is measured nor how it is told.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MixtralConfig, PreTrainedModel

from benchmarks.card.limits import Limits
from models import catalog, network
from models.engine.cache import Cache
from models.engine.engine import Engine
from models.engine.forward import Forward, pick
from models.nf4.linear import NF4Weight
from models.nf4.matrix import codes
from models.plan import Plan

BEYOND = 1 << 20  # bytes: rotary frequencies and code tables, which no plan names; one float expert would be 117 MB


def silent(partial: dict[str, Any]) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Rig:
    """`room`: tokens of KV cache that fit; `forward` makes what computes steps; no section begins anything long after
    `ends` (on the monotonic clock), and `note` keeps what one has found so far."""

    network: PreTrainedModel
    planned: Plan
    limits: Limits
    room: int
    forward: Callable[[PreTrainedModel, Cache], Forward] = pick
    ends: float = math.inf
    note: Callable[[dict[str, Any]], None] = silent

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def config(self) -> Any:
        return self.network.config

    def cache(self, tokens: int) -> Cache:
        """One that no engine owns, full of random keys and values."""
        config, first = self.config, next(self.network.parameters())
        head_dim = config.hidden_size // config.num_attention_heads
        made = Cache(config.num_hidden_layers, config.num_key_value_heads, head_dim, first.dtype, first.device, tokens)
        made.pool.normal_()
        return made

    def engine(self, kv_tokens: int, step_tokens: int) -> Engine:
        """One whose rows never end by themselves, without drafts; its steps are the caller's to take."""
        return Engine(
            self.network,
            set(),
            kv_tokens=kv_tokens,
            step_tokens=step_tokens,
            queue_tokens=1 << 30,
            speculate=False,
            forward=self.forward,
        )


def config(layers: int) -> MixtralConfig:
    """Mixtral 8x7B's, with so many layers."""
    return MixtralConfig(**{**catalog.MIXTRAL.config, "num_hidden_layers": layers})


def make(config: MixtralConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights, spread like those of a trained model: each code equally likely, scales around 0.04."""
    model = network.build(config, dtype)
    generator = torch.Generator(device).manual_seed(0)
    constants = {"absmax2": torch.tensor(0.02), "offset": torch.tensor(0.04)}
    constants |= dict(zip(("code", "code2"), codes(device), strict=True))
    for path, module in model.named_modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            made = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            if not isinstance(module, NF4Weight):
                made = made.fill_(1) if made.dim() == 1 else made.normal_(std=0.02, generator=generator)
            elif name in ("packed", "absmax"):
                made.random_(0, 256, generator=generator)
            else:
                made.copy_(constants[name])
            setattr(model.get_submodule(path), name, nn.Parameter(made, requires_grad=False))
    network.fill_constants(model, device)
    return model


def prove(model: PreTrainedModel, planned: Plan, device: torch.device, before: int) -> dict[str, Any]:
    """Every parameter is the planned one, and the card was asked for no more bytes than these take.

    `before`: what requested() said before the model was made. Failure names a parameter that is not as planned.
    """
    network.prove(model, planned.specs, device)
    resident = network.resident_bytes(model)
    taken = requested(device) - before if device.type == "cuda" else resident
    return {
        "planned_bytes": planned.weights,
        "resident_bytes": resident,
        "taken_bytes": taken,
        "holds": resident == planned.weights and 0 <= taken - planned.weights < BEYOND,
    }


def requested(device: torch.device) -> int:
    """Bytes that tensors on a card ask for, without what the allocator rounds up to; 0 elsewhere."""
    return int(torch.cuda.memory_stats(device)["requested_bytes.all.current"]) if device.type == "cuda" else 0
