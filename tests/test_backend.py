"""The service as a child, for real: it is known when it is ready, started again when it dies, and leaves nothing."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deploy import backend as module
from deploy.backend import Backend
from tests.conftest import free_port
from tests.queue_worker import wait

WORKER = "_bentoml_impl.worker.service"


@pytest.fixture
def own_home(tiny_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_home, tmp_path / "home"))


@contextmanager
def running(home: Path, **environ: str) -> Iterator[Backend]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ZOPILOT", "BENTOML"))}
    backend = Backend({**kept, "BENTOML_HOME": str(home), "BENTOML_CONTAINERIZED": "true", **environ})
    backend.start()
    try:
        yield backend
    finally:
        backend.stop(10)


def family(backend: Backend) -> list[psutil.Process]:
    assert backend._process is not None
    supervisor = psutil.Process(backend._process.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def serving(backend: Backend) -> psutil.Process:
    return next(each for each in family(backend) if any(WORKER in part for part in each.cmdline()))


def gone(each: psutil.Process) -> bool:
    try:
        return bool(each.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def all_gone(processes: list[psutil.Process]) -> bool:
    return all(gone(each) for each in processes)


def test_its_life(own_home: Path) -> None:
    """Ready; killed, and ready again; ended with more work in hand than there is time for; nothing is left."""
    with running(own_home, ZOPILOT_GPU_API_KEY="of-the-operator") as backend:
        assert backend.wait(60) and backend.ready and backend.starts == 1
        before = family(backend)
        serving(backend).kill()
        wait(lambda: not backend.ready, 5)
        wait(partial(all_gone, before), 10)
        assert backend.wait(90), backend.failed
        assert backend.starts == 2
        # Its own key beside the operator's.
        url = f"{backend.url}/info"
        shown: tuple[dict[str, str], ...] = ({}, {"x-api-key": "of-the-operator"}, backend.headers)
        assert [httpx.get(url, headers=headers).status_code for headers in shown] == [401, 200, 200]
        last = family(backend)
        asked = _ask_in_background(backend, 8000)
        wait(lambda: httpx.get(f"{backend.url}/health").json()["engine"]["running"] == 1, 10)
        assert not backend.stop(0.5)
        wait(partial(all_gone, last), 5)
        with pytest.raises(httpx.TransportError):
            asked()
        assert not backend.ready and not backend.failed
        assert not backend.wait(0)


def test_a_worker_whose_supervisor_is_killed_does_not_live_on(own_home: Path) -> None:
    """It has a session of its own, so that no signal to a group reaches it; and this was a first start that failed."""
    with running(own_home) as backend:
        wait(lambda: backend._worker is not None)
        before = family(backend)
        before[0].kill()
        wait(partial(all_gone, before), 10)
        assert not backend.wait(10)
        assert "could not be started" in backend.failed


def _ask_in_background(backend: Backend, tokens: int) -> Any:
    body = {"prompt": "x", "format": "text", "max_new_tokens": tokens}
    pool = ThreadPoolExecutor(1)
    asked = pool.submit(httpx.post, f"{backend.url}/prompt", json=body, timeout=60, headers=backend.headers)
    pool.shutdown(wait=False)
    return lambda: asked.result().json()


def test_a_first_start_that_fails_is_the_last(tmp_path: Path) -> None:
    with running(tmp_path / "empty") as backend:
        assert not backend.wait(60)
        assert "could not be started" in backend.failed
        assert backend.starts == 1


# Becomes ready at once, and dies as soon as it is asked for anything else.
MORTAL = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/readyz":
            os._exit(1)
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def test_three_deaths_are_a_crash_loop() -> None:
    backend = Backend({}, [sys.executable, "-c", MORTAL])
    backend.start()
    try:
        for starts in (1, 2, 3):
            assert backend.wait(30), backend.failed
            assert backend.starts == starts
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{backend.url}/die")
            wait(lambda: not backend.ready, 10)
        wait(lambda: backend.failed, 10)
        assert "died 3 times" in backend.failed and backend.starts == 3
        assert not backend.wait(10)
    finally:
        backend.stop(1)


def test_one_that_hangs_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTEN_SECONDS", 0.1)
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(module, "HUNG_SECONDS", 3.0)
    backend = Backend({}, [sys.executable, "-c", MORTAL])
    backend.start()
    try:
        assert backend.wait(30)
        time.sleep(4)
        assert backend.ready and backend.starts == 1  # for it answers
        family(backend)[0].suspend()
        wait(lambda: not backend.ready, 20)
        assert backend.wait(30) and backend.starts == 2
    finally:
        backend.stop(1)


def test_deaths_of_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEATHS_SECONDS", 0.0)
    backend = Backend({}, [sys.executable, "-c", MORTAL])
    backend.start()
    try:
        for _ in range(4):
            assert backend.wait(30), backend.failed
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{backend.url}/die")
            wait(lambda: not backend.ready, 10)
        assert backend.wait(30) and not backend.failed
    finally:
        backend.stop(1)


def test_one_that_was_never_started_can_be_stopped() -> None:
    backend = Backend({}, [sys.executable, "-c", "pass"])
    assert backend.stop(1)
    assert not backend.wait(0) and backend.starts == 0
    assert free_port() != backend.port
