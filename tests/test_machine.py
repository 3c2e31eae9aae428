"""models/machine.py: the card as its driver reports it, the host's memory, and a container's bound on it."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from models import machine
from models.failure import Failure
from models.machine import CARDS, Machine

MIB = 1 << 20
GIB = 1 << 30
RTX_5090 = Machine("cuda", "NVIDIA GeForce RTX 5090", 33_000_000_000, 34_190_917_632, (12, 0), "580.95.05", "GPU-1")


class Driver:
    """Stands in for pynvml's functions; counts how often it was opened and closed."""

    def __init__(self, devices: int = 1, broken: str = "", error: int = pynvml.NVML_ERROR_UNKNOWN) -> None:
        self.devices = devices
        self.error = error
        self.broken = broken
        self.opened = self.closed = 0
        self.asked: list[int | str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Driver":
        answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": self.open,
            "nvmlShutdown": self.close,
            "nvmlDeviceGetCount": lambda: self.devices,
            "nvmlDeviceGetHandleByIndex": self.handle,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
                free=33_000_000_000, total=34_190_917_632, used=1_190_917_632
            ),
            "nvmlDeviceGetCudaComputeCapability": lambda handle: [12, 0],
            "nvmlDeviceGetName": lambda handle: "NVIDIA GeForce RTX 5090",
            "nvmlSystemGetDriverVersion": lambda: "580.95.05",
            "nvmlDeviceGetHandleByUUID": self.handle,
            "nvmlDeviceGetUUID": lambda handle: "GPU-1",
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, self.fail if name == self.broken else answer)
        return self

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.closed += 1

    def handle(self, number: int | str) -> object:
        self.asked.append(number)
        return object()

    def fail(self, *_: object) -> None:
        raise pynvml.NVMLError(self.error)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the files that the kernel shows of a container's memory."""
    path = tmp_path / "cgroup"
    path.mkdir()
    monkeypatch.setattr(machine, "CGROUP", path)

    def make(bound: str, current: int, active_file: int, inactive_file: int) -> Path:
        (path / "memory.max").write_text(f"{bound}\n")
        (path / "memory.current").write_text(f"{current}\n")
        (path / "memory.stat").write_text(
            f"anon 123\nfile 456\nactive_anon 7\ninactive_file {inactive_file}\nactive_file {active_file}\nslab 8\n"
        )
        return path

    return make


def test_the_5090_is_what_programs_see_of_it() -> None:
    card = CARDS["rtx-5090"]
    assert card.capability == (12, 0)
    assert card.total == card.free == int(31.36 * GIB)
    assert round(card.total / GIB, 2) == 31.36


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_named_as_it_is_chosen_and_shows_less_than_it_is_sold_with(name: str) -> None:
    sold = {
        "rtx-3090": 24,
        "rtx-4090": 24,
        "rtx-5090": 32,
        "rtx-a6000": 48,
        "rtx-6000-ada": 48,
        "rtx-pro-6000": 96,
        "l4": 24,
        "l40s": 48,
        "a100-40gb": 40,
        "a100-80gb": 80,
        "h100-80gb": 80,
        "h200": 141,
        "b200": 186,
    }
    card = CARDS[name]
    assert (card.device, card.name, card.driver) == ("cuda", name, "")
    assert 0.9 * sold[name] * GIB < card.free == card.total < sold[name] * GIB
    assert (8, 0) <= card.capability <= (12, 0)


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_machine_without_a_driver_has_no_card(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    driver = Driver(broken="nvmlInit", error=error).install(monkeypatch)
    assert machine.card() is None
    assert driver.closed == 0  # nothing was opened


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_UNKNOWN])
def test_a_broken_driver_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Else a small model would be served by the CPU of a machine whose driver was updated and wants a restart."""
    Driver(broken="nvmlInit", error=error).install(monkeypatch)
    with pytest.raises(Failure, match="machine_unfit: the NVIDIA driver cannot be used: "):
        machine.look()
    assert machine.look("cpu").device == "cpu"


@pytest.mark.parametrize(
    ("visible", "asked"), [("", 0), ("0", 0), ("1", 1), ("3,1", 3), (" 2 , 0", 2), ("GPU-77,GPU-1", "GPU-77")]
)
def test_the_first_visible_card_is_asked(monkeypatch: pytest.MonkeyPatch, visible: str, asked: int | str) -> None:
    driver = Driver(8).install(monkeypatch)
    assert machine.look("", visible) == RTX_5090
    assert driver.asked == [asked]


def test_a_driver_without_a_gpu_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(devices=0).install(monkeypatch)
    assert machine.card() is None
    assert (driver.opened, driver.closed, driver.asked) == (1, 1, [])


@pytest.mark.parametrize("devices", [1, 8])
def test_a_card_is_told_as_its_driver_reports_it(monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    driver = Driver(devices).install(monkeypatch)
    found = machine.card()
    assert found == RTX_5090
    assert isinstance(found.capability, tuple)
    assert (driver.opened, driver.closed, driver.asked) == (1, 1, [0])


@pytest.mark.parametrize(
    "broken",
    [
        "nvmlDeviceGetCount",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetName",
        "nvmlSystemGetDriverVersion",
    ],
)
@pytest.mark.parametrize("wanted", ["", "cuda"])
def test_a_card_that_does_not_answer_is_a_failure_and_the_driver_is_closed(
    monkeypatch: pytest.MonkeyPatch, broken: str, wanted: str
) -> None:
    """It is there, so nothing is computed without it unasked."""
    driver = Driver(broken=broken).install(monkeypatch)
    with pytest.raises(Failure) as failure:
        machine.look(wanted)
    assert failure.value.code == "machine_unfit"
    assert failure.value.message == "the NVIDIA driver does not answer for GPU 0: Unknown Error"
    assert isinstance(failure.value.__cause__, pynvml.NVMLError)
    assert (driver.opened, driver.closed) == (1, 1)
    assert machine.look("cpu").device == "cpu"
    assert (driver.opened, driver.closed) == (1, 1)


def test_the_driver_is_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver().install(monkeypatch)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", stop)
    with pytest.raises(KeyboardInterrupt):
        machine.card()
    assert (driver.opened, driver.closed) == (1, 1)


def test_a_card_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver().install(monkeypatch)
    assert machine.look() == machine.look("") == machine.look("cuda") == RTX_5090


def test_a_card_can_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver().install(monkeypatch)
    assert machine.look("cpu").device == "cpu"
    assert driver.opened == 0


@pytest.mark.parametrize(
    "driver",
    [Driver(broken="nvmlInit", error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED), Driver(devices=0)],
    ids=["no driver", "no gpu"],
)
def test_without_a_card_it_is_the_host_unless_a_card_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    driver.install(monkeypatch)
    assert machine.look("").device == machine.look("cpu").device == "cpu"
    with pytest.raises(Failure) as failure:
        machine.look("cuda")
    assert failure.value.code == "machine_unfit"
    assert failure.value.message == "TORCH_DEVICE is cuda and there is no NVIDIA card here"


def test_a_host_without_a_bound_has_what_psutil_says(
    group: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "absent")
    absent = machine.host()
    group("max", 5 * MIB, 1, 2)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    for found in (absent, machine.host()):
        assert found == Machine("cpu", "this host", found.free, psutil.virtual_memory().total)
        assert 0 < found.free <= found.total


def test_what_is_free_on_the_host_is_what_can_be_had_without_swapping(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = SimpleNamespace(total=16 * GIB, available=9 * GIB, free=1 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "absent")
    assert machine.host() == Machine("cpu", "this host", 9 * GIB, 16 * GIB)


def test_a_container_has_its_bound_less_what_it_uses_and_the_files_it_keeps_do_not_count(
    group: Callable[..., Path],
) -> None:
    group(str(64 * MIB), 48 * MIB, 4 * MIB, 12 * MIB)
    assert machine.host() == Machine("cpu", "this container", 32 * MIB, 64 * MIB)


def test_a_container_has_no_more_than_its_host(group: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=16 * GIB, available=9 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    group(str(1 << 50), 4 * GIB, 0, 0)
    assert machine.host() == Machine("cpu", "this container", 9 * GIB, 16 * GIB)
    group(str(12 * GIB), 2 * GIB, 0, 0)  # the host has 9 left for all
    assert machine.host() == Machine("cpu", "this container", 9 * GIB, 12 * GIB)
    group(str(12 * GIB), 7 * GIB, 1 * GIB, 0)
    assert machine.host() == Machine("cpu", "this container", 6 * GIB, 12 * GIB)


@pytest.mark.parametrize("name", ["memory.max", "memory.current", "memory.stat"])
@pytest.mark.parametrize("text", [None, "", "\n", "not a number", "max\n", "a b c\n"], ids=repr)
def test_a_bound_that_cannot_be_read_is_none(group: Callable[..., Path], name: str, text: str | None) -> None:
    path = group(str(64 * MIB), 48 * MIB, 4 * MIB, 12 * MIB)
    assert machine.host().name == "this container"
    if text is None:
        (path / name).unlink()
    else:
        (path / name).write_text(text)
    found = machine.host()
    assert found == Machine("cpu", "this host", found.free, psutil.virtual_memory().total)


@pytest.mark.parametrize("left_out", ["active_file", "inactive_file"])
def test_a_bound_without_the_files_that_are_kept_is_none(group: Callable[..., Path], left_out: str) -> None:
    path = group(str(64 * MIB), 48 * MIB, 4 * MIB, 12 * MIB)
    lines = (path / "memory.stat").read_text().splitlines()
    (path / "memory.stat").write_text("\n".join(line for line in lines if not line.startswith(left_out)))
    assert machine.host().name == "this host"


def test_this_very_machine_is_found() -> None:
    found = machine.look()
    assert found.name
    assert 0 < found.free <= found.total
    assert (found.device == "cuda") == (found.capability > (0, 0)) == bool(found.driver)


def test_the_disk_is_that_of_the_folder_that_would_hold_a_missing_path(tmp_path: Path) -> None:
    def blocks(path: Path) -> int:
        disk = os.statvfs(path)
        return disk.f_blocks * disk.f_frsize

    for path in (tmp_path, tmp_path / "absent", tmp_path / "a" / "b" / "c"):
        assert 0 < machine.disk_free(path) < blocks(tmp_path)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("x")
    assert 0 < machine.disk_free(tmp_path / "file" / "under it") < blocks(tmp_path)


def test_the_disk_of_a_missing_path_is_not_that_of_the_root() -> None:
    """/proc is a file system of its own, and has no room."""
    assert machine.disk_free(Path("/proc/absent/models")) == 0
    assert machine.disk_free(Path("absent/models")) > 0


def test_paths_on_one_file_system_have_its_number_whether_they_exist_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = tmp_path.stat().st_dev
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "a" / "b" / "c", tmp_path / "file" / "under it"):
        assert machine.disk_of(path) == number
    monkeypatch.chdir(tmp_path)
    assert machine.disk_of(Path("absent/models")) == machine.disk_of(Path(".")) == number
    assert not (tmp_path / "absent").exists()
    process = Path("/proc").stat().st_dev
    assert machine.disk_of(Path("/proc/absent/models")) == machine.disk_of(Path("/proc")) == process != number
