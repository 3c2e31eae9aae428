"""Work that threads do and a request waits for. Knows nothing of what the work is."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from models.failure import Failure

Answer = TypeVar("Answer")


class Errand(Generic[Answer]):
    """One request's ticket. Who works asks whether it is `gone` and settles it once; `settled` is told when it is."""

    def __init__(self, deadline: float, settled: Callable[[], None]) -> None:
        self._deadline = deadline
        self._left = False
        self.progress = 0.0  # the share of the work that is done
        self._future: Future[Answer] = Future()
        self._future.set_running_or_notify_cancel()  # so that one who leaves cannot settle it
        self._future.add_done_callback(lambda _: settled())

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more."""
        return self._left or time.monotonic() > self._deadline

    @property
    def settled(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        self._left = True

    def finish(self, answer: Answer) -> None:
        self._future.set_result(answer)

    def fail(self, failure: Failure) -> None:
        """Unless it is settled already."""
        if not self._future.done():
            self._future.set_exception(failure)

    def end(self) -> None:
        """What is due when its work is over: one that is not settled yet fails by its own deed, or by ours."""
        code = "client_closed_request" if self._left else "deadline_exceeded" if self.gone else "internal_error"
        self.fail(Failure(code, ""))

    async def answer(self) -> Answer:
        """Wait for it; Failure if there is none, or none in time."""
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await asyncio.wrap_future(self._future)
        except TimeoutError:
            raise Failure("deadline_exceeded", "") from None
