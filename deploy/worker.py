"""Process 1 as a worker of a RunPod queue: jobs are taken while the service is ready, and all of them are answered."""

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

import httpx

import settings
from deploy import limits
from deploy.asking import Asker
from deploy.backend import Backend
from settings import Container, SettingError

WAIT_SECONDS = 0.5
STOP_SECONDS = 5.0  # for a service that has nothing to do
TOKENS_OF_A_JOB = 2048  # so many jobs are taken at once as fit the engine with this
MOST = 64


def prepare(container: Container) -> None:
    """Raises SettingError where this cannot run as it is set up."""
    if not container.take_url or not container.pod:
        raise SettingError("ZOPILOT_MODE=queue is for a worker of a RunPod queue endpoint, and this is none")
    limits.check(limits.QUEUE, settings.read())


def run(container: Container, backend: Backend) -> int:
    """Until it is told to end; the exit status of process 1."""
    told = threading.Event()
    here = os.getpid()

    def tell(number: int, frame: FrameType | None) -> None:
        if os.getpid() != here:  # the process that pings for the SDK: it is ended by a signal, and not asked
            os._exit(0)
        told.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, tell)
    backend.start()
    try:
        room = _wait(backend, told)
        late = _work(container, backend, told, room) if room else False
    finally:
        stopped = backend.stop(STOP_SECONDS)
    return backend.conclude(whole=not late and (stopped or not room))


def _wait(backend: Backend, told: threading.Event) -> int:
    """Until it is ready; how many jobs it has room for. 0: it has failed, or is not needed any more."""
    while not backend.failed and not told.is_set():
        if backend.wait(WAIT_SECONDS):
            with suppress(httpx.TransportError):
                health = httpx.get(f"{backend.url}/health", headers=backend.headers, trust_env=False)
                if health.status_code == 200:
                    tokens = int(health.json()["engine"]["kv_tokens"]["budget"])
                    return max(1, min(MOST, tokens // TOKENS_OF_A_JOB))
            told.wait(WAIT_SECONDS)
    return 0


def _work(container: Container, backend: Backend, told: threading.Event, room: int) -> bool:
    """Take jobs until it is told to end or the service has failed; whether some were cut."""
    import runpod  # 2 s, and none of it is needed elsewhere
    from runpod.serverless.modules import rp_scale

    from deploy.scaler import Scaler

    asker = Asker(backend, settings.read().deadline_ms / 1000)
    config = {"concurrency_modifier": lambda current: room}
    scaler = Scaler(config, asker, container.grace, lambda: told.is_set() or bool(backend.failed))
    rp_scale.JobScaler = lambda _: scaler
    # The SDK reads the command line. What it says below INFO has the text of jobs in it. And it makes httpx speak.
    sys.argv[1:] = ["--rp_log_level", "INFO"]
    logging.getLogger("httpx").setLevel(logging.WARNING)
    print(f"zopilot-gpu: takes up to {room} jobs at once", flush=True)
    runpod.serverless.start(config)
    return scaler.late
