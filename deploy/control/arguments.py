"""The command line of scripts/deploy: which words each command takes, and what they are when they are not given."""

import argparse
import re
from collections.abc import Callable, Mapping

import settings
from deploy.control import cards, rehearsal
from deploy.control.order import Order
from deploy.control.probe import POD_URL
from deploy.control.runpod import URL
from deploy.control.standing import MODES
from models import catalog


def read(program: str, description: str | None, commands: Mapping[str, Callable[..., int]]) -> argparse.Namespace:
    """What was written behind `program`; `command` is what to call with it."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.set_defaults(dry_run=False, mode="", env=[], image="", wait_minutes=20, workers_min=None, workers_max=3)
    parser.set_defaults(baked=False, disk=30, idle_minutes=0, max_cost=0, rate=None)
    add = parser.add_subparsers(required=True, metavar="COMMAND").add_parser
    for name, command in commands.items():
        told = (command.__doc__ or "").replace("`", "")
        sub = add(name, help=told.splitlines()[0], description=told)
        sub.set_defaults(command=command)
        sub.add_argument("--name", default="zopilot", help="of the deployment; what it makes is called after it")
        sub.add_argument("--api", default=URL, metavar="URL", help=argparse.SUPPRESS)
        sub.add_argument("--pod-url", default=POD_URL, metavar="URL", help=argparse.SUPPRESS)
        if name in ("plan", "volume", "up", "logs", "down"):
            default = "queue" if name in ("plan", "volume") else ""
            sub.add_argument("--mode", choices=MODES, required=name in ("up", "logs"), default=default)
        if name in ("plan", "volume", "up"):
            _add_model(sub)
        if name == "upload":
            sub.add_argument("--data-center", default="", metavar="ID", help="of the volume, where there are several")
            sub.add_argument("--model", choices=list(catalog.IMPORTS), default=catalog.MIXTRAL.name)
        if name in ("volume", "up"):
            sub.add_argument("--dry-run", action="store_true", help="print the requests as JSON lines and send none")
        if name in ("plan", "up"):
            sub.add_argument("--rate", type=_positive, metavar="N", help="documents a second that you have measured")
        if name == "up":
            _add_container(sub)
        if name in ("up", "watch"):
            sub.add_argument("--idle-minutes", type=_positive, default=0, help="stop a pod without work for so long")
            sub.add_argument(
                "--max-cost", type=_positive, default=0, help="stop a pod before its run costs more dollars"
            )
        if name == "logs":
            sub.add_argument("--tail", type=int, default=100, choices=range(5001), metavar="LINES")
            sub.add_argument("--follow", action="store_true")
        if name == "down":
            sub.add_argument(
                "--volume", action="store_true", help="the volume too, and the weights on it; kept without"
            )
    return parser.parse_args()


def order(options: argparse.Namespace) -> Order:
    """What was asked for, with the keys of this environment."""
    known = settings.read(form=settings.Operator)
    rehearsed = rehearsal.CENTER if options.dry_run else ""
    least = options.workers_min if options.workers_min is not None else int(options.mode == "lb")
    return Order(
        name=options.name,
        mode=options.mode,
        row=catalog.ROWS[options.model],
        image=options.image,
        keys=settings.read().api_keys,
        env=dict(options.env),
        cards=options.card,
        center=options.data_center or rehearsed,
        baked=options.baked,
        volume_size=options.volume_size,
        disk=options.disk,
        workers=(least, options.workers_max),
        cuda=options.cuda,
        registry=(known.registry_user, known.registry_password),
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    """What decides where it can stand."""
    parser.add_argument("--model", choices=list(catalog.ROWS), default=catalog.MIXTRAL.name)
    parser.add_argument(
        "--card", action="append", choices=list(cards.TYPES), default=[], help="again for a second choice"
    )
    parser.add_argument(
        "--data-center", default="", metavar="ID", help="as RunPod calls it; default: where a card is free"
    )
    parser.add_argument("--volume-size", type=int, default=0, metavar="GB", help="default: what the model needs")
    parser.add_argument("--cuda", default=cards.CUDA, metavar="X.Y", help="the oldest CUDA that a host may have")


def _add_container(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, help="by version or digest, never :latest")
    parser.add_argument("--env", type=_pair, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--baked", action="store_true", help="the weights are in the image: no volume")
    parser.add_argument("--disk", type=int, default=30, metavar="GB", help="of the container")
    parser.add_argument("--workers-min", type=int, metavar="N", help="kept and paid for; default: 1 with lb, else 0")
    parser.add_argument("--workers-max", type=int, default=3, metavar="N")
    parser.add_argument("--wait-minutes", type=_positive, default=20, help="how long it may take to answer")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _pair(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", text, re.DOTALL)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return found[1], found[2]
