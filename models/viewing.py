"""A question with images on its way: they are read first, then it is asked. A ticket like any other.

Knows nothing of how a question is asked: that is given by models/prompt.py.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from models import vision
from models.failure import Failure
from models.picture import BLIND, Picture
from models.question import Answer
from models.ticket import Pending
from models.vision import Vision

EVIDENCE = "of the text alone"


class Viewing:
    """Cancelling it frees its row, or keeps it from being asked."""

    def __init__(
        self,
        eyes: Vision | None,
        urls: Mapping[str, object],
        ask: Callable[[list[Picture]], Pending],
        deadline: float,
    ) -> None:
        """Failure where the model has no eyes, or one of `urls` can be no image. `ask` is called from a thread and may
        raise Failure; `deadline` is on the monotonic clock."""
        self._eyes, self._urls = eyes, _check(eyes, urls)
        self._ask, self._deadline = ask, deadline
        self._ticket: Pending | None = None
        self._looking: asyncio.Future[list[Picture]] | None = None
        self._gone = False

    @property
    def progress(self) -> float:
        return 0.0 if self._ticket is None else self._ticket.progress

    def cancel(self) -> None:
        self._gone = True
        if self._looking is not None:
            self._looking.cancel()
        if self._ticket is not None:
            self._ticket.cancel()

    async def answer(self) -> Answer:
        """Read, ask and wait; raises Failure."""
        self._looking = asyncio.ensure_future(look(self._eyes, self._urls, self._deadline))
        if self._gone:
            self._looking.cancel()
        pictures = await self._looking
        if self._gone:
            raise asyncio.CancelledError
        ticket = await asyncio.to_thread(self._put, pictures)
        answer = await ticket.answer()
        told = {"tokens": [picture.tokens for picture in pictures], "evidence": EVIDENCE}
        return replace(answer, detail=answer.detail | {"images": told})

    def _put(self, pictures: list[Picture]) -> Pending:
        try:
            self._ticket = self._ask(pictures)
        except Failure as refused:
            if refused.code != "context_length_exceeded":
                raise
            why = f"{refused.message}; beside images a document is not split"
            raise Failure(refused.code, why) from None
        if self._gone:  # while it was asked
            self._ticket.cancel()
        return self._ticket


async def look(
    eyes: Vision | None, urls: Mapping[str, object], deadline: float, few: Collection[str] = ()
) -> list[Picture]:
    """A picture of each image, in their order; `few`: those that are to take few tokens. Failure, which names it, where
    one is none, the model has no `eyes`, or the time is up."""
    checked = _check(eyes, urls)
    if eyes is None or not checked:
        return []
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await eyes.read(checked, few)
    except TimeoutError:
        raise Failure("deadline_exceeded", "the images were not read in time") from None


def _check(eyes: Vision | None, urls: Mapping[str, object]) -> dict[str, str]:
    if eyes is None and urls:
        raise Failure("invalid_value", BLIND)
    return vision.check(urls)
