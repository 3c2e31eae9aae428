"""A float checkpoint turned into shards, tensor by tensor, in bounded memory: in NF4, or as it is in its row's dtype.

Knows nothing of the store.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from models.failure import Failure
from models.network import Need
from models.nf4.layout import Spec
from models.nf4.matrix import CHUNK, quantise
from models.source import Checkpoint

LAYER = re.compile(r"\.layers?\.(\d+)\.")


def write(
    checkpoint: Checkpoint, wanted: list[Need], specs: Mapping[str, Spec], folder: Path, on: torch.device
) -> None:
    """One file a layer into `folder`, `specs` giving every stored tensor by name; quantised on the device `on`.

    At no time more is held than one layer as it is stored, one float tensor of the source and some rows of it in fp32.
    """
    expected = {need.name: need.shape for need in wanted}
    if odd := expected.items() ^ checkpoint.shapes.items():
        raise Failure("source_invalid", f"the source does not hold what its config says: {min(odd)[0]}")
    total = sum(checkpoint.sizes.values())
    told = f"quantising on {on.type}" if any(need.index is not None for need in wanted) else "storing"
    with tqdm(total=total, unit="B", unit_scale=True, desc=told, smoothing=0) as bar:
        for file, needs in by_layer(wanted):
            tensors: dict[str, torch.Tensor] = {}
            for need in needs:
                put(need, checkpoint.read(need.name), specs, tensors, on)
                bar.update(checkpoint.sizes[need.name])
            save_file(tensors, folder / file, metadata={"format": "pt"})


def by_layer(wanted: Iterable[Need]) -> list[tuple[str, list[Need]]]:
    """File name → what goes into it: one file a layer, one for the rest."""
    found: dict[str, list[Need]] = {}
    for need in wanted:
        layer = LAYER.search(need.target)
        stem = f"layer-{int(layer[1]):03d}" if layer else "outside-layers"
        found.setdefault(f"{stem}.safetensors", []).append(need)
    return sorted(found.items())


def put(
    need: Need, weight: torch.Tensor, specs: Mapping[str, Spec], tensors: dict[str, torch.Tensor], on: torch.device
) -> None:
    """Add one float tensor to `tensors`: as it is, or in NF4 and in its place of the stack."""
    # In pieces: of a whole matrix the comparison alone would take 300 MB.
    if not all(torch.isfinite(piece).all() for piece in torch.split(weight.reshape(-1), CHUNK)):
        raise Failure("source_invalid", f"{need.name} of the source holds NaN or infinity")
    if need.index is None:
        tensors[need.target] = weight.to(getattr(torch, specs[need.target].dtype), copy=True).contiguous()
        return
    for part, tensor in quantise(weight, on)._asdict().items():
        name = f"{need.target}.{part}"
        if name not in tensors:
            tensors[name] = torch.empty(specs[name].shape, dtype=tensor.dtype)
        tensors[name][need.index] = tensor.cpu()
