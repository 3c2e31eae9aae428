"""A stored model's description of itself, and the proof that its files are still what was imported. Knows no torch."""

import json
import platform
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from importlib.metadata import version as library_version
from io import StringIO
from pathlib import Path
from typing import Any

from models.catalog import Row
from models.failure import Failure

FORMAT = 2
FILE = "manifest.json"


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
    ledger: dict[str, int]
    files: dict[str, dict[str, Any]]

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def resident_bytes(self) -> int:
        return sum(self.ledger.values())


def item_version(revision: str, model: Row) -> str:
    """The Bento version of an item made from `revision` of a source: with how its matrices lie in it."""
    return f"{revision}-{'nf4' if model.bits == 4 else model.dtype}-{FORMAT}"


def locate(model: Row, store: Path) -> Path:
    """The item to serve: the pinned revision, else the latest import from a folder. Failure tells how to import one."""
    try:
        return _locate(model, store)
    except OSError as error:
        raise Failure("model_broken", f"the model store cannot be read: {error.strerror}") from error


def _locate(model: Row, store: Path) -> Path:
    pinned = store / model.name / item_version(model.source.revision[:12], model)
    if (pinned / FILE).is_file():
        return pinned
    latest = store / model.name / "latest"
    if latest.is_file():
        item = latest.parent / latest.read_text().strip()
        # Where no revision is pinned, any that was named to the import will do.
        ours = item.name.startswith("folder-") or not model.source.revision
        if ours and (item / FILE).is_file():
            return item
    raise Failure("model_not_imported", f"{model.name} is not imported: run scripts/import_model {model.name}")


def describe(path: Path) -> dict[str, Any]:
    """Digest and size of one file."""
    with path.open("rb") as file:
        return {"sha256": file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def write(manifest: Manifest, item: Path) -> None:
    """Write it into the item, sealed with a digest of its own."""
    body = asdict(manifest)
    sealed = {"manifest": body, "sha256": sha256(_canonical(body)).hexdigest()}
    (item / FILE).write_text(json.dumps(sealed, indent=1) + "\n")


def read(item: Path) -> Manifest:
    """The item's manifest; Failure where it is missing, damaged or of another format."""
    try:
        sealed = json.loads((item / FILE).read_text())
        body = sealed["manifest"]
        if sha256(_canonical(body)).hexdigest() != sealed["sha256"]:
            raise ValueError("digest")
        manifest = Manifest(**body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(item.parent.name, item.name, "its manifest is missing or damaged") from error
    if manifest.format != FORMAT:
        raise _broken(manifest.name, manifest.version, f"it has format {manifest.format}, not {FORMAT}")
    return manifest


def bento_yaml(name: str, version: str, about: dict[str, Any]) -> str:
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


def verify(item: Path) -> Manifest:
    """Compare every byte of the item with its manifest; Failure names the first file that differs."""
    manifest = read(item)
    for name, expected in manifest.files.items():
        if _describe_or_nothing(item / name) != expected:
            raise _broken(manifest.name, manifest.version, f"{name} is not what was imported")
    return manifest


def _describe_or_nothing(path: Path) -> dict[str, Any] | None:
    try:
        return describe(path)
    except OSError:  # missing, or a sector that cannot be read
        return None


def _broken(name: str, version: str, why: str) -> Failure:
    return Failure("model_broken", f"{name}:{version}: {why}; run scripts/import_model {name} to mend it")


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
