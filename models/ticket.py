"""A sequence, or several, on their way to an answer, for whoever waits for it. Knows nothing of what was asked."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from models.engine.sequence import Completion, Sequence
from models.question import Answer

Asked = TypeVar("Asked")


class Pending(Protocol):
    """Any question on its way."""

    @property
    def progress(self) -> float: ...
    def cancel(self) -> None: ...
    async def answer(self) -> Answer: ...


@dataclass(frozen=True)
class Ticket(Generic[Asked]):
    """Cancelling it frees its row before the engine's next step. `close` makes the answer, or raises Failure."""

    sequence: Sequence
    asked: Asked
    close: Callable[[Completion, Asked], Answer]

    @property
    def progress(self) -> float:
        return self.sequence.progress

    def cancel(self) -> None:
        self.sequence.future.cancel()

    async def answer(self) -> Answer:
        """Wait for the completion and close it, which may take a while where the document is long; raises Failure."""
        completion = await asyncio.wrap_future(self.sequence.future)
        return await asyncio.to_thread(self.close, completion, self.asked)
