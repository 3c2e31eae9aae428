"""A start: shards written to this machine's disk once, then read onto the device, from the page cache and from disk."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from benchmarks.card.clock import timed
from benchmarks.card.rig import Rig
from models import loading, machine, network

SPARE = {"cuda": 2 << 30, "cpu": 256 << 20}  # bytes on the device that are left to others
COPIED = 256 << 20


def measure(rig: Rig, *, seconds: float = 45.0) -> dict[str, Any]:
    """As many layers as fit beside the model on the device and on the disk, and can be written in `seconds`.

    `copy`: bytes a second from pinned memory, which no load onto a card exceeds. `fetched` of each load says how much
    of it the kernel really took from a disk.
    """
    layers, each = rig.config.num_hidden_layers, _layer_bytes(rig.network)
    with tempfile.TemporaryDirectory(prefix="shards-") as name:
        folder = Path(name)
        room = min(machine.disk_free(folder) // 2, _free(rig.device) - SPARE[rig.device.type])
        most = min(layers, (room - (rig.planned.weights - layers * each)) // each)
        if most < 1:
            return {"left_out": f"no room for one layer of {each:,} bytes and what is outside of layers"}
        began = time.perf_counter()
        files = write(rig.network, folder, most, began + seconds)
        wrote = time.perf_counter() - began
        total = sum(file.stat().st_size for file in files)
        found: dict[str, Any] = {
            "layers": len(files) - 1,
            "of_layers": layers,
            "write_bytes_per_second": total / wrote,
            "copy": copy_rate(rig.device),
        }
        found["warm"] = read(rig, files)
        rig.note(found)
        forget(files)
        found["cold"] = read(rig, files)
        # What a container or a network disk keeps elsewhere cannot be forgotten from here.
        found["cold"]["is_cold"] = (found["cold"]["fetched"] or 0) > 0.9 * total
    return found


def write(model: PreTrainedModel, folder: Path, most: int, until: float) -> list[Path]:
    """A file for what is outside of layers and one a layer, the first `most`; from the second on none after `until`."""
    named = dict(model.named_parameters())
    inside = "model.layers."
    parts = [{name: weight for name, weight in named.items() if not name.startswith(inside)}]
    parts += [
        {name: weight for name, weight in named.items() if name.startswith(f"{inside}{at}.")} for at in range(most)
    ]
    files: list[Path] = []
    for part in parts:
        if len(files) > 1 and time.perf_counter() > until:
            break
        file = folder / f"{len(files):03d}.safetensors"
        save_file({name: weight.detach().cpu() for name, weight in part.items()}, file)
        with file.open("rb") as written:
            os.fsync(written)  # else its time would be spent where nobody looks, and it could not be forgotten
        files.append(file)
    return files


def read(rig: Rig, files: list[Path]) -> dict[str, Any]:
    """A model of these files' layers, filled as a start fills it, and let go."""
    config = type(rig.config)(**{**rig.config.to_dict(), "num_hidden_layers": len(files) - 1})
    built = network.build(config, next(rig.network.parameters()).dtype)
    report = network.fill(built, files, rig.device)
    return {"bytes_per_second": report.bytes / report.seconds} | _told(report)


def _told(report: loading.Report) -> dict[str, Any]:
    return {
        "bytes": report.bytes,
        "seconds": report.seconds,
        "reading": report.reading,
        "each_reading": report.each_reading,
        "fetched": report.fetched,
    }


def forget(files: list[Path]) -> None:
    """Have the kernel drop these files, which are on the disk, from its page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_rate(device: torch.device) -> float:
    """Bytes a second of large copies from the host's pinned memory."""
    source = torch.randint(0, 255, (COPIED,), dtype=torch.uint8).contiguous()
    source = source.pin_memory() if device.type == "cuda" else source
    target = torch.empty_like(source, device=device)
    return COPIED / timed(device, lambda: target.copy_(source, non_blocking=True), repeats=5).seconds


def _layer_bytes(model: PreTrainedModel) -> int:
    return sum(weight.nbytes for name, weight in model.named_parameters() if name.startswith("model.layers.0."))


def _free(device: torch.device) -> int:
    """Bytes that can be taken on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.host().free
