"""The door: who may come in, by which route and method, with what body. Everything not listed here is refused.

An ASGI middleware around BentoML's own application, so it also covers the routes that BentoML adds by itself.
"""

import asyncio
import hashlib
import hmac
import re
import uuid
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.failure import Failure
from serving import openapi
from serving.caller import Caller
from serving.errors import failure, respond
from serving.routes import Route, find
from serving.status import Status

BODY_SECONDS = 30.0
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

PROBES = frozenset({"/livez", "/readyz"})


class Keys:
    """The keys that open the door, kept as digests; no keys: the door is open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def admit(self, headers: Headers) -> bool:
        """Whether the request shows a known key; every stored digest is compared, in constant time."""
        if not self._digests:
            return True
        digest = hashlib.sha256(show(headers).encode("latin-1")).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def show(headers: Headers) -> str:
    """The key that a request shows, if any."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key", "") or (token.strip() if scheme.lower() == "bearer" else "")


class Gate:
    """Checks a request in this order: route, method, key, readiness, media type, body."""

    def __init__(
        self, app: ASGIApp, status: Status, keys: Keys, health_public: bool, max_body: int, max_open: int
    ) -> None:
        self._app = app
        self._status = status
        self._keys = keys
        self._open_paths = PROBES | ({"/health"} if health_public else set())
        self._max_body = max_body
        self._max_open = max_open
        self._probes: dict[str, Callable[[Caller], ASGIApp]] = {
            "/livez": status.livez,
            "/readyz": status.readyz,
            "/health": status.health,
            "/info": status.info,
            "/status": status.status,
            "/openapi.json": openapi.show,
            "/v1/models": status.models,
            "/v1/models/{model}": status.model,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope=scope)
        caller = identify(scope, headers)
        route = find(scope["path"])
        try:
            self._check(route, scope["method"], headers)
            if route and (probe := self._probes.get(route.path)):
                return await probe(caller)(scope, receive, send)
        except Failure as refused:
            response = respond(refused, caller)
            if route and response.status_code == 405:
                response.headers["Allow"] = route.method
            return await response(scope, receive, send)
        with self._status.activity.under_way(caller):
            await self._pass(scope, headers, caller, receive, send)

    def _check(self, route: Route | None, method: str, headers: Headers) -> None:
        if route is None:
            raise failure("not_found")
        if method != route.method:
            raise failure("method_not_allowed")
        if route.path not in self._open_paths and not self._keys.admit(headers):
            raise failure("unauthorized")
        if method == "POST":
            if not self._status.ready:
                raise failure("model_loading")
            if len(self._status.activity) >= self._max_open:
                raise failure("queue_full")
            check_media(headers)

    async def _pass(self, scope: Scope, headers: Headers, caller: Caller, receive: Receive, send: Send) -> None:
        """Run the application on the whole body while watching for the client to leave; leaving cancels its work."""
        try:
            body = await read(headers, receive, self._max_body)
        except Failure as refused:
            return await respond(refused, caller)(scope, receive, send)
        except ClientLeft:
            caller.leave()
            return await respond(failure("client_closed_request"), caller)(scope, receive, send)
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        left = asyncio.Event()
        envelope = Envelope(send, scope, caller)

        async def replay() -> Message:
            if pending:
                return pending.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not envelope.ended:  # who has a whole answer is told to be disconnected as well
                left.set()
                caller.leave()

        watcher = asyncio.create_task(watch())
        try:
            await self._app({**scope, "caller": caller}, replay, envelope)
        finally:
            watcher.cancel()
        if not envelope.begun:  # BentoML would wait for it up to its timeout, and a shutdown for BentoML
            why = failure("client_closed_request" if caller.gone else "internal_error")
            await respond(why, caller)(scope, receive, send)


def identify(scope: Scope, headers: Headers) -> Caller:
    """Who asks what, by the id that the request carries or a new one."""
    shown = headers.get("x-request-id", "")
    return Caller(shown if REQUEST_ID.fullmatch(shown) else uuid.uuid4().hex, scope["path"])


class ClientLeft(Exception):
    """The connection closed before the body was whole."""


async def read(headers: Headers, receive: Receive, most: int) -> bytes:
    """The whole body, of at most that many bytes; raises Failure where it is too large or too slow, or ClientLeft."""
    told = headers.get("content-length", "0")
    if not told.isdigit() or int(told) > most:
        raise Failure("request_too_large", f"the body is larger than {most} bytes")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _collect(receive, most)
    except TimeoutError:
        raise failure("request_timeout") from None


async def _collect(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        if len(body) > most:
            raise Failure("request_too_large", f"the body is larger than {most} bytes")
        if not message.get("more_body", False):
            return bytes(body)


class Envelope:
    """Passes a response on, but answers in our own envelope where BentoML made up an error body of its own."""

    def __init__(self, send: Send, scope: Scope, caller: Caller) -> None:
        self._send = send
        self._scope = scope
        self._caller = caller
        self._replaced = False
        self.begun = self.ended = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        if message["type"] == "http.response.start":
            ours = any(name.lower() == b"x-request-id" for name, _ in message["headers"])
            if message["status"] >= 400 and not ours:
                self._replaced = self.ended = True
                response = respond(failure("internal_error"), self._caller)
                return await response(self._scope, _nothing, self._send)
            if not ours:
                message["headers"] = [*message["headers"], (b"x-request-id", self._caller.request_id.encode())]
        if not self._replaced:
            self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await self._send(message)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def check_media(headers: Headers) -> None:
    """Raises Failure for a body that is not told to be JSON."""
    media, _, parameters = headers.get("content-type", "").partition(";")
    if media.strip().lower() != "application/json" or not _is_utf8(parameters):
        raise failure("unsupported_media_type")


def _is_utf8(parameters: str) -> bool:
    return parameters.replace('"', "").strip().lower() in ("", "charset=utf-8", "charset=utf8")
