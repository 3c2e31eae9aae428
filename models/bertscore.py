"""BERTScore: how much of a candidate's meaning its references have, and the other way round, token by token.

Zhang et al., "BERTScore: Evaluating Text Generation with BERT", ICLR 2020; figures are those of the package bert-score
0.3.13 where that gives any. What it cuts is read here in windows, what it cannot score is told. Knows nothing of HTTP.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from models import catalog
from models.encoder import Encoder
from models.encoders import Encoders
from models.errand import Errand
from models.failure import Failure, FieldFailure

log = logging.getLogger("zopilot.bertscore")

VERSION = "zopilot-1"  # of what is computed here; another one where a figure may differ
THREADS = 2
GROUP_TOKENS = 16_384  # vectors held at a time, unless two texts alone have more
BLOCK = 1024
FIGURES = ("precision", "recall", "f1")
FLAGS = ("empty", "windows", "unweighted")
Group = tuple[str, Sequence[str]]  # a candidate and its references


class Asked(Protocol):
    """What a request asks for: one or several of `references` for each of `candidates`. `model` "": the default."""

    @property
    def candidates(self) -> Sequence[str]: ...
    @property
    def references(self) -> Sequence[Sequence[str]]: ...
    @property
    def model(self) -> str: ...
    @property
    def idf(self) -> bool: ...
    @property
    def rescale_with_baseline(self) -> bool: ...


@dataclass(frozen=True)
class Scores:
    """One entry a candidate, and what they were computed with. `seconds` runs from question to answer."""

    model: str
    scores: list[dict[str, Any]]
    signature: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Text:
    """A text's ids, and for each of them its weight; the special ones around them have none."""

    ids: list[int]
    weights: list[float]


class BERTScores:
    """Takes requests one by one and has threads compute them, THREADS at a time."""

    def __init__(self, encoders: Encoders, default: str) -> None:
        self._encoders, self._default = encoders, default
        self._threads = ThreadPoolExecutor(THREADS, "bertscore")

    def ask(self, asked: Asked, deadline: float) -> Errand[Scores]:
        """A ticket for these pairs' scores. Failure where the model is not there, or has no baseline to rescale by."""
        row = self._encoders.find(asked.model or self._default or self._encoders.best())
        if asked.rescale_with_baseline and row.baseline is None:
            said = f"rescale_with_baseline: {row.name} has no baseline for layer {row.layer}"
            raise FieldFailure("invalid_value", said, "rescale_with_baseline")
        ticket: Errand[Scores] = self._encoders.admit(deadline)
        self._threads.submit(self._work, asked, row, ticket, time.monotonic())
        return ticket

    def _work(self, asked: Asked, row: catalog.Encoder, ticket: Errand[Scores], since: float) -> None:
        try:
            if not ticket.gone:
                with self._encoders.use(row.name) as encoder:
                    scores = []
                    for entry in score(encoder, asked, lambda: ticket.gone):
                        scores.append(entry)
                        ticket.progress = len(scores) / len(asked.candidates)
                    if len(scores) == len(asked.candidates):
                        signed = sign(encoder, asked)
                        ticket.finish(Scores(encoder.tag, scores, signed, time.monotonic() - since))
        except Failure as failure:
            ticket.fail(failure)
        except BaseException as error:
            log.error("texts could not be scored: %s", type(error).__name__)
        finally:
            ticket.end()


def sign(encoder: Encoder, asked: Asked) -> dict[str, Any]:
    """What the figures depend on, beside the texts."""
    rescale = asked.rescale_with_baseline
    return {
        "model": encoder.tag,
        "layer": encoder.row.layer,
        "idf": asked.idf,
        "rescale": rescale,
        "baseline": encoder.row.baseline if rescale else None,
        "version": VERSION,
    }


def score(encoder: Encoder, asked: Asked, gone: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """One entry a candidate, in order: the best of each figure over its references. It ends early where `gone`."""
    groups = list(zip(asked.candidates, asked.references, strict=True))
    texts = weigh(encoder, {text for group in groups for text in named(group)}, asked)
    baseline = encoder.row.baseline if asked.rescale_with_baseline else None
    for part in gather(groups, texts):
        vectors = embed(encoder, {name: texts[name].ids for group in part for name in named(group)}, gone)
        for candidate, references in part:
            if gone():
                return
            found = []
            for name in references:
                left, right = texts[candidate], texts[name]
                pair = compare(left.weights, right.weights, vectors[candidate], vectors[name])
                if max(len(left.ids), len(right.ids)) > encoder.row.window - 2:
                    pair["windows"] = True
                found.append(pair)
            yield best(found, baseline)


def named(group: Group) -> list[str]:
    """The texts of a candidate and its references."""
    return [group[0], *group[1]]


def weigh(encoder: Encoder, names: set[str], asked: Asked) -> dict[str, Text]:
    """Each text's ids with their weights: 1, or with `idf` how rare they are among the request's references."""
    ordered = sorted(names)
    ids = dict(zip(ordered, encoder.tokenise([name.strip() for name in ordered]), strict=True))
    if not asked.idf:
        return {name: Text(found, [1.0] * len(found)) for name, found in ids.items()}
    documents = [ids[name] for references in asked.references for name in references]
    counts = Counter(token for document in documents for token in set(document))
    return {
        name: Text(found, [math.log((len(documents) + 1) / (counts[token] + 1)) for token in found])
        for name, found in ids.items()
    }


def gather(groups: Sequence[Group], texts: Mapping[str, Text]) -> Iterator[list[Group]]:
    """The groups in order, so many at a time that their texts have GROUP_TOKENS, or one if it alone has more."""
    part: list[Group] = []
    held: set[str] = set()
    for group in groups:
        together = held.union(named(group))
        if part and sum(len(texts[name].ids) + 2 for name in together) > GROUP_TOKENS:
            yield part
            part, together = [], set(named(group))
        part, held = [*part, group], together
    yield part


def embed(encoder: Encoder, texts: Mapping[str, list[int]], gone: Callable[[], bool]) -> dict[str, Tensor]:
    """Each text's vectors, special tokens included, each of length 1: [tokens + 2, dimensions]. Less where `gone`.

    A text that is too long is read in windows that overlap by half; a token is taken from where it has most around it.
    """
    most = encoder.row.window - 2
    rows: list[list[int]] = []
    wanted: list[tuple[str, slice]] = []
    for name, ids in texts.items():
        for start, first, last in windows(len(ids), most):
            rows.append(encoder.frame(ids[start : start + most]))
            end = last - start + 1 + (last == len(ids))
            wanted.append((name, slice(first - start + (first > 0), end)))
    found = dict(encoder.run(rows, encoder.row.layer, unit, lambda _: not gone()))
    pieces: dict[str, list[Tensor]] = {}
    for number, (name, kept) in enumerate(wanted):
        if number in found:
            pieces.setdefault(name, []).append(found.pop(number)[kept].clone())
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def windows(count: int, most: int) -> list[tuple[int, int, int]]:
    """Windows of `most` over `count` tokens: where each starts, and from where to before where it is taken."""
    starts = [*range(0, count - most, max(most // 2, 1)), max(count - most, 0)]
    cuts = [(later + earlier + most) // 2 for earlier, later in pairwise(starts)]
    return list(zip(starts, [0, *cuts], [*cuts, count], strict=True))


def unit(said: Tensor, mask: Tensor) -> list[Tensor]:
    """Each row's vectors, of length 1, in the host's memory."""
    if not torch.isfinite(said[mask.bool()]).all():
        raise Failure("model_error", "the model has no vectors for a text")
    return list((said / said.norm(dim=-1, keepdim=True)).cpu())


def compare(candidate: list[float], reference: list[float], left: Tensor, right: Tensor) -> dict[str, Any]:
    """Precision, recall and F1 of a pair, by its weights and vectors; 0 and "empty" where one of them has no token.

    Where all weights are 0 (with idf: what all references hold) they count alike, and "unweighted" says so.
    """
    if not candidate or not reference:
        return {**dict.fromkeys(FIGURES, 0.0), "empty": True}
    rows, columns = [], torch.full((len(right),), -math.inf)
    for block in left.split(BLOCK):
        likeness = block @ right.T
        rows.append(likeness.max(1).values)
        columns = torch.maximum(columns, likeness.max(0).values)
    precision, recall = mean(torch.cat(rows), candidate), mean(columns, reference)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    pair: dict[str, Any] = dict(zip(FIGURES, (precision, recall, f1), strict=True))
    if not any(candidate) or not any(reference):
        pair["unweighted"] = True
    return pair


def mean(best: Tensor, weights: list[float]) -> float:
    """The weighted mean of what each token found, the special ones at both ends left out."""
    shares = torch.tensor(weights if any(weights) else [1.0] * len(weights))
    return float((best[1:-1] * shares).sum() / shares.sum())


def best(pairs: Sequence[Mapping[str, Any]], baseline: tuple[float, float, float] | None) -> dict[str, Any]:
    """The best of each figure, rescaled if there is a baseline, and every flag that one of the pairs has."""
    entry: dict[str, Any] = {}
    for at, figure in enumerate(FIGURES):
        value = max(pair[figure] for pair in pairs)
        entry[figure] = value if baseline is None else (value - baseline[at]) / (1 - baseline[at])
    return entry | {flag: True for flag in FLAGS if any(flag in pair for pair in pairs)}
