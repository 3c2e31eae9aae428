"""Who waits for an answer, and what is under way for them. Knows neither routes nor what is asked."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol


class Ticket(Protocol):
    """A request on its way through a model. `progress`: the share that is done of as much work as it may take."""

    @property
    def progress(self) -> float: ...
    def cancel(self) -> None: ...
    async def answer(self) -> Any: ...


class Wait:
    """A ticket for what has to be waited for before there can be another; cancelling it ends that."""

    progress = 0.0

    def __init__(self, awaited: Coroutine[Any, Any, Any]) -> None:
        self._task = asyncio.ensure_future(awaited)

    def cancel(self) -> None:
        self._task.cancel()

    async def answer(self) -> Any:
        return await self._task


class Caller:
    """Who waits for one answer of `path`. Leaving cancels the ticket, whether it is held already or not."""

    def __init__(self, request_id: str, path: str = "") -> None:
        self.request_id = request_id
        self.path = path
        self.since = time.monotonic()
        self.gone = False
        self.outcome = ""  # the code of the error that it was answered
        self._ticket: Ticket | None = None

    @property
    def progress(self) -> float | None:
        return None if self._ticket is None else self._ticket.progress

    def hold(self, ticket: Ticket) -> None:
        self._ticket = ticket
        if self.gone:
            ticket.cancel()

    def leave(self) -> None:
        self.gone = True
        if self._ticket is not None:
            self._ticket.cancel()
