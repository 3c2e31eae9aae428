"""A GGUF file of the llama family read tensor by tensor under transformers' names. Knows nothing of tokenizers."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import PreTrainedConfig

# Left: names of the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md); right: transformers' Llama.
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def name_of(gguf_name: str) -> str:
    """transformers' name of a tensor; KeyError for one that the llama family does not have."""
    stem = gguf_name.removesuffix(".weight")
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        return f"model.layers.{found[1]}.{BLOCK[found[2]]}.weight"
    return f"{TOP[stem]}.weight"


def open_gguf(
    file: Path, config: PreTrainedConfig
) -> tuple[dict[str, tuple[int, ...]], dict[str, int], Callable[[str], torch.Tensor]]:
    """Shapes of all tensors, their bytes in the file, and a function that gives one of them in fp32."""
    tensors = {name_of(tensor.name): tensor for tensor in GGUFReader(file).tensors}
    # GGUF lists dimensions innermost first.
    shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}
    sizes = {name: int(tensor.n_bytes) for name, tensor in tensors.items()}

    def read(name: str) -> torch.Tensor:
        tensor = tensors[name]
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).reshape(shapes[name])
        if name.endswith("q_proj.weight"):
            return unpermute(weight, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return unpermute(weight, config.num_key_value_heads)
        return weight

    return shapes, sizes, read


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo the row order of llama.cpp's converter: rotary pairs lie side by side there, half a head apart here."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
