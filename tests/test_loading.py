"""models/loading.py and models/header.py: the bytes of a file become tensors, or nothing does and no thread is left."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import catalog, header, loading, manifest
from models.failure import Failure
from tests.conftest import ROOT

CPU = torch.device("cpu")
DTYPES = list(header.DTYPES.values())
SHAPES = [(), (0,), (1,), (7,), (3, 0, 5), (3, 5), (2, 3, 4, 5), (1000, 33)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loading")]


def made(count: int, seed: int = 0, rows: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"{seed}.{number}": torch.randn((rows, 100), generator=generator) for number in range(count)}


def files(folder: Path, count: int, tensors: int = 4, rows: int = 40) -> list[Path]:
    """`count` shards of `tensors` tensors of 400 * `rows` bytes each."""
    paths = [folder / f"{number:03d}.safetensors" for number in range(count)]
    for number, path in enumerate(paths):
        save_file(made(tensors, number, rows), path)
    return paths


def write(path: Path, table: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, be it true or not; `length` is what its first eight bytes claim."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def about(start: int, end: int, *shape: Any, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape or (end - start,)), "data_offsets": [start, end]}


def refused(*paths: Path) -> str:
    with pytest.raises(Failure) as failure:
        loading.load(paths, CPU)
    assert failure.value.code == "model_broken"
    assert str(paths[0].parent) not in failure.value.message
    return failure.value.message


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Names, dtypes, shapes and bytes; and each tensor keeps alive just what it needs."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        mine = ours[name].cpu()
        assert (mine.dtype, mine.shape, mine.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        flat, expected = (each.reshape(-1).view(torch.uint8) for each in (mine, tensor))
        assert torch.equal(flat, expected)
        assert ours[name].untyped_storage().nbytes() == tensor.nbytes
        assert ours[name].is_contiguous() and not ours[name].requires_grad


@pytest.fixture(params=["direct", "ring"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A CPU's way, and a card's with a card that copies as late as it may."""
    if request.param == "ring":
        monkeypatch.setattr(loading, "open_lane", Card().lane)
    return str(request.param)


class Card:
    """Stands in for a card: a copy is made when somebody waits for it, of what the buffer then holds."""

    def __init__(self) -> None:
        self.buffers: list[int] = []
        self.copies: list[bool] = []

    def lane(self, device: torch.device) -> loading.Ring:
        return loading.Ring(self.allocate, self.copy)

    def allocate(self, size: int) -> torch.Tensor:
        self.buffers.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, buffer: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
        ended = threading.Event()

        def arrive() -> None:
            if not ended.is_set():
                target.copy_(buffer)
                self.copies.remove(False)
                self.copies.append(True)
            ended.set()

        self.copies.append(False)
        return arrive


@pytest.mark.parametrize("piece", [1, 64, 4099, 4 << 20])
def test_the_tensors_are_those_of_safetensors(
    way: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All dtypes and shapes, also where tensors are larger than a piece, or a piece splits an element."""
    monkeypatch.setattr(loading, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES if piece > 1 else SHAPES[:-1]
    tensors = {
        f"{dtype} {shape}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for dtype in DTYPES
        for shape in shapes
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    loaded, report = loading.load([tmp_path / "a.safetensors"], CPU)
    same(loaded, load_file(tmp_path / "a.safetensors"))
    assert report.bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_a_stored_item_is_loaded(way: str, tiny_mixtral_home: Path) -> None:
    paths = sorted(manifest.locate(catalog.MIXTRAL, tiny_mixtral_home / "models").glob("*.safetensors"))
    loaded, report = loading.load(paths, CPU)
    same(loaded, {name: tensor for path in paths for name, tensor in load_file(path).items()})
    assert report.digests == {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("count", [1, 3, 9])
def test_files_are_shared_among_readers(way: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PIECE", 5000)
    paths = files(tmp_path, count)
    loaded, report = loading.load(paths, CPU)
    same(loaded, {name: tensor for path in paths for name, tensor in load_file(path).items()})
    assert report.digests == {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


def test_no_file_is_no_tensor() -> None:
    loaded, report = loading.load([], CPU)
    assert (loaded, report.bytes, report.digests) == ({}, 0, {})
    assert str(report).startswith("loaded 0.00 GB in 0.0 s: 0.00 GB/s")


def test_a_file_without_tensors_is_hashed_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"__metadata__": {"format": "pt"}})
    loaded, report = loading.load([path], CPU)
    assert (loaded, report.digests) == ({}, {"a": sha256(path.read_bytes()).hexdigest()})


def test_tensors_lie_in_any_order_of_their_names(tmp_path: Path) -> None:
    """And a header may be padded, as safetensors does."""
    table = {"a": about(3, 5), "c": about(2, 2, 0), "b": about(0, 2), "d": about(2, 3)}
    path = write(tmp_path / "x", json.dumps(table).encode() + b"   ", b"\1\2\3\4\5")
    loaded, _ = loading.load([path], CPU)
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"a": [4, 5], "b": [1, 2], "c": [], "d": [3]}


def test_the_file_may_change_afterwards(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1)
    loaded, _ = loading.load([path], CPU)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    same(loaded, made(4))
    path.write_bytes(b"")
    same(loaded, made(4))


@pytest.mark.parametrize("kept", [0, 5, 8, 9, 100])
def test_a_file_that_ends_within_its_header_is_refused(kept: int, tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1)
    os.truncate(path, kept)
    assert refused(path) == "000.safetensors cannot be loaded: it ends within its header"


@pytest.mark.parametrize("lost", [1, 4000, 64000])
def test_a_file_that_ends_within_its_tensors_is_refused(lost: int, tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1)
    os.truncate(path, path.stat().st_size - lost)
    assert refused(path) == "000.safetensors cannot be loaded: its header does not describe what it holds"


def test_a_file_that_is_longer_than_its_tensors_is_refused(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1)
    path.write_bytes(path.read_bytes() + b"\0")
    refused(path)


LIES: dict[str, object] = {
    "beyond the file": {"a": about(0, 9)},
    "less than the file": {"a": about(0, 7)},
    "far beyond": {"a": about(0, 1 << 50)},
    "overlapping": {"a": about(0, 5), "b": about(4, 8)},
    "twice the same": {"a": about(0, 8), "b": about(0, 8)},
    "a hole": {"a": about(0, 3), "b": about(4, 8)},
    "a hole at the start": {"a": about(1, 8)},
    "negative": {"a": about(-1, 8, 9)},
    "backwards": {"a": about(8, 0, -8)},
    "backwards and empty": {"a": about(0, 8), "b": about(5, 5, 0)},
    "negative shape": {"a": about(0, 8, -2, -4)},
    "shape too small": {"a": about(0, 8, 7)},
    "shape too large": {"a": about(0, 8, 3, 3)},
    "size of another dtype": {"a": about(0, 8, 8, dtype="F32")},
    "huge and empty": {"a": about(0, 8), "b": about(8, 8, 0, 1 << 62)},
    "huge product and empty": {"a": about(0, 8), "b": about(8, 8, 0, 1 << 40, 1 << 40)},
    "beyond 64 bits": {"a": about(0, 8, 1 << 99)},
    "fraction": {"a": about(0, 8, 8.0)},
    "bool": {"a": about(0, 8, 8, True)},
    "text for a count": {"a": about(0, 8, "8")},
    "no number": b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,8]}}',
    "unknown dtype": {"a": about(0, 8, 1, dtype="F1000")},
    "dtype of another type": {"a": about(0, 8, 8, dtype=["U8"])},
    "no dtype": {"a": {"shape": [8], "data_offsets": [0, 8]}},
    "no shape": {"a": {"dtype": "U8", "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "U8", "shape": [8]}},
    "three offsets": {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 4, 8]}},
    "another key": {"a": about(0, 8) | {"name": "b"}},
    "no object": {"a": [0, 8]},
    "null": {"a": None},
    "text": {"a": "U8"},
    "a list": [about(0, 8)],
    "a number": 8,
    "nothing": {},
    "no JSON": b'{"a":',
    "no text": b"\xff\xfe{}",
    "another encoding": json.dumps({"a": about(0, 8)}).encode("utf-16"),
    "one name twice": json.dumps({"a": about(0, 8)}).encode()[:-1]
    + b',"a":'
    + json.dumps(about(8, 8, 0)).encode()
    + b"}",
    "one key twice": b'{"a":{"dtype":"U8","shape":[8],"shape":[8],"data_offsets":[0,8]}}',
    "too deep": b"[" * 100_000 + b"]" * 100_000,
    "too many digits": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}',
    "empty": b"",
}


@pytest.mark.parametrize("table", LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(table: object, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", table, bytes(8))
    assert refused(path) == "x.safetensors cannot be loaded: its header does not describe what it holds"


def test_without_the_lie_it_is_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": about(0, 8)}, bytes(8))
    same(loading.load([path], CPU)[0], {"a": torch.zeros(8, dtype=torch.uint8)})


@pytest.mark.parametrize("length", [header.LONGEST + 1, 1 << 40, (1 << 64) - 1])
def test_a_huge_header_is_not_read(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": about(0, 8)}, bytes(8), length)
    assert refused(path) == "x cannot be loaded: its header is too long"


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": about(0, 8)}, bytes(8), header.LONGEST)
    assert refused(path) == "x cannot be loaded: it ends within its header"


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, {"a": about(0, 8)}, bytes(8)) for name in "xy")
    assert refused(one, two) == "the tensor a is stored twice"


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_cannot_be_opened_is_a_failure(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        (tmp_path / "x").mkdir()
    why = {"missing": errno.ENOENT, "folder": errno.EISDIR}[kind]
    assert refused(tmp_path / "x") == f"x cannot be loaded: {os.strerror(why)}"


def test_what_is_not_admitted_is_neither_allocated_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[header.Entry] = []

    def admit(entry: header.Entry) -> None:
        seen.append(entry)
        if entry.name == "1.2":
            raise Failure("model_broken", "no")

    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(loading.Meter, "read", None)
    with pytest.raises(Failure, match="no"):
        loading.load(files(tmp_path, 2), CPU, admit)
    assert [entry.name for entry in seen] == ["0.0", "0.1", "0.2", "0.3", "1.0", "1.1", "1.2"]
    assert seen[0] == header.Entry("0.0", torch.float32, (40, 100), 0, 16000)


Reader = Callable[[int, FileIO, memoryview], int]


def read_by(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have each read call made by `reader`, given its number, in pieces of 1000 bytes; the files in order of calls."""
    calls: list[str] = []

    class Slow(FileIO):
        def readinto(self, room: Any, /) -> int:
            calls.append(Path(os.fsdecode(self.name)).name)
            return reader(len(calls), self, room)

    def open_shard(path: Path, stack: ExitStack) -> header.Shard:
        shard = header.open_shard(path, stack)
        slow = stack.enter_context(Slow(path))
        slow.seek(shard.file.tell())
        return replace(shard, file=slow)

    monkeypatch.setattr(loading, "open_shard", open_shard)
    monkeypatch.setattr(loading, "PIECE", 1000)
    return calls


def gently(number: int, file: FileIO, room: memoryview) -> int:
    time.sleep(0.001)
    return FileIO.readinto(file, room)


@pytest.mark.parametrize("number", [1, 2, 10, 50])
def test_a_read_error_ends_everything_at_once(
    way: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing: list[str] = []

    def reader(this: int, file: FileIO, room: memoryview) -> int:
        if this == number:
            failing.append(Path(os.fsdecode(file.name)).name)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(tmp_path))
        return gently(this, file, room)

    calls = read_by(reader, monkeypatch)
    assert refused(*files(tmp_path, 6)) == f"{failing[0]} cannot be loaded: {os.strerror(errno.EIO)}"
    assert len(calls) < 250  # of 384


def test_a_file_that_becomes_shorter_is_a_failure(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = files(tmp_path, 2)

    def reader(this: int, file: FileIO, room: memoryview) -> int:
        if this == 5:
            os.truncate(paths[0], 30_000)
        return gently(this, file, room)

    read_by(reader, monkeypatch)
    assert refused(*paths) == "000.safetensors cannot be loaded: it has become shorter"


def test_the_first_of_several_errors_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the later one is of the earlier file."""
    both = threading.Barrier(2)

    def reader(this: int, file: FileIO, room: memoryview) -> int:
        both.wait(10)
        first = Path(os.fsdecode(file.name)).name == "001.safetensors"
        time.sleep(0 if first else 0.2)
        raise OSError(errno.EIO, "first" if first else "second")

    read_by(reader, monkeypatch)
    assert refused(*files(tmp_path, 2)) == "001.safetensors cannot be loaded: first"


def test_an_error_that_is_no_files_fault_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(device: torch.device) -> loading.Ring:
        raise RuntimeError("no stream")

    monkeypatch.setattr(loading, "open_lane", fault)
    with pytest.raises(RuntimeError, match="no stream"):
        loading.load(files(tmp_path, 3), CPU)


def test_ctrl_c_ends_everything(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(this: int, file: FileIO, room: memoryview) -> int:
        if this == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return gently(this, file, room)

    paths = files(tmp_path, 6)
    calls = read_by(reader, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        loading.load(paths, CPU)
    assert len(calls) < 250  # of 384


@pytest.mark.parametrize("daemon", [True, False])
def test_a_process_that_ends_waits_for_no_daemons_load(daemon: bool, tmp_path: Path) -> None:
    """The service loads in a daemon thread, where no Ctrl-C arrives; what is no daemon comes to its end."""
    script = f"""
import threading, time, torch
from pathlib import Path
from models import loading
loading.PIECE = 1000
reading, readinto = threading.Event(), loading.Meter.read
def slowly(*given):
    time.sleep(0.005)
    reading.set()
    return readinto(*given)
loading.Meter.read = slowly
def load():
    loading.load(sorted(Path({str(tmp_path)!r}).iterdir()), torch.device("cpu"))
    print("loaded", flush=True)
threading.Thread(target=load, daemon={daemon}).start()
assert reading.wait(30)
"""
    files(tmp_path, 3)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=50, capture_output=True)
    assert (done.stdout, done.stderr) == (b"" if daemon else b"loaded\n", b"")


def test_what_a_read_call_leaves_is_read_by_the_next(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems over a network may give less than asked for."""
    read_by(lambda this, file, room: FileIO.readinto(file, room[: 1 + this * 37 % 800]), monkeypatch)
    paths = files(tmp_path, 2)
    loaded, report = loading.load(paths, CPU)
    same(loaded, made(4, 0) | made(4, 1))
    assert report.digests == {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_buffer_is_filled_again_only_when_its_copy_is_done() -> None:
    done: list[str] = []
    ring = loading.Ring(
        lambda size: torch.zeros(size, dtype=torch.uint8),
        lambda buffer, target: lambda: done.append(f"{target[0]} of {buffer.data_ptr()}"),
    )
    pieces = [torch.tensor([number], dtype=torch.uint8) for number in range(5)]
    places = []
    for number, piece in enumerate(pieces):
        room = ring.room(piece)
        assert len(room) == 1
        assert len(done) == max(0, number + 1 - loading.SLOTS)
        places.append(torch.frombuffer(room, dtype=torch.uint8).data_ptr())
        ring.send(piece)
    assert len(set(places)) == loading.SLOTS
    ring.finish()
    assert done == [f"{number} of {place}" for number, place in enumerate(places)]


@pytest.mark.parametrize("fails", [False, True])
def test_every_copy_has_ended_when_loading_has(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fault too: it would write into memory that is no longer the tensor's."""
    card = Card()

    def reader(this: int, file: FileIO, room: memoryview) -> int:
        if fails and this == 30:
            raise OSError(errno.EIO, "")
        return gently(this, file, room)

    monkeypatch.setattr(loading, "open_lane", card.lane)
    read_by(reader, monkeypatch)
    if fails:
        refused(*files(tmp_path, 3))
    else:
        loading.load(files(tmp_path, 3), CPU)
    assert len(card.copies) > 20
    assert all(card.copies)


def test_memory_beside_the_tensors_is_the_rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    monkeypatch.setattr(loading, "open_lane", card.lane)
    monkeypatch.setattr(loading, "PIECE", 50_000)
    loading.load(files(tmp_path, 12), CPU)
    assert set(card.buffers) == {50_000}
    assert 0 < len(card.buffers) <= loading.READERS * loading.SLOTS


@pytest.mark.parametrize("count", [1, 5])
def test_no_file_is_ever_held_whole(way: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and numpy allocate; torch is not looked at, its part is in the test above."""
    monkeypatch.setattr(loading, "PIECE", 100_000)
    paths = files(tmp_path, count, tensors=2, rows=5000)
    loading.load(paths, CPU)  # what is allocated once
    tracemalloc.start()
    try:
        loading.load(paths, CPU)
        assert tracemalloc.get_traced_memory()[1] < 300_000  # of 4,000,000 bytes a file
    finally:
        tracemalloc.stop()


def test_reading_is_timed_once_however_many_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0 to 4 and, meanwhile, from 1 to 3; then from 10 to 11: 5 s with a read under way, 7 s in calls."""
    clock = iter([0.0, 1.0, 3.0, 4.0, 10.0, 11.0])
    monkeypatch.setattr(loading, "perf_counter", lambda: next(clock))
    told: list[int] = []
    meter = loading.Meter(told.append)

    class Nested(FileIO):
        def readinto(self, room: Any, /) -> int:
            return 5 + (meter.read(self, room[1:]) if len(room) else 0)

    with Nested(os.devnull) as file:
        assert meter.read(file, memoryview(b"x")) == 10
        assert meter.read(file, memoryview(b"")) == 5
    assert told == [5, 10, 5]
    assert (meter.reading, meter.calls) == (5, 7)


def test_the_report_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zopilot.load")
    _, report = loading.load(files(tmp_path, 2), CPU)
    assert [record.getMessage() for record in caplog.records] == [str(report)]
    assert report.bytes == 2 * 4 * 16_000
    assert 0 < report.each_reading <= report.reading < report.seconds < 60


def test_the_report_in_words() -> None:
    report = loading.Report(24_480_000_000, 8.1, 7.2, 5.1, 0, {})
    assert str(report) == (
        "loaded 24.48 GB in 8.1 s: 3.02 GB/s; reading alone (0.00 GB of it from a disk): 3.40 to 4.80 GB/s"
    )
    assert "alone (12.00 GB of it from a disk):" in str(replace(report, fetched=12_000_000_000))
    assert "alone (disk or page cache):" in str(replace(report, fetched=None))


def test_what_the_kernel_does_not_tell_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "fetched_bytes", lambda: None)
    assert loading.load(files(tmp_path, 1), CPU)[1].fetched is None
    counts = iter([100, 350])
    monkeypatch.setattr(loading, "fetched_bytes", lambda: next(counts))
    assert loading.load(files(tmp_path, 1), CPU)[1].fetched == 250


@pytest.mark.parametrize(
    ("text", "count"), [("rchar: 1\nread_bytes: 4096\n", 4096), ("rchar: 1\n", None), ("odd", None), (None, None)]
)
def test_the_kernels_count_is_read(text: str | None, count: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    assert loading.fetched_bytes() == count


@pytest.mark.parametrize(("cores", "count", "readers"), [(16, 33, 8), (16, 3, 3), (1, 33, 2), (3, 33, 3), (None, 9, 2)])
def test_readers(cores: int | None, count: int, readers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_lane(device: torch.device) -> loading.Direct:
        opened.append(device)
        return loading.Direct()

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(loading, "open_lane", open_lane)
    loading.load(files(tmp_path, count), CPU)
    assert opened == [CPU] * readers


@pytest.mark.gpu
@pytest.mark.parametrize("piece", [4099, 4 << 20])
def test_a_card_holds_what_safetensors_reads(
    piece: int, tiny_mixtral_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that was used before, and just now still is, holds nothing else afterwards."""
    monkeypatch.setattr(loading, "PIECE", piece)
    paths = sorted(manifest.locate(catalog.MIXTRAL, tiny_mixtral_home / "models").glob("*.safetensors"))
    paths += files(tmp_path, 6, rows=5000)
    card = torch.device("cuda")
    for _ in range(5):
        busy = [torch.empty(1 << 28, dtype=torch.uint8, device=card).fill_(7) for _ in range(4)]
        del busy
        loaded, report = loading.load(paths, card)
        assert {tensor.device.type for tensor in loaded.values()} == {"cuda"}
        same(loaded, {name: tensor for path in paths for name, tensor in load_file(path).items()})
        assert report.digests == {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}
        del loaded
