"""Products of a layer one by one: our kernels beside bitsandbytes', in bytes of weights a second."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import silu
from transformers import PreTrainedModel

from benchmarks.card.check import distance
from benchmarks.card.clock import captured, timed
from benchmarks.card.rig import Rig
from models.nf4 import paths, products
from models.nf4.linear import NF4Weight
from models.nf4.matrix import Packed, dense, dequantise, multiply
from models.nf4.paths import Path, Tile

KINDS = ("project", "output", "gate_up", "down")
SIZES = (1, 2, 4, 8, 16, 32, 64)
LAYERS = 4  # taken in turn: together larger than any cache


@dataclass(frozen=True)
class Weights:
    """A layer's matrices: q, k and v, the output, and the stacks of all experts."""

    project: list[Packed]
    output: list[Packed]
    gate: Packed
    up: Packed
    down: Packed


@dataclass(frozen=True)
class Given:
    """Inputs of a layer's products: x [T, hidden], for each assignment [T*k, intermediate]; both in halves as well.

    `groups`: each expert that is met, and which assignments are its own."""

    x: torch.Tensor
    hidden: torch.Tensor
    halves: torch.Tensor
    hidden_halves: torch.Tensor
    members: products.Members
    groups: list[tuple[int, torch.Tensor]]


@torch.inference_mode()
def measure(rig: Rig, *, sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """For each product and each number of tokens: seconds, bytes a second, their share of the copy's rate, by three
    ways: ours, bitsandbytes' own (gemm_4bit), and its dequantised matrices multiplied by cuBLAS.

    Launched as CUDA graphs over several layers; `error` is ‖ours - theirs‖ / ‖theirs‖. For theirs the host knows
    which expert has which tokens, which in an engine it would have to wait for; ours find out by themselves.
    """
    layers = layers_of(rig.network)
    found: list[dict[str, Any]] = []
    for tokens in sizes:
        path = path_of(rig.device, tokens)
        given = draw(rig, tokens, path.gathered)
        for kind in KINDS:
            ways: dict[str, Callable[[Weights], Any]] = {
                "ours": partial(ours, kind, given=given, tile=getattr(path, kind)),
                "bitsandbytes": partial(theirs, kind, given=given, product=multiply),
                "dequantised": partial(theirs, kind, given=given, product=by_dequantising),
            }
            made = whole(kind, ways["ours"](layers[0]), given)
            error = distance(made, torch.cat(ways["bitsandbytes"](layers[0]), -1 if kind == "project" else 0).float())
            count = read_bytes(kind, layers[0], given)
            for way, run in ways.items():
                seconds = over(rig.device, layers, run)
                row = {"operation": kind, "tokens": tokens, "way": way, "seconds": seconds, "bytes": count}
                row |= {"bytes_per_second": count / seconds, "fraction": count / seconds / rig.limits.bandwidth}
                found.append(row | ({"error": error} if way == "ours" else {}))
        rig.note({"rows": found})
    return {"rows": found}


def capability(device: torch.device) -> tuple[int, int]:
    """The card's; without one what an unknown card gets."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def layers_of(network: PreTrainedModel) -> list[Weights]:
    """The first LAYERS layers' matrices, where they lie."""

    def packed(name: str) -> Packed:
        module = network.get_submodule(f"model.layers.{name}")
        assert isinstance(module, NF4Weight)
        return module.matrix()

    return [
        Weights(
            [packed(f"{at}.self_attn.{name}_proj") for name in "qkv"],
            [packed(f"{at}.self_attn.o_proj")],
            *(packed(f"{at}.mlp.experts.{name}_proj") for name in ("gate", "up", "down")),
        )
        for at in range(min(LAYERS, network.config.num_hidden_layers))
    ]


def draw(rig: Rig, tokens: int, gathered: bool) -> Given:
    """Random inputs, and random experts, no expert twice for a token."""
    config = rig.config
    dtype = next(rig.network.parameters()).dtype
    top = config.num_experts_per_tok
    x = torch.randn(tokens, config.hidden_size, device=rig.device).to(dtype)
    hidden = torch.randn(tokens * top, config.intermediate_size, device=rig.device).to(dtype)
    generator = torch.Generator().manual_seed(tokens)
    chosen = torch.rand(tokens, config.num_local_experts, generator=generator).topk(top).indices
    groups = [(each, (chosen.flatten() == each).nonzero()[:, 0].to(rig.device)) for each in chosen.unique().tolist()]
    there = chosen.int().to(rig.device)
    members = products.gather(there, config.num_local_experts) if gathered else products.scatter(there)
    return Given(x, hidden, products.halve(x), products.halve(hidden), members, groups)


def ours(kind: str, layer: Weights, given: Given, tile: Tile) -> torch.Tensor:
    """A product by our kernels, as they leave it: parts, or in halves."""
    if kind == "gate_up":
        return products.gate_up(given.halves, layer.gate, layer.up, given.members, tile)
    if kind == "down":
        return products.down(given.hidden_halves, layer.down, given.members, tile)
    return products.project(given.halves, getattr(layer, kind), tile)


def theirs(
    kind: str, layer: Weights, given: Given, product: Callable[[torch.Tensor, Packed], torch.Tensor]
) -> list[torch.Tensor]:
    """The same, matrix by matrix; for experts, expert by expert in the order of `groups`."""
    top = given.members.chosen.shape[1]
    if kind == "down":
        return [product(given.hidden[mine], one(layer.down, expert)) for expert, mine in given.groups]
    if kind == "gate_up":
        seen = [(expert, given.x[mine // top]) for expert, mine in given.groups]
        return [silu(product(x, one(layer.gate, expert))) * product(x, one(layer.up, expert)) for expert, x in seen]
    return [product(given.x, matrix) for matrix in getattr(layer, kind)]


def whole(kind: str, made: torch.Tensor, given: Given) -> torch.Tensor:
    """What ours() has left, in fp32, in the form and order of theirs(), joined."""
    flat = made.movedim(0, -1).flatten(1) if kind == "gate_up" else made.sum(0)
    return (
        flat.float() if kind in ("project", "output") else flat[torch.cat([mine for _, mine in given.groups])].float()
    )


def by_dequantising(x: torch.Tensor, weight: Packed) -> torch.Tensor:
    return dense(x, dequantise(weight, x.dtype))


def one(stack: Packed, expert: int) -> Packed:
    return Packed(*(tensor[expert] for tensor in stack))


def read_bytes(kind: str, layer: Weights, given: Given) -> int:
    """Bytes of the weights that are read: codes and both levels of scales, of the experts that are met."""
    if kind in ("project", "output"):
        return sum(_nbytes(matrix) for matrix in getattr(layer, kind))
    stacks = (layer.gate, layer.up) if kind == "gate_up" else (layer.down,)
    return sum(_nbytes(stack) // stack.packed.shape[0] * len(given.groups) for stack in stacks)


def _nbytes(weight: Packed) -> int:
    return weight.packed.nbytes + weight.absmax.nbytes + weight.absmax2.nbytes


def over(device: torch.device, layers: list[Weights], run: Callable[[Weights], Any], repeats: int = 10) -> float:
    """Seconds that `run` takes for one layer, all of them taken in turn."""
    replay = captured(device, lambda: [run(layer) for layer in layers])
    return timed(device, replay, repeats).seconds / len(layers)


def path_of(device: torch.device, tokens: int) -> Path:
    """The table's path for a step of so many tokens."""
    path = paths.choose(capability(device), tokens)
    assert path is not None
    return path
