"""Rows for one asyncio caller: their tokens as they come. Leaving cancels them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Listing
from functools import partial

from models.engine.engine import Engine
from models.engine.sequence import Sequence


class Stream:
    """`submit` in any thread, then `async for at, token in stream` in one loop: a token of row `at`, None at its end,
    whose outcome is then in the row's future.

    `cancel` frees all rows before the engine's next step. The engine never waits for a slow reader: what is not read
    yet is at most the answer.
    """

    def __init__(self, engine: Engine, rows: Listing[Sequence]) -> None:
        self._engine = engine
        self._rows = rows
        self._heard: deque[tuple[int, int | None]] = deque()
        self._wake: Callable[[], object] = lambda: None
        self._open = len(rows)

    def submit(self) -> None:
        """All rows, or none and a Failure. Takes a lock and may follow forced tokens: keep it off the event loop."""
        try:
            for at, row in enumerate(self._rows):
                row.on_token = partial(self._put, at)
                row.future.add_done_callback(partial(self._end, at))
                self._engine.submit(row)
        except BaseException:
            self.cancel()
            raise

    def _put(self, at: int, token: int | None) -> None:
        self._heard.append((at, token))
        self._wake()

    def _end(self, at: int, _: object) -> None:
        self._put(at, None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, int | None]]:
        loop, fresh = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(fresh.set)

        self._wake = wake
        while self._open:
            fresh.clear()
            while self._heard:
                at, token = self._heard.popleft()
                self._open -= token is None
                yield at, token
            if self._open:
                await fresh.wait()

    def cancel(self) -> None:
        """Nobody waits any more; harmless once they are done."""
        for row in self._rows:
            row.future.cancel()
