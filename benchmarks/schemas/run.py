"""One run over cases: what is served and refused, what masks let through, what the adversary gets out."""

import re
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from benchmarks.schemas.adversary import Adversary, Answer
from benchmarks.schemas.cases import Case
from benchmarks.schemas.instances import LET_THROUGH, RIGHT, UNEXPLAINED, Instances
from benchmarks.schemas.judging import Judge
from models.engine.grammar import Grammar
from models.engine.sequence import Completion
from models.failure import Failure

IN_FLIGHT = 96  # schemas whose answers are waited for at once
PROGRESS = 60.0  # seconds
NAMED = re.compile(r'"([^"]+)" at /')


@dataclass
class Found:
    """What a run has found."""

    served: Counter[str] = field(default_factory=Counter)  # by group
    refused: dict[str, Counter[str]] = field(default_factory=dict)  # by group and keyword
    unnamed: list[str] = field(default_factory=list)  # refusals without a keyword
    seconds: list[float] = field(default_factory=list)  # to the first mask
    instances: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str, Any]] = field(default_factory=list)  # what became of it, the case, the instance
    answers: dict[int, Counter[str]] = field(default_factory=dict)  # by budget
    failed: list[tuple[str, int, str]] = field(default_factory=list)  # answers that came to nothing, budgets apart
    judged: Counter[str] = field(default_factory=Counter)
    unfit: list[tuple[str, int, str]] = field(default_factory=list)  # successes that do not fit

    def holds(self) -> bool:
        return not (self.unnamed or self.unfit or self.instances[LET_THROUGH] or self.instances[UNEXPLAINED])

    def told(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "seconds"} | {
            "seconds": sorted(round(each, 5) for each in self.seconds)
        }


@dataclass
class Asked:
    """A schema and its answers, as far as they are known."""

    case: Case
    pending: list[tuple[int, Future[Completion]]]
    answers: list[Answer]


def measure(cases: list[Case], adversary: Adversary, budgets: Sequence[int]) -> Found:
    found, judge = Found(answers={budget: Counter() for budget in budgets}), Judge()
    feeder = Instances(adversary.grammars)
    asked: deque[Asked] = deque()
    told = began = time.monotonic()
    for number, case in enumerate(cases):
        if (grammar := _compile(case, adversary, found)) is not None:
            for outcome, value in feeder.feed(case, grammar):
                found.instances[outcome] += 1
                if outcome != RIGHT:
                    found.wrong.append((outcome, case.name, value))
            asked.append(_ask(case, grammar, adversary, budgets))
        while len(asked) > IN_FLIGHT:
            _close(asked.popleft(), adversary, judge, found)
        if time.monotonic() - told > PROGRESS:
            told = time.monotonic()
            print(f"{number + 1} of {len(cases)} schemas, {told - began:.0f} s", file=sys.stderr, flush=True)
    while asked:
        _close(asked.popleft(), adversary, judge, found)
    judge.stop()
    return found


def _compile(case: Case, adversary: Adversary, found: Found) -> Grammar | None:
    began = time.perf_counter()
    try:
        grammar = adversary.grammars.compile(case.schema)
        grammar.start()[0].compute_bitmask()
    except Failure as failure:
        keyword = NAMED.search(failure.message)
        found.refused.setdefault(case.group, Counter())[keyword[1] if keyword else "-"] += 1
        if keyword is None:
            found.unnamed.append(f"{case.name}: {failure.message}")
        return None
    found.seconds.append(time.perf_counter() - began)
    found.served[case.group] += 1
    return grammar


def _ask(case: Case, grammar: Grammar, adversary: Adversary, budgets: Sequence[int]) -> Asked:
    asked = Asked(case, [], [])
    for budget in budgets:
        try:
            asked.pending.append((budget, adversary.ask(grammar, budget)))
        except Failure as failure:
            asked.answers.append(Answer(budget, failure.code))
    return asked


def _close(asked: Asked, adversary: Adversary, judge: Judge, found: Found) -> None:
    schema = asked.case.schema
    asked.answers += [adversary.close(future, schema, budget) for budget, future in asked.pending]
    whole = [answer for answer in asked.answers if answer.text]
    for answer in asked.answers:
        found.answers[answer.budget][answer.outcome] += 1
        if not answer.text and answer.outcome != "invalid_value":
            found.failed.append((asked.case.name, answer.budget, answer.outcome))
    for answer, verdict in zip(whole, judge.verdicts(schema, [each.value for each in whole]), strict=True):
        found.judged[str(verdict)] += 1
        if verdict is False:
            found.unfit.append((asked.case.name, answer.budget, answer.text))
