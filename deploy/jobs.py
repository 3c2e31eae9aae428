"""Jobs: requests that are accepted now and answered later. Runs what the journal holds against the service.

A job is tried again where the service died under it, or has no room; twice dead is a typed failure. Knows no HTTP but
the client's side.
"""

import asyncio
import hashlib
import json
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from deploy import journal
from deploy.backend import Backend
from deploy.journal import Job, Journal
from models.failure import Failure
from serving.caller import Caller
from serving.errors import failure, respond

AT_ONCE = 32  # the engine gathers them; more would only wait there instead of here
ATTEMPTS = 2
MAX_WAITING = 10_000
MAX_BYTES = 1 << 30
POLL_SECONDS = 0.2
SWEEP_SECONDS = 60.0
AGAIN_SECONDS = 3.0  # by then it is known that the service has died
RECORD_SECONDS = 5.0
LATER = frozenset({429, 503})  # not refused, only not now


class Jobs:
    """Kept by the front. `open` before all else; `run` until `stop`."""

    def __init__(self, backend: Backend, client: httpx.AsyncClient, keep_hours: int) -> None:
        self._backend = backend
        self._client = client
        self._keep_seconds = keep_hours * 3600.0
        self._journal: Journal | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._ending = False

    async def open(self, path: Path) -> None:
        """Take up what an earlier process left; without a journal every job is refused."""
        try:
            self._journal = await Journal.open(path)
        except (OSError, sqlite3.Error) as error:
            print(f"zopilot-gpu: no jobs: {path.name} cannot be kept: {type(error).__name__}", file=sys.stderr)
            return
        for job in await self._journal.abandoned():
            await self._try_again(job, 0)

    async def close(self) -> None:
        if self._journal is not None:
            await self._journal.close()

    async def accept(self, caller: Caller, owner: str, key: str | None, body: bytes, running: bool = False) -> Job:
        """Record the request of `caller`; raises Failure where it cannot be, or `key` stands for another request."""
        digest = hashlib.sha256(caller.path.encode() + b"\n" + body).hexdigest()
        made = journal.make(owner, key, digest, caller.request_id, caller.path, body, running)
        try:
            job = await self._kept.recall(owner, key) or await self._record(made, len(body))
        except sqlite3.Error:
            raise failure("job_unrecorded") from None
        if job.digest != digest:
            raise failure("idempotency_conflict")
        self._woken.set()
        return job

    async def _record(self, job: Job, size: int) -> Job:
        count, waiting = await self._kept.waiting()
        if count >= MAX_WAITING or waiting + size > MAX_BYTES:
            raise failure("queue_full")
        return await self._kept.accept(job)

    def adopt(self, job: Job, answer: "asyncio.Task[httpx.Response]") -> None:
        """What was asked already, and is now a job: its answer is kept when it comes."""
        self._follow(job, answer)

    async def find(self, identity: str, owner: str) -> Job:
        """Raises Failure where this owner has no such job."""
        try:
            job = await self._kept.find(identity, owner)
        except sqlite3.Error:
            raise failure("job_unrecorded") from None
        if job is None:
            raise failure("job_not_found")
        return job

    async def cancel(self, identity: str, owner: str) -> Job:
        """The job in its final state, whether that is this one or an earlier; its work ends."""
        job = await self.find(identity, owner)
        await self._end(job, "cancelled", Failure("client_closed_request", "the job was cancelled"))
        if task := self._running.get(identity):
            task.cancel()
        return await self.find(identity, owner)

    async def run(self) -> None:
        """Claim what is due while there is room and the service is ready."""
        swept = 0.0
        loop = asyncio.get_running_loop()
        while self._journal is not None and not self._ending:
            try:
                if loop.time() - swept > SWEEP_SECONDS:
                    await self._journal.forget(self._keep_seconds)
                    swept = loop.time()
                job = None
                if self._backend.ready and len(self._running) < AT_ONCE:
                    job = await self._journal.claim()
                if job is not None:
                    self._follow(job, None)
                    continue
            except sqlite3.Error as error:
                print(f"zopilot-gpu: jobs: {type(error).__name__}", file=sys.stderr, flush=True)
            self._woken.clear()
            try:
                await asyncio.wait_for(self._woken.wait(), POLL_SECONDS)
            except TimeoutError:
                continue

    async def stop(self, grace: float) -> None:
        """Let those under way end within `grace` seconds; what does not is queued again for the next process."""
        self._ending = True
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=grace)
        for identity, task in list(self._running.items()):
            task.cancel()
            await asyncio.wait([task])
            await self._kept.put_back(identity, 0, tried=False)

    def __len__(self) -> int:
        return len(self._running)

    @property
    def _kept(self) -> Journal:
        if self._journal is None:
            raise failure("job_unrecorded")
        return self._journal

    def _follow(self, job: Job, answer: "asyncio.Task[httpx.Response] | None") -> None:
        task = asyncio.create_task(self._settle(job, answer))
        self._running[job.id] = task
        task.add_done_callback(lambda _: self._leave(job))

    def _leave(self, job: Job) -> None:
        del self._running[job.id]
        self._woken.set()

    async def _ask(self, job: Job) -> httpx.Response:
        headers = {"Content-Type": "application/json", "X-Request-Id": job.request_id, **self._backend.headers}
        request = self._client.build_request("POST", self._backend.url + job.route, content=job.body, headers=headers)
        return await self._client.send(request, stream=True)

    async def _settle(self, job: Job, answer: "asyncio.Task[httpx.Response] | None") -> None:
        """Keep the answer, or try again."""
        try:
            response = await (answer or self._ask(job))
            try:
                if not response.headers.get("content-type", "").startswith("application/json"):
                    return await self._end(job, "failed", Failure("invalid_value", "stream: a job has one answer"))
                told = await response.aread()
            finally:
                await response.aclose()
        except httpx.TransportError:
            return await self._try_again(job, AGAIN_SECONDS)
        if response.status_code in LATER:
            seconds = response.headers.get("retry-after", "")
            wait = float(seconds) if seconds.isdigit() else AGAIN_SECONDS
            return await self._keep(lambda: self._kept.put_back(job.id, wait, tried=False))
        state: journal.State = "succeeded" if response.status_code < 400 else "failed"
        await self._keep(lambda: self._kept.finish(job.id, state, response.status_code, told))

    async def _try_again(self, job: Job, seconds: float) -> None:
        if job.attempts < ATTEMPTS:
            await self._keep(lambda: self._kept.put_back(job.id, seconds))
        else:
            await self._end(job, "failed", failure("interrupted"))

    async def _end(self, job: Job, state: journal.State, why: Failure) -> None:
        response = respond(why, Caller(job.request_id, job.route))
        await self._keep(lambda: self._kept.finish(job.id, state, response.status_code, bytes(response.body)))

    async def _keep(self, record: Callable[[], Awaitable[object]]) -> None:
        """Until it is on disk: a full disk may have room again, and an answer is not to be lost before that."""
        while True:
            try:
                await record()
                return
            except sqlite3.Error as error:
                print(f"zopilot-gpu: a job cannot be recorded: {type(error).__name__}", file=sys.stderr, flush=True)
                await asyncio.sleep(RECORD_SECONDS)


def tell(job: Job) -> dict[str, Any]:
    """The job as its owner sees it."""
    told: dict[str, Any] = {
        "id": job.id,
        "status": job.state,
        "route": job.route,
        "location": f"/jobs/{job.id}",
        "request_id": job.request_id,
        "created": round(job.created, 3),
        "ended": None if job.ended is None else round(job.ended, 3),
    }
    if job.status is not None and job.answer is not None:
        told |= {"http_status": job.status, "answer": json.loads(job.answer)}
    return told
