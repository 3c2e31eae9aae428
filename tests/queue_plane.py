"""RunPod's queue as its SDK and its clients see it, on loopback: strict about what it is sent, and it forgets nothing.

What is known of it: jobs are handed out while a poll is held, whoever cancels has a final state at once and the worker
is told by another poll, and the first final state stays. Assumed, for RunPod does not say: a job whose worker has gone
waits again, as `lose` has it; what a worker posts for a job of another is refused.
"""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
KEY = "the-workers-own-key"
MAX_RUN = 10_000_000
MAX_CHUNK = 1_000_000


@dataclass
class Job:
    """`ends`: every final state that it was given; `posts`: each body that a worker has posted as its result."""

    id: str
    input: Any
    status: str = "IN_QUEUE"
    worker: str = ""
    taken: int = 0
    output: Any = None
    error: Any = None
    ends: list[str] = field(default_factory=list)
    posts: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[Any] = field(default_factory=list)
    told: float = 0.0  # when its worker was told to stop it

    def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"id": self.id, "status": self.status, "delayTime": 0, "executionTime": 0}
        if self.status == "COMPLETED":
            shown["output"] = self.output
        if self.status == "FAILED":
            shown["error"] = self.error
        return shown


class Plane:
    """`hold`: seconds that a poll is held open; `faults`: what a worker did that it must not."""

    def __init__(self, hold: float = 2.0) -> None:
        self.hold = hold
        self.jobs: dict[str, Job] = {}
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.refusals: dict[str, deque[int]] = {"done": deque(), "take": deque(), "stream": deque()}
        self._waiting: deque[str] = deque()
        self._stopping: dict[str, list[str]] = {}
        self._changed: asyncio.Condition
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._number = 0

    def environ(self, worker: str) -> dict[str, str]:
        """What RunPod sets on a worker."""
        base = f"{self.url}/v2/ep"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=x",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_POD_ID": worker,
            "RUNPOD_ENDPOINT_ID": "ep",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def lose(self, worker: str) -> list[str]:
        """The worker has gone: what it had taken and not answered waits again, in front."""
        return asyncio.run_coroutine_threadsafe(self._lose(worker), self._loop).result()

    def under_way(self, worker: str) -> list[str]:
        return [job.id for job in list(self.jobs.values()) if job.status == "IN_PROGRESS" and job.worker == worker]

    async def _lose(self, worker: str) -> list[str]:
        lost = self.under_way(worker)
        async with self._changed:
            for name in reversed(lost):
                self.jobs[name].status, self.jobs[name].worker = "IN_QUEUE", ""
                self._waiting.appendleft(name)
            self._changed.notify_all()
        return lost

    def _blame(self, what: str) -> None:
        self.faults.append(what)

    def _end(self, job: Job, status: str) -> bool:
        """Whether this is its final state."""
        if job.status in FINAL:
            return False
        job.status = status
        job.ends.append(status)
        return True

    # What workers ask.

    def _check(self, request: web.Request) -> str:
        """The worker that asks."""
        if request.headers.get("Authorization") != KEY:
            self._blame(f"{request.path}: without its key")
        if request.query.get("gpu") != "x":
            self._blame(f"{request.path}: the query of its address is lost")
        return request.match_info["worker"]

    async def take(self, request: web.Request) -> web.Response:
        worker = self._check(request)
        batch = "/job-take-batch/" in request.path
        wanted = int(request.query["batch_size"]) if batch else 1
        if request.query.get("job_in_progress") not in ("0", "1") or (batch and wanted < 2):
            self._blame(f"{request.path_qs}: not a take")
        if self.refusals["take"]:
            return web.Response(status=self.refusals["take"].popleft())
        taken = await self._await(lambda: self._hand_out(worker, wanted))
        if not taken:
            return web.Response(status=204)
        return web.json_response(taken if batch else taken[0])

    def _hand_out(self, worker: str, wanted: int) -> list[dict[str, Any]]:
        taken: list[dict[str, Any]] = []
        while self._waiting and len(taken) < wanted:
            job = self.jobs[self._waiting.popleft()]
            if job.status == "IN_QUEUE":
                job.status, job.worker, job.taken, job.told = "IN_PROGRESS", worker, job.taken + 1, 0.0
                taken.append({"id": job.id, "input": job.input})
        return taken

    async def stop(self, request: web.Request) -> web.Response:
        worker = self._check(request)
        names = await self._await(lambda: self._stopping.pop(worker, []))
        for name in names:
            self.jobs[name].told = time.monotonic()
        return web.json_response({"jobsToStop": names}) if names else web.Response(status=204)

    async def _await(self, find: Callable[[], list[Any]]) -> list[Any]:
        """What is found while the poll is held."""
        found: list[Any] = []
        try:
            async with asyncio.timeout(self.hold), self._changed:
                while not (found := find()):
                    await self._changed.wait()
        except TimeoutError:
            pass
        return found

    async def done(self, request: web.Request) -> web.Response:
        job, body = await self._read(request, ("true", "false"), MAX_RUN)
        if self.refusals["done"]:
            return web.Response(status=self.refusals["done"].popleft())
        if job is None:
            return web.Response(status=404)
        if not body.keys() <= {"output", "error"} or not isinstance(body.get("error", ""), str):
            self._blame(f"{job.id}: {sorted(body)} is no result")
        job.posts.append(body)
        if not self._end(job, "FAILED" if body.get("error") else "COMPLETED"):
            # It may have been on its way as the worker was told; later it is a second end.
            if job.status != "CANCELLED" or (job.told and time.monotonic() - job.told > 1.0):
                self._blame(f"{job.id}: {job.status}, and answered again")
            return web.Response(status=200)
        job.output, job.error = body.get("output"), body.get("error")
        async with self._changed:
            self._changed.notify_all()
        return web.Response(status=200)

    async def stream(self, request: web.Request) -> web.Response:
        job, body = await self._read(request, ("false",), MAX_CHUNK)
        if self.refusals["stream"]:
            return web.Response(status=self.refusals["stream"].popleft())
        if job is None or job.status in FINAL:
            return web.Response(status=404)
        if body.keys() != {"output"}:
            self._blame(f"{job.id}: {sorted(body)} is no piece of a stream")
        job.chunks.append(body.get("output"))
        return web.Response(status=200)

    async def _read(
        self, request: web.Request, streams: tuple[str, ...], limit: int
    ) -> tuple[Job | None, dict[str, Any]]:
        worker = self._check(request)
        name = request.match_info["job"]
        if request.headers.get("Content-Type") != "application/x-www-form-urlencoded":
            self._blame(f"{name}: its result has another content type")
        if request.headers.get("X-Request-ID") != name or request.query.get("isStream") not in streams:
            self._blame(f"{name}: its result goes by another name")
        raw = await request.read()
        if len(raw) > limit:
            self._blame(f"{name}: {len(raw)} bytes are more than RunPod takes")
        body = json.loads(raw, parse_constant=lambda constant: self._blame(f"{name}: {constant}"))
        job = self.jobs.get(name)
        if job is None or (job.worker != worker and job.status not in FINAL):
            self._blame(f"{name}: is not {worker}'s")
            job = None
        return job, body

    async def ping(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.Response(status=200)

    # What clients ask.

    async def run(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "input" not in body:
            return web.json_response({"error": "input is required"}, status=400)
        self._number += 1
        job = Job(f"job-{self._number:04}-u1", body["input"])
        async with self._changed:
            self.jobs[job.id] = job
            self._waiting.append(job.id)
            self._changed.notify_all()
        if request.path.endswith("/runsync"):
            try:
                async with asyncio.timeout(int(request.query.get("wait", 90_000)) / 1000), self._changed:
                    await self._changed.wait_for(lambda: job.status in FINAL)
            except TimeoutError:
                pass
            return web.json_response(job.show())
        return web.json_response({"id": job.id, "status": job.status})

    async def status(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        return web.json_response(job.show() if job else {"error": "not found"}, status=200 if job else 404)

    async def pieces(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        if job is None:
            return web.json_response({"error": "not found"}, status=404)
        fresh, job.chunks = job.chunks, []
        return web.json_response({"status": job.status, "stream": [{"output": each} for each in fresh]})

    async def cancel(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        if job is None:
            return web.json_response({"error": "not found"}, status=404)
        async with self._changed:
            worker = job.worker if job.status == "IN_PROGRESS" else ""
            if self._end(job, "CANCELLED") and worker:
                self._stopping.setdefault(worker, []).append(job.id)
            self._changed.notify_all()
        return web.json_response({"id": job.id, "status": job.status})

    async def health(self, request: web.Request) -> web.Response:
        states = [job.status for job in self.jobs.values()]
        names = {"completed": "COMPLETED", "failed": "FAILED", "inProgress": "IN_PROGRESS", "inQueue": "IN_QUEUE"}
        counts = {name: states.count(state) for name, state in names.items()}
        counts["retried"] = sum(max(0, job.taken - 1) for job in self.jobs.values())
        return web.json_response({"jobs": counts, "workers": {"running": 1}})

    async def purge(self, request: web.Request) -> web.Response:
        waiting = [job for job in self.jobs.values() if job.status == "IN_QUEUE"]
        for job in waiting:
            self._end(job, "CANCELLED")
        return web.json_response({"removed": len(waiting), "status": "completed"})

    @web.middleware
    async def _record(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        return await handler(request)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20, middlewares=[self._record])
        app.router.add_get("/v2/ep/job-take/{worker}", self.take)
        app.router.add_get("/v2/ep/job-take-batch/{worker}", self.take)
        app.router.add_get("/v2/ep/job-stop/{worker}", self.stop)
        app.router.add_get("/v2/ep/ping/{worker}", self.ping)
        app.router.add_post("/v2/ep/job-done/{worker}/{job}", self.done)
        app.router.add_post("/v2/ep/job-stream/{worker}/{job}", self.stream)
        app.router.add_post("/v2/ep/run", self.run)
        app.router.add_post("/v2/ep/runsync", self.run)
        app.router.add_get("/v2/ep/status/{job}", self.status)
        app.router.add_get("/v2/ep/stream/{job}", self.pieces)
        app.router.add_post("/v2/ep/cancel/{job}", self.cancel)
        app.router.add_get("/v2/ep/health", self.health)
        app.router.add_post("/v2/ep/purge-queue", self.purge)
        return app

    async def _start(self) -> web.AppRunner:
        self._changed = asyncio.Condition()
        # A poll whose worker has left hands nothing out.
        runner = web.AppRunner(self._app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    @contextmanager
    def open(self) -> Iterator["Plane"]:
        """Answers until the block ends."""
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), self._loop).result(30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()
