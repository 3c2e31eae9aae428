"""deploy/__main__.py: what stops process 1 before anything is started, and how that is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.__main__ import REFUSED
from tests import edge
from tests.conftest import ROOT


def start(tmp_path: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "deploy"],
        cwd=ROOT,
        env={"BENTOML_HOME": str(tmp_path), "ZOPILOT_HOST": "127.0.0.1", "PORT": "1", **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_opens_more_than_the_service_is_refused(name: str, tmp_path: Path) -> None:
    done = start(tmp_path, **{name: "1"})
    assert done.returncode == 78
    assert done.stderr == f"zopilot-gpu: {name} must not be set: {REFUSED[name]}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ZOPILOT_MODE": "pod"}, "ZOPILOT_MODE is 'pod'; allowed: one of http, queue"),
        ({"PORT": "http"}, "PORT is 'http'; allowed: a whole number from 1 to 65535"),
        (
            {"RUNPOD_POD_ID": "p"},
            "ZOPILOT_GPU_API_KEY is not set; the proxy of a RunPod pod lets everyone in who knows",
        ),
        (
            {"RUNPOD_POD_ID": "p", "RUNPOD_ENDPOINT_ID": "e", "ZOPILOT_DEADLINE_MS": "400000"},
            "ZOPILOT_DEADLINE_MS is 400000; a RunPod load balancer ends a request after 330 seconds",
        ),
        ({"ZOPILOT_KV_TOKENS": "many"}, "ZOPILOT_KV_TOKENS is 'many'"),
        ({}, "there is no model store at "),
    ],
)
def test_a_configuration_that_cannot_hold_is_refused(environ: dict[str, str], message: str, tmp_path: Path) -> None:
    done = start(tmp_path, **environ)
    assert done.returncode == 78
    assert done.stderr.startswith(f"zopilot-gpu: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_cannot_start_ends_process_1_and_says_so(tmp_path: Path) -> None:
    """Nothing is imported in this store."""
    (tmp_path / "home" / "models").mkdir(parents=True)
    with edge.run(tmp_path / "home", tmp_path / "log", ready=False) as running:
        assert running.process.wait(60) == 69
    said = running.log.read_text()
    assert "zopilot-gpu: cannot serve: " in said
    assert said.endswith("zopilot-gpu: the service could not be started; the lines above say why\n")
