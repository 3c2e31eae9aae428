"""The engine: one thread that owns a model and turns submitted sequences into completions, a step at a time.

Knows nothing of text, prompts or HTTP.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from models.engine import metrics
from models.engine.admission import Admission
from models.engine.batch import flatten
from models.engine.cache import Cache
from models.engine.forward import Forward, pick
from models.engine.grammar import Masks
from models.engine.sampler import Choices
from models.engine.scheduler import Piece, Scheduler
from models.engine.sequence import Sequence
from models.engine.speculation import Utility
from models.failure import Failure

log = logging.getLogger("zopilot.engine")
HANG_SECONDS = {"cuda": 60.0, "cpu": 600.0}  # longer than any step can honestly take


class Engine:
    """Continuous batching over one network. `submit` may be called from any thread."""

    def __init__(
        self,
        network: PreTrainedModel,
        stops: set[int],
        *,
        kv_tokens: int,
        step_tokens: int,
        queue_tokens: int,
        speculate: bool = True,
        forward: Callable[[PreTrainedModel, Cache], Forward] = pick,
    ) -> None:
        config = network.config.get_text_config()
        first = next(network.parameters())
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._stops, self._speculate = frozenset(stops), speculate
        self.utility = Utility()
        self.tokens: Counter[str] = Counter()
        self.device = first.device
        self.vocabulary: int = config.vocab_size
        self.cache = Cache(
            config.num_hidden_layers, config.num_key_value_heads, head_dim, first.dtype, first.device, kv_tokens
        )
        self.forward = forward(network, self.cache)
        self.pad: int | None = getattr(network.config, "image_token_id", None)  # of a model that sees
        self.admission = Admission(queue_tokens)
        self.scheduler = Scheduler(self.cache, self.admission, step_tokens)
        self._masks = Masks(self.vocabulary)
        self._wake = threading.Condition()
        self._stopping = self._told_to_stop = False
        self._since: float | None = None  # when the step under way began
        self.hang_seconds = HANG_SECONDS[self.device.type]
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step under way; what is not finished fails with `draining`."""
        with self._wake:
            self._told_to_stop = self._stopping = True
            self._wake.notify()
        self.wait()

    def wait(self) -> bool:
        """Until the thread ends or hangs in a step; whether it was told to end."""
        while self.alive:
            self._thread.join(0.5)
        if self._thread.is_alive():
            log.critical("a step has hung for %.0f s", self.hang_seconds)
            self._abandon()
        return self._told_to_stop

    @property
    def alive(self) -> bool:
        since = self._since
        return self._thread.is_alive() and (since is None or time.monotonic() - since < self.hang_seconds)

    @property
    def waiting(self) -> int:
        return len(self.scheduler.waiting)

    @property
    def running(self) -> int:
        return len(self.scheduler.running)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; raises Failure where it can never fit or would wait too long."""
        if not sequence.is_of(self.vocabulary) or (sequence.shown and self.pad is None):
            raise ValueError("a prompt needs ids of the model's vocabulary")
        # What the grammar forces at the start is computed together with the prompt; one token is left to choose.
        forced = sequence.force(sequence.sampling.max_new_tokens - 1, self._stops)
        with self._wake:
            if self._stopping:
                raise Failure("draining", "the service is shutting down")
            self.scheduler.admit(sequence)
            self._count("forced", forced)
            self._wake.notify()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self.step()
                    with self._wake:
                        self._wake.wait_for(lambda: self._stopping or self.waiting or self.running)
        except Exception as error:
            log.critical("the engine has stopped: %s", type(error).__name__)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Whatever has ended the work, nobody is left waiting for it, and nobody new comes."""
        held = self._wake.acquire(timeout=5)  # a thread that hangs may have it
        self._stopping = True
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            sequence.fail(Failure("draining", "the service is shutting down"))
        if held:
            self._wake.release()

    def step(self) -> None:
        """Compute one flat batch of prompt pieces and decoding rows, and choose the next tokens of those due."""
        began = self._since = time.monotonic()
        with self._wake:
            planned = self.scheduler.plan()
        if planned:
            if self._speculate:
                planned = self._draft(planned)
            self._masks.begin([piece for piece in planned if piece.places])
            tokens = sum(len(piece.ids) for piece in planned)
            self._count("prompt", sum(piece.prompt_tokens for piece in planned))
            self._compute(planned)
            self.utility.note_step(tokens, time.monotonic() - began)
            metrics.note_step(tokens, time.monotonic() - began)
        self._since = None
        metrics.note_state(self.waiting, self.running, self.admission.queued, self.cache.tokens())

    def _draft(self, planned: list[Piece]) -> list[Piece]:
        """Put drafts behind decoding rows where they pay; a step that reads prompts is full without them."""
        if not all(piece.due and piece.sequence.made for piece in planned):
            return planned
        drafts = [piece.sequence.draft(self._stops) for piece in planned]
        drafting = sum(map(bool, drafts))
        length = self.utility.length(len(planned), drafting) if drafting else 0
        with self._wake:
            return [self.scheduler.allow(piece, draft[:length]) for piece, draft in zip(planned, drafts, strict=True)]

    def _compute(self, planned: list[Piece]) -> None:
        """One forward pass; where it fails, each half is tried once more, until only the guilty row is left to fail."""
        choices = None
        try:
            choices = self._forward(planned)
        except Exception as error:
            log.error("a step of %d rows failed: %s", len(planned), type(error).__name__)
        if choices is None:  # out here the error and the memory that its frames hold are gone
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # raises where the card itself is lost, which ends this thread
            if len(planned) == 1:
                self._fail(planned[0].sequence, Failure("model_error", "the model failed on this prompt"))
            else:
                self._compute(planned[: len(planned) // 2])
                self._compute(planned[len(planned) // 2 :])
            return
        first = 0
        for piece in planned:
            places = piece.places
            self._advance(piece, choices, first)
            first += places

    def _forward(self, planned: list[Piece]) -> Choices:
        """For each row due what may come next, and what behind each token of its draft."""
        logits = self.forward(flatten(planned, self.cache)).float()
        return Choices(logits, self._masks.allowed([piece for piece in planned if piece.places]))

    def _advance(self, piece: Piece, choices: Choices, first: int) -> None:
        """Choose a row's next tokens, as many as its draft has right and one more; a fault is this row's alone."""
        row, due, right = piece.sequence, piece.due, 0
        places = piece.places
        row.computed += piece.count
        self.cache.fill(row.number, row.ids, row.computed)
        try:
            if row.probes:
                row.probed += [choices.logprobs(first + at, ids) for at, ids in enumerate(row.asked(places))]
                if due:
                    self._end(row)
                return
            while due:
                chosen = self._choose(row, choices, first + right)
                if chosen is None:
                    break
                due = piece.draft[right : right + len(chosen)] == chosen
                right += len(chosen) if due else 0
        except Exception as error:
            if not isinstance(error, Failure):
                log.error("a row failed: %s", type(error).__name__)
                error = Failure("model_error", "the model failed on this prompt")
            self._fail(row, error)
            return
        row.computed += right
        if piece.draft:
            self.utility.note_draft(len(piece.draft), right)
            self._count("drafted", len(piece.draft))
            self._count("accepted", right)

    def _choose(self, row: Sequence, choices: Choices, at: int) -> list[int] | None:
        """The next token of a row and those it forces; None if they end its answer."""
        before = len(row.ids)
        if not row.first:
            row.first = time.monotonic()
            metrics.note_first(row.started - row.submitted, row.first - row.submitted)
        token = choices.choose(at, row.sampling, row.generator)
        if row.guard is not None:
            token = row.guard.admit(token, row.left)
        ended = row.take(token, self._stops, choices.logprob(at, token), choices.tops(at, row.tops))
        self._count("answer", 1)
        if not ended:
            self._count("forced", row.force(row.sampling.max_new_tokens, self._stops))
            ended = row.ended
        if not ended and row.left:
            return row.ids[before:]
        self._end(row, ended)
        return None

    def _end(self, row: Sequence, ended: bool = True) -> None:
        with self._wake:
            self.scheduler.end(row, complete=True)
        row.finish(ended)

    def _count(self, kind: str, tokens: int) -> None:
        if tokens:
            with self._wake:
                self.tokens[kind] += tokens
            metrics.count(kind, tokens)

    def _fail(self, sequence: Sequence, failure: Failure) -> None:
        with self._wake:
            self.scheduler.end(sequence, failed=True)
        sequence.fail(failure)
