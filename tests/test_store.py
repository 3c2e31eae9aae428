"""models/store.py: an item is there whole or not at all, whoever is killed, whatever is full, whoever else imports."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bentoml._internal.models import ModelStore
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from models import catalog, loading, manifest, network, store
from models.failure import Failure
from models.nf4 import layout
from models.nf4.matrix import quantise
from tests.importer import Importer, Task, open_importer

CPU = torch.device("cpu")
KILLS = 20


@pytest.fixture(scope="module")
def importer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Importer]:
    with open_importer(tmp_path_factory.mktemp("importer"), HF_HUB_OFFLINE="1") as importer:
        yield importer


@pytest.fixture
def models(tiny_home: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store that may be damaged."""
    shutil.copytree(tiny_home / "models", tmp_path / "models")
    return tmp_path / "models"


def item_of(models: Path) -> Path:
    return manifest.locate(catalog.SMOLLM2, models)


def listed(models: Path) -> list[Path]:
    """The items that BentoML sees."""
    return [Path(model.path) for model in ModelStore(models).list()] if models.is_dir() else []


def staged(models: Path) -> list[str]:
    """What lies in the staging folder."""
    return [path.name for path in (models.parent / "models.staging").iterdir()]


def damage(file: Path) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)


def test_bentoml_lists_and_gets_the_item(tiny_home: Path) -> None:
    script = """
import bentoml, json
listed = [str(model.tag) for model in bentoml.models.list()]
model = bentoml.models.get("smollm2-135m-instruct")
print(json.dumps([listed, str(model.tag), model.path, model.info.metadata]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BENTOML_HOME": str(tiny_home)},
        capture_output=True,
        text=True,
        check=True,
    )
    item = item_of(tiny_home / "models")
    tag = f"smollm2-135m-instruct:{item.name}"
    about = {"source": {"kind": "folder"}, "bits": 4, "architecture": "LlamaForCausalLM"}
    assert json.loads(ran.stdout) == [[tag], tag, str(item), about]


def test_importing_twice_does_nothing_the_second_time(models: Path, tiny_folder: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in models.rglob("*")}

    before = state()
    assert store.import_model(catalog.SMOLLM2, models, tiny_folder) == manifest.read(item_of(models)).tag
    assert state() == before


def test_a_lost_latest_is_written_again(models: Path, tiny_folder: Path) -> None:
    """As after a kill between the item's rename and that of `latest`."""
    item = item_of(models)
    (item.parent / "latest").unlink()
    store.import_model(catalog.SMOLLM2, models, tiny_folder)
    assert item_of(models) == item
    assert sorted(path.name for path in item.parent.iterdir()) == sorted([item.name, "latest"])


def test_a_broken_item_is_replaced(models: Path, tiny_folder: Path) -> None:
    item = item_of(models)
    damage(item / "layer-000.safetensors")
    store.import_model(catalog.SMOLLM2, models, tiny_folder)
    assert manifest.verify(item).tag == f"smollm2-135m-instruct:{item.name}"
    assert listed(models) == [item]
    assert staged(models) == []


def test_what_is_imported_depends_on_the_source_alone(models: Path, tiny_folder: Path) -> None:
    item = item_of(models)
    first = manifest.read(item)
    shutil.rmtree(item)
    store.import_model(catalog.SMOLLM2, models, tiny_folder)
    again = manifest.read(item)
    dated: dict[str, dict[str, str]] = {"model.yaml": {}}  # BentoML writes the time of its making into it
    assert replace(again, files=again.files | dated) == replace(first, files=first.files | dated)


def test_a_changed_folder_is_another_version(models: Path, tiny_folder: Path, tmp_path: Path) -> None:
    item = item_of(models)
    changed = Path(shutil.copytree(tiny_folder, tmp_path / "changed"))
    with (changed / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    store.import_model(catalog.SMOLLM2, models, changed)
    assert sorted(listed(models)) == sorted([item, item_of(models)])
    assert item_of(models) != item


def test_an_item_is_readable_by_all(models: Path) -> None:
    item = item_of(models)
    assert item.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in item.iterdir()} == {0o644}


@pytest.mark.parametrize("which", ["tiny", "smollm2"])
def test_resident_bytes_are_those_of_the_manifest(which: str, request: pytest.FixtureRequest) -> None:
    loaded: store.Loaded = request.getfixturevalue(which)
    assert network.resident_bytes(loaded.network) == loaded.manifest.resident_bytes


def test_smollm2_takes_what_its_shapes_say(smollm2: store.Loaded) -> None:
    attention = 2 * layout.nbytes(576, 576) + 2 * layout.nbytes(192, 576)
    mlp = 2 * layout.nbytes(1536, 576) + layout.nbytes(576, 1536)
    assert smollm2.manifest.resident_bytes == 30 * (attention + mlp) + 4 * (49_152 * 576 + 61 * 576)


def test_what_is_loaded_is_the_source_in_four_bits(tiny: store.Loaded, tiny_folder: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    source = load_file(tiny_folder / "model.safetensors")
    for part, tensor in quantise(source[f"{name}.weight"], CPU)._asdict().items():
        assert torch.equal(tiny.network.get_parameter(f"{name}.{part}"), tensor)
    assert torch.equal(tiny.network.get_parameter("model.norm.weight"), source["model.norm.weight"])


def refuse_to_load(item: Path) -> str:
    with pytest.raises(Failure) as refused:
        store.load(item, CPU)
    assert refused.value.code == "model_broken"
    return refused.value.message


def test_a_broken_item_is_not_loaded(models: Path) -> None:
    damage(item_of(models) / "outside-layers.safetensors")
    assert "outside-layers.safetensors is not what was imported" in refuse_to_load(item_of(models))


@pytest.mark.parametrize("how", ["flipped", "first byte", "truncated", "grown", "gone"])
def test_any_damage_is_told_as_verify_tells_it(models: Path, how: str) -> None:
    """Also where a header, or the config, can no longer be understood."""
    item = item_of(models)
    for name in manifest.read(item).files:
        whole = (item / name).read_bytes()
        if how == "flipped":
            damage(item / name)
        elif how == "gone":
            (item / name).unlink()
        else:
            changed = {"first byte": b"\xff" + whole[1:], "truncated": whole[:-1], "grown": whole + b" "}
            (item / name).write_bytes(changed[how])
        with pytest.raises(Failure) as verified:
            manifest.verify(item)
        assert refuse_to_load(item) == verified.value.message
        assert f"{name} is not what was imported" in verified.value.message
        (item / name).write_bytes(whole)
    store.load(item, CPU)


def test_weights_are_read_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[str] = []
    whole = manifest.describe

    def describe(path: Path) -> dict[str, Any]:
        described.append(path.name)
        return whole(path)

    monkeypatch.setattr(manifest, "describe", describe)
    loaded = store.load(item_of(models), CPU)
    assert sorted(described) == sorted(name for name in loaded.manifest.files if not name.endswith(".safetensors"))
    assert loaded.report.digests.items() <= {
        (name, about["sha256"]) for name, about in loaded.manifest.files.items() if name.endswith(".safetensors")
    }
    assert loaded.report.bytes == loaded.manifest.resident_bytes


def test_what_was_read_counts_where_the_file_looks_whole_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file replaced between two looks, or a bit that fell over on the way."""
    fill = network.fill

    def differently(*given: Any) -> loading.Report:
        report = fill(*given)
        return replace(report, digests={**report.digests, "layer-001.safetensors": "0" * 64})

    monkeypatch.setattr(network, "fill", differently)
    assert "layer-001.safetensors, as it was read, is not what was imported" in refuse_to_load(item_of(models))


def test_weights_that_the_manifest_does_not_name_are_not_loaded(models: Path) -> None:
    item = item_of(models)
    save_file({"model.norm.weight": torch.zeros(64)}, item / "more.safetensors")
    assert "more.safetensors" not in store.load(item, CPU).report.digests


def test_a_manifest_that_lies_about_the_bytes_is_not_believed(models: Path) -> None:
    item = item_of(models)
    described = manifest.read(item)
    manifest.write(replace(described, ledger=described.ledger | {"norms": 1}), item)
    assert "the ledger of its manifest is not that of its config" in refuse_to_load(item)


def test_a_layer_that_the_manifest_forgot_is_missed(models: Path) -> None:
    item = item_of(models)
    described = manifest.read(item)
    (item / "layer-001.safetensors").unlink()
    files = {name: about for name, about in described.files.items() if name != "layer-001.safetensors"}
    manifest.write(replace(described, files=files), item)
    assert "model.layers.1." in refuse_to_load(item)


def take_one_away(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def add_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.bias"] = torch.zeros(128)


def cut_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(64, 64)


@pytest.mark.parametrize("change", [take_one_away, add_one, cut_one])
def test_a_source_that_is_not_its_config_is_refused(
    tmp_path: Path, tiny_folder: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    """Published, it would be an item that verifies, never loads, and that no further import would mend."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "folder"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Failure) as refused:
        store.import_model(catalog.SMOLLM2, tmp_path / "models", folder)
    assert refused.value.code == "source_invalid"
    assert "model.layers.1.mlp.up_proj." in refused.value.message
    assert listed(tmp_path / "models") == []
    assert staged(tmp_path / "models") == []


def test_a_truncated_source_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "folder"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Failure) as refused:
        store.import_model(catalog.SMOLLM2, tmp_path / "models", folder)
    assert refused.value.code == "import_failed"
    assert str(tmp_path) not in refused.value.message
    assert staged(tmp_path / "models") == []


def wait_for(task: Task, models: Path, pattern: str) -> bool:
    """Return as soon as the importer has made what `pattern` matches; False if it ended before."""
    while Path(f"/proc/{task.pid}").exists():
        if any(models.parent.glob(pattern)):
            return True
        if task.result.exists():
            return False
        time.sleep(0.0005)
    return False


def heal(importer: Importer, models: Path, folder: Path) -> str:
    """Import once more, undisturbed; whatever was there before, the store is then in order. Returns the tag."""
    tag: str = importer.run("bring", store=str(models), folder=str(folder))["tag"]
    (item,) = listed(models)
    assert manifest.verify(item).tag == tag
    assert staged(models) == []
    assert sorted(path.name for path in item.parent.iterdir()) == [item.name, "latest"]
    assert (item.parent / "latest").read_text() == item.name
    return tag


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_kill_at_any_moment_leaves_no_broken_item(importer: Importer, tmp_path: Path, tiny_folder: Path) -> None:
    """At random while it reads the source, and while it writes and publishes (most of them)."""
    heal(importer, tmp_path / "first" / "models", tiny_folder)
    begun = time.monotonic()
    task = importer.start("bring", store=str(tmp_path / "undisturbed" / "models"), folder=str(tiny_folder))
    assert wait_for(task, tmp_path / "undisturbed" / "models", "models.staging/*/item/*")
    reading = time.monotonic() - begun
    tag = task.wait()["tag"]
    writing = time.monotonic() - begun - reading

    chance = random.Random(20)
    interrupted = 0
    for number in range(KILLS):
        models = tmp_path / str(number) / "models"
        task = importer.start("bring", store=str(models), folder=str(tiny_folder))
        if number % 5 == 4:
            time.sleep(chance.random() * reading)
        else:
            wait_for(task, models, "models.staging/*/item/*")
            time.sleep(chance.random() * writing)
        task.kill()
        interrupted += task.wait() == {}
        assert all(manifest.verify(item).tag == tag for item in listed(models))
        if number % 2:
            assert heal(importer, models, tiny_folder) == tag
    assert interrupted > 0
    assert store.load(item_of(models), CPU).manifest.tag == tag


@pytest.mark.parametrize("broken", [False, True], ids=["empty", "broken"])
def test_a_kill_before_each_step_of_publishing(
    importer: Importer, tmp_path: Path, tiny_folder: Path, tiny_home: Path, broken: bool
) -> None:
    """Before and after each rename, and before every tenth of the files that are opened, made, changed or removed."""

    def prepare(models: Path) -> None:
        if broken:
            shutil.copytree(tiny_home / "models", models)
            damage(item_of(models) / "layer-000.safetensors")
            (item_of(models).parent / "latest").write_text("folder-000000000000-nf4-2")

    prepare(tmp_path / "undisturbed" / "models")
    whole = importer.run("bring", store=str(tmp_path / "undisturbed" / "models"), folder=str(tiny_folder))
    calls = list(enumerate(whole["calls"], 1))
    renames = [number for number, call in calls if call == "os.rename"]
    assert len(renames) == 3 if broken else 2  # away with the broken one, in with the item, `latest`
    seen = set()
    for call in sorted({*renames, *[number + 1 for number in renames], *range(1, len(calls), 10)}):
        models = tmp_path / str(call) / "models"
        prepare(models)
        assert importer.run("bring", store=str(models), folder=str(tiny_folder), call=call) == {}
        items = listed(models)
        if broken and items and not list(models.parent.glob("models.staging/*/replaced")):
            seen.add("broken as before")
        else:
            assert all(manifest.verify(item).tag == whole["tag"] for item in items)
            seen.add("whole" if items else "absent")
        assert heal(importer, models, tiny_folder) == whole["tag"]
    assert seen == {"whole", "absent", *(["broken as before"] if broken else [])}


def bring_twice(importer: Importer, models: Path, folder: Path) -> None:
    """Two importers at once: both succeed, and what they leave is one whole item."""
    tasks = [importer.start("bring", store=str(models), folder=str(folder)) for _ in range(2)]
    first, second = [task.wait() for task in tasks]
    assert first["tag"] == second["tag"]
    (item,) = listed(models)
    assert manifest.verify(item).tag == first["tag"]
    assert staged(models) == []
    assert (item.parent / "latest").read_text() == item.name
    assert len(list(item.parent.iterdir())) == 2


def test_two_importers_at_once(importer: Importer, tmp_path: Path, tiny_folder: Path) -> None:
    for attempt in range(3):
        bring_twice(importer, tmp_path / str(attempt) / "models", tiny_folder)


def test_two_importers_at_once_mend_a_broken_item(importer: Importer, models: Path, tiny_folder: Path) -> None:
    for _ in range(3):
        damage(item_of(models) / "layer-000.safetensors")
        bring_twice(importer, models, tiny_folder)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A model whose largest file is its tokenizer."""
    path = tmp_path_factory.mktemp("small")
    for file in tiny_folder.glob("*token*"):
        shutil.copy(file, path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("which", "limit"),
    [("tiny_folder", 4096), ("tiny_folder", 1_000_000), ("small_folder", 1_000_000), ("small_folder", 300)],
    ids=["first-shard", "last-shard", "tokenizer", "everything"],
)
def test_a_full_disk_is_a_failure_that_leaves_nothing(
    importer: Importer, tmp_path: Path, which: str, limit: int, request: pytest.FixtureRequest
) -> None:
    """No file may grow beyond `limit`: the same error on the same call as on a full disk, but for its number."""
    folder: Path = request.getfixturevalue(which)
    models = tmp_path / "models"
    result = importer.run("bring", store=str(models), folder=str(folder), limit=limit)
    assert result.get("code") == "import_failed", result
    assert "File too large" in result["message"]
    assert str(tmp_path) not in result["message"]
    assert listed(models) == []
    assert staged(models) == []
    assert not list(models.glob("*/latest*"))
    assert "tag" in importer.run("bring", store=str(models), folder=str(folder))


def test_a_staging_folder_on_another_device_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
        pytest.skip("there is one file system only")
    elsewhere = memory / f"staging-{os.getpid()}"
    elsewhere.mkdir()
    try:
        (tmp_path / "models.staging").symlink_to(elsewhere)
        with pytest.raises(Failure) as refused:
            store.import_model(catalog.SMOLLM2, tmp_path / "models", tiny_folder)
        assert refused.value.code == "import_failed"
        assert "the model store is a mount point" in refused.value.message
        assert list(elsewhere.iterdir()) == []
        assert listed(tmp_path / "models") == []
    finally:
        elsewhere.rmdir()


def test_a_store_may_be_a_link(importer: Importer, tmp_path: Path, tiny_folder: Path) -> None:
    """What that refusal advises."""
    volume = tmp_path / "volume"
    (volume / "weights").mkdir(parents=True)
    (tmp_path / "models").symlink_to(volume / "weights")
    assert "tag" in importer.run("bring", store=str(tmp_path / "models"), folder=str(tiny_folder))
    assert len(listed(volume / "weights")) == 1
    assert sorted(path.name for path in volume.iterdir()) == ["models.staging", "weights"]


def test_sweep_removes_only_what_nobody_works_on(tmp_path: Path) -> None:
    here = socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    gone = [f"a.1.{here}.{dead.pid}", f"b.1.{here}.{os.getpid()}", "c.1.other-host.1"]
    kept = [f"d.1.{here}.{os.getppid()}", "e.1.other-host.1", f"f.1.other-host.{dead.pid}", "g"]
    for name in gone + kept:
        (tmp_path / name / "item").mkdir(parents=True)
        (tmp_path / name / "item" / "layer-000.safetensors").write_bytes(b"x")
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / "c.1.other-host.1", (yesterday, yesterday))
    store.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_what_a_killed_importer_left_does_not_stop_one_with_its_number(
    importer: Importer, tmp_path: Path, tiny_folder: Path
) -> None:
    """In a container that is started again, the importer gets the same number as before."""
    models = tmp_path / "models"
    tag = importer.run("bring", store=str(models), folder=str(tiny_folder))["tag"]
    shutil.rmtree(models)
    left = models.parent / "models.staging" / f"{tag.replace(':', '.')}.{socket.gethostname()}.{os.getpid()}"
    (left / "item").mkdir(parents=True)
    (left / "source").mkdir()
    assert store.import_model(catalog.SMOLLM2, models, tiny_folder) == tag
    assert staged(models) == []
