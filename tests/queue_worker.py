"""The image's process 1 as a worker of the queue in queue_plane.py: started, killed and looked into as RunPod would."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import ROOT
from tests.queue_plane import FINAL, Job, Plane

SERVICE_KEY = "of-the-operator"


@dataclass(frozen=True)
class Worker:
    """`name` is RunPod's for it."""

    plane: Plane
    name: str
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        """Of the service behind it, of which nobody else is told."""
        found = re.findall(r"listening on (http://[\d.:]+)", self.log.read_text())
        return str(found[-1])

    def service(self, path: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}{path}", headers={"x-api-key": SERVICE_KEY})
        return dict(answer.json())

    def family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill_service(self) -> bool:
        """The process that has the model; whether there was one."""
        for each in self.family():
            with suppress(psutil.Error):
                if any("_bentoml_impl.worker.service" in part for part in each.cmdline()):
                    each.kill()
                    return True
        return False

    def terminate(self) -> int:
        """Told to end; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """With all that is in its container, as the end of a process 1 does."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        for each in family:
            with suppress(psutil.Error):
                each.kill()


@contextmanager
def work(plane: Plane, home: Path, log: Path, name: str, *, ready: bool = True, **environ: str) -> Iterator[Worker]:
    """A worker until the block ends; waits until it takes jobs unless told otherwise."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ZOPILOT", "BENTOML", "RUNPOD"))}
    mode = {"ZOPILOT_MODE": "queue", "ZOPILOT_GPU_API_KEY": SERVICE_KEY, "BENTOML_HOME": str(home)}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy"],
            cwd=ROOT,
            env={**kept, **mode, **plane.environ(name), **environ},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    worker = Worker(plane, name, log, process)
    try:
        if ready:
            wait(lambda: f"/{name}?" in " ".join(plane.requests) or process.poll() is not None, 90)
            assert process.poll() is None, log.read_text()[-3000:]
        yield worker
    finally:
        worker.kill()


def wait(until: Callable[[], Any], seconds: float = 60.0) -> None:
    """Fails where it does not come true in time."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            pytest.fail("it did not come true in time")
        time.sleep(0.02)


def submit(plane: Plane, given: Any) -> Job:
    """A job as a client makes it."""
    told = httpx.post(f"{plane.url}/v2/ep/run", content=dumps({"input": given}), headers=JSON).json()
    return plane.jobs[told["id"]]


def ask(plane: Plane, given: Any, seconds: float = 60.0) -> Job:
    """The job when it has ended."""
    job = submit(plane, given)
    wait(lambda: job.status in FINAL, seconds)
    return job


def cancel(job: Job, plane: Plane) -> None:
    httpx.post(f"{plane.url}/v2/ep/cancel/{job.id}")


JSON = {"content-type": "application/json"}


def dumps(value: Any) -> bytes:
    """With what JSON does not have, for a client may send it."""
    return json.dumps(value).encode()
