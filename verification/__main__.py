"""Hold a running service against rows whose truth is known: make probabilities honest, gate a deployment, replay."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import settings
from models import calibration
from models.calibration import Calibration, FieldCalibration
from models.failure import Failure
from verification import client, fit, golden, replay, report, run
from verification.client import Reply, Service
from verification.failure import Unusable
from verification.golden import Row


def main() -> int:
    """0: done, and all that was asked for holds; 1: it does not; 2: nothing could be said, and why."""
    options = _options()
    try:
        status: int = options.command(options)
    except (Unusable, Failure, settings.SettingError, OSError) as error:
        print(f"scripts/verify: {getattr(error, 'message', error)}", file=sys.stderr)
        return 2
    return status


def fit_all(options: argparse.Namespace) -> int:
    """1 where a target was named that is not reached (the calibration is in force, but never abstains by itself), or
    where fitting made things worse (then it is not)."""
    rows, data = golden.read(options.data, options.labels and golden.read_labels(options.labels))
    if unjudged := [row.line for row in rows if not row.judged]:
        raise Unusable(f"line {unjudged[0]}: nothing is expected")
    plan = fit.Plan(data, options.split, options.floor_rows, options.target_accuracy or fit.Plan.target, options.seed)
    service = _service(options)
    tag = client.find_tag(service)
    replies = client.ask(service, [row.request for row in rows])
    if told := report.tell_unanswered(replies):
        print(told)
    answered = [(row, reply) for row, reply in zip(rows, replies, strict=True) if reply.answer is not None]
    if not answered:
        raise Unusable("no row was answered")
    labelled = [pair for pair in answered if pair[0].asks_label]
    valued = [pair for pair in answered if not pair[0].asks_label]
    holds = [_fit_labels(options, tag, labelled, plan)] if labelled else []
    holds += _fit_fields(options, tag, valued, plan) if valued else []
    return 0 if all(holds) else 1


def _fit_labels(options: argparse.Namespace, tag: str, pairs: list[tuple[Row, Reply]], plan: fit.Plan) -> bool:
    found = fit.fit_labels(tag, [row for row, _ in pairs], [reply for _, reply in pairs], plan)
    print(report.tell_labels(found, plan))
    _draw(options, found, f"{len(found.calibration.labels)} labels, {tag}", "")
    return _enforce(options, found.calibration) and (found.reached or options.target_accuracy is None)


def _fit_fields(options: argparse.Namespace, tag: str, pairs: list[tuple[Row, Reply]], plan: fit.Plan) -> list[bool]:
    holds = []
    for place, found in enumerate(fit.fit_fields(tag, [row for row, _ in pairs], [reply for _, reply in pairs], plan)):
        print(report.tell_fields(found))
        _draw(options, found, f"values, {tag}", f".fields{place or ''}")
        holds.append(_enforce(options, found.calibration))
    return holds


def _enforce(options: argparse.Namespace, made: Calibration | FieldCalibration) -> bool:
    if not made.fit.helps:
        print(f"NOT in force for {made.model}: by NLL the rest is told better without it")
        return False
    print(f"in force for {made.model}: {calibration.write(made, options.out)}")
    return True


def _draw(options: argparse.Namespace, found: Any, title: str, suffix: str) -> None:
    if options.png is not None:
        from verification import diagram

        diagram.draw(found.before, found.after, title, options.png.with_name(f"{options.png.stem}{suffix}.png"))


def run_all(options: argparse.Namespace) -> int:
    """1 where a floor or ceiling does not hold."""
    rows, _ = golden.read(options.data, options.labels and golden.read_labels(options.labels))
    service = _service(options)
    client.find_tag(service)
    began = time.perf_counter()
    replies = client.ask(service, [row.request for row in rows])
    found = run.measure(rows, replies, time.perf_counter() - began, options.price_per_hour)
    if options.record is not None:
        _record(options.record, rows, replies)
    print(report.tell_run(found, len(rows), options.concurrency))
    reasons = run.check(found, options.bounds)
    print("\n".join(f"NOT PASSED: {reason}" for reason in reasons) or f"passed: {len(options.bounds)} bounds hold")
    return 1 if reasons else 0


def _record(path: Path, rows: list[Row], replies: list[Reply]) -> None:
    """Whole or not at all, and for the owner's eyes: it holds the documents."""
    scratch = path.with_name(f"{path.name}.part")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        for row, reply in zip(rows, replies, strict=True):
            if reply.answer is not None:
                file.write(json.dumps({"request": row.request, "reply": reply.answer}, ensure_ascii=False) + "\n")
    scratch.replace(path)


def replay_all(options: argparse.Namespace) -> int:
    """1 where a line is not proven."""
    recorded = golden.read_replies(options.data)
    service = _service(options)
    client.find_tag(service)
    replies = client.ask(service, [replay.again(request, reply) for _, request, reply in recorded])
    verdicts = [
        replay.judge(line, request, reply, fresh, options.tolerance)
        for (line, request, reply), fresh in zip(recorded, replies, strict=True)
    ]
    print(report.tell_replay(verdicts))
    return 0 if all(verdict.proven for verdict in verdicts) else 1


def _service(options: argparse.Namespace) -> Service:
    """The key from the environment need not stand in a list of processes."""
    keys = settings.read().api_keys
    return Service(options.url.rstrip("/"), options.key or (keys[0] if keys else ""), options.concurrency)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/verify", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="fit | run | replay")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--url", default="http://localhost:3000", help="of the running service (%(default)s)")
    common.add_argument("--key", default="", help="default: the first of ZOPILOT_GPU_API_KEY")
    common.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSON lines")
    common.add_argument("--concurrency", type=_count, default=8, help="requests at once (%(default)s)")
    labels = argparse.ArgumentParser(add_help=False)
    labels.add_argument("--labels", type=Path, metavar="FILE", help="a JSON array, for rows that name none")
    _add_fit(commands.add_parser("fit", parents=[common, labels], help="make its probabilities honest"))
    _add_run(commands.add_parser("run", parents=[common, labels], help="measure, and exit 1 below a floor"))
    replayer = commands.add_parser("replay", parents=[common], help="prove or disprove recorded answers")
    allowed = "by which probabilities of labels may differ (%(default)s); all else must be the same"
    replayer.add_argument("--tolerance", type=_tolerance, default=0.01, help=allowed)
    replayer.set_defaults(command=replay_all)
    return parser.parse_args()


def _add_fit(parser: argparse.ArgumentParser) -> None:
    out = settings.store_path().parent / "calibrations"
    parser.add_argument("--split", type=_share, default=0.5, help="share of the rows to fit on (%(default)s)")
    parser.add_argument("--floor-rows", type=_count, default=10, help="that a label needs to get a bias (%(default)s)")
    parser.add_argument("--target-accuracy", type=_share, help=f"of what is answered ({fit.Plan.target})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help="where the service looks (%(default)s)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="reliability diagram")
    parser.set_defaults(command=fit_all)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--price-per-hour", type=float, metavar="PRICE", help="of the machine")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep all answers, for replay")
    known = f"; NAME is a JSON pointer or one of {', '.join(run.NAMES)}"
    for name, kind in (("--floor", _floor), ("--ceiling", _ceiling)):
        parser.add_argument(
            name, dest="bounds", action="append", type=kind, metavar="NAME=VALUE", help="may be repeated" + known
        )
    parser.set_defaults(command=run_all, bounds=[])


def _floor(text: str, above: bool = False) -> run.Bound:
    try:
        return run.read_bound(text, above)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def _ceiling(text: str) -> run.Bound:
    return _floor(text, above=True)


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError("not positive")
    return int(text)


def _tolerance(text: str) -> float:
    if not 0 <= float(text) < 1:
        raise ValueError("not from 0 to below 1")
    return float(text)


def _share(text: str) -> float:
    if not 0 < float(text) < 1:
        raise ValueError("not between 0 and 1")
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
