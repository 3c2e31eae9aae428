"""Where a model is to compute: the card as its driver reports it, or the host's memory. Knows no torch and no model."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from models.failure import Failure

Device = Literal["cuda", "cpu"]
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """`free` bytes can be taken now, of `total`; `capability` and `driver` are a card's ((0, 0) and "" without one)."""

    device: Device
    name: str
    free: int
    total: int
    capability: tuple[int, int] = (0, 0)
    driver: str = ""
    uuid: str = ""

    def within(self, most: int) -> "Machine":
        """The same, of a card no more than `most` bytes of which can be taken; 0: all that is free."""
        return replace(self, free=min(self.free, most)) if most and self.device == "cuda" else self


# Bytes that CUDA shows to a program, rounded down from what programs report (torch.cuda.mem_get_info); a card's
# nominal size is some 2 % more. Capability: NVIDIA, developer.nvidia.com/cuda-gpus.
CARDS = {
    name: Machine("cuda", name, int(gib * 2**30), int(gib * 2**30), capability)
    for name, gib, capability in (
        ("rtx-3090", 23.5, (8, 6)),
        ("rtx-4090", 23.5, (8, 9)),
        ("rtx-5090", 31.36, (12, 0)),
        ("rtx-a6000", 47.4, (8, 6)),
        ("rtx-6000-ada", 47.3, (8, 9)),
        ("rtx-pro-6000", 94.9, (12, 0)),
        ("l4", 22.0, (8, 9)),
        ("l40s", 44.3, (8, 9)),
        ("a100-40gb", 39.3, (8, 0)),
        ("a100-80gb", 79.1, (8, 0)),
        ("h100-80gb", 79.1, (9, 0)),
        ("h200", 139.7, (9, 0)),
        ("b200", 178.3, (10, 0)),
    )
}


def look(device: str = "", visible: str = "") -> Machine:
    """This machine; `device` "cpu" ignores a card, "" takes one where there is one, "cuda" is a Failure without one."""
    found = None if device == "cpu" else card(visible)
    if device == "cuda" and found is None:
        raise Failure("machine_unfit", "TORCH_DEVICE is cuda and there is no NVIDIA card here")
    return found or host()


def card(visible: str = "") -> Machine | None:
    """The card that is to compute, or None where there is no NVIDIA driver or no card; Failure where it is broken.

    `visible` is CUDA_VISIBLE_DEVICES: its first entry counts, a number in the order of the PCI bus or a UUID.
    """
    visible = visible.split(",")[0].strip()
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None
    except pynvml.NVMLError as error:  # a driver that is there and broken must not pass for a machine without one
        raise Failure("machine_unfit", f"the NVIDIA driver cannot be used: {error}") from error
    try:
        if pynvml.nvmlDeviceGetCount() == 0:
            return None
        if visible.isdigit() or not visible:
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible or 0))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(visible)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
        name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        return Machine("cuda", name, int(memory.free), int(memory.total), capability, driver, uuid)
    except pynvml.NVMLError as error:
        raise Failure("machine_unfit", f"the NVIDIA driver does not answer for GPU {visible or 0}: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def host() -> Machine:
    """The memory of the host, or of the container where that has a bound of its own (cgroup v2)."""
    import psutil

    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    try:
        bound = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # What the kernel keeps of files it gives back when asked.
        used -= int(counts["active_file"]) + int(counts["inactive_file"])
    except (OSError, ValueError, KeyError):  # no bound ("max"), or no such file
        return Machine("cpu", "this host", free, total)
    return Machine("cpu", "this container", min(free, bound - used), min(total, bound))


def disk_free(path: Path) -> int:
    """Bytes that can be written where `path` is or would be made."""
    room = os.statvfs(_existing(path))
    return room.f_bavail * room.f_frsize


def disk_of(path: Path) -> int:
    """The number of the file system on which `path` is or would be made."""
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if os.access(parent, os.F_OK))
