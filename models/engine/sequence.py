"""One prompt on its way through the engine: ids in, ids out. Knows nothing of text or of the model."""

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import torch
from llguidance import LLMatcher

from models.failure import Failure

FinishReason = Literal["stop", "length"]
_numbers = count(1)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: temperature 0 is greedy; a seed makes a sampled answer repeatable."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Completion:
    """What the engine made of a sequence: `tokens` without the end-of-turn token, times in seconds."""

    tokens: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    waited: float
    generated: float


@dataclass(eq=False)
class Sequence:
    """State of one row. The caller sets the first block and reads `future`; the engine's thread owns the rest.

    `deadline` is on the monotonic clock. `on_token` is called in the engine's thread and must not block.
    Cancel by `future.cancel()`: the row is gone before the next step.
    """

    prompt: list[int]
    sampling: Sampling
    matcher: LLMatcher | None = None
    deadline: float = float("inf")
    on_token: Callable[[int], None] | None = None
    future: Future[Completion] = field(default_factory=Future)
    number: int = field(default_factory=lambda: next(_numbers))

    computed: int = 0  # tokens whose keys and values are in the cache
    output: list[int] = field(default_factory=list)
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            self.generator = torch.Generator()
            if self.sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.sampling.seed)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def capacity(self) -> int:
        """KV tokens this row may come to need."""
        return len(self.prompt) + self.sampling.max_new_tokens

    def pending(self, limit: int) -> list[int]:
        """The next tokens to compute, at most `limit`: of the prompt, and of the output those chosen or forced last."""
        end = self.computed + limit
        made = max(self.computed - len(self.prompt), 0), max(end - len(self.prompt), 0)
        return self.prompt[self.computed : end] + self.output[slice(*made)]

    def finish(self, reason: FinishReason) -> None:
        now = time.monotonic()
        started = self.started or now
        self._settle(Completion(self.output, reason, len(self.prompt), started - self.submitted, now - started))

    def fail(self, failure: Failure) -> None:
        self._settle(failure)

    def _settle(self, outcome: Completion | Failure) -> None:
        try:
            if isinstance(outcome, Failure):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:
            pass  # cancelled in the meantime: nobody waits for it
