"""serving/status.py: the truth table of the three health routes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import JSONResponse

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
    assert status.livez("id").status_code == livez
    assert status.readyz("id").status_code == readyz
    assert status.health("id").status_code == health


def test_not_ready_says_when_to_come_back() -> None:
    for response in (Status().readyz("id"), Status().health("id")):
        assert int(response.headers["retry-after"]) >= 1


def test_health_shows_the_figures_once_they_are_there() -> None:
    assert figures(Status().health("id"))[1].keys() == {"status", "uptime"}
    status, body = figures(ready().health("id"))
    assert (status, body["status"], body["model"]) == (200, "ready", "m")
