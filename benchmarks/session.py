"""Start who takes part and let them take turns. While one is measured, the others that we started are stopped."""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from benchmarks import host, load, peers, wire, workload
from benchmarks.failure import Unusable
from benchmarks.install import install
from benchmarks.load import Load, Run
from benchmarks.peers import ROOT, Peer, Place
from benchmarks.processes import free_port, pause, resume, running, wait_ready
from benchmarks.record import OURS, Contestant, Round
from benchmarks.wire import Server
from benchmarks.workload import Question

START_SECONDS = 900.0
OUR_LIBRARIES = ("bentoml", "torch", "transformers", "bitsandbytes", "llguidance")


@dataclass(frozen=True)
class Seat:
    """A contestant with its server, and its process where we started it."""

    contestant: Contestant
    server: Server | None
    process: psutil.Process | None = None


@dataclass(frozen=True)
class Plan:
    """What is asked of each."""

    loads: Sequence[Load]
    documents: int
    rounds: int
    seed: int
    timeout: float
    limit: float


def seat_ours(stack: ExitStack, cache: Path, threads: int, url: str) -> Seat:
    """Our service, started unless a URL is given; Unusable is not caught: without ours nothing can be compared."""
    about = "POST /prompt with a schema, NF4 weights, products in bf16 where the CPU has it, float32 elsewhere"
    contestant = Contestant(OURS, about, versions=host.versions(ROOT / ".venv", OUR_LIBRARIES))
    if url:
        contestant = replace(contestant, about=f"{about}, at {url}")
        return Seat(contestant, asyncio.run(_greet(Server(OURS, url))))
    place = Place(cache, free_port(), threads)
    process, started = _start(stack, OURS, peers.ours(place), place, "/readyz")
    server = asyncio.run(_greet(Server(OURS, started)))
    pause(process)
    return Seat(contestant, server, process)


def seat_peer(stack: ExitStack, cache: Path, threads: int, peer: Peer) -> Seat:
    """Install, start and learn one peer; where that fails, a seat that says why."""
    contestant = Contestant(peer.name, peer.about, belief=peer.belief)
    place = Place(cache, free_port(), threads)
    try:
        installed = install(peer.venv, place)
        install(peer.weights, place)
        took = f"installed in {installed.seconds:.0f} s, {installed.size / 1e9:.1f} GB"
        versions = host.versions(cache / peer.venv, peer.versions)
        contestant = replace(contestant, installed=took, versions=versions)
        process, url = _start(stack, peer.name, peers.start(peer, place), place, peer.ready)
        server = asyncio.run(_learn(peer.name, url, peer.model or place.folder))
    except Unusable as reason:
        return Seat(replace(contestant, absent=str(reason)), None)
    pause(process)
    return Seat(replace(contestant, schema=server.schema), server, process)


def seat_stranger(name: str, url: str) -> Seat:
    """A server that somebody else has started."""
    contestant = Contestant(name, f"at {url}, started by hand")
    try:
        server = asyncio.run(_learn(name, url, ""))
    except Unusable as reason:
        return Seat(replace(contestant, absent=str(reason)), None)
    return Seat(replace(contestant, schema=server.schema), server)


def take_turns(seats: Sequence[Seat], plan: Plan) -> Iterator[Round]:
    """Every round and load asks documents that no server has seen, the same of all, in changing order."""
    present = [seat for seat in seats if seat.server is not None]
    for number in range(plan.rounds):
        turn = number % len(present)
        order = present[turn:] + present[:turn]
        for wanted in plan.loads:
            seed = f"{plan.seed} {number} {wanted.title}"
            questions = workload.make(seed, max(plan.documents, wanted.clients))
            for seat in order if number % 2 == 0 else order[::-1]:
                print(f"bench: round {number + 1}, {wanted.title}: {seat.contestant.name}", file=sys.stderr, flush=True)
                yield Round(seat.contestant.name, number, wanted, _turn(seat, wanted, questions, seed, plan))


def _turn(seat: Seat, wanted: Load, questions: Sequence[Question], seed: str, plan: Plan) -> Run:
    if seat.process is None:
        return asyncio.run(_measure(seat, wanted, questions, seed, plan))
    resume(seat.process)
    try:
        return asyncio.run(_measure(seat, wanted, questions, seed, plan))
    finally:
        pause(seat.process)


async def _measure(seat: Seat, wanted: Load, questions: Sequence[Question], seed: str, plan: Plan) -> Run:
    server = seat.server
    assert server is not None
    async with _client() as client:

        async def ask(question: Question, due: float) -> wire.Answer:
            return await wire.ask(client, server, question, due, plan.timeout)

        return await load.run(wanted, questions, ask, seed, plan.limit)


async def _learn(name: str, url: str, model: str) -> Server:
    async with _client() as client:
        server = await wire.learn(client, name, url, model)
    return await _greet(server)


async def _greet(server: Server) -> Server:
    """The first question is not measured: it warms up, and shows whether there is a point in going on."""
    (question,) = workload.make("first", 1)
    async with _client() as client:
        answer = await wire.ask(client, server, question, time.perf_counter(), START_SECONDS)
    if answer.outcome in ("refused", "failed"):
        raise Unusable(f"its first answer: {answer.outcome}, {answer.detail}")
    return server


def _client() -> httpx.AsyncClient:
    """No limit but ours, and no proxy of the environment: all of this is loopback."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)


def _start(stack: ExitStack, name: str, command: list[str], place: Place, ready: str) -> tuple[psutil.Process, str]:
    print(f"bench: starting {name}", file=sys.stderr, flush=True)
    log = place.cache / f"{name.replace(' ', '-')}.log"
    process = stack.enter_context(running(command, log, ROOT))
    url = f"http://127.0.0.1:{place.port}"
    wait_ready(process, f"{url}{ready}", log, START_SECONDS)
    return process, url
