"""One sequence for one asyncio caller: its tokens as they come, then its completion; leaving cancels it."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from models.engine.engine import Engine
from models.engine.sequence import Completion, Sequence


class Stream:
    """`async with Stream(engine, row) as stream: async for token in stream: ...`, then `await stream.completion()`.

    Entering submits, and raises Failure where that is refused. Leaving the block before the end frees the row before
    the engine's next step. The engine never waits for a slow reader: what is not read yet is at most the answer.
    """

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = engine
        self._sequence = sequence
        self._tokens: asyncio.Queue[int | None] = asyncio.Queue()

    async def __aenter__(self) -> "Stream":
        loop = asyncio.get_running_loop()

        def put(token: int | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._tokens.put_nowait, token)

        self._sequence.on_token = put
        self._sequence.future.add_done_callback(lambda _: put(None))
        # Submitting takes a lock and may follow forced tokens, so it is kept off the event loop.
        try:
            await asyncio.to_thread(self._engine.submit, self._sequence)
        except BaseException:
            self.cancel()  # it may be submitted yet
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[int]:
        while (token := await self._tokens.get()) is not None:
            yield token
        self._tokens.put_nowait(None)  # whoever asks again is told as well

    async def completion(self) -> Completion:
        """The final record; raises the Failure that ended it otherwise."""
        return await asyncio.wrap_future(self._sequence.future)

    def cancel(self) -> None:
        """Nobody waits any more; harmless once it is done."""
        self._sequence.future.cancel()
