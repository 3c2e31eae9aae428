"""Weights in the Bento model store: imported once, published atomically, verified byte for byte, loaded.

An item is an ordinary Bento model. It appears under its name only when whole: everything is written and synced in a
staging folder beside the store, then renamed. Knows nothing of serving.
"""

import json
import logging
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from importlib.metadata import version as library_version
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from models import network, source
from models.catalog import Model
from models.failure import Failure
from models.nf4 import layout

log = logging.getLogger("zopilot.import")

FORMAT = 1
MANIFEST = "manifest.json"
LIBRARIES = ("bentoml", "bitsandbytes", "safetensors", "torch", "transformers")
ABANDONED_AFTER = 24 * 3600.0


@dataclass(frozen=True)
class Manifest:
    """What an item holds: every file with its digest, and the exact bytes its tensors take in memory."""

    format: int
    name: str
    version: str
    architecture: str
    bits: int
    dtype: str
    source: dict[str, str]
    quantised_on: str
    libraries: dict[str, str]
    nf4_bytes: int
    other_bytes: int
    files: dict[str, dict[str, Any]]

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def resident_bytes(self) -> int:
        return self.nf4_bytes + self.other_bytes


@dataclass(frozen=True)
class Loaded:
    """A model ready to compute."""

    manifest: Manifest
    network: nn.Module
    tokenizer: PreTrainedTokenizerFast
    device: torch.device


def find(model: Model, store: Path) -> Path | None:
    """The item to serve for this row: the pinned revision, else the newest import from a folder."""
    pinned = store / model.name / item_version(model.source.revision[:12])
    if (pinned / MANIFEST).is_file():
        return pinned
    try:
        latest = (store / model.name / "latest").read_text().strip()
    except OSError:
        return None
    item = store / model.name / latest
    return item if latest.startswith("folder-") and (item / MANIFEST).is_file() else None


def item_version(revision: str) -> str:
    return f"{revision}-nf4-{FORMAT}"


def read_manifest(item: Path) -> Manifest:
    """The item's manifest; Failure where it is missing, damaged or of another format."""
    try:
        sealed = json.loads((item / MANIFEST).read_text())
        body = sealed["manifest"]
        if sha256(_canonical(body)).hexdigest() != sealed["sha256"]:
            raise ValueError("digest")
        manifest = Manifest(**body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure("model_broken", f"{item.parent.name}: the manifest is missing or damaged") from error
    if manifest.format != FORMAT:
        raise Failure("model_broken", f"{manifest.tag} has format {manifest.format}, not {FORMAT}")
    return manifest


def verify(item: Path) -> Manifest:
    """Compare every byte of the item with its manifest; Failure names the first file that differs."""
    manifest = read_manifest(item)
    for name, expected in manifest.files.items():
        path = item / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise Failure("model_broken", f"{manifest.tag}: {name} is missing or has another size")
        with path.open("rb") as file:
            if file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise Failure("model_broken", f"{manifest.tag}: {name} is not what was imported")
    return manifest


def load(item: Path, device: torch.device) -> Loaded:
    """Verify, build on meta, fill, and prove that what lies in memory is what the manifest says."""
    manifest = verify(item)
    built = network.build(AutoConfig.from_pretrained(item), getattr(torch, manifest.dtype))
    network.fill(built, sorted(item.glob("*.safetensors")), device)
    resident = network.resident_bytes(built)
    if resident != manifest.resident_bytes:
        raise Failure(
            "model_broken",
            f"{manifest.tag} takes {resident:,} bytes in memory, its manifest says {manifest.resident_bytes:,}",
        )
    return Loaded(manifest, built, AutoTokenizer.from_pretrained(item), device)


def import_model(model: Model, store: Path, folder: Path | None = None, token: str = "") -> str:
    """Import `model` unless a whole item is there already; returns its tag. Safe to interrupt and to run twice at once."""
    version = item_version(source.revision(model, folder))
    item = store / model.name / version
    if item.exists():
        try:
            verify(item)
        except Failure as broken:
            log.warning("%s; importing it again", broken.message)
        else:
            _point_latest(item)
            return f"{model.name}:{version}"
    store.mkdir(parents=True, exist_ok=True)
    staging = _staging(store)
    sweep(staging)
    work = staging / f"{model.name}.{version}.{socket.gethostname()}.{os.getpid()}"
    try:
        for part in ("item", "source"):
            (work / part).mkdir(parents=True)
        checkpoint = source.open_source(model, folder, work / "source", token)
        _write(checkpoint, model, version, work / "item")
        publish(work / "item", item, work / "replaced")
    except OSError as error:
        # No file name: the message may travel further than this terminal.
        raise Failure("import_failed", f"the import stopped: {os.strerror(error.errno or 0)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return f"{model.name}:{version}"


def _staging(store: Path) -> Path:
    """Beside the store, on its file system, since BentoML reads every folder inside it as a model."""
    staging = store.resolve().parent / "models.staging"
    staging.mkdir(exist_ok=True)
    if staging.stat().st_dev != store.resolve().stat().st_dev:
        raise Failure(
            "import_failed",
            "the model store is a mount point; link it to a folder of the volume instead, "
            "so that an import can be renamed into place",
        )
    return staging


def sweep(staging: Path) -> None:
    """Remove what importers that no longer run have left behind."""
    for work in staging.iterdir():
        host, _, pid = work.name.rpartition(".")
        here = host.endswith(f".{socket.gethostname()}") and pid.isdigit()
        if here:
            dead = int(pid) != os.getpid() and not Path(f"/proc/{pid}").exists()
        else:
            dead = time.time() - work.stat().st_mtime > ABANDONED_AFTER
        if dead:
            shutil.rmtree(work, ignore_errors=True)


def _write(checkpoint: source.Checkpoint, model: Model, version: str, item: Path) -> None:
    """Quantise layer by layer into one shard each, then config, tokenizer, model.yaml and the manifest."""
    dtype = getattr(torch, model.dtype)
    quantised = {f"{path}.weight" for path in network.linear_paths(network.outline(checkpoint.config, dtype))}
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nf4_bytes = other_bytes = 0
    total = sum(prod(shape) for shape in checkpoint.shapes.values())
    with tqdm(total=total, unit="weights", unit_scale=True, desc="quantising", smoothing=0) as bar:
        for shard, names in _shards(checkpoint.shapes):
            tensors: dict[str, torch.Tensor] = {}
            for name in names:
                weight = checkpoint.read(name)
                if name in quantised:
                    packed = layout.quantise(weight.to(on, torch.float32))
                    parts = {
                        f"{name.removesuffix('weight')}{part}": tensor.cpu()
                        for part, tensor in packed._asdict().items()
                    }
                    nf4_bytes += network.bytes_of(parts)
                else:
                    parts = {name: weight.to(dtype).contiguous()}
                    other_bytes += network.bytes_of(parts)
                tensors |= parts
                bar.update(weight.numel())
            save_file(tensors, item / shard, metadata={"format": "pt"})
    checkpoint.config.to_json_file(item / "config.json")
    checkpoint.tokenizer.save_pretrained(item)
    about = {"source": checkpoint.origin, "bits": model.bits, "architecture": model.architecture}
    (item / "model.yaml").write_text(_bento_yaml(model.name, version, about))
    manifest = Manifest(
        format=FORMAT,
        name=model.name,
        version=version,
        architecture=model.architecture,
        bits=model.bits,
        dtype=model.dtype,
        source=checkpoint.origin,
        quantised_on=on.type,
        libraries={name: library_version(name) for name in LIBRARIES},
        nf4_bytes=nf4_bytes,
        other_bytes=other_bytes,
        files={path.name: _describe(path) for path in sorted(item.iterdir())},
    )
    body = asdict(manifest)
    sealed = {"manifest": body, "sha256": sha256(_canonical(body)).hexdigest()}
    (item / MANIFEST).write_text(json.dumps(sealed, indent=1) + "\n")


def _shards(shapes: Iterable[str]) -> list[tuple[str, list[str]]]:
    """File name → tensor names: one shard a layer, one for the rest."""
    shards: dict[str, list[str]] = {}
    for name in shapes:
        before, found, after = name.partition(".layers.")
        shard = f"layer-{int(after.split('.')[0]):03d}" if found and before else "outside-layers"
        shards.setdefault(f"{shard}.safetensors", []).append(name)
    return sorted(shards.items())


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _bento_yaml(name: str, version: str, about: dict[str, Any]) -> str:
    """model.yaml, the file that makes a folder a Bento model, in BentoML's own words."""
    from bentoml import Tag
    from bentoml._internal.models.model import ModelContext, ModelInfo

    context = ModelContext(
        framework_name="torch",
        framework_versions={"torch": library_version("torch")},
        python_version=platform.python_version(),
    )
    text = StringIO()
    ModelInfo(
        tag=Tag(name, version),
        module="",
        labels={},
        options={},
        metadata=about,
        context=context,
        signatures={},
        api_version="v1",
    ).dump(text)
    return text.getvalue()


def publish(staged: Path, item: Path, replaced: Path) -> None:
    """Make the staged folder visible as `item` in one rename; a broken item in its place goes to `replaced`."""
    for path in staged.iterdir():
        path.chmod(0o644)
        _sync(path)
    staged.chmod(0o755)
    _sync(staged)
    item.parent.mkdir(parents=True, exist_ok=True)
    if item.exists():
        item.rename(replaced)
    try:
        staged.rename(item)
    except OSError:
        verify(item)  # another importer was first; its work is as good as ours if it is whole
    _sync(item.parent)
    _point_latest(item)


def _point_latest(item: Path) -> None:
    """Write `<name>/latest` so that no reader ever sees half of it."""
    latest = item.parent / "latest"
    if latest.is_file() and latest.read_text().strip() == item.name:
        return
    fresh = item.parent / f"latest.{socket.gethostname()}.{os.getpid()}"
    fresh.write_text(item.name)
    _sync(fresh)
    fresh.replace(latest)
    _sync(item.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
