"""What a card can do at most, measured, and the least that a step has to do: bytes, floating-point operations, seconds.

Knows a model's plan and its config; nothing of engines or kernels.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from benchmarks.card.clock import timed
from models.plan import Plan

COPIED = {"cuda": 2 << 30, "cpu": 64 << 20}  # bytes, larger than any cache
SIDE = {"cuda": 8192, "cpu": 256}


class Sizes(Protocol):
    """What of a Mixtral's config decides how much there is to do."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_local_experts: int
    num_experts_per_tok: int
    vocab_size: int


@dataclass(frozen=True)
class Limits:
    """`bandwidth`: bytes a second, read and written, of a copy; `matmul`: operations a second of a bf16 product."""

    bandwidth: float
    matmul: float


def measure(device: torch.device) -> Limits:
    """The rates that everything else is compared with: medians, on random data."""
    source = torch.randint(0, 255, (COPIED[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = timed(device, lambda: target.copy_(source), repeats=20).seconds
    side = SIDE[device.type]
    left, right = torch.randn(2, side, side, device=device).bfloat16()
    made = torch.empty_like(left)
    multiplying = timed(device, lambda: torch.mm(left, right, out=made), repeats=20).seconds
    return Limits(2 * source.nbytes / copying, 2 * side**3 / multiplying)


def experts_expected(config: Sizes, tokens: int) -> float:
    """How many of E experts `tokens` tokens of k choices each meet: E (1 - (1 - k/E)^tokens)."""
    share = config.num_experts_per_tok / config.num_local_experts
    return config.num_local_experts * float(1 - (1 - share) ** tokens)


def step_bytes(planned: Plan, config: Sizes, batch: int, context: int, experts: float | None = None) -> float:
    """The fewest bytes that a decode step of `batch` rows reads: weights but the embedding, and the rows' KV.

    `experts`: how many a layer's tokens meet; None: as many as are expected.
    """
    met = (experts_expected(config, batch) if experts is None else experts) / config.num_local_experts
    weights = sum(
        spec.nbytes * (met if ".experts." in name else 1)
        for name, spec in planned.specs.items()
        if name != "model.embed_tokens.weight"
    )
    return weights + batch * context * planned.kv_bytes_per_token


def tokens_flop(config: Sizes, tokens: int) -> float:
    """Two operations for each weight of the layers that a token is multiplied with: 25.2 G a token in Mixtral 8x7B."""
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    attention = hidden // heads * hidden * (2 * heads + 2 * kv_heads)
    experts = config.num_experts_per_tok * 3 * hidden * config.intermediate_size + config.num_local_experts * hidden
    return 2.0 * tokens * config.num_hidden_layers * (attention + experts)


def attention_flop(config: Sizes, start: int, end: int) -> float:
    """Scores and sums of the tokens from `start` to `end` of a sequence over all that is before them, causal."""
    return 2.0 * config.num_hidden_layers * config.hidden_size * (end * end - start * start)


def head_flop(config: Sizes, places: int) -> float:
    """Logits behind so many places."""
    return 2.0 * places * config.hidden_size * config.vocab_size


def step_flop(config: Sizes, batch: int, context: int) -> float:
    """All operations of a decode step of `batch` rows with `context` tokens each."""
    reading = batch * attention_flop(config, context - 1, context)
    return tokens_flop(config, batch) + reading + head_flop(config, batch)


def prefill_flop(config: Sizes, tokens: int, shared: int = 0) -> float:
    """A prompt of `tokens`, of which the first `shared` are known already; logits behind its last token."""
    return tokens_flop(config, tokens - shared) + attention_flop(config, shared, tokens) + head_flop(config, 1)


def documents_riding(config: Sizes, limits: Limits, prompt: int, answer: int, shared: int = 0) -> float:
    """Documents a second at most where decoding rides in steps that read prompts, so that all is bound by arithmetic.

    matmul / (prefill_flop(prompt, shared) + answer tokens' operations over a context of prompt to prompt + answer).
    """
    told = tokens_flop(config, answer) + attention_flop(config, prompt, prompt + answer) + head_flop(config, answer)
    return limits.matmul / (prefill_flop(config, prompt, shared) + told)


def documents_apart(planned: Plan, config: Sizes, limits: Limits, batch: int, prompt: int, answer: int) -> float:
    """Documents a second at most where prompts are read first and `batch` rows then decode together.

    1 / (prefill_flop(prompt) / matmul + answer * step_bytes(batch, prompt + answer / 2) / bandwidth / batch).
    """
    step = step_bytes(planned, config, batch, prompt + answer // 2) / limits.bandwidth
    return 1 / (prefill_flop(config, prompt) / limits.matmul + answer * step / batch)


def labels_riding(config: Sizes, limits: Limits, prompt: int, labels: int, tokens: int, shared: int = 0) -> float:
    """Documents a second at most, each read once and `labels` labels of `tokens` tokens scored behind it."""
    told = tokens_flop(config, labels * tokens) + labels * attention_flop(config, prompt, prompt + tokens)
    head = head_flop(config, labels * (tokens - 1)) if tokens else 0.0
    return limits.matmul / (prefill_flop(config, prompt, shared) + told + head)
