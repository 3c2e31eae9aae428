"""Decode steps: alone, through the whole engine, and by the reference, each beside the bytes that it must read."""

import time
from functools import partial
from typing import Any

import torch

from benchmarks.card import limits, rows
from benchmarks.card.clock import timed
from benchmarks.card.rig import Rig
from models.engine.cache import BLOCK, blocks
from models.engine.reference import Reference
from models.engine.sequence import Sequence

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SLOW = (1, 8, 32)  # of these, what the reference is timed with
CONTEXT = 1560


def measure(
    rig: Rig,
    *,
    batches: tuple[int, ...] = BATCHES,
    slow: tuple[int, ...] = SLOW,
    context: int = CONTEXT,
    answer: int = 64,
    repeats: int = 40,
) -> dict[str, Any]:
    """A row for each batch size that fits the KV cache: seconds of a step, tokens a second, and fractions of the limit.

    The step alone is sent and replayed back to back over random keys and values, so that the host's part is hidden
    unless it takes longer; `engine` adds planning, sampling and the copy of logits to the host.
    """
    each = context + answer // 2 + BLOCK
    fitting = tuple(batch for batch in batches if batch * each <= rig.room)
    left_out = {"left_out": [batch for batch in batches if batch not in fitting], "room_tokens": rig.room}
    if not fitting:
        return left_out
    found = steps(rig, fitting, slow, context, repeats)
    rig.note({"rows": found, **left_out})
    spent = answering(rig, fitting, context, answer)
    for row in found:
        row["engine_seconds"] = spent[row["batch"]]
        row["engine_tokens_per_second"] = row["batch"] / row["engine_seconds"]
        row["engine_fraction"] = row["limit_seconds"] / row["engine_seconds"]
    return {"rows": found, **left_out}


@torch.inference_mode()
def steps(
    rig: Rig, batches: tuple[int, ...], slow: tuple[int, ...], context: int, repeats: int
) -> list[dict[str, Any]]:
    """The step alone. `fraction` is of the bytes expected, `fraction_met` of those of the experts really chosen."""
    cache = rig.cache(max(batches) * blocks(context) * BLOCK)
    ours, reference = rig.forward(rig.network, cache), Reference(rig.network, cache)
    found = []
    for batch in batches:
        step = rows.decoding(batch, context, rig.config.vocab_size)
        with rows.routing(rig.network) as met:
            reference(step)
        experts = sum(met) / len(met)
        expected = limits.step_bytes(rig.planned, rig.config, batch, context)
        actual = limits.step_bytes(rig.planned, rig.config, batch, context, experts)
        seconds, host = timed(rig.device, partial(ours, step), repeats)
        row = {
            "batch": batch,
            "by": ours.name,
            "context": context,
            "experts": experts,
            "experts_expected": limits.experts_expected(rig.config, batch),
            "bytes": expected,
            "flop": limits.step_flop(rig.config, batch, context),
            "limit_seconds": expected / rig.limits.bandwidth,
            "seconds": seconds,
            "host_seconds": host,
            "tokens_per_second": batch / seconds,
            "fraction": expected / rig.limits.bandwidth / seconds,
            "fraction_met": actual / rig.limits.bandwidth / seconds,
        }
        if batch in slow:
            row["reference_seconds"] = timed(rig.device, partial(reference, step), 3, 1).seconds
        found.append(row)
    return found


@torch.inference_mode()
def answering(rig: Rig, batches: tuple[int, ...], context: int, answer: int) -> dict[int, float]:
    """Seconds of an engine's step in which all rows decode, by batch size; their contexts are `context` on average.

    The largest batch reads the prompts, the others find them in the cache.
    """
    prompt = context - answer // 2
    tokens = max(batches) * (blocks(prompt + answer) + 1) * BLOCK
    engine = rig.engine(tokens, max(512, 16 * max(batches)))
    found: dict[int, float] = {}
    for batch in sorted(batches, reverse=True):
        rows.drive(engine, rows.sequences(batch, prompt, 1, rig.config.vocab_size), batch)
        asked = rows.sequences(batch, prompt, answer, rig.config.vocab_size)
        for row in asked:
            engine.submit(row)
        made, seconds = 0, 0.0
        while not all(row.future.done() for row in asked):
            before = _decoding(asked)
            began = time.perf_counter()
            engine.step()
            if before and not any(row.future.done() for row in asked):
                seconds += time.perf_counter() - began
                made += sum(row.made for row in asked) - before
        for row in asked:
            row.future.result()
        found[batch] = seconds * batch / made
    return found


def _decoding(asked: list[Sequence]) -> int:
    """Tokens that the rows have made, 0 until each has made one."""
    return sum(row.made for row in asked) if all(row.made for row in asked) else 0
