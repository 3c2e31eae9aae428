"""Mixtral's layers by our own kernels: a flat batch of tokens becomes hidden states without waiting for the host.

Knows its network's weights and the cache's pool; which tiles are used comes with the path. Knows nothing of graphs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import MixtralForCausalLM, PreTrainedModel

from models.engine.cache import Cache
from models.engine.kernels import attend, rotate, route, settle
from models.engine.varlen import Pieces
from models.nf4 import products
from models.nf4.linear import NF4Weight
from models.nf4.matrix import Packed, dense
from models.nf4.paths import Path
from models.nf4.slices import Slices


@dataclass(frozen=True)
class Step:
    """What a step reads, on the device, int32: `ids`, `positions` and `slots` [T], `tables` [T, blocks], `live` [1].

    Rows from `live` on are padding. The rows of `pieces` read their prompts in one go; then only the `others` read
    `tables`, which has a line for each of these.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    tables: torch.Tensor
    live: torch.Tensor
    pieces: Pieces | None = None
    others: torch.Tensor | None = None


class Layer(NamedTuple):
    before: torch.Tensor
    after: torch.Tensor
    qkv: list[Packed]
    output: list[Packed]
    router: torch.Tensor
    gate: Packed
    up: Packed
    down: Packed


def computes(network: PreTrainedModel) -> bool:
    """Whether this network has the form that the kernels are written for."""
    config = network.config
    return (
        isinstance(network, MixtralForCausalLM)
        and config.hidden_act == "silu"
        and config.sliding_window is None
        and config.num_local_experts & (config.num_local_experts - 1) == 0
    )


class Decoder:
    """A network's layers over one cache."""

    def __init__(self, network: PreTrainedModel, cache: Cache) -> None:
        config = network.config
        self._model = network.model
        self._head = network.lm_head.weight
        self._cache = cache
        self._heads: int = config.num_attention_heads
        self._scaling: float = network.model.layers[0].self_attn.scaling
        self._eps: float = config.rms_norm_eps
        self._top_k: int = config.num_experts_per_tok
        self._experts: int = config.num_local_experts
        self._layers = [_layer(each) for each in network.model.layers]
        self._slices = Slices(self._head.dtype, self._head.device)

    def __call__(self, step: Step, path: Path | None) -> torch.Tensor:
        """Normed hidden states [T, hidden]; by slices of whole matrices where there is no path."""
        halves, slices = path is not None, self._slices
        residual = self._model.embed_tokens(step.ids)
        cos, sin = (each[0] for each in self._model.rotary_emb(residual, step.positions[None]))
        normed = settle(None, residual, self._layers[0].before, self._eps, halves=halves)
        for at, layer in enumerate(self._layers):
            keys, values = self._cache.pool[at]
            made = products.project(normed, layer.qkv, path.project) if path else slices.project(normed, layer.qkv)
            queries = rotate(made, cos, sin, step.slots, keys, values, self._heads, step.live)
            read = self._attend(queries, keys, values, step, path)
            made = products.project(read, layer.output, path.output) if path else slices.project(read, layer.output)
            normed, chosen, shares = route(
                made, residual, layer.after, self._eps, layer.router, self._top_k, step.live, halves=halves
            )
            made = self._mix(normed, chosen, layer, path)
            last = at + 1 == len(self._layers)
            weight = self._model.norm.weight if last else self._layers[at + 1].before
            normed = settle(made, residual, weight, self._eps, shares=shares, halves=halves and not last)
        return normed

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, hidden] → [n, vocabulary]."""
        return dense(hidden, self._head)

    def _attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, path: Path | None
    ) -> torch.Tensor:
        parts = path.parts if path else 2
        if step.pieces is None:
            return attend(
                queries, keys, values, step.tables, step.positions, self._scaling, parts, step.live,
                halves=path is not None,
            )  # fmt: skip
        output = torch.empty_like(queries)
        output[step.pieces.rows] = step.pieces.attend(queries, keys, values, self._scaling)
        if step.others is not None:
            read = attend(
                queries[step.others], keys, values, step.tables, step.positions[step.others], self._scaling, parts,
                step.live, halves=False,
            )  # fmt: skip
            output[step.others] = read.view(-1, *output.shape[1:])
        flat = output.flatten(1)
        return products.halve(flat) if path else flat

    def _mix(self, x: torch.Tensor, chosen: torch.Tensor, layer: Layer, path: Path | None) -> torch.Tensor:
        if path is None:
            members = products.gather(chosen, self._experts)
            return self._slices.experts(x, members, layer.gate, layer.up, layer.down)
        members = products.gather(chosen, self._experts) if path.gathered else products.scatter(chosen)
        hidden = products.gate_up(x, layer.gate, layer.up, members, path.gate_up)
        return products.down(hidden, layer.down, members, path.down)


def _layer(layer: nn.Module) -> Layer:
    """A layer's tensors, where they lie."""

    def packed(name: str) -> Packed:
        module = layer.get_submodule(name)
        assert isinstance(module, NF4Weight)
        return module.matrix()

    return Layer(
        layer.get_parameter("input_layernorm.weight"),
        layer.get_parameter("post_attention_layernorm.weight"),
        [packed(f"self_attn.{name}_proj") for name in "qkv"],
        [packed("self_attn.o_proj")],
        layer.get_parameter("mlp.gate.weight"),
        *(packed(f"mlp.experts.{name}_proj") for name in ("gate", "up", "down")),
    )
