"""The byte ledger: what a model will take in memory, parameter by parameter, from its config alone. Knows no torch.

The same list is what a loaded model is walked against at boot (models/network.py), so a plan is never a guess.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from models import catalog, manifest
from models.anatomy import decoder, encoder, vision
from models.anatomy.sizes import CONSTANTS, Anatomy, Form
from models.catalog import SEEING, Row
from models.failure import Failure
from models.machine import Machine
from models.nf4.layout import ITEM_BYTES, Spec

ANATOMIES: dict[str, Callable[[Mapping[str, Any], Form], Anatomy]] = {
    "LlamaForCausalLM": decoder.describe,
    "MixtralForCausalLM": decoder.describe,
    SEEING: vision.describe,
    "BertModel": encoder.describe_bert,
    "DebertaModel": encoder.describe_deberta,
}
GROUPS = ("experts", "mlp", "attention", "vision", "router", "norms", "embeddings", CONSTANTS)
# On a card: CUDA's context and libraries, bitsandbytes' scratch for the largest matrix, activations of a step,
# logits, fragmentation. An allowance until it is measured on a card; a CPU shares its memory with everything else.
WORKSPACE = {"cuda": 2 << 30, "cpu": 512 << 20}
DOCUMENT = 1620  # tokens: 1,500 of prompt and 120 of answer
LEAST_KV_TOKENS = 8192
MOST_KV_TOKENS_ON_CPU = 32_768


@dataclass(frozen=True)
class Plan:
    """A model's memory. `specs` holds every parameter by name, `groups` the group of each."""

    name: str
    specs: dict[str, Spec]
    groups: dict[str, str]
    kv_bytes_per_token: int
    reading: tuple[int, int] = (0, 0)

    @property
    def weights(self) -> int:
        return sum(spec.nbytes for spec in self.specs.values())

    @property
    def parameters(self) -> int:
        """Weights of the model, whatever bits they take."""
        return sum(
            prod(spec.shape) * (2 if name.endswith(".packed") else 1)
            for name, spec in self.specs.items()
            if self.groups[name] != CONSTANTS
        )

    @property
    def ledger(self) -> dict[str, int]:
        """Bytes by group, empty groups left out; they sum to `weights`."""
        found = dict.fromkeys(GROUPS, 0)
        for name, spec in self.specs.items():
            found[self.groups[name]] += spec.nbytes
        return {group: count for group, count in found.items() if count}

    def workspace(self, tokens: int, window: int) -> int:
        """Bytes that an encoder takes beside its weights to read `tokens` tokens, in texts of `window` at most."""
        alone, beside = self.reading
        return 4 * tokens * (alone + beside * window)

    def room(self, machine: Machine) -> int:
        """Tokens of KV cache that fit beside weights and workspace; negative where those alone do not fit."""
        return (machine.free - self.weights - WORKSPACE[machine.device]) // self.kv_bytes_per_token

    def budget(self, machine: Machine, wanted: int = 0) -> int:
        """Tokens of KV cache to serve with: `wanted`, or all that fit (0). Failure with the numbers if they do not."""
        room = self.room(machine)
        tokens = wanted or LEAST_KV_TOKENS
        if room < tokens:
            needed = self.weights + WORKSPACE[machine.device] + tokens * self.kv_bytes_per_token
            raise Failure(
                "memory_too_small",
                f"{self.name} needs {needed:,} bytes: {self.weights:,} of weights, {WORKSPACE[machine.device]:,} of "
                f"workspace, {tokens * self.kv_bytes_per_token:,} for {tokens:,} tokens of KV cache; "
                f"{machine.name} has {machine.free:,} free, {needed - machine.free:,} too few; "
                "free some, ask for fewer tokens (ZOPILOT_KV_TOKENS), or take a larger card or a smaller model",
            )
        if wanted:
            return wanted
        return room if machine.device == "cuda" else min(room, MOST_KV_TOKENS_ON_CPU)


def of_row(model: Row) -> Plan:
    """The plan of a catalogue row as its publisher describes it."""
    return make(model.name, model.config, model.dtype, model.bits)


def of_item(name: str, item: Path, dtype: str, bits: int = 4) -> Plan:
    """The plan of what is in the store; Failure where its config cannot be read."""
    try:
        config = json.loads((item / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Failure("model_broken", f"{name}: config.json cannot be read") from error
    return make(name, config, dtype, bits)


def imported(store: Path) -> dict[str, Path]:
    """The encoders that are in `store`: where each is, by name."""
    found = {}
    for row in catalog.ENCODERS.values():
        with suppress(Failure):
            found[row.name] = manifest.locate(row, store)
    return found


def needed(row: catalog.Encoder, item: Path) -> int:
    """Bytes that an encoder takes while it is in use: weights, and what the largest batch works in."""
    try:
        planned = of_item(row.name, item, row.dtype, row.bits)
    except Failure:  # it will not load either, and what is in its place then will be as planned
        planned = of_row(row)
    return planned.weights + planned.workspace(row.batch_tokens, row.window)


def set_aside(store: Path) -> int:
    """Bytes that are kept from the KV cache for encoders: what the largest in `store` needs; 0 where there is none."""
    return max((needed(catalog.ENCODERS[name], item) for name, item in imported(store).items()), default=0)


def make(name: str, config: Mapping[str, Any], dtype: str, bits: int = 4) -> Plan:
    """The plan of a model with this config.json whose float parameters are `dtype`; Failure for an unknown kind."""
    try:
        anatomy = _describe(config, Form(dtype, bits))
    except ValueError as error:
        raise Failure("model_unsupported", f"{name} cannot be planned: {error}") from error
    return Plan(
        name,
        {parameter: spec for _, parameter, spec in anatomy.parameters},
        {parameter: group for group, parameter, _ in anatomy.parameters},
        anatomy.kept * ITEM_BYTES[dtype],
        anatomy.reading,
    )


def _describe(config: Mapping[str, Any], form: Form) -> Anatomy:
    if not isinstance(config, Mapping):
        raise ValueError("the config is no JSON object")
    architectures = config.get("architectures")
    for known, describe in ANATOMIES.items():
        if architectures == [known]:
            return describe(config, form)
    raise ValueError(f"architectures is {shown(architectures)}; known: {', '.join(ANATOMIES)}")
