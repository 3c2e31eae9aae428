"""The byte ledger: what a model will take in memory, parameter by parameter, from its config alone. Knows no torch.

The same list is what a loaded model is walked against at boot (models/network.py), so a plan is never a guess.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as shown
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
FLOATS = ("bfloat16", "float16", "float32")
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
                f"{machine.name} has {machine.free:,} free, {needed - machine.free:,} too few; "
                "free some, ask for fewer tokens (ZOPILOT_KV_TOKENS), or take a larger card or a smaller model",
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
    except (OSError, ValueError, RecursionError) as error:
        raise Failure("model_broken", f"{name}: config.json cannot be read") from error
    return make(name, config, dtype)


def make(name: str, config: Mapping[str, Any], dtype: str) -> Plan:
    """The plan of a model with this config.json whose float parameters are `dtype`; Failure for an unknown kind."""
    specs: dict[str, Spec] = {}
    groups: dict[str, str] = {}
    try:
        sizes = _sizes(config)
        for group, parameter, spec in _parameters(sizes, dtype):
            specs[parameter], groups[parameter] = spec, group
        kv = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * ITEM_BYTES[dtype]
    except ValueError as error:
        raise Failure("model_unsupported", f"{name} cannot be planned: {error}") from error
    return Plan(name, specs, groups, kv)


@dataclass(frozen=True)
class _Sizes:
    """What of a config decides the shapes of parameters; `experts` is 0 for a dense model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int
    tied: bool


def _sizes(config: Mapping[str, Any]) -> _Sizes:
    """Read and check them; ValueError names what cannot be used."""

    def size(key: str, most: int = 1 << 24, default: int | None = None) -> int:
        value = default if config.get(key) is None else config[key]
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{key} is {shown(value)}, not a whole number from 1 to {most:,}")
        return value

    if not isinstance(config, Mapping):
        raise ValueError("the config is no JSON object")
    architectures = config.get("architectures")
    if architectures not in (["LlamaForCausalLM"], ["MixtralForCausalLM"]):
        raise ValueError(f"architectures is {shown(architectures)}; LlamaForCausalLM and MixtralForCausalLM are known")
    for key in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        if not isinstance(config.get(key), bool | None):
            raise ValueError(f"{key} is {shown(config[key])}, neither true nor false")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("layers with a bias are not known")
    if config.get("sliding_window") is not None:
        raise ValueError("attention within a sliding window is not known")
    experts = size("num_local_experts", most=1000) if architectures == ["MixtralForCausalLM"] else 0
    if experts:
        size("num_experts_per_tok", most=experts, default=2)  # transformers' own default
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    # transformers' Mixtral has a default of its own that is no number of heads, so there it must be told.
    kv_heads = size("num_key_value_heads", default=None if experts else heads)
    if heads % kv_heads:
        raise ValueError(f"{heads} heads cannot share the keys of {kv_heads}")
    return _Sizes(
        hidden=hidden,
        intermediate=size("intermediate_size"),
        layers=size("num_hidden_layers", most=1000),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size("head_dim", default=hidden // heads),
        vocabulary=size("vocab_size"),
        experts=experts,
        tied=bool(config.get("tie_word_embeddings")),
    )


def _parameters(sizes: _Sizes, dtype: str) -> Iterator[tuple[str, str, Spec]]:
    """Group, name and spec of every parameter, under transformers' names."""
    if not isinstance(dtype, str) or dtype not in FLOATS:
        raise ValueError(f"dtype is {shown(dtype)}; {', '.join(FLOATS)} are known")
    hidden = sizes.hidden
    yield "embeddings", "model.embed_tokens.weight", Spec(dtype, (sizes.vocabulary, hidden))
    if not sizes.tied:
        yield "embeddings", "lm_head.weight", Spec(dtype, (sizes.vocabulary, hidden))
    yield "norms", "model.norm.weight", Spec(dtype, (hidden,))
    for number in range(sizes.layers):
        layer = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield "norms", f"{layer}.{norm}.weight", Spec(dtype, (hidden,))
        yield from _attention(sizes, f"{layer}.self_attn")
        if sizes.experts:
            yield "router", f"{layer}.mlp.gate.weight", Spec(dtype, (sizes.experts, hidden))
            yield from _mlp("experts", f"{layer}.mlp.experts", sizes, sizes.experts)
        else:
            yield from _mlp("mlp", f"{layer}.mlp", sizes)


def _attention(sizes: _Sizes, path: str) -> Iterator[tuple[str, str, Spec]]:
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    yield from _nf4("attention", f"{path}.q_proj", queries, sizes.hidden)
    yield from _nf4("attention", f"{path}.k_proj", keys, sizes.hidden)
    yield from _nf4("attention", f"{path}.v_proj", keys, sizes.hidden)
    yield from _nf4("attention", f"{path}.o_proj", sizes.hidden, queries)


def _mlp(group: str, path: str, sizes: _Sizes, *stack: int) -> Iterator[tuple[str, str, Spec]]:
    yield from _nf4(group, f"{path}.gate_proj", sizes.intermediate, sizes.hidden, *stack)
    yield from _nf4(group, f"{path}.up_proj", sizes.intermediate, sizes.hidden, *stack)
    yield from _nf4(group, f"{path}.down_proj", sizes.hidden, sizes.intermediate, *stack)


def _nf4(group: str, path: str, rows: int, columns: int, *stack: int) -> Iterator[tuple[str, str, Spec]]:
    for part, spec in layout.specs(rows, columns, *stack).items():
        yield (group if part == "packed" else CONSTANTS), f"{path}.{part}", spec
