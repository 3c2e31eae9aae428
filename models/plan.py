"""The byte ledger: what a model will take in memory, parameter by parameter, from its config alone. Knows no torch.

The same list is what a loaded model is walked against at boot (models/network.py), so a plan is never a guess.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from models.catalog import Model
from models.failure import Failure
from models.machine import Machine
from models.nf4 import layout
from models.nf4.layout import ITEM_BYTES, Spec

GROUPS = ("experts", "mlp", "attention", "router", "norms", "embeddings", "quantisation constants")
CONSTANTS = GROUPS[-1]
# On a card: CUDA's context and libraries, bitsandbytes' scratch for the largest matrix, activations of a step,
# logits, fragmentation. An allowance until it is measured on a card; a CPU shares its memory with everything else.
WORKSPACE = {"cuda": 2 << 30, "cpu": 512 << 20}
DOCUMENT = 1620  # tokens: 1,500 of prompt and 120 of answer
LEAST_KV_TOKENS = 8192
MOST_KV_TOKENS_ON_CPU = 32_768


@dataclass(frozen=True)
class Plan:
    """A model's memory. `specs` holds every parameter by name, `groups` the group of each."""

    name: str
    specs: dict[str, Spec]
    groups: dict[str, str]
    kv_bytes_per_token: int

    @property
    def weights(self) -> int:
        return sum(spec.nbytes for spec in self.specs.values())

    @property
    def parameters(self) -> int:
        """Weights of the model, whatever bits they take."""
        return sum(
            prod(spec.shape) * (2 if name.endswith(".packed") else 1)
            for name, spec in self.specs.items()
            if self.groups[name] != CONSTANTS
        )

    @property
    def ledger(self) -> dict[str, int]:
        """Bytes by group, empty groups left out; they sum to `weights`."""
        found = dict.fromkeys(GROUPS, 0)
        for name, spec in self.specs.items():
            found[self.groups[name]] += spec.nbytes
        return {group: count for group, count in found.items() if count}

    def room(self, machine: Machine) -> int:
        """Tokens of KV cache that fit beside weights and workspace; negative where those alone do not fit."""
        return (machine.free - self.weights - WORKSPACE[machine.device]) // self.kv_bytes_per_token

    def budget(self, machine: Machine, wanted: int = 0) -> int:
        """Tokens of KV cache to serve with: `wanted`, or all that fit (0). Failure with the numbers if they do not."""
        room = self.room(machine)
        tokens = wanted or LEAST_KV_TOKENS
        if room < tokens:
            needed = self.weights + WORKSPACE[machine.device] + tokens * self.kv_bytes_per_token
            raise Failure(
                "memory_too_small",
                f"{self.name} needs {needed:,} bytes: {self.weights:,} of weights, {WORKSPACE[machine.device]:,} of "
                f"workspace, {tokens * self.kv_bytes_per_token:,} for {tokens:,} tokens of KV cache; "
                f"{machine.name} has {machine.free:,} free, {needed - machine.free:,} too few",
            )
        if wanted:
            return wanted
        return room if machine.device == "cuda" else min(room, MOST_KV_TOKENS_ON_CPU)


def of_row(model: Model) -> Plan:
    """The plan of a catalogue row as its publisher describes it."""
    return make(model.name, model.config, model.dtype)


def of_item(name: str, item: Path, dtype: str) -> Plan:
    """The plan of what is in the store; Failure where its config cannot be read."""
    try:
        config = json.loads((item / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise Failure("model_broken", f"{name}: config.json cannot be read") from error
    return make(name, config, dtype)


def make(name: str, config: Mapping[str, Any], dtype: str) -> Plan:
    """The plan of a model with this config.json whose float parameters are `dtype`; Failure for an unknown kind."""
    specs: dict[str, Spec] = {}
    groups: dict[str, str] = {}
    try:
        for group, parameter, spec in _parameters(config, dtype):
            specs[parameter], groups[parameter] = spec, group
        kv = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * _head_dim(config) * ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise Failure("model_unsupported", f"{name}: the config cannot be planned ({error})") from error
    return Plan(name, specs, groups, kv)


def _parameters(config: Mapping[str, Any], dtype: str) -> Iterator[tuple[str, str, Spec]]:
    """Group, name and spec of every parameter, under transformers' names."""
    (architecture,) = config["architectures"]
    if architecture not in ("LlamaForCausalLM", "MixtralForCausalLM"):
        raise ValueError(f"{architecture} is not known")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("layers with a bias are not known")
    hidden, tokens = config["hidden_size"], config["vocab_size"]
    yield "embeddings", "model.embed_tokens.weight", Spec(dtype, (tokens, hidden))
    if not config.get("tie_word_embeddings", False):
        yield "embeddings", "lm_head.weight", Spec(dtype, (tokens, hidden))
    yield "norms", "model.norm.weight", Spec(dtype, (hidden,))
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield "norms", f"{layer}.{norm}.weight", Spec(dtype, (hidden,))
        yield from _attention(config, f"{layer}.self_attn")
        if architecture == "MixtralForCausalLM":
            experts = config["num_local_experts"]
            yield "router", f"{layer}.mlp.gate.weight", Spec(dtype, (experts, hidden))
            yield from _mlp("experts", f"{layer}.mlp.experts", config, experts)
        else:
            yield from _mlp("mlp", f"{layer}.mlp", config)


def _attention(config: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, Spec]]:
    hidden, dim = config["hidden_size"], _head_dim(config)
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield from _nf4("attention", f"{path}.q_proj", queries, hidden)
    yield from _nf4("attention", f"{path}.k_proj", keys, hidden)
    yield from _nf4("attention", f"{path}.v_proj", keys, hidden)
    yield from _nf4("attention", f"{path}.o_proj", hidden, queries)


def _mlp(group: str, path: str, config: Mapping[str, Any], *stack: int) -> Iterator[tuple[str, str, Spec]]:
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    yield from _nf4(group, f"{path}.gate_proj", intermediate, hidden, *stack)
    yield from _nf4(group, f"{path}.up_proj", intermediate, hidden, *stack)
    yield from _nf4(group, f"{path}.down_proj", hidden, intermediate, *stack)


def _nf4(group: str, path: str, rows: int, columns: int, *stack: int) -> Iterator[tuple[str, str, Spec]]:
    for part, spec in layout.specs(rows, columns, *stack).items():
        yield (group if part == "packed" else CONSTANTS), f"{path}.{part}", spec


def _head_dim(config: Mapping[str, Any]) -> int:
    dim: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return dim
