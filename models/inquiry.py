"""One question about a document that is too long for the model: asked of each of its windows, and one answer made of
theirs. A ticket like any other; what asks, counts and closes is given by models/prompt.py.

A window is asked what the caller has asked, but less strictly (models/leniency.py), as it need not hold every value:
evidence, rules and what the schema wants are for the merged answer to keep. A value that no window has is null, or left
out where null is not allowed; where that is not either, the answer is an error: nothing is invented to fill its place.
Where windows contradict each other, or leave open whether they mean one thing or two, it is an error too, unless the
caller wants a report: nobody looks for conflicts in the metadata of an answer that was called a success.
Of labels see models/pooling.py.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from typing import Any, Literal

from models.evidence import Evidence
from models.failure import Failure
from models.leniency import name_some, relax, settle
from models.merging import merge
from models.pooling import decide
from models.question import Answer, Question, compact, find_document, replace_document
from models.sightings import Reading
from models.ticket import Pending
from models.windows import Piece, Window, split

NOTE = "The document is one part of a longer one. Say null for what this part does not hold. "
SPLITTERS = ThreadPoolExecutor(1, "split")  # seconds each: short answers, closed in other threads, must not wait for it


class Pages(list[str]):
    """Pages of a longer document, and their numbers in it, the first being 1."""

    numbers: Sequence[int] = ()


class Inquiry:
    """A question on its way to all windows. Cancelling it frees all their rows."""

    def __init__(
        self,
        question: Question,
        room: int,
        measure: Callable[[Question], int],
        ask: Callable[[Question], Pending],
        close: Callable[[Answer], Answer],
        on_conflict: Literal["error", "report"] = "error",
        deadline: float = math.inf,
    ) -> None:
        """`room`: tokens that a prompt may have; `measure` counts those of a question, `ask` submits it, `close` judges
        the merged answer; they may raise Failure, and are called from threads. `deadline` is on the monotonic clock."""
        document = find_document(question.prompt, question.context)
        assert document is not None
        self._question, self._document, self._room = question, document, room
        # Pieces are of the caller's own strings, and be that the prompt.
        self._pages = (question.prompt,) if document.shift else document.pages
        self._note = NOTE if question.labels is None else ""
        self.schema = question.json_schema and relax(question.json_schema)
        self._measure, self._ask, self._close = measure, ask, close
        self._on_conflict, self._deadline = on_conflict, deadline
        self._tickets: list[Pending] = []
        self._parts = 0
        self._gone = False
        self._since = time.monotonic()

    @property
    def progress(self) -> float:
        return sum(ticket.progress for ticket in self._tickets) / max(self._parts, 1)

    def cancel(self) -> None:
        self._gone = True
        for ticket in self._tickets:
            ticket.cancel()

    async def answer(self) -> Answer:
        """Split, ask, wait, merge and close; raises Failure. Afterwards no window is on its way, come what may."""
        tasks: list[asyncio.Task[Answer]] = []
        try:
            windows = await asyncio.get_running_loop().run_in_executor(SPLITTERS, self._split)
            self._parts = len(windows)
            for window in windows:
                ticket = await self._submit(self.part(window.pieces), tasks)
                tasks.append(asyncio.create_task(ticket.answer()))
            answers = await asyncio.gather(*tasks)
            return await asyncio.to_thread(self._finish, windows, answers)
        finally:
            self.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _split(self) -> list[Window]:
        def move(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
            by = self._document.shift
            return tuple(replace(piece, start=piece.start + by, end=piece.end + by) for piece in pieces)

        def count(pieces: tuple[Piece, ...]) -> int:
            self._check()
            return self._measure(self.part(move(pieces)))

        found = [move(window.pieces) for window in split(self._document.pages, self._room, count)]
        # Of blanks nothing need be asked.
        filled = [pieces for pieces in found if any(piece.text(self._pages).strip() for piece in pieces)]
        return [Window(number, pieces) for number, pieces in enumerate(filled or found[:1])]

    def part(self, pieces: Sequence[Piece]) -> Question:
        """The question to one window."""
        part = copy(self._question)
        pages = Pages(piece.text(self._pages) for piece in pieces) or Pages([""])
        pages.numbers = [piece.page + 1 for piece in pieces] or [1]
        part.prompt, part.context = replace_document(part.prompt, part.context, pages)
        part.prompt = self._note + part.prompt
        part.json_schema = self.schema
        part.require_evidence, part.abstain_below = False, None
        return part

    def _check(self) -> None:
        if self._gone:
            raise asyncio.CancelledError
        if time.monotonic() > self._deadline:
            raise Failure("deadline_exceeded", "the document was not read in time")

    async def _submit(self, part: Question, tasks: Sequence[asyncio.Task[Answer]]) -> Pending:
        """Where the queue is full, and of our own windows too, one of them must be answered first."""
        while True:
            self._check()
            for task in tasks:
                if task.done():
                    task.result()
            try:
                return await asyncio.to_thread(self._put, part)
            except Failure as refused:
                running = [task for task in tasks if not task.done()]
                if refused.code != "queue_full" or not running:
                    raise
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _put(self, part: Question) -> Pending:
        ticket = self._ask(part)
        self._tickets.append(ticket)
        if self._gone:  # while it was submitted
            ticket.cancel()
        return ticket

    def _finish(self, windows: list[Window], answers: list[Answer]) -> Answer:
        output, detail = (self._unite if self._question.labels is None else self._decide)(windows, answers)
        answer = Answer(
            output=output,
            model=answers[0].model,
            finish_reason=next((each.finish_reason for each in answers if each.finish_reason != "stop"), "stop"),
            prompt_tokens=sum(each.prompt_tokens for each in answers),
            completion_tokens=sum(each.completion_tokens for each in answers),
            seconds=time.monotonic() - self._since,
            detail=detail,
        )
        return self._close(answer)

    def _unite(self, windows: list[Window], answers: list[Answer]) -> tuple[str, dict[str, Any]]:
        """JSON by the rules of models/merging.py."""
        readings = [
            Reading(window, json.loads(answer.output), self._found(window, answer), answer.detail.get("confidence", {}))
            for window, answer in zip(windows, answers, strict=True)
        ]
        merged = merge(readings, self._pages)
        if self._on_conflict == "error" and (left := [*merged.conflicts, *merged.uncertain]):
            named = name_some(left, self._question.json_schema or {})
            raise Failure(
                "windows_conflict",
                f'parts of the document differ about {named}, or may say it twice; on_conflict "report" shows it',
            )
        for pointer in settle(merged.value, self._question.json_schema or {}):
            del merged.origin[pointer]
        detail = merged.tell(readings)
        detail["windows"] = self._places(windows) | detail["windows"]
        return compact(merged.value), detail

    def _found(self, window: Window, answer: Answer) -> dict[str, Evidence]:
        """The evidence for one window's answer by pointer, with places in the caller's own strings."""
        found = {}
        for each in (Evidence(**told) for told in answer.detail.get("evidence", ())):
            if each.start is not None and each.end is not None:
                piece = window.pieces[each.page or 0]
                by = piece.start
                if self._document.shift:  # so far it is a place in the window's prompt
                    by -= len(self._note) + self._document.shift
                page = piece.page if self._document.paged else None
                each = replace(each, page=page, start=each.start + by, end=each.end + by)
            found[each.pointer] = each
        return found

    def _places(self, windows: list[Window]) -> dict[str, Any]:
        paged = self._document.paged
        pieces = [
            [{"page": piece.page if paged else None, "start": piece.start, "end": piece.end} for piece in window.pieces]
            for window in windows
        ]
        return {"count": len(windows), "pieces": pieces}

    def _decide(self, windows: list[Window], answers: list[Answer]) -> tuple[str, dict[str, Any]]:
        """The label that the windows together make the most probable; a window counts by its letters."""
        texts = ("".join(piece.text(self._pages) for piece in window.pieces) for window in windows)
        output, labels, conflicts = decide(self._question, answers, [len("".join(text.split())) or 1 for text in texts])
        return output, {"labels": labels, "windows": self._places(windows) | {"conflicts": conflicts}}
