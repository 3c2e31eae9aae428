"""serving/activity.py: what is under way and how it ended, of the real service and by itself."""

import threading
import time
from typing import Any

import httpx
import pytest

from serving.activity import RECENT, Activity
from serving.caller import Caller
from tests.conftest import Server

CANARY = "CANARY-61"


class Half:
    """A ticket that is half done."""

    progress = 0.5

    def cancel(self) -> None: ...

    async def answer(self) -> None: ...


def test_a_job_is_active_until_its_response_has_ended() -> None:
    activity, caller = Activity(), Caller("first", "/prompt")
    with activity.under_way(caller):
        (active,) = activity.tell()["active"]
        assert active.keys() == {"request_id", "route", "seconds"}  # nothing has begun, so there is no progress
        caller.hold(Half())
        assert activity.tell()["active"][0]["progress"] == 0.5
        assert (len(activity), activity.tell()["recent"]) == (1, [])
    (ended,) = activity.tell()["recent"]
    assert (ended["request_id"], ended["route"], ended["outcome"]) == ("first", "/prompt", "done")
    assert (len(activity), activity.tell()["active"]) == (0, [])


def test_the_outcome_is_the_errors_code() -> None:
    activity = Activity()
    refused, left, broken = (Caller(name) for name in ("refused", "left", "broken"))
    with activity.under_way(refused):
        refused.outcome = "queue_full"
    with activity.under_way(left):
        left.outcome = "deadline_exceeded"
        left.leave()
    with pytest.raises(ZeroDivisionError), activity.under_way(broken):
        raise ZeroDivisionError
    outcomes = [each["outcome"] for each in activity.tell()["recent"]]
    assert outcomes == ["internal_error", "client_closed_request", "queue_full"]


def test_only_the_latest_are_kept() -> None:
    activity = Activity()
    for number in range(RECENT + 5):
        with activity.under_way(Caller(str(number))):
            pass
    recent = activity.tell()["recent"]
    assert (len(recent), recent[0]["request_id"], recent[-1]["request_id"]) == (RECENT, str(RECENT + 4), "5")


def find(server: Server, request_id: str, part: str) -> dict[str, Any] | None:
    told = httpx.get(f"{server.url}/status", timeout=30).json()
    return next((job for job in told[part] if job["request_id"] == request_id), None)


def test_the_service_shows_a_prompt_on_its_way(tiny_server: Server) -> None:
    def ask() -> None:
        body = {"prompt": f"{CANARY} tell me all", "format": "text", "max_new_tokens": 400, "allow_partial": True}
        headers = {"X-Request-Id": "a-long-one"}
        with httpx.Client(timeout=60) as client:
            client.post(f"{server_url}/prompt", json=body, headers=headers).raise_for_status()

    server_url = tiny_server.url
    asking = threading.Thread(target=ask)
    asking.start()
    seen: list[float] = []
    while asking.is_alive():
        if job := find(tiny_server, "a-long-one", "active"):
            seen.append(job.get("progress", 0.0))
        time.sleep(0.01)
    asking.join()
    assert seen and seen == sorted(seen) and 0 < seen[-1] <= 1
    ended = find(tiny_server, "a-long-one", "recent")
    assert ended is not None and ended["outcome"] == "done" and ended["seconds"] > 0
    status = httpx.get(f"{tiny_server.url}/status", timeout=30)
    assert {"waiting", "running", "queued_cost", "expected_wait"} == status.json()["queue"].keys()
    assert CANARY not in status.text


def test_a_refusal_is_told_by_its_code(tiny_server: Server) -> None:
    for path, body, code in (
        ("/prompt", {"prompt": "x", "labels": []}, "invalid_value"),
        ("/v1/decisions", {"model": "other"}, "invalid_value"),
    ):
        httpx.post(f"{tiny_server.url}{path}", json=body, headers={"X-Request-Id": f"bad{path}"}, timeout=30)
        ended = find(tiny_server, f"bad{path}", "recent")
        assert ended is not None and (ended["route"], ended["outcome"]) == (path, code)


def test_a_stream_that_was_read_to_its_end_is_done(tiny_server: Server) -> None:
    body = {"model": "smollm2-135m-instruct", "prompt": CANARY, "max_tokens": 20, "stream": True}
    for number in range(3):
        name = f"stream-{number}"
        told = httpx.post(f"{tiny_server.url}/v1/completions", json=body, headers={"X-Request-Id": name}, timeout=30)
        assert told.text.endswith("data: [DONE]\n\n")
        while (ended := find(tiny_server, name, "recent")) is None:
            time.sleep(0.05)
        assert ended["outcome"] == "done"


def test_a_stream_that_is_refused_has_the_errors_code(tiny_server: Server) -> None:
    body = {"model": "smollm2-135m-instruct", "prompt": CANARY, "max_tokens": 20, "stream": True}
    refused = httpx.post(
        f"{tiny_server.url}/v1/completions",
        json={**body, "max_tokens": 1_000_000},
        headers={"X-Request-Id": "too-long"},
        timeout=30,
    )
    assert refused.status_code == 400
    ended = find(tiny_server, "too-long", "recent")
    assert ended is not None and ended["outcome"] == "context_length_exceeded"
