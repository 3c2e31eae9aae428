"""The engine: one thread that owns a model and turns submitted sequences into completions, a step at a time.

Knows nothing of text, prompts or HTTP.
"""

import logging
import threading
import time
from collections import deque

import torch
from transformers import PreTrainedModel

from models.engine.attention import Rows, Span
from models.engine.cache import Cache
from models.engine.grammar import mask
from models.engine.sampler import choose
from models.engine.scheduler import Scheduler
from models.engine.sequence import Sequence
from models.failure import Failure

log = logging.getLogger("zopilot.engine")


class Engine:
    """Continuous batching over one network. `submit` may be called from any thread."""

    def __init__(
        self, network: PreTrainedModel, stops: set[int], *, kv_tokens: int, step_tokens: int, max_waiting: int
    ) -> None:
        config = network.config
        config._attn_implementation = "flat"
        first = next(network.parameters())
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._network = network
        self._stops = stops
        self._max_waiting = max_waiting
        self.forced_tokens = 0
        self.device = first.device
        self.vocabulary: int = config.vocab_size
        self.cache = Cache(
            config.num_hidden_layers,
            config.num_key_value_heads,
            head_dim,
            first.dtype,
            first.device,
            kv_tokens,
        )
        self._scheduler = Scheduler(self.cache, step_tokens)
        self._wake = threading.Condition()
        self._arrived: deque[Sequence] = deque()
        self._finished: deque[float] = deque(maxlen=32)
        self._stopping = self._told_to_stop = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step under way; what is not finished fails with `draining`."""
        with self._wake:
            self._told_to_stop = self._stopping = True
            self._wake.notify()
        self._thread.join()

    def wait(self) -> bool:
        """Until the thread ends; whether it was told to."""
        self._thread.join()
        return self._told_to_stop

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return len(self._arrived) + len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; raises Failure where it can never fit or the queue is full."""
        if sequence.capacity > self.cache.budget:
            raise Failure(
                "context_length_exceeded",
                f"{sequence.capacity} tokens are needed (prompt {len(sequence.prompt)}, answer "
                f"{sequence.sampling.max_new_tokens}); {self.cache.budget} fit at once",
            )
        if not sequence.prompt or not 0 <= min(sequence.prompt) <= max(sequence.prompt) < self.vocabulary:
            raise ValueError("a prompt needs ids of the model's vocabulary")
        self._require_room()
        # What the grammar forces at the start is computed together with the prompt; one token is left to choose.
        self._force(sequence, sequence.sampling.max_new_tokens - 1)
        with self._wake:
            self._require_room()
            self._arrived.append(sequence)
            self._wake.notify()

    def _require_room(self) -> None:
        if self._stopping:
            raise Failure("draining", "the service is shutting down")
        if self.waiting >= self._max_waiting:
            raise Failure("queue_full", f"{self.waiting} prompts are waiting", self._drain_seconds())

    def _drain_seconds(self) -> float:
        """How long the queue in front takes at the rate of the last finished sequences; 1 to 120."""
        if len(self._finished) < 2:
            return 10.0
        rate = (len(self._finished) - 1) / max(self._finished[-1] - self._finished[0], 1e-3)
        return min(max(self.waiting / rate, 1.0), 120.0)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while True:
                    with self._wake:
                        self._wake.wait_for(lambda: self._stopping or self.waiting or self.running)
                    if self._stopping:
                        break
                    self.step()
        except Exception as error:
            log.critical("the engine has stopped: %s", type(error).__name__)
        finally:
            # Whatever ended this thread, nobody is left waiting for it, and nobody new comes.
            with self._wake:
                self._stopping = True
            for sequence in [*self._scheduler.running, *self._scheduler.waiting, *self._arrived]:
                sequence.fail(Failure("draining", "the service is shutting down"))

    def step(self) -> None:
        """Compute one flat batch of prompt pieces and single tokens, and choose a token for each row that is due."""
        with self._wake:
            self._scheduler.waiting.extend(self._arrived)
            self._arrived.clear()
        if planned := self._scheduler.plan():
            self._compute(planned)

    def _compute(self, planned: list[tuple[Sequence, list[int]]]) -> None:
        """One forward pass; where it fails, each half is tried once more, until only the guilty row is left to fail."""
        logits = None
        try:
            logits = self._forward(planned)
        except Exception as error:
            log.error("a step of %d rows failed: %s", len(planned), type(error).__name__)
        if logits is None:  # out here the error and the memory that its frames hold are gone
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # raises where the card itself is lost, which ends this thread
            if len(planned) == 1:
                self._fail(planned[0][0], Failure("model_error", "the model failed on this prompt"))
            else:
                self._compute(planned[: len(planned) // 2])
                self._compute(planned[len(planned) // 2 :])
            return
        due = 0
        for sequence, tokens in planned:
            sequence.computed += len(tokens)
            if sequence.computed == sequence.length:
                self._advance(sequence, logits[due])
                due += 1

    def _forward(self, planned: list[tuple[Sequence, list[int]]]) -> torch.Tensor:
        """fp32 logits [due rows, vocabulary] on the CPU: one row for each sequence whose next token is due."""
        spans: list[Span] = []
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for sequence, tokens in planned:
            start, offset = sequence.computed, len(ids)
            spans.append(Span(sequence.number, offset, start, len(tokens)))
            ids += tokens
            positions += range(start, start + len(tokens))
            if start + len(tokens) == sequence.length:
                last.append(len(ids) - 1)
        hidden = self._network.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            rows=Rows(spans, self.cache),
        ).last_hidden_state
        logits: torch.Tensor = self._network.lm_head(hidden[0, last])
        return logits.float().cpu()

    def _advance(self, sequence: Sequence, logits: torch.Tensor) -> None:
        """Choose the next token of one row; a fault here is this row's alone."""
        try:
            if not torch.isfinite(logits).all():
                raise Failure("model_error", "the model's output was not finite")
            if sequence.matcher is not None:
                mask(logits, sequence.matcher)
            token = choose(logits, sequence.sampling, sequence.generator)
            self._accept(sequence, token)
        except Exception as error:
            if not isinstance(error, Failure):
                log.error("a row failed: %s", type(error).__name__)
                error = Failure("model_error", "the model failed on this prompt")
            self._fail(sequence, error)

    def _fail(self, sequence: Sequence, failure: Failure) -> None:
        self._scheduler.release(sequence)
        sequence.fail(failure)

    def _accept(self, sequence: Sequence, token: int) -> None:
        self._take(sequence, token)
        if token not in self._stops:
            self._force(sequence, sequence.sampling.max_new_tokens)
        ended = token in self._stops or (sequence.matcher is not None and sequence.matcher.is_stopped())
        if ended or len(sequence.output) >= sequence.sampling.max_new_tokens:
            self._scheduler.release(sequence)
            self._finished.append(time.monotonic())
            sequence.finish("stop" if ended else "length")

    def _force(self, sequence: Sequence, most: int) -> None:
        """Append the tokens that the grammar leaves no choice about, up to `most` in the output; no pass is spent on
        each. llguidance gives them as the tokenizer itself would cut the text, and none that a next one may join."""
        if sequence.matcher is None or sequence.matcher.is_stopped():
            return
        for token in sequence.matcher.compute_ff_tokens()[: max(most - len(sequence.output), 0)]:
            self._take(sequence, token)
            self.forced_tokens += 1

    def _take(self, sequence: Sequence, token: int) -> None:
        """Move the grammar on, and append the token unless it ends the turn."""
        if sequence.matcher is not None and not sequence.matcher.consume_token(token):
            # It stays within the mask, so what is left is a grammar that has outgrown its limits on the way.
            raise Failure("schema_unsupported", "the schema is too complex to be enforced to the end")
        if token not in self._stops:
            sequence.output.append(token)
            if sequence.on_token is not None:
                sequence.on_token(token)
