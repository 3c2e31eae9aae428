"""examples/clients: every end of a job is told apart and none is waited for in vain; against real and scripted ends."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tests import edge, queue_worker
from tests.conftest import EXAMPLES, ROOT, Server, free_port
from tests.queue_plane import Plane

CLIENTS = EXAMPLES / "clients"


def load(name: str) -> Any:
    """A file that belongs to no package, as its reader has it."""
    spec = importlib.util.spec_from_file_location(f"client_{name}", CLIENTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runpod_queue, jobs = load("runpod_queue"), load("jobs")
Queue = runpod_queue.Queue
TYPESCRIPT = "typescript@7.0.2"
TYPED = {"success": False, "error": "it is cut", "error_type": "answer_truncated", "retryable": False}
DONE = [200, {"status": "COMPLETED", "output": {"success": True}}]
FAILED = {"status": "FAILED"}
WELL = {"output": {"success": True}}
UNTYPED = {"kind": "failed", "type": "", "again": False}
CUT = {"kind": "failed", "type": "answer_truncated", "again": False}
AGAIN = {"Retry-After": "0"}

# What RunPod says each time that it is asked, the last for ever: status, body, headers. And what must come of it.
POLLS: dict[str, tuple[list[Any], Any]] = {
    "done at once": ([DONE], WELL),
    "done later": (
        [[200, {"status": "IN_QUEUE"}], [200, {"status": "IN_PROGRESS"}], DONE],
        WELL,
    ),
    "running by another name": ([[200, {"status": "RUNNING"}], DONE], WELL),
    "done with nothing": ([[200, {"status": "COMPLETED", "output": None}]], {"output": None}),
    "done without an output": ([[200, {"status": "COMPLETED"}]], UNTYPED),
    "typed": (
        [[200, {**FAILED, "error": json.dumps(TYPED)}]],
        CUT,
    ),
    "typed and passing": (
        [[200, {**FAILED, "error": json.dumps({**TYPED, "error_type": "busy", "retryable": True})}]],
        {"kind": "failed", "type": "busy", "again": True},
    ),
    "a text": (
        [[200, {**FAILED, "error": "job timed out after 1 retries"}]],
        UNTYPED,
    ),
    "JSON of another": (
        [[200, {**FAILED, "error": '{"error_type": "x"}'}]],
        UNTYPED,
    ),
    "a number": ([[200, {**FAILED, "error": "1"}]], UNTYPED),
    "an object": ([[200, {**FAILED, "error": {"a": 1}}]], UNTYPED),
    "failed without a reason": ([[200, FAILED]], UNTYPED),
    "cancelled": ([[200, {"status": "CANCELLED"}]], {"kind": "cancelled"}),
    "timed out": ([[200, {"status": "TIMED_OUT"}]], {"kind": "timed_out"}),
    "gone": ([[200, {"status": "IN_PROGRESS"}], [404, {"error": "not found"}]], {"kind": "expired"}),
    "never heard of": ([[200, {"status": "PAUSED"}]], {"kind": "unknown_status"}),
    "no status": ([[200, {}]], {"kind": "unknown_status"}),
    "a page": ([[200, "<html>"]], {"kind": "unknown_status"}),
    "out of order": ([[500, {}], [502, "<html>"], [503, {}], DONE], WELL),
    "broken off": ([[200, None], DONE], WELL),
    "too often": ([[429, {}, AGAIN], [429, {}, AGAIN], DONE], WELL),
    "no entry": ([[401, {}]], {"kind": "refused"}),
    "waiting for ever": ([[200, {"status": "IN_QUEUE"}]], {"kind": "deadline_exceeded", "cancelled": True}),
    "running for ever": ([[200, {"status": "IN_PROGRESS"}]], {"kind": "deadline_exceeded", "cancelled": True}),
    "out of order for ever": ([[503, {}]], {"kind": "deadline_exceeded", "cancelled": True}),
    "too often for ever": ([[429, {}, {"Retry-After": "60"}]], {"kind": "deadline_exceeded", "cancelled": True}),
}
# The same of the submission; after these it is taken.
SUBMISSIONS: dict[str, tuple[list[Any], Any]] = {
    "crowded": ([[429, {}, AGAIN], [429, {}, AGAIN]], WELL),
    "too crowded": ([[429, {}, {"Retry-After": "60"}]], {"kind": "deadline_exceeded"}),
    "not understood": ([[400, {}]], {"kind": "refused"}),
    "without a key": ([[401, {}]], {"kind": "refused"}),
    "perhaps taken": ([[502, "<html>"]], {"kind": "unreachable"}),
    "taken as nothing": ([[200, {"status": "IN_QUEUE"}]], {"kind": "unknown_status"}),
}
KINDS = {
    runpod_queue.TooLarge: "too_large",
    runpod_queue.Refused: "refused",
    runpod_queue.Unreachable: "unreachable",
    runpod_queue.Failed: "failed",
    runpod_queue.Cancelled: "cancelled",
    runpod_queue.TimedOut: "timed_out",
    runpod_queue.Expired: "expired",
    runpod_queue.DeadlineExceeded: "deadline_exceeded",
    runpod_queue.UnknownStatus: "unknown_status",
}


@dataclass
class Script:
    """RunPod's job API; the input of a job has what is said to submissions before it is taken, and then to polls."""

    url: str = ""
    taken: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    left: dict[str, list[Any]] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        operation, _, job = scope["path"].removeprefix("/v2/ep/").partition("/")
        self.paths.append(operation)
        if operation in ("run", "runsync"):
            response = self._submit(json.loads(await request.body()))
        elif operation == "cancel":
            self.cancelled.add(job)
            response = JSONResponse({"id": job, "status": "CANCELLED"})
        else:
            steps = self.left[f"{job} polls"]
            response = _say(steps.pop(0) if len(steps) > 1 else steps[0], {"id": job})
        await response(scope, receive, send)

    def _submit(self, body: dict[str, Any]) -> Response:
        given = body["input"]
        before = self.left.setdefault(f"{given['name']} submissions", list(given["submissions"]))
        if before:
            return _say(before.pop(0), {})
        self.taken.append(body)
        self.left[f"{given['name']} polls"] = list(given["polls"])
        return JSONResponse({"id": given["name"], "status": "IN_QUEUE"})


def _say(step: list[Any], base: dict[str, Any]) -> Response:
    status, body, headers = (*step, {})[:3]
    if body is None:  # the connection ends in the middle
        return Response(b"{", status, {"Content-Length": "99"})
    if isinstance(body, str):
        return Response(body, status, headers, "text/html")
    return JSONResponse({**base, **body}, status, headers)


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    with edge.serving(script) as url:
        script.url = f"{url}/v2"
        yield script


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runpod_queue, jobs):
        monkeypatch.setattr(module, "FIRST_POLL", 0.01)
        monkeypatch.setattr(module, "LONGEST_POLL", 0.02)


def inputs() -> list[dict[str, Any]]:
    polled = [{"name": name, "polls": polls, "submissions": []} for name, (polls, _) in POLLS.items()]
    submitted = [{"name": name, "polls": [DONE], "submissions": said} for name, (said, _) in SUBMISSIONS.items()]
    return polled + submitted


def outcome(script: Script, given: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What comes of it, in the words of the tables above."""
    with Queue("ep", "key", script.url) as queue:
        try:
            return {"output": queue.ask(given, seconds)}
        except runpod_queue.QueueError as error:
            told: dict[str, Any] = {"kind": KINDS[type(error)]}
            if isinstance(error, runpod_queue.Failed):
                told |= {"type": error.error_type, "again": error.retryable}
    return told | ({"cancelled": True} if given["name"] in script.cancelled else {})


@pytest.mark.parametrize("given", inputs(), ids=lambda given: given["name"])
def test_every_end_is_told_apart(given: dict[str, Any], script: Script, quick: None) -> None:
    expected = {**POLLS, **SUBMISSIONS}[given["name"]][1]
    assert outcome(script, given, 0.3 if expected.get("kind") == "deadline_exceeded" else 20) == expected


def test_it_asks_less_and_less_often_and_ends(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    """In a time of its own, which passes only while it sleeps."""
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(pauses), sleep=pauses.append)
    monkeypatch.setattr(runpod_queue, "time", clock)
    given = {"name": "for ever", "polls": [[200, {"status": "IN_QUEUE"}]], "submissions": []}
    with Queue("ep", "key", script.url) as queue, pytest.raises(runpod_queue.DeadlineExceeded) as raised:
        queue.ask(given, 300)
    assert sum(pauses) == pytest.approx(300)
    assert 0.8 <= pauses[0] <= 1.2
    assert all(4 <= pause <= 6 for pause in pauses[6:-1])
    assert len(set(pauses)) > 40
    assert raised.value.job == "for ever"
    assert script.taken[0]["policy"] == {"ttl": 360_000}  # it ends there too, were the cancellation lost


def test_a_job_is_waited_for_again(script: Script, quick: None) -> None:
    script.left["an old one polls"] = [DONE]
    with Queue("ep", "key", script.url) as queue:
        assert queue.wait("an old one", 5) == {"success": True}


def test_who_interrupts_it_cancels(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runpod_queue, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
    given = {"name": "interrupted", "polls": [[200, {"status": "IN_QUEUE"}]], "submissions": []}
    with Queue("ep", "key", script.url) as queue, pytest.raises(KeyboardInterrupt):
        queue.ask(given)
    assert script.cancelled == {"interrupted"}


@pytest.mark.parametrize(("operation", "limit"), [("run", 10_000_000), ("runsync", 20_000_000)])
def test_what_is_too_large_is_not_sent(operation: str, limit: int, script: Script, quick: None) -> None:
    given = {"name": "large", "polls": [DONE], "submissions": [], "fill": ""}
    with Queue("ep", "key", script.url) as queue:
        with pytest.raises(runpod_queue.TooLarge, match=f"{limit:,}"):
            queue.ask({**given, "fill": "x" * limit}, 20, operation)
        assert not script.paths
        assert queue.ask({**given, "fill": "x" * (limit - 500)}, 20, operation) == {"success": True}
    assert script.paths[0] == operation


def test_nobody_there_ends_too(quick: None) -> None:
    with Queue("ep", "key", f"http://127.0.0.1:{free_port()}/v2") as queue:
        with pytest.raises(runpod_queue.DeadlineExceeded, match="submitted"):
            queue.ask({}, 0.1)
        with pytest.raises(runpod_queue.DeadlineExceeded):
            queue.wait("job", 0.1)


def run(script: str, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """One of the examples as its reader runs it."""
    command = [*([] if script.endswith(".sh") else [sys.executable]), str(CLIENTS / script), *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_queue_with_a_real_worker(tiny_home: Path, tmp_path: Path) -> None:
    """RunPod's own SDK and the real service behind it; the second asks for what the service refuses."""
    home = edge.copy_home(tiny_home, tmp_path / "home")
    refused = tmp_path / "refused.json"
    refused.write_text('{"prompt": "What is it?", "colour": "red"}')
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"prompt": "What is it?", "labels": ["invoice", "letter"]}))
    with Plane().open() as plane, queue_worker.work(plane, home, tmp_path / "log", "w1"):
        settings = {"RUNPOD_API_KEY": "a", "RUNPOD_ENDPOINT_BASE_URL": f"{plane.url}/v2"}
        answered = run("runpod_queue.py", "ep", str(labels), **settings)
        typed = run("runpod_queue.py", "ep", str(refused), **settings)
        assert not plane.faults
    assert json.loads(json.loads(answered.stdout)["output"])["label"] in ("invoice", "letter"), answered.stderr
    assert typed.returncode == 1
    assert typed.stderr.startswith("Failed: unknown_parameter: ")


@pytest.fixture(scope="module")
def pod(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[edge.Edge]:
    place = tmp_path_factory.mktemp("pod")
    home = edge.copy_home(tiny_home, place / "home")
    with edge.run(home, place / "log", RUNPOD_POD_ID="pod", ZOPILOT_GPU_API_KEY="secret") as running:
        yield running


BODY = {"prompt": "What is it?", "context": {"document": "TOTAL 6.40"}, "labels": ["receipt", "letter"]}
LONG = {"prompt": "Say much.", "format": "text", "max_new_tokens": 4000, "temperature": 1.0, "allow_partial": True}


def test_a_pods_job(pod: edge.Edge, quick: None) -> None:
    answer = jobs.ask(pod.url, "secret", BODY)
    assert json.loads(answer["output"])["label"] in BODY["labels"]


def test_a_pods_job_by_the_command_line(pod: edge.Edge, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(BODY))
    assert json.loads(run("jobs.py", pod.url, str(request), ZOPILOT_KEY="secret").stdout)["success"] is True
    refused = run("jobs.py", pod.url, str(request), ZOPILOT_KEY="another")
    assert (refused.returncode, refused.stderr.split(":")[0]) == (1, "unauthorized")


def test_a_pods_job_that_fails_says_why(pod: edge.Edge, quick: None) -> None:
    with pytest.raises(jobs.JobError, match="unknown_parameter: ") as raised:
        jobs.ask(pod.url, "secret", {**BODY, "colour": "red"})
    assert not raised.value.retryable
    with pytest.raises(jobs.JobError) as raised:
        jobs.ask(pod.url, "secret", {"messages": []}, route="/v1/chat/completions")
    assert raised.value.error_type in ("invalid_value", "unknown_parameter")


def test_a_pods_job_is_cancelled_when_its_time_is_up(pod: edge.Edge, quick: None) -> None:
    with pytest.raises(jobs.JobError, match="deadline_exceeded"):
        jobs.ask(pod.url, "secret", LONG, seconds=1)
    headers = {"X-API-Key": "secret"}
    end = time.monotonic() + 30
    while httpx.get(f"{pod.url}/status", headers=headers).json()["active"] and time.monotonic() < end:
        time.sleep(0.1)
    assert time.monotonic() < end


def test_an_address_without_a_scheme_is_told_at_once() -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        jobs.ask("pod-3000.proxy.invalid", "", BODY, seconds=20)


def test_a_service_that_makes_no_jobs_answers_at_once(tiny_server: Server, quick: None) -> None:
    assert jobs.ask(tiny_server.url, "", BODY)["success"] is True


@pytest.mark.parametrize("said", [[502, "<html>"], [524, "<html>"], [503, {"retryable": True}, AGAIN]], ids=str)
def test_a_pods_job_outlives_a_proxys_moods_and_is_made_once(said: list[Any], quick: None) -> None:
    """One name for all that is sent, so that only the first makes a job."""
    names: list[str] = []
    told = [said, [202, {"status": "queued", "location": "/jobs/1"}], said, [200, {"status": "running"}], said]
    told += [[200, {"status": "succeeded", "http_status": 200, "answer": {"success": True}}]]

    async def moody(scope: Scope, receive: Receive, send: Send) -> None:
        names.append(Request(scope).headers.get("idempotency-key", ""))
        await _say(told.pop(0), {})(scope, receive, send)

    with edge.serving(moody) as url:
        assert jobs.ask(url, "key", BODY, seconds=60) == {"success": True}
    assert len(names) == 6 and len({name for name in names if name}) == 1


def test_the_service_asked_by_two_libraries(tiny_server: Server) -> None:
    done = run("prompt.py", tiny_server.url)
    assert done.returncode == 0, done.stderr
    for told in json.loads(done.stdout).values():
        assert told["kind"] in ("invoice", "letter") and told.keys() == {"kind", "currency"}


def test_the_service_asked_by_curl(pod: edge.Edge, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(BODY))
    done = run("prompt.sh", pod.url, str(request), ZOPILOT_KEY="secret")
    assert (done.returncode, json.loads(done.stdout)["success"]) == (0, True), done.stderr
    refused = run("prompt.sh", pod.url, str(request), ZOPILOT_KEY="another")
    assert refused.returncode == 22
    assert json.loads(refused.stdout)["error_type"] == "unauthorized"


def test_curl_prints_one_answer_and_takes_no_job_for_one(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(json.dumps(BODY))
    asked: list[Request] = []
    told = [[503, {"error": "later"}], [200, {"success": True}], [202, {"success": False, "location": "/jobs/1"}]]

    async def moody(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(Request(scope))
        await _say(told.pop(0), {})(scope, receive, send)

    with edge.serving(moody) as url:
        keys = {"ZOPILOT_KEY": "ours", "RUNPOD_API_KEY": "theirs"}
        answered = run("prompt.sh", url, str(tmp_path / "request.json"), **keys)
        assert (answered.returncode, json.loads(answered.stdout)) == (0, {"success": True}), answered.stderr
        job = run("prompt.sh", url, str(tmp_path / "request.json"), **keys)
    assert (job.returncode, json.loads(job.stdout)["location"]) == (75, "/jobs/1")
    assert {(each.headers["x-api-key"], each.headers["authorization"]) for each in asked} == {("ours", "Bearer theirs")}


DRIVER = """
import { AskError, Queue, prompt } from "./client.js";
const { url, service, cases, body } = JSON.parse(process.argv[2]);
const told = {};
for (const { input, seconds } of cases) {
  try {
    told[input.name] = { output: await new Queue("ep", "key", url, 10, 20).ask(input, seconds) };
  } catch (error) {
    if (!(error instanceof AskError)) throw error;
    told[input.name] = { kind: error.kind };
    if (error.kind === "failed") Object.assign(told[input.name], { type: error.errorType, again: error.retryable });
  }
}
const kinds = [];
for (const [input, operation] of [[{ fill: "x".repeat(1e7) }, "run"], [{ fill: "x".repeat(2e7) }, "runsync"]]) {
  await new Queue("ep", "key", url).ask(input, 1, operation).catch((error) => kinds.push(error.kind));
}
const refused = await prompt(service, "", { ...body, colour: "red" }).catch((error) => error.errorType);
const nobody = await prompt("http://127.0.0.1:1", "", body).catch((error) => error.kind);
console.log(JSON.stringify({ told, kinds, refused, nobody, answer: await prompt(service, "", body) }));
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm brings the compiler")
def test_the_same_in_typescript(script: Script, tiny_server: Server, tmp_path: Path) -> None:
    strict = ["--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--noUnusedLocals"]
    how = ["--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", "--types", "", "--outDir", "."]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(CLIENTS / "client.ts", tmp_path)
    (tmp_path / "driver.js").write_text(DRIVER)
    compiler = ["npm", "exec", "--yes", f"--package={TYPESCRIPT}", "--", "tsc", *strict, *how, "client.ts"]
    compiled = subprocess.run(compiler, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr
    expected = {name: end for name, (_, end) in {**POLLS, **SUBMISSIONS}.items()}
    late = {name for name, end in expected.items() if end.get("kind") == "deadline_exceeded"}
    cases = [{"input": given, "seconds": 0.3 if given["name"] in late else 20} for given in inputs()]
    given = json.dumps({"url": script.url, "service": tiny_server.url, "cases": cases, "body": BODY})
    done = subprocess.run(["node", "driver.js", given], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["told"] == {name: {k: v for k, v in end.items() if k != "cancelled"} for name, end in expected.items()}
    assert script.cancelled == {name for name, end in expected.items() if end.get("cancelled")}
    assert found["kinds"] == ["too_large", "too_large"]
    assert found["refused"] == "unknown_parameter"
    assert found["nobody"] == "unreachable"
    assert found["answer"]["success"] is True
