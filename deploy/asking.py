"""Asks the service for a job: waits out what passes, asks once more where the service died, else says why not.

Knows neither RunPod nor what is asked.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from deploy import results
from deploy.backend import Backend, find_wait
from deploy.inputs import Request
from models.failure import Failure
from serving.errors import failure

TICK_SECONDS = 0.1
CONNECT_SECONDS = 5.0
NOTICE_SECONDS = 3.0  # after which it is known that the service has died: until then it would be asked to no end
MARGIN_SECONDS = 60.0  # that a service may be later than its own deadline
FRAME = "\n\n"
ERROR = 'data: {"error":'

Tell = Callable[[Any], Awaitable[None]]


class Asker:
    """Has one client for all; `seconds`: how long a job may wait for its turn, and then take."""

    def __init__(self, backend: Backend, seconds: float) -> None:
        self._backend = backend
        self._seconds = seconds
        self._client = httpx.AsyncClient(
            base_url=backend.url,
            headers=backend.headers,
            timeout=httpx.Timeout(seconds + MARGIN_SECONDS, connect=CONNECT_SECONDS),
            # No connection is used twice: one to a service that has died would look as if it died again.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    async def wait(self, seconds: float = float("inf")) -> None:
        """Until the service is ready; raises Failure where it never will be, or not in time."""
        end = time.monotonic() + seconds
        while not self._backend.ready:
            if self._backend.failed:
                raise failure("model_unavailable")
            if time.monotonic() > end:
                raise failure("model_loading")
            await asyncio.sleep(TICK_SECONDS)

    async def ask(self, request: Request, name: str, tell: Tell) -> Any:
        """The answer to `request`, which goes by `name`; a stream's pieces are told as they come, and are a list at the
        end. Raises Failure."""
        end = time.monotonic() + self._seconds
        died = False
        said: list[str] = []
        while True:
            await self.wait(end - time.monotonic())
            try:
                return await self._once(request, name, tell, said)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if time.monotonic() > end:
                    raise failure("model_loading") from None
                pause = NOTICE_SECONDS
            except httpx.TimeoutException:
                raise failure("deadline_exceeded") from None
            except httpx.TransportError:
                if died or said:
                    raise failure("interrupted") from None
                died, pause = True, NOTICE_SECONDS
            except Failure as refused:
                if refused.retry_after is None or time.monotonic() + refused.retry_after > end:
                    raise
                pause = refused.retry_after
            await asyncio.sleep(pause)

    async def _once(self, request: Request, name: str, tell: Tell, said: list[str]) -> Any:
        method, headers = ("GET", {}) if request.body is None else ("POST", {"Content-Type": "application/json"})
        headers["X-Request-Id"] = name
        url = httpx.URL(self._backend.url).copy_with(path=request.path)
        async with self._client.stream(method, url, content=request.body, headers=headers) as response:
            if response.status_code != 200:
                raise _read_refusal(response, await response.aread())
            if response.headers["content-type"].startswith("text/event-stream"):
                await _pass_on(response, tell, said)
                return said
            answer = await _read(response)
        if request.listed:
            await tell(answer)
        return [answer] if request.listed else answer

    async def close(self) -> None:
        await self._client.aclose()


async def _pass_on(response: httpx.Response, tell: Tell, said: list[str]) -> None:
    """Whole events, as many as have come. One that is an error is told as well, and is the end."""
    rest = ""
    async for text in response.aiter_text():
        whole, _, rest = (rest + text).rpartition(FRAME)
        if whole:
            said.append(whole + FRAME)
            await tell(said[-1])
        for event in whole.split(FRAME):
            if event.startswith(ERROR):
                told = results.parse(event.removeprefix("data: ").encode())
                raise _as_failure(told, None)
    if rest or not said or not said[-1].endswith(f"[DONE]{FRAME}"):
        raise failure("interrupted")


async def _read(response: httpx.Response) -> Any:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > 4 * results.MAX_RESULT:  # which is refused in any writing
            raise results.too_large("the answer of a job", len(body), results.MAX_RESULT)
    try:
        return results.parse(bytes(body))
    except ValueError:
        raise failure("internal_error") from None


def _read_refusal(response: httpx.Response, body: bytes) -> Failure:
    """What the service refused with, in either envelope; `retry_after` where it is worth waiting for."""
    try:
        return _as_failure(results.parse(body), find_wait(response))
    except ValueError:
        return failure("internal_error")


def _as_failure(told: Any, retry_after: float | None) -> Failure:
    """Of an error in one of our envelopes; ValueError for anything else."""
    match told:
        case {"error": {"code": str(code), "message": str(message)}}:
            return Failure(code, message, retry_after)
        case {"error": str(message), "error_type": str(code)}:
            return Failure(code, message, retry_after)
    raise ValueError("not an error of the service")
