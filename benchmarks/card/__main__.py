"""Measure the model on this machine's NVIDIA card, beside the card's own limits; a JSON file, a picture and a table.

Exit status 1 if bytes or greedy tokens are not what they should be; 0 otherwise, also where there is no card.
"""

import argparse
import json
import sys
from pathlib import Path
from time import monotonic

import settings
from benchmarks.card import plot, report
from benchmarks.card.sections import SECTIONS, Found, Section, holds
from models import machine

PROGRAM = "python -m benchmarks.card"


def main() -> int:
    options = _options()
    if options.plot:
        return show(json.loads(options.plot.read_text()), options.plot)
    began = monotonic()
    settings.harden_process()
    card = machine.card(settings.visible_cards())
    if card is None:
        print("there is no NVIDIA card here; nothing was measured")
        return 0
    # Only now: torch comes with the environment that was just made, and takes seconds.
    from benchmarks.card import rig, run

    options.out.mkdir(exist_ok=True, parents=True)
    path = options.out / run.file_name(card.name, options.layers)
    found = run.measure(card, rig.config(options.layers), options.only, path, began + options.budget)
    show(found, path)
    return 0 if holds(found) else 1


def show(found: Found, path: Path) -> int:
    """The table, and the picture beside the file."""
    print(report.table(found))
    try:
        plot.draw(found, path.with_suffix(".png"))
    except ImportError as missing:
        print(f"no picture: {missing}; {PROGRAM} --plot {path} draws it later", file=sys.stderr)
    return 0


def _options() -> argparse.Namespace:
    about = "\n".join(f"  {each.name:<12}{each.seconds:>4} s  {each.about}" for each in SECTIONS)
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        epilog=f"sections, and what they are expected to take on an H200:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layers", type=int, default=32, help="of the model (32); fewer where they do not fit")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder of the files (benchmarks)")
    parser.add_argument("--only", type=_sections, metavar="NAME,NAME", help="these sections, in their own order")
    parser.add_argument("--tune", action="store_true", help="search for better tiles as well, at the end")
    parser.add_argument("--budget", type=float, default=480, help="seconds after which no section is begun (480)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw and print an earlier run again")
    options = parser.parse_args()
    if options.only is None:
        options.only = tuple(each for each in SECTIONS if options.tune or each.name != "tune")
    return options


def _sections(text: str) -> tuple[Section, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if strange := sorted(set(names) - {each.name for each in SECTIONS}):
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is none of {', '.join(each.name for each in SECTIONS)}")
    return tuple(each for each in SECTIONS if each.name in names)


if __name__ == "__main__":
    sys.exit(main())
