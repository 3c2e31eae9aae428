"""A document question: what the model is shown, what it may answer, and an answer that is whole or refused.

Knows nothing of HTTP. `Prompts.ask` gives a ticket at once; its answer comes when the engine is done.
"""

import asyncio
import json
import secrets
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from models import audit, calibration, confidence
from models.audit import Demand
from models.catalog import Model
from models.engine.closing import Guard
from models.engine.engine import Engine
from models.engine.grammar import Grammar, Grammars
from models.engine.matcher import Matcher
from models.engine.schema import Schema
from models.engine.sequence import Completion, FinishReason, Sampling, Sequence
from models.failure import Failure
from models.labels import Decision, Labels
from models.question import Answer, Question, compact, render
from models.receipt import Receipts
from models.template import JOINER, Template, Turn

TEMPLATE = "2"
WARM_UP_SECONDS = 300.0
MAX_SEED = 1 << 63


@dataclass(frozen=True)
class Ticket:
    """A question on its way. Cancelling it frees its row before the engine's next step."""

    prompts: "Prompts"
    question: Question
    sampling: Sampling
    future: Future[Completion]
    grammar: Grammar | None
    demand: Demand | None

    def cancel(self) -> None:
        self.future.cancel()

    async def answer(self) -> Answer:
        """Wait for the completion and close it, which may take a while where the document is long; raises Failure."""
        completion = await asyncio.wrap_future(self.future)
        return await asyncio.to_thread(self.prompts.close, completion, self)


class Prompts:
    """Questions to one model."""

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerFast,
        engine: Engine,
        stops: set[int],
        receipts: Receipts,
        calibrations: Path | None = None,
    ) -> None:
        """`calibrations`: the folder of those in force."""
        self._model = model
        self._engine = engine
        self._receipts = receipts
        self._template = Template(tokenizer, model.markers, model.alternates)
        self._grammars = Grammars(tokenizer, engine.vocabulary, stops)
        self._labels = Labels(model, self._template, engine, tokenizer.eos_token_id, receipts, calibrations)
        self._calibrations = calibrations

    def ask(self, question: Question, deadline: float) -> Ticket | Decision:
        """Check, render, tokenise and submit; `deadline` is on the monotonic clock. Raises Failure."""
        if question.labels is not None:
            return self._labels.ask(question, deadline)
        schema = answer_schema(question)
        grammar = None if schema is None else self._grammars.compile(schema)
        demand = None if schema is None else audit.read(question, schema)
        ids = self._template.encode([Turn("user", render(question.prompt, question.context, task(schema)))])
        sampling = self._sampling(question, len(ids))
        sequence = Sequence(ids, sampling, deadline=deadline, lane=question.lane)
        if grammar is not None:
            sequence.matcher, sequence.guard = self._start(grammar, demand)
            if (shortest := len(sequence.guard.plan or ())) > sampling.max_new_tokens:
                raise Failure(
                    "invalid_value",
                    f"max_new_tokens: the shortest answer found that fits the schema takes {shortest} tokens",
                )
        self._engine.submit(sequence)
        return Ticket(self, question, sampling, sequence.future, grammar, demand)

    def warm_up(self) -> None:
        """One short answer through every part, before the first caller's."""
        ids = self._template.encode([Turn("user", "Ready?")])
        sequence = Sequence(ids, Sampling(8))
        sequence.matcher, sequence.guard = self._grammars.compile({"type": "object"}).start()
        self._engine.submit(sequence)
        sequence.future.result(timeout=WARM_UP_SECONDS)

    def _start(self, grammar: Grammar, demand: Demand | None) -> tuple[Matcher, Guard]:
        if grammar.copied is None:
            return grammar.start()
        if demand is None or demand.document is None:
            raise Failure("invalid_value", "x-verbatim needs a document: context.document, or text after a blank line")
        # A joiner may be the template's, and is taken out of answers.
        pieces = tuple(piece for page in demand.document.pages for piece in page.split(JOINER))
        return grammar.start(self._grammars.index(pieces))

    def _sampling(self, question: Question, prompt_tokens: int) -> Sampling:
        room = self._model.context_length - prompt_tokens
        wanted = question.max_new_tokens or min(self._model.max_new_tokens, max(room, 1))
        if wanted > room:
            raise Failure(
                "context_length_exceeded",
                f"the prompt has {prompt_tokens} tokens and the answer may take {wanted}; "
                f"the model's context is {self._model.context_length}",
            )
        warmth = self._model.temperature if question.temperature is None else question.temperature
        seed = question.seed
        return Sampling(
            max_new_tokens=wanted,
            temperature=warmth,
            top_p=self._model.top_p if question.top_p is None else question.top_p,
            # Drawn here, so that the receipt can tell it and the same answer can be had again.
            seed=secrets.randbelow(MAX_SEED) if seed is None and warmth > 0 else seed,
        )

    def close(self, completion: Completion, ticket: Ticket) -> Answer:
        """The answer, if it ended by itself, or less is allowed, and if it is what was asked for; else Failure."""
        made = len(completion.tokens)
        reason = completion.finish_reason
        if reason != "stop":
            self._allow(reason, ticket, f"it was ended at {made} tokens (prompt: {completion.prompt_tokens})")
        output = self._template.decode(completion.tokens)
        form = None if ticket.demand is None else ticket.demand.schema
        output = output if form is None else output.strip()
        receipt = self._receipts.write(ticket.question, form, ticket.sampling, output)
        detail: dict[str, Any] = {"receipt": receipt}
        if ticket.demand is not None and ticket.grammar is not None:
            detail |= audit.audit(output, ticket.demand)
            detail["confidence"] = self._measure(completion, receipt["form"])
            detail |= {"bounds": ticket.grammar.bounds} if ticket.grammar.bounds else {}
            if ticket.grammar.reaches(json.loads(output)):
                reason = self._allow("closed", ticket, "it has come up against a bound that was supplied")
        return Answer(
            output=output,
            model=self._model.name,
            finish_reason=reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=made,
            seconds=completion.waited + completion.generated,
            detail=detail,
        )

    def _allow(self, reason: FinishReason, ticket: Ticket, why: str) -> FinishReason:
        """`reason`, where the caller takes less than the model wanted to say; else Failure."""
        if ticket.question.allow_partial:
            return reason
        more = "raise max_new_tokens, bound the schema (maxLength, maxItems) or ask for allow_partial"
        raise Failure("answer_truncated", f"the answer is cut: {why}; {more}")

    def _measure(self, completion: Completion, form: str) -> dict[str, dict[str, float | None]]:
        """How sure the model was of each value, and how often such values are right, where that was fitted."""
        pieces = [self._grammars.decode([token]) for token in completion.tokens]
        fitted = None
        if self._calibrations is not None:
            fitted = calibration.find_fields(self._calibrations, self._receipts.made_with["model"], form)
        return {
            pointer: {"raw": raw, "calibrated": None if fitted is None else fitted.apply(raw)}
            for pointer, raw in confidence.measure(pieces, completion.logprobs).items()
        }


def answer_schema(question: Question) -> Schema | None:
    """The schema the answer must fit; None for text."""
    if question.format == "text":
        return None
    return question.json_schema or {"type": "object"}


def task(schema: Schema | None) -> list[str]:
    """What the model is told of the answer's form."""
    if schema is None:
        return []
    shown = {keyword: value for keyword, value in schema.items() if keyword != "x-check"}
    return ["Answer with one JSON object that fits this JSON Schema:", compact(shown)]
