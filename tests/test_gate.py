"""serving/gate.py: who comes in. The application behind it is a stand-in that records what reaches it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from serving import gate
from serving.gate import ROUTES, Gate, Keys
from serving.status import Status

KEY = "a-key"
JSON = {"content-type": "application/json"}
CREDENTIALS: list[dict[str, str]] = [
    {},
    {"x-api-key": ""},
    {"x-api-key": "a-ke"},
    {"x-api-key": "a-keyy"},
    {"x-api-key": "A-KEY"},
    {"x-api-key": " "},
    {"x-api-key": "a-key,other"},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer a-ke"},
    {"authorization": "Basic YS1rZXk="},
    {"authorization": KEY},
    {"authorization": f"Token {KEY}"},
    {"authorization": f"Bearer {KEY} {KEY}"},
    {"cookie": f"x-api-key={KEY}"},
    {"x-api-key": "wrong", "authorization": f"Bearer {KEY}"},
    {"proxy-authorization": f"Bearer {KEY}"},
]


class Application:
    """Answers 200 and keeps what it was asked; `answer` replaces its response."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.answer: Any = JSONResponse({"inside": True})
        self.cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        self.seen.append((scope["path"], message["body"]))
        await self.answer(scope, receive, send)


@pytest.fixture
def application() -> Application:
    return Application()


def make(application: Application, **changes: Any) -> Gate:
    status = Status()
    status.become_ready(dict, lambda: True)
    options: dict[str, Any] = {
        "status": status,
        "keys": Keys([KEY, "second"]),
        "health_public": True,
        "max_body": 1000,
        "max_open": 2,
    }
    return Gate(application, **{**options, **changes})


def ask(door: Gate, method: str, path: str, **options: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(door, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://gate") as client:
            return await client.request(method, path, **options)

    return asyncio.run(once())


def prompt(door: Gate, headers: dict[str, str] | None = None, content: Any = b"{}") -> httpx.Response:
    return ask(door, "POST", "/prompt", headers={**JSON, "x-api-key": KEY, **(headers or {})}, content=content)


def test_the_route_table() -> None:
    assert ROUTES == {
        "/prompt": "POST",
        "/livez": "GET",
        "/readyz": "GET",
        "/health": "GET",
        "/metrics": "GET",
        "/schema.json": "GET",
        "/docs.json": "GET",
    }


@pytest.mark.parametrize(
    "path", [*ROUTES, "/", "/docs", "/prompt/", "//prompt", "/prompt/%2e%2e/metrics", "/Prompt", "/v1"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "FOO"])
def test_only_listed_routes_and_methods_exist(application: Application, method: str, path: str) -> None:
    response = ask(make(application), method, path, headers={**JSON, "x-api-key": KEY}, content=b"{}")
    if path not in ROUTES:
        assert (response.status_code, application.seen) == (404, [])
    elif method != ROUTES[path]:
        assert (response.status_code, application.seen) == (405, [])
        assert response.headers["allow"] == ROUTES[path]
    else:
        assert response.status_code == 200


@pytest.mark.parametrize("path", [path for path in ROUTES if path not in ("/livez", "/readyz", "/health")])
@pytest.mark.parametrize("headers", CREDENTIALS, ids=range(len(CREDENTIALS)))
def test_nobody_without_a_key(application: Application, path: str, headers: dict[str, str]) -> None:
    response = ask(make(application), ROUTES[path], path, headers={**JSON, **headers})
    assert (response.status_code, response.json()["error_type"]) == (401, "unauthorized")
    assert application.seen == []


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY},
        {"x-api-key": "second"},
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
    ],
    ids=range(4),
)
def test_every_key_opens_by_either_header(application: Application, headers: dict[str, str]) -> None:
    assert ask(make(application), "GET", "/schema.json", headers=headers).status_code == 200


def test_a_key_beyond_ascii_can_be_used(application: Application) -> None:
    door = make(application, keys=Keys(["schlüssel"]))
    assert ask(door, "GET", "/schema.json", headers=[(b"x-api-key", "schlüssel".encode())]).status_code == 200


def test_without_keys_the_door_is_open(application: Application) -> None:
    assert ask(make(application, keys=Keys([])), "GET", "/metrics").status_code == 200


def test_probes_need_no_key_and_health_only_where_it_is_private(application: Application) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert ask(make(application), "GET", path).status_code == 200
    private = make(application, health_public=False)
    assert ask(private, "GET", "/health").status_code == 401
    assert ask(private, "GET", "/livez").status_code == 200
    assert ask(private, "GET", "/health", headers={"x-api-key": KEY}).status_code == 200


@pytest.mark.parametrize(
    "media",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "application/json, text/plain",
        "application/vnd.bentoml+pickle",
        "Application/Vnd.BentoML+Pickle",
        " application/vnd.bentoml+pickle",
        "application/json;application/vnd.bentoml+pickle",
        "application/octet-stream",
        "application/jsonp",
    ],
)
def test_only_json_is_taken(application: Application, media: str) -> None:
    response = prompt(make(application), {"content-type": media})
    assert (response.status_code, application.seen) == (415, [])


@pytest.mark.parametrize("media", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"'])
def test_json_by_its_other_spellings(application: Application, media: str) -> None:
    assert prompt(make(application), {"content-type": media}).status_code == 200


def test_the_body_reaches_the_application_whole(application: Application) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"a":'
        yield b"1}"

    assert prompt(make(application), content=pieces()).status_code == 200
    assert application.seen == [("/prompt", b'{"a":1}')]


@pytest.mark.parametrize(("size", "status"), [(999, 200), (1000, 200), (1001, 413), (100_000, 413)])
@pytest.mark.parametrize("told", [True, False])
def test_the_size_of_a_body(application: Application, size: int, status: int, told: bool) -> None:
    response = prompt(make(application), content=b"x" * size if told else chunks(size))
    assert (response.status_code, len(application.seen)) == (status, int(status == 200))


async def chunks(size: int) -> AsyncIterator[bytes]:
    whole, rest = divmod(size, 100)
    for _ in range(whole):
        yield b"x" * 100
    yield b"x" * rest


def test_a_slow_body_is_given_up(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    response = prompt(make(application), content=trickle())
    assert (response.status_code, response.headers["retry-after"]) == (408, "1")


def test_while_loading_prompts_are_asked_to_come_back(application: Application) -> None:
    response = prompt(make(application, status=Status()))
    assert (response.status_code, response.json()["error_type"]) == (503, "model_loading")
    assert response.headers["retry-after"] == "5"


def test_a_wrong_key_learns_nothing_about_loading(application: Application) -> None:
    assert prompt(make(application, status=Status()), {"x-api-key": "wrong"}).status_code == 401


@pytest.mark.parametrize("shown", ["abc-123", "x" * 128])
def test_a_given_request_id_is_kept(application: Application, shown: str) -> None:
    assert prompt(make(application), {"x-request-id": shown}).headers["x-request-id"] == shown


@pytest.mark.parametrize("shown", ["", "with space", "x" * 129, "tab\there"])
def test_a_useless_request_id_is_replaced(application: Application, shown: str) -> None:
    made = prompt(make(application), {"x-request-id": shown}).headers["x-request-id"]
    assert made != shown and len(made) == 32


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_error_made_up_by_the_framework_comes_in_our_envelope(application: Application, status: int) -> None:
    application.answer = PlainTextResponse("Traceback: secret /path", status)
    response = prompt(make(application))
    assert (response.status_code, response.json()["error_type"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_our_own_errors_pass_unchanged(application: Application) -> None:
    application.answer = JSONResponse({"mine": 1}, 422, {"X-Request-Id": "id"})
    response = prompt(make(application))
    assert (response.status_code, response.json()) == (422, {"mine": 1})


def test_more_requests_than_may_be_open_are_refused() -> None:
    application = Application()
    going = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await going.wait()
        await JSONResponse({})(scope, receive, send)

    application.answer = slow
    door = make(application, max_open=2)

    async def three() -> list[int]:
        transport = httpx.ASGITransport(door)
        async with httpx.AsyncClient(transport=transport, base_url="http://gate", headers={"x-api-key": KEY}) as client:
            first = [asyncio.create_task(client.post("/prompt", json={})) for _ in range(2)]
            while len(application.seen) < 2:
                await asyncio.sleep(0)
            third = await client.post("/prompt", json={})
            going.set()
            after = [(await task).status_code for task in first]
            return [third.status_code, *after, (await client.post("/prompt", json={})).status_code]

    assert asyncio.run(three()) == [429, 200, 200, 200]


def scope(path: str = "/prompt") -> Scope:
    headers = [(b"content-type", b"application/json"), (b"x-api-key", KEY.encode())]
    return {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}


def test_a_client_that_leaves_is_told_to_the_caller() -> None:
    application = Application()
    left: list[bool] = []

    async def wait_for_leaving(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        left.append(scope["caller"].gone)

    application.answer = wait_for_leaving
    messages: Iterator[Message] = iter([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there to be answered")

    asyncio.run(make(application)(scope(), receive, send))
    assert left == [True]


def test_a_client_that_leaves_while_sending_reaches_nothing() -> None:
    application = Application()
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there to be answered")

    asyncio.run(make(application)(scope(), receive, send))
    assert application.seen == []


def test_websockets_are_closed() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    asyncio.run(make(Application())({"type": "websocket", "path": "/prompt", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_error_bodies_are_one_json_object(application: Application) -> None:
    for response in (ask(make(application), "GET", "/nowhere"), prompt(make(application), {"content-type": "x/y"})):
        assert set(json.loads(response.text)) == {"success", "error", "error_type", "retryable", "request_id"}
