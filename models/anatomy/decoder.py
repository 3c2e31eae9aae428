"""Llama, Mixtral and the text part of Qwen2.5-VL: what reads and writes text, dense or with experts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models.anatomy.sizes import Anatomy, Form, Parameter, flag, size


@dataclass(frozen=True)
class Sizes:
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


def describe(config: Mapping[str, Any], form: Form) -> Anatomy:
    """Every parameter; ValueError names what of the config cannot be used."""
    sizes = read(config)
    return Anatomy(list(parameters(sizes, form)), kept(sizes))


def kept(sizes: Sizes) -> int:
    """Numbers of keys and values that are kept of a token."""
    return 2 * sizes.layers * sizes.kv_heads * sizes.head_dim


def read(config: Mapping[str, Any]) -> Sizes:
    """The sizes that a config tells; ValueError names what of it cannot be used."""
    tied, *biases = [flag(config, key) for key in ("tie_word_embeddings", "attention_bias", "mlp_bias")]
    if any(biases):
        raise ValueError("layers with a bias are not known")
    if config.get("sliding_window") is not None:
        raise ValueError("attention within a sliding window is not known")
    experts = 0
    if config.get("architectures") == ["MixtralForCausalLM"]:
        experts = size(config, "num_local_experts", most=1000)
        size(config, "num_experts_per_tok", most=experts, default=2)  # transformers' own default
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    # transformers' Mixtral has a default of its own that is no number of heads, so there it must be told.
    kv_heads = size(config, "num_key_value_heads", default=None if experts else heads)
    if heads % kv_heads:
        raise ValueError(f"{heads} heads cannot share the keys of {kv_heads}")
    return Sizes(
        hidden=hidden,
        intermediate=size(config, "intermediate_size"),
        layers=size(config, "num_hidden_layers", most=1000),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size(config, "head_dim", default=hidden // heads),
        vocabulary=size(config, "vocab_size"),
        experts=experts,
        tied=tied,
    )


def parameters(sizes: Sizes, form: Form, stem: str = "model", biased: bool = False) -> Iterator[Parameter]:
    """All of them under `stem`, and `lm_head`; `biased`: queries, keys and values have a bias."""
    hidden = sizes.hidden
    yield form.plain("embeddings", f"{stem}.embed_tokens.weight", sizes.vocabulary, hidden)
    if not sizes.tied:
        yield form.plain("embeddings", "lm_head.weight", sizes.vocabulary, hidden)
    yield form.plain("norms", f"{stem}.norm.weight", hidden)
    for number in range(sizes.layers):
        layer = f"{stem}.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield form.plain("norms", f"{layer}.{norm}.weight", hidden)
        yield from _attention(sizes, form, f"{layer}.self_attn", biased)
        if sizes.experts:
            yield form.plain("router", f"{layer}.mlp.gate.weight", sizes.experts, hidden)
            yield from _mlp("experts", f"{layer}.mlp.experts", sizes, form, sizes.experts)
        else:
            yield from _mlp("mlp", f"{layer}.mlp", sizes, form)


def _attention(sizes: Sizes, form: Form, path: str, biased: bool) -> Iterator[Parameter]:
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield from form.matrix("attention", f"{path}.{name}_proj", rows, sizes.hidden)
        if biased:
            yield form.plain("attention", f"{path}.{name}_proj.bias", rows)
    yield from form.matrix("attention", f"{path}.o_proj", sizes.hidden, queries)


def _mlp(group: str, path: str, sizes: Sizes, form: Form, *stack: int) -> Iterator[Parameter]:
    yield from form.matrix(group, f"{path}.gate_proj", sizes.intermediate, sizes.hidden, *stack)
    yield from form.matrix(group, f"{path}.up_proj", sizes.intermediate, sizes.hidden, *stack)
    yield from form.matrix(group, f"{path}.down_proj", sizes.hidden, sizes.intermediate, *stack)
