"""Labels on real messages: how honest our probabilities are once fitted, and how often right beside transformers' own.

python -m benchmarks.banking --data banking77_train.csv --url URL --folder MODEL [--store CALIBRATIONS]

The calibration error is another library's: pip install --no-deps netcal==1.4.0 (its metrics need none of what it
declares beside scipy, scikit-learn and torch). MODEL holds the same weights in floats (benchmarks/convert.py).
"""

import argparse
import csv
import hashlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import host
from models import calibration
from verification import client, fit, measures, scaling
from verification.client import Reply, Service
from verification.failure import Unusable
from verification.fit import Plan
from verification.golden import Row

ROOT = Path(__file__).parent.parent
INSTRUCTION = "What is this customer of a bank asking about?"
LETTERS = 26  # as many options as the pipeline reads


@dataclass(frozen=True)
class Decided:
    """What one way of deciding makes of the rest: the probability of each label, [rows, labels], and seconds a row."""

    probabilities: measures.Floats
    seconds: float


def main() -> int:
    """0: measured and written; 1: it could not be."""
    options = _options()
    try:
        found = measure(options)
    except Unusable as reason:
        print(f"benchmarks.banking: {reason}", file=sys.stderr)
        return 1
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({name: found[name] for name in ("rows", "ours", "pipeline", "paired")}, indent=1))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Ask, fit on part, and decide the rest both ways."""
    names, rows = read(options.data, options.classes, options.rows, options.seed)
    digest = hashlib.sha256(options.data.read_bytes()).hexdigest()
    plan = Plan(digest, options.split, seed=options.seed)
    service = Service(options.url, options.key)
    tag = client.find_tag(service)
    began = time.perf_counter()
    replies = client.ask(service, [row.request for row in rows])
    seconds = (time.perf_counter() - began) / len(rows)
    if lost := [reply.error for reply in replies if reply.error]:
        raise Unusable(f"{len(lost)} rows were not answered, the first: {lost[0]}")
    fitted = fit.fit_labels(tag, rows, replies, plan)
    _, rest = fit.split(len(rows), plan)
    left, asked = [rows[place] for place in rest], [replies[place] for place in rest]
    truth = np.array([names.index(row.expected) for row in left])
    plain = Decided(_read(asked, names), seconds)
    if options.store is None:
        told = [reply.tell("labels")["scores"] for reply in asked]
        shares = np.array([fitted.calibration.apply(names, [scores[name] for name in names]) for scores in told])
    else:
        shares = _read(_ask_again(service, fitted, left, options.store), names)
    fair = Decided(shares, seconds)
    _, scores, places = fit.gather_scores(tag, rows, replies)
    crossed = Decided(scaling.try_all(scores, places, plan.floor, plan.seed)[0].probabilities, seconds)
    few = slice(options.theirs)
    theirs = decide(options.folder, [row.request["context"]["document"] for row in left[few]], names)
    return {
        "rows": {"all": len(rows), "fitted": len(rows) - len(left), "measured": len(left), "labels": names},
        "ours": {
            "as scored": _tell(plain, truth),
            "calibrated": _tell(fair, truth),
            "calibrated, each fifth by the others": _tell(crossed, places),
            "by": _tell_fit(fitted, options.store is not None),
        },
        "pipeline": _tell(theirs, truth[few]),
        "paired": compare(fair.probabilities[few], theirs.probabilities, truth[few]),
        "data": digest,
        "model": tag,
        "host": host.describe(ROOT),
        "versions": {name: version(name) for name in ("torch", "transformers", "scipy", "netcal")},
    }


def _ask_again(service: Service, fitted: fit.LabelFit, rows: Sequence[Row], store: Path) -> list[Reply]:
    """The service's own answers with the calibration in force."""
    calibration.write(fitted.calibration, store)
    replies = client.ask(service, [row.request for row in rows])
    if any(reply.error or reply.tell("labels")["calibration"] != fitted.calibration.id for reply in replies):
        raise Unusable(f"the service does not use what was written to {store}")
    return replies


def read(path: Path, classes: int, rows: int, seed: int) -> tuple[list[str], list[Row]]:
    """Labels, drawn by `seed` and named as in the data but for the underscores, and as many of their rows."""
    chance = random.Random(seed)
    with path.open(newline="", encoding="utf-8") as file:
        told = [(line["text"], line["category"].replace("_", " ")) for line in csv.DictReader(file)]
    names = sorted(chance.sample(sorted({name for _, name in told}), classes))
    of_these = [(text, name) for text, name in told if name in names]
    chance.shuffle(of_these)
    asked: list[Row] = []
    for line, (text, name) in enumerate(of_these[:rows], 1):
        body = {"prompt": INSTRUCTION, "context": {"document": text}, "labels": names, "lane": "bulk"}
        asked.append(Row(line, body, name, True))
    return names, asked


def decide(folder: Path, texts: Sequence[str], names: Sequence[str]) -> Decided:
    """The same by transformers' decision pipeline: one forward pass a text, an option's letter as its score."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    # A loaded model: by its path the pipeline takes some architectures for a decision model of its own.
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    deciding: Any = pipeline("decision", model=model, tokenizer=tokenizer, device="cpu")
    question = {"type": "choice", "instructions": INSTRUCTION, "criteria": dict.fromkeys(names)}
    shares = []
    began = time.perf_counter()
    with torch.inference_mode():
        for text in texts:
            answer = deciding({"state": text, "questions": {"topic": question}})["topic"]
            shares.append([answer["probabilities"][name] for name in names])
    return Decided(np.array(shares, np.float64), (time.perf_counter() - began) / len(texts))


def compare(one: measures.Floats, other: measures.Floats, truth: measures.Whole) -> dict[str, int]:
    """Row by row, who was right: ours, theirs."""
    ours, theirs = one.argmax(1) == truth, other.argmax(1) == truth
    return {
        "both right": int((ours & theirs).sum()),
        "only ours": int((ours & ~theirs).sum()),
        "only theirs": int((~ours & theirs).sum()),
        "none": int((~ours & ~theirs).sum()),
    }


def _read(replies: Sequence[Reply], names: Sequence[str]) -> measures.Floats:
    return np.array([[reply.output["probabilities"][name] for name in names] for reply in replies])


def _tell(decided: Decided, truth: measures.Whole) -> dict[str, float]:
    from netcal.metrics import ECE  # type: ignore[import-not-found, import-untyped, unused-ignore]

    confidence, _ = measures.judge(decided.probabilities, truth)
    return {
        **asdict(measures.measure(decided.probabilities, truth)),
        "ece by netcal": float(ECE(bins=measures.BINS).measure(decided.probabilities, truth)),
        "ece by chance, were it honest": measures.expect_ece(confidence, 1),
        "seconds a row": decided.seconds,
    }


def _tell_fit(found: fit.LabelFit, again: bool) -> dict[str, Any]:
    made = found.calibration
    return {
        "chosen": found.candidates[0].name,
        "tried": {candidate.name: candidate.nll for candidate in found.candidates},
        "temperature": made.temperature,
        "abstain_below": made.abstain_below if found.reached else None,
        "answered": found.answered,
        "right of that": found.kept,
        "asked again of the service": again,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.banking", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="banking77_train.csv")
    parser.add_argument("--folder", type=Path, required=True, help="the same model in floats, for the pipeline")
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--key", default="")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="the service's own calibrations: ask it again")
    parser.add_argument("--classes", type=int, choices=range(3, LETTERS + 1), default=LETTERS, metavar="3-26")
    parser.add_argument("--rows", type=int, default=400, help="of these classes, at most (%(default)s)")
    parser.add_argument("--theirs", type=int, default=200, help="of the rest, for the pipeline (%(default)s)")
    parser.add_argument("--split", type=float, default=0.5, help="share to fit on (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("banking.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
