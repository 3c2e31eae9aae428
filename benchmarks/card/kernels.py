"""Which kernels a step spends its time in, as torch's profiler sees them."""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.card import rows
from benchmarks.card.decode import CONTEXT
from benchmarks.card.rig import Rig
from models.engine.batch import Batch
from models.engine.cache import BLOCK, blocks

MOST = 14
STEPS = 3


@torch.inference_mode()
def measure(
    rig: Rig,
    *,
    batches: tuple[int, ...] = (1, 8, 32, 64),
    context: int = CONTEXT,
    prompts: tuple[int, ...] = (512, 2048),
) -> dict[str, Any]:
    """For a decode step of each batch size and a prompt of each length: the kernels that take most, in ms a step."""
    each = blocks(context) * BLOCK
    fitting = [batch for batch in batches if batch * each <= rig.room]
    cache = rig.cache(max(each * max(fitting, default=0), blocks(max(prompts)) * BLOCK))
    forward = rig.forward(rig.network, cache)
    vocabulary = rig.config.vocab_size
    steps = {f"decode, {batch} rows": rows.decoding(batch, context, vocabulary) for batch in fitting}
    for tokens in prompts:
        prompt = rows.random_ids(tokens, vocabulary)
        steps[f"prompt, {tokens} tokens"] = rows.reading([prompt], [range(tokens - 1, tokens)])
    return {name: _profile(rig.device, forward, step) for name, step in steps.items()}


def _profile(device: torch.device, forward: Any, step: Batch) -> list[dict[str, Any]]:
    on_card = device.type == "cuda"
    forward(step)
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            forward(step)
        if on_card:
            torch.cuda.synchronize(device)
    found = [
        {
            "kernel": event.key[:80],
            "calls": event.count / STEPS,
            "milliseconds": (event.self_device_time_total if on_card else event.self_cpu_time_total) / 1e3 / STEPS,
        }
        for event in seen.key_averages()
    ]
    return sorted(found, key=lambda kernel: kernel["milliseconds"], reverse=True)[:MOST]
