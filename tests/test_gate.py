"""scripts/kernels.py: every kernel of a step is compiled for both cards, here, and stays within its bounds."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts import kernels
from tests.conftest import ROOT

SHARED = {90: 232_448, 120: 101_376}  # bytes a program may have; CUDA C++ programming guide, table of capabilities
PRODUCTS = {"project", "gate_up", "down"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Python with its Triton cache in `folder`."""
    environ = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module", params=SHARED)
def compiled(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    """What the compiler says of each variant of each kernel."""
    done = run(folder, "-m", "tests.gate", str(request.param))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(600)
def test_every_kernel_is_within_its_bounds(compiled: list[dict[str, Any]]) -> None:
    names = Counter(kernel["kernel"] for kernel in compiled)
    assert names.keys() == PRODUCTS | {"sort", "dequantise", "_settle", "_rotate", "_attend", "_join"}
    for kernel in compiled:
        what = f"{kernel['kernel']} for {kernel['tokens']} tokens on sm_{kernel['capability']}"
        assert kernel["stack"] == 0, what  # nothing is spilled
        # Two programs must find room on a multiprocessor, of 65,536 registers and its shared memory.
        assert kernel["registers"] * kernel["threads"] <= 32_768, what
        assert 2 * (kernel["shared"] + 1024) <= SHARED[kernel["capability"]] + 1024, what
        if kernel["kernel"] in PRODUCTS | {"_attend"}:
            assert kernel["all"].get("LDGSTS", 0) > 0, f"{what}: no asynchronous copies"
            assert kernel["all"].get("HMMA", 0) + kernel["all"].get("HGMMA", 0) > 0, f"{what}: no tensor cores"


@pytest.mark.timeout(600)
def test_decoding_a_weight_takes_few_instructions(compiled: list[dict[str, Any]]) -> None:
    """At 1.79 TB/s an RTX 5090 has some 16 a weight, an H200 at 4.3 some 3.5: there it is these that limit."""
    small = [kernel for kernel in compiled if kernel["kernel"] in PRODUCTS and kernel["tokens"] <= 8]
    assert small
    for kernel in small:
        # A program has a row for two threads, and its loop takes 4 blocks of 64 columns.
        assert sum(kernel["loop"].values()) / (4 * 64 / 2) < 6.2


def test_what_is_compiled_once_is_found_again(compiled: list[dict[str, Any]], folder: Path) -> None:
    """As on a card whose image brings the cache along."""
    card = {90: "h200", 120: "rtx-5090"}[compiled[0]["capability"]]
    before = sorted(folder.rglob("*.cubin"))
    done = run(folder, "-m", "scripts.kernels", card)
    assert done.stdout == f"{len(compiled)} kernels for {card} in {folder}\n"
    assert sorted(folder.rglob("*.cubin")) == before
    assert len(list(folder.glob("*/cuda_utils*.so"))) == 1  # what launches them needs no compiler there either


def test_in_the_interpreter_nothing_is_compiled_and_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/kernels"])
    with pytest.raises(SystemExit) as refused:
        kernels.main()
    assert refused.value.code == "scripts/kernels: TRITON_INTERPRET is set, which compiles nothing"


def test_the_gate_sees_a_step_that_waits(folder: Path) -> None:
    """A launch that reads what the device has computed fails there, since nothing is."""
    code = (
        "from scripts import kernels\n"
        "from models.nf4 import products\n"
        "gather = products.gather\n"
        "products.gather = lambda *given: (found := gather(*given), found.starts.tolist())[0]\n"
        "kernels.compile_all((12, 0))\n"
    )
    done = run(folder, "-c", code)
    assert done.returncode != 0
    assert "meta" in done.stderr
