"""models/nf4/experts.py: experts in four bits that compute what transformers computes from the dequantised stacks."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, OlmoeConfig, PreTrainedConfig, PreTrainedModel, Qwen3MoeConfig
from transformers.models.auto import AutoModelForCausalLM
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralTopKRouter

from models import network, shards
from models.failure import Failure
from models.nf4 import experts, layout, matrix
from models.nf4.experts import NF4Experts
from models.nf4.linear import NF4Weight

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
FAMILIES: list[PreTrainedConfig] = [
    MixtralConfig(**SIZES, num_local_experts=8),
    Qwen3MoeConfig(**SIZES, num_experts=8, moe_intermediate_size=192, norm_topk_prob=True),
    OlmoeConfig(**SIZES, num_experts=16),
]


def float_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    return model


def stored(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The float model's weights under the names of a checkpoint: an expert's matrices one by one."""
    found: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        path, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for expert, both in enumerate(weight):
                for part, half in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                    found[f"{path}.{expert}.{part}.weight"] = half
        elif last == "down_proj":
            found |= {f"{path}.{expert}.down_proj.weight": matrix for expert, matrix in enumerate(weight)}
        else:
            found[name] = weight
    return {name: weight.detach() for name, weight in found.items()}


def quantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with NF4 weights, filled as an import and a load would fill it."""
    ours = network.build(model.config, torch.float32)
    specs = network.specs(ours)
    tensors: dict[str, torch.Tensor] = {}
    weights = stored(model)
    wanted = network.needs(ours)
    assert {source.name: source.shape for source in wanted} == {k: tuple(v.shape) for k, v in weights.items()}
    for source in wanted:
        shards.put(source, weights[source.name], specs, tensors, CPU)
    assert tensors.keys() == specs.keys()
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        setattr(ours.get_submodule(path), last, nn.Parameter(tensor, requires_grad=False))
    network.fill_constants(ours, CPU)
    return ours


def damage(model: PreTrainedModel) -> None:
    """Replace every weight that is quantised by what its four bits stand for; gate and up each on their own."""

    def four_bits(weight: torch.Tensor) -> torch.Tensor:
        return matrix.dequantise(matrix.quantise(weight, CPU), torch.float32)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 3:
                halves = 2 if name.endswith("gate_up_proj") else 1
                for expert in weight:
                    expert.copy_(torch.cat([four_bits(half) for half in expert.chunk(halves)]))
            elif "self_attn" in name and weight.dim() == 2:
                weight.copy_(four_bits(weight))


def choices(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and which experts each router chose."""
    chosen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _input, output: chosen.append(output[2]))
        for path, module in model.named_modules()
        if path.endswith("mlp.gate")
    ]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    for hook in hooks:
        hook.remove()
    return logits, chosen


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_any_family_computes_what_its_dequantised_float_model_does(config: PreTrainedConfig) -> None:
    model = float_model(config)
    ours = quantised(model)
    ids = torch.randint(0, 128, (2, 33), generator=torch.Generator().manual_seed(0))
    undamaged, _ = choices(model, ids)
    damage(model)
    theirs, their_choices = choices(model, ids)
    logits, our_choices = choices(ours, ids)
    torch.testing.assert_close(logits, theirs, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits, undamaged, rtol=1e-2, atol=1e-2)
    assert len(our_choices) == 2
    assert all(torch.equal(a, b) for a, b in zip(our_choices, their_choices, strict=True))


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_no_expert_is_left_in_float(config: PreTrainedConfig) -> None:
    model = network.build(config, torch.bfloat16)
    for path, module in model.named_modules():
        assert isinstance(module, NF4Weight) or not experts.is_stack(module)
        if path.endswith("mlp.experts"):
            assert isinstance(module, NF4Experts)
    with torch.device("meta"):
        floats = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    stacks = [weight for weight in floats.values() if weight.dim() == 3]
    assert len(stacks) == 4
    in_experts = [weight for name, weight in model.named_parameters() if ".experts." in name]
    assert {weight.dtype for weight in in_experts} == {torch.uint8, torch.float32}
    assert sum(weight.nbytes for weight in in_experts if weight.dim() == 3) == sum(w.numel() for w in stacks) // 2
    routers = [weight for name, weight in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2
    assert {weight.dtype for weight in routers} == {torch.bfloat16}


def filled(count: int = 8, hidden: int = 64, intermediate: int = 128) -> tuple[NF4Experts, dict[str, torch.Tensor]]:
    """Experts and, by projection, the float stacks that they stand for."""
    generator = torch.Generator().manual_seed(count)
    module = NF4Experts(count, hidden, intermediate, nn.SiLU())
    stacks: dict[str, torch.Tensor] = {}
    for name in experts.PROJECTIONS:
        weight = getattr(module, name)
        floats = torch.randn(count, weight.rows, weight.columns, generator=generator) * 0.1
        for expert in range(count):
            packed = matrix.quantise(floats[expert], CPU)
            for part, tensor in packed._asdict().items():
                weight.get_parameter(part).data[expert] = tensor
            floats[expert] = matrix.dequantise(packed, torch.float32)
        stacks[name] = floats
    return module, stacks


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_the_definition(tokens: int, dtype: torch.dtype) -> None:
    """Of each token: the weighted sum over its experts of down(silu(gate x) * up x)."""
    module, stacks = filled()
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 64, generator=generator).to(dtype)
    weights, chosen = torch.topk(torch.rand(tokens, 8, generator=generator), 2)
    y = module(x, chosen, weights)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    expected = torch.zeros(tokens, 64)
    for token in range(tokens):
        for place in range(2):
            gate, up, down = (stacks[name][chosen[token, place]] for name in experts.PROJECTIONS)
            hidden = torch.nn.functional.silu(gate @ x[token].float()) * (up @ x[token].float())
            expected[token] += weights[token, place] * (down @ hidden)
    loose = dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=3e-2 if loose else 1e-4, atol=3e-2 if loose else 1e-5)


def test_only_the_chosen_experts_are_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never more than one matrix of them at a time."""
    module, _ = filled()
    seen: list[tuple[int, ...]] = []
    whole = matrix.multiply

    def spy(x: torch.Tensor, weight: matrix.Packed) -> torch.Tensor:
        seen.append(tuple(weight.packed.shape))
        return whole(x, weight)

    monkeypatch.setattr(experts, "multiply", spy)
    module(torch.randn(3, 64), torch.tensor([[0, 5], [5, 0], [0, 5]]), torch.full((3, 2), 0.5))
    assert seen == [(128, 32), (128, 32), (64, 64)] * 2


def test_an_expert_is_a_view_of_its_stack() -> None:
    module, _ = filled()
    for part, tensor in module.up_proj.matrix(3)._asdict().items():
        stack = module.up_proj.get_parameter(part)
        assert tensor.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr()
        assert torch.equal(tensor, stack[3])


def test_the_bytes_are_those_of_the_layout() -> None:
    module = NF4Experts(8, 64, 128, nn.SiLU())
    assert sum(weight.nbytes for weight in module.parameters()) == 2 * layout.nbytes(128, 64, 8) + layout.nbytes(
        64, 128, 8
    )


def test_experts_of_another_form_are_refused_by_name() -> None:
    config = GptOssConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_local_experts=2, head_dim=32)
    with pytest.raises(Failure) as refused:
        network.build(config, torch.float32)
    assert refused.value.code == "model_unsupported"
    assert refused.value.message.startswith("model.layers.0.mlp.experts cannot be quantised: GptOssExperts.")
    with torch.device("meta"), pytest.raises(ValueError, match=r"GptOssExperts\.has_bias is not False"):
        experts.pack(GptOssExperts(config))


class Clamped(MixtralExperts):
    """A gate of its own, as some families have: replaced by ours it would compute something else, silently."""

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return gate_up.clamp(-1, 1)


class Biased(MixtralExperts):
    def __init__(self, config: MixtralConfig) -> None:
        super().__init__(config)
        self.bias = nn.Parameter(torch.zeros(8))


@pytest.mark.parametrize(("module", "why"), [(Clamped, "has a gate of its own"), (Biased, "has other parameters than")])
def test_what_would_compute_something_else_is_refused(module: type[MixtralExperts], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        experts.pack(module(MixtralConfig(**SIZES)))


def test_a_module_that_says_nothing_of_its_form_is_refused() -> None:
    bare = nn.Module()
    bare.gate_up_proj = nn.Parameter(torch.zeros(2, 128, 64))
    bare.down_proj = nn.Parameter(torch.zeros(2, 64, 64))
    assert experts.is_stack(bare)
    with pytest.raises(ValueError, match=r"Module\.has_gate is not True"):
        experts.pack(bare)


def test_a_router_is_no_stack() -> None:
    assert not experts.is_stack(MixtralTopKRouter(MixtralConfig(**SIZES)))
