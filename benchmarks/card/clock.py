"""How long work on a device takes, by the card's own events: back to back, so that launching is hidden if it can be."""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch

WARM = 3


class Timed(NamedTuple):
    """Medians in seconds: `seconds` from the end of one run to the end of the next, `host` until a run was launched."""

    seconds: float
    host: float


def timed(device: torch.device, run: Callable[[], object], repeats: int, warm: int = WARM) -> Timed:
    """Run `warm` times, then `repeats` times back to back."""
    for _ in range(warm):
        run()
    now(device)
    host: list[float] = []
    if device.type != "cuda":
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            host.append(time.perf_counter() - began)
        return Timed(median(host), median(host))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        began = time.perf_counter()
        run()
        event.record()
        host.append(time.perf_counter() - began)
    torch.cuda.synchronize(device)
    spent = [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]
    return Timed(median(spent), median(host))


def captured(device: torch.device, run: Callable[[], object]) -> Callable[[], object]:
    """What replays `run` as a CUDA graph, so that no launch takes longer than the work; on a CPU `run` itself."""
    if device.type != "cuda":
        return run
    run()  # compiles, and takes what libraries take once
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def now(device: torch.device) -> float:
    """Seconds on a clock, once all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
