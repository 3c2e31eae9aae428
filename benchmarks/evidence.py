"""How well models/evidence.py finds true values and refuses false ones, on receipts whose truth is known; and how fast.

Run as: python -m benchmarks.evidence --data sroie_train.jsonl. Nothing here asks the matcher what is right:
- A true value counts where its letters and digits, case apart, stand in a row among the text's; it is located if those
  between the offsets are the same. A total also counts as a JSON number, where a number of the text equals it.
- A false value is a true one with one letter or digit changed for another of its kind, drawn at random, or the same
  field of another receipt whose letters and digits are not in the text's. It counts, however like OCR's doing it is,
  unless the change has made something that the text has word for word (for a JSON number: has a number equal to).
"""

import argparse
import json
import random
import re
import string
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from models.evidence import Document, Evidence, locate

KINDS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
LAYOUTS: dict[str, Callable[[list[str]], str]] = {
    "one line": " ".join,
    "lines of six words": lambda words: "\n".join(" ".join(words[at : at + 6]) for at in range(0, len(words), 6)),
}
SIZES = (10_000, 100_000)  # characters
VALUES = 200
HOSTILE = ["0O" * 5_000, "0 O " * 2_500, "l1I|" * 2_500, "1." * 5_000, "rnm" * 3_000, "a-\n" * 3_000]

Receipt = dict[str, Any]


@dataclass
class Tally:
    """Counts of one field. `errors`: the receipt, the field, how the value is false ("" for a true one), the place."""

    stand: int = 0
    located: int = 0
    exact: int = 0
    altered: int = 0
    altered_absent: int = 0
    became_true: int = 0
    swapped: int = 0
    swapped_absent: int = 0
    errors: list[tuple[str, str, str, str]] = field(default_factory=list)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def recall(self) -> float:
        return _share(self.located, self.stand)

    @property
    def refused(self) -> float:
        """Of false values, those said to be absent."""
        return _share(self.altered_absent + self.swapped_absent, self.altered + self.swapped)

    @property
    def precision(self) -> float:
        """Of values said to stand in the text, those that do."""
        believed = self.altered + self.swapped - self.altered_absent - self.swapped_absent
        return _share(self.located, self.located + believed)


def main() -> int:
    """0: at or above both floors with each layout; 1: below."""
    options = _options()
    receipts = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    draws = (options.alterations, options.swaps, options.seed)
    found = {name: measure(receipts, layout, *draws) for name, layout in LAYOUTS.items()}
    for name, tallies in found.items():
        print(f"\n{len(receipts)} receipts, {name}\n{show(tallies)}")
        for error in tallies["all"].errors if options.errors else ():
            print(*error, sep="\t")
    speeds = [time_values(receipts, size, options.seed) for size in SIZES]
    print()
    for each in speeds:
        print("{characters:,} characters: read in {read_ms:.0f} ms, {value_us:.0f} µs a value".format(**each), end="; ")
        print("a hostile value takes {hostile_ms:.0f} ms at most".format(**each))
    print(f"ten times the text: {speeds[1]['value_us'] / speeds[0]['value_us']:.1f} times as long a value")
    everything = [tallies["all"] for tallies in found.values()]
    passed = all(each.recall >= options.recall_floor and each.refused >= options.absent_floor for each in everything)
    if options.json:
        layouts = {name: {key: asdict(tally) for key, tally in tallies.items()} for name, tallies in found.items()}
        options.json.write_text(json.dumps({"layouts": layouts, "speed": speeds, "passed": passed}, indent=1) + "\n")
    return 0 if passed else 1


def measure(
    receipts: list[Receipt], layout: Callable[[list[str]], str], alterations: int, swaps: int, seed: int
) -> dict[str, Tally]:
    """The tally of each field, and of all; `alterations` of each true value, `swaps` for each field."""
    dice = random.Random(seed)
    tallies: dict[str, Tally] = {}
    for receipt in receipts:
        text = layout(receipt["words"])
        document = Document(text)
        for name, value in receipt["entities"].items():
            others = [other["entities"].get(name, "") for other in dice.choices(receipts, k=swaps)]
            trials = [(name, _words(document, text, name, value, others, alterations, dice))]
            if name == "total" and (printed := re.search(r"\d[\d,]*\.\d\d", value)):
                total = printed[0].replace(",", "")
                trials.append(("total, a number", _number(document, text, total, alterations, dice)))
            for field_name, tally in trials:
                tally.errors = [(receipt["key"], field_name, *error[2:]) for error in tally.errors]
                tallies[field_name] = tallies.get(field_name, Tally()) + tally
    return {**tallies, "all": sum(tallies.values(), Tally())}


def _words(
    document: Document, text: str, name: str, value: str, others: list[str], alterations: int, dice: random.Random
) -> Tally:
    """What becomes of a string, of changes to it and of other receipts' strings."""
    tally, letters = Tally(), _squeeze(text)
    if _squeeze(value) and _squeeze(value) in letters:
        found = _find(document, name, value)
        tally.stand, tally.exact = 1, int(found.match == "exact")
        tally.located = int(_cut(found, text) and _squeeze(found.text or "") == _squeeze(value))
        if not tally.located:
            tally.errors.append(("", "", "", f"{value!r} {found.text!r}"))
        for false in [_alter(value, dice) for _ in range(alterations)]:
            _refuse(tally, "altered", _find(document, name, false), _prints(false, text))
    for other in others:
        if _squeeze(other) and _squeeze(other) not in letters:
            _refuse(tally, "swapped", _find(document, name, other), False)
    return tally


def _number(document: Document, text: str, total: str, alterations: int, dice: random.Random) -> Tally:
    """The same for a JSON number; there is no other receipt's, as small amounts stand in many."""
    tally = Tally()
    numbers = {Decimal(each.replace(",", "")) for each in re.findall(r"(?<![\d.,])\d[\d,]*(?:\.\d+)?(?![\d.])", text)}
    if Decimal(total) in numbers:
        found = _find(document, "total", float(total))
        tally.stand, tally.exact = 1, int(found.match == "exact")
        tally.located = int(_cut(found, text) and Decimal((found.text or "").replace(",", "")) == Decimal(total))
        if not tally.located:
            tally.errors.append(("", "", "", f"{total} {found.text!r}"))
        for false in [_alter(total, dice) for _ in range(alterations)]:
            _refuse(tally, "altered", _find(document, "total", float(false)), Decimal(false) in numbers)
    return tally


def _refuse(tally: Tally, how: str, found: Evidence, excused: bool) -> None:
    if excused:
        tally.became_true += 1
        return
    absent = found.match == "absent"
    setattr(tally, how, getattr(tally, how) + 1)
    setattr(tally, f"{how}_absent", getattr(tally, f"{how}_absent") + absent)
    if not absent:
        tally.errors.append(("", "", how, f"{found.value!r} {found.text!r}"))


def _find(document: Document, name: str, value: str | float) -> Evidence:
    (found,) = locate(document, {name: value})
    return found


def _cut(found: Evidence, text: str) -> bool:
    return found.start is not None and text[found.start : found.end] == found.text


def _squeeze(text: str) -> str:
    return re.sub(r"[\W_]", "", text).casefold()


def _alter(value: str, dice: random.Random) -> str:
    """One letter or digit for another of its kind."""
    place = dice.choice([at for at, sign in enumerate(value) if any(sign in kind for kind in KINDS)])
    kind = next(kind for kind in KINDS if value[place] in kind)
    return value[:place] + dice.choice(kind.replace(value[place], "")) + value[place + 1 :]


def _prints(value: str, text: str) -> bool:
    """Whether a text has this, case apart, and not as a part of a longer word or number."""
    core = re.sub(r"^[\W_]+|[\W_]+$", "", value)
    before = r"(?<!\d)(?<!\d[.,])" if core[0].isdigit() else r"(?<![^\W\d_])"
    behind = r"(?!\d)(?![.,]\d)" if core[-1].isdigit() else r"(?![^\W\d_])"
    return re.search(before + re.escape(core) + behind, text, re.IGNORECASE) is not None


def _share(some: int, every: int) -> float:
    return some / every if every else 1.0


def show(tallies: dict[str, Tally]) -> str:
    """A table, one field a line."""
    columns = ("stand", "located", "exact", "altered", "altered_absent", "became_true", "swapped", "swapped_absent")
    lines = [" ".join([f"{'':14}", *columns, " recall  refused precision"])]
    for name, tally in tallies.items():
        counts = [f"{getattr(tally, column):{len(column)}}" for column in columns]
        shares = f"{tally.recall:7.2%} {tally.refused:8.2%} {tally.precision:9.2%}"
        lines.append(" ".join([f"{name:14}", *counts, shares]))
    return "\n".join(lines)


def time_values(receipts: list[Receipt], size: int, seed: int) -> dict[str, float]:
    """Receipts in a row, cut to a size: reading them, VALUES strings of which half are changed, hostile values."""
    text = "\n".join(" ".join(receipt["words"]) for receipt in receipts)[:size]
    values = list(_sample(text, random.Random(seed)))
    reads, finds = [], []
    for _ in range(3):
        begun = time.process_time()
        document = Document(text)
        locate(document, ["nowhere", "12.34", "1/2/2018"])  # what is printed is read when first asked for
        reads.append(time.process_time() - begun)
        begun = time.process_time()
        locate(document, {f"field {at}": value for at, value in enumerate(values)})
        finds.append(time.process_time() - begun)
    hostile = []
    for value in HOSTILE:
        begun = time.process_time()
        locate(document, value)
        hostile.append(time.process_time() - begun)
    micro = min(finds) / len(values) * 1e6
    return {"characters": size, "read_ms": min(reads) * 1e3, "value_us": micro, "hostile_ms": max(hostile) * 1e3}


def _sample(text: str, dice: random.Random) -> Iterator[str]:
    words = [word for word in text.split() if word.isascii() and _squeeze(word)]
    for _ in range(VALUES // 2):
        at = dice.randrange(len(words))
        value = " ".join(words[at : at + dice.randint(2, 5)])
        yield from (value, _alter(value, dice))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="sroie_train.jsonl, or receipts in its form")
    parser.add_argument("--json", type=Path, help="where to write all counts and errors")
    parser.add_argument("--errors", action="store_true", help="print each error, with text of the receipts")
    parser.add_argument("--recall-floor", type=float, default=0.99)
    parser.add_argument("--absent-floor", type=float, default=0.995)
    parser.add_argument("--alterations", type=int, default=5, help="of each true value")
    parser.add_argument("--swaps", type=int, default=5, help="values of other receipts for each field")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
