"""What is measured, in the order of worth, and the loop that goes through it. Knows no card.

A section is a module of this package with a function `measure(rig)`; the one that fails is told, the others go on.
"""

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.card.rig import Rig

Found = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """`seconds`: what it is expected to take on an H200 with all 32 layers, compilation included; not measured yet."""

    name: str
    seconds: int
    about: str

    def measure(self, rig: "Rig") -> Found:
        found: Found = import_module(f"benchmarks.card.{self.name}").measure(rig)
        return found


SECTIONS = (
    Section("check", 90, "greedy tokens and logits beside the reference; compiles most kernels"),
    Section("decode", 45, "steps of 1 to 64 rows: alone, through the engine, by the reference"),
    Section("documents", 75, "1,500 + 120 tokens in a closed loop, with and without a shared beginning"),
    Section("prefill", 35, "128 to 8,192 tokens in one step, by tiles and by slices of two sizes"),
    Section("operations", 25, "each product by itself, ours and bitsandbytes'"),
    Section("labels", 12, "16 labels behind a document"),
    Section("kernels", 15, "which kernels a step spends its time in"),
    Section("load", 90, "shards written once and read from the page cache and from disk"),
    Section("tune", 300, "tiles beside the table's; only with --tune, best with --only tune --layers 4"),
)


def take(
    sections: tuple[Section, ...], rig_of: "Callable[[Callable[[Found], None], list[str]], Rig]", found: Found,
    write: Callable[[], None], ends: float,
) -> None:  # fmt: skip
    """Put each section's figures, or its error, under its name into `found`, and `write` after each.

    `rig_of` makes the rig, given where to note what has been found so far and where errors of steps are told: an engine
    goes on after them. What would begin after `ends` (on the monotonic clock) is left out, and says so.
    """
    import torch

    for section in sections:
        began = monotonic()
        if began > ends:
            found[section.name] = {"left_out": "out of time"}
            write()
            continue
        errors: list[str] = []
        print(f"{section.name} ...", flush=True)

        def note(partial: Found, name: str = section.name) -> None:
            found[name] = partial | {"unfinished": True}
            write()

        try:
            found[section.name] = section.measure(rig_of(note, errors))
        except Exception:
            found[section.name] = found.get(section.name, {}) | {"error": traceback.format_exc(limit=-6)}
        if errors:
            found[section.name] |= {"failed_steps": len(errors), "first_failed_step": errors[0]}
        found[section.name]["took"] = monotonic() - began
        write()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def holds(found: Found) -> bool:
    """Whether bytes and tokens are what they should be; False too where these were to be checked and could not be."""
    check = found.get("check", {"holds": True})
    return bool(found["bytes"]["holds"] and check.get("holds") and "failed_steps" not in check)
