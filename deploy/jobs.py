"""Jobs: requests that are accepted now and answered later. Runs what the journal holds against the service.

A job is tried again where the service died under it, or has no room; twice dead is a typed failure. Knows no HTTP but
the client's side.
"""

import asyncio
import hashlib
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx

from deploy import journal
from deploy.backend import Backend, find_wait
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


class Jobs:
    """Kept by the front. Worked on from `start` to `stop`; `close` last."""

    def __init__(self, backend: Backend, client: httpx.AsyncClient, keep_hours: int) -> None:
        self._backend = backend
        self._client = client
        self._keep_seconds = keep_hours * 3600.0
        self._journal: Journal | None = None
        self._working: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._ending = False
        self._complaint = ""

    async def start(self, path: Path) -> None:
        """While there is no journal every job is refused; an earlier process may have it for a moment yet."""
        await self._open(path)
        self._working = asyncio.create_task(self._work(path))

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
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
        try:
            await self._finish(job, "cancelled", Failure("client_closed_request", "the job was cancelled"))
        except sqlite3.Error:  # who asks is there to ask again
            raise failure("job_unrecorded") from None
        if task := self._running.get(identity):
            task.cancel()
        return await self.find(identity, owner)

    async def stop(self, grace: float) -> None:
        """Let those under way end within `grace` seconds; what does not is queued again for the next process."""
        self._ending = True
        self._woken.set()
        if self._working is not None:  # it may have claimed one that is not under way yet
            await asyncio.wait([self._working], timeout=max(grace, 1.0))
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=grace)
        for identity, task in list(self._running.items()):
            task.cancel()
            await asyncio.wait([task])
            try:
                await self._kept.put_back(identity, 0, tried=False)
            except sqlite3.Error as error:  # the next process finds it running, and counts it as tried
                self._complain("a job cannot be recorded", error)

    def __len__(self) -> int:
        return len(self._running)

    @property
    def _kept(self) -> Journal:
        if self._journal is None:
            raise failure("job_unrecorded")
        return self._journal

    async def _open(self, path: Path) -> None:
        try:
            self._journal = await Journal.open(path)
        except (OSError, sqlite3.Error) as error:
            self._complain(f"no jobs: {path.name} cannot be kept", error)

    async def _work(self, path: Path) -> None:
        """Claim what is due while there is room and the service is ready."""
        swept, pause = 0.0, POLL_SECONDS
        loop = asyncio.get_running_loop()
        while not self._ending:
            self._woken.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            pause = RECORD_SECONDS
            if self._journal is None:
                await self._open(path)
                continue
            try:
                if loop.time() - swept > SWEEP_SECONDS:
                    await self._journal.forget(self._keep_seconds)
                    swept = loop.time()
                await self._claim(self._journal)
                pause = POLL_SECONDS
            except sqlite3.Error as error:
                self._complain("jobs cannot be claimed", error)

    async def _claim(self, kept: Journal) -> None:
        while self._backend.ready and len(self._running) < AT_ONCE and not self._ending:
            job = await kept.claim()
            if job is None:
                return
            self._follow(job, None)

    def _follow(self, job: Job, answer: "asyncio.Task[httpx.Response] | None") -> None:
        task = asyncio.create_task(self._settle(job, answer))
        self._running[job.id] = task
        task.add_done_callback(lambda ended: self._leave(job.id, ended))

    def _leave(self, identity: str, task: "asyncio.Task[None]") -> None:
        if self._running.get(identity) is task:  # else it was put back, and is under way again
            del self._running[identity]
        self._woken.set()

    async def _ask(self, job: Job) -> httpx.Response:
        headers = {"Content-Type": "application/json", "X-Request-Id": job.request_id, **self._backend.headers}
        request = self._client.build_request("POST", self._backend.url + job.route, content=job.body, headers=headers)
        return await self._client.send(request, stream=True)

    async def _settle(self, job: Job, answer: "asyncio.Task[httpx.Response] | None") -> None:
        """Keep the answer, or try again."""
        if job.attempts > ATTEMPTS:  # processes have died over it
            return await self._end(job, "failed", failure("interrupted"))
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
        if (wait := find_wait(response)) is not None:
            return await self._keep(lambda: self._kept.put_back(job.id, wait, tried=False))
        state: journal.State = "succeeded" if response.status_code < 400 else "failed"
        await self._keep(lambda: self._kept.finish(job.id, state, response.status_code, told))

    async def _try_again(self, job: Job, seconds: float) -> None:
        if job.attempts < ATTEMPTS:
            await self._keep(lambda: self._kept.put_back(job.id, seconds))
        else:
            await self._end(job, "failed", failure("interrupted"))

    async def _end(self, job: Job, state: journal.State, why: Failure) -> None:
        await self._keep(lambda: self._finish(job, state, why))

    async def _finish(self, job: Job, state: journal.State, why: Failure) -> None:
        response = respond(why, Caller(job.request_id, job.route))
        await self._kept.finish(job.id, state, response.status_code, bytes(response.body))

    async def _keep(self, record: Callable[[], Awaitable[object]]) -> None:
        """Until it is on disk: a full disk may have room again, and an answer is not to be lost before that."""
        while True:
            try:
                await record()
                return
            except sqlite3.Error as error:
                self._complain("a job cannot be recorded", error)
                await asyncio.sleep(RECORD_SECONDS)

    def _complain(self, what: str, error: Exception) -> None:
        """Once, however often it is tried."""
        complaint = f"zopilot-gpu: {what}: {type(error).__name__}"
        if complaint != self._complaint:
            print(complaint, file=sys.stderr, flush=True)
        self._complaint = complaint
