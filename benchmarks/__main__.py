"""Ask us and other servers the same documents, side by side on this machine, and print how we compare."""

import argparse
import ipaddress
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import host, plot, record, report, workload
from benchmarks.failure import Unusable
from benchmarks.load import Load
from benchmarks.peers import PEERS, ROOT
from benchmarks.record import Record
from benchmarks.session import Plan, Seat, seat_ours, seat_peer, seat_stranger, take_turns

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """0: measured and printed; 1: our own server could not be; 130: interrupted, with what there was kept."""
    options = _options()
    if options.read:
        return show(record.read(options.read), options.read)
    for number in STOPS:
        signal.signal(number, _stop)
    options.cache.mkdir(parents=True, exist_ok=True)
    try:
        found = measure(options)
    except Unusable as reason:
        print(f"scripts/bench: our own server: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/bench: interrupted; all have been ended, and what was measured is kept", file=sys.stderr)
        return 130
    return show(found, options.out)


def _stop(number: int, frame: object) -> None:
    """Every way out passes the same `finally`, and an impatient second Ctrl-C does not cut it short."""
    for other in STOPS:
        signal.signal(other, signal.SIG_IGN)
    print("scripts/bench: ending every server that was started", file=sys.stderr)
    raise KeyboardInterrupt


def measure(options: argparse.Namespace) -> Record:
    """Start, take turns, end; the file is written anew after every turn."""
    loads = [Load(clients=number) for number in options.clients]
    loads += [Load(rate=options.rate)] if options.rate else []
    plan = Plan(loads, options.documents, options.rounds, options.seed, options.timeout, options.limit)
    found = Record(host.describe(ROOT), _facts(plan, options.threads), [], [])
    with ExitStack() as stack:
        seats = _seats(stack, options)
        found = replace(found, contestants=[seat.contestant for seat in seats])
        for turn in take_turns(seats, plan):
            found.rounds.append(turn)
            record.write(found, options.out)
    return found


def _seats(stack: ExitStack, options: argparse.Namespace) -> list[Seat]:
    seats = [seat_ours(stack, options.cache, options.threads, options.ours or "")]
    seats += [seat_stranger(name, url) for name, url in options.peer]
    wanted = [peer for peer in PEERS if peer.name in options.peers]
    return seats + [seat_peer(stack, options.cache, options.threads, peer) for peer in wanted]


def show(found: Record, path: Path) -> int:
    """The table, and the picture beside the file."""
    print(report.markdown(found))
    try:
        plot.draw(found, path.with_suffix(".png"))
    except ImportError as missing:
        print(f"scripts/bench: no picture: {missing}", file=sys.stderr)
    return 0


def _facts(plan: Plan, threads: int) -> dict[str, str]:
    return {
        "model": "SmolLM2-135M-Instruct, from one GGUF file (Q4_1)",
        "asked": f"{plan.documents} documents of {workload.SHORTEST}-{workload.LONGEST} tokens a round (never fewer "
        f"than clients), greedy, at most {workload.MAX_TOKENS} tokens out, one JSON schema",
        "rounds": str(plan.rounds),
        "threads a server": str(threads),
        "seed": str(plan.seed),
        "given up": f"a question after {plan.timeout:g} s, a run after {plan.limit:g} s",
    }


def _options() -> argparse.Namespace:
    cores = os.cpu_count() or 1
    names = ",".join(peer.name for peer in PEERS)
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--peers", nargs="?", const=names, default="", type=_names, help=f"install and start {names}")
    parser.add_argument("--peer", action="append", default=[], type=_peer, metavar="NAME=URL", help="one that runs")
    parser.add_argument("--ours", type=_loopback, metavar="URL", help="our service, where it runs already")
    parser.add_argument("--documents", type=int, default=32, help="how many a round (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--clients", type=_counts, default=[16, 64], metavar="N,N", help="closed loops (16,64)")
    parser.add_argument("--rate", type=float, default=0.25, help="open loop, arrivals a second (0.25); 0: none")
    parser.add_argument("--threads", type=int, default=cores, help="of each server; fewer where others use the cores")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one question (600)")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one run (900)")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="the file; the picture is put beside it")
    parser.add_argument("--read", type=Path, metavar="FILE", help="print an earlier benchmark again")
    parser.add_argument("--cache", type=Path, required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def _names(text: str) -> list[str]:
    known = [peer.name for peer in PEERS]
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if strange := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is none of {', '.join(known)}")
    return wanted


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def _peer(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not name or not url:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL")
    return name, _loopback(url)


def _loopback(url: str) -> str:
    """A load is a load: it is put on this machine alone."""
    address = urlsplit(url).hostname or ""
    try:
        here = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        here = False
    if not here:
        raise argparse.ArgumentTypeError(f"{url!r} is not on this machine (127.0.0.1, [::1], localhost)")
    return url.rstrip("/").removesuffix("/v1")


if __name__ == "__main__":
    sys.exit(main())
