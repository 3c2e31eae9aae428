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

KEYS = (
    "The way: plan, volume, upload, up. Keys come from the environment: RUNPOD_API_KEY; ZOPILOT_GPU_API_KEY for those "
    "who will ask the service; S3's for upload."
)
MODE = "queue: down to no worker; pod: always up; lb: a load balancer, with a worker that is kept"


def read(program: str, description: str | None, commands: Mapping[str, Callable[..., int]]) -> argparse.Namespace:
    """What was written behind `program`; `command` is what to call with it."""
    parser = argparse.ArgumentParser(prog=program, description=description, epilog=KEYS)
    parser.set_defaults(dry_run=False, mode="", env=[], image="", data_center="", baked=False, disk=30, rate=None)
    parser.set_defaults(workers_min=None, workers_max=3, wait_minutes=20, idle_minutes=0, max_cost=0, volume_size=0)
    add = parser.add_subparsers(required=True, metavar="COMMAND").add_parser
    for name, command in commands.items():
        told = (command.__doc__ or "").replace("`", "")
        sub = add(name, help=told.splitlines()[0], description=told)
        sub.set_defaults(command=command)
        sub.add_argument("--name", type=_name, default="zopilot", help="of the deployment; what it makes is called so")
        sub.add_argument("--api", default=URL, metavar="URL", help=argparse.SUPPRESS)
        sub.add_argument("--pod-url", default=POD_URL, metavar="URL", help=argparse.SUPPRESS)
        if name in ("plan", "volume", "up", "logs", "down"):
            default = "queue" if name in ("plan", "volume") else ""
            sub.add_argument("--mode", choices=MODES, required=name in ("up", "logs"), default=default, help=MODE)
        if name in ("plan", "volume", "up"):
            _add_model(sub)
        if name in ("plan", "volume"):
            size = "default: what the model needs"
            sub.add_argument("--volume-size", type=_whole(10, 4096), default=0, metavar="GB", help=size)
        if name in ("volume", "upload", "up"):
            where = "default: where " + ("a card is free" if name == "volume" else "the volume is")
            sub.add_argument("--data-center", default="", metavar="ID", help=where)
        if name == "upload":
            sub.add_argument("--model", choices=list(catalog.IMPORTS), default=catalog.MIXTRAL.name)
        if name in ("volume", "up"):
            sub.add_argument("--dry-run", action="store_true", help="print the requests as JSON lines and send none")
        if name in ("plan", "up"):
            sub.add_argument("--rate", type=_positive, metavar="N", help="documents a second that you have measured")
        if name == "up":
            _add_container(sub)
        if name in ("up", "watch"):
            for word, metavar, ends in (
                ("--idle-minutes", "MINUTES", "stop a pod that is watched for so long without work"),
                ("--max-cost", "DOLLARS", "stop a pod before its run costs more"),
            ):
                sub.add_argument(word, type=_positive, default=0, metavar=metavar, help=ends)
        if name == "logs":
            sub.add_argument("--tail", type=_whole(0, 5000), default=100, metavar="LINES", help="of the past, each log")
            sub.add_argument("--follow", action="store_true", help="and what comes, until Ctrl-C")
        if name == "down":
            sub.add_argument(
                "--volume", action="store_true", help="the volume too, and the weights on it; kept without"
            )
    return parser.parse_args()


def order(options: argparse.Namespace) -> Order:
    """What was asked for, with the keys of this environment."""
    service, known = settings.read(), settings.read(form=settings.Operator)
    rehearsed = rehearsal.CENTER if options.dry_run else ""
    least = options.workers_min if options.workers_min is not None else int(options.mode == "lb")
    return Order(
        name=options.name,
        mode=options.mode,
        row=catalog.ROWS[options.model],
        image=options.image,
        keys=service.api_keys,
        receipt_key=service.receipt_key,
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
        "--cuda", type=_cuda, default=cards.CUDA, metavar="X.Y", help="the oldest CUDA that a host may have"
    )


def _add_container(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, help="by version or digest, never :latest")
    parser.add_argument(
        "--env", type=_pair, action="append", default=[], metavar="NAME=VALUE", help="of the container; again for more"
    )
    parser.add_argument("--baked", action="store_true", help="the weights are in the image: no volume")
    parser.add_argument("--disk", type=_whole(1, 100_000), default=30, metavar="GB", help="of the container")
    parser.add_argument(
        "--workers-min", type=_whole(0, 1000), metavar="N", help="kept and paid for; default: 1 with lb, else 0"
    )
    parser.add_argument(
        "--workers-max", type=_whole(1, 1000), default=3, metavar="N", help="of an endpoint; default: 3"
    )
    parser.add_argument(
        "--wait-minutes", type=_positive, default=20, metavar="MINUTES", help="that it may take to answer; default: 20"
    )


def _name(text: str) -> str:
    """Of which RunPod's names are made, and that nothing else is called by chance."""
    if not re.fullmatch(r"[a-z0-9](-?[a-z0-9]){0,39}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 40 small letters, digits and single hyphens")
    return text


def _cuda(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not like {cards.CUDA}")
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return parse


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
