"""One question about a document that is too long for the model: asked of each of its windows, and one answer made of
theirs. A ticket like any other; what asks, counts and closes is given by models/prompt.py.

A window is asked what the caller has asked, but less strictly (models/leniency.py), as it need not hold every value:
evidence, rules and what the schema wants are for the merged answer to keep. A value that no window has is null, or left
out where null is not allowed; where that is not either, the answer is an error: nothing is invented to fill its place.
Where windows contradict each other it is an error too, unless the caller wants a report: nobody looks for conflicts in
the metadata of an answer that was called a success.

Labels: the windows' log-probabilities are averaged by the letters in each window, and the shares made to sum to 1. That
windows taken alone would have decided otherwise is reported as a conflict, but no error: the probability says it too.
"""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal, Protocol

from models.evidence import Evidence
from models.failure import Failure
from models.leniency import name_some, relax, settle
from models.merging import merge
from models.question import Answer, Question, compact, find_document, replace_document
from models.sightings import Reading
from models.windows import Piece, Window, split

NOTE = "The document is one part of a longer one. Say null for what this part does not hold. "
TINY = 1e-300  # for a probability of 0, which has no logarithm
Shares = dict[str, float]


class Ticket(Protocol):
    """A question on its way."""

    def cancel(self) -> None: ...
    async def answer(self) -> Answer: ...


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
        ask: Callable[[Question], Ticket],
        close: Callable[[Answer], Answer],
        on_conflict: Literal["error", "report"] = "error",
    ) -> None:
        """`room`: tokens that a prompt may have; `measure` counts those of a question, `ask` submits it, `close` judges
        the merged answer. They may raise Failure, and are called from threads, one at a time."""
        document = find_document(question.prompt, question.context)
        assert document is not None
        self._question, self._document, self._room = question, document, room
        # Pieces are of the caller's own strings, and be that the prompt.
        self._pages = (question.prompt,) if document.shift else document.pages
        self._note = NOTE if question.labels is None else ""
        self._schema = question.json_schema and relax(question.json_schema)
        self._measure, self._ask, self._close = measure, ask, close
        self._on_conflict = on_conflict
        self._tickets: list[Ticket] = []
        self._gone = False

    def cancel(self) -> None:
        self._gone = True
        for ticket in self._tickets:
            ticket.cancel()

    async def answer(self) -> Answer:
        """Split, ask, wait, merge and close; raises Failure. Afterwards no window is on its way, come what may."""
        tasks: list[asyncio.Task[Answer]] = []
        try:
            windows = await asyncio.to_thread(self._split)
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
        part.json_schema = self._schema
        part.require_evidence, part.abstain_below = False, None
        return part

    def _check(self) -> None:
        if self._gone:
            raise asyncio.CancelledError

    async def _submit(self, part: Question, tasks: Sequence[asyncio.Task[Answer]]) -> Ticket:
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

    def _put(self, part: Question) -> Ticket:
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
            seconds=max(each.seconds for each in answers),
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
        if merged.conflicts and self._on_conflict == "error":
            named = name_some(merged.conflicts)
            raise Failure(
                "windows_conflict", f'parts of the document differ about {named}; on_conflict "report" shows how'
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
        """The label that the windows together make the most probable."""
        told: list[Shares] = [json.loads(answer.output)["probabilities"] for answer in answers]
        texts = ("".join(piece.text(self._pages) for piece in window.pieces) for window in windows)
        weights = [len("".join(text.split())) or 1 for text in texts]
        shares = pool(told, weights)
        best = max(shares, key=shares.__getitem__)
        labels = agreed([answer.detail.get("labels", {}) for answer in answers])
        least = (
            labels.get("abstain_below", 0.0) if self._question.abstain_below is None else self._question.abstain_below
        )
        abstained = shares[best] < least
        none = self._question.none_of_these and best == list(shares)[-1]
        output = {
            "label": None if abstained or none else best,
            "probability": shares[best],
            "probabilities": shares,
            "abstained": abstained,
        }
        tops = [max(each, key=each.__getitem__) for each in told]
        candidates = [{"value": top, "window": at, "probability": told[at][top]} for at, top in enumerate(tops)]
        conflicts = [{"pointer": "/label", "candidates": candidates}] if set(tops) != {best} else []
        if "scores" in answers[0].detail.get("labels", {}):
            labels["scores"] = mean([answer.detail["labels"]["scores"] for answer in answers], weights)
        detail = {"labels": labels, "windows": self._places(windows) | {"conflicts": conflicts}}
        return json.dumps(output, ensure_ascii=False), detail


def agreed(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in all."""
    return {name: value for name, value in told[0].items() if all(each.get(name) == value for each in told)}


def pool(shares: Sequence[Shares], weights: Sequence[float]) -> Shares:
    """Probabilities from several, by the weighted mean of their logarithms."""
    logs = mean([{name: math.log(max(share, TINY)) for name, share in each.items()} for each in shares], weights)
    most = max(logs.values())
    raised = {name: math.exp(log - most) for name, log in logs.items()}
    return {name: share / math.fsum(raised.values()) for name, share in raised.items()}


def mean(values: Sequence[Shares], weights: Sequence[float]) -> Shares:
    """The weighted mean by name; all have the same names."""
    total = math.fsum(weights)
    return {
        name: math.fsum(each[name] * weight for each, weight in zip(values, weights, strict=True)) / total
        for name in values[0]
    }
