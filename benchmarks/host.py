"""The machine that a benchmark ran on, and the versions of what ran there."""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import psutil


def describe(root: Path) -> dict[str, str]:
    """What a reader must know of this machine, by name."""
    return {
        "CPU": processor(Path("/proc/cpuinfo")),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "load at the start": f"{os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(root),
    }


def processor(info: Path) -> str:
    """The CPU's own name, and the instructions that matter for matrices."""
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(line.partition(":")[::2] for line in lines)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    flags = [flag for flag in wanted if flag in named.get("flags", "").split()]
    return f"{named.get('model name', platform.machine())} ({', '.join(flags)})"


def commit(root: Path) -> str:
    """The commit that is measured; a tree with changes says so."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def versions(venv: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Of distributions in a virtual environment; those that are not there are left out."""
    paths = [str(path) for path in venv.glob("lib/python*/site-packages")]
    found = {name: next(iter(metadata.distributions(name=name, path=paths)), None) for name in names}
    return {name: item.version for name, item in found.items() if item is not None}
