"""Attention over a flat batch: rows of different sequences lie end to end, each sees its own cache and nothing else.

Registered with transformers' attention interface under the name "flat"; the step's rows travel as a keyword argument.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from models.engine.cache import Cache


@dataclass(frozen=True)
class Span:
    """`count` tokens of sequence `number`: at `offset` in the flat batch, at `start` in the sequence."""

    number: int
    offset: int
    start: int
    count: int


@dataclass(frozen=True)
class Rows:
    """What attention must know of a step."""

    spans: list[Span]
    cache: Cache


def flat_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    rows: Rows,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] → [1, T, heads, dim]."""
    output = torch.empty_like(query[0])
    layer: int = module.layer_idx  # type: ignore[assignment]
    for span in rows.spans:
        here = slice(span.offset, span.offset + span.count)
        keys, values = rows.cache.extend(span.number, layer, span.start, key[0, :, here], value[0, :, here])
        output[:, here] = _attend(query[0, :, here], keys, values, span.start, scaling)
    return output.transpose(0, 1).unsqueeze(0), None


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, scaling: float) -> torch.Tensor:
    """query [heads, n, dim] at positions start..start+n over keys [kv_heads, start+n, dim] → [heads, n, dim]."""
    heads, count, dim = query.shape
    if count == 1:
        # The heads of a group share their keys, so they can stand where the queries of one head would.
        grouped = query.reshape(1, keys.shape[0], -1, dim)
        return scaled_dot_product_attention(grouped, keys[None], values[None], scale=scaling).reshape(heads, 1, dim)
    mask = None
    if start:
        mask = torch.ones(count, start + count, dtype=torch.bool, device=query.device).tril(start)
        if query.is_cuda:
            # With a mask and shared keys only the math kernel is left there, which takes gigabytes in fp32.
            keys, values = (each.repeat_interleave(heads // keys.shape[0], dim=0) for each in (keys, values))
    return scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=heads != keys.shape[0],
    )[0]


def _no_mask(*_: Any, **__: Any) -> None:
    """Each span masks itself."""


AttentionInterface.register("flat", flat_attention)
AttentionMaskInterface.register("flat", _no_mask)
