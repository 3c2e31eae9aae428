"""Qwen2.5-VL: a tower that turns patches of pixels into tokens, whole at any bits, before a dense decoder."""

from collections.abc import Iterator, Mapping
from typing import Any

from models.anatomy import decoder
from models.anatomy.sizes import Anatomy, Form, Parameter, flag, size

CHANNELS, FRAMES = 3, 2  # of a patch


def describe(config: Mapping[str, Any], form: Form) -> Anatomy:
    """Every parameter; ValueError names what of the config cannot be used."""
    text, vision = config.get("text_config") or config, config.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise ValueError("text_config and vision_config must be objects")
    sizes = _read(config, text)
    if (out := size(vision, "out_hidden_size")) != sizes.hidden:
        raise ValueError(f"out_hidden_size is {out}, and the hidden_size of the text {sizes.hidden}")
    parameters = [*_tower(vision, form, out), *decoder.parameters(sizes, form, "model.language_model", biased=True)]
    return Anatomy(parameters, decoder.kept(sizes))


def _read(config: Mapping[str, Any], text: Mapping[str, Any]) -> decoder.Sizes:
    if flag(text, "use_sliding_window"):
        raise ValueError("attention within a sliding window is not known")
    tied = flag(config, "tie_word_embeddings") or flag(text, "tie_word_embeddings")
    # A window that is not used may be told all the same.
    told = {**text, "architectures": None, "sliding_window": None, "tie_word_embeddings": tied}
    sizes = decoder.read(told)
    if sizes.head_dim * sizes.heads != sizes.hidden:
        raise ValueError(f"head_dim is {sizes.head_dim}, not hidden_size by the number of heads")
    return sizes


def _tower(vision: Mapping[str, Any], form: Form, out: int) -> Iterator[Parameter]:
    """None of it in NF4: it is 2 % of the model, and what it loses no text makes good."""
    hidden, intermediate = size(vision, "hidden_size"), size(vision, "intermediate_size")
    side, merge = size(vision, "patch_size", most=1000), size(vision, "spatial_merge_size", most=100, default=2)
    if size(vision, "in_channels", default=CHANNELS) != CHANNELS:
        raise ValueError(f"pictures have {CHANNELS} channels")
    if size(vision, "temporal_patch_size", default=FRAMES) != FRAMES:
        raise ValueError(f"a patch has {FRAMES} frames")
    yield form.plain("vision", "model.visual.patch_embed.proj.weight", hidden, CHANNELS, FRAMES, side, side)
    for number in range(size(vision, "depth", most=1000)):
        block = f"model.visual.blocks.{number}"
        for norm in ("norm1", "norm2"):
            yield form.plain("vision", f"{block}.{norm}.weight", hidden)
        yield from _affine(form, f"{block}.attn.qkv", 3 * hidden, hidden)
        yield from _affine(form, f"{block}.attn.proj", hidden, hidden)
        for name in ("gate", "up"):
            yield from _affine(form, f"{block}.mlp.{name}_proj", intermediate, hidden)
        yield from _affine(form, f"{block}.mlp.down_proj", hidden, intermediate)
    merged = hidden * merge * merge
    yield form.plain("vision", "model.visual.merger.ln_q.weight", hidden)
    yield from _affine(form, "model.visual.merger.mlp.0", merged, merged)
    yield from _affine(form, "model.visual.merger.mlp.2", out, merged)


def _affine(form: Form, path: str, rows: int, columns: int) -> Iterator[Parameter]:
    yield form.plain("vision", f"{path}.weight", rows, columns)
    yield form.plain("vision", f"{path}.bias", rows)
