"""The fakes are proven before they prove anything: what RunPod's document must refuse is refused, and states are kept.

Without the document beside the checkout these are skipped, and the control plane of the other tests judges less.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deploy.control import cards
from deploy.control.bodies import Body, GpuType
from deploy.control.order import Mode, Order
from models import catalog
from tests.contract import MISSING, Contract, contract
from tests.control_plane import KEY, Fault, Plane, serve

HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
MODES: tuple[Mode, ...] = ("queue", "pod", "lb")


@pytest.fixture
def judge() -> Contract:
    found = contract()
    if found is None:
        pytest.skip(MISSING)
    return found


@pytest.fixture
def plane() -> Iterator[Plane]:
    with serve() as found:
        yield found


@pytest.fixture
def http(plane: Plane) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plane.url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        yield client


def body_of(mode: Mode, **more: Any) -> dict[str, Any]:
    """What would be sent for Mixtral."""
    order = Order(name="z", mode=mode, row=catalog.MIXTRAL, image="a/b:1", keys=("k",), workers=(1, 3), **more)
    gpu = {"id": "NVIDIA GeForce RTX 5090", "name": "RTX 5090", "pool": "ADA_32_PRO", "memory": 32}
    price = {"secure": 0.99, "community": 0.69, "serverless": 1.58}
    (offer,) = cards.offers(order.row, [GpuType.model_validate({**gpu, "price": price})], mode != "pod")
    body: Body = order.pod_body(offer, "EU-RO-1", "vol1", "reg1")
    if mode != "pod":
        body = order.endpoint_body(offer, ["NVIDIA L40"], ["EU-RO-1"], ["vol1"], None)
    return body.write()


def judged(judge: Contract, path: str, body: dict[str, Any]) -> list[str]:
    return judge.judge("POST", path, "", HEADERS, json.dumps(body).encode()).errors


@pytest.mark.parametrize("mode", MODES)
def test_our_bodies_are_as_the_document_has_them(judge: Contract, mode: Mode) -> None:
    path = "/v2/pods" if mode == "pod" else "/v2/serverless"
    assert judged(judge, path, body_of(mode)) == []
    assert judged(judge, path, body_of(mode, baked=True, env={"A": "1"})) == []
    order = Order(name="z", mode=mode, row=catalog.SHIZHENGPT, image="a/b:1", registry=("u", "p"))
    assert judged(judge, "/v2/network-volumes", order.volume_body("EU-RO-1").write()) == []
    assert judged(judge, "/v2/registries", order.registry_body().write()) == []


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("pod", {"imageName": "a/b:1"}),
        ("pod", {"gpuTypeIds": ["NVIDIA L40"]}),
        ("pod", {"interruptible": True}),
        ("pod", {"gpu": {"id": "NVIDIA L40", "minCudaVersion": "12"}}),
        ("pod", {"gpu": {"minCudaVersion": "12.8"}}),
        ("pod", {"gpu": {"id": "NVIDIA L40", "count": 0}}),
        ("pod", {"mounts": {"network": [{"volumeId": "v"}]}}),
        ("pod", {"mounts": {"network": [{"volumeId": "v", "path": "/a"}] * 2}}),
        ("pod", {"disk": 0}),
        ("pod", {"env": {"A": 1}}),
        ("pod", {"env": [{"key": "A", "value": "1"}]}),
        ("pod", {"cloud": "secure"}),
        ("pod", {"name": ""}),
        ("queue", {"type": "Queue"}),
        ("queue", {"gpu": {"id": "NVIDIA L40"}}),
        ("queue", {"gpu": {"pools": []}}),
        ("queue", {"gpu": {"pools": ["A"], "excludedTypes": ["NVIDIA L40"] * 2}}),
        ("queue", {"workers": {"min": 0, "max": 3, "idleTimeout": 7200}}),
        ("queue", {"workers": {"min": -1}}),
        ("queue", {"workers": {"minimum": 0}}),
        ("queue", {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 0.1}}),
        ("queue", {"scaling": {"type": "QUEUE_DELAY", "requestCount": 4}}),
        ("queue", {"flashboot": True}),
        ("queue", {"networkVolumeId": "v"}),
        ("queue", {"mounts": {"network": []}}),
        ("queue", {"timeout": "900"}),
        ("lb", {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}}),
        ("lb", {"scaling": {"type": "REQUEST_COUNT", "requestCount": 0}}),
    ],
)
def test_what_the_document_must_refuse_is_refused(judge: Contract, mode: Mode, change: dict[str, Any]) -> None:
    path = "/v2/pods" if mode == "pod" else "/v2/serverless"
    assert judged(judge, path, {**body_of(mode), **change})


def test_what_is_missing_is_refused(judge: Contract) -> None:
    assert judged(judge, "/v2/pods", without(body_of("pod"), "name"))
    assert judged(judge, "/v2/pods", without(body_of("pod"), "image"))
    assert judged(judge, "/v2/serverless", without(body_of("queue"), "type"))
    assert judged(judge, "/v2/serverless", without(body_of("queue"), "scaling"))
    assert judged(judge, "/v2/network-volumes", {"name": "z", "size": 5, "dataCenter": "EU-RO-1"})
    assert judged(judge, "/v2/registries", {"name": "z", "username": "u"})


@pytest.mark.parametrize(
    ("method", "path", "query", "status"),
    [
        ("GET", "/v1/pods", "", 404),
        ("GET", "/v2/pods/a/b/c", "", 404),
        ("PUT", "/v2/pods", "", 405),
        ("PATCH", "/v2/registries/r", "", 405),
        ("GET", "/v2/pods", "limit=3", 422),
        ("GET", "/v2/catalog/gpus", "include=STOCK", 422),
        ("GET", "/v2/catalog/gpus", "product=POD,BOX", 422),
        ("GET", "/v2/catalog/gpus", "minCudaVersion=new", 422),
        ("GET", "/v2/pods/p/logs", "tail=5001", 422),
        ("GET", "/v2/pods/p/logs", "source=stdout", 422),
        ("GET", "/v2/pods/p/logs", "tail=5000&source=container", 0),
        ("GET", "/v2/catalog/gpus", "include=AVAILABILITY&product=POD,SERVERLESS&minCudaVersion=12.8", 0),
        ("DELETE", "/v2/network-volumes/v", "", 0),
    ],
)
def test_methods_paths_and_queries_are_judged(judge: Contract, method: str, path: str, query: str, status: int) -> None:
    assert judge.judge(method, path, query, HEADERS, b"").status == status


def test_a_key_and_json_are_asked_for(judge: Contract) -> None:
    body = json.dumps(body_of("pod")).encode()
    assert judge.judge("POST", "/v2/pods", "", {"content-type": "application/json"}, body).status == 401
    assert judge.judge("POST", "/v2/pods", "", {**HEADERS, "authorization": KEY}, body).status == 401
    assert judge.judge("POST", "/v2/pods", "", {**HEADERS, "content-type": "text/plain"}, body).status == 422
    assert judge.judge("POST", "/v2/pods", "", HEADERS, body[:-1]).status == 422
    assert judge.judge("GET", "/v2/pods", "", HEADERS, b"{}").status == 422


def test_an_answer_that_runpod_would_not_give_is_noticed(judge: Contract) -> None:
    with pytest.raises(AssertionError):
        judge.check_answer("GET", "/v2/pods", 200, {"pods": [{"id": "p"}]})
    with pytest.raises(AssertionError):
        judge.check_answer("GET", "/v2/pods", 201, {"pods": []})
    with pytest.raises(AssertionError):
        judge.check_answer("GET", "/v2/pods", 429, {"error": "slow down"})
    with pytest.raises(AssertionError):
        judge.check_answer("DELETE", "/v2/pods/{id}", 204, {})
    judge.check_answer("GET", "/v2/pods", 500, {"title": "t", "status": 500, "detail": "d"})


def test_the_plane_keeps_what_is_made_and_takes_it_through_its_states(http: httpx.Client, plane: Plane) -> None:
    volume = {"name": "v", "size": 10, "dataCenter": "EU-RO-1"}
    assert http.post("/v2/network-volumes", json=volume).json()["id"] == "vol1"
    registry = http.post("/v2/registries", json={"name": "r", "username": "u", "password": "p"})
    assert registry.json() == {"id": "reg2", "name": "r"}
    made = http.post("/v2/pods", json={**body_of("pod"), "registry": "reg2"})
    assert (made.status_code, made.json()["status"], made.json()["cost"]) == (201, "PROVISIONING", 0.99)
    id = made.json()["id"]
    assert [http.get(f"/v2/pods/{id}").json()["status"] for _ in range(3)] == ["STARTING", "RUNNING", "RUNNING"]
    assert http.delete("/v2/registries/reg2").status_code == 400
    assert http.post(f"/v2/pods/{id}/action", json={"action": "start"}).status_code == 409
    assert http.post(f"/v2/pods/{id}/action", json={"action": "stop"}).json()["cost"] == 0
    assert http.delete(f"/v2/pods/{id}").status_code == 204
    assert http.delete(f"/v2/pods/{id}").status_code == 404
    assert http.get(f"/v2/pods/{id}").status_code == 404
    assert plane.everything == ["vol1", "reg2"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpu": {"id": "NVIDIA L40", "minCudaVersion": "12.8", "allowedCudaVersions": ["12.8"]}}, "exclude"),
        ({"cpu": {"id": "cpu3c", "vcpuCount": 2}}, "exactly one"),
        ({"gpu": {"id": "RTX 5090"}}, "no such gpu"),
        ({"dataCenterIds": ["US-KS-2"]}, "another data center"),
        ({"mounts": {"network": [{"volumeId": "none", "path": "/a"}]}}, "network volume not found"),
    ],
)
def test_the_plane_knows_rules_that_no_schema_can_say(http: httpx.Client, change: dict[str, Any], told: str) -> None:
    http.post("/v2/network-volumes", json={"name": "v", "size": 10, "dataCenter": "EU-RO-1"})
    answer = http.post("/v2/pods", json={**without(body_of("pod"), "registry"), **change})
    assert answer.status_code in (400, 404)
    assert told in answer.json()["detail"]


def test_faults_befall_the_request_they_are_meant_for(http: httpx.Client, plane: Plane) -> None:
    plane.faults = {1: Fault(503), 2: Fault(0, after=True), 3: Fault(429, headers=(("Retry-After", "9"),))}
    assert http.get("/v2/pods").status_code == 200
    assert http.get("/v2/pods").json()["detail"] == "upstream unavailable"
    with pytest.raises(httpx.RemoteProtocolError):
        http.post("/v2/registries", json={"name": "r", "username": "u", "password": "p"})
    assert plane.named("/v2/registries") == ["r"]
    assert http.get("/v2/pods").headers["Retry-After"] == "9"
    assert [each.status for each in plane.requests] == [200, 503, 201, 429]
