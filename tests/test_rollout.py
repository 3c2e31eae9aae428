"""control/rollout.py and control/standing.py through scripts/deploy, against a control plane that fails at every turn.

What matters most: nothing is left that costs money without being named, and nothing is ever made twice.
"""

from collections.abc import Callable, Iterator

import pytest

from tests.control_plane import Fault
from tests.operating import Operator, Ran, operate, run_killed, up

MODES = ("queue", "pod", "lb")
PLACES = {"queue": "/v2/serverless", "pod": "/v2/pods", "lb": "/v2/serverless"}
RULE = "exactly one of gpu and cpu must be set"
FAULTS = {
    "cut before": Fault(0),
    "cut after": Fault(0, after=True),
    "500 before": Fault(500),
    "503 after": Fault(503, after=True),
    "429, seconds": Fault(429, headers=(("Retry-After", "7"),)),
    "429, window": Fault(429, headers=(("RateLimit", '"minute";r=0;t=12, "hour";r=2800;t=1812'),)),
    "429, a day": Fault(429, headers=(("Retry-After", "40000"),)),
    "no capacity": Fault(400),
    "a rule": Fault(400, detail=RULE),
    "no balance": Fault(402),
    "forbidden": Fault(403),
    "not found": Fault(404),
    "conflict": Fault(409),
    "conflict after": Fault(409, after=True),
    "invalid": Fault(422),
    "other": Fault(418),
}
OFTEN = [("pod", "cut after"), ("queue", "503 after"), ("lb", "no balance")]  # the others with scripts/test --all
RARELY = [(mode, fault) for mode in MODES for fault in FAULTS if (mode, fault) not in OFTEN]


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Operator]:
    with operate(monkeypatch, capsys) as found:
        yield found


def forget(operator: Operator) -> None:
    operator.plane.requests.clear()
    operator.plane.faults.clear()
    operator.waits.clear()


def check_told(operator: Operator, ran: Ran) -> None:
    """A failure names all that stands, and how each is removed."""
    if ran.status:
        for id in operator.plane.everything:
            line = next(line for line in ran.err.splitlines() if f"({id}" in line and "remove it" in line)
            assert "scripts/deploy down --name zopilot" in line
        if not operator.plane.everything:
            assert "nothing stands, and nothing is paid for" in ran.err


def check_once(operator: Operator) -> None:
    for path in operator.plane.things:
        names = operator.plane.named(path)
        assert len(names) == len(set(names)), names


@pytest.mark.parametrize("mode", MODES)
def test_up_answers_and_down_leaves_nothing(operator: Operator, mode: str) -> None:
    made = operator.run("volume")
    # Before what is paid for is asked for, the command that removes it has been told.
    assert "down --name zopilot --volume" in made.err
    assert "it is empty: nothing answers before scripts/deploy upload --name zopilot" in made.err
    ran = operator.run(*up(mode))
    assert ran.status == 0, ran.err
    assert f"  scripts/deploy down --name zopilot --mode {mode}\n" in ran.err
    (thing,) = operator.plane.things[PLACES[mode]].values()
    (volume,) = operator.plane.things["/v2/network-volumes"].values()
    assert f"zopilot-{mode} answers: {operator.plane.url}" in ran.out
    assert f"it goes on until: scripts/deploy down --name zopilot --mode {mode}" in ran.out
    assert "per 1,000 documents" in ran.out
    assert thing["registry"] in operator.plane.things["/v2/registries"]
    assert operator.up(mode).status == 0
    assert len(operator.plane.posts()) == 3
    kept = operator.run("down")
    assert kept.status == 0
    assert operator.plane.everything == [volume["id"]]
    assert f"left: network volume zopilot-weights ({volume['id']}" in kept.out
    assert operator.run("down", "--volume").status == 0
    assert operator.plane.everything == []


def count(operator: Operator, act: Callable[[], Ran]) -> int:
    """How many requests that takes, when nothing befalls it."""
    forget(operator)
    assert act().status == 0
    return len(operator.plane.requests)


def post(operator: Operator, mode: str, path: str) -> int:
    """At which place of `volume` and `up` that is made; nothing stands afterwards."""
    count(operator, lambda: operator.up(mode))
    sent = [(each.method, each.path) for each in operator.plane.requests]
    assert operator.run("down", "--volume").status == 0
    forget(operator)
    return sent.index(("POST", path))


def break_up(operator: Operator, mode: str, fault: Fault) -> None:
    """That fault at each request of `volume` and `up` in turn; then again without it, and down."""
    places = count(operator, lambda: operator.up(mode))
    assert places >= 20
    assert operator.run("down", "--volume").status == 0
    for place in range(places):
        forget(operator)
        operator.plane.faults[place] = fault
        first = operator.up(mode)
        check_once(operator)
        check_told(operator, first)
        assert operator.up(mode).status == 0
        check_once(operator)
        assert len(operator.plane.everything) == 3
        assert operator.run("down", "--volume").status == 0
        assert operator.plane.everything == []


def break_down(operator: Operator, mode: str, fault: Fault) -> None:
    """The same at each request of `down`."""
    assert operator.up(mode).status == 0
    places = count(operator, lambda: operator.run("down", "--volume"))
    for place in range(places):
        assert operator.up(mode).status == 0
        forget(operator)
        operator.plane.faults[place] = fault
        first = operator.run("down", "--volume")
        check_told(operator, first)
        if first.status == 0:
            assert operator.plane.everything == []
        assert operator.run("down", "--volume").status == 0
        assert operator.plane.everything == []


@pytest.mark.parametrize(("mode", "fault"), OFTEN)
def test_a_failure_at_any_request_of_up(operator: Operator, mode: str, fault: str) -> None:
    break_up(operator, mode, FAULTS[fault])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "fault"), RARELY)
def test_every_failure_at_any_request_of_up(operator: Operator, mode: str, fault: str) -> None:
    break_up(operator, mode, FAULTS[fault])


def test_a_failure_at_any_request_of_down(operator: Operator) -> None:
    break_down(operator, "pod", FAULTS["no balance"])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", MODES)
def test_every_failure_at_any_request_of_down(operator: Operator, mode: str, fault: str) -> None:
    break_down(operator, mode, FAULTS[fault])


@pytest.mark.parametrize(
    ("mode", "after"),
    [("pod", True), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("pod", False), ("lb", True)))],
)
def test_killed_at_any_request_and_run_again(operator: Operator, mode: str, after: bool) -> None:
    """SIGKILL before or after a request is carried out: whatever was made then is found again."""
    places = count(operator, lambda: operator.up(mode))
    assert operator.run("down", "--volume").status == 0
    for place in range(places):
        forget(operator)
        operator.plane.faults[place] = Fault(-1, after)
        assert (run_killed(operator.plane, ["volume"]) or run_killed(operator.plane, up(mode))) == -9
        assert operator.up(mode).status == 0
        check_once(operator)
        assert len(operator.plane.everything) == 3
        assert operator.run("down", "--volume").status == 0
        assert operator.plane.everything == []


@pytest.mark.parametrize("fault", ["no balance", "invalid", "a rule", "not found"])
@pytest.mark.parametrize("mode", MODES)
def test_what_no_candidate_can_mend_is_asked_once(operator: Operator, mode: str, fault: str) -> None:
    place = post(operator, mode, PLACES[mode])
    operator.plane.faults[place] = FAULTS[fault]
    ran = operator.up(mode)
    assert ran.status == 1
    assert len(operator.plane.posts(PLACES[mode])) == 1
    assert str(FAULTS[fault].status) in ran.err.splitlines()[-1]
    assert operator.plane.named("/v2/network-volumes") == ["zopilot-weights"]
    check_told(operator, ran)


@pytest.mark.parametrize("mode", MODES)
def test_without_a_volume_nothing_is_asked_for(operator: Operator, mode: str) -> None:
    """It would be paid for, and end again and again for want of weights."""
    ran = operator.run(*up(mode, "--name", "mine"))
    assert ran.status == 2
    named = "--name mine --model mixtral-8x7b-instruct"
    assert "there is no network volume mine-weights" in ran.err.splitlines()[-1]
    assert f"scripts/deploy volume {named}, scripts/deploy upload {named}, then up; or --baked" in ran.err
    assert operator.plane.posts() == []
    assert operator.run(*up(mode, "--baked")).status == 0
    (thing,) = operator.plane.things[PLACES[mode]].values()
    assert not thing.get("mounts") and not thing.get("networkVolumes")
    assert operator.plane.named("/v2/network-volumes") == []


def test_without_capacity_the_next_card_is_tried_beside_the_volume(operator: Operator) -> None:
    operator.plane.full = {("ADA_32_PRO", "US-KS-2")}
    ran = operator.up("queue")
    assert ran.status == 0, ran.err
    (endpoint,) = operator.plane.things["/v2/serverless"].values()
    assert endpoint["gpu"]["pools"] == ["ADA_48_PRO"]
    assert endpoint["gpu"]["excludedTypes"] == ["NVIDIA L40", "NVIDIA RTX PRO 6000 Blackwell MIG 24GB"]
    assert endpoint["dataCenterIds"] == ["US-KS-2"]
    assert "RTX 5090 in US-KS-2: RunPod answers 400" in ran.err
    assert "$1.90 an hour each" in ran.out


def test_weights_in_the_image_stand_wherever_a_card_is_free(operator: Operator) -> None:
    operator.plane.full = {("NVIDIA L40S", "US-KS-2")}
    assert operator.run(*up("pod", "--baked")).status == 0
    (pod,) = operator.plane.things["/v2/pods"].values()
    assert (pod["gpu"]["id"], pod["dataCenterId"]) == ("NVIDIA L40S", "US-TX-3")


def test_a_volume_with_weights_decides_where_and_is_never_removed_for_want_of_a_card(operator: Operator) -> None:
    made = operator.run("volume", "--data-center", "EU-RO-1")
    (volume,) = operator.plane.things["/v2/network-volumes"].values()
    assert made.out == f"zopilot-weights: id {volume['id']}, data center EU-RO-1, 36 GB\n"
    assert operator.run("volume").out == made.out
    operator.plane.full = {("NVIDIA L40S", "EU-RO-1"), ("NVIDIA GeForce RTX 5090", "EU-RO-1")}
    assert operator.up("pod").status == 0
    (pod,) = operator.plane.things["/v2/pods"].values()
    assert pod["gpu"]["id"] == "NVIDIA H200"
    assert pod["mounts"] == {"network": [{"volumeId": volume["id"], "path": "/runpod-volume"}]}
    assert operator.run("down", "--mode", "pod").status == 0
    forget(operator)
    ran = operator.up("pod", "--card", "rtx-5090", "--card", "l40s")
    assert ran.status == 1
    tried = [each.body["gpu"]["id"] for each in operator.plane.posts("/v2/pods")]
    assert tried == ["NVIDIA GeForce RTX 5090", "NVIDIA L40S"]
    assert "L40S in EU-RO-1: RunPod answers 400" in ran.err.splitlines()[-1]
    assert "no longer any instances" in ran.err.splitlines()[-1]
    assert list(operator.plane.things["/v2/network-volumes"]) == [volume["id"]]
    check_told(operator, ran)
    elsewhere = operator.run(*up("pod", "--data-center", "US-KS-2"))
    assert elsewhere.status == 2
    assert f"zopilot-weights ({volume['id']}, EU-RO-1" in elsewhere.err
    assert "upload --name zopilot --model mixtral-8x7b-instruct --data-center US-KS-2, then up" in elsewhere.err


def test_modes_share_the_volume_and_it_stays_while_one_uses_it(operator: Operator) -> None:
    assert operator.up("pod").status == 0
    assert operator.up("queue").status == 0
    assert operator.up("lb").status == 0
    assert len(operator.plane.things["/v2/network-volumes"]) == 1
    told = operator.run("down", "--mode", "pod", "--volume")
    assert told.status == 1
    assert "the volume is kept: another mode uses it" in told.err
    assert len(operator.plane.everything) == 4
    assert operator.run("down", "--mode", "queue").status == 0
    assert operator.run("down", "--mode", "lb", "--volume").status == 0
    assert operator.plane.everything == []


def test_what_others_have_made_is_left_alone(operator: Operator) -> None:
    """By the mark in its environment; its name alone makes nothing ours."""
    assert operator.up("pod").status == 0
    (pod,) = operator.plane.things["/v2/pods"].values()
    pod["env"] = {"SOMEBODY": "else"}
    refused = operator.up("pod")
    assert refused.status == 2
    assert "was not made by this command: choose another --name" in refused.err
    told = operator.run("down", "--mode", "pod")
    assert f"left alone: zopilot-pod ({pod['id']})" in told.err
    assert pod["id"] in operator.plane.everything
    assert operator.run("volume", "--name", "mine").status == 0
    assert operator.run(*up("pod", "--name", "mine")).status == 0
    assert operator.run("down", "--name", "mine", "--volume").status == 0
    assert pod["id"] in operator.plane.everything


@pytest.mark.parametrize("path", ["/v2/network-volumes", "/v2/pods"])
def test_what_was_made_twice_because_its_list_is_late_is_named(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    operator.plane.faults = {post(operator, "pod", path): Fault(503, after=True)}
    monkeypatch.setattr("deploy.control.runpod.Client._appeared", lambda *_: None)
    ran = operator.up("pod")
    assert ran.status == 1
    assert len(operator.plane.things[path]) == 2
    made = len(operator.plane.posts())
    assert "RunPod has made one of these twice" in ran.err
    check_told(operator, ran)
    again = operator.run(*up("pod"))
    assert again.status == 2
    assert "and only one can be meant" in again.err
    assert len(operator.plane.posts()) == made
    assert operator.run("down", "--volume").status == 0
    assert operator.plane.everything == []


def test_two_of_one_name_are_named_and_both_are_removed(operator: Operator) -> None:
    assert operator.up("pod").status == 0
    (pod,) = operator.plane.things["/v2/pods"].values()
    operator.plane.things["/v2/pods"]["pod99"] = {**pod, "id": "pod99"}
    ran = operator.up("pod")
    assert ran.status == 2
    assert f"there are 2 called zopilot-pod ({pod['id']}, pod99)" in ran.err
    check_told(operator, ran)
    assert operator.run("down", "--volume").status == 0
    assert operator.plane.everything == []


def test_another_image_is_not_passed_off_as_the_one_asked_for(operator: Operator) -> None:
    assert operator.up("queue").status == 0
    ran = operator.run("up", "--mode", "queue", "--image", "registry.example/zopilot-gpu:0.2.0")
    assert ran.status == 2
    assert "stands with image registry.example/zopilot-gpu:0.1.0" in ran.err
    assert "scripts/deploy down --name zopilot --mode queue, then up again" in ran.err
    assert operator.up("queue", "--model", "smollm2-135m-instruct").status == 2
    other = operator.up("queue", "--env", "ZOPILOT_KV_TOKENS=9000")
    assert other.status == 2 and "stands with another ZOPILOT_KV_TOKENS:" in other.err
    assert operator.up("queue").status == 0


def test_an_endpoint_that_may_have_no_worker_any_more_is_not_said_to_answer(operator: Operator) -> None:
    """RunPod takes them away from one that was idle for days."""
    assert operator.up("queue").status == 0
    (endpoint,) = operator.plane.things["/v2/serverless"].values()
    endpoint["workers"]["max"] = 0
    ran = operator.up("queue")
    assert ran.status == 2
    assert "stands with 0 to 0 workers" in ran.err


def test_a_stopped_pod_is_started_again(operator: Operator) -> None:
    assert operator.up("pod").status == 0
    (pod,) = operator.plane.things["/v2/pods"].values()
    pod.update(status="EXITED", actions=["start", "terminate"], cost=0.0)
    ran = operator.up("pod")
    assert ran.status == 0
    assert "starting zopilot-pod, which was stopped" in ran.err
    assert len(operator.plane.things["/v2/pods"]) == 1


def test_a_stopped_pod_whose_host_is_full_says_what_to_do(operator: Operator) -> None:
    assert operator.up("pod").status == 0
    (pod,) = operator.plane.things["/v2/pods"].values()
    pod.update(status="EXITED", actions=["start", "terminate"], cost=0.0)
    full = "There are not enough free GPUs on the host machine to start this pod."
    operator.plane.always, operator.plane.only = Fault(400, detail=full), "POST"
    ran = operator.up("pod")
    assert ran.status == 1
    assert "scripts/deploy down --name zopilot --mode pod, then up takes another" in ran.err
    check_told(operator, ran)


def test_a_volume_too_small_for_the_model_is_not_used(operator: Operator) -> None:
    assert operator.run("volume", "--model", "smollm2-135m-instruct").status == 0
    ran = operator.up("queue")
    assert ran.status == 2
    assert "has 10 GB, too few for mixtral-8x7b-instruct" in ran.err
    check_told(operator, ran)


def test_an_endpoint_spans_the_places_that_have_the_weights(operator: Operator) -> None:
    for center in ("EU-RO-1", "US-KS-2"):
        assert operator.run("volume", "--data-center", center).status == 0
    assert operator.up("queue").status == 0
    (endpoint,) = operator.plane.things["/v2/serverless"].values()
    assert endpoint["dataCenterIds"] == ["EU-RO-1", "US-KS-2"]
    assert endpoint["networkVolumes"] == list(operator.plane.things["/v2/network-volumes"])
    assert operator.run("down").status == 0
    assert operator.up("queue", "--data-center", "US-KS-2").status == 0
    (endpoint,) = operator.plane.things["/v2/serverless"].values()
    assert endpoint["dataCenterIds"] == ["US-KS-2"]
    assert endpoint["networkVolumes"] == [
        each["id"] for each in operator.plane.things["/v2/network-volumes"].values() if each["dataCenter"] == "US-KS-2"
    ]
    assert operator.run("down", "--volume").status == 0
    assert operator.plane.everything == []


@pytest.mark.parametrize(("mode", "told"), [("pod", "is RUNNING and not ready"), ("lb", "0 of 1 workers ready")])
def test_what_does_not_answer_is_told_with_its_price(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, mode: str, told: str
) -> None:
    operator.plane.stopped = True
    ran = operator.up(mode, "--wait-minutes", "0.005")
    assert ran.status == 1
    assert told in ran.err.splitlines()[-1]
    check_told(operator, ran)


def test_a_pod_that_ends_at_once_is_told_at_once(operator: Operator) -> None:
    operator.plane.dead_on_arrival = True
    ran = operator.up("pod")
    assert ran.status == 1
    assert "zopilot-pod is EXITED; see: scripts/deploy logs --name zopilot --mode pod" in ran.err
    check_told(operator, ran)


def test_a_pod_that_knows_another_key_is_no_success(operator: Operator) -> None:
    operator.plane.service_key = "another"
    ran = operator.up("pod")
    assert ran.status == 1
    assert "not to ZOPILOT_GPU_API_KEY" in ran.err
    check_told(operator, ran)


def test_where_runpod_says_nothing_more_that_is_said(operator: Operator) -> None:
    operator.up("pod")
    operator.plane.always = Fault(500)
    ran = operator.run(*up("pod"))
    assert ran.status == 1
    assert "it may cost money: scripts/deploy status --name zopilot" in ran.err
    assert "to remove all of it: scripts/deploy down --name zopilot --volume" in ran.err
