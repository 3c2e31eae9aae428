"""A worker's own life: told to end, cut, crashed or killed, each job that it took has exactly one end."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy import worker as module
from deploy.backend import CRASHED, CUT, DRAINED
from settings import Container, SettingError
from tests.conftest import ROOT
from tests.queue_plane import FINAL, Job, Plane
from tests.queue_worker import Worker, cancel, submit, wait, work

MODEL = "smollm2-135m-instruct"
SHORT = {"prompt": "Where?", "context": {"document": "Oslo, 12.50"}, "labels": ["Rome", "Oslo"]}
LONG = {"route": "/v1/completions", "body": {"model": MODEL, "prompt": "Dear Sir,", "max_tokens": 8000}}


@pytest.fixture
def own_home(tiny_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_home, tmp_path / "home"))


@contextmanager
def queue(hold: float = 2.0) -> Iterator[Plane]:
    """At its end every worker has kept to the rules."""
    with Plane(hold).open() as plane:
        yield plane
        assert plane.faults == []


def why(job: Job) -> dict[str, Any]:
    assert job.status == "FAILED"
    told: dict[str, Any] = json.loads(job.error)
    return told


def polls(plane: Plane) -> int:
    return len([path for path in plane.requests if "/job-take" in path])


def test_who_is_no_worker_of_a_queue_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="RunPod queue"):
        module.prepare(Container(mode="queue"))
    module.prepare(Container(mode="queue", take_url="http://x/job-take/$ID?gpu=x", pod="p"))
    monkeypatch.setenv("ZOPILOT_MAX_BODY", "20000000")
    with pytest.raises(SettingError, match="a RunPod queue takes 10000000 bytes"):
        module.prepare(Container(mode="queue", take_url="http://x/job-take/$ID?gpu=x", pod="p"))


def test_a_port_of_the_sdks_own_is_refused() -> None:
    environ = {**os.environ, "ZOPILOT_MODE": "queue", "RUNPOD_REALTIME_PORT": "9000"}
    done = subprocess.run([sys.executable, "-m", "deploy"], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 78
    assert "RUNPOD_REALTIME_PORT must not be set" in done.stderr


def test_a_service_that_cannot_be_started_takes_no_job(tmp_path: Path) -> None:
    (tmp_path / "empty" / "models").mkdir(parents=True)
    with queue() as plane, work(plane, tmp_path / "empty", tmp_path / "log", "w", ready=False) as worker:
        job = submit(plane, SHORT)
        assert worker.process.wait(60) == CRASHED
        assert "could not be started" in worker.log.read_text()
        assert (job.status, polls(plane)) == ("IN_QUEUE", 0)


def test_told_to_end_while_it_loads(own_home: Path, tmp_path: Path) -> None:
    with queue() as plane, work(plane, own_home, tmp_path / "log", "w", ready=False) as worker:
        wait(lambda: "listening on" in worker.log.read_text())
        family = worker.family()
        assert worker.terminate() == DRAINED
        assert polls(plane) == 0
        wait(lambda: not any(each.is_running() for each in family), 10)


def test_what_its_last_poll_brings_is_answered_and_what_takes_too_long_is_told_so(
    own_home: Path, tmp_path: Path
) -> None:
    """The SDK's own would take that job and never run it; and it would wait for polls that are held for a minute."""
    with queue(hold=90) as plane, work(plane, own_home, tmp_path / "log", "w", ZOPILOT_GRACE="6") as worker:
        before = polls(plane)
        long = submit(plane, LONG)
        wait(lambda: long.status == "IN_PROGRESS" and polls(plane) > before)
        family = worker.family()
        worker.process.terminate()
        time.sleep(0.5)
        last = submit(plane, SHORT)
        assert worker.process.wait(60) == CUT
        late = submit(plane, SHORT)
        assert (last.status, last.taken) == ("COMPLETED", 1), last.error
        assert (why(long)["error_type"], why(long)["retryable"]) == ("draining", True)
        assert late.status == "IN_QUEUE"
        assert plane.lose("w") == []
        wait(lambda: not any(each.is_running() for each in family), 10)


# What is sent in the test of chaos: what comes of it if nothing befalls it, and how often it is sent.
MIX: list[tuple[Any, str, int]] = [
    (SHORT, "COMPLETED", 6),
    ({"prompt": "Who?", "labels": 7}, "FAILED", 2),
    ({**LONG, "body": {**LONG["body"], "max_tokens": 60}}, "COMPLETED", 4),  # type: ignore[dict-item]
    ({**LONG, "body": {**LONG["body"], "max_tokens": 60, "stream": True}}, "COMPLETED", 3),  # type: ignore[dict-item]
    ({"openai_route": "/v1/models"}, "COMPLETED", 1),
]


class Chaos:
    """Sends jobs, cancels some, and does to workers what befalls them; a worker that has ended is replaced."""

    def __init__(self, plane: Plane, home: Path, folder: Path, seed: int) -> None:
        self.plane = plane
        self.random = random.Random(seed)
        self.jobs: list[tuple[Job, str]] = []
        self.cancelled: set[str] = set()
        self.lost: list[str] = []  # by workers that were told to end
        self.statuses: list[int] = []
        self._home, self._folder = home, folder
        self._workers = 0

    def start(self, stack: ExitStack) -> Worker:
        self._workers += 1
        name = f"w{self._workers}"
        return stack.enter_context(work(self.plane, self._home, self._folder / "log", name, ready=False))

    def send(self, count: int, pause: float) -> None:
        """In a thread of its own."""
        for _ in range(count):
            ((given, ends, _),) = self.random.choices(MIX, [weight for *_, weight in MIX])
            job = submit(self.plane, given)
            self.jobs.append((job, ends))
            if self.random.random() < 0.2:
                threading.Timer(self.random.random() * 2, self._cancel, [job]).start()
            time.sleep(self.random.random() * pause)

    def _cancel(self, job: Job) -> None:
        self.cancelled.add(job.id)
        cancel(job, self.plane)

    def befall(self, what: str, worker: Worker) -> bool:
        """Whether the worker lives on."""
        if what == "crash":
            worker.kill_service()
            return worker.process.poll() is None
        if what == "end":
            self.statuses.append(worker.terminate())
            self.lost += self.plane.lose(worker.name)
        else:
            worker.kill()
            self.plane.lose(worker.name)  # which is not the worker's fault
        return False


def go_through(chaos: Chaos, count: int, pause: float, events: list[str]) -> None:
    """Each event befalls a worker that is at work, and until all jobs have an end there is a worker."""
    sender = threading.Thread(target=chaos.send, args=(count, pause))
    sender.start()
    with ExitStack() as stack:
        worker = chaos.start(stack)
        while sender.is_alive() or any(job.status not in FINAL for job, _ in list(chaos.jobs)):
            time.sleep(0.05)
            if worker.process.poll() is not None:
                chaos.lost += chaos.plane.lose(worker.name)
                chaos.statuses.append(worker.process.returncode)
                worker = chaos.start(stack)
            if events and chaos.plane.under_way(worker.name):
                time.sleep(chaos.random.random())
                if not chaos.befall(events.pop(0), worker):
                    worker = chaos.start(stack)
        sender.join()
        chaos.statuses.append(worker.terminate())


def check(chaos: Chaos) -> None:
    assert chaos.plane.faults == []
    assert chaos.lost == []
    assert set(chaos.statuses) <= {DRAINED, CRASHED}
    for job, ends in chaos.jobs:
        assert len(job.ends) == 1 and job.ends[0] == job.status, job
        if job.status == "CANCELLED":
            assert job.id in chaos.cancelled
        elif job.status == "FAILED" and ends != "FAILED":
            assert why(job)["error_type"] in ("interrupted", "model_unavailable", "draining"), job
        else:
            assert job.status == ends, job
    ended = {job.status for job, _ in chaos.jobs}
    assert ended == {"COMPLETED", "FAILED", "CANCELLED"}


def test_every_job_of_a_restless_queue_has_one_end(own_home: Path, tmp_path: Path) -> None:
    with queue() as plane:
        chaos = Chaos(plane, own_home, tmp_path, seed=1)
        go_through(chaos, 60, 0.1, ["crash", "end"])
        check(chaos)
        assert chaos.statuses == [DRAINED, DRAINED]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_one_of_500_jobs_has_one_end(own_home: Path, tmp_path: Path) -> None:
    events = ["crash", "end", "kill", "crash", "crash", "crash", "end", "crash", "kill", "end", "crash", "end"]
    with queue() as plane:
        chaos = Chaos(plane, own_home, tmp_path, seed=2)
        go_through(chaos, 500, 0.5, events)
        check(chaos)
        assert len(chaos.jobs) == 500 and not events
        assert len([job for job, _ in chaos.jobs if job.status == "COMPLETED"]) > 250
