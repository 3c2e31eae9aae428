"""The life of process 1 in http mode: listens first, then starts the service; drains when told to end."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import settings
from deploy import limits
from deploy.backend import Backend
from deploy.front import Front
from deploy.jobs import Jobs
from serving import origins
from settings import Container, SettingError

WATCH_SECONDS = 0.25
TELL_SECONDS = 2.0  # for those who wait to be told why
END_SECONDS = 5.0  # for a service of which nothing is wanted any more
CONNECT_SECONDS = 5.0
LATE_SECONDS = 90.0  # after its deadline, when the service itself has long refused: it hangs
SEND_SECONDS = 60.0  # for a reader who takes nothing
BACKLOG = 2048


class Server(uvicorn.Server):
    """One that leaves signals to us: it would close its port at once, and who comes during a drain gets no answer."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def prepare(container: Container) -> None:
    """Raises SettingError for what the platform would cut, or where a port is not to be had."""
    limits.check(limits.find(container), settings.read())
    for port in {container.port, container.health_port} - {0}:
        try:
            socket.create_server((container.host, port)).close()
        except OSError as error:
            raise SettingError(f"port {port} of {container.host} is not to be had: {error.strerror}") from None


def run(container: Container, backend: Backend) -> int:
    """Until it is told to end, or the service cannot be kept up; the exit status of process 1."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what it has to say, clients are told
    return asyncio.run(_serve(container, backend))


async def _serve(container: Container, backend: Backend) -> int:
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    ours = settings.read()
    # Every request has a connection of its own: none that is reused can turn out to have been closed.
    bounds = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    seconds = httpx.Timeout(ours.deadline_ms / 1000 + LATE_SECONDS, connect=CONNECT_SECONDS)
    async with httpx.AsyncClient(timeout=seconds, limits=bounds, trust_env=False) as client:
        jobs = Jobs(backend, client, container.keep_hours)
        front = Front(backend, client, jobs, limits.find(container), ours)
        edge = CORSMiddleware(front, **origins.allow(ours.allowed_origins)) if ours.allowed_origins else front
        servers = [_listen(edge, container.host, container.port)]
        if container.health_port not in (0, container.port):
            servers.append(_listen(front.ping, container.host, container.health_port))
        backend.start()
        try:
            await jobs.start(_journal_path(container))
            while not end.is_set() and not backend.failed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(end.wait(), WATCH_SECONDS)
            over = time.monotonic() + (TELL_SECONDS if backend.failed else container.grace)
            whole = await _drain(over, front, jobs)
        finally:
            await asyncio.to_thread(backend.stop, END_SECONDS)
            await jobs.close()
        for server, task in servers:
            # For what has been answered and not yet read; who has not asked to the end is cut.
            server.config.timeout_graceful_shutdown = max(1, round(over - time.monotonic()))
            server.should_exit = True
            await task
    return backend.conclude(whole)


def _listen(app: ASGIApp, host: str, port: int) -> tuple[Server, "asyncio.Task[None]"]:
    """A server that takes connections from now on; raises OSError where the port is not to be had."""
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http="h11",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
    )
    listener = socket.create_server((host, port), backlog=BACKLOG)
    # Each connection has it: to close one of which nothing is read would wait for the reader.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_SECONDS * 1000))
    server = Server(config)
    return server, asyncio.create_task(server.serve(sockets=[listener]))


async def _drain(over: float, front: Front, jobs: Jobs) -> bool:
    """Take nothing new, and have what is under way end before `over`, by the monotonic clock; whether all of it did."""
    front.draining = True
    ended = asyncio.create_task(jobs.stop(over - time.monotonic()))
    while front.under_way and time.monotonic() < over:
        await asyncio.sleep(0.05)
    await ended
    return not front.under_way


def _journal_path(container: Container) -> Path:
    """A file for each pod: a volume may be shared, and its locks not be kept."""
    folder = Path(container.jobs) if container.jobs else settings.store_path().parent / "jobs"
    return folder / f"{container.pod or 'local'}.sqlite3"
