"""What another card would do if it reached the same fractions of its limits. Arithmetic; nothing of it was measured."""

from types import SimpleNamespace
from typing import Any

from benchmarks.card import limits
from benchmarks.card.limits import Limits, Sizes
from models import catalog, machine, plan

TARGET = "NVIDIA GeForce RTX 5090"
# NVIDIA's datasheet says 1.792 TB/s and 209.5 TFLOP/s (bf16, fp32 sums, dense). A copy does not reach its datasheet's
# rate: an H200's reaches 4.3 of 4.8 TB/s, so the same share is taken here.
TARGET_LIMITS = Limits(bandwidth=1.792e12 * 4.3 / 4.8, matmul=209.5e12)


def project(found: dict[str, Any]) -> dict[str, Any] | None:
    """Decode, prefill and documents for TARGET from the fractions in `found`; None where there is nothing to go by.

    A step takes limit / fraction; what an engine takes beside its step is the host's and stays as it was measured.
    """
    name = found["card"]["name"]
    if name == TARGET or found["layers"] != catalog.MIXTRAL.config["num_hidden_layers"] or "decode" not in found:
        return None
    planned = plan.of_row(catalog.MIXTRAL)
    room = planned.room(machine.CARDS["rtx-5090"])
    decode = []
    for row in found["decode"].get("rows", []):
        if row["batch"] * plan.DOCUMENT > room:
            continue
        seconds = row["bytes"] / TARGET_LIMITS.bandwidth / row["fraction"]
        projected = {"batch": row["batch"], "seconds": seconds, "tokens_per_second": row["batch"] / seconds}
        if "engine_seconds" in row:
            whole = seconds + max(row["engine_seconds"] - row["seconds"], 0.0)
            projected |= {"engine_seconds": whole, "engine_tokens_per_second": row["batch"] / whole}
        decode.append(projected)
    return {
        "projected": True,
        "card": TARGET,
        "from": name,
        "limits": {"bandwidth": TARGET_LIMITS.bandwidth, "matmul": TARGET_LIMITS.matmul},
        "room_tokens": room,
        "decode": decode,
        "prefill": [
            {key: row[key] for key in ("way", "tokens")}
            | {"tokens_per_second": row["mfu"] * TARGET_LIMITS.matmul * row["tokens"] / row["flop"]}
            for row in found.get("prefill", {}).get("rows", [])
        ],
        "documents": _documents(found.get("documents", {}), sizes()),
    }


def sizes() -> Sizes:
    """Mixtral 8x7B's, without transformers."""
    found: Any = SimpleNamespace(**catalog.MIXTRAL.config)
    told: Sizes = found
    return told


def _documents(found: dict[str, Any], config: Sizes) -> list[dict[str, Any]]:
    return [
        {key: row[key] for key in ("step_tokens", "shared")}
        | {
            "documents_per_second": row["fraction"]
            * limits.documents_riding(config, TARGET_LIMITS, found["prompt"], found["answer"], row["shared"])
        }
        for row in found.get("rows", [])
    ]
