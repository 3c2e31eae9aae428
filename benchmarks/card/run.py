"""One run on one card: the limits, the model, then section after section into a JSON file."""

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, PreTrainedModel

from benchmarks import host
from benchmarks.card import limits, projection, rig
from benchmarks.card.rig import Rig
from benchmarks.card.sections import Found, Section, take
from models import plan
from models.engine.batch import Batch
from models.engine.cache import Cache
from models.engine.forward import Forward
from models.machine import Machine

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "triton", "transformers", "bitsandbytes")


def measure(
    card: Machine, config: MixtralConfig, sections: tuple[Section, ...], path: Path, ends: float, on: str = "cuda"
) -> Found:
    """All figures of this card, written to `path` as they come; exits where the model does not fit."""
    device, layers = torch.device(on), config.num_hidden_layers
    planned = plan.make("mixtral", config.to_dict(), "bfloat16")
    room = planned.room(card)
    if room < plan.DOCUMENT:
        sys.exit(f"{layers} layers do not fit on {card.name} beside one document; try --layers")
    found: Found = {"card": asdict(card), "host": host.describe(ROOT), "versions": versions(), "layers": layers}
    found["limits"] = asdict(limits.measure(device))
    write(found, path)
    before = rig.requested(device)
    model = rig.make(config, device, torch.bfloat16)
    found["bytes"] = rig.prove(model, planned, device, before) | {"room_tokens": room}
    made = Rig(model, planned, limits.Limits(**found["limits"]), room, ends=ends)

    def rig_of(note: Callable[[Found], None], errors: list[str]) -> Rig:
        return replace(made, note=note, forward=watching(made.forward, errors))

    take(sections, rig_of, found, lambda: write(found, path), ends)
    return found


class Watched:
    """A forward whose errors are kept: of these an engine tells the type alone, and goes on."""

    def __init__(self, forward: Forward, errors: list[str]) -> None:
        self.name = forward.name
        self._forward, self._errors = forward, errors

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [n, vocabulary], as the forward gives them."""
        try:
            return self._forward(batch)
        except Exception:
            self._errors.append(traceback.format_exc(limit=-6))
            raise


def watching(
    forward: Callable[[PreTrainedModel, Cache], Forward], errors: list[str]
) -> Callable[[PreTrainedModel, Cache], Forward]:
    """What makes what `forward` makes, watched."""
    return lambda network, cache: Watched(forward(network, cache), errors)


def versions() -> dict[str, str]:
    """Of the libraries that compute."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def file_name(card: str, layers: int) -> str:
    return f"card-{card.lower().replace(' ', '-')}-{layers}-layers.json"


def write(found: Found, path: Path) -> None:
    """The file is whole at any moment: who is stopped keeps what was measured."""
    projected: Any = projection.project(found)
    if projected:
        found["projected"] = projected
    scratch = path.with_name(f"{path.name}.part")
    scratch.write_text(json.dumps(found, indent=1) + "\n")
    scratch.replace(path)
