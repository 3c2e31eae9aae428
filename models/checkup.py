"""Whether this machine can serve: every condition looked at and told in one line, before anything is loaded.

`software` and models/machine.py find the facts, the checks judge them; the same run at boot and in scripts/doctor.
"""

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from sysconfig import get_paths

from models import catalog, machine, manifest, plan
from models.catalog import Model
from models.failure import Failure
from models.machine import Machine
from models.origin import Hub

PYTHON = (3, 11)
# The oldest Linux driver that runs programs built for a CUDA of this major version ("CUDA Compatibility" and the
# release notes of CUDA, table of driver versions, docs.nvidia.com); cards of capability 12 came with 570.
DRIVERS = {12: 525, 13: 580}
DRIVER_OF_CAPABILITY_12 = 570


@dataclass(frozen=True)
class Software:
    """What is installed. `torch` and `bitsandbytes` are "" where they are not, `cuda` is "" in a build for CPUs,
    `torch_card` is the UUID of the card that torch would use, `launcher` where Triton's launcher comes from."""

    python: tuple[int, int]
    platform: str
    torch: str
    cuda: str
    architectures: tuple[str, ...]
    torch_sees_card: bool
    torch_card: str
    bitsandbytes: str
    bitsandbytes_for_cuda: bool
    launcher: str


@dataclass(frozen=True)
class Check:
    """One condition: what was found, and where it does not hold what is needed and how to mend it."""

    subject: str
    found: str
    mend: str = ""

    @property
    def holds(self) -> bool:
        return not self.mend

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}" + (f"; {self.mend}" if self.mend else "")


def choose(name: str, device: str, visible: str) -> tuple[Model, Machine]:
    """The row to serve ("": the machine's default), and the card or host that is to serve it."""
    here = machine.look(device, visible)
    return catalog.row(name, here.device == "cuda"), here


def software() -> Software:
    """Look at this process; a library that cannot be imported counts as not installed."""
    torch_version = cuda = uuid = quantiser = ""
    architectures: tuple[str, ...] = ()
    sees_card = for_cuda = False
    launcher = ""
    try:
        import torch

        torch_version, cuda = str(torch.__version__), torch.version.cuda or ""
        sees_card = torch.cuda.is_available()
        architectures = tuple(torch.cuda.get_arch_list()) if sees_card else ()
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}" if sees_card else ""
        from bitsandbytes import cextension

        quantiser = version("bitsandbytes")
        for_cuda = isinstance(cextension.lib, cextension.CudaBNBNativeLibrary)
        launcher = _launcher()
    except (ImportError, OSError, PackageNotFoundError):
        pass
    python = sys.version_info[:2]
    where = f"{platform.system()} {platform.machine()}"
    return Software(python, where, torch_version, cuda, architectures, sees_card, uuid, quantiser, for_cuda, launcher)


def _launcher() -> str:
    """Where Triton has the little library that launches kernels, or can build it; "" where it can do neither."""
    from triton import knobs

    if any(Path(knobs.cache.dir).glob("*/cuda_utils*.so")):
        return "in Triton's cache"
    compiler = shutil.which("gcc") or shutil.which("clang")
    return f"built by {compiler}" if compiler and Path(get_paths()["include"], "Python.h").exists() else ""


def examine(model: Model, store: Path, here: Machine, kv_tokens: int = 0) -> list[Check]:
    """All checks for serving `model` from `store` here with `kv_tokens` tokens of KV cache (0: what fits)."""
    return _examine(judge_store(model, store), model, store, here, kv_tokens)


def examine_import(model: Model, store: Path, here: Machine, kv_tokens: int = 0) -> list[Check]:
    """All that can be known before `model` is fetched: it would be of no use here, or there is no room for it."""
    return _examine(judge_disk(model, store), model, store, here, kv_tokens)


def _examine(stored: Iterator[Check], model: Model, store: Path, here: Machine, kv_tokens: int) -> list[Check]:
    found = software()
    checks = [*judge_software(found), *stored]
    if here.device == "cuda":
        checks += judge_card(found, here)
    return [*checks, judge_memory(model, store, here, kv_tokens)]


def require(checks: list[Check]) -> None:
    """Failure with one line for each check that does not hold."""
    if failed := [str(check) for check in checks if not check.holds]:
        raise Failure("machine_unfit", "\n".join(failed))


def judge_software(found: Software) -> Iterator[Check]:
    """Python, torch and bitsandbytes, whatever they are to run on."""
    python = ".".join(map(str, found.python))
    yield Check(
        "python", python, "" if found.python >= PYTHON else "3.11 or newer is needed: install one, remove .venv"
    )
    known = found.platform == "Linux x86_64"
    yield Check("platform", found.platform, "" if known else "Linux x86_64 is needed: the wheels are built for it")
    for name, installed in (("torch", found.torch), ("bitsandbytes", found.bitsandbytes)):
        mend = "" if installed else "it is needed: run scripts/install requirements.lock"
        yield Check(name, installed or "cannot be imported", mend)


def judge_card(found: Software, card: Machine) -> Iterator[Check]:
    """Driver, torch's CUDA build, its compiled architectures, and bitsandbytes' library for this card."""
    major, minor = card.capability
    if not found.cuda:
        mend = f"a CUDA build is needed for the {card.name}: install it, or set TORCH_DEVICE=cpu"
        yield Check("torch build", f"{found.torch or 'none'}, without CUDA", mend)
        return
    floor, why = DRIVERS.get(int(found.cuda.split(".")[0]), 0), f"CUDA {found.cuda}"
    if major >= 12 and floor < DRIVER_OF_CAPABILITY_12:
        floor, why = DRIVER_OF_CAPABILITY_12, f"the {card.name}"
    old = int(card.driver.split(".")[0]) < floor
    yield Check("driver", card.driver, f"{floor} or newer is needed for {why}: update it" if old else "")
    mend = "" if found.torch_sees_card else "torch finds no card: check driver, CUDA_VISIBLE_DEVICES, container"
    yield Check("torch build", f"CUDA {found.cuda}", mend)
    if found.torch_sees_card:
        same = found.torch_card == card.uuid
        mend = "" if same else f"torch would use {found.torch_card}: name one card in CUDA_VISIBLE_DEVICES"
        yield Check("card", f"{card.name} {card.uuid}", mend)
        runs = any(_runs(name, major, minor) for name in found.architectures)
        mend = "" if runs else f"sm_{major}{minor} is needed for the {card.name}: install a torch built for it"
        yield Check("architectures", " ".join(found.architectures), mend)
        mend = "" if found.bitsandbytes_for_cuda else f"one for CUDA {found.cuda} is needed: install its wheel again"
        yield Check("bitsandbytes library", "CUDA" if found.bitsandbytes_for_cuda else "none for CUDA", mend)
        mend = "" if found.launcher else "gcc and Python.h are needed, or the cache that scripts/kernels makes"
        yield Check("kernel launcher", found.launcher or "none", mend)


def _runs(architecture: str, major: int, minor: int) -> bool:
    """Whether code for `architecture` (sm_89, sm_90a, compute_80) runs on a card of this capability.

    CUDA C++ Programming Guide, "Binary compatibility": sm code runs on the same major and an equal or higher minor
    version, compute (PTX) on anything newer; a letter ties it to just one capability.
    """
    kind, _, number = architecture.partition("_")
    exact = not number.isdigit()
    built = divmod(int(number.rstrip("af")), 10)
    if exact:
        return built == (major, minor)
    return built <= (major, minor) and (kind == "compute" or built[0] == major)


def judge_store(model: Model, store: Path) -> Iterator[Check]:
    """Whether the model is there and can be read; if not, whether the disk has room to import it."""
    try:
        described = manifest.read(manifest.locate(model, store))
    except Failure as failure:
        if failure.code == "model_broken":
            yield Check("store", "its item is broken", failure.message)
            return
        yield Check("store", f"{model.name} is not imported", f"run scripts/import_model {model.name}")
        yield from judge_disk(model, store)
    else:
        yield Check("store", f"{described.tag}, {described.resident_bytes:,} bytes")


def judge_disk(model: Model, store: Path) -> Iterator[Check]:
    """Whether an import has room: the item in the store, and a hub's 16-bit files in the hub's cache."""
    planned = plan.of_row(model)
    needed = [("disk of the store", store, planned.weights)]
    if isinstance(model.source, Hub):
        from huggingface_hub.constants import HF_HUB_CACHE

        needed.append(("disk of the hub's cache", Path(HF_HUB_CACHE), planned.parameters * 2))
    for subject, path, _ in needed:
        shared = sum(more for _, other, more in needed if machine.disk_of(other) == machine.disk_of(path))
        free = machine.disk_free(path)
        mend = "" if free >= shared else f"{shared:,} are needed for the import: free some, or use a larger volume"
        yield Check(subject, f"{free:,} bytes free", mend)


def judge_memory(model: Model, store: Path, here: Machine, kv_tokens: int) -> Check:
    """Whether weights, workspace and KV cache fit."""
    try:
        item = manifest.locate(model, store)
        planned = plan.of_item(model.name, item, model.dtype, model.bits)
    except Failure:
        planned = plan.of_row(model)
    found = f"{here.free:,} bytes free on {here.name}"
    if aside := plan.set_aside(store):
        found += f", {aside:,} of them for encoders"
    try:
        tokens = planned.budget(replace(here, free=here.free - aside).within(model.memory), kv_tokens)
    except Failure as failure:
        return Check("memory", found, failure.message)
    return Check("memory", f"{found}: {tokens:,} tokens of KV cache fit")
