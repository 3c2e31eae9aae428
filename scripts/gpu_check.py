"""Full-size Mixtral with random NF4 weights made on the card, run through the engine; no file is read.

Proves allocated bytes against the plan and greedy tokens against a path that dequantises every matrix, and puts the
speed beside the bandwidth measured in the same run. Writes JSON under benchmarks/.
"""

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import settings

settings.harden_process()

import torch  # noqa: E402 - the environment comes first
from torch import nn  # noqa: E402
from torch.nn.functional import linear  # noqa: E402
from transformers import MixtralConfig, PreTrainedModel  # noqa: E402

from models import catalog, machine, network, plan  # noqa: E402
from models.engine.cache import BLOCK  # noqa: E402
from models.engine.engine import Engine  # noqa: E402
from models.engine.sequence import Sampling, Sequence  # noqa: E402
from models.nf4.experts import NF4Experts  # noqa: E402
from models.nf4.linear import NF4Linear, NF4Weight  # noqa: E402
from models.nf4.matrix import Packed, codes, dequantise  # noqa: E402

BATCHES = (1, 2, 4, 8, 16, 32)
PROMPT, ANSWER, BEHIND = 1500, 120, 0.5
ENGINE: dict[str, Any] = {"step_tokens": 2048, "queue_tokens": 1 << 30, "speculate": False}


def main() -> int:
    """0: all that was looked at holds, or there is no card; 1: something does not."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    card = machine.card(settings.visible_cards())
    if card is None:
        print("scripts/gpu_check: there is no NVIDIA card here; nothing was checked")
        return 0
    options.out.mkdir(exist_ok=True, parents=True)
    config = MixtralConfig(**{**catalog.MIXTRAL.config, "num_hidden_layers": options.layers})
    planned = plan.make("mixtral", config.to_dict(), "bfloat16")
    fitting = tuple(batch for batch in BATCHES if batch * (PROMPT + ANSWER) <= planned.room(card))
    if not fitting:
        sys.exit(f"scripts/gpu_check: {options.layers} layers do not fit on {card.name}; try --layers")
    found = check(config, torch.device("cuda"), fitting, PROMPT, ANSWER)
    found["card"] = asdict(card)
    found["host"] = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
    found["versions"] = {name: version(name) for name in ("torch", "transformers", "bitsandbytes")}
    file = options.out / f"gpu_check-{card.name.lower().replace(' ', '-')}-{options.layers}-layers.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0 if found["holds"] else 1


def check(
    config: MixtralConfig, device: torch.device, batches: tuple[int, ...], prompt: int, answer: int
) -> dict[str, Any]:
    """All figures for a model of this config; speeds in tokens a second, sizes in bytes."""
    planned = plan.make("mixtral", config.to_dict(), "bfloat16")
    bandwidth, before = copy_bandwidth(device), memory(device)
    model = make(config, device)
    network.prove(model, planned.specs, device)
    taken = {name: count - before.get(name, 0) for name, count in memory(device).items()}
    taken = taken or {"requested": network.resident_bytes(model)}
    speeds = []
    for batch in batches:
        rates = measure(model, batch, prompt, answer)
        limit = bandwidth / step_bytes(planned, config, batch, prompt + answer // 2) * batch
        speeds.append(rates | {"decode_limit": limit, "decode_fraction": rates["decode"] / limit})
    agreement = compare(model, min(prompt, 200), min(answer, 32))
    return {
        "layers": config.num_hidden_layers,
        "planned_bytes": planned.weights,
        "taken_bytes": taken,
        "copy_bytes_per_second": bandwidth,
        "runs": speeds,
        "agreement": agreement,
        "holds": taken["requested"] == planned.weights and agreement["holds"],
    }


def make(config: MixtralConfig, device: torch.device) -> PreTrainedModel:
    """Random weights, spread like those of a trained model: each code equally likely, scales around 0.04."""
    model = network.build(config, torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    constants = {"absmax2": torch.tensor(0.02), "offset": torch.tensor(0.04)}
    constants |= dict(zip(("code", "code2"), codes(device), strict=True))
    for path, module in model.named_modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            made = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            if not isinstance(module, NF4Weight):
                made = made.fill_(1) if made.dim() == 1 else made.normal_(std=0.02, generator=generator)
            elif name in ("packed", "absmax"):
                made.random_(0, 256, generator=generator)
            else:
                made.copy_(constants[name])
            setattr(model.get_submodule(path), name, nn.Parameter(made, requires_grad=False))
    network.fill_constants(model, device)
    return model


def memory(device: torch.device) -> dict[str, int]:
    """Bytes in use on a card: as asked for, and with what the allocator rounds up to or does not split."""
    if device.type != "cuda":
        return {}
    counts = torch.cuda.memory_stats()
    return {"requested": counts["requested_bytes.all.current"], "allocated": counts["allocated_bytes.all.current"]}


def step_bytes(planned: plan.Plan, config: MixtralConfig, batch: int, context: int) -> float:
    """The fewest bytes that a decode step of `batch` rows reads: weights but the embedding, and the rows' KV.

    Of E experts `batch` tokens of k choices each are expected to meet E (1 - (1 - k/E)^batch) different ones.
    """
    met = 1 - (1 - config.num_experts_per_tok / config.num_local_experts) ** batch
    weights = sum(
        spec.nbytes * (met if ".experts." in name else 1)
        for name, spec in planned.specs.items()
        if name != "model.embed_tokens.weight"
    )
    return weights + batch * context * planned.kv_bytes_per_token


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of the best of ten copies larger than any cache."""
    size = (1 << 30) if device.type == "cuda" else (64 << 20)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        started = now(device)
        target.copy_(source)
        best = min(best, now(device) - started)
    return 2 * size / best


def now(device: torch.device) -> float:
    """Seconds, once all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def sequences(model: PreTrainedModel, count: int, prompt: int, answer: int) -> list[Sequence]:
    """Rows of random ids, the same ones every time."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(3, model.config.vocab_size, (count, prompt), generator=generator)
    return [Sequence(row, Sampling(answer)) for row in ids.tolist()]


@torch.inference_mode()
def measure(model: PreTrainedModel, batch: int, prompt: int, answer: int) -> dict[str, Any]:
    """Prefill and decode rates of `batch` rows through the engine, in tokens a second; a short run warms up.

    Each rate counts the steps that did nothing else; a step in which a row's failure shows is an error here.
    """
    device = next(model.parameters()).device
    rates: dict[str, float] = {}
    for tokens in (4, answer):
        engine = Engine(model, set(), kv_tokens=batch * (prompt + tokens + BLOCK), **ENGINE)
        rows = sequences(model, batch, prompt, tokens)
        for row in rows:
            engine.submit(row)
        count: dict[str, int] = defaultdict(int)
        seconds: dict[str, float] = defaultdict(float)
        while not all(row.future.done() for row in rows):
            before = [(row.computed, bool(row.output)) for row in rows]
            started = now(device)
            engine.step()
            spent = now(device) - started
            decoding = sum(has_output for _, has_output in before)
            phase = "both" if 0 < decoding < batch else "decode" if decoding else "prefill"
            seconds[phase] += spent
            count[phase] += sum(row.computed - done for row, (done, _) in zip(rows, before, strict=True))
        for row in rows:
            row.future.result()
        rates = {phase: count[phase] / max(seconds[phase], 1e-9) for phase in ("prefill", "decode")}
    return {"batch": batch, "prompt": prompt, "answer": answer} | rates


@dataclass(frozen=True)
class Reference:
    """The model with every matrix dequantised whole before it is used: slow, and plain to read."""

    model: PreTrainedModel

    def __enter__(self) -> None:
        for module in self.model.modules():
            if isinstance(module, NF4Linear):
                object.__setattr__(module, "forward", lambda x, module=module: times(x, module.matrix()))
            elif isinstance(module, NF4Experts):
                object.__setattr__(module, "forward", lambda *given, module=module: mix(module, *given))
        self.model.config._attn_implementation = "sdpa"

    def __exit__(self, *_: object) -> None:
        for module in self.model.modules():
            module.__dict__.pop("forward", None)
        self.model.config._attn_implementation = "flat"


def times(x: torch.Tensor, weight: Packed) -> torch.Tensor:
    return linear(x, dequantise(weight, x.dtype))


def mix(module: NF4Experts, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Every expert on every token, those that were not chosen weighted with zero."""
    share = torch.zeros(x.shape[0], module.gate_proj.stack[0], dtype=weights.dtype, device=x.device)
    share.scatter_(1, chosen, weights)
    result = torch.zeros_like(x)
    for expert in range(share.shape[1]):
        hidden = module.act_fn(times(x, module.gate_proj.matrix(expert))) * times(x, module.up_proj.matrix(expert))
        result += (times(hidden, module.down_proj.matrix(expert)) * share[:, expert, None]).to(x.dtype)
    return result


@torch.inference_mode()
def compare(model: PreTrainedModel, prompt: int, answer: int) -> dict[str, Any]:
    """Greedy tokens of the engine beside the reference's choice at each place, given the same tokens before it.

    Rounding may turn a near tie, of tokens or of experts. `worst_behind` says how far below the best the reference's
    logits put a chosen token, in standard deviations; what a wrong path chooses lies some four of them behind.
    """
    device = next(model.parameters()).device
    engine = Engine(model, set(), kv_tokens=prompt + answer + BLOCK, **ENGINE)
    (row,) = sequences(model, 1, prompt, answer)
    engine.submit(row)
    while not row.future.done():
        engine.step()
    ids = torch.tensor([row.prompt + row.output], device=device)
    with Reference(model):
        logits = model(input_ids=ids, use_cache=False).logits[0, prompt - 1 : -1].float()
    made = ids[0, prompt:, None]
    behind = (logits.max(dim=-1).values - logits.gather(1, made)[:, 0]) / logits.std(dim=-1)
    same = int((logits.argmax(dim=-1) == made[:, 0]).sum())
    return {"tokens": answer, "same": same, "worst_behind": float(behind.max()), "holds": float(behind.max()) < BEHIND}


if __name__ == "__main__":
    sys.exit(main())
