"""Child processes with all that they start in turn: run to the end, kept running, paused, ended. Knows no servers."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.failure import Unusable

GRACE_SECONDS = 20.0


@contextmanager
def running(command: Sequence[str], log: Path, folder: Path) -> Iterator[psutil.Process]:
    """A process until the block ends, however it ends; its output goes to `log`."""
    with log.open("wb") as out:
        # A session of its own: Ctrl-C reaches us alone, and we end the children in order.
        child = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    process = psutil.Process(child.pid)
    try:
        yield process
    finally:
        end(process)
        child.wait()


def complete(command: Sequence[str], log: Path, folder: Path, limit: float) -> None:
    """Run to its end; raises Unusable where it fails or takes longer than `limit` seconds."""
    with running(command, log, folder) as process:
        try:
            status = process.wait(limit)
        except psutil.TimeoutExpired:
            raise Unusable(f"{Path(command[0]).name} was not done after {limit:g} s (see {log})") from None
        if status:
            raise Unusable(f"{last_line(log)} (see {log})")


def family(head: psutil.Process) -> list[psutil.Process]:
    """A process and all below it that are still there, also where the head has gone and left them behind."""
    found = {head} if head.is_running() else set()
    with suppress(psutil.NoSuchProcess):
        found |= set(head.children(recursive=True))
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == head.pid:
                found.add(process)
    return list(found)


def pause(process: psutil.Process) -> None:
    """Stop the whole family, so that a server that waits its turn costs the one that is measured nothing."""
    for member in family(process):
        with suppress(psutil.NoSuchProcess):
            member.suspend()


def resume(process: psutil.Process) -> None:
    for member in family(process):
        with suppress(psutil.NoSuchProcess):
            member.resume()


def end(head: psutil.Process) -> None:
    """End the family: the head is told first and may end its children; who is left is told, then killed, by its id."""
    members = family(head)
    resume(head)
    _, left = _tell([head], psutil.Process.terminate)
    _, left = _tell([member for member in members if member is not head] + left, psutil.Process.terminate)
    _tell(left, psutil.Process.kill)


def _tell(members: list[psutil.Process], order: Callable[[psutil.Process], None]) -> tuple[list[Any], list[Any]]:
    for member in members:
        with suppress(psutil.NoSuchProcess):
            order(member)
    return psutil.wait_procs(members, GRACE_SECONDS)


def wait_ready(process: psutil.Process, url: str, log: Path, limit: float) -> None:
    """Return when `url` says 200; raises Unusable if the process ends or the time is up."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this is loopback
    until = time.monotonic() + limit
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise Unusable(f"it ended while starting: {last_line(log)} (see {log})")
        with suppress(urllib.error.URLError, OSError), direct.open(url, timeout=5):
            return
        time.sleep(0.3)
    raise Unusable(f"it was not ready after {limit:g} s (see {log})")


def last_line(log: Path) -> str:
    """What a program said last, which is mostly why it ended."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
