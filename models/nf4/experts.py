"""A layer's experts in NF4: takes the place of a transformers module that keeps them as float stacks.

transformers 5 holds experts as two 3-D parameters, which bitsandbytes' own integration leaves in bf16 without a word.
"""

import torch
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from models.nf4.linear import NF4Weight
from models.nf4.matrix import multiply

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class NF4Experts(nn.Module):
    """Three stacks, one matrix an expert each: gate and up [intermediate, hidden], down [hidden, intermediate]."""

    def __init__(self, experts: int, hidden: int, intermediate: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = NF4Weight(intermediate, hidden, experts)
        self.up_proj = NF4Weight(intermediate, hidden, experts)
        self.down_proj = NF4Weight(hidden, intermediate, experts)
        self.act_fn = activation

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x [T, hidden]; `chosen` [T, k] experts of each token and their `weights` [T, k] → [T, hidden].

        The reference path: one expert after the other, no more than one matrix ever dequantised.
        """
        result = torch.zeros_like(x)
        for expert in sorted(set(chosen.flatten().tolist())):
            token, place = torch.where(chosen == expert)
            seen = x[token]
            gate = multiply(seen, self.gate_proj.matrix(expert))
            up = multiply(seen, self.up_proj.matrix(expert))
            down = multiply(self.act_fn(gate) * up, self.down_proj.matrix(expert))
            result.index_add_(0, token, (down * weights[token, place, None]).to(x.dtype))
        return result


def is_stack(module: nn.Module) -> bool:
    """Whether a module keeps experts as 3-D parameters."""
    return any(weight.dim() == 3 for weight in module.parameters(recurse=False))


def pack(module: nn.Module) -> NF4Experts:
    """An empty NF4Experts in the form of `module`; ValueError where it computes something else than we do.

    The attributes are those that transformers' `use_experts_implementation` puts on every such module.
    """
    form = {
        "has_gate": True,
        "has_bias": False,
        "has_post_expert_norm": False,
        "is_transposed": False,
        "is_concatenated": True,
    }
    for name, expected in form.items():
        if getattr(module, name, None) is not expected:
            raise ValueError(f"{type(module).__name__}.{name} is not {expected}")
    if getattr(type(module), "_apply_gate", None) is not _default_apply_gate:
        raise ValueError(f"{type(module).__name__} has a gate of its own")
    gate_up, down = module.get_parameter("gate_up_proj"), module.get_parameter("down_proj")
    experts, hidden, intermediate = down.shape
    if len(list(module.parameters())) != 2 or gate_up.shape != (experts, 2 * intermediate, hidden):
        raise ValueError(f"{type(module).__name__} has other parameters than gate_up_proj and down_proj")
    activation = module.act_fn
    assert isinstance(activation, nn.Module)
    return NF4Experts(experts, hidden, intermediate, activation)
