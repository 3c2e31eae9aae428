"""models/network.py: a module of NF4 layers that computes what the float model of the same weights would."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, PreTrainedModel

from models import catalog, manifest, network, plan, store
from models.failure import Failure
from models.nf4 import matrix
from models.nf4.layout import Spec
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


LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def test_build_replaces_the_linear_layers_and_holds_no_bytes(item: Path) -> None:
    model = built(item)
    packed = [path for path, module in model.named_modules() if isinstance(module, NF4Linear)]
    assert packed == [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in LINEAR]
    assert [path for path, module in model.named_modules() if type(module) is nn.Linear] == ["lm_head"]
    assert all(weight.is_meta and not weight.requires_grad for weight in model.parameters())
    assert all(buffer.is_meta for buffer in model.buffers())
    assert not model.training


def test_a_layer_keeps_its_bias_as_it_is() -> None:
    config = LlamaConfig.from_dict({**tied().to_dict(), "mlp_bias": True})
    model = network.build(config, torch.bfloat16)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, NF4Linear) and layer.bias is not None
    assert (layer.bias.dtype, layer.bias.shape) == (torch.bfloat16, (128,))
    needs = {need.name: need for need in network.needs(model) if "layers.0.mlp.up_proj" in need.name}
    assert {name.rpartition(".")[2]: need.index for name, need in needs.items()} == {"bias": None, "weight": ()}
    assert model.get_submodule("model.layers.0.self_attn.q_proj").bias is None


def test_the_sources_are_the_tensors_of_the_float_model() -> None:
    model = network.build(tied(), torch.bfloat16)
    real = {name: tuple(weight.shape) for name, weight in LlamaForCausalLM(tied()).named_parameters()}
    assert {source.name: source.shape for source in network.needs(model)} == real


def test_fill_leaves_nothing_on_meta(item: Path) -> None:
    model = built(item)
    report = network.fill(model, sorted(item.glob("*.safetensors")), CPU)
    assert report.bytes == network.resident_bytes(model)
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


def test_logits_are_those_of_the_dequantised_float_model(tiny: store.Loaded, tiny_folder: Path) -> None:
    float_model = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 1000, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = tiny.network(input_ids=ids).logits
        undamaged = float_model(input_ids=ids).logits
        for layer in (0, 1):
            for name in LINEAR:
                weight = float_model.get_parameter(f"model.layers.{layer}.{name}.weight")
                weight.copy_(matrix.dequantise(matrix.quantise(weight, CPU), torch.float32))
        theirs = float_model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, undamaged, rtol=1e-4, atol=1e-4)  # four bits do make a difference


def proof(loaded: store.Loaded, planned: dict[str, Spec] | None = None) -> str:
    with pytest.raises(Failure) as failure:
        network.prove(loaded.network, planned or network.specs(loaded.network), CPU)
    assert failure.value.code == "model_broken"
    return failure.value.message


def put(loaded: store.Loaded, name: str, tensor: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(loaded.network.get_submodule(path), attribute, nn.Parameter(tensor, requires_grad=False))


def test_a_loaded_model_is_what_was_planned(tiny: store.Loaded, tiny_mixtral: store.Loaded) -> None:
    for loaded in (tiny, tiny_mixtral):
        network.prove(
            loaded.network, plan.make("it", loaded.network.config.to_dict(), loaded.manifest.dtype).specs, CPU
        )


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.absmax2"])
def test_the_first_difference_is_named(tiny: store.Loaded, name: str) -> None:
    planned = network.specs(tiny.network)
    put(tiny, name, tiny.network.get_parameter(name).to(torch.bfloat16))
    assert proof(tiny, planned).startswith(f"{name} is bfloat16 ")


def test_a_parameter_that_is_not_planned_is_named(tiny: store.Loaded) -> None:
    planned = network.specs(tiny.network)
    tiny.network.register_parameter("adapter", nn.Parameter(torch.zeros(3)))
    assert proof(tiny, planned) == "adapter is float32 [3], planned: absent"


def test_a_planned_parameter_that_is_missing_is_named(tiny: store.Loaded) -> None:
    planned = network.specs(tiny.network) | {"model.a": Spec("uint8", (7,))}
    assert proof(tiny, planned) == "model.a is absent, planned: uint8 [7]"


def test_a_tensor_that_is_not_there_is_named(tiny: store.Loaded) -> None:
    name = "model.layers.0.mlp.up_proj.packed"
    put(tiny, name, tiny.network.get_parameter(name).to("meta"))
    assert proof(tiny) == f"{name} lies on meta, not on cpu"


def test_memory_that_a_view_keeps_alive_is_found(tiny: store.Loaded) -> None:
    put(tiny, "model.norm.weight", torch.zeros(1000)[:64])
    assert proof(tiny) == "model.norm.weight keeps more memory alive than it needs"


@pytest.mark.parametrize("table", ["code", "code2"])
def test_another_code_table_is_refused(tiny: store.Loaded, table: str) -> None:
    """The kernels have the table built in, so other values in the file would be ignored without a word."""
    name = f"model.layers.1.self_attn.k_proj.{table}"
    put(tiny, name, tiny.network.get_parameter(name) + 0.001)
    assert proof(tiny) == f"{name} is not the table of this NF4"


def test_a_config_that_names_one_class_and_describes_another_is_refused() -> None:
    """`model_type` picks the class; one that computes something else must not come in under an allowed name."""
    config = MistralConfig(architectures=["LlamaForCausalLM"], hidden_size=64, num_hidden_layers=1)
    with pytest.raises(Failure) as refused:
        network.build(config, torch.float32)
    assert refused.value.code == "model_unsupported"
    assert refused.value.message == "config.json names ['LlamaForCausalLM'], describes a MistralForCausalLM"


def test_a_config_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(Failure) as refused:
        network.build(LlamaConfig.from_dict({**tied().to_dict(), "hidden_act": "no-such"}), torch.float32)
    assert refused.value.code == "model_unsupported"
    assert refused.value.message == "it cannot be built: KeyError"
