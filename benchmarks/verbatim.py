"""What it costs a step to hold a string to the document: masks of copy-only strings beside llguidance's own.

Every state is timed in one run both ways, so that the ratio is of the same machine at the same time. Asks no model.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import NamedTuple

import numpy as np
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

import settings
from models import catalog, manifest, source
from models.engine.follower import Follower
from models.engine.grammar import Grammars
from models.engine.substrings import Substrings, Vocabulary, vocabulary_of
from models.engine.verbatim import Verbatim
from models.failure import Failure
from models.schema.dialect import Schema
from models.schema.fields import fields

EXAMPLES = Path(__file__).parent.parent / "examples"
FRESH, STATES = 5, 40  # documents that are read anew for each kind of state, and states in each
COPY = {"type": "string", "x-verbatim": True, "maxLength": 2000}
DATED = COPY | {"pattern": "^[0-9]{2}[./-][0-9]{2}[./-][0-9]{4}$", "maxLength": 10}


class Kind(NamedTuple):
    """A kind of state: what is asked of the string, and how it begins in a document."""

    name: str
    wanted: Schema
    begin: Callable[[str, random.Random], str]


def common(document: str, dice: random.Random) -> str:
    """The characters that most places begin with, in turn."""
    counts = {character: document.count(character) for character in set(document) if character.isalnum()}
    return dice.choice(sorted(counts, key=lambda character: -counts[character])[:4])


def piece(document: str, dice: random.Random, length: int) -> str:
    start = dice.randrange(len(document) - length)
    return document[start : start + length]


KINDS = (
    Kind("before the quote", COPY, lambda document, dice: ""),
    Kind("at the start", COPY, lambda document, dice: '"'),
    Kind("a common letter", COPY, lambda document, dice: '"' + common(document, dice)),
    Kind("three characters", COPY, lambda document, dice: '"' + piece(document, dice, 3)),
    Kind("a line", COPY, lambda document, dice: '"' + piece(document, dice, 40)),
    Kind("a pattern, start", DATED, lambda document, dice: '"'),
    Kind("a pattern, digit", DATED, lambda document, dice: '"' + dice.choice("0123")),
)


def documents(size: int, file: Path | None) -> dict[str, str]:
    """By name, each of `size` characters."""
    text = (
        "\n".join(path.read_text() for path in sorted(EXAMPLES.glob("documents/*")))
        if file is None
        else file.read_text()
    )
    words, dice = text.split(" "), random.Random(0)
    mixed = " ".join(dice.choice(words) for _ in range(size))
    plain = {"words": mixed, "one page again": text[:2000] * (size // 2000 + 1), "one letter": "a" * size}
    return {name: document[:size] for name, document in plain.items()}


def row(grammars: Grammars, kind: Kind, document: Substrings, text: str, dice: random.Random) -> Verbatim | None:
    """A row in such a state; None where the document has no such beginning."""
    schema = {"type": "object", "properties": {"v": kind.wanted}, "required": ["v"], "additionalProperties": False}
    found = fields(schema)
    assert found is not None
    made = Verbatim(grammars.compile(schema).template.deep_copy(), Follower(found, document))
    begun = '{"v":' + kind.begin(text, dice).replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t")
    return made if made.consume_tokens([document.vocabulary.ids[byte] for byte in begun.encode()]) else None


def measure(grammars: Grammars, kind: Kind, text: str, vocabulary: Vocabulary) -> list[tuple[float, float]]:
    """Milliseconds of the grammar's mask and of what the document adds, for each state; of this thread's own time."""
    dice, times = random.Random(kind.name), []
    for _ in range(FRESH):
        document = Substrings([text], vocabulary)
        for _ in range(STATES):
            if (made := row(grammars, kind, document, text, dice)) is None:
                continue
            began = thread_time()
            masks = np.frombuffer(made.inner.compute_bitmask(), np.uint8).copy()[None]
            between = thread_time()
            made.restrict(masks, [])
            times.append((1e3 * (between - began), 1e3 * (thread_time() - between)))
    return times


def report(name: str, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> float:
    """Print a table for one tokenizer; the slowest step in it."""
    began, size = perf_counter(), len(tokenizer)
    vocabulary = vocabulary_of(from_tokenizer(tokenizer), size)
    print(f"\n{name}: {size} tokens, read in {perf_counter() - began:.2f} s")
    grammars, worst = Grammars(tokenizer, size, {int(tokenizer.eos_token_id or 0)}), 0.0
    for title, text in documents(options.bytes, options.document).items():
        began = perf_counter()
        Substrings([text], vocabulary)
        print(f"\n{title}, {len(text.encode())} bytes, read in {perf_counter() - began:.3f} s")
        print(f"{'state':<20}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'llguidance':>12}{'ratio':>8}")
        for kind in KINDS:
            if not (times := measure(grammars, kind, text, vocabulary)):
                continue
            own = sorted(added for _, added in times)
            theirs = median(inner for inner, _ in times)
            figures = (median(own), own[int(0.99 * (len(own) - 1))], own[-1])
            print(
                f"{kind.name:<20}" + "".join(f"{x:9.3f}" for x in figures) + f"{theirs:12.3f}{figures[0] / theirs:8.1f}"
            )
            worst = max(worst, own[-1])
    return worst


def main() -> int:
    options = _options()
    folders: list[Path] = options.tokenizers
    if not folders:
        for model in catalog.ROWS.values():
            try:
                folders.append(manifest.locate(model, settings.store_path()))
            except Failure:
                print(f"{model.name}: not imported")
    slowest = [report(folder.name, source.open_tokenizer(folder), options) for folder in folders]
    return 0 if slowest else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verbatim", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokenizers", type=Path, nargs="*", help="folders; without one, of all models imported")
    parser.add_argument("--bytes", type=int, default=100_000, help="of a document")
    parser.add_argument("--document", type=Path, help="a text whose words are taken instead of the examples'")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
