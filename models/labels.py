"""Labels of any length as probabilities: scored, not decoded. One reading of the prompt, then all labels in one step.

Sums of log-probabilities, less what the same labels get from texts that say nothing (arXiv 2102.09690); no length is
divided by, which was measured to make it worse. Knows nothing of HTTP, and of calibration only what it is told.
"""

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from pathlib import Path

from models import calibration, pooling
from models.calibration import Calibration
from models.catalog import Model
from models.engine.engine import Engine
from models.failure import Failure
from models.picture import Picture
from models.question import Answer, Choice, Question, find_document, render, replace_document
from models.receipt import Receipts
from models.scoring import EMPTY, PRIOR_SECONDS, Ids, Scoring, Tree, spell, weigh
from models.template import Template, Turn, lead

CONTENT_FREE, UNKNOWN = "content-free", "none"  # priors
NONE = "none of these"  # what protocol.py keeps callers from calling a label
PRIORS = 1024  # kept, by text and label set


@dataclass(frozen=True)
class Decision:
    """A question about labels on its way. Cancelling it frees its rows before the engine's next step."""

    model: str
    names: list[str]
    scoring: Scoring
    priors: list[Scoring]
    question: Question
    receipts: Receipts
    task: str
    calibration: Calibration | None

    @property
    def progress(self) -> float:
        return self.scoring.progress

    def cancel(self) -> None:
        self.scoring.cancel()

    async def answer(self) -> Answer:
        """Wait for the scores; raises Failure."""
        completions = await self.scoring.completions()
        scores = self.scoring.tree.scores([completion.probed for completion in completions])
        priors = [await prior.scores() for prior in self.priors]
        prior = [math.fsum(column) / len(priors) for column in zip(*priors, strict=True)] or [0.0] * len(scores)
        scores = [score - less for score, less in zip(scores, prior, strict=True)]
        shares = self.calibration.apply(self.names, scores) if self.calibration else weigh(scores)
        least = self.question.abstain_below
        if least is None:
            least = self.calibration.abstain_below if self.calibration else 0.0
        output = pooling.write(self.question, dict(zip(self.names, shares, strict=True)), least)
        told = {
            "scores": dict(zip(self.names, scores, strict=True)),
            "prior": CONTENT_FREE if priors else UNKNOWN,
            "task": self.task,
            "abstain_below": least,
            "calibration": self.calibration.id if self.calibration else None,
        }
        return Answer(
            output=output,
            model=self.model,
            finish_reason="stop",
            prompt_tokens=completions[0].prompt_tokens - len(self.scoring.tree.rows[0]),
            completion_tokens=0,
            seconds=max(completion.waited + completion.generated for completion in completions),
            detail={
                "labels": told,
                "receipt": self.receipts.write(self.question, form_of(self.question), None, output),
            },
        )


def names_of(question: Question) -> list[str]:
    return [each.label for each in question.labels or ()] + [NONE] * question.none_of_these


def form_of(question: Question) -> list[list[str]]:
    """What a receipt is told of the labels."""
    return [names_of(question), [each.description for each in question.labels or ()]]


class Labels:
    """Questions about labels to one model, from any thread."""

    def __init__(
        self, model: Model, template: Template, engine: Engine, end: int, receipts: Receipts, calibrations: Path | None
    ) -> None:
        """`end` is the id that ends the assistant's turn; `calibrations` the folder of those in force."""
        self._receipts = receipts
        self._calibrations = calibrations
        self._model = model
        self._template = template
        self._engine = engine
        self._end = end
        self._priors: OrderedDict[tuple[str, tuple[Ids, ...]], Scoring] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, question: Question, deadline: float, pictures: Listing[Picture] = ()) -> Decision:
        """Render, tokenise and submit; `deadline` is on the monotonic clock. Raises Failure.

        Behind pictures nothing is taken off: no picture is known that says nothing.
        """
        names, task = names_of(question), self._task(question)
        tree = self.tree(names)
        longest, room = max(map(len, tree.labels)), self._model.context_length
        stem = self._stem(render(question.prompt, question.context, task), room, pictures)
        if len(stem) + longest > room:
            raise Failure(
                "context_length_exceeded",
                f"the prompt has {len(stem)} tokens and the longest label {longest}; the model's context is {room}",
            )
        texts = [] if pictures else self._emptied(question, task)
        told = hashlib.sha256(texts[0].encode()).hexdigest() if texts else ""
        fitted = self._find(names, CONTENT_FREE if texts else UNKNOWN, told)
        with self._lock:
            priors = [self._empty(text, tree) for text in texts]
        scoring = Scoring(self._engine, stem, tree, deadline, question.lane, pictures=pictures)
        return Decision(self._model.name, names, scoring, priors, question, self._receipts, told, fitted)

    def _find(self, names: list[str], prior: str, task: str) -> Calibration | None:
        if self._calibrations is None or not task:  # without a document no other prompt would be told apart
            return None
        return calibration.find(self._calibrations, self._receipts.made_with["model"], names, prior, task)

    def count(self, question: Question) -> int:
        """Tokens of the prompt, and of the longest label behind it but for its last."""
        stem = self._stem(render(question.prompt, question.context, self._task(question)))
        return len(stem) + max(map(len, self.tree(names_of(question)).labels)) - 1

    def tree(self, names: list[str]) -> Tree:
        """The ids of the labels."""
        return spell(self._template, names, self._end)

    def _task(self, question: Question) -> list[str]:
        choices = [*(question.labels or ()), *[Choice(NONE)] * question.none_of_these]
        if not self._model.lists_labels and not any(each.description for each in choices):
            return []
        lines = [f"- {each.label}" + (f": {each.description}" if each.description else "") for each in choices]
        return ["Answer with one of these labels and nothing else:\n" + "\n".join(lines)]

    def _stem(self, text: str, most: int | None = None, pictures: Listing[Picture] = ()) -> list[int]:
        return self._template.encode([Turn("user", text, lead(pictures))], most)

    def _emptied(self, question: Question, task: list[str]) -> list[str]:
        """The same prompt with documents that say nothing; none where there is no document."""
        document = find_document(question.prompt, question.context)
        if document is None:
            return []
        return [
            render(*replace_document(question.prompt, question.context, [text] * len(document.pages)), task)
            for text in EMPTY
        ]

    def _empty(self, text: str, tree: Tree) -> Scoring:
        key = text, tree.labels  # not every model is shown the labels
        found = self._priors.get(key)
        if found is None or found.lost:
            until = time.monotonic() + PRIOR_SECONDS
            found = Scoring(self._engine, self._stem(text), tree, until, "interactive")
        self._priors[key] = found
        self._priors.move_to_end(key)
        if len(self._priors) > PRIORS:
            self._priors.popitem(last=False)
        return found
