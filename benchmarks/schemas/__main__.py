"""Measure how schemas that others wrote are served: MaskBench, and the official JSON-Schema-Test-Suite.

Exit status 1 if an instance that is invalid was let through, a valid one blocked for no reason that is listed, a
refusal named no keyword, or an answer that was a success does not fit by the jsonschema library; 0 otherwise.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.schemas.adversary import Adversary
from benchmarks.schemas.cases import Case, read_maskbench, read_suite, unpack
from benchmarks.schemas.run import Found, measure
from benchmarks.schemas.tables import show

BUDGETS = (24, 64, 160)


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    adversary = Adversary()
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, archive, read in (
            ("maskbench", options.maskbench, read_maskbench),
            ("suite", options.suite, read_suite),
        ):
            if archive is not None:
                cases: list[Case] = list(read(unpack(archive, Path(folder) / name)))[:: options.limit]
                found[name] = measure(cases, adversary, options.budgets)
                print(show(name, found[name]), flush=True)
    adversary.stop()
    if options.json:
        options.json.write_text(json.dumps({name: each.told() for name, each in found.items()}, indent=1))
    return 0 if all(each.holds() for each in found.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schemas", description=__doc__)
    parser.add_argument("--maskbench", type=Path, metavar="FILE", help="archive with one JSON a schema")
    parser.add_argument("--suite", type=Path, metavar="FILE", help="archive of the JSON-Schema-Test-Suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--limit", type=int, default=1, metavar="N", help="take every N-th schema (1)")
    parser.add_argument(
        "--budgets", type=_budgets, default=BUDGETS, metavar="N,N", help="tokens of an answer (24,64,160)"
    )
    return parser.parse_args()


def _budgets(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


if __name__ == "__main__":
    sys.exit(main())
