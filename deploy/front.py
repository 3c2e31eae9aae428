"""The http edge, an ASGI application around the service: it answers from the first second to the last.

While the service is loading, dead or draining, nobody waits for it: the refusal is typed and at once. What the
platform would cut becomes a job or a refusal before that.
"""

import asyncio
import json
import re
import sys
from contextlib import suppress

import httpx
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from deploy import limits, protocol
from deploy.backend import Backend
from deploy.jobs import Jobs
from deploy.journal import Job
from models.failure import Failure
from serving.caller import Caller
from serving.errors import OPENAI, describe, failure, respond
from serving.gate import ClientLeft, Keys, check_media, identify, read
from serving.routes import find
from settings import Settings

PROBE_SECONDS = 2.0
MAX_OPEN = 512  # as many as the service takes: each may have a body
JOB = re.compile(r"/jobs/([0-9a-f]{32})")
# What belongs to one connection (RFC 9110, 7.6.1), and what is said to us alone.
ONE_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
SERVERS = ONE_HOP | {b"date", b"server"}
OURS = ONE_HOP | {b"host", b"origin", b"content-length", b"expect", b"prefer", b"idempotency-key", b"x-request-id"}


class Front:
    """`draining`: nothing new is taken. `under_way`: requests that are not answered to their end."""

    def __init__(
        self, backend: Backend, client: httpx.AsyncClient, jobs: Jobs, platform: limits.Platform, settings: Settings
    ) -> None:
        self.draining = False
        self.under_way = 0
        self._backend = backend
        self._client = client
        self._jobs = jobs
        self._platform = platform
        self._max_body = settings.max_body
        self._keys = Keys(settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        caller = identify(scope, headers)
        self.under_way += 1
        try:
            response = await self._answer(scope, headers, caller, receive, send)
            if response is not None:
                await response(scope, receive, send)
        finally:
            self.under_way -= 1

    async def ping(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An application of its own for a load balancer: 204 while loading, 200 when ready, else 503."""
        if scope["type"] == "http":
            await Response(status_code=self._health() if scope["path"] == "/ping" else 404)(scope, receive, send)

    def _health(self) -> int:
        if self.draining or self._backend.failed:
            return 503
        return 200 if self._backend.ready else 204

    async def _answer(
        self, scope: Scope, headers: Headers, caller: Caller, receive: Receive, send: Send
    ) -> Response | None:
        """A response of our own, or None where the service's has been passed on."""
        try:
            if scope["path"] == "/ping":
                return Response(status_code=self._health())
            if scope["path"] == "/livez" and not self._backend.failed and (self.draining or not self._backend.ready):
                return JSONResponse({"alive": True}, headers={"X-Request-Id": caller.request_id})
            if self._backend.failed:
                raise Failure("model_unavailable", self._backend.failed)
            if self.draining:
                raise failure("draining")
            if scope["path"] == "/readyz" and not self._backend.ready:  # we see that it is a moment after it is
                raise failure("model_loading")
            if found := JOB.fullmatch(scope["path"]):
                return await self._manage(scope["method"], found[1], headers, caller)
            if scope["method"] == "POST":
                return await self._take(scope, headers, caller, receive, send)
            return await self._pass(scope, headers, caller, b"", receive, send)
        except ClientLeft:
            return respond(failure("client_closed_request"), caller)
        except Failure as refused:
            response = respond(refused, caller)
            if response.status_code == 405:
                response.headers["Allow"] = "GET, DELETE" if JOB.fullmatch(scope["path"]) else "GET"
            return response
        except Exception as error:
            print(f"zopilot-gpu: a request has failed: {type(error).__name__}", file=sys.stderr, flush=True)
            return respond(failure("internal_error"), caller)

    async def _manage(self, method: str, identity: str, headers: Headers, caller: Caller) -> Response:
        """A job, told or cancelled."""
        if not self._keys.admit(headers):
            raise failure("unauthorized")
        if method not in ("GET", "DELETE"):
            raise failure("method_not_allowed")
        act = self._jobs.cancel if method == "DELETE" else self._jobs.find
        return JSONResponse(
            protocol.tell(await act(identity, protocol.find_owner(headers))),
            headers={"X-Request-Id": caller.request_id},
        )

    async def _take(
        self, scope: Scope, headers: Headers, caller: Caller, receive: Receive, send: Send
    ) -> Response | None:
        """A body is read only of who may come in."""
        if not self._keys.admit(headers):
            raise failure("unauthorized")
        if self.under_way > MAX_OPEN:
            raise failure("queue_full")
        body = await read(headers, receive, self._max_body)
        if not protocol.asks_for_one(headers):
            if not self._backend.ready:
                raise failure("model_loading")
            return await self._pass(scope, headers, caller, body, receive, send)
        if not self._platform.sticky:
            raise Failure("invalid_value", f"Prefer: respond-async: {self._platform.name} forgets which worker has it")
        route = find(caller.path)
        if route is None or route.method != "POST":
            raise failure("method_not_allowed" if route else "not_found")
        check_media(headers)
        return protocol.accept(
            await self._jobs.accept(caller, protocol.find_owner(headers), protocol.find_key(headers), body), caller
        )

    async def _pass(
        self, scope: Scope, headers: Headers, caller: Caller, body: bytes, receive: Receive, send: Send
    ) -> Response | None:
        """Ask the service, and pass on what it answers. Who leaves takes the work along."""
        answer = asyncio.create_task(self._ask(scope, headers, caller, body))
        left = asyncio.create_task(_leave(receive))
        adopted = False
        try:
            await asyncio.wait({answer, left}, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return await self._relay(answer.result(), caller, left, send)
            if left.done():
                raise ClientLeft
            job = await self._defer(caller, headers, body)
            self._jobs.adopt(job, answer)
            adopted = True
            return protocol.accept(job, caller)
        except (httpx.ConnectError, httpx.ConnectTimeout):  # nothing was asked
            raise failure("model_loading") from None
        except httpx.TimeoutException:
            raise failure("deadline_exceeded") from None
        except httpx.TransportError:
            raise failure("interrupted") from None
        finally:
            left.cancel()
            if not adopted:
                answer.cancel()

    @property
    def _patience(self) -> float | None:
        """Seconds that an answer may take to begin."""
        if not self._backend.ready:  # it may be able to say that it is loading, and may not yet
            return PROBE_SECONDS
        return None if self._platform.begin is None else self._platform.begin - limits.RESERVE_SECONDS

    async def _defer(self, caller: Caller, headers: Headers, body: bytes) -> Job:
        """A job of what has not begun to be answered in time; not for clients that would take it for a completion."""
        if not self._backend.ready:
            raise failure("interrupted" if body else "model_loading")
        if caller.path.startswith(OPENAI) or not body:
            raise Failure(
                "deadline_exceeded",
                f"{self._platform.name} waits {self._platform.begin:.0f} seconds for an answer to begin, and this one"
                " has not; stream it, or send Prefer: respond-async",
            )
        return await self._jobs.accept(caller, protocol.find_owner(headers), None, body, running=True)

    async def _ask(self, scope: Scope, headers: Headers, caller: Caller, body: bytes) -> httpx.Response:
        """The service's response, its body still to be read."""
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        passed = [(name, value) for name, value in headers.raw if name not in OURS]
        request = httpx.Request(
            scope["method"],
            self._backend.url,
            headers=[*passed, (b"X-Request-Id", caller.request_id.encode())],
            content=body,
            extensions={"target": scope["raw_path"] + query},  # as it came, dots and all
        )
        return await self._client.send(request, stream=True)

    async def _relay(
        self, response: httpx.Response, caller: Caller, left: "asyncio.Task[None]", send: Send
    ) -> Response | None:
        """Until its end, or until the client leaves."""
        try:
            limits.check_answer(self._platform, int(response.headers.get("content-length", "0")))
            passing = asyncio.create_task(_copy(response, caller, send))
            left.add_done_callback(lambda _: passing.cancel())
            with suppress(asyncio.CancelledError):
                await passing
            return None
        finally:
            await response.aclose()


async def _leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _copy(response: httpx.Response, caller: Caller, send: Send) -> None:
    """What breaks off ends with a typed event where it is a stream of these, else as a broken connection."""
    kept = [(name, value) for name, value in response.headers.raw if name.lower() not in SERVERS]
    await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
    try:
        async for chunk in response.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except httpx.TransportError:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            return
        error = json.dumps({"error": describe(failure("interrupted"), caller.request_id)})
        await send({"type": "http.response.body", "body": f"data: {error}\n\n".encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
