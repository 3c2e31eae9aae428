"""control/runpod.py and control/problem.py: what is tried again, what never, and how long is waited in between."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from deploy.control import problem
from deploy.control.bodies import RegistryBody
from deploy.control.problem import (
    ApiError,
    Conflict,
    Forbidden,
    Limited,
    NoCapacity,
    NotFound,
    Unavailable,
    Unsure,
)
from deploy.control.runpod import PODS, REGISTRIES, TRIES, Client, bare
from tests.control_plane import KEY, MOMENT, REASONS, Fault, Plane, serve

BODY = RegistryBody(name="r", username="u", password="p")
POD = {"name": "z", "image": "a/b:1", "gpu": {"id": "NVIDIA L40"}, "env": {}}


@pytest.fixture
def plane() -> Iterator[Plane]:
    with serve() as found:
        yield found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(Client, "sleep", lambda _, seconds: found.append(seconds))
    return found


@pytest.fixture
def client(plane: Plane, waits: list[float]) -> Iterator[Client]:
    found = Client(KEY, plane.url)
    yield found
    found.close()


def mocked(answer: Callable[[httpx.Request], httpx.Response], **more: object) -> Client:
    return Client(KEY, "http://plane.invalid", httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, ApiError),
        (402, ApiError),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (418, ApiError),
        (422, ApiError),
    ],
)
def test_what_would_be_refused_again_is_asked_once(
    client: Client, plane: Plane, waits: list[float], status: int, error: type[ApiError]
) -> None:
    plane.always = Fault(status)
    with pytest.raises(error) as caught:
        client.fetch(PODS)
    assert type(caught.value) is error
    assert caught.value.status == status
    assert REASONS.get(status, "no reason") in str(caught.value)
    assert len(plane.requests) == 1
    assert waits == []


@pytest.mark.parametrize(
    ("detail", "error"),
    [
        ("There are no longer any instances available with the requested specifications.", NoCapacity),
        ("There are no longer any instances available with enough disk space.", NoCapacity),
        ("There are not enough free GPUs on the host machine to start this pod.", NoCapacity),
        ("This machine does not have the resources to deploy your pod.", NoCapacity),
        ("no GPUs available in EU-RO-1", NoCapacity),
        ("insufficient capacity", NoCapacity),
        ("exactly one of gpu or cpu must be set", ApiError),
        ("allowedCudaVersions and minCudaVersion are mutually exclusive", ApiError),
        ("networkVolumes: data centers do not match", ApiError),
        ("idleTimeout is not applicable", ApiError),
    ],
)
def test_a_full_data_centre_is_told_from_a_broken_rule(
    client: Client, plane: Plane, detail: str, error: type[ApiError]
) -> None:
    plane.always = Fault(400, detail=detail)
    with pytest.raises(error) as caught:
        client.create(REGISTRIES, BODY, "r")
    assert type(caught.value) is error
    assert detail in str(caught.value)
    assert len(plane.requests) == 1


def test_a_quota_is_waited_for_as_long_as_told(client: Client, plane: Plane, waits: list[float]) -> None:
    plane.faults = {
        0: Fault(429, headers=(("Retry-After", "7"),)),
        1: Fault(429, headers=(("RateLimit", '"minute";r=0;t=12, "hour";r=2800;t=1812'),)),
        2: Fault(429),
    }
    assert client.fetch(PODS) == []
    assert waits[0] == 7
    assert waits[1] == 12
    assert 1 <= waits[2] <= 4


def test_a_quota_that_comes_back_tomorrow_is_not_waited_for(client: Client, plane: Plane, waits: list[float]) -> None:
    plane.faults = {0: Fault(429, headers=(("RateLimit", '"minute";r=5;t=9, "day";r=0;t=45012'),))}
    with pytest.raises(Limited) as caught:
        client.fetch(PODS)
    assert caught.value.wait == 45012
    assert waits == []


def test_reading_is_tried_again_with_growing_pauses_that_differ(
    client: Client, plane: Plane, waits: list[float]
) -> None:
    plane.always = Fault(502)
    with pytest.raises(Unavailable):
        client.fetch(PODS)
    assert len(plane.requests) == TRIES
    assert len(waits) == TRIES - 1
    for place, wait in enumerate(waits):
        assert 2**place / 2 <= wait <= 2**place
    plane.always = Fault(0)
    with pytest.raises(Unavailable):
        client.fetch(PODS)
    assert len(set(waits)) == len(waits)
    plane.always, plane.faults = None, {len(plane.requests): Fault(0), len(plane.requests) + 1: Fault(500)}
    assert client.fetch(PODS) == []


@pytest.mark.parametrize("fault", [Fault(0, after=True), Fault(500, after=True), Fault(409, after=True)])
def test_what_may_have_been_made_is_looked_for_before_it_is_asked_for_again(
    client: Client, plane: Plane, fault: Fault
) -> None:
    plane.faults = {0: fault}
    assert client.create(REGISTRIES, BODY, "r").id == "reg1"
    assert [each.method for each in plane.requests] == ["POST", "GET"]
    assert plane.named("/v2/registries") == ["r"]


def test_what_was_not_made_is_asked_for_again_after_several_looks(client: Client, plane: Plane) -> None:
    plane.faults = {0: Fault(0)}
    assert client.create(REGISTRIES, BODY, "r").id == "reg1"
    assert [each.method for each in plane.requests] == ["POST", "GET", "GET", "GET", "POST"]


def test_a_post_that_never_gets_an_answer_is_given_up_and_said_to_be_unsure(client: Client, plane: Plane) -> None:
    plane.always, plane.only = Fault(500), "POST"
    with pytest.raises(Unsure):
        client.create(REGISTRIES, BODY, "r")
    assert len(plane.posts()) == TRIES


def test_an_answer_that_cannot_be_read_is_none(waits: list[float]) -> None:
    for content in (b"<html>", b'{"id": 3}', b"[]"):
        asked: list[str] = []

        def answer(request: httpx.Request, content: bytes = content, asked: list[str] = asked) -> httpx.Response:
            asked.append(request.method)
            return (
                httpx.Response(201, content=content)
                if request.method == "POST"
                else httpx.Response(200, json={"registries": [{"id": "reg1", "name": "r"}]})
            )

        assert mocked(answer).create(REGISTRIES, BODY, "r").id == "reg1"
        assert asked == ["POST", "GET"]


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"null", b'{"pods": null}', b'{"registries": []}', b'{"pods": [{}]}']
)
def test_a_list_that_is_not_there_is_not_taken_for_an_empty_one(content: bytes) -> None:
    with pytest.raises(Unavailable, match="RunPod's answer"):
        mocked(lambda request: httpx.Response(200, content=content)).fetch(PODS)


def test_a_followed_log_that_ends_again_and_again_is_given_up(client: Client, plane: Plane, waits: list[float]) -> None:
    plane.answer("POST", "/v2/pods", {"authorization": f"Bearer {KEY}", "content-type": "application/json"}, _json(POD))
    plane.logs = [event(1, "one")]
    lines = client.logs("/v2/pods/pod1/logs", 100, follow=True)
    assert next(lines).line == "one"
    with pytest.raises(Unavailable):
        next(lines)
    assert len(waits) == TRIES
    assert len(plane.resumed) >= TRIES


def test_a_server_that_is_not_there_got_no_post(waits: list[float]) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if len(asked) < 3:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(201, json={"id": "reg1", "name": "r"})

    assert mocked(answer).create(REGISTRIES, BODY, "r").id == "reg1"
    assert asked == ["POST"] * 3


def test_a_problem_without_a_problem_in_it_is_told_as_such() -> None:
    for content in (b"", b"[]", b"<html>", b'{"errors": 5}'):
        response = httpx.Response(402, content=content, request=httpx.Request("GET", "http://plane.invalid/v2/pods"))
        error = problem.read(response, "GET")
        assert type(error) is ApiError
        assert "RunPod answers 402 to GET /v2/pods: no reason given" in str(error)


def test_each_violation_is_told(client: Client, plane: Plane) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(422, json={"title": "t", "status": 422, "detail": "d", "errors": ["$.a: no", "$.b: no"]})

    with pytest.raises(ApiError, match=r"t: d; \$\.a: no; \$\.b: no"):
        mocked(answer).fetch(PODS)


def test_the_key_is_sent_and_never_followed_elsewhere(waits: list[float]) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(307, headers={"Location": "http://elsewhere.invalid/"})

    with pytest.raises(Unavailable):
        mocked(answer).fetch(PODS)
    assert {request.url.host for request in asked} == {"plane.invalid"}
    assert {request.headers["Authorization"] for request in asked} == {f"Bearer {KEY}"}


def test_removing_what_is_gone_is_done(client: Client, plane: Plane) -> None:
    client.create(REGISTRIES, BODY, "r")
    plane.faults = {1: Fault(0, after=True)}
    client.delete(REGISTRIES, "reg1")
    assert [each.status for each in plane.requests[1:]] == [204, 404]
    assert plane.everything == []


def test_a_pod_is_stopped_once_and_left_alone_when_it_stands(client: Client, plane: Plane) -> None:
    plane.answer("POST", "/v2/pods", {"authorization": f"Bearer {KEY}", "content-type": "application/json"}, _json(POD))
    client.get(PODS, "pod1")
    plane.faults = {len(plane.requests) + 1: Fault(0, after=True)}
    client.act("pod1", "stop")
    assert client.get(PODS, "pod1").status == "EXITED"
    posts = len(plane.posts())
    client.act("pod1", "stop")
    assert len(plane.posts()) == posts == 2
    client.act("pod1", "start")
    plane.always, plane.only = Fault(409), "POST"
    client.get(PODS, "pod1")
    with pytest.raises(Conflict):
        client.act("pod1", "stop")


def _json(body: object) -> bytes:
    return httpx.Request("POST", "http://plane.invalid", json=body).content


def event(second: int, text: str) -> list[str]:
    moment = f"2026-11-20T12:00:{second:02}Z"
    return [f"id: {moment}/{second:012}", f'data: {{"ts":"{moment}","source":"container","line":"{text}"}}', ""]


def test_a_log_that_breaks_is_taken_up_and_no_line_is_told_twice(client: Client, plane: Plane) -> None:
    plane.answer("POST", "/v2/pods", {"authorization": f"Bearer {KEY}", "content-type": "application/json"}, _json(POD))
    plane.logs = [
        [": hello", *event(1, "one"), *event(2, "two"), "id: x", "data: half"],
        [*event(2, "two"), *event(3, "three"), "data: no json", "", "event: other", "", *event(4, "four")],
    ]
    lines = list(client.logs("/v2/pods/pod1/logs", 100, follow=False))
    assert [line.line for line in lines] == ["one", "two", "three", "four"]
    assert lines[0].ts == "2026-11-20T12:00:01Z"
    assert plane.resumed == ["", "2026-11-20T12:00:02Z/000000000002"]


def test_a_log_that_breaks_for_ever_or_is_not_there_ends(client: Client, plane: Plane, waits: list[float]) -> None:
    with pytest.raises(NotFound):
        list(client.logs("/v2/pods/none/logs", 100, follow=True))
    plane.always = Fault(503)
    with pytest.raises(Unavailable, match="breaks off again and again"):
        list(client.logs("/v2/pods/pod1/logs", 100, follow=True))
    assert len(waits) == TRIES


def test_the_name_that_runpod_appends_to_is_still_the_name() -> None:
    assert bare("zopilot-queue -fb") == bare("zopilot-queue") == "zopilot-queue"
    assert MOMENT.endswith("Z")
