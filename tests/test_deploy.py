"""scripts/deploy as an operator sees it: what it prints, what it refuses, how it exits; and the rehearsal."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.control.watch import Watch
from models.catalog import Model
from scripts import deploy
from tests.contract import MISSING, contract
from tests.control_plane import KEY, Fault
from tests.operating import IMAGE, Operator, call, operate, up

ROOT = Path(deploy.__file__).parent.parent


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Operator]:
    with operate(monkeypatch, capsys) as found:
        yield found


def rehearse(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert call("", [*arguments, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return [json.loads(line) for line in captured.out.splitlines()]


@pytest.mark.parametrize("more", [(), ("--baked",), ("--card", "h200", "--data-center", "EU-RO-1", "--env", "A=b=c")])
@pytest.mark.parametrize("model", ["mixtral-8x7b-instruct", "smollm2-135m-instruct", "shizhengpt-32b-vl"])
@pytest.mark.parametrize("mode", ["queue", "pod", "lb"])
def test_every_rehearsed_request_is_as_the_document_has_it(
    operator: Operator, capsys: pytest.CaptureFixture[str], mode: str, model: str, more: tuple[str, ...]
) -> None:
    judge = contract()
    if judge is None:
        pytest.skip(MISSING)
    lines = rehearse(capsys, *up(mode, "--model", model, *more))
    sent = [line for line in lines if line["url"].startswith("https://api.runpod.io/v2/")]
    headers = {"authorization": "Bearer k", "content-type": "application/json"}
    for line in sent:
        split = urlsplit(line["url"])
        body = json.dumps(line["body"]).encode() if "body" in line else b""
        assert judge.judge(line["method"], split.path, split.query, headers, body).errors == []
    made = [line["body"]["name"] for line in sent if line["method"] == "POST"]
    assert made == ["zopilot-registry", f"zopilot-{mode}"]
    # What is left asks the service itself whether it is there.
    assert all(line["method"] == "GET" for line in lines if line not in sent)
    assert operator.plane.requests == []


def test_a_rehearsal_is_what_is_sent_afterwards(operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    """The same requests in the same order; only what RunPod alone knows is another."""
    for mode in ("queue", "pod", "lb"):
        assert operator.run("volume").status == 0
        rehearsed = rehearse(capsys, *up(mode, "--card", "rtx-5090"))
        operator.plane.requests.clear()
        assert operator.run(*up(mode, "--card", "rtx-5090")).status == 0
        first = [(line["method"], urlsplit(line["url"]).path) for line in rehearsed if "/v2/" in line["url"]]
        sent = [(each.method, each.path) for each in operator.plane.requests]
        known = re.compile(r"(pod|ep|vol|reg)\d+")
        named = [(method, re.sub(r"%3Cid.*?%3E", "ID", path)) for method, path in first]
        # A look that finds it not ready yet is followed by others.
        assert list(dict.fromkeys(known.sub("ID", path) for _, path in sent)) == list(
            dict.fromkeys(path for _, path in named)
        )
        (body,) = [line["body"] for line in rehearsed if line.get("body", {}).get("name") == f"zopilot-{mode}"]
        (real,) = [each.body for each in operator.plane.posts() if each.body["name"] == f"zopilot-{mode}"]
        assert body.keys() == real.keys()
        hidden = {"ZOPILOT_GPU_API_KEY": "sesame,mellon"}
        assert {**body["env"], **hidden} == real["env"]
        for name in ("image", "ports", "disk", "workers", "scaling", "timeout", "flashboot", "cloud"):
            assert body.get(name) == real.get(name)
        assert operator.run("down", "--volume").status == 0


def test_a_rehearsal_shows_no_secret_and_needs_no_key(
    operator: Operator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    monkeypatch.setenv("ZOPILOT_RECEIPT_KEY", "friend")
    text = json.dumps(rehearse(capsys, *up("pod", "--env", "THEIR_TOKEN=speak", "--env", "ZOPILOT_KV_TOKENS=9000")))
    for secret in ("sesame", "swordfish", "friend", "speak", KEY):
        assert secret not in text
    assert text.count('"***"') == 4 and "9000" in text
    assert [line["body"]["name"] for line in rehearse(capsys, "volume") if "body" in line] == ["zopilot-weights"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["up", "--mode", "pod", "--image", "a/b:latest"], "a version or a digest"),
        (["up", "--mode", "pod", "--image", IMAGE, "--name", "Z"], "--name: 'Z'"),
        *((["volume", "--name", name], "--name: ") for name in ("", "z-", "a--b", "z_1", "a" * 41, "z/..", "ä")),
        (["volume", "--volume-size", "9"], "--volume-size: '9' is no whole number from 10 to 4096"),
        (["volume", "--volume-size", "12"], "--volume-size 12: too few GB"),
        (["up", "--mode", "queue", "--image", IMAGE, "--volume-size", "36"], "arguments: --volume-size 36"),
        (["up", "--mode", "queue", "--image", IMAGE], "there is no network volume zopilot-weights"),
        (["up", "--mode", "queue", "--image", IMAGE, "--disk", "0"], "--disk: '0'"),
        (["up", "--mode", "queue", "--image", IMAGE, "--workers-max", "0"], "--workers-max: '0'"),
        (["up", "--mode", "queue", "--image", IMAGE, "--workers-min", "-1"], "--workers-min"),
        (["up", "--mode", "queue", "--image", IMAGE, "--cuda", "13"], "--cuda: '13' is not like"),
        (["up", "--mode", "queue", "--image", IMAGE, "--env", "ZOPILOT_RECEIPT_KEY=a"], "--env ZOPILOT_RECEIPT_KEY"),
        (["logs", "--mode", "pod", "--tail", "5001"], "--tail: '5001' is no whole number from 0 to 5000"),
        (["up", "--mode", "lb", "--image", IMAGE, "--workers-min", "0"], "RunPod's balancer waits 120 seconds"),
        (["up", "--mode", "queue", "--image", IMAGE, "--env", "PORT=80"], "--env PORT"),
        (["up", "--mode", "queue", "--image", IMAGE, "--card", "l4"], "l4 has"),
        (["up", "--mode", "queue", "--image", IMAGE, "--env", "PORT"], "is not NAME=VALUE"),
        (["up", "--mode", "cluster", "--image", IMAGE], "invalid choice"),
        (["up", "--mode", "pod"], "--image"),
        (["up", "--image", IMAGE], "--mode"),
        (["up", "--mode", "lb", "--image", IMAGE, "--max-cost", "3"], "are for pods"),
        (["watch"], "give --idle-minutes, --max-cost or both"),
        (["watch", "--max-cost", "0"], "is no number above 0"),
        (["watch", "--max-cost", "nan"], "is no number above 0"),
        (["watch", "--idle-minutes", "10"], "there is no pod zopilot-pod"),
        (["upload"], "one volume is needed (scripts/deploy volume makes it, --data-center chooses); there are: none"),
        (["down", "--everything"], "unrecognized"),
        ([], "COMMAND"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_made(
    operator: Operator, arguments: list[str], told: str
) -> None:
    ran = operator.run(*arguments)
    assert ran.status == 2
    assert told in ran.err
    assert operator.plane.posts() == []


def test_without_a_key_of_runpods_nothing_is_sent(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    for arguments in (["status"], ["down"], up("queue"), ["volume"]):
        ran = operator.run(*arguments)
        assert ran.status == 2
        assert "RUNPOD_API_KEY is not set" in ran.err
    planned = operator.run("plan")
    assert planned.status == 0
    assert "prices and stock are read where RUNPOD_API_KEY is set" in planned.out
    monkeypatch.delenv("ZOPILOT_GPU_API_KEY")
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    refused = operator.run(*up("pod"))
    assert refused.status == 2
    assert "ZOPILOT_GPU_API_KEY is not set" in refused.err
    assert operator.plane.requests == []


def test_the_plan_is_arithmetic_on_what_the_catalogue_says(operator: Operator) -> None:
    ran = operator.run("plan", "--rate", "2", "--card", "rtx-5090")
    assert ran.out.splitlines() == [
        "mixtral-8x7b-instruct: 24,484,515,328 bytes of weights; held by rtx-5090",
        "network volume: 36 GB, $2.52 a month, used or not",
        "cold start: 76 to 137 seconds; RunPod's balancer waits 120, so --mode lb keeps a worker",
        "documents a second: 2",
        "NVIDIA GeForce RTX 5090: 53,715 tokens of KV cache, 33 documents at once",
        "  pod         $0.99 an hour, $0.138 per 1,000 documents; free in US-KS-2, US-TX-3, EU-RO-1",
        "  serverless  $1.58 an hour, $0.219 per 1,000 documents; free in US-KS-2, US-TX-3, EU-RO-1; pool ADA_32_PRO",
        "  a pod costs less from 15.0 warm hours a day",
    ]
    assert "1, an assumption: measure yours with scripts/bench" in operator.run("plan").out
    assert operator.plane.posts() == []


def test_status_says_what_stands_what_it_costs_and_whether_it_answers(operator: Operator) -> None:
    assert operator.run("status").out == "nothing stands of zopilot\n"
    for mode in ("pod", "queue", "lb"):
        assert operator.up(mode).status == 0
    told = operator.run("status").out
    assert "RUNNING, $0.86 an hour now; remove it: scripts/deploy down --name zopilot --mode pod" in told
    assert "0 to 3 workers, paid for while they run; remove it: scripts/deploy down --name zopilot --mode queue" in told
    assert "1 to 3 workers, 1 paid for all the time; remove it: scripts/deploy down --name zopilot --mode lb" in told
    assert "$2.52 a month, used or not; remove it and the weights on it" in told
    assert "zopilot-pod: ready" in told
    assert "zopilot-lb: 0 running, 1 idle" in told
    operator.plane.stopped = True
    assert "zopilot-pod: not ready" in operator.run("status").out


def test_weights_go_onto_the_volume_that_is_meant(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """What brings them there is tested with it."""
    brought: list[tuple[str, str, str]] = []

    class Described:
        tag = "smollm2-135m-instruct:1"

    def upload(model: Model, store: Path, volume: str, center: str) -> Described:
        brought.append((model.name, volume, center))
        return Described()

    monkeypatch.setattr("deploy.control.upload.upload", upload)
    assert operator.run("volume", "--model", "smollm2-135m-instruct").status == 0
    ran = operator.run("upload", "--model", "smollm2-135m-instruct")
    assert ran.out == "smollm2-135m-instruct:1 is on zopilot-weights (vol1), every byte read back\n"
    assert operator.run("volume", "--data-center", "EU-RO-1").status == 0
    assert operator.run("upload").status == 2
    assert operator.run("upload", "--data-center", "EU-RO-1").status == 0
    assert brought == [("smollm2-135m-instruct", "vol1", "US-KS-2"), ("mixtral-8x7b-instruct", "vol2", "EU-RO-1")]
    assert operator.run("upload", "--data-center", "EU-CZ-1").status == 2


def test_logs_of_a_pod_and_of_workers(operator: Operator) -> None:
    assert operator.run("logs", "--mode", "queue").status == 1
    assert operator.up("pod").status == 0
    assert operator.up("lb").status == 0
    for mode, path in (("pod", "/v2/pods/"), ("lb", "/v2/serverless/")):
        operator.plane.logs = [["id: a", 'data: {"ts":"T","source":"system","line":"pulled"}', ""]]
        ran = operator.run("logs", "--mode", mode, "--tail", "5")
        assert (ran.status, ran.out) == (0, "T system pulled\n")
        assert operator.plane.requests[-1].path.startswith(path)
        assert operator.plane.requests[-1].query == "tail=5"


def test_up_with_a_limit_watches_until_the_pod_stands_still(operator: Operator) -> None:
    """The pod is said to have begun long ago, so its budget is spent at the first look."""
    ran = operator.up("pod", "--max-cost", "0.01")
    assert ran.status == 0
    assert re.search(r"stopped: \$\d+\.\d\d of \$0\.01 are spent", ran.out)
    (pod,) = operator.plane.things["/v2/pods"].values()
    assert pod["status"] == "EXITED"
    again = operator.run("watch", "--idle-minutes", "5")
    assert again.status == 0
    assert "zopilot-pod is EXITED" in again.out


@pytest.mark.parametrize(("number", "stopped"), [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGHUP, True)])
def test_whoever_ends_the_watch_unseen_ends_the_pod(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, number: int, stopped: bool
) -> None:
    monkeypatch.setattr(Watch, "run", lambda self, pod: signal.raise_signal(number))
    ran = operator.up("pod", "--idle-minutes", "5")
    assert ran.status == 130
    (pod,) = operator.plane.things["/v2/pods"].values()
    assert pod["status"] == ("EXITED" if stopped else "RUNNING")
    assert f"pod zopilot-pod ({pod['id']}): {pod['status']}" in ran.err
    assert "remove it: scripts/deploy down --name zopilot --mode pod" in ran.err


@pytest.mark.parametrize("limit", [("--idle-minutes", "5"), ("--max-cost", "0.0001"), ()])
def test_a_pod_with_a_limit_that_never_answers_is_stopped(operator: Operator, limit: tuple[str, ...]) -> None:
    """The budget ends the wait of 20 minutes; without one a short wait does."""
    operator.plane.stopped = True
    ran = operator.up("pod", *limit, *(() if "--max-cost" in limit else ("--wait-minutes", "0.002")))
    assert ran.status == 1
    (pod,) = operator.plane.things["/v2/pods"].values()
    assert pod["status"] == ("EXITED" if limit else "RUNNING")
    assert "does not answer" in ran.err or "not ready" in ran.err
    assert f"pod zopilot-pod ({pod['id']}): {pod['status']}" in ran.err


def test_a_watch_that_breaks_does_not_leave_the_pod_behind(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(self: Watch, pod: object) -> str:
        raise AttributeError("a fault of ours")

    monkeypatch.setattr(Watch, "run", break_down)
    with pytest.raises(AttributeError):
        operator.up("pod", "--idle-minutes", "5")
    (pod,) = operator.plane.things["/v2/pods"].values()
    assert pod["status"] == "EXITED"


def test_whoever_has_nohup_keeps_it(operator: Operator) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert operator.run("status").status == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_pod_with_a_limit_is_stopped_even_if_runpod_says_nothing_for_long(operator: Operator) -> None:
    operator.run("volume")
    operator.plane.requests.clear()
    operator.plane.faults = dict.fromkeys(range(12, 60), Fault(500))
    ran = operator.run(*up("pod", "--max-cost", "5"))
    assert ran.status == 1
    (pod,) = operator.plane.things["/v2/pods"].values()
    assert pod["status"] == "EXITED"
    assert "zopilot-pod is NOT stopped yet and costs $0.86 an hour" in ran.err


def test_a_pod_with_a_limit_does_not_run_on_when_runpod_fails_on_the_way(operator: Operator) -> None:
    operator.up("pod")
    operator.run("down", "--mode", "pod")
    operator.plane.requests.clear()
    operator.plane.faults = {11: Fault(403)}
    ran = operator.run(*up("pod", "--idle-minutes", "5"))
    assert ran.status == 1
    (pod,) = operator.plane.things["/v2/pods"].values()
    assert pod["status"] == "EXITED"
    assert "stopping zopilot-pod: it was not to run unwatched" in ran.err


def test_an_interrupted_up_names_what_stands(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.control.probe.Probe.ready", interrupt)
    ran = operator.up("pod")
    assert ran.status == 130
    for id in operator.plane.everything:
        assert f"({id}" in ran.err
    assert "what stands now:" in ran.err


def test_a_refused_balance_is_told_in_one_line_at_the_end(operator: Operator) -> None:
    operator.plane.always, operator.plane.only = Fault(402), "POST"
    ran = operator.up("queue")
    assert ran.status == 1
    assert "RunPod answers 402 to POST /v2/network-volumes: Problem: insufficient balance" in ran.err.splitlines()[-1]
    assert "nothing stands, and nothing is paid for" in ran.err


def test_what_an_operator_installs_is_a_part_of_what_is_tested() -> None:
    pinned = "".join((ROOT / f"requirements{name}.lock").read_text() for name in ("", "-deploy"))
    lock = ROOT / "deploy" / "control" / "requirements.lock"
    lines = [line for line in lock.read_text().splitlines() if line[0] != "#"]
    assert {line.partition("==")[0] for line in lines} >= {"httpx", "pydantic", "boto3", "tqdm"}
    for line in lines:
        assert f"{line}\n" in pinned


def test_it_runs_with_nothing_but_that() -> None:
    """Everything that is imported comes from the standard library, from here, or from that file."""
    names = "sorted({name.split('.')[0] for name in sys.modules})"
    code = f"import sys, scripts.deploy, deploy.control.upload; print(*{names})"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.check_output([sys.executable, "-P", "-c", code], text=True, env=environ).split()
    assert not {"torch", "bentoml", "transformers", "starlette", "numpy", "psutil"} & set(loaded)
