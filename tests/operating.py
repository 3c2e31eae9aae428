"""scripts/deploy as an operator runs it, against a control plane of ours: in this process, or in one that is killed."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import httpx
import pytest

from deploy.control import runpod
from scripts import deploy
from tests.control_plane import KEY, Plane, serve

ENVIRONMENT = {
    "RUNPOD_API_KEY": KEY,
    "ZOPILOT_GPU_API_KEY": "sesame,mellon",
    "ZOPILOT_REGISTRY_USER": "reader",
    "ZOPILOT_REGISTRY_PASSWORD": "swordfish",
}
IMAGE = "registry.example/zopilot-gpu:0.1.0"


def up(mode: str, *more: str) -> list[str]:
    return ["up", "--mode", mode, "--image", IMAGE, *more]


@dataclass(frozen=True)
class Ran:
    """The exit status and what was said."""

    status: int
    out: str
    err: str


@dataclass
class Operator:
    """Who runs the command; `waits` are the seconds that it would have slept."""

    plane: Plane
    capsys: pytest.CaptureFixture[str]
    waits: list[float] = field(default_factory=list)

    def run(self, *arguments: str) -> Ran:
        self.capsys.readouterr()
        try:
            status = call(self.plane.url, [*arguments])
        except SystemExit as ended:  # what argparse refuses
            assert isinstance(ended.code, int)
            status = ended.code
        captured = self.capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    def up(self, mode: str, *more: str) -> Ran:
        """With a volume first, where there is none; where that fails, no further."""
        made = self.run("volume")
        return made if made.status else self.run(*up(mode, *more))


def call(url: str, arguments: list[str]) -> int:
    """The command in this process, against the plane at `url`."""
    more = ["--api", url, "--pod-url", f"{url}/pod/{{id}}"] if url else []
    sys.argv = ["scripts/deploy", *arguments, *more]
    return deploy.main()


@contextmanager
def operate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Operator]:
    """An operator with an empty account, and no patience needed."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", sys.argv)
    # Certificates are read anew for each client, which takes longer than all of the rest.
    import httpx._transports.default as transports

    monkeypatch.setattr(transports, "create_ssl_context", cache(httpx.create_ssl_context))
    with serve() as plane:
        operator = Operator(plane, capsys)
        monkeypatch.setattr(runpod.Client, "sleep", lambda _, seconds: operator.waits.append(seconds))
        yield operator
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_hastily(url: str, arguments: list[str]) -> None:
    """In a process of its own: without a pause, and quiet."""
    os.environ.update(ENVIRONMENT)
    with pytest.MonkeyPatch.context() as patch, open(os.devnull, "w") as nowhere:
        patch.setattr(runpod.Client, "sleep", lambda self, seconds: None)
        patch.setattr(sys, "stdout", nowhere)
        patch.setattr(sys, "stderr", nowhere)
        sys.exit(call(url, arguments))


def run_killed(plane: Plane, arguments: list[str]) -> int:
    """The exit status of a process that the plane can kill; negative: the signal that ended it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.operating"])
    process = context.Process(target=run_hastily, args=(plane.url, arguments))
    with plane.lock:
        process.start()
        plane.prober = process.pid or 0
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode
