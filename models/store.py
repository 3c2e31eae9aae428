"""Weights in the Bento model store: imported once, quantised on the way, published atomically, loaded.

An item is an ordinary Bento model. It appears under its name only when whole: everything is written and synced in a
staging folder beside the store, then renamed. Knows nothing of serving.
"""

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from models import loading, machine, manifest, network, plan, shards, source
from models.catalog import Row
from models.failure import Failure
from models.manifest import Manifest

log = logging.getLogger("zopilot.import")

LIBRARIES = ("bentoml", "bitsandbytes", "safetensors", "torch", "transformers")
ABANDONED_AFTER = 24 * 3600.0


@dataclass(frozen=True)
class Loaded:
    """A model ready to compute, and how reading its weights went."""

    manifest: Manifest
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    report: loading.Report


def load(item: Path, device: torch.device) -> Loaded:
    """Build on meta, fill, and prove parameter by parameter that what lies in memory is what was imported and planned.

    Every file is compared with its digest in the manifest, the weights as they are read. Failure model_broken names
    the first file that differs.
    """
    described = manifest.read(item)
    try:
        return _load(described, item, device)
    except (Failure, OSError):
        manifest.verify(item)  # names the file whose damage shows itself in that error, if one is damaged
        raise


def _load(described: Manifest, item: Path, device: torch.device) -> Loaded:
    weights = sorted(name for name in described.files if name.endswith(".safetensors"))
    others = described.files.keys() - set(weights)
    _require_digests(described, {name: manifest.describe(item / name)["sha256"] for name in others})
    planned = plan.of_item(described.name, item, described.dtype, described.bits)
    if planned.ledger != described.ledger:
        raise Failure("model_broken", f"{described.tag}: the ledger of its manifest is not that of its config")
    built = network.build(AutoConfig.from_pretrained(item), getattr(torch, described.dtype), described.bits)
    report = network.fill(built, [item / name for name in weights], device)
    _require_digests(described, report.digests)
    network.prove(built, planned.specs, device)
    return Loaded(described, built, source.open_tokenizer(item), report)


def _require_digests(described: Manifest, found: Mapping[str, str]) -> None:
    for name, digest in sorted(found.items()):
        if digest != described.files[name]["sha256"]:
            raise Failure("model_broken", f"{described.tag}: {name}, as it was read, is not what was imported")


def import_model(
    model: Row, store: Path, folder: Path | None = None, token: str = "", *, cpu_only: bool = False
) -> str:
    """Import `model` unless a whole item is there already; returns its tag. Safe to interrupt and to run twice.

    The card quantises where torch finds one and `cpu_only` does not forbid it.
    """
    on = torch.device("cuda" if torch.cuda.is_available() and not cpu_only else "cpu")
    version = manifest.item_version(source.revision(model, folder), model)
    item = store / model.name / version
    with _errors_told():
        # Beside the store, since BentoML reads every folder inside it as a model.
        staging = store.resolve().parent / "models.staging"
        sweep(staging)
        if not _is_whole(item):
            _require_one_device(store, staging)
            work = staging / f"{model.name}.{version}.{socket.gethostname()}.{os.getpid()}"
            try:
                for part in ("item", "source"):
                    (work / part).mkdir(parents=True)
                checkpoint = source.open_source(model, folder, work / "source", token)
                _write(checkpoint, model, version, work / "item", on)
                publish(work / "item", item, work / "replaced")
            finally:
                shutil.rmtree(work, ignore_errors=True)
        _point_latest(item)
    return f"{model.name}:{version}"


@contextmanager
def _errors_told() -> Iterator[None]:
    """Give a Failure for what the disk refuses."""
    try:
        yield
    except Exception as error:
        # On a full disk safetensors and tokenizers raise errors of their own, the latter a bare Exception.
        if not isinstance(error, OSError | SafetensorError | torch.OutOfMemoryError) and type(error) is not Exception:
            raise
        # No file name: the message may travel further than this terminal.
        why = os.strerror(error.errno or 0) if isinstance(error, OSError) else error
        raise Failure("import_failed", f"the import stopped: {why}") from error


def _is_whole(item: Path) -> bool:
    if not item.exists():
        return False
    try:
        manifest.verify(item)
    except Failure as broken:
        log.warning("%s", broken.message)
        return False
    return True


def _require_one_device(store: Path, staging: Path) -> None:
    """Make both folders; Failure where nothing can be renamed from one into the other."""
    store.mkdir(parents=True, exist_ok=True)
    staging.mkdir(exist_ok=True)
    if staging.stat().st_dev != store.stat().st_dev:
        raise Failure(
            "import_failed",
            "the model store is a mount point; link it to a folder of the volume instead, "
            "so that an import can be renamed into place",
        )


def sweep(staging: Path) -> None:
    """Remove what importers that no longer run have left behind."""
    for work in staging.glob("*"):
        if _abandoned(work):
            shutil.rmtree(work, ignore_errors=True)


def _abandoned(work: Path) -> bool:
    """Whether its importer no longer runs. Our own number is one's before us: a restarted container counts anew."""
    owner, _, pid = work.name.rpartition(".")
    if not owner.endswith(f".{socket.gethostname()}"):
        return time.time() - work.stat().st_mtime > ABANDONED_AFTER
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return int(pid) == os.getpid()


def _write(checkpoint: source.Checkpoint, model: Row, version: str, item: Path, on: torch.device) -> None:
    """Quantise layer by layer into one shard each, then config, tokenizer, model.yaml and the manifest."""
    checkpoint.config.to_json_file(item / "config.json")
    planned = plan.of_item(model.name, item, model.dtype, model.bits)
    built = network.build(checkpoint.config, getattr(torch, model.dtype), model.bits)
    network.require(network.specs(built), planned.specs)
    _require_disk(item, planned.weights)
    shards.write(checkpoint, network.needs(built), planned.specs, item, on)
    checkpoint.tokenizer.save_pretrained(item)
    about = {"source": checkpoint.origin, "bits": model.bits, "architecture": model.architecture}
    (item / "model.yaml").write_text(manifest.bento_yaml(model.name, version, about))
    described = Manifest(
        format=manifest.FORMAT,
        name=model.name,
        version=version,
        architecture=model.architecture,
        bits=model.bits,
        dtype=model.dtype,
        source=checkpoint.origin,
        quantised_on=on.type,
        libraries={name: library_version(name) for name in LIBRARIES},
        ledger=planned.ledger,
        files={path.name: manifest.describe(path) for path in sorted(item.iterdir())},
    )
    manifest.write(described, item)


def _require_disk(item: Path, weights: int) -> None:
    if (free := machine.disk_free(item)) < weights:
        raise Failure("import_failed", f"the disk of the model store has {free:,} bytes free; {weights:,} are needed")


def publish(staged: Path, item: Path, replaced: Path) -> None:
    """Make the staged folder visible as `item` in one rename; a broken item in its place goes to `replaced`."""
    for path in staged.iterdir():
        path.chmod(0o644)
        _sync(path)
    staged.chmod(0o755)
    _sync(staged)
    item.parent.mkdir(parents=True, exist_ok=True)
    if item.exists() and not _is_whole(item):
        with suppress(FileNotFoundError):  # another importer has just taken it away
            item.rename(replaced)
    try:
        staged.rename(item)
    except OSError:
        manifest.verify(item)  # another importer was first; its work is as good as ours if it is whole
    _sync(item.parent)


def _point_latest(item: Path) -> None:
    """Write `<name>/latest` so that no reader ever sees half of it."""
    latest = item.parent / "latest"
    if latest.is_file() and latest.read_text().strip() == item.name:
        return
    for left in item.parent.glob("latest.*"):
        if _abandoned(left):
            left.unlink(missing_ok=True)
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
