"""Whether what is fast is right: the engine's greedy tokens and a step's logits beside those of the reference path.

The reference is transformers' own layers with bitsandbytes' products, on the same card and the same weights.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.card import rows
from benchmarks.card.rig import Rig
from models.engine.cache import BLOCK, blocks
from models.engine.reference import Reference
from models.engine.sequence import Sampling, Sequence

# In standard deviations of a place's logits. A 32-layer model of random weights in bf16 instead of fp32 chose tokens up
# to 0.12 behind, mostly where another expert was chosen on the way; what a wrong path chooses lies some four behind.
BEHIND, NEAR = 0.5, 0.1
# Of the logits' norm. The same two were 0.01 apart in the median and 0.14 at most; those of a wrong path are some 1.4.
OFF, NOISE = 0.1, 3.0
LEAST = 8  # rows of each batch size, so that no single one's choice of an expert decides
TOLD = 40
GROUP = 2048  # tokens that the reference reads in one step
RUNS = ((64, 200, 40, 512), (8, 1500, 8, 4096))
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def measure(
    rig: Rig,
    *,
    runs: tuple[tuple[int, int, int, int], ...] = RUNS,
    batches: tuple[int, ...] = BATCHES,
    context: int = 300,
) -> dict[str, Any]:
    """`runs`: how many rows, the longest prompt and answer in tokens, and tokens of a step; `holds` if all agree.

    Rounding may turn a near tie, of tokens or of experts, so each difference is told with how far behind the best the
    reference's logits put the chosen token; and a decode step's logits are compared as numbers.
    """
    told = [_compare(rig, *run) for run in runs]
    rig.note({"greedy": told})
    steps = compare_steps(rig, tuple(batch for batch in batches if batch * (context + BLOCK) <= rig.room), context)
    worst = max(run["worst_behind"] for run in told)
    return {
        "greedy": told,
        "steps": steps,
        "tokens": sum(run["tokens"] for run in told),
        "same": sum(run["same"] for run in told),
        "worst_behind": worst,
        "holds": worst < BEHIND and all(step["holds"] for step in steps),
    }


def _compare(rig: Rig, count: int, prompt: int, answer: int, step_tokens: int) -> dict[str, Any]:
    asked = _asked(count, prompt, answer, rig.config.vocab_size)
    engine = rig.engine(sum(blocks(row.capacity) + 1 for row in asked) * BLOCK, step_tokens)
    rows.drive(engine, asked, count)
    del engine
    differences: list[dict[str, Any]] = []
    tokens = 0
    for number, row, logits in _reference(rig, asked):
        tokens += len(logits)
        differences += [{"row": number, **each} for each in explain(logits, row.output)]
    differences.sort(key=lambda each: each["behind"], reverse=True)
    return {
        "rows": count,
        "step_tokens": step_tokens,
        "tokens": tokens,
        "same": tokens - len(differences),
        "near_ties": sum(each["near_tie"] for each in differences),
        "worst_behind": differences[0]["behind"] if differences else 0.0,
        "differences": differences[:TOLD],
    }


def _asked(count: int, prompt: int, answer: int, vocabulary: int) -> list[Sequence]:
    """Rows of many lengths, which end one after the other, so that batches of every size are decoded."""
    ids = rows.random_ids(count * prompt, vocabulary)
    return [
        Sequence(
            ids[at * prompt : (at + 1) * prompt - at * 7 % (prompt // 2)], Sampling(answer - at * answer // 2 // count)
        )
        for at in range(count)
    ]


@torch.inference_mode()
def _reference(rig: Rig, asked: list[Sequence]) -> Iterator[tuple[int, Sequence, torch.Tensor]]:
    """Number and row, and fp32 logits [answer, vocabulary] of the reference where the row's answer was chosen."""
    cache = rig.cache(max(GROUP, *(len(row.ids) for row in asked)) + len(asked) * BLOCK)
    reference = Reference(rig.network, cache)
    left = list(enumerate(asked))
    while left:
        taken = [left.pop(0)]
        while left and sum(len(row.ids) for _, row in [*taken, left[0]]) <= GROUP:
            taken.append(left.pop(0))
        group = [row for _, row in taken]
        wanted = [range(len(row.prompt) - 1, len(row.ids) - 1) for row in group]
        logits = reference(rows.reading([row.ids[:-1] for row in group], wanted)).float()
        parts = logits.split([len(each) for each in wanted])
        yield from ((number, row, part) for (number, row), part in zip(taken, parts, strict=True))


def explain(logits: torch.Tensor, chosen: list[int]) -> list[dict[str, Any]]:
    """Where logits [n, vocabulary] put another token first than the `chosen` n: how far `behind` the best that one is.

    In standard deviations of the place's logits, and in units of bf16's last place at the best one (8 bits of
    significand): the rounding of the two logits alone explains one such unit, that of 32 layers what NEAR says.
    """
    best, first = logits.max(dim=-1)
    found = []
    for place in (first.cpu() != torch.tensor(chosen)).nonzero()[:, 0].tolist():
        top, other = float(best[place]), float(logits[place, chosen[place]])
        ulps = (top - other) / 2.0 ** (math.floor(math.log2(max(abs(top), 1e-30))) - 7)
        behind = (top - other) / float(logits[place].std())
        found.append({"place": place, "behind": behind, "ulps": ulps, "near_tie": behind < NEAR})
    return found


@torch.inference_mode()
def compare_steps(rig: Rig, batches: tuple[int, ...], context: int) -> list[dict[str, Any]]:
    """Decode steps of each batch size: ‖ours - reference‖ / ‖reference‖ of a row's logits, the median and the worst.

    `noise` is the median of the same for the reference's own first rows, each computed alone and in its batch.
    """
    if not batches:
        return []
    cache = rig.cache(max(batches) * blocks(context) * BLOCK)
    ours, reference = rig.forward(rig.network, cache), Reference(rig.network, cache)
    found = []
    for batch in batches:
        errors: list[float] = []
        noise: list[float] = []
        for seed in range(max(1, LEAST // batch)):
            step = rows.decoding(batch, context, rig.config.vocab_size, seed)
            alone = replace(step, ids=step.ids[:1], positions=step.positions[:1], spans=step.spans[:1], wanted=[0])
            expected = reference(step).float()
            noise.append(distance(reference(alone).float()[0], expected[0]))
            errors += [distance(*pair) for pair in zip(ours(step).float(), expected, strict=True)]
        error, allowed = median(errors), max(OFF, NOISE * median(noise))
        row = {"batch": batch, "by": ours.name, "error": error, "worst": max(errors), "noise": median(noise)}
        found.append(row | {"holds": error <= allowed})
    return found


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())
