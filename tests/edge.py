"""Process 1 of the image run on this host, and stand-ins for what RunPod puts in front of it. Loopback only."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.conftest import ROOT, free_port

# With a platform's limit that is less than RunPod's, so that a test need not wait; what we keep in reserve stays.
SCALED = (
    "import dataclasses, sys; from deploy import __main__, limits;"
    " limits.{name} = dataclasses.replace(limits.{name}, {limit}); sys.exit(__main__.main())"
)


@dataclass
class Edge:
    """A running `python -m deploy`."""

    url: str
    health: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def wait(self, seconds: float = 60) -> None:
        """Until it is ready."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.health}/ping", timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def worker(self) -> psutil.Process:
        """The process that has the model."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if any("_bentoml_impl.worker.service" in part for part in child.cmdline()):
                return child
        raise AssertionError("there is no worker")

    def kill(self) -> None:
        """As a container is killed: process 1 and all that it has started, at once."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()

    def end(self, seconds: float = 30) -> int:
        """As a container is stopped; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def run(home: Path, log: Path, *, ready: bool = True, scaled: str = "", **environ: str) -> Iterator[Edge]:
    """Until the block ends; `scaled`: a platform and a limit of it instead of RunPod's, as "POD begin=14"."""
    port, health = free_port(), free_port()
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("ZOPILOT", "BENTOML", "RUNPOD"))}
    ours = {"PORT": str(port), "PORT_HEALTH": str(health), "ZOPILOT_HOST": "127.0.0.1", "BENTOML_HOME": str(home)}
    command = [sys.executable, "-m", "deploy"]
    if scaled:
        name, limit = scaled.split()
        command[1:] = ["-c", SCALED.format(name=name, limit=limit)]
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=ROOT, env={**inherited, **ours, **environ}, stdout=out, stderr=out)
    edge = Edge(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{health}", log, process)
    try:
        if ready:
            edge.wait()
        yield edge
    finally:
        if process.poll() is None:
            edge.kill()


def connect(host: str, port: int, seconds: float = 30) -> socket.socket:
    """As soon as it listens."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, port))
        except ConnectionRefusedError:
            assert time.monotonic() < give_up
            time.sleep(0.02)


def copy_home(home: Path, place: Path) -> Path:
    """The same models for a second service: two never share a home."""
    shutil.copytree(home, place)
    return place


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The URL of an application that is served from a thread until the block ends."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_config=None, lifespan="off", ws="none", interface="asgi3")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


@dataclass(frozen=True)
class Proxy:
    """What stands between a client and the container: `begin` seconds to the response's first byte, `whole` seconds in
    all, `most` bytes each way. What is over it cuts as RunPod's documentation says: 524, 413, or a broken end."""

    upstream: str
    begin: float = 1e9
    whole: float = 1e9
    most: float = 1e18

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await (await self._answer(request))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        if len(body) > self.most:
            return Response("too large", 413)
        over = time.monotonic() + self.whole
        client = httpx.AsyncClient(timeout=None)
        headers = {n: v for n, v in request.headers.items() if n not in ("host", "content-length")}
        asked = client.build_request(
            request.method, f"{self.upstream}{request.url.path}", content=body, headers=headers
        )
        try:
            async with asyncio.timeout(min(self.begin, self.whole)):
                answer = await client.send(asked, stream=True)
        except TimeoutError:
            await client.aclose()
            return Response("a timeout occurred", 524)
        kept = {n: v for n, v in answer.headers.items() if n not in ("content-length", "transfer-encoding")}

        async def chunks() -> AsyncIterator[bytes]:
            size = 0
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + over - time.monotonic()):
                    async for chunk in answer.aiter_raw():
                        size += len(chunk)
                        if size > self.most:
                            raise RuntimeError("cut by the platform")
                        yield chunk
            finally:
                await client.aclose()

        return StreamingResponse(chunks(), answer.status_code, kept)
