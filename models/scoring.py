"""Labels' log-probabilities behind one reading of a prompt, all of them in one step of the engine.

Knows ids; nothing of what is asked or of what the scores are taken for.
"""

import asyncio
import math
from collections.abc import Sequence as Listing
from dataclasses import dataclass

from models.engine.engine import Engine
from models.engine.sequence import Completion, Lane, Sampling, Sequence
from models.failure import Failure
from models.picture import Picture
from models.template import Template

Ids = tuple[int, ...]
# Texts that say nothing: what a label gets behind them, it gets for itself.
EMPTY = ("N/A", "", "...")
PRIOR_SECONDS = 300.0


@dataclass(frozen=True)
class Tree:
    """Several labels' ids laid into rows behind one stem: `rows` are the ids to read, `asked` the ids whose
    log-probabilities are wanted behind the stem and behind each id of a row."""

    labels: tuple[Ids, ...]
    rows: tuple[Ids, ...]
    asked: tuple[tuple[tuple[int, ...], ...], ...]

    def scores(self, probed: Listing[Listing[Listing[float]]]) -> list[float]:
        """Each label's sum of log-probabilities, from the answers for each row."""
        found = {
            (*row[:at], token): logprob
            for row, asked, told in zip(self.rows, self.asked, probed, strict=True)
            for at, (tokens, logprobs) in enumerate(zip(asked, told, strict=True))
            for token, logprob in zip(tokens, logprobs, strict=True)
        }
        return [math.fsum(found[label[: end + 1]] for end in range(len(label))) for label in self.labels]


def lay(labels: Listing[Ids]) -> Tree:
    """The fewest rows that read every beginning of a label once; each question is asked in one row alone."""
    following: dict[Ids, set[int]] = {}
    for label in labels:
        for at, token in enumerate(label):
            following.setdefault(label[:at], set()).add(token)
    inner = {beginning[:-1] for beginning in following if beginning}
    rows = sorted(beginning for beginning in following if beginning not in inner)
    asked = []
    for row in rows:
        ends = [row[:at] for at in range(len(row) + 1)]
        asked.append(tuple(tuple(sorted(following.pop(end, ()))) for end in ends))
    return Tree(tuple(labels), tuple(rows), tuple(asked))


def spell(template: Template, names: Listing[str], end: int) -> Tree:
    """The ids of labels as the assistant would say them. Where one begins another, all are said to their `end`."""
    labels = [tuple(template.reply(name)) for name in names]
    known = {label[:at] for label in labels for at in range(len(label))}
    if known.intersection(labels) or len(set(labels)) < len(labels):
        labels = [(*label, end) for label in labels]
    return lay(labels)


def weigh(scores: Listing[float]) -> list[float]:
    """Probabilities of labels from their sums of log-probabilities, the prior's taken off."""
    most = max(scores)
    shares = [math.exp(score - most) for score in scores]
    whole = math.fsum(shares)
    return [share / whole for share in shares]


class Scoring:
    """The labels of one stem on their way through the engine. Cancelling it frees its rows."""

    def __init__(
        self,
        engine: Engine,
        stem: list[int],
        tree: Tree,
        deadline: float,
        lane: Lane,
        known: int = 0,
        pictures: Listing[Picture] = (),
    ) -> None:
        """Submits; raises Failure, and then nothing is on its way. `known`: leading ids that another one has;
        `pictures`: those whose ids stand in the stem."""
        self.tree = tree
        self.sequences: list[Sequence] = []
        try:
            for row, asked in zip(tree.rows, tree.asked, strict=True):
                probes = [list(tokens) for tokens in asked]
                sequence = Sequence(
                    [*stem, *row],
                    Sampling(1),
                    deadline=deadline,
                    lane=lane,
                    probes=probes,
                    follows=len(stem) - 1 if self.sequences else known,
                    pictures=pictures,
                )
                engine.submit(sequence)
                self.sequences.append(sequence)
        except Failure:
            self.cancel()
            raise

    @property
    def lost(self) -> bool:
        """Whether it has ended without scores."""
        return any(row.future.done() and (row.future.cancelled() or row.future.exception()) for row in self.sequences)

    @property
    def progress(self) -> float:
        return sum(row.progress for row in self.sequences) / len(self.sequences)

    def cancel(self) -> None:
        for sequence in self.sequences:
            sequence.future.cancel()

    async def completions(self) -> list[Completion]:
        """Of all rows; whoever waits and leaves takes nothing from others who wait. Raises Failure."""
        return [await asyncio.shield(asyncio.wrap_future(row.future)) for row in self.sequences]

    async def scores(self) -> list[float]:
        return self.tree.scores([completion.probed for completion in await self.completions()])
