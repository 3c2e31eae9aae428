"""Who asks when: some clients one question after the other, or arrivals by chance at a rate. Knows no wire."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.wire import Answer
from benchmarks.workload import Question

Ask = Callable[[Question, float], Awaitable[Answer]]


@dataclass(frozen=True)
class Load:
    """Closed loop of so many clients, or, where there are none, Poisson arrivals at so many a second."""

    clients: int = 0
    rate: float = 0.0

    @property
    def title(self) -> str:
        return f"closed loop, {self.clients} clients" if self.clients else f"open loop, {self.rate:g} arrivals/s"


@dataclass(frozen=True)
class Run:
    """One load on one server: an answer a question, and the seconds until the last."""

    seconds: float
    answers: tuple[Answer, ...]


async def run(load: Load, questions: Sequence[Question], ask: Ask, seed: str, limit: float) -> Run:
    """Ask every question once; what has no answer after `limit` seconds has failed."""
    slots: list[Answer | None] = [None] * len(questions)
    began = time.perf_counter()
    if load.clients:
        work = _closed(load.clients, questions, ask, slots)
    else:
        work = _open(arrivals(load.rate, len(questions), seed), questions, ask, slots)
    tasks = {asyncio.create_task(coroutine) for coroutine in work}
    done, late = await asyncio.wait(tasks, timeout=limit)
    seconds = time.perf_counter() - began
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()  # a fault of ours is raised, not counted
    never = Answer("failed", seconds, detail=f"no answer when the run was ended at {limit:g} s")
    return Run(seconds, tuple(slot or never for slot in slots))


def _closed(
    clients: int, questions: Sequence[Question], ask: Ask, slots: list[Answer | None]
) -> list[Coroutine[Any, Any, None]]:
    waiting = deque(enumerate(questions))

    async def client() -> None:
        while waiting:
            place, question = waiting.popleft()
            slots[place] = await ask(question, time.perf_counter())

    return [client() for _ in range(clients)]


def _open(
    delays: Sequence[float], questions: Sequence[Question], ask: Ask, slots: list[Answer | None]
) -> list[Coroutine[Any, Any, None]]:
    began = time.perf_counter()

    async def arrive(place: int) -> None:
        due = began + delays[place]
        await asyncio.sleep(due - time.perf_counter())
        slots[place] = await ask(questions[place], due)

    return [arrive(place) for place in range(len(questions))]


def arrivals(rate: float, count: int, seed: str) -> list[float]:
    """Seconds from the start at which each question is due: a Poisson process, the same for the same seed."""
    chance = random.Random(f"arrivals {seed}")
    times: list[float] = []
    for _ in range(count):
        times.append((times[-1] if times else 0.0) + chance.expovariate(rate))
    return times
