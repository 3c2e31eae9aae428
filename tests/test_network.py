"""models/network.py: a module of NF4 layers that computes what the float model of the same weights would."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, MixtralConfig, PreTrainedModel

from models import catalog, manifest, network, store
from models.failure import Failure
from models.nf4 import layout
from models.nf4.linear import NF4Linear

CPU = torch.device("cpu")


@pytest.fixture
def item(tiny_home: Path) -> Path:
    """The tiny item; only read."""
    return manifest.locate(catalog.SMOLLM2, tiny_home / "models")


def tensors_of(item: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(item.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def built(item: Path) -> PreTrainedModel:
    return network.build(AutoConfig.from_pretrained(item), torch.float32)


def tied() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )


def test_lm_head_and_nothing_else_stays_a_float_layer() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(tied())
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert network.linear_paths(model) == [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in parts]


def test_a_layer_with_a_bias_is_left_alone() -> None:
    assert network.linear_paths(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, bias=False))) == ["1"]


def test_build_replaces_the_linear_layers_and_holds_no_bytes(item: Path) -> None:
    model = built(item)
    packed = [path for path, module in model.named_modules() if isinstance(module, NF4Linear)]
    assert len(packed) == 14
    assert network.linear_paths(model) == []
    assert type(model.get_submodule("lm_head")) is nn.Linear
    assert all(weight.is_meta and not weight.requires_grad for weight in model.parameters())
    assert all(buffer.is_meta for buffer in model.buffers())
    assert not model.training


def test_the_outline_has_the_names_and_shapes_of_the_float_model() -> None:
    model = network.outline(tied(), torch.bfloat16)
    real = {name: tuple(weight.shape) for name, weight in LlamaForCausalLM(tied()).named_parameters()}
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == real
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert all(weight.is_meta for weight in model.parameters())


def test_fill_leaves_nothing_on_meta(item: Path) -> None:
    model = built(item)
    network.fill(model, sorted(item.glob("*.safetensors")), CPU)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    stored = tensors_of(item)
    assert {name for name, _ in model.named_parameters()} == set(stored)
    assert all(torch.equal(weight, stored[name]) for name, weight in model.named_parameters())


def test_what_is_filled_does_not_lie_in_the_file(item: Path, tmp_path: Path) -> None:
    """The file may be replaced under a running service."""
    shard = tmp_path / "all.safetensors"
    save_file(tensors_of(item), shard)
    model = built(item)
    network.fill(model, [shard], CPU)
    before = model.get_parameter("model.norm.weight").clone()
    with shard.open("r+b") as file:
        file.write(bytes(shard.stat().st_size))
    assert torch.equal(model.get_parameter("model.norm.weight"), before)


def refused(item: Path, shards: list[Path]) -> str:
    with pytest.raises(Failure) as failure:
        network.fill(built(item), shards, CPU)
    assert failure.value.code == "model_broken"
    return failure.value.message


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.offset"]
)
def test_a_missing_tensor_is_refused(item: Path, tmp_path: Path, name: str) -> None:
    tensors = tensors_of(item)
    del tensors[name]
    save_file(tensors, tmp_path / "x.safetensors")
    assert name in refused(item, [tmp_path / "x.safetensors"])


@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.offset", "lm_head.bias", "x"])
def test_an_extra_tensor_is_refused(item: Path, tmp_path: Path, name: str) -> None:
    save_file(tensors_of(item) | {name: torch.zeros(())}, tmp_path / "x.safetensors")
    assert name in refused(item, [tmp_path / "x.safetensors"])


def test_a_tensor_that_comes_twice_is_refused(item: Path, tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(64)}, tmp_path / "x.safetensors")
    assert "model.norm.weight" in refused(item, [*sorted(item.glob("*.safetensors")), tmp_path / "x.safetensors"])


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.packed"])
def test_a_misshapen_tensor_is_refused(item: Path, tmp_path: Path, name: str) -> None:
    tensors = tensors_of(item)
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, tmp_path / "x.safetensors")
    assert name in refused(item, [tmp_path / "x.safetensors"])


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.absmax2"])
def test_a_tensor_of_another_dtype_is_refused(item: Path, tmp_path: Path, name: str) -> None:
    tensors = tensors_of(item)
    tensors[name] = tensors[name].bfloat16()
    save_file(tensors, tmp_path / "x.safetensors")
    assert name in refused(item, [tmp_path / "x.safetensors"])


def test_tied_weights_are_counted_once() -> None:
    once = LlamaForCausalLM(tied())
    twice = LlamaForCausalLM(LlamaConfig.from_dict({**tied().to_dict(), "tie_word_embeddings": False}))
    assert network.resident_bytes(once) == sum(weight.nbytes for weight in once.parameters())
    assert network.resident_bytes(twice) == network.resident_bytes(once) + 128 * 64 * 4


def test_resident_bytes_are_those_of_the_storage() -> None:
    """A view keeps its whole storage alive."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(1000)[:10])
    assert network.resident_bytes(module) == 4000


def test_the_loaded_network_ties_its_head(tiny: store.Loaded) -> None:
    head = tiny.network.get_parameter("lm_head.weight")
    assert head.data_ptr() == tiny.network.get_parameter("model.embed_tokens.weight").data_ptr()


def test_rotary_constants_are_those_of_a_new_model(tiny: store.Loaded) -> None:
    config = tiny.network.config
    assert isinstance(config, LlamaConfig)
    fresh = dict(LlamaForCausalLM(config).named_buffers())
    found = dict(tiny.network.named_buffers())
    assert found.keys() == fresh.keys()
    assert "model.rotary_emb.inv_freq" in found
    for name, buffer in found.items():
        assert torch.equal(buffer, fresh[name])


def test_rotary_constants_follow_the_config(item: Path) -> None:
    config = AutoConfig.from_pretrained(item)
    config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0}
    model = network.build(config, torch.float32)
    network.fill(model, sorted(item.glob("*.safetensors")), CPU)
    theirs = LlamaForCausalLM(config).get_buffer("model.rotary_emb.inv_freq")
    assert torch.equal(model.get_buffer("model.rotary_emb.inv_freq"), theirs)
    assert theirs[0].item() == pytest.approx(0.25)


def test_stacked_experts_are_refused() -> None:
    config = MixtralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
    )
    for make in (network.outline, network.build):
        with pytest.raises(Failure) as refusal:
            make(config, torch.bfloat16)
        assert refusal.value.code == "model_unsupported"
        assert "experts" in refusal.value.message


def test_logits_are_those_of_the_dequantised_float_model(tiny: store.Loaded, tiny_folder: Path) -> None:
    float_model = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 1000, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = tiny.network(input_ids=ids).logits
        undamaged = float_model(input_ids=ids).logits
        for path in network.linear_paths(float_model):
            packed = layout.quantise(float_model.get_parameter(f"{path}.weight"))
            float_model.get_parameter(f"{path}.weight").copy_(layout.dequantise(packed, torch.float32))
        theirs = float_model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, undamaged, rtol=1e-4, atol=1e-4)  # four bits do make a difference
