"""deploy/jobs.py: every accepted job ends once, whatever the service, the disk and the process do meanwhile."""

import asyncio
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from deploy import jobs as module
from deploy.jobs import ATTEMPTS, Jobs
from deploy.journal import FINAL, Job, Journal
from deploy.protocol import tell
from models.failure import Failure
from serving.caller import Caller
from tests import edge
from tests.edge import Edge

Scenario = Callable[[Jobs, Any], Awaitable[None]]


class Script:
    """Instead of the service: answers each body by what it says itself, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gone = 0
        self.keys: set[str | None] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        told = json.loads(await request.body())
        self.asked.append(told["say"])
        self.keys.add(request.headers.get("x-api-key"))
        again = self.asked.count(told["say"]) > 1
        response: Response = JSONResponse({"success": True, "said": told["say"]})
        if told["say"] == "busy" and not again:
            response = JSONResponse({"error_type": "queue_full"}, 429, {"Retry-After": "0"})
        elif told["say"] == "loading" and not again:
            response = JSONResponse({"error_type": "model_loading"}, 503, {"Retry-After": "1"})
        elif told["say"] == "busy for long" and self.asked.count(told["say"]) < 40:
            response = JSONResponse({"error_type": "queue_full"}, 429, {"Retry-After": "0"})
        elif told["say"] == "never":
            response = JSONResponse({"error_type": "model_unavailable"}, 503)
        elif told["say"] == "refused":
            response = JSONResponse({"error_type": "invalid_value"}, 400)
        elif told["say"] == "text":
            response = PlainTextResponse("data: x")
        elif told["say"] == "dies" or (told["say"] == "dies once" and not again):
            headers = [(b"content-length", b"9"), (b"content-type", b"application/json")]
            return await send({"type": "http.response.start", "status": 200, "headers": headers})
        elif told["say"] == "slow":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone += 1
            return
        await response(scope, receive, send)


def play(path: Path, scenario: Scenario, ready: bool = True) -> Script:
    """Run it beside jobs that are being worked on."""
    script = Script()
    faults: list[str] = []

    async def run(url: str) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, about: faults.append(about["message"]))
        backend: Any = SimpleNamespace(url=url, ready=ready, headers={"X-API-Key": "ours"})
        async with httpx.AsyncClient(timeout=None) as client:
            jobs = Jobs(backend, client, keep_hours=1)
            await jobs.start(path)
            await asyncio.wait_for(scenario(jobs, backend), 30)
            await jobs.stop(0)
            await jobs.close()

    with edge.serving(script) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AGAIN_SECONDS", 0.05)
        asyncio.run(run(url))
    assert faults == []
    return script


async def accept(jobs: Jobs, say: str, key: str | None = None) -> Job:
    return await jobs.accept(Caller("an-id", "/prompt"), "o", key, json.dumps({"say": say}).encode())


async def wait(jobs: Jobs, job: Job, states: frozenset[str] = FINAL) -> dict[str, Any]:
    while True:
        found = tell(await jobs.find(job.id, "o"))
        if found["status"] in states:
            return found
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("say", "state", "status", "answer", "times"),
    [
        ("hello", "succeeded", 200, {"success": True, "said": "hello"}, 1),
        ("refused", "failed", 400, {"error_type": "invalid_value"}, 1),
        ("busy", "succeeded", 200, {"success": True, "said": "busy"}, 2),
        ("loading", "succeeded", 200, {"success": True, "said": "loading"}, 2),
        ("dies once", "succeeded", 200, {"success": True, "said": "dies once"}, 2),
        ("busy for long", "succeeded", 200, {"success": True, "said": "busy for long"}, 40),
        ("never", "failed", 503, {"error_type": "model_unavailable"}, 1),
    ],
)
def test_what_comes_of_a_job(tmp_path: Path, say: str, state: str, status: int, answer: Any, times: int) -> None:
    async def scenario(jobs: Jobs, _: Any) -> None:
        told = await wait(jobs, await accept(jobs, say))
        assert (told["status"], told["http_status"], told["answer"]) == (state, status, answer)

    script = play(tmp_path / "j", scenario)
    assert script.asked == [say] * times
    assert script.keys == {"ours"}


@pytest.mark.parametrize(("say", "code", "times"), [("dies", "interrupted", ATTEMPTS), ("text", "invalid_value", 1)])
def test_what_cannot_be_had_is_a_typed_failure(tmp_path: Path, say: str, code: str, times: int) -> None:
    async def scenario(jobs: Jobs, _: Any) -> None:
        told = await wait(jobs, await accept(jobs, say))
        assert (told["status"], told["answer"]["error_type"]) == ("failed", code)
        assert told["answer"]["request_id"] == "an-id"

    assert play(tmp_path / "j", scenario).asked == [say] * times


def test_nothing_is_asked_of_a_service_that_is_not_ready(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs, backend: Any) -> None:
        job = await accept(jobs, "hello")
        await asyncio.sleep(0.5)
        assert (await jobs.find(job.id, "o")).state == "queued"
        backend.ready = True
        assert (await wait(jobs, job))["status"] == "succeeded"

    play(tmp_path / "j", scenario, ready=False)


def test_a_cancelled_job_is_not_done(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs, _: Any) -> None:
        job = await accept(jobs, "slow")
        await wait(jobs, job, frozenset({"running"}))
        assert (await jobs.cancel(job.id, "o")).state == "cancelled"
        with pytest.raises(Failure, match="no such job"):
            await jobs.cancel(job.id, "another")
        while len(jobs):
            await asyncio.sleep(0.02)
        assert (await jobs.find(job.id, "o")).state == "cancelled"

    script = play(tmp_path / "j", scenario)
    assert (script.asked, script.gone) == (["slow"], 1)


def test_what_is_under_way_at_the_end_is_done_by_the_next_process(tmp_path: Path) -> None:
    made: list[Job] = []

    async def first(jobs: Jobs, _: Any) -> None:
        made.append(await accept(jobs, "slow"))
        await wait(jobs, made[0], frozenset({"running"}))

    play(tmp_path / "j", first)

    async def second(jobs: Jobs, _: Any) -> None:
        await wait(jobs, made[0], frozenset({"running"}))
        assert (await jobs.find(made[0].id, "o")).attempts == 1  # the first end was not its fault

    assert play(tmp_path / "j", second).asked == ["slow"]


def test_a_job_that_is_being_claimed_at_the_end_is_left_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Journal.claim
    claiming = asyncio.Event()

    async def late(self: Journal) -> Job | None:
        found = await claim(self)
        if found is not None:
            claiming.set()
            await asyncio.sleep(0.2)
        return found

    monkeypatch.setattr(Journal, "claim", late)

    async def first(jobs: Jobs, _: Any) -> None:
        await accept(jobs, "slow")
        await claiming.wait()

    play(tmp_path / "j", first)
    monkeypatch.undo()

    async def look() -> Job | None:
        kept = await Journal.open(tmp_path / "j")
        found = await kept.claim()
        await kept.close()
        return found

    job = asyncio.run(look())
    assert job is not None and job.attempts == 1


def test_a_journal_that_another_process_still_has_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORD_SECONDS", 0.05)
    other = sqlite3.connect(tmp_path / "j", check_same_thread=False)
    other.execute("begin exclusive")

    async def scenario(jobs: Jobs, _: Any) -> None:
        with pytest.raises(Failure, match="could not be recorded"):
            await accept(jobs, "hello")
        other.close()
        while True:
            try:
                job = await accept(jobs, "hello")
                break
            except Failure:
                await asyncio.sleep(0.02)
        assert (await wait(jobs, job))["status"] == "succeeded"

    play(tmp_path / "j", scenario)


def test_a_disk_that_stays_full_holds_up_neither_who_cancels_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def scenario(jobs: Jobs, _: Any) -> None:
        job = await accept(jobs, "slow")
        await wait(jobs, job, frozenset({"running"}))
        monkeypatch.setattr(Journal, "finish", full)
        monkeypatch.setattr(Journal, "put_back", full)
        with pytest.raises(Failure) as refused:
            await jobs.cancel(job.id, "o")
        assert refused.value.code == "job_unrecorded"

    play(tmp_path / "j", scenario)
    assert capsys.readouterr().err == "zopilot-gpu: a job cannot be recorded: OperationalError\n"


def test_a_job_that_two_processes_died_over_is_not_tried_again(tmp_path: Path) -> None:
    async def abandon() -> Job:
        kept = await Journal.open(tmp_path / "j")
        found = await kept.claim()
        await kept.close()
        assert found is not None
        return found

    async def nothing(jobs: Jobs, _: Any) -> None:
        await accept(jobs, "hello")

    play(tmp_path / "j", nothing, ready=False)
    job = asyncio.run(abandon())

    async def queued(jobs: Jobs, _: Any) -> None:
        assert (await jobs.find(job.id, "o")).state == "queued"

    play(tmp_path / "j", queued, ready=False)
    asyncio.run(abandon())

    async def failed(jobs: Jobs, _: Any) -> None:
        assert (await wait(jobs, job))["answer"]["error_type"] == "interrupted"

    assert play(tmp_path / "j", failed).asked == []


def test_more_than_fits_is_refused_and_an_idempotency_key_is_held_to_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    monkeypatch.setattr(module, "MAX_BYTES", 100)

    async def scenario(jobs: Jobs, _: Any) -> None:
        first = await accept(jobs, "a", "key")
        assert await accept(jobs, "a", "key") == first
        with pytest.raises(Failure) as refused:
            await accept(jobs, "b", "key")
        assert refused.value.code == "idempotency_conflict"
        with pytest.raises(Failure) as refused:
            await accept(jobs, "x" * 100)
        assert refused.value.code == "queue_full"
        await accept(jobs, "b")
        with pytest.raises(Failure) as refused:
            await accept(jobs, "c")
        assert refused.value.code == "queue_full"
        assert await accept(jobs, "a", "key") == first  # it is there already

    play(tmp_path / "j", scenario, ready=False)


def test_where_no_journal_can_be_kept_no_job_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def scenario(jobs: Jobs, _: Any) -> None:
        for attempt in (accept(jobs, "a"), jobs.find("0" * 32, "o"), jobs.cancel("0" * 32, "o")):
            with pytest.raises(Failure) as refused:
                await attempt
            assert refused.value.code == "job_unrecorded"

    play(tmp_path / "file" / "j", scenario)


def test_an_answer_is_not_lost_over_a_disk_that_is_full_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORD_SECONDS", 0.05)
    finish = Journal.finish
    failed: list[str] = []

    async def full(self: Journal, identity: str, *rest: Any) -> Job | None:
        if len(failed) < 3:
            failed.append(identity)
            raise sqlite3.OperationalError("database or disk is full")
        return await finish(self, identity, *rest)

    monkeypatch.setattr(Journal, "finish", full)

    async def scenario(jobs: Jobs, _: Any) -> None:
        assert (await wait(jobs, await accept(jobs, "hello")))["status"] == "succeeded"

    assert play(tmp_path / "j", scenario).asked == ["hello"]
    assert len(failed) == 3


def submit(url: str, numbers: list[int], accepted: dict[int, str]) -> None:
    """Until each is accepted; what is not is tried again under the same key, as a client does."""
    for number in numbers:
        body = {"prompt": f"Number {number}?", "labels": ["even", "odd"], "context": {"document": "x " * number}}
        while number not in accepted:
            try:
                headers = {"Prefer": "respond-async", "Idempotency-Key": f"n{number}"}
                answer = httpx.post(f"{url}/prompt", json=body, headers=headers, timeout=30)
                if answer.status_code == 202:
                    accepted[number] = answer.json()["location"]
            except httpx.TransportError:
                time.sleep(0.1)
                if os.environ.get("STOP"):
                    return


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_at_any_moment_every_accepted_job_has_one_end(tiny_home: Path, tmp_path: Path, kills: int) -> None:
    """kill -9 of the whole container while jobs come in and are worked on."""
    home = edge.copy_home(tiny_home, tmp_path / "home")
    chance = random.Random(8)
    seen: dict[str, Any] = {}
    accepted: dict[int, str] = {}
    numbers = list(range(20 * kills))

    def watch(running: Edge) -> int:
        """Note what has ended; how many have not."""
        open_ones = 0
        for location in list(accepted.values()):
            told = httpx.get(f"{running.url}{location}", timeout=30).json()
            if told["status"] in FINAL:
                assert seen.setdefault(location, told) == told  # once final it stays so
            else:
                open_ones += 1
        return open_ones

    for turn in range(kills):
        with edge.run(home, tmp_path / "log") as running:
            part = numbers[20 * turn : 20 * turn + 20]
            sender = threading.Thread(target=submit, args=(running.url, part[:15], accepted), daemon=True)
            sender.start()
            time.sleep(chance.uniform(0.05, 0.8))
            watch(running)
            running.kill()
            time.sleep(0.3)
    with edge.run(home, tmp_path / "log") as running:
        submit(running.url, numbers, accepted)
        while watch(running):
            time.sleep(0.2)
        assert running.end() == 0
    assert len(set(accepted.values())) == len(numbers)
    for told in seen.values():
        assert told["status"] == "succeeded" or told["answer"]["error_type"] == "interrupted", told
