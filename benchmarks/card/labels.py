"""Labels scored behind a document: it is read once, then all labels are one step over its keys and values.

Not through the engine, which tells no logits: through what computes its steps, as a caller that wants them would.
"""

from typing import Any

import torch

from benchmarks.card import limits, rows
from benchmarks.card.clock import timed
from benchmarks.card.rig import Rig
from models.engine.attention import Span
from models.engine.batch import Batch
from models.engine.cache import BLOCK, blocks


@torch.inference_mode()
def measure(
    rig: Rig, *, prompt: int = 1504, labels: int = 16, tokens: int = 3, together: tuple[int, ...] = (1, 4)
) -> dict[str, Any]:
    """`prompt` tokens (whole blocks, which labels can share), `labels` labels of `tokens` tokens each.

    A label's score is the sum of its tokens' log-probabilities: the first one's from the step that reads the document,
    the others' from the second step. `together`: how many documents share these two steps.
    """
    if prompt % BLOCK:
        raise ValueError(f"{prompt} tokens are no whole blocks of {BLOCK}")
    found = [_row(rig, count, prompt, labels, tokens) for count in together if _room(count, prompt, labels) <= rig.room]
    return {"prompt": prompt, "labels": labels, "tokens": tokens, "rows": found}


def _room(documents: int, prompt: int, labels: int) -> int:
    return documents * (prompt + labels * BLOCK)


def _row(rig: Rig, documents: int, prompt: int, labels: int, tokens: int) -> dict[str, Any]:
    vocabulary, device = rig.config.vocab_size, rig.device
    forward = rig.forward(rig.network, rig.cache(_room(documents, prompt, labels)))
    prompts = [rows.random_ids(prompt, vocabulary, seed) for seed in range(documents)]
    said = torch.tensor(rows.random_ids(documents * labels * tokens, vocabulary, 9)).view(documents, labels, tokens)
    first = rows.reading(prompts, [range(prompt - 1, prompt)] * documents)
    second = behind(said.tolist(), prompt)
    made = said.to(device)

    def score() -> torch.Tensor:
        """[documents, labels]."""
        opening = forward(first).float().log_softmax(-1).gather(1, made[:, :, 0])
        later = forward(second).float().log_softmax(-1).view(documents, labels, tokens - 1, -1)
        return opening + later.gather(3, made[:, :, 1:, None])[..., 0].sum(-1)

    whole = timed(device, lambda: score().cpu(), repeats=5, warm=2).seconds
    step = timed(device, lambda: forward(second), repeats=20).seconds
    ceiling = limits.labels_riding(rig.config, rig.limits, prompt, labels, tokens)
    return {
        "documents": documents,
        "seconds": whole,
        "step_seconds": step,
        "documents_per_second": documents / whole,
        "labels_per_second": documents * labels / whole,
        "ceiling": ceiling,
        "fraction": documents / whole / ceiling,
        "finite": bool(torch.isfinite(score()).all()),
    }


def behind(labels: list[list[list[int]]], prompt: int) -> Batch:
    """One flat step: each label a row that begins with its document's blocks and goes on in one of its own.

    Wanted are the places behind all tokens of a label but its last.
    """
    shared, each = blocks(prompt), len(labels[0])
    ids: list[int] = []
    spans: list[Span] = []
    wanted: list[int] = []
    for document, those in enumerate(labels):
        table = list(range(document * shared, (document + 1) * shared))
        for number, label in enumerate(those):
            own = len(labels) * shared + document * each + number
            wanted += range(len(ids), len(ids) + len(label) - 1)
            spans.append(Span([*table, own], len(ids), prompt, len(label)))
            ids += label
    return Batch(ids, [at for span in spans for at in range(span.start, span.end)], spans, wanted)
