"""Onto RunPod, and down again: what it would cost, what is made, whether it answers, what it says, what is left."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import settings
from deploy.control import arguments, cards, rehearsal, report, standing, upload
from deploy.control.bodies import Pod
from deploy.control.order import Refused, volume_name
from deploy.control.probe import Probe
from deploy.control.problem import ApiError
from deploy.control.rollout import Fallen, Rollout
from deploy.control.runpod import ENDPOINTS, PODS, Client
from deploy.control.watch import Watch, stop
from models import catalog
from models.failure import Failure

PROGRAM = "scripts/deploy"
ENDINGS = (signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """The terminal is gone, or somebody ends us: nobody may read what is said last."""


def main() -> int:
    """0: done; 1: not, and what stands is printed; 2: refused, nothing was sent for it; 130: interrupted, the same."""
    options = arguments.read(PROGRAM, __doc__, COMMANDS)
    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
    try:
        status: int = options.command(options)
    except (Refused, Failure, settings.SettingError) as error:
        _say(f"refused: {getattr(error, 'message', error)}")
        return 2
    except (ApiError, Fallen) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    return status


def _end(number: int, frame: object) -> None:
    for other in ENDINGS:
        signal.signal(other, signal.SIG_IGN)
    raise Ended


def _pass(line: str) -> None:
    """A rehearsal's steps are its requests."""


def _say(line: str) -> None:
    with suppress(OSError):  # a terminal that is gone must not keep a pod from being stopped
        print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


def show_plan(options: argparse.Namespace) -> int:
    """What holds the model, what it costs and how long it takes to start; prices where there is a key."""
    order = arguments.order(options)
    for line in report.tell_needs(order, cards.holding(order.row, order.cards)):
        print(line)
    if not settings.read(form=settings.Operator).runpod_key:
        print("prices and stock are read where RUNPOD_API_KEY is set")
        return 0
    with _client(options) as (client, _):
        pods = cards.offers(order.row, client.gpus("POD", order.cuda), False, order.cards)
        flex = cards.offers(order.row, client.gpus("SERVERLESS", order.cuda), True, order.cards)
    for line in report.tell_offers(pods, flex, options.rate):
        print(line)
    return 0


def make_volume(options: argparse.Namespace) -> int:
    """Find or make the network volume for the weights, which is paid for until it is removed."""
    order = arguments.order(options)
    with _client(options) as (client, probe), standing.told(client, order.name):
        volume = Rollout(client, order, probe).volume()
    if options.dry_run:
        return 0
    print(f"{volume.name}: id {volume.id}, data center {volume.data_center}, {volume.size} GB")
    return 0


def fill_volume(options: argparse.Namespace) -> int:
    """Bring the imported weights onto the volume through its S3 API, without a pod; goes on where it was.

    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY take an S3 key of RunPod's console.
    """
    with _client(options) as (client, _):
        stands = standing.survey(client, options.name)
    found = stands.volumes_in(options.data_center)
    if len(found) != 1:
        where = ", ".join(volume.data_center for volume in stands.volumes) or "none"
        raise Refused(f"one volume is needed ({PROGRAM} volume makes it, --data-center chooses); there are: {where}")
    row, (volume,) = catalog.IMPORTS[options.model], found
    described = upload.upload(row, settings.store_path(), volume.id, volume.data_center)
    print(f"{described.tag} is on {volume.name} ({volume.id}), every byte read back")
    return 0


def bring_up(options: argparse.Namespace) -> int:
    """Make what is not there yet beside the weights, wait until it answers, watch a pod where a limit is given."""
    order = arguments.order(options)
    order.check()
    if _limited(options) and order.mode != "pod":
        raise Refused("--idle-minutes and --max-cost are for pods: an endpoint goes by its workers")
    with _client(options) as (client, probe), standing.told(client, order.name):
        rollout = Rollout(client, order, probe, options.max_cost)
        with _watched(options, client, lambda: standing.survey(client, options.name).pods):
            thing = rollout.make()
        with _watched(options, client, lambda: [thing] if isinstance(thing, Pod) else []):
            running = rollout.answer(thing, 60 * options.wait_minutes)
            if options.dry_run:
                return 0
            for line in report.tell_running(order, running, options.rate):
                print(line, flush=True)
            if isinstance(running.thing, Pod) and _limited(options):
                _watch(options, client, probe, running.thing)
    return 0


def _limited(options: argparse.Namespace) -> bool:
    return bool(options.idle_minutes or options.max_cost)


@contextmanager
def _watched(options: argparse.Namespace, client: Client, find: Callable[[], list[Pod]]) -> Iterator[None]:
    """However it ends but by Ctrl-C, no pod that was given a limit runs on without anybody to see it."""
    try:
        yield
    except Refused:
        raise
    except BaseException as error:
        for pod in find() if _limited(options) and type(error) is not KeyboardInterrupt else []:
            _say(f"stopping {pod.name}: it was not to run unwatched")
            stop(client, pod, pod.cost)
        raise


def _watch(options: argparse.Namespace, client: Client, probe: Probe, pod: Pod) -> None:
    """Until the pod stands still."""
    key, price = (*settings.read().api_keys, "")[0], pod.cost
    with suppress(ApiError):
        price = max([price, *(gpu.price.secure for gpu in client.gpus("POD", cards.CUDA) if gpu.id == pod.card)])
    _say(f"watching {pod.name}; Ctrl-C leaves it running, unwatched")
    watch = Watch(client, probe, key, 60 * options.idle_minutes, options.max_cost, price)
    print(f"stopped: {watch.run(pod)}")


def watch_pod(options: argparse.Namespace) -> int:
    """Stop a pod that is idle or over its budget, for as long as this runs."""
    if not _limited(options):
        raise Refused("give --idle-minutes, --max-cost or both")
    with _client(options) as (client, probe), standing.told(client, options.name):
        pod = standing.survey(client, options.name).single("pod")
        if not isinstance(pod, Pod):
            raise Refused(f"there is no pod {options.name}-pod")
        with _watched(options, client, lambda: [pod]):
            _watch(options, client, probe, pod)
    return 0


def show_status(options: argparse.Namespace) -> int:
    """What stands, what it costs, whether it is ready, and how to remove it."""
    with _client(options) as (client, probe):
        found = standing.survey(client, options.name)
        print("\n".join(found.tell()) or f"nothing stands of {options.name}")
        for pod in found.pods:
            print(f"{pod.name}: {'ready' if probe.ready(probe.pod_url(pod.id)) else 'not ready'}")
        for endpoint in found.endpoints:
            summary = client.workers(endpoint.id).summary
            print(f"{endpoint.name}: " + ", ".join(f"{count} {state}" for state, count in summary))
    return 0


def show_logs(options: argparse.Namespace) -> int:
    """The log of a pod, or of each worker in turn."""
    with _client(options) as (client, _):
        found = standing.survey(client, options.name)
        paths = [f"{PODS.path}/{pod.id}/logs" for pod in found.pods if options.mode == "pod"]
        for endpoint in found.endpoints if options.mode != "pod" else []:
            if endpoint in found.things(options.mode):
                workers = client.workers(endpoint.id).workers
                paths += [f"{ENDPOINTS.path}/{endpoint.id}/workers/{worker.id}/logs" for worker in workers]
        if not paths:
            _say(f"{options.name}-{options.mode} has nothing that runs, so there is no log")
            return 1
        for path in paths:
            for line in client.logs(path, options.tail, options.follow):
                print(f"{line.ts} {line.source} {line.line}", flush=True)
    return 0


def take_down(options: argparse.Namespace) -> int:
    """Remove what `up` has made; the volume, which holds the weights, only with --volume."""
    modes = [options.mode] if options.mode else list(standing.MODES)
    with _client(options) as (client, _), standing.told(client, options.name):
        left = standing.down(client, options.name, modes, options.volume)
        unused = left.registries if not (left.pods or left.endpoints) else []
        if unused or any(left.things(mode) for mode in modes) or (options.volume and left.volumes):
            raise Fallen("not all of it is gone")
    for line in left.tell():
        print(f"left: {line}")
    return 0


@contextmanager
def _client(options: argparse.Namespace) -> Iterator[tuple[Client, Probe]]:
    key, transport = settings.read(form=settings.Operator).runpod_key, None
    if options.dry_run:
        volume = volume_name(options.name) if options.command is bring_up else ""
        transport = rehearsal.Rehearsal(options.data_center, volume)
    elif not key:
        raise Refused("RUNPOD_API_KEY is not set")
    say = _say if transport is None else _pass
    client, probe = Client(key, options.api, transport, say=say), Probe(key, options.pod_url, transport)
    try:
        yield client, probe
    finally:
        client.close()
        probe.close()


COMMANDS = {
    "plan": show_plan,
    "volume": make_volume,
    "upload": fill_volume,
    "up": bring_up,
    "status": show_status,
    "logs": show_logs,
    "watch": watch_pod,
    "down": take_down,
}

if __name__ == "__main__":
    sys.exit(main())
