"""Documents a second through the engine, in a closed loop, beside what the card's arithmetic allows."""

from typing import Any

import torch

from benchmarks.card import limits, rows
from benchmarks.card.rig import Rig
from models.engine.cache import BLOCK, blocks


@torch.inference_mode()
def measure(
    rig: Rig,
    *,
    documents: int = 128,
    clients: int = 64,
    prompt: int = 1500,
    answer: int = 120,
    shared: tuple[int, ...] = (0, 600),
    steps: tuple[int, ...] = (512, 2048),
) -> dict[str, Any]:
    """Rows of `prompt` random tokens, `shared` of them known already, and `answer` tokens out; for each size of a step.

    The clock runs from the first submission to the last answer, so the fraction counts the beginning, where nobody
    decodes, and the end, where nobody reads. `ceiling` is limits.documents_riding:
    matmul / (operations of the unshared prompt, of the answer, of attention and of the logits).
    """
    each = (blocks(prompt + answer) + 1) * BLOCK
    at_once = min(clients, rig.room // each)
    found: list[dict[str, Any]] = []
    for step_tokens in steps:
        for known in shared:
            engine = rig.engine(at_once * each, step_tokens)
            vocabulary = rig.config.vocab_size
            # Compiles what is not compiled yet, and leaves the shared beginning in the cache.
            rows.drive(engine, rows.sequences(3, prompt, 4, vocabulary, seed=1, shared=known), 3)
            asked = rows.sequences(documents, prompt, answer, vocabulary, seed=2, shared=known)
            seconds = rows.drive(engine, asked, at_once)
            ceiling = limits.documents_riding(rig.config, rig.limits, prompt, answer, known)
            found.append(
                {
                    "step_tokens": step_tokens,
                    "shared": known,
                    "clients": at_once,
                    "documents": documents,
                    "documents_per_second": documents / seconds,
                    "ceiling": ceiling,
                    "fraction": documents / seconds / ceiling,
                    "preempted": engine.scheduler.preempted,
                }
            )
            del engine
            rig.note({"prompt": prompt, "answer": answer, "rows": found})
    return {"prompt": prompt, "answer": answer, "rows": found}
