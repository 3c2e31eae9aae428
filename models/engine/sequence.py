"""One prompt on its way through the engine: ids in, ids out. Knows nothing of text or of the model."""

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Listing
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import torch

from models.engine.closing import Guard
from models.engine.matcher import Matcher
from models.engine.speculation import LONGEST, Lookup
from models.failure import Failure
from models.picture import Picture, Shown, locate

FinishReason = Literal["stop", "closed", "length"]
Lane = Literal["interactive", "bulk"]
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
    """What the engine made of a sequence: `tokens` without the end-of-turn token, times in seconds.

    `finish_reason`: "stop" by itself; "closed": whole, but ended for want of budget; "length": cut.
    `logprobs`: of each token among all that the grammar allowed, 0 where there was no choice; `probed`: the answers to
    the sequence's `probes`.
    """

    tokens: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    waited: float
    generated: float
    logprobs: list[float] = field(default_factory=list)
    probed: list[list[float]] = field(default_factory=list)


@dataclass(eq=False)
class Sequence:
    """State of one row. The caller sets the first block and reads `future`; the engine's thread owns the rest.

    `deadline` is on the monotonic clock. `on_token` is called in the engine's thread, for tokens forced at
    the start in the submitter's, and must not block. With `probes` it says nothing: for each of the prompt's last
    tokens, the ids whose log-probabilities behind it are asked for. `tops`: how many alternatives to each of its own
    are asked for. `follows`: how many leading tokens another one has that was submitted before. `pictures`: those whose
    ids stand in the prompt, in their order. `keyword`: what of the schema is named where the matcher breaks down.
    Cancel by `future.cancel()`: the row is gone before the next step.
    """

    prompt: list[int]
    sampling: Sampling
    matcher: Matcher | None = None
    deadline: float = float("inf")
    lane: Lane = "interactive"
    guard: Guard | None = None
    on_token: Callable[[int], None] | None = None
    probes: list[list[int]] = field(default_factory=list)
    tops: int = 0
    follows: int = 0
    keyword: str = ""
    pictures: Listing[Picture] = ()
    future: Future[Completion] = field(default_factory=Future)
    number: int = field(default_factory=lambda: next(_numbers))

    ids: list[int] = field(init=False)  # the prompt and what has been made of the answer
    shown: list[Shown] = field(init=False)  # where in the prompt its pictures stand
    computed: int = 0  # of these, tokens whose keys and values are in the cache
    turn: float = 0.0  # the scheduler's: who has the least is served first
    cost: int = 0  # at which it was admitted
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0  # when its first token was chosen
    generator: torch.Generator | None = None
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)  # the best first; of what is forced none
    probed: list[list[float]] = field(default_factory=list)
    lookup: Lookup = field(default_factory=Lookup)

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)
        self.shown = locate(self.prompt, self.pictures) if self.pictures else []
        if self.sampling.temperature > 0:
            self.generator = torch.Generator()
            if self.sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.sampling.seed)

    @property
    def output(self) -> list[int]:
        return self.ids[len(self.prompt) :]

    @property
    def made(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - len(self.prompt)

    @property
    def left(self) -> int:
        """Tokens that the answer may still take."""
        return self.sampling.max_new_tokens - self.made

    @property
    def due(self) -> int:
        """Tokens to compute before the next one can be chosen: a piece of the prompt, or those made last."""
        return len(self.ids) - self.computed

    @property
    def reusable(self) -> int:
        """Leading tokens that need not be computed where that was done before: all but those asked about."""
        return len(self.ids) - max(len(self.probes), 1)

    @property
    def capacity(self) -> int:
        """KV tokens this row may come to need."""
        return len(self.prompt) + self.sampling.max_new_tokens

    @property
    def progress(self) -> float:
        """The share of its tokens, with all that the answer may take, that are computed."""
        return 1.0 if self.future.done() else self.computed / self.capacity

    @property
    def ended(self) -> bool:
        """Whether the grammar leaves nothing to say; Failure where it has broken down, which it calls stopped too."""
        if self.matcher is None or not self.matcher.is_stopped():
            return False
        if self.matcher.is_error():
            raise self._outgrown()
        return True

    def is_of(self, vocabulary: int) -> bool:
        """Whether all ids of the prompt, but for those of its pictures, are of a vocabulary of this size."""
        tokens = [token for token in self.prompt if token >= 0] if self.shown else self.prompt
        return bool(tokens) and 0 <= min(tokens) <= max(tokens) < vocabulary

    def _outgrown(self) -> Failure:
        why = "too complex to be followed to its end"
        return Failure(
            "schema_unsupported", f"the schema cannot be enforced: {self.keyword}{self.keyword and ': '}{why}"
        )

    def asked(self, places: int) -> list[list[int]]:
        """What was asked about the last `places` tokens computed; what was known about them is forgotten."""
        first = self.computed - places - self.reusable
        del self.probed[max(first, 0) :]
        return self.probes[first : first + places] if places else []

    def take(
        self, token: int, stops: frozenset[int], logprob: float = 0.0, tops: Iterable[tuple[int, float]] = ()
    ) -> bool:
        """Move the grammar on, and append the token unless it ends the turn; whether the answer has ended."""
        if self.matcher is not None and not self.matcher.consume_token(token):
            # It stays within the mask, so what is left is a grammar that has outgrown its limits on the way.
            raise self._outgrown()
        if token in stops:
            return True
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.alternatives.append(list(tops))
        if self.on_token is not None:
            self.on_token(token)
        return self.ended

    def force(self, most: int, stops: frozenset[int]) -> int:
        """Append the tokens that the grammar leaves no choice about, up to `most` in the answer; how many.

        No pass is spent on each. llguidance gives them as the tokenizer itself would cut the text, and none that a
        next one may join.
        """
        if self.matcher is None or self.ended:
            return 0
        forced = self.matcher.compute_ff_tokens()[: max(most - self.made, 0)]
        if self.guard is not None:
            forced = self.guard.force(forced, self.left)
        for token in forced:
            self.take(token, stops)
        return len(forced)

    def draft(self, stops: frozenset[int]) -> list[int]:
        """What it may say next, going by what it has read: allowed by the grammar, and no end of the turn."""
        draft = self.lookup.draft(self.ids, min(LONGEST, self.left - 1))
        end = next((at for at, token in enumerate(draft) if token in stops), len(draft))
        draft = draft[:end]
        return draft if self.matcher is None else draft[: self.matcher.validate_tokens(draft)]

    def finish(self, ended: bool) -> None:
        """Settle with what was said; `ended`: by itself, or closed by its guard."""
        whole = ended or (self.matcher is not None and self.matcher.is_accepting())
        forced = not ended or (self.guard is not None and self.guard.closing)
        reason: FinishReason = "length" if not whole else "closed" if forced else "stop"
        now = time.monotonic()
        started = self.started or now
        times = started - self.submitted, now - started
        self._settle(Completion(self.output, reason, len(self.prompt), *times, self.logprobs, self.probed))

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
