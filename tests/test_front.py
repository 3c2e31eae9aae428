"""deploy/front.py and http.py: process 1 as its clients see it, from its first second to its last."""

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests import edge
from tests.conftest import EXAMPLES
from tests.edge import Edge, Proxy

KEY = {"X-API-Key": "one"}
OTHER = {"X-API-Key": "two"}
ASYNC = {**KEY, "Prefer": "respond-async"}
LABELS = {"prompt": "What is it?", "context": {"document": "TOTAL 6.40"}, "labels": ["receipt", "letter"]}
LONG = {"prompt": "Say much.", "format": "text", "max_new_tokens": 4000, "temperature": 1.0, "allow_partial": True}
ENDED = {"succeeded", "failed", "cancelled"}
PAGE = "https://app.example"


@pytest.fixture(scope="module")
def front_home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edge.copy_home(tiny_home, tmp_path_factory.mktemp("front") / "home")


@pytest.fixture(scope="module")
def pod(front_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """A pod whose proxy waits 14 seconds for a response to begin instead of 100; so 4 are left of it."""
    log = tmp_path_factory.mktemp("pod") / "log"
    with edge.run(
        front_home, log, scaled="POD begin=14", RUNPOD_POD_ID="pod", ZOPILOT_GPU_API_KEY="one,two", ALLOWED_ORIGINS=PAGE
    ) as running:
        yield running


def ended(client: httpx.Client, location: str, headers: dict[str, str] = KEY) -> dict[str, Any]:
    """The job in its final state."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        told = client.get(location, headers=headers)
        assert told.status_code == 200, told.text
        if told.json()["status"] in ENDED:
            found: dict[str, Any] = told.json()
            return found
        time.sleep(0.1)
    raise AssertionError("the job does not end")


@pytest.fixture
def client(pod: Edge) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pod.url, timeout=60) as client:
        yield client


def test_what_the_service_answers_is_passed_on(client: httpx.Client) -> None:
    answer = client.post("/prompt", json=LABELS, headers={**KEY, "X-Request-Id": "mine"})
    assert answer.status_code == 200
    assert json.loads(answer.json()["output"])["label"] in LABELS["labels"]
    assert answer.headers["x-request-id"] == answer.json()["metadata"]["request_id"] == "mine"
    assert len(answer.headers.get_list("date")) == 1
    assert client.get("/v1/models", headers=KEY).json()["data"][0]["id"] == "smollm2-135m-instruct"
    assert client.get("/livez").json() == {"alive": True}
    assert "zopilot_" in client.get("/metrics", headers=KEY).text
    assert client.get("/v1/models?x=%2F", headers=KEY).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "code"),
    [
        ("POST", "/prompt", {}, LABELS, 401, "unauthorized"),
        ("POST", "/prompt", {"X-API-Key": "three"}, LABELS, 401, "unauthorized"),
        ("POST", "/prompt", KEY, {"prompt": 1}, 400, "invalid_value"),
        ("POST", "/nothing", KEY, {}, 404, "not_found"),
        ("POST", "/nothing", ASYNC, {}, 404, "not_found"),
        ("POST", "/metrics", ASYNC, {}, 405, "method_not_allowed"),
        ("PUT", "/prompt", KEY, LABELS, 405, "method_not_allowed"),
        ("POST", "/prompt", {"Prefer": "respond-async"}, LABELS, 401, "unauthorized"),
        ("POST", "/prompt", {**ASYNC, "Content-Type": "text/plain"}, LABELS, 415, "unsupported_media_type"),
        ("POST", "/prompt", {**ASYNC, "Idempotency-Key": "x" * 256}, LABELS, 400, "invalid_value"),
        ("POST", "/prompt", KEY, {"prompt": "x" * (9 << 20)}, 413, "request_too_large"),
        ("GET", "/jobs/" + "0" * 32, KEY, None, 404, "job_not_found"),
        ("GET", "/jobs/" + "0" * 32, {}, None, 401, "unauthorized"),
        ("POST", "/jobs/" + "0" * 32, KEY, {}, 405, "method_not_allowed"),
        ("GET", "/jobs/0", KEY, None, 404, "not_found"),
    ],
)
def test_refusals(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], body: Any, status: int, code: str
) -> None:
    url = httpx.URL(str(client.base_url)).copy_with(raw_path=path.encode())
    answer = client.request(method, url, json=body, headers=headers)
    assert (answer.status_code, answer.json()["error_type"]) == (status, code), answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert ("allow" in answer.headers) == (status == 405)


def test_a_page_of_an_allowed_origin_reads_whatever_is_answered(client: httpx.Client) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "DELETE"}
    asks["Access-Control-Request-Headers"] = "x-api-key,prefer,idempotency-key,content-type"
    flight = client.options("/jobs/" + "0" * 32, headers=asks)
    assert (flight.status_code, flight.headers["access-control-allow-origin"]) == (200, PAGE)
    accepted = client.post("/prompt", json=LABELS, headers={**ASYNC, "Origin": PAGE})
    for answer in (
        client.get("/health", headers={"Origin": PAGE}),  # of the service
        client.post("/prompt", json=LABELS, headers={"Origin": PAGE}),  # of the edge
        client.get(accepted.headers["location"], headers={**KEY, "Origin": PAGE}),
        accepted,
    ):
        assert answer.headers.get_list("access-control-allow-origin") == [PAGE], answer.url
    assert "Location" in accepted.headers["access-control-expose-headers"]
    other = client.get("/health", headers={"Origin": "https://else.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_path_is_passed_on_as_it_came(pod: Edge) -> None:
    host, port = pod.url.removeprefix("http://").split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as plain:
        plain.request("GET", "/jobs/../metrics", headers=KEY)
        assert json.loads(plain.getresponse().read())["error_type"] == "not_found"


def test_a_stream_is_passed_on_as_it_comes(pod: Edge) -> None:
    with openai.OpenAI(base_url=f"{pod.url}/v1", api_key="one", max_retries=0) as public:
        chunks = list(
            public.chat.completions.create(
                model="smollm2-135m-instruct",
                messages=[{"role": "user", "content": "Say hello."}],
                max_completion_tokens=8,
                stream=True,
            )
        )
    assert len(chunks) > 2 and chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_who_leaves_takes_the_work_along(pod: Edge, client: httpx.Client) -> None:
    sent = {"X-Request-Id": "leaves", **KEY}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{pod.url}/prompt", json=LONG, headers=sent, timeout=0.5)
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        recent = {each["request_id"]: each for each in client.get("/status", headers=KEY).json()["recent"]}
        if "leaves" in recent:
            assert recent["leaves"]["outcome"] == "client_closed_request"
            return
        time.sleep(0.1)
    raise AssertionError("its work goes on")


def test_a_job_is_accepted_told_and_its_owners_alone(client: httpx.Client) -> None:
    accepted = client.post("/prompt", json=LABELS, headers={**ASYNC, "X-Request-Id": "later"})
    assert accepted.status_code == 202
    told = accepted.json()
    assert (told["success"], told["status"] in {"queued", "running"}) == (False, True)
    assert accepted.headers["location"] == told["location"] == f"/jobs/{told['id']}"
    job = ended(client, told["location"])
    assert (job["status"], job["http_status"], job["request_id"]) == ("succeeded", 200, "later")
    assert job["answer"]["metadata"]["request_id"] == "later"
    assert json.loads(job["answer"]["output"])["label"] in LABELS["labels"]
    assert client.get(told["location"], headers=OTHER).json()["error_type"] == "job_not_found"
    assert client.delete(told["location"], headers=OTHER).status_code == 404
    assert client.delete(told["location"], headers=KEY).json() == job  # too late: its state is final


def test_a_job_that_is_refused_has_failed_with_the_refusal(client: httpx.Client) -> None:
    for body, status, code in [
        ({"prompt": ""}, 400, "invalid_value"),
        ({"prompt": "x", "schema": {"type": "nothing"}}, 400, "schema_invalid"),
    ]:
        job = ended(client, client.post("/prompt", json=body, headers=ASYNC).json()["location"])
        assert (job["status"], job["http_status"], job["answer"]["error_type"]) == ("failed", status, code)
    asked = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "x"}], "stream": True}
    job = ended(client, client.post("/v1/chat/completions", json=asked, headers=ASYNC).json()["location"])
    assert (job["status"], job["answer"]["error"]["code"]) == ("failed", "invalid_value")


def test_an_idempotency_key_is_one_job(client: httpx.Client) -> None:
    keyed = {**ASYNC, "Idempotency-Key": "invoice 77"}
    first, second = [client.post("/prompt", json=LABELS, headers=keyed).json() for _ in range(2)]
    assert first["id"] == second["id"]
    other = client.post("/prompt", json={**LABELS, "prompt": "Another."}, headers=keyed)
    assert (other.status_code, other.json()["error_type"]) == (422, "idempotency_conflict")
    assert client.post("/prompt", json=LABELS, headers={**keyed, **OTHER}).json()["id"] != first["id"]


def test_a_cancelled_job_leaves_the_engine(client: httpx.Client) -> None:
    told = client.post("/prompt", json=LONG, headers={**ASYNC, "X-Request-Id": "cancelled"}).json()
    while client.get(told["location"], headers=KEY).json()["status"] != "running":
        time.sleep(0.02)
    job = client.delete(told["location"], headers=KEY).json()
    assert (job["status"], job["http_status"]) == ("cancelled", 499)
    time.sleep(0.5)
    active = [each["request_id"] for each in client.get("/status", headers=KEY).json()["active"]]
    assert "cancelled" not in active
    assert client.get(told["location"], headers=KEY).json() == job


def test_what_the_proxy_would_cut_is_a_job_before_that(pod: Edge) -> None:
    """The worker stands still for longer than the proxy waits for a response to begin."""
    worker = pod.worker()
    with edge.serving(Proxy(pod.url, begin=6)) as url, httpx.Client(base_url=url, timeout=60) as client:
        worker.suspend()
        try:
            accepted = client.post("/prompt", json=LABELS, headers=KEY)
            refused = client.post("/v1/chat/completions", json={}, headers=KEY)
            probed = client.get("/health")
        finally:
            worker.resume()
        assert (accepted.status_code, accepted.json()["status"]) == (202, "running")
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (504, "deadline_exceeded")
        assert "the proxy of a RunPod pod waits 14 seconds" in error["message"]
        assert (probed.status_code, probed.json()["error_type"]) == (504, "deadline_exceeded")
        job = ended(client, accepted.json()["location"])
        assert (job["status"], job["answer"]["success"]) == ("succeeded", True)


def test_the_stand_in_for_the_proxy_cuts(pod: Edge) -> None:
    """Else the test above would prove nothing."""
    worker = pod.worker()
    with edge.serving(Proxy(pod.url, begin=1, most=1000)) as url:
        worker.suspend()
        try:
            assert httpx.post(f"{url}/prompt", json=LABELS, headers=KEY, timeout=20).status_code == 524
        finally:
            worker.resume()
        assert httpx.post(f"{url}/prompt", json={"prompt": "x" * 1000}, headers=KEY, timeout=20).status_code == 413


def test_a_reader_who_takes_nothing_and_one_who_says_nothing_are_no_harm(pod: Edge, client: httpx.Client) -> None:
    host, port = pod.url.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(50)]
    for each in silent[:25]:
        each.sendall(b"POST /prompt HTTP/1.1\r\nHost: x\r\nX-API-Key: one\r\nContent-Length: 100\r\n\r\n{")
    try:
        assert client.post("/prompt", json=LABELS, headers=KEY).status_code == 200
    finally:
        for each in silent:
            each.close()


def test_killed_workers_are_seen_and_told(pod: Edge, client: httpx.Client) -> None:
    """The service dies under a plain request, a stream and a job: two typed refusals, and a job that is done later."""
    got: dict[str, Any] = {}

    def stream() -> None:
        asked = {"model": "smollm2-135m-instruct", "prompt": "Say much.", "max_tokens": 4000, "temperature": 1.0}
        with httpx.stream("POST", f"{pod.url}/v1/completions", json={**asked, "stream": True}, headers=KEY) as answer:
            got["stream"] = [line for line in answer.iter_lines() if line][-1]

    def plain() -> None:
        got["plain"] = httpx.post(f"{pod.url}/prompt", json=LONG, headers=KEY, timeout=60)

    threads = [threading.Thread(target=each) for each in (stream, plain)]
    told = client.post("/prompt", json={**LONG, "max_new_tokens": 1500}, headers=ASYNC).json()
    for each in threads:
        each.start()
    time.sleep(0.7)
    assert client.get(told["location"], headers=KEY).json()["status"] == "running"
    pod.worker().kill()
    for each in threads:
        each.join(5)  # it takes the service some 10 seconds by itself
        assert not each.is_alive()
    assert json.loads(got["stream"].removeprefix("data: "))["error"]["code"] == "interrupted"
    assert (got["plain"].status_code, got["plain"].json()["error_type"]) == (503, "interrupted")
    assert "retry-after" in got["plain"].headers
    give_up = time.monotonic() + 3
    while httpx.get(f"{pod.health}/ping").status_code != 204:
        assert time.monotonic() < give_up
    refused = client.post("/prompt", json=LABELS, headers=KEY)
    assert (refused.status_code, refused.json()["error_type"]) == (503, "model_loading")
    assert client.get("/livez").status_code == 200
    pod.wait()
    assert ended(client, told["location"])["status"] == "succeeded"


def test_it_answers_while_it_loads_and_while_it_drains(front_home: Path, tmp_path: Path, tiny_home: Path) -> None:
    home = edge.copy_home(tiny_home, tmp_path / "home")
    with edge.run(home, tmp_path / "log", ready=False, ZOPILOT_GRACE="20") as running:
        seen: set[tuple[int, int]] = set()
        while (200, 200) not in seen and running.process.poll() is None:
            try:
                ping = httpx.get(f"{running.health}/ping", timeout=3).status_code
                seen.add((ping, httpx.get(f"{running.url}/readyz", timeout=3).status_code))
                if ping == 204:
                    accepted = httpx.post(f"{running.url}/prompt", json=LABELS, headers={"Prefer": "respond-async"})
                    assert accepted.status_code == 202  # it is answered when there is something to answer it with
            except httpx.ConnectError:
                time.sleep(0.02)
        assert (204, 503) in seen
        assert seen <= {(204, 503), (200, 200), (204, 200), (200, 503)}
        got: list[httpx.Response] = []
        worker = running.worker()
        worker.suspend()
        working = threading.Thread(
            target=lambda: got.append(httpx.post(f"{running.url}/prompt", json=LABELS, timeout=60))
        )
        working.start()
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        refused = httpx.post(f"{running.url}/prompt", json=LABELS)
        assert (refused.status_code, refused.json()["error_type"]) == (503, "draining")
        assert httpx.get(f"{running.health}/ping").status_code == 503
        assert httpx.get(f"{running.url}/livez").status_code == 200
        assert working.is_alive()
        worker.resume()
        working.join(30)
        assert got[0].status_code == 200
        assert running.process.wait(30) == 0


def test_work_that_outlasts_the_grace_is_cut_and_the_status_says_so(tiny_home: Path, tmp_path: Path) -> None:
    """A job that is cut is done by the next process."""
    home = edge.copy_home(tiny_home, tmp_path / "home")
    with edge.run(home, tmp_path / "log", ZOPILOT_GRACE="0") as running:
        got: list[httpx.Response] = []
        running.worker().suspend()
        working = threading.Thread(
            target=lambda: got.append(httpx.post(f"{running.url}/prompt", json=LABELS, timeout=60))
        )
        working.start()
        told = httpx.post(f"{running.url}/prompt", json=LABELS, headers={"Prefer": "respond-async"}).json()
        while httpx.get(f"{running.url}{told['location']}").json()["status"] != "running":
            time.sleep(0.05)
        assert running.end() == 75
        working.join(10)
        assert (got[0].status_code, got[0].json()["error_type"]) == (503, "interrupted")
    with edge.run(home, tmp_path / "log") as running, httpx.Client(base_url=running.url, timeout=60) as client:
        assert ended(client, told["location"], {})["status"] == "succeeded"


def test_requests_by_examples(client: httpx.Client) -> None:
    body = json.loads((EXAMPLES / "request.json").read_text())
    answer = client.post("/prompt", json=body, headers=KEY)
    assert answer.status_code == 200, answer.text


def test_behind_a_load_balancer(tiny_home: Path, tmp_path: Path) -> None:
    """No jobs, for the next request may reach another worker; no answer that it would not carry."""
    home = edge.copy_home(tiny_home, tmp_path / "home")
    with edge.run(home, tmp_path / "log", scaled="BALANCER answer=700", RUNPOD_ENDPOINT_ID="e") as running:
        with edge.serving(Proxy(running.url, whole=330, most=30_000_000)) as url:
            refused = httpx.post(f"{url}/prompt", json=LABELS, headers={"Prefer": "respond-async"}, timeout=60)
            large = httpx.post(f"{url}/prompt", json=LABELS, timeout=60)
            small = httpx.post(f"{url}/prompt", json={"prompt": 1}, timeout=60)
        assert (refused.status_code, refused.json()["error_type"]) == (400, "invalid_value")
        assert "a RunPod load balancer" in refused.json()["error"]
        assert (large.status_code, large.json()["error_type"]) == (422, "answer_too_large")
        assert "a RunPod load balancer takes 700" in large.json()["error"]
        assert (small.status_code, small.json()["error_type"]) == (400, "invalid_value")


@pytest.mark.slow
def test_the_real_limit_of_a_pods_proxy(tiny_home: Path, tmp_path: Path) -> None:
    """100 seconds, and a service that needs 95 to begin."""
    home = edge.copy_home(tiny_home, tmp_path / "home")
    with edge.run(home, tmp_path / "log", RUNPOD_POD_ID="p", ZOPILOT_GPU_API_KEY="one") as running:
        worker = running.worker()
        with edge.serving(Proxy(running.url, begin=100)) as url, httpx.Client(base_url=url, timeout=150) as client:
            worker.suspend()
            resumed = threading.Timer(95, worker.resume)
            resumed.start()
            accepted = client.post("/prompt", json=LABELS, headers=KEY)
            assert (accepted.status_code, accepted.json()["status"]) == (202, "running")
            assert ended(client, accepted.json()["location"])["status"] == "succeeded"
            resumed.join()
