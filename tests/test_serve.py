"""scripts/serve.py and the service's start: what cannot be served is refused with the numbers, before anything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import machine
from tests.conftest import ROOT, serve


def run(home: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "scripts.serve", *arguments],
        cwd=ROOT,
        env={**os.environ, "BENTOML_HOME": str(home), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_model_that_does_not_fit_is_not_even_downloaded(tmp_path: Path) -> None:
    """10,000,000 tokens of its KV cache are 1.3 TB, more than any machine that this runs on."""
    result = run(tmp_path, "--model", "mixtral-8x7b-instruct", TORCH_DEVICE="cpu", ZOPILOT_KV_TOKENS="10000000")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("zopilot-gpu: ")
    assert "mixtral-8x7b-instruct needs 1,335,741,386,240 bytes: 24,484,515,328 of weights" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(machine.card() is not None, reason="there is a GPU here")
def test_a_card_that_is_asked_for_and_not_there_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, TORCH_DEVICE="cuda")
    assert result.returncode == 1
    assert result.stderr == "zopilot-gpu: TORCH_DEVICE is cuda and there is no NVIDIA card here\n"


@pytest.mark.parametrize("name", ["TORCH_DEVICE", "ZOPILOT_KV_TOKENS"])
def test_a_setting_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    result = run(tmp_path, **{name: "rocm"})
    assert result.returncode == 1
    assert result.stderr.startswith(f"zopilot-gpu: {name} is 'rocm'; allowed: ")


def test_a_cache_that_does_not_fit_stops_the_service_before_its_port_is_bound(home: Path, tmp_path: Path) -> None:
    with serve(home, tmp_path / "log", ready=False, ZOPILOT_KV_TOKENS="10000000", TORCH_DEVICE="cpu") as server:
        assert server.process.wait(60) != 0
    said = (tmp_path / "log").read_text()
    assert "zopilot-gpu: cannot serve: memory: " in said
    assert "for 10,000,000 tokens of KV cache" in said
