"""A document question: what the model is shown, what it may answer, and an answer that is whole or refused.

Knows nothing of HTTP. `Prompts.ask` gives a ticket at once; its answer comes when the engine is done.
"""

import json
from collections.abc import Sequence as Listing
from copy import copy
from dataclasses import dataclass, replace
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
from models.engine.sequence import Completion, FinishReason, Sampling, Sequence
from models.evidence import Evidence
from models.failure import Failure
from models.inquiry import Inquiry
from models.labels import Decision, Labels, form_of
from models.markers import JOINER
from models.picture import Picture
from models.question import (
    Answer,
    Question,
    answer_schema,
    images_of,
    is_divisible,
    render,
    sampling_of,
    task,
)
from models.receipt import Receipts
from models.template import Template, Turn, lead
from models.ticket import Ticket
from models.viewing import Viewing
from models.vision import Vision

TEMPLATE = "2"
WARM_UP_SECONDS = 300.0


@dataclass(frozen=True)
class Asked:
    """A question with what its answer must keep: for JSON `grammar` and `demand`."""

    question: Question
    sampling: Sampling
    grammar: Grammar | None
    demand: Demand | None

    @property
    def form(self) -> Any:
        """What a receipt is told of the answer's form."""
        if self.question.labels is not None:
            return form_of(self.question)
        return None if self.demand is None else self.demand.schema


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
        vision: Vision | None = None,
    ) -> None:
        """`calibrations`: the folder of those in force; `vision`: None where the model reads no images."""
        self._model = model
        self._engine = engine
        self._room = min(model.context_length, engine.cache.budget)  # tokens, of a prompt and its answer
        self._receipts = receipts
        self.template = Template(tokenizer, model.markers, model.alternates, engine.pad)
        self.grammars = Grammars(tokenizer, engine.vocabulary, stops)
        self._labels = Labels(model, self.template, engine, tokenizer.eos_token_id, receipts, calibrations)
        self._calibrations = calibrations
        self._vision = vision

    def ask(self, question: Question, deadline: float) -> Ticket[Asked] | Decision | Inquiry | Viewing:
        """Check, render, tokenise and submit; a document that is too long for one prompt is asked about window by
        window, and images are read first. `deadline` is on the monotonic clock. Raises Failure."""
        if urls := images_of(question):
            return Viewing(self._vision, urls, lambda pictures: self._ask(question, deadline, pictures), deadline)
        try:
            return self._ask(question, deadline)
        except Failure as refused:
            least = question.max_new_tokens or 1
            if refused.code != "context_length_exceeded" or not is_divisible(question) or least >= self._room:
                raise
        return self._inquire(question, deadline)

    def _ask(self, question: Question, deadline: float, pictures: Listing[Picture] = ()) -> Ticket[Asked] | Decision:
        if question.labels is not None:
            return self._labels.ask(question, deadline, pictures)
        ids = self._encode(question, self._model.context_length, pictures)
        asked = self._read(question, len(ids))
        sequence = Sequence(ids, asked.sampling, deadline=deadline, lane=question.lane, pictures=pictures)
        if asked.grammar is not None:
            sequence.keyword = asked.grammar.keyword
            sequence.matcher, sequence.guard = self._start(asked.grammar, asked.demand)
            if (shortest := len(sequence.guard.plan or ())) > asked.sampling.max_new_tokens:
                raise Failure(
                    "invalid_value",
                    f"max_new_tokens: the shortest answer found that fits the schema takes {shortest} tokens",
                )
        self._engine.submit(sequence)
        return Ticket(sequence, asked, self.close)

    def _inquire(self, question: Question, deadline: float) -> Inquiry:
        """The caller's own demands are for the merged answer to keep; what parts cannot be asked is refused at once."""
        question = copy(question)
        asked = self._read(question, 0)
        question.seed = asked.sampling.seed  # drawn once, for all windows
        answer_tokens = 1 if question.labels is not None else asked.sampling.max_new_tokens
        inquiry = Inquiry(
            question,
            self._room - answer_tokens,
            self._labels.count if question.labels is not None else lambda part: len(self._encode(part)),
            lambda part: self._ask(part, deadline),
            lambda answer: self._close_windows(answer, asked),
            question.on_conflict,
            deadline,
        )
        if inquiry.schema:
            self.grammars.compile(inquiry.schema)
        return inquiry

    def _encode(self, question: Question, most: int | None = None, pictures: Listing[Picture] = ()) -> list[int]:
        text = render(question.prompt, question.context, task(answer_schema(question)))
        return self.template.encode([Turn("user", text, lead(pictures))], most)

    def _read(self, question: Question, prompt_tokens: int) -> Asked:
        """What is refused whatever the model would say is refused here."""
        schema = answer_schema(question)
        grammar = None if schema is None else self.grammars.compile(schema)
        demand = None if schema is None else audit.read(question, schema)
        return Asked(question, sampling_of(question, self._model, prompt_tokens), grammar, demand)

    def warm_up(self) -> None:
        """One short answer through every part, before the first caller's."""
        ids = self.template.encode([Turn("user", "Ready?")])
        sequence = Sequence(ids, Sampling(8))
        sequence.matcher, sequence.guard = self.grammars.compile({"type": "object"}).start()
        self._engine.submit(sequence)
        sequence.future.result(timeout=WARM_UP_SECONDS)

    def _start(self, grammar: Grammar, demand: Demand | None) -> tuple[Matcher, Guard]:
        if grammar.copied is None:
            return grammar.start()
        if demand is None or demand.document is None:
            raise Failure("invalid_value", "x-verbatim needs a document: context.document, or text after a blank line")
        # A joiner may be the template's, and is taken out of answers.
        pieces = tuple(piece for page in demand.document.pages for piece in page.split(JOINER))
        return grammar.start(self.grammars.index(pieces))

    def close(self, completion: Completion, asked: Asked) -> Answer:
        """The answer, if it ended by itself, or less is allowed, and if it is what was asked for; else Failure."""
        made = len(completion.tokens)
        reason = completion.finish_reason
        if reason != "stop":
            self._allow(reason, asked, f"it was ended at {made} tokens (prompt: {completion.prompt_tokens})")
        output = self.template.decode(completion.tokens)
        output = output if asked.demand is None else output.strip()
        detail = self._judge(output, asked)
        if asked.grammar is not None:
            pieces = [self.grammars.decode([token]) for token in completion.tokens]
            detail["confidence"] = self._calibrate(confidence.measure(pieces, completion.logprobs), detail)
            if asked.grammar.reaches(json.loads(output)):
                reason = self._allow("closed", asked, "it has come up against a bound that was supplied")
        return Answer(
            output=output,
            model=self._model.name,
            finish_reason=reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=made,
            seconds=completion.waited + completion.generated,
            detail=detail,
        )

    def _close_windows(self, answer: Answer, asked: Asked) -> Answer:
        """The merged answer, if it is what was asked for; else Failure."""
        if asked.demand is None:
            return replace(answer, detail=answer.detail | self._judge(answer.output, asked))
        # A window has counted only the places that it shows.
        whole = {each.pointer: each.candidates for each in audit.trace(json.loads(answer.output), asked.demand)}
        told = answer.detail["evidence"]
        found = [Evidence(**each | {"candidates": max(each["candidates"], whole[each["pointer"]])}) for each in told]
        detail = answer.detail | self._judge(answer.output, asked, found)
        raw = {pointer: share["raw"] for pointer, share in answer.detail["confidence"].items()}
        return replace(answer, detail=detail | {"confidence": self._calibrate(raw, detail)})

    def _judge(self, output: str, asked: Asked, found: list[Evidence] | None = None) -> dict[str, Any]:
        """What can be told of an answer that is what was asked for; else Failure. `found`: its evidence, if known."""
        told = {} if asked.demand is None else audit.audit(output, asked.demand, found)
        told |= {"bounds": asked.grammar.bounds} if asked.grammar and asked.grammar.bounds else {}
        sampling = None if asked.question.labels is not None else asked.sampling
        return told | {"receipt": self._receipts.write(asked.question, asked.form, sampling, output)}

    def _allow(self, reason: FinishReason, asked: Asked, why: str) -> FinishReason:
        """`reason`, where the caller takes less than the model wanted to say; else Failure."""
        if asked.question.allow_partial:
            return reason
        more = "raise max_new_tokens, bound the schema (maxLength, maxItems) or ask for allow_partial"
        raise Failure("answer_truncated", f"the answer is cut: {why}; {more}")

    def _calibrate(self, raw: dict[str, float], told: dict[str, Any]) -> dict[str, dict[str, float | None]]:
        """How sure the model was of each value, and how often such values are right, where that was fitted."""
        fitted = None
        if self._calibrations is not None:
            fitted = calibration.find_fields(
                self._calibrations, self._receipts.made_with["model"], told["receipt"]["form"]
            )
        return {
            pointer: {"raw": share, "calibrated": None if fitted is None else fitted.apply(share)}
            for pointer, share in raw.items()
        }
