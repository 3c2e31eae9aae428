"""A queue's jobs through RunPod's real SDK and the real service: what comes of each, and that none comes to nothing."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.backend import CRASHED
from models import catalog
from tests.conftest import ROOT
from tests.queue_plane import FINAL, Job, Plane
from tests.queue_worker import Worker, ask, cancel, submit, wait, work

MODEL = "smollm2-135m-instruct"
LABELS = {"prompt": "Where?", "context": {"document": "Oslo, 12.50"}, "labels": ["Rome", "Oslo"]}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_completion_tokens": 8}
TEXT = {"model": MODEL, "prompt": "Dear Sir or Madam,", "max_tokens": 8}
LONG = {"model": MODEL, "prompt": "Dear Sir or Madam,", "max_tokens": 4000}
QUESTIONS = {
    "model": MODEL,
    "input": "TOTAL 6.40",
    "questions": [{"type": "predicate", "instructions": "It is a receipt.", "name": "receipt"}],
}


def openai(route: str, given: Any) -> dict[str, Any]:
    return {"openai_route": route, "openai_input": given}


def route(path: Any, body: Any = None) -> dict[str, Any]:
    return {"route": path, "body": body}


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    with Plane().open() as plane:
        yield plane


@pytest.fixture(scope="module")
def both_home(tiny_home: Path, encoder_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, and the real MiniLM."""
    home = tmp_path_factory.mktemp("queue-home")
    for other, model in ((tiny_home, catalog.SMOLLM2), (encoder_home, catalog.MINILM)):
        shutil.copytree(other / "models" / model.name, home / "models" / model.name)
    return home


@pytest.fixture(scope="module")
def worker(plane: Plane, both_home: Path) -> Iterator[Worker]:
    log = both_home / "log"
    with work(plane, both_home, log, "worker-1", GPU_MAX_BATCH_SIZE="10000", ZOPILOT_MAX_BODY="200000") as worker:
        yield worker


@pytest.fixture(autouse=True)
def no_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test is about, the worker kept to RunPod's rules, each job has one end, and no text is in the log."""
    yield
    if "plane" not in request.fixturenames:
        return
    plane: Plane = request.getfixturevalue("plane")
    assert plane.faults == []
    assert all(len(job.ends) <= 1 for job in plane.jobs.values())
    if "worker" in request.fixturenames:
        worker: Worker = request.getfixturevalue("worker")
        said = worker.log.read_text()
        assert not [text for text in ("Oslo", "Dear Sir", "TOTAL 6.40") if text in said]


def error(job: Job) -> dict[str, Any]:
    """What a failed job says of why: an object of ours as a string, and nothing about where it ran."""
    assert (job.status, job.posts) == ("FAILED", [{"error": job.error}])
    told: dict[str, Any] = json.loads(job.error)
    assert list(told) == ["success", "error", "error_type", "retryable", "request_id"]
    assert (told["success"], told["request_id"]) == (False, job.id)
    secrets = (socket.gethostname(), "worker-1", str(ROOT), os.sep + "site-packages", "127.0.0.1", "Traceback", ".py")
    assert not [secret for secret in secrets if secret in job.error]
    return told


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        pytest.param(LABELS, ["success", "output", "metadata"], id="a body of /prompt itself"),
        pytest.param(route("/prompt", LABELS), ["success", "output", "metadata"], id="with its route"),
        pytest.param(
            route("/prompt", {"prompt": "x", "schema": {"const": {"error": "bad", "refresh_worker": True}}}),
            ["success", "output", "metadata"],
            id="an answer that looks like an error",
        ),
        pytest.param(route("/v1/decisions", QUESTIONS), None, id="decisions"),
        pytest.param(route("/v1/chat/completions", CHAT), None, id="chat"),
        pytest.param(route("/v1/completions", TEXT), None, id="completions"),
        pytest.param(route("/embed", {"texts": ["an espresso", "\u00e9\u4e2d\U0001f389"]}), None, id="embed"),
        pytest.param(
            route("/bertscore", {"candidates": ["It is 6.40."], "references": [["6.40 in all"]]}), None, id="bertscore"
        ),
        pytest.param(route("/warmup", {"models": ["all-minilm-l6-v2"]}), None, id="warmup"),
        pytest.param(route("/v1/models"), ["object", "data"], id="models"),
        pytest.param({"route": f"/v1/models/{MODEL}"}, None, id="one model, without a body"),
    ],
)
def test_a_good_job_has_the_answer_of_its_route(
    given: Any, keys: list[str] | None, plane: Plane, worker: Worker
) -> None:
    job = ask(plane, given)
    assert (job.status, job.error) == ("COMPLETED", None), job.error
    assert job.posts == [{"output": job.output}] and job.chunks == []
    assert isinstance(job.output, dict) and job.output
    assert keys is None or list(job.output) == keys


@pytest.mark.parametrize(
    ("given", "first"),
    [
        pytest.param(openai("/v1/models", None), "list", id="models"),
        pytest.param({"openai_route": "/v1/models"}, "list", id="models without a word"),
        pytest.param(openai("/v1/chat/completions", CHAT), "chat.completion", id="chat"),
        pytest.param(openai("/v1/completions", TEXT), "text_completion", id="completions"),
        pytest.param(openai("/v1/embeddings", {"model": "all-minilm-l6-v2", "input": "x"}), "list", id="embeddings"),
    ],
)
def test_what_comes_by_runpods_openai_is_a_list_of_one(given: Any, first: str, plane: Plane, worker: Worker) -> None:
    """And a piece of a stream, as its own workers have it."""
    job = ask(plane, given)
    assert job.status == "COMPLETED", job.error
    assert job.output == job.chunks and len(job.output) == 1
    assert job.output[0]["object"] == first


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(openai("/v1/chat/completions", {**CHAT, "stream": True}), id="by RunPod's openai"),
        pytest.param(route("/v1/completions", {**TEXT, "stream": True}), id="by its route"),
    ],
)
def test_a_stream_is_told_as_it_comes_and_whole_at_the_end(given: Any, plane: Plane, worker: Worker) -> None:
    job = ask(plane, given)
    assert job.status == "COMPLETED", job.error
    assert job.output == job.chunks and len(job.chunks) > 1
    events = "".join(job.output).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        pytest.param(None, "invalid_value", "input", id="no input"),
        pytest.param("Where?", "invalid_value", "input", id="a text"),
        pytest.param([LABELS], "invalid_value", "input", id="a list"),
        pytest.param({}, "invalid_value", "prompt", id="an empty input"),
        pytest.param({**LABELS, "colour": 1}, "unknown_parameter", "colour", id="an unknown field"),
        pytest.param({**LABELS, "refresh_worker": True}, "unknown_parameter", "refresh_worker", id="a word of the SDK"),
        pytest.param({**LABELS, "labels": "Rome"}, "invalid_value", "labels", id="a wrong field"),
        pytest.param(route("/prompt"), "invalid_value", "body", id="no body"),
        pytest.param({**route("/embed", {}), "x": 1}, "unknown_parameter", "input.x", id="beside the route"),
        pytest.param(route("/secret"), "not_found", "route", id="an unknown route"),
        pytest.param(route(["/prompt"]), "not_found", "route", id="a route that is no text"),
        pytest.param(route("/status"), "not_found", "route", id="a route for operators"),
        pytest.param(route("/prompt?x=1", LABELS), "not_found", "route", id="a route with a query"),
        pytest.param(openai("/prompt", LABELS), "not_found", "route", id="openai beyond its routes"),
        pytest.param(openai("/v1/responses", {}), "not_found", "route", id="openai's that we have not"),
        pytest.param({"route": "/v1/models/gpt"}, "model_not_found", "model", id="an unknown model"),
        pytest.param(
            openai("/v1/chat/completions", {**CHAT, "n": 9}), "invalid_value", "n:", id="openai's wrong field"
        ),
        pytest.param({**LABELS, "seed": float("nan")}, "invalid_json", "JSON", id="not a number"),
        pytest.param({**LABELS, "seed": float("inf")}, "invalid_json", "JSON", id="infinity"),
        pytest.param({"prompt": "\ud800"}, "invalid_text", "surrogate", id="half a character"),
        pytest.param({"prompt": "x" * 300_000}, "request_too_large", "200000 bytes", id="too large a body"),
        pytest.param(
            {"prompt": "x", "format": "text", "max_new_tokens": 20}, "answer_truncated", "", id="a cut answer"
        ),
        pytest.param(
            route("/v1/completions", {**TEXT, "prompt": "x " * 20_000}), "context_length_exceeded", "", id="too long"
        ),
        pytest.param(
            {"prompt": "x", "deadline_ms": 100, "max_new_tokens": 2000}, "deadline_exceeded", "", id="too late"
        ),
        pytest.param(
            route("/embed", {"texts": ["x"] * 1400}), "answer_too_large", "10,000,000", id="more than RunPod takes"
        ),
    ],
)
def test_a_bad_job_fails_with_its_reason(given: Any, code: str, says: str, plane: Plane, worker: Worker) -> None:
    told = error(ask(plane, given))
    assert told["error_type"] == code, told
    assert says in told["error"]
    assert told["retryable"] is False
    assert ask(plane, LABELS).status == "COMPLETED"


def test_a_job_that_pythons_parser_would_give_up_is_answered(plane: Plane, worker: Worker) -> None:
    """And so are those that came with it."""
    deep: Any = "x"
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        for _ in range(5000):
            deep = [deep]
        jobs = [submit(plane, given) for given in (LABELS, {"prompt": deep}, LABELS)]
        wait(lambda: all(job.status in FINAL for job in jobs))
    finally:
        sys.setrecursionlimit(before)
    assert [job.status for job in jobs] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert error(jobs[1])["error_type"] == "invalid_json"


def test_a_result_that_is_not_taken_at_once_is_offered_again(plane: Plane, worker: Worker) -> None:
    """The SDK's own would drop it after three refusals."""
    plane.refusals["done"].extend([500] * 3)
    job = ask(plane, LABELS)
    assert (job.status, len(job.posts)) == ("COMPLETED", 1)
    assert not plane.refusals["done"]


def test_a_piece_of_a_stream_that_is_lost_is_in_the_result(plane: Plane, worker: Worker) -> None:
    plane.refusals["stream"].extend([500, 404])
    job = ask(plane, route("/v1/completions", {**TEXT, "stream": True}))
    assert job.status == "COMPLETED" and len(job.output) == len(job.chunks) + 1
    assert job.output[-1].endswith("data: [DONE]\n\n")


def test_a_queue_that_has_a_fault_is_not_asked_again_and_again(plane: Plane, worker: Worker) -> None:
    """The SDK's own would ask a thousand times in a second."""
    before = len(plane.requests)
    plane.refusals["take"].extend([500, 400, 500])
    wait(lambda: not plane.refusals["take"])
    assert ask(plane, LABELS).status == "COMPLETED"
    assert len([path for path in plane.requests[before:] if "job-take" in path]) < 8


def outcome(worker: Worker, job: Job) -> str | None:
    """What the service's own books say of it."""
    recent = worker.service("/status")["recent"]
    return next((each["outcome"] for each in recent if each["request_id"] == job.id), None)


def active(worker: Worker, job: Job) -> bool:
    return any(each["request_id"] == job.id for each in worker.service("/status")["active"])


@pytest.mark.parametrize("stream", [False, True])
def test_cancel_reaches_the_engine(stream: bool, plane: Plane, worker: Worker) -> None:
    job = submit(plane, route("/v1/completions", {**LONG, "stream": stream}))
    wait(lambda: active(worker, job) and worker.service("/health")["engine"]["running"] == 1)
    cancel(job, plane)
    wait(lambda: not active(worker, job) and worker.service("/health")["engine"]["running"] == 0)
    assert (job.status, job.posts, outcome(worker, job)) == ("CANCELLED", [], "client_closed_request")
    assert ask(plane, LABELS).status == "COMPLETED"


def test_what_is_cancelled_while_it_waits_is_never_asked(plane: Plane, worker: Worker) -> None:
    jobs = [submit(plane, route("/v1/completions", LONG)) for _ in range(24)]
    for job in jobs:
        cancel(job, plane)
    wait(lambda: worker.service("/health")["engine"]["running"] == 0)
    assert ask(plane, LABELS).status == "COMPLETED"
    assert [(job.status, job.posts) for job in jobs] == [("CANCELLED", [])] * 24


def test_as_many_are_taken_at_once_as_the_engine_has_room_for(plane: Plane, worker: Worker) -> None:
    """32,768 tokens in flight, 2,048 for each."""
    jobs = [submit(plane, {"prompt": f"Item {at}?", "labels": ["a", "b"]}) for at in range(40)]
    wait(lambda: all(job.status in FINAL for job in jobs))
    assert {job.status for job in jobs} == {"COMPLETED"}
    said = worker.log.read_text()
    assert "takes up to 16 jobs at once" in said and "Traceback" not in said
    assert any("batch_size=16" in path for path in plane.requests)


def test_a_job_outlives_the_service_that_began_it(plane: Plane, worker: Worker) -> None:
    """It is asked once more; a stream of which pieces are out is not."""
    job = submit(plane, route("/v1/completions", {**LONG, "max_tokens": 1000}))
    stream = submit(plane, route("/v1/completions", {**LONG, "stream": True}))
    wait(lambda: active(worker, job) and stream.chunks)
    assert worker.kill_service()
    wait(lambda: stream.status in FINAL, 30)
    assert error(stream)["error_type"] == "interrupted" and stream.chunks
    late = submit(plane, LABELS)  # while there is no service
    wait(lambda: job.status in FINAL and late.status in FINAL, 60)
    assert (job.status, late.status) == ("COMPLETED", "COMPLETED"), (job.error, late.error)
    assert job.taken == 1


def test_a_crash_loop_ends_it_and_says_why(plane: Plane, worker: Worker) -> None:
    """The last here: there is no worker after it. What it had taken is told so; the rest waits for others."""
    job = submit(plane, route("/v1/completions", LONG))
    wait(lambda: job.status == "IN_PROGRESS")
    deaths = 0
    while worker.process.poll() is None and deaths < 10:
        deaths += worker.kill_service()
        time.sleep(0.5)
    assert worker.process.wait(30) == CRASHED
    assert "has died 3 times" in worker.log.read_text()
    assert error(job)["error_type"] in ("model_unavailable", "interrupted")  # it was asked twice, or once
    assert submit(plane, LABELS).status == "IN_QUEUE"
    assert plane.lose("worker-1") == []
