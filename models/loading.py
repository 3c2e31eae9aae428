"""Safetensors files made tensors on a device: read by several threads, each byte once, hashed and copied meanwhile.

Knows nothing of what the tensors are for, nor which digest a file should have.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread, current_thread, main_thread
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from models.header import Entry, Shard, broken, entries_of, errors_told, open_shard

log = logging.getLogger("zopilot.load")

READERS = 8  # a core hashes less than 2 GB a second, a good disk gives several times that
SLOTS = 2
PIECE = 4 << 20


@dataclass(frozen=True)
class Report:
    """How a load went: bytes of all tensors, and seconds from opening the files until all lay on the device.

    Of these seconds, `reading` are those in which at least one read call was under way, `each_reading` those that a
    reader spent in read calls on average. What the files can give by themselves lies between bytes / reading (as if
    one read at a time had been all they can serve) and bytes / each_reading (as if reads did not slow each other
    down); where both are near bytes / seconds, the load waited for nothing else. `fetched` is how many bytes the kernel
    meanwhile fetched from disks for this process (None: it does not tell); what is missing to all of them came from the
    page cache, at the speed of memory. `digests` are the SHA-256 of each file in hexadecimal, by its name.
    """

    bytes: int
    seconds: float
    reading: float
    each_reading: float
    fetched: int | None
    digests: Mapping[str, str]

    def __str__(self) -> str:
        taken = (self.seconds, self.reading, self.each_reading)
        rate, least, most = (f"{self.bytes / 1e9 / max(seconds, 1e-9):.2f}" for seconds in taken)
        origin = "disk or page cache" if self.fetched is None else f"{self.fetched / 1e9:.2f} GB of it from a disk"
        return (
            f"loaded {self.bytes / 1e9:.2f} GB in {self.seconds:.1f} s: {rate} GB/s; "
            f"reading alone ({origin}): {least} to {most} GB/s"
        )


def load(
    paths: Iterable[Path], device: torch.device, admit: Callable[[Entry], None] = lambda entry: None
) -> tuple[dict[str, Tensor], Report]:
    """Every tensor of these files by name, each in memory of its own on `device`, and how it went.

    `admit` sees what the headers tell before anything is allocated, and raises what it will. Failure model_broken where
    a file cannot be read, is not well formed, or holds a name a second time. Beside the tensors at most READERS *
    SLOTS * PIECE bytes are held, none of them on a CPU. Whatever is raised, also KeyboardInterrupt, no thread is left.
    """
    began, before = perf_counter(), fetched_bytes()
    with ExitStack() as stack:
        shards = [open_shard(path, stack) for path in paths]
        entries = entries_of(shards)
        for entry in entries:
            admit(entry)
        tensors = {it.name: torch.empty(it.shape, dtype=it.dtype, device=device) for it in entries}
        total = sum(tensor.nbytes for tensor in tensors.values())
        # disable=None: only a terminal gets a bar.
        with tqdm(total=total, unit="B", unit_scale=True, desc="loading", smoothing=0, disable=None) as bar:
            meter = Meter(bar.update)
            digests = _read_all(shards, tensors, device, meter)
    # torch would keep the pinned buffers for ever; before 2.12 it has no way to let go of them.
    if device.type != "cpu" and hasattr(torch.accelerator, "empty_host_cache"):
        torch.accelerator.empty_host_cache()
    after = fetched_bytes()
    fetched = None if after is None or before is None else after - before
    each_reading = meter.calls / max(_readers(shards), 1)
    report = Report(total, perf_counter() - began, meter.reading, each_reading, fetched, digests)
    log.info("%s", report)
    return tensors, report


def fetched_bytes() -> int | None:
    """Bytes that the kernel has fetched from disks for this process so far; None where it does not tell."""
    try:
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counts["read_bytes"])
    except (OSError, ValueError, KeyError):
        return None


def _readers(shards: Sequence[Shard]) -> int:
    # More than there are cores would only take turns at hashing; but two, so that one reads while the other hashes.
    return min(READERS, max(2, os.cpu_count() or 2), len(shards))


def _read_all(shards: list[Shard], into: Mapping[str, Tensor], device: torch.device, meter: "Meter") -> dict[str, str]:
    """Digests by file name, once every tensor is filled; the first error of any reader stops all and is raised."""
    digests: dict[str, str] = {}
    turn = iter(shards)  # one for all readers, so that each file goes to one of them
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def read() -> None:
        try:
            lane = open_lane(device)
            try:
                for shard in turn:
                    digests[shard.name] = _read_shard(shard, into, lane, meter)
            finally:
                lane.finish()  # after a fault as well: no copy may outlive its tensor
            ended.put(None)
        except CancelledError:
            return  # the one who waits has been told why, or ends with the process
        except BaseException as error:
            ended.put(error)

    readers = [Thread(target=read, name="loading", daemon=False) for _ in range(_readers(shards))]
    try:
        for reader in readers:
            reader.start()
        for _ in readers:
            if (error := ended.get()) is not None:
                raise error
    finally:
        meter.stopped = True
        for reader in readers:
            if reader.ident is not None:
                reader.join()
    return digests


def _read_shard(shard: Shard, into: Mapping[str, Tensor], lane: "Direct | Ring", meter: "Meter") -> str:
    digest = sha256(shard.header)
    for entry in shard.entries:
        flat = into[entry.name].reshape(-1).view(torch.uint8)
        for start in range(0, len(flat), PIECE):
            target = flat[start : start + PIECE]
            room = lane.room(target)
            with errors_told(shard.name):
                done = 0
                while done < len(room):
                    if not (count := meter.read(shard.file, room[done:])):
                        raise broken(shard.name, "it has become shorter")
                    done += count
            lane.send(target)
            digest.update(room)
    return digest.hexdigest()


class Meter:
    """What the readers do: bytes told to `tell`; seconds with a read call under way (`reading`), in all `calls`."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        self.reading = self.calls = 0.0
        self.stopped = False
        self._transient = current_thread().daemon
        self._tell = tell
        self._lock = Lock()
        self._under_way = 0
        self._since = 0.0

    def read(self, file: FileIO, room: memoryview) -> int:
        """Read once into `room`; returns the count of bytes, 0 at the file's end.

        CancelledError once `stopped`, or if this is done for a daemon thread and the process is about to end.
        """
        if self.stopped or (self._transient and not main_thread().is_alive()):
            raise CancelledError
        began = perf_counter()
        with self._lock:
            self._since = self._since if self._under_way else began
            self._under_way += 1
        count = 0
        try:
            count = file.readinto(room)
        finally:
            with self._lock:
                ended = perf_counter()
                self._under_way -= 1
                self.calls += ended - began
                self.reading += 0 if self._under_way else ended - self._since
                self._tell(count)
        return count


class Direct:
    """One reader's way into tensors of a CPU: what is read is read into the tensor itself."""

    def room(self, target: Tensor) -> memoryview:
        """Where to read what belongs into `target`, a piece of a tensor as bytes."""
        return target.numpy().data

    def send(self, target: Tensor) -> None:
        """Bring there what was read, perhaps later; it stays readable until `room` is called again."""

    def finish(self) -> None:
        """Return when all that was sent has arrived."""


class Ring:
    """One reader's way onto a card: SLOTS buffers in turn, each filled again only when the copy out of it is done.

    `allocate` makes a buffer of so many bytes; `copy` begins one and returns what waits for its end.
    """

    def __init__(self, allocate: Callable[[int], Tensor], copy: Callable[[Tensor, Tensor], Callable[[], None]]) -> None:
        self._copy = copy
        arrived: Callable[[], None] = lambda: None  # noqa: E731
        self._slots = deque((allocate(PIECE), arrived) for _ in range(SLOTS))

    def room(self, target: Tensor) -> memoryview:
        buffer, arrived = self._slots[0]
        arrived()
        return buffer[: len(target)].numpy().data

    def send(self, target: Tensor) -> None:
        buffer, _ = self._slots.popleft()
        self._slots.append((buffer, self._copy(buffer[: len(target)], target)))

    def finish(self) -> None:
        for _, arrived in self._slots:
            arrived()


def open_lane(device: torch.device) -> Direct | Ring:
    """A reader's way to `device`; to a card, by pinned memory and a stream of its own."""
    if device.type == "cpu":
        return Direct()
    # What torch has allocated may still be in use by earlier work, which the new stream knows nothing of.
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)

    def copy(buffer: Tensor, target: Tensor) -> Callable[[], None]:
        with torch.cuda.stream(stream):
            target.copy_(buffer, non_blocking=True)
            copied = stream.record_event()
        return lambda: copied.synchronize()

    return Ring(lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True), copy)
