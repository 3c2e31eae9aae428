"""RunPod's JobScaler, mended: no job that it takes is lost, none is answered twice, and nothing of ours leaks.

Pinned to runpod 1.12.0. Of the SDK these are used: its loops over taking, running and stopping, its addresses and its
pings. Its way of running a handler is not: it makes failures of answers and shows tracebacks to callers.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import aiohttp
from runpod.serverless.modules import rp_http, rp_job, rp_scale

from deploy import inputs, results
from deploy.asking import Asker
from models.failure import Failure
from serving.errors import failure

TICK_SECONDS = 0.1
PAUSE_SECONDS = 1.0  # between polls that end at once
LAST_POLL_SECONDS = 5.0  # that a poll under way is left after the end is known: it may bring jobs
DELIVERY_SECONDS = 120.0  # that a result is offered for
LAST_SECONDS = 5.0  # and after the grace
CHUNK_SECONDS = 3.0  # and a piece of a stream: the result holds it as well
DEEP = 12_000  # a job that Python could not read would be lost with all that came beside it

Job = dict[str, Any]


class Scaler(rp_scale.JobScaler):  # type: ignore[misc] # it has no types
    """Ends on a signal, and when it `must_end`; `late`: whether jobs were under way as the `grace` ran out."""

    def __init__(self, config: dict[str, Any], asker: Asker, grace: float, must_end: Callable[[], bool]) -> None:
        super().__init__(config)
        self.jobs_fetcher = self._take
        self.stop_signals_fetcher = self._hear
        self.jobs_handler = self._handle
        self.late = False
        self._asker = asker
        self._grace = grace
        self._must_end = must_end
        self._taking = True
        self._end: float | None = None  # of the grace, once it has begun
        self._limits: set[asyncio.Timeout] = set()
        self._running: set[str] = set()
        self._stopped: set[str] = set()  # before they were run
        sys.setrecursionlimit(DEEP)

    def kill_worker(self) -> None:
        """Take no more; called by the SDK on a signal."""
        if self._end is None:
            self._end = time.monotonic() + self._grace
        super().kill_worker()

    def is_alive(self) -> bool:
        """Until all that was taken is answered; the SDK's own ends before its last poll does."""
        return super().is_alive() or self._taking or self.current_occupancy() > 0

    async def run(self) -> None:
        watcher = asyncio.create_task(self._watch())
        try:
            await super().run()
        finally:
            watcher.cancel()
            await self._asker.close()

    async def get_jobs(self, session: aiohttp.ClientSession) -> None:
        try:
            with suppress(asyncio.CancelledError):  # how _take ends it
                await super().get_jobs(session)
        finally:
            self._taking = False

    async def monitor_stop_signals(self, session: aiohttp.ClientSession) -> None:
        with suppress(asyncio.CancelledError):  # how _hear ends it
            await super().monitor_stop_signals(session)

    async def stop_job(self, job_id: str) -> bool:
        """The SDK's own misses a job that waits, and one that has not begun would never leave its books."""
        if job_id in self._running:
            stopped: bool = await super().stop_job(job_id)
            return stopped
        if self.job_progress.get(job_id) is None:
            return False
        self._stopped.add(job_id)
        return True

    async def _watch(self) -> None:
        while self._end is None:
            if self._must_end():
                self.kill_worker()
            await asyncio.sleep(TICK_SECONDS)
        for limit in self._limits:
            if limit.when() is None:
                limit.reschedule(self._end)
        await asyncio.sleep(self._end + LAST_SECONDS - time.monotonic())
        for task in self.jobs_tasks.values():  # RunPod does not take their results
            self.late = True
            task.cancel()

    async def _take(self, session: aiohttp.ClientSession, wanted: int) -> list[Job]:
        """Jobs, for a service that is ready. Raises CancelledError when no more are to be taken."""
        try:
            await _unless(self._asker.wait(), lambda: self._end is not None)
        except Failure:
            raise asyncio.CancelledError from None
        since = time.monotonic()
        jobs: list[Job] | None = None
        try:
            jobs = await _unless(rp_job.get_job(session, wanted), self._is_over)
        finally:
            if not jobs and self._end is None and time.monotonic() - since < PAUSE_SECONDS:
                await asyncio.sleep(PAUSE_SECONDS)
        return [job for job in jobs or [] if self.job_progress.get(job["id"]) is None]

    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end - self._grace + LAST_POLL_SECONDS

    async def _hear(self, session: aiohttp.ClientSession) -> list[str]:
        """Which jobs to stop, for as long as there are any."""
        heard: list[str] = await _unless(rp_job.get_stop_signals(session), lambda: not self.is_alive())
        return heard

    async def _handle(self, session: aiohttp.ClientSession, config: dict[str, Any], job: Job) -> None:
        """Answer one job; posts nothing for one that was stopped."""
        name = job["id"]
        if name in self._stopped:
            return self._stopped.discard(name)
        self._running.add(name)
        try:
            result, streamed = await self._answer(session, job)
            await _post(session, rp_http.JOB_DONE_URL, name, result, streamed, DELIVERY_SECONDS)
        finally:
            self._running.discard(name)

    async def _answer(self, session: aiohttp.ClientSession, job: Job) -> tuple[bytes, bool]:
        """The result, and whether pieces of it were posted."""
        streamed = False

        async def tell(piece: Any) -> None:
            nonlocal streamed
            streamed = True
            await _post(session, rp_http.JOB_STREAM_URL, job["id"], results.pack_chunk(piece), False, CHUNK_SECONDS)

        try:
            async with asyncio.timeout_at(self._end) as limit:
                self._limits.add(limit)
                try:
                    output = await self._asker.ask(inputs.read(job.get("input")), job["id"], tell)
                finally:
                    self._limits.discard(limit)
            return results.pack(output), streamed
        except Failure as refused:
            failed = refused
        except TimeoutError:
            self.late = True
            failed = failure("draining")
        except Exception as error:
            print(f"zopilot-gpu: a job has failed: {type(error).__name__}", file=sys.stderr, flush=True)
            failed = failure("internal_error")
        return results.pack_error(failed, job["id"]), streamed


async def _unless(awaited: Coroutine[Any, Any, Any], over: Callable[[], bool]) -> Any:
    """Its result, or CancelledError as soon as it is over."""
    task = asyncio.ensure_future(awaited)
    try:
        while not task.done():
            if over():
                raise asyncio.CancelledError
            await asyncio.wait({task}, timeout=TICK_SECONDS)
        return task.result()
    finally:
        task.cancel()


async def _post(
    session: aiohttp.ClientSession, template: str, name: str, body: bytes, streamed: bool, seconds: float
) -> None:
    """As the SDK posts it, content type and all, but for longer: it gives a result up after three tries."""
    url = template.replace("$ID", name) + f"&isStream={str(streamed).lower()}"
    headers = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8", "X-Request-ID": name}
    end, pause, why = time.monotonic() + seconds, PAUSE_SECONDS, ""
    while True:
        try:
            async with session.post(url, data=body, headers=headers) as response:
                if response.status < 400:
                    return
                why = str(response.status)
                if response.status < 500 and response.status != 429:
                    break
        except (aiohttp.ClientError, TimeoutError) as error:
            why = type(error).__name__
        if time.monotonic() + pause > end:
            break
        await asyncio.sleep(pause)
        pause *= 2
    print(f"zopilot-gpu: RunPod does not take a result of job {name}: {why}", file=sys.stderr, flush=True)
