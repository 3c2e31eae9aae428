"""serving/status.py: the truth table of the three health routes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import JSONResponse

from serving.caller import Caller
from serving.status import Status


def figures(response: JSONResponse) -> tuple[int, dict[str, Any]]:
    return response.status_code, json.loads(bytes(response.body))


def ready(alive: Callable[[], bool] = lambda: True) -> Status:
    status = Status()
    status.become_ready(lambda: {"model": "m"}, alive)
    return status


def failed() -> Status:
    status = Status()
    status.fail()
    return status


@pytest.mark.parametrize(
    ("status", "livez", "readyz", "health"),
    [
        (Status(), 200, 503, 503),
        (ready(), 200, 200, 200),
        (ready(alive=lambda: False), 503, 503, 503),
        (failed(), 503, 503, 503),
    ],
    ids=["loading", "ready", "engine died", "failed"],
)
def test_truth_table(status: Status, livez: int, readyz: int, health: int) -> None:
    assert status.livez(Caller("id")).status_code == livez
    assert status.readyz(Caller("id")).status_code == readyz
    assert status.health(Caller("id")).status_code == health


def test_not_ready_says_when_to_come_back() -> None:
    for response in (Status().readyz(Caller("id")), Status().health(Caller("id"))):
        assert int(response.headers["retry-after"]) >= 1


def test_health_shows_the_figures_once_they_are_there() -> None:
    assert figures(Status().health(Caller("id")))[1].keys() == {"status", "uptime"}
    status, body = figures(ready().health(Caller("id")))
    assert (status, body["status"], body["model"]) == (200, "ready", "m")


def test_status_shows_the_queue_and_the_jobs() -> None:
    status = Status()
    assert figures(status.status(Caller("id"))) == (200, {"state": "loading", "queue": {}, "active": [], "recent": []})
    status.become_ready(dict, lambda: True, queue=lambda: {"waiting": 3})
    with status.activity.under_way(Caller("a-request", "/prompt")):
        body = figures(status.status(Caller("id")))[1]
    assert (body["state"], body["queue"]) == ("ready", {"waiting": 3})
    assert [job["request_id"] for job in body["active"]] == ["a-request"]
