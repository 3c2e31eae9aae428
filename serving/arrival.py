"""What comes in at a route and what becomes of it: one arrival, from its body to its response. Knows no route.

BentoML calls two hooks of a route's bodies: `receive` is what `from_http_request` does, `settle` what
`to_http_response` does. Whoever leaves in between cancels what was begun for them.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.failure import Failure
from serving.caller import Caller, Wait
from serving.errors import failure, respond


@dataclass(eq=False)
class Arrival:
    """`asked`, the route's own body, or why there is none on its way in; a `ticket` or why there is none on its way
    out."""

    caller: Caller
    asked: Any = None
    ticket: Any = None
    failure: Failure | None = None


async def receive(request: Request, parse: Callable[[bytes], Any]) -> Arrival:
    """The request's body as `parse` reads it, or as the Failure that this raises."""
    caller: Caller = request.scope["caller"]
    try:
        return Arrival(caller, parse(await request.body()))
    except Failure as refused:
        return Arrival(caller, failure=refused)


async def prepare(arrival: Arrival, awaited: Coroutine[Any, Any, Any]) -> Any:
    """What is needed before the arrival can be admitted. None where that fails, or its caller leaves, which ends it:
    then the arrival has its failure."""
    wait = Wait(awaited)
    arrival.caller.hold(wait)
    try:
        return await wait.answer()
    except Failure as refused:
        arrival.failure = refused
    except asyncio.CancelledError:
        if not arrival.caller.gone:
            raise
        arrival.failure = failure("client_closed_request")


async def settle(arrival: Arrival, write: Callable[[Any], Response | dict[str, Any]]) -> Response:
    """The response: what `write` makes of the ticket's answer (a dict is a JSON body), or the error in its envelope."""
    caller = arrival.caller
    try:
        if arrival.ticket is None:
            raise arrival.failure or failure("internal_error")
        written = write(await arrival.ticket.answer())
    except Failure as refused:
        return respond(refused, caller)
    except asyncio.CancelledError:
        if not caller.gone:
            caller.leave()
            raise
        return respond(failure("client_closed_request"), caller)
    if isinstance(written, Response):
        return written
    return JSONResponse(written, headers={"X-Request-Id": caller.request_id})
