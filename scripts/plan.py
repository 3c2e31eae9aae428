"""Print what a model takes in memory, byte by byte, and whether a card holds it: from its config alone."""

import argparse
import json
import re
import sys
from pathlib import Path

from models import catalog, plan
from models.anatomy.sizes import CONSTANTS
from models.failure import Failure
from models.machine import CARDS, Machine

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def main() -> int:
    """0: printed, and it fits where a card was named; 1: it does not fit; 2: it cannot be planned."""
    parser = argparse.ArgumentParser(prog="scripts/plan", description=__doc__)
    parser.add_argument("model", help=f"{', '.join(catalog.ROWS)}, or the path of a config.json")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--card", choices=list(CARDS), metavar="NAME", help=", ".join(CARDS))
    where.add_argument("--vram", type=size, metavar="SIZE", help="bytes that CUDA shows: 32GiB, 24000MB, …")
    parser.add_argument("--kv-tokens", type=count, default=0, metavar="N", help="tokens in flight that must fit")
    options = parser.parse_args()
    try:
        planned = read(options.model)
    except Failure as failure:
        print(f"scripts/plan: {failure.message}", file=sys.stderr)
        return 2
    show(planned)
    most = catalog.ROWS[options.model].memory if options.model in catalog.ROWS else 0
    if options.card:
        return fit(planned, CARDS[options.card].within(most), options.kv_tokens)
    if options.vram is not None:
        card = Machine("cuda", "the card", options.vram, options.vram)
        return fit(planned, card.within(most), options.kv_tokens)
    return 0


def count(text: str) -> int:
    """A number above 0 that `text` says."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 999999999")
    return int(text)


def size(text: str) -> int:
    """Bytes that `text` says."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) *([KMG]I?B)?", text.strip().upper())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 32GiB or 34359738368")
    return int(float(found[1]) * UNITS[found[2] or ""])


def read(name: str) -> plan.Plan:
    """The plan of a row, or of a config.json of any model of a kind that we know; Failure otherwise."""
    if name in catalog.ROWS:
        return plan.of_row(catalog.ROWS[name])
    path = Path(name)
    try:
        config = json.loads(path.read_text())
        dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    except (OSError, ValueError, AttributeError, RecursionError):
        raise Failure("source_invalid", f"{name} is no model of the catalogue and no config.json") from None
    return plan.make(path.parent.name or name, config, dtype)


def show(planned: plan.Plan) -> None:
    """The ledger."""
    form = "the matrices in NF4" if CONSTANTS in planned.ledger else "none of them in NF4"
    print(f"{planned.name}: {planned.parameters:,} weights, {form}\n")
    for group, count in planned.ledger.items():
        print(f"  {group:24}{count:>18,} bytes")
    print(f"  {'weights':24}{planned.weights:>18,} bytes  {planned.weights / 2**30:.2f} GiB")
    print(f"  {'KV cache, one token':24}{planned.kv_bytes_per_token:>18,} bytes")
    print(f"  {'workspace on a card':24}{plan.WORKSPACE['cuda']:>18,} bytes  an allowance, not measured yet")


def fit(planned: plan.Plan, card: Machine, kv_tokens: int) -> int:
    """Say what fits on `card`; 1 if the model does not."""
    print(f"\n{card.name}: {card.total:,} bytes, {card.total / 2**30:.2f} GiB")
    if card.free < card.total:
        print(f"  of which this model may take {card.free:,}")
    try:
        tokens = planned.budget(card, kv_tokens)
    except Failure as failure:
        print(f"  DOES NOT FIT: {failure.message}")
        return 1
    print(
        f"  fits: {tokens:,} tokens of KV cache, "
        f"{tokens // plan.DOCUMENT:,} documents of {plan.DOCUMENT:,} tokens in flight"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
