"""The BentoML service as a child on loopback: started, watched, started again a few times, and ended.

A thread of its own watches it, so that whoever owns it may run any event loop. Knows no platform.
"""

import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import httpx
import psutil

import settings

DRAINED, CRASHED, CUT = 0, 69, 75  # how process 1 ends
LOOPBACK = "127.0.0.1"
WATCH_SECONDS = 0.25
PROBE_SECONDS = 2.0
LISTEN_SECONDS = 10.0  # between looks at one that is ready
HUNG_SECONDS = 120.0  # that it may say nothing: a host may be that busy, a service that is at work is not
KILL_SECONDS = 5.0  # until what is killed has gone
DEATHS = 3  # within DEATHS_SECONDS: a crash loop
DEATHS_SECONDS = 600.0


class Backend:
    """`url` and `key` are for whoever asks it; `failed` says why it will not come back."""

    def __init__(self, environ: Mapping[str, str] | None = None, command: list[str] | None = None) -> None:
        """With `environ` instead of the process's own; `command` takes what is served on `{port}`."""
        self.port = _free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.ready = False
        self.failed = ""
        self.starts = 0
        self._environ = dict(os.environ if environ is None else environ)
        keys = settings.read(self._environ).api_keys
        # Jobs are asked with a key that nobody else has: what their owner showed is not kept.
        self.key = secrets.token_urlsafe(32) if keys else ""
        if keys:
            self._environ["ZOPILOT_GPU_API_KEY"] = ",".join([*keys, self.key])
        self._command = command or [sys.executable, "-m", "bentoml", "serve", "service:ZopilotGPU", "--host", LOOPBACK]
        self._command += ["--port", str(self.port)]
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: psutil.Process | None = None
        self._worker: psutil.Process | None = None
        self._thread = threading.Thread(target=self._keep, name="backend", daemon=True)

    @property
    def headers(self) -> dict[str, str]:
        """What a request of our own carries."""
        return {"X-API-Key": self.key} if self.key else {}

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Until it is ready or will never be; whether it is ready."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready or bool(self.failed) or self._ending.is_set(), seconds)
        return self.ready

    def stop(self, grace: float) -> bool:
        """Have it finish what is under way within `grace` seconds, else kill it; whether it ended by itself."""
        with self._changed:
            self._ending.set()
            self.ready = False
            self._changed.notify_all()
        process = self._process
        if process is None:
            return True
        try:
            process.send_signal(signal.SIGTERM)  # which one that has ended is spared
            process.wait(grace)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            self._kill()

    def conclude(self, whole: bool) -> int:
        """The exit status of process 1, whose requests were all answered if `whole`; tells why it could not go on."""
        if self.failed:
            print(f"zopilot-gpu: {self.failed}", file=sys.stderr, flush=True)
            return CRASHED
        return DRAINED if whole else CUT

    def _keep(self) -> None:
        """Run it until it is told to end, or has died too often; a first start that fails is not tried again."""
        deaths: list[float] = []
        while not self._ending.is_set():
            served = self._run()
            if self._ending.is_set():
                return
            now = time.monotonic()
            deaths = [*(at for at in deaths if now - at < DEATHS_SECONDS), now]
            if self.starts == 1 and not served:
                return self._give_up("the service could not be started; the lines above say why")
            if len(deaths) >= DEATHS:
                return self._give_up(f"the service has died {DEATHS} times within {DEATHS_SECONDS:.0f} seconds")
            print("zopilot-gpu: the service has died and is started again", file=sys.stderr, flush=True)

    def _run(self) -> bool:
        """One life of it; whether it was ever ready."""
        with self._changed:
            if self._ending.is_set():
                return False
            self.starts += 1
            # A session of its own: a signal from a terminal is for us.
            self._process = subprocess.Popen(self._command, env=self._environ, start_new_session=True)
            self._supervisor, self._worker = psutil.Process(self._process.pid), None
        served, heard = False, 0.0
        while self._process.poll() is None:
            if not self.ready and not self._ending.is_set() and self._probe() == 200:
                served, heard = True, time.monotonic()
                self._turn(ready=True)
            elif self.ready and time.monotonic() - heard > LISTEN_SECONDS and self._probe():
                heard = time.monotonic()
            if self.ready and time.monotonic() - heard > HUNG_SECONDS:
                print("zopilot-gpu: the service says nothing any more", file=sys.stderr, flush=True)
                break
            # BentoML's supervisor sees only after some 10 seconds that its worker has died.
            self._worker = self._worker or _find_worker(self._supervisor)
            if self._worker and not _runs(self._worker) and not self._ending.is_set():
                break
            time.sleep(WATCH_SECONDS)
        self._turn(ready=False)
        if not self._ending.is_set():
            self._kill()
        return served

    def _probe(self) -> int:
        """The status that it answers with; 0: none."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PROBE_SECONDS)  # which knows no proxies
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status
        except (http.client.HTTPException, OSError):
            return 0
        finally:
            connection.close()

    def _turn(self, ready: bool) -> None:
        with self._changed:
            self.ready = ready and not self._ending.is_set()
            self._changed.notify_all()

    def _give_up(self, why: str) -> None:
        with self._changed:
            self.failed = why
            self._changed.notify_all()

    def _kill(self) -> None:
        """With its worker, which has a session of its own: it would live on, and keep the card's memory."""
        if self._process is None:
            return
        family = [each for first in (self._supervisor, self._worker) for each in _list_family(first)]
        self._process.kill()
        self._process.wait()
        for each in family:
            with suppress(psutil.Error):
                each.kill()
        psutil.wait_procs(family, KILL_SECONDS)


def find_wait(response: httpx.Response) -> float | None:
    """Seconds after which the service may take what it has refused; None: it has not, or always will."""
    told = response.headers.get("retry-after", "")
    return float(told) if response.status_code in (429, 503) and told.isdigit() else None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def _list_family(first: psutil.Process | None) -> list[psutil.Process]:
    """It, and all that it has begun; nothing if it has ended, even if another has its number."""
    try:
        return [first, *first.children(recursive=True)] if first else []
    except psutil.Error:
        return []


def _find_worker(supervisor: psutil.Process) -> psutil.Process | None:
    """The process that has the model: the supervisor's child that serves."""
    for child in _list_family(supervisor)[1:]:
        with suppress(psutil.Error):
            if any("_bentoml_impl.worker.service" in part for part in child.cmdline()):
                return child
    return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
