"""deploy/__main__.py: what stops process 1 before anything is started, and how that is told."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.__main__ import REFUSED
from tests import edge
from tests.conftest import ROOT, free_port


def start(tmp_path: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "deploy"],
        cwd=ROOT,
        env={"BENTOML_HOME": str(tmp_path), "ZOPILOT_HOST": "127.0.0.1", "PORT": str(free_port()), **environ},
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


@pytest.mark.parametrize("name", ["PORT", "PORT_HEALTH"])
def test_a_port_that_another_has_is_refused(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(tmp_path, **{name: str(port)})
    assert done.returncode == 78
    assert done.stderr.startswith(f"zopilot-gpu: port {port} of 127.0.0.1 is not to be had: Address already in use")


def test_told_to_end_before_there_is_anything_to_end_it_ends(tmp_path: Path) -> None:
    """As a process 1 it would not hear a signal that it has not asked for."""
    early = "import os, signal, settings, sys; from deploy import __main__;"
    early += " settings.harden_process = lambda: os.kill(os.getpid(), signal.SIGTERM); sys.exit(__main__.main())"
    done = subprocess.run([sys.executable, "-c", early], cwd=ROOT, env={"BENTOML_HOME": str(tmp_path)}, timeout=60)
    assert done.returncode == 0


def test_half_a_question_does_not_outlast_the_grace(tiny_home: Path, tmp_path: Path) -> None:
    home = edge.copy_home(tiny_home, tmp_path / "home")
    with edge.run(home, tmp_path / "log", ready=False, ZOPILOT_GRACE="1") as running:
        host, port = running.url.removeprefix("http://").split(":")
        asking = edge.connect(host, int(port))
        asking.sendall(b"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert running.end(20) == 75  # it may take 30 seconds to ask
        asking.close()


def test_a_service_that_cannot_start_ends_process_1_and_says_so(tmp_path: Path) -> None:
    """Nothing is imported in this store."""
    (tmp_path / "home" / "models").mkdir(parents=True)
    with edge.run(tmp_path / "home", tmp_path / "log", ready=False) as running:
        assert running.process.wait(60) == 69
    said = running.log.read_text()
    assert "zopilot-gpu: cannot serve: " in said
    assert said.endswith("zopilot-gpu: the service could not be started; the lines above say why\n")
