"""A request on its way through its route: who waits, what was asked, and its ticket or why there is none.

Knows neither what is asked nor how it is answered.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.failure import Failure
from serving.errors import failure, respond


class Ticket(Protocol):
    """Work on its way through the engine; what it turns into is the route's to know."""

    def cancel(self) -> None: ...
    async def answer(self) -> Any: ...


class Caller:
    """Who waits for one answer. Leaving cancels the ticket, whether it is held already or not."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.since = time.monotonic()
        self.gone = False
        self._ticket: Ticket | None = None

    def hold(self, ticket: Ticket) -> None:
        self._ticket = ticket
        if self.gone:
            ticket.cancel()

    def leave(self) -> None:
        self.gone = True
        if self._ticket is not None:
            self._ticket.cancel()


@dataclass(eq=False)
class Arrival:
    """`asked`, the route's own body, or a `failure` on its way in; a `ticket` or a `failure` on its way out."""

    caller: Caller
    asked: Any = None
    ticket: Any = None
    failure: Failure | None = None

    def admitted(self) -> Any:
        """The ticket; raises the Failure that there is instead."""
        if self.ticket is None:
            raise self.failure or failure("internal_error")
        return self.ticket


async def receive(request: Request, read: Callable[[bytes], Any]) -> Arrival:
    """What `read` makes of a request's body, or its Failure."""
    caller: Caller = request.scope["caller"]
    try:
        return Arrival(caller, read(await request.body()))
    except Failure as refused:
        return Arrival(caller, failure=refused)


async def settle(arrival: Arrival, write: Callable[[Any], dict[str, Any]], path: str = "") -> Response:
    """Wait for the ticket's answer and `write` it as JSON; a Failure in the envelope of `path`."""
    caller = arrival.caller
    try:
        body = write(await arrival.admitted().answer())
    except Failure as refused:
        return respond(refused, caller.request_id, path)
    except asyncio.CancelledError:
        if not caller.gone:
            caller.leave()
            raise
        return respond(failure("client_closed_request"), caller.request_id, path)
    return JSONResponse(body, headers={"X-Request-Id": caller.request_id})
