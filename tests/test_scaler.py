"""What deploy/scaler.py hangs on in RunPod's SDK: pinned, for none of it is promised."""

import asyncio
import inspect
import time
from typing import Any

import pytest
import runpod
from runpod.serverless import worker
from runpod.serverless.modules import rp_http, rp_job, rp_scale, worker_state

from deploy import scaler
from deploy.scaler import Scaler


def test_it_is_the_version_that_was_read() -> None:
    assert runpod.__version__ == "1.12.0"
    # Looked up as the worker begins, so that ours can stand there.
    assert "rp_scale.JobScaler(config)" in inspect.getsource(worker.run_worker)


def test_the_sdk_asks_for_what_is_replaced() -> None:
    loops = {name: inspect.getsource(getattr(rp_scale.JobScaler, name)) for name in vars(rp_scale.JobScaler)
             if inspect.isfunction(getattr(rp_scale.JobScaler, name))}  # fmt: skip
    assert "self.jobs_fetcher(session, jobs_needed)" in loops["get_jobs"]
    assert "self.stop_signals_fetcher(session)" in loops["monitor_stop_signals"]
    assert "await self.stop_job(job_id)" in loops["monitor_stop_signals"]
    assert "self.jobs_handler(session, self.config, job)" in loops["handle_job"]
    assert "self.kill_worker()" in loops["handle_shutdown"]
    for name in ("get_jobs", "run_jobs", "monitor_stop_signals"):
        assert "while self.is_alive()" in loops[name]
        assert f"self.{name}(session)" in loops["run"]
    for name in ("get_jobs", "monitor_stop_signals"):  # how these are ended
        assert "except asyncio.CancelledError" in loops[name]
    assert list(inspect.signature(rp_job.get_job).parameters) == ["session", "num_jobs"]
    assert list(inspect.signature(rp_job.get_stop_signals).parameters) == ["session"]
    assert isinstance(rp_http.JOB_DONE_URL, str) and isinstance(rp_http.JOB_STREAM_URL, str)


class Asker:
    """Of a service that is always ready."""

    async def wait(self) -> None:
        return None


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Scaler:
    monkeypatch.setattr(scaler, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(scaler, "LAST_POLL_SECONDS", 0.3)
    worker_state.JobsProgress().clear()
    return Scaler({}, Asker(), 30, lambda: False)  # type: ignore[arg-type]


def deliver(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
    """What the queue says to each poll in turn; a number: seconds until it says nothing."""
    left = list(answers)

    async def get_job(session: Any, wanted: int) -> Any:
        answer = left.pop(0)
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return None
        return answer

    monkeypatch.setattr(rp_job, "get_job", get_job)


def test_a_job_that_is_under_way_already_is_not_taken_again(scaling: Scaler, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(monkeypatch, [{"id": "a"}, {"id": "b"}])
    scaling.job_progress.add({"id": "a"})
    assert asyncio.run(scaling._take(None, 2)) == [{"id": "b"}]  # type: ignore[arg-type]


def test_a_poll_that_ends_at_once_is_followed_by_a_pause(scaling: Scaler, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(monkeypatch, None)
    since = time.monotonic()
    assert asyncio.run(scaling._take(None, 1)) == []  # type: ignore[arg-type]
    assert time.monotonic() - since >= 0.2


def test_after_the_end_no_poll_is_begun_and_one_under_way_is_left_a_while(
    scaling: Scaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take_and_end(after: float) -> Any:
        taking = asyncio.ensure_future(scaling._take(None, 1))  # type: ignore[arg-type]
        await asyncio.sleep(after)
        scaling.kill_worker()
        return await taking

    deliver(monkeypatch, 60.0)
    since = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(take_and_end(0.1))
    assert time.monotonic() - since >= 0.4
    deliver(monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scaling._take(None, 1))  # type: ignore[arg-type]


def test_it_lives_until_what_it_took_is_answered(scaling: Scaler) -> None:
    async def end() -> None:
        scaling.job_progress.add({"id": "a"})
        scaling.kill_worker()
        assert scaling.is_alive()
        scaling._taking = False
        assert scaling.is_alive()
        scaling.job_progress.remove({"id": "a"})
        assert not scaling.is_alive()

    asyncio.run(end())


def test_a_job_that_is_stopped_before_it_runs_is_never_run(scaling: Scaler) -> None:
    """The SDK's own would run it and post its result."""

    async def stop() -> None:
        scaling.job_progress.add({"id": "a"})
        assert await scaling.stop_job("a")
        assert not await scaling.stop_job("unheard of")
        await scaling._handle(None, {}, {"id": "a", "input": {}})  # type: ignore[arg-type]

    asyncio.run(stop())
    assert not scaling._stopped and not scaling._running
