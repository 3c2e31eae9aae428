"""control/watch.py: a pod is stopped when it has nothing to do or its budget is used up, whatever fails meanwhile."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from deploy.control.probe import Probe
from deploy.control.runpod import PODS, Client
from deploy.control.watch import LOOK_SECONDS, Watch
from tests.control_plane import KEY, MOMENT, Fault, Plane, serve

BEGAN = datetime.fromisoformat(MOMENT).timestamp()
QUIET: dict[str, Any] = {"active": [], "recent": [], "queue": {"waiting": 0, "running": 0}}


class Clock:
    """Time passes while the watch sleeps, and nothing else takes any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = BEGAN
        self.plan: dict[int, Any] = {}
        self.said: list[str] = []
        monkeypatch.setattr(Client, "sleep", lambda _, seconds: self.sleep(seconds))

    def __call__(self) -> float:
        return self.now

    @property
    def minutes(self) -> float:
        return (self.now - BEGAN) / 60

    def sleep(self, seconds: float) -> None:
        """`plan` says what happens at which second."""
        assert self.minutes < 600, "it watches for ever"
        for second in sorted(self.plan):
            if self.now - BEGAN < second <= self.now - BEGAN + seconds:
                self.plan.pop(second)()
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def plane() -> Iterator[Plane]:
    """With a pod that runs, at $1.00 an hour."""
    with serve() as found:
        pod = {
            "id": "pod1",
            "name": "zopilot-pod",
            "image": "a/b:1",
            "env": {},
            "ports": [],
            "disk": 9,
            "cloud": "SECURE",
        }
        pod |= found._pod({"gpu": {"id": "NVIDIA L40S"}})
        pod |= {"status": "RUNNING", "startedAt": MOMENT, "actions": ["stop"], "cost": 1.0, "_cost": 1.0}
        found.things["/v2/pods"]["pod1"] = pod
        found.activity = dict(QUIET)
        yield found


def watch(plane: Plane, clock: Clock, idle: float = 0, budget: float = 0, price: float = 0) -> str:
    client = Client(KEY, plane.url, say=clock.said.append)
    probe = Probe(KEY, f"{plane.url}/pod/{{id}}")
    try:
        return Watch(client, probe, "sesame", idle, budget, price, clock).run(client.get(PODS, "pod1"))
    finally:
        client.close()
        probe.close()


def status(plane: Plane) -> str:
    return str(plane.things["/v2/pods"]["pod1"]["status"])


def test_it_stops_when_nothing_has_been_done_for_so_long(plane: Plane, clock: Clock) -> None:
    assert watch(plane, clock, idle=600) == "no work for 10 minutes"
    assert status(plane) == "EXITED"
    assert 10 <= clock.minutes < 10 + LOOK_SECONDS / 60


def test_a_long_start_is_no_idleness(plane: Plane, clock: Clock) -> None:
    clock.now += 1800
    assert watch(plane, clock, idle=600) == "no work for 10 minutes"
    assert 40 <= clock.minutes < 40 + LOOK_SECONDS / 60


def test_a_pod_in_error_cannot_be_stopped_and_is_removed(plane: Plane, clock: Clock) -> None:
    clock.plan = {
        60: lambda: plane.things["/v2/pods"]["pod1"].update(status="ERROR", actions=["start", "terminate"]),
    }
    assert watch(plane, clock, idle=600) == "no work for 10 minutes"
    assert plane.everything == []
    assert any("removing zopilot-pod: it is in error" in line for line in clock.said)


@pytest.mark.parametrize(
    "busy",
    [
        {"active": [{"request_id": "a", "route": "/prompt", "seconds": 1}]},
        {"queue": {"waiting": 1, "running": 0}},
        {"queue": {"waiting": 0, "running": 2}},
    ],
)
def test_work_under_way_or_waiting_keeps_it(plane: Plane, clock: Clock, busy: dict[str, Any]) -> None:
    plane.activity = {**QUIET, **busy}
    clock.plan = {3600: lambda: plane.activity.update(QUIET)}
    assert watch(plane, clock, idle=600).startswith("no work")
    assert 69 <= clock.minutes <= 71


def test_work_between_two_looks_keeps_it(plane: Plane, clock: Clock) -> None:
    plane.activity["recent"] = [{"request_id": "a"}]
    clock.plan = {540: lambda: plane.activity.update(recent=[{"request_id": "b"}, {"request_id": "a"}])}
    watch(plane, clock, idle=600)
    assert 18.5 <= clock.minutes <= 20


def test_the_budget_is_never_passed(plane: Plane, clock: Clock) -> None:
    plane.activity["queue"] = {"running": 1}
    assert watch(plane, clock, budget=2.0) == "$1.98 of $2.00 are spent"
    assert status(plane) == "EXITED"
    assert 118 <= clock.minutes <= 120


def test_a_watch_that_begins_late_reckons_from_the_start(plane: Plane, clock: Clock) -> None:
    clock.now += 5 * 3600
    assert watch(plane, clock, budget=2.0) == "$5.00 of $2.00 are spent"
    assert clock.minutes == 300


def test_a_price_that_rises_counts_and_one_that_is_hidden_counts_as_before(plane: Plane, clock: Clock) -> None:
    clock.plan = {
        600: lambda: plane.things["/v2/pods"]["pod1"].update(cost=4.0),
        660: lambda: plane.things["/v2/pods"]["pod1"].update(cost=0.0),
    }
    watch(plane, clock, budget=2.0)
    assert 28 <= clock.minutes <= 30


def test_a_price_nobody_told_is_that_of_the_catalogue(plane: Plane, clock: Clock) -> None:
    plane.things["/v2/pods"]["pod1"]["cost"] = 0.0
    watch(plane, clock, budget=1.0, price=2.0)
    assert 28 <= clock.minutes <= 30


@pytest.mark.parametrize("broken", ["stopped", "service_key"])
def test_a_service_that_does_not_answer_is_idle(plane: Plane, clock: Clock, broken: str) -> None:
    plane.activity["queue"] = {"running": 1}
    setattr(plane, broken, "other" if broken == "service_key" else True)
    assert watch(plane, clock, idle=600) == "no work for 10 minutes"


def test_what_the_service_says_wrongly_is_no_work(plane: Plane, clock: Clock) -> None:
    plane.activity = {"recent": [{}, {}], "queue": {}}
    watch(plane, clock, idle=600)
    assert clock.minutes < 12


def test_while_runpod_says_nothing_it_goes_on_reckoning_and_stops_when_it_can(plane: Plane, clock: Clock) -> None:
    def mend() -> None:
        plane.always = None

    clock.plan = {60: lambda: setattr(plane, "always", Fault(500)), 7200: mend}
    plane.activity["queue"] = {"running": 1}
    watch(plane, clock, budget=1.0)
    assert status(plane) == "EXITED"
    assert 120 <= clock.minutes <= 122
    assert any("NOT stopped yet and costs $1.00 an hour" in line for line in clock.said)


def test_a_stop_that_is_refused_is_asked_for_again(plane: Plane, clock: Clock) -> None:
    plane.always, plane.only = Fault(409), "POST"
    clock.plan = {1200: lambda: setattr(plane, "always", None)}
    watch(plane, clock, idle=600)
    assert status(plane) == "EXITED"
    assert 20 <= clock.minutes <= 21


@pytest.mark.parametrize("ended", ["EXITED", "TERMINATED"])
def test_a_pod_that_stands_still_needs_no_watch(plane: Plane, clock: Clock, ended: str) -> None:
    plane.things["/v2/pods"]["pod1"]["status"] = ended
    assert watch(plane, clock, idle=600) == f"zopilot-pod is {ended}"
    assert clock.minutes == 0
    assert plane.posts() == []


def test_a_pod_that_is_removed_meanwhile_needs_none_either(plane: Plane, clock: Clock) -> None:
    clock.plan = {60: lambda: plane.things["/v2/pods"].clear()}
    assert watch(plane, clock, idle=600) == "zopilot-pod is gone"


def test_a_start_that_cannot_be_read_is_that_of_the_watch(plane: Plane, clock: Clock) -> None:
    plane.things["/v2/pods"]["pod1"]["startedAt"] = "yesterday"
    clock.now += 3600
    watch(plane, clock, budget=1.0)
    assert 118 <= clock.minutes <= 120


def test_a_pod_started_again_is_reckoned_anew(plane: Plane, clock: Clock) -> None:
    later = datetime.fromtimestamp(BEGAN + 1800).astimezone().isoformat()
    clock.plan = {1800: lambda: plane.things["/v2/pods"]["pod1"].update(startedAt=later)}
    watch(plane, clock, budget=1.0)
    assert 88 <= clock.minutes <= 90
