"""The life of process 1 in http mode: listens first, then starts the service; drains when told to end."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from starlette.types import ASGIApp

import settings
from deploy import limits
from deploy.backend import Backend
from deploy.front import Front
from deploy.jobs import Jobs
from settings import Container

UNAVAILABLE = 69
CUT = 75
WATCH_SECONDS = 0.25
TELL_SECONDS = 2.0  # for those who wait to be told why
END_SECONDS = 5.0  # for a service of which nothing is wanted any more
BACKLOG = 2048


class Server(uvicorn.Server):
    """One that leaves signals to us: it would close its port at once, and who comes during a drain gets no answer."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def prepare(container: Container) -> None:
    """Raises SettingError for what the platform would cut, or where a port is not to be had."""
    limits.check(limits.find(container), settings.read())


def run(container: Container, backend: Backend) -> int:
    """Until it is told to end, or the service cannot be kept up; the exit status of process 1."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what it has to say, clients are told
    return asyncio.run(_serve(container, backend))


async def _serve(container: Container, backend: Backend) -> int:
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    # Every request has a connection of its own: none that is reused can turn out to have been closed.
    bounds = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=None, limits=bounds, trust_env=False) as client:
        jobs = Jobs(backend, client, container.keep_hours)
        front = Front(backend, client, jobs, limits.find(container), settings.read())
        servers = [_listen(front, container.host, container.port)]
        if container.health_port not in (0, container.port):
            servers.append(_listen(front.ping, container.host, container.health_port))
        backend.start()
        await jobs.open(_journal_path(container))
        working = asyncio.create_task(jobs.run())
        while not end.is_set() and not backend.failed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), WATCH_SECONDS)
        whole = await _drain(container.grace, front, jobs, backend)
        await working
        await jobs.close()
        for server, task in servers:
            server.should_exit = True
            await task
    if backend.failed:
        print(f"zopilot-gpu: {backend.failed}", file=sys.stderr, flush=True)
        return UNAVAILABLE
    return 0 if whole else CUT


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
    server = Server(config)
    return server, asyncio.create_task(server.serve(sockets=[listener]))


async def _drain(grace: float, front: Front, jobs: Jobs, backend: Backend) -> bool:
    """Take nothing new, and have what is under way end within `grace` seconds; whether all of it did."""
    loop = asyncio.get_running_loop()
    over = loop.time() + (TELL_SECONDS if backend.failed else grace)
    front.draining = True
    ended = asyncio.create_task(jobs.stop(over - loop.time()))
    while front.under_way and loop.time() < over:
        await asyncio.sleep(0.05)
    await ended
    whole = not front.under_way
    await asyncio.to_thread(backend.stop, END_SECONDS)
    return whole


def _journal_path(container: Container) -> Path:
    """A file for each pod: a volume may be shared, and its locks not be kept."""
    folder = Path(container.jobs) if container.jobs else settings.store_path().parent / "jobs"
    return folder / f"{container.pod or 'local'}.sqlite3"
