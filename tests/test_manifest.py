"""models/manifest.py: which item is served, and that not one byte of it can change unseen."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from models import catalog, manifest
from models.failure import Failure

PINNED = "b179c9523d0e-nf4-2"


@pytest.fixture
def item(tiny_home: Path, tmp_path: Path) -> Path:
    """A copy of the tiny item that may be damaged."""
    source = manifest.locate(catalog.SMOLLM2, tiny_home / "models")
    copy = tmp_path / "models" / source.parent.name / source.name
    shutil.copytree(source, copy)
    return copy


def refusal(item: Path, check: Callable[[Path], manifest.Manifest] = manifest.verify) -> str:
    """The message of the Failure model_broken that `check` raises."""
    with pytest.raises(Failure) as refused:
        check(item)
    assert refused.value.code == "model_broken"
    assert refused.value.message.endswith("run scripts/import_model smollm2-135m-instruct to mend it")
    assert str(item.parent.parent) not in refused.value.message
    return refused.value.message


def edit(item: Path, change: Callable[[dict[str, Any]], object], *, seal: bool) -> None:
    """Change the manifest's body, and its digest as well if `seal`."""
    sealed = json.loads((item / "manifest.json").read_text())
    change(sealed["manifest"])
    if seal:
        canonical = json.dumps(sealed["manifest"], sort_keys=True, separators=(",", ":"))
        sealed["sha256"] = sha256(canonical.encode()).hexdigest()
    (item / "manifest.json").write_text(json.dumps(sealed))


def stub(store: Path, version: str) -> Path:
    """Just enough of an item to be found."""
    found = store / "smollm2-135m-instruct" / version
    found.mkdir(parents=True)
    (found / "manifest.json").write_text("{}")
    return found


def test_a_whole_item_is_whole(item: Path) -> None:
    found = manifest.verify(item)
    assert found == manifest.read(item)
    assert (found.name, found.version) == ("smollm2-135m-instruct", item.name)
    assert found.tag == f"smollm2-135m-instruct:{item.name}"
    assert (found.format, found.bits, found.dtype, found.architecture) == (2, 4, "float32", "LlamaForCausalLM")
    assert found.source == {"kind": "folder"}


def test_it_names_every_file_but_itself(item: Path) -> None:
    found = manifest.read(item)
    assert set(found.files) == {path.name for path in item.iterdir()} - {"manifest.json"}
    assert {"config.json", "layer-000.safetensors", "model.yaml", "tokenizer.json"} <= set(found.files)


def test_the_bytes_are_those_of_the_tensors(item: Path) -> None:
    from safetensors.torch import load_file

    tensors = {name: tensor for file in item.glob("*.safetensors") for name, tensor in load_file(file).items()}
    found = manifest.read(item)
    assert found.ledger["embeddings"] == tensors["model.embed_tokens.weight"].nbytes
    assert found.ledger["norms"] == sum(tensor.nbytes for name, tensor in tensors.items() if "norm.weight" in name)
    assert found.resident_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_what_is_written_is_read(item: Path, tmp_path: Path) -> None:
    described = replace(manifest.read(item), quantised_on="cuda", files={})
    manifest.write(described, tmp_path)
    assert manifest.read(tmp_path) == described


def test_a_flipped_bit_is_found_in_every_file(item: Path) -> None:
    for name in manifest.read(item).files:
        whole = (item / name).read_bytes()
        damaged = bytearray(whole)
        damaged[len(damaged) // 2] ^= 1
        (item / name).write_bytes(damaged)
        assert f": {name} is not what was imported" in refusal(item)
        (item / name).write_bytes(whole)
    manifest.verify(item)


def test_a_truncated_file_is_found(item: Path) -> None:
    for name in manifest.read(item).files:
        whole = (item / name).read_bytes()
        (item / name).write_bytes(whole[:-1])
        assert f": {name} is not what was imported" in refusal(item)
        (item / name).write_bytes(whole)


def test_a_file_that_has_grown_is_found(item: Path) -> None:
    with (item / "config.json").open("ab") as file:
        file.write(b"\n")
    assert ": config.json is not what was imported" in refusal(item)


def test_a_missing_file_is_found(item: Path) -> None:
    for name in manifest.read(item).files:
        (item / name).rename(item.parent / "away")
        assert f": {name} is not what was imported" in refusal(item)
        (item.parent / "away").rename(item / name)


def test_a_file_that_cannot_be_read_is_found(item: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> dict[str, Any]:
        raise OSError(errno.EIO, "a bad sector", str(path))

    monkeypatch.setattr(manifest, "describe", fail)
    assert "is not what was imported" in refusal(item)


def test_a_bit_flipped_in_the_manifest_is_found(item: Path) -> None:
    """Every 97th byte, in a value, a key or the punctuation."""
    whole = (item / "manifest.json").read_bytes().rstrip()
    for position in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[position] ^= 2
        if damaged[position : position + 1].isspace() and whole[position : position + 1].isspace():
            continue  # white space between tokens carries nothing
        (item / "manifest.json").write_bytes(damaged)
        assert "manifest is missing or damaged" in refusal(item)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "7", '"x"', "{}", '{"manifest": {}}', '{"manifest": null, "sha256": ""}', "\udcff"]
)
def test_damaged_json_is_found(item: Path, text: str) -> None:
    (item / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "manifest is missing or damaged" in refusal(item)


def test_a_missing_manifest_is_found(item: Path) -> None:
    (item / "manifest.json").unlink()
    assert "manifest is missing or damaged" in refusal(item, manifest.read)


@pytest.mark.parametrize("field", ["bits", "format"])
def test_an_edited_field_breaks_the_seal(item: Path, field: str) -> None:
    edit(item, lambda body: body.update({field: body[field] + 1}), seal=False)
    assert "manifest is missing or damaged" in refusal(item, manifest.read)


def test_an_edited_digest_of_a_file_breaks_the_seal(item: Path) -> None:
    edit(item, lambda body: body["files"]["config.json"].update(sha256="0" * 64), seal=False)
    assert "manifest is missing or damaged" in refusal(item, manifest.read)


def test_a_sealed_edit_is_read_but_the_files_betray_it(item: Path) -> None:
    edit(item, lambda body: body["files"]["config.json"].update(sha256="0" * 64), seal=True)
    manifest.read(item)
    assert ": config.json is not what was imported" in refusal(item)


def test_another_format_is_refused(item: Path) -> None:
    edit(item, lambda body: body.update(format=3), seal=True)
    assert "it has format 3, not 2" in refusal(item, manifest.read)


def test_a_field_too_many_or_too_few_is_refused(item: Path) -> None:
    edit(item, lambda body: body.update(extra=1), seal=True)
    assert "manifest is missing or damaged" in refusal(item, manifest.read)
    edit(item, lambda body: (body.pop("extra"), body.pop("bits")), seal=True)
    assert "manifest is missing or damaged" in refusal(item, manifest.read)


def test_the_pinned_item_wins_over_a_folder(tmp_path: Path) -> None:
    folder = stub(tmp_path, "folder-0123456789ab-nf4-2")
    (folder.parent / "latest").write_text(folder.name)
    assert manifest.locate(catalog.SMOLLM2, tmp_path) == folder
    pinned = stub(tmp_path, PINNED)
    assert manifest.locate(catalog.SMOLLM2, tmp_path) == pinned


def test_a_folder_is_found_through_latest_alone(tmp_path: Path) -> None:
    first = stub(tmp_path, "folder-0123456789ab-nf4-2")
    second = stub(tmp_path, "folder-ba9876543210-nf4-2")
    for item in (first, second, first):
        (item.parent / "latest").write_text(f"{item.name}\n")
        assert manifest.locate(catalog.SMOLLM2, tmp_path) == item


def test_the_real_stores_are_located(home: Path, tiny_home: Path) -> None:
    assert manifest.locate(catalog.SMOLLM2, home / "models").name == PINNED
    assert manifest.locate(catalog.SMOLLM2, tiny_home / "models").name.startswith("folder-")


def not_imported(store: Path) -> None:
    with pytest.raises(Failure) as refused:
        manifest.locate(catalog.SMOLLM2, store)
    assert refused.value.code == "model_not_imported"
    assert refused.value.message == (
        "smollm2-135m-instruct is not imported: run scripts/import_model smollm2-135m-instruct"
    )


def test_an_empty_store_names_the_command(tmp_path: Path) -> None:
    not_imported(tmp_path)
    not_imported(tmp_path / "absent")


def test_another_revision_is_not_served(tmp_path: Path) -> None:
    """`latest` may point to what an older release of the catalogue pinned."""
    old = stub(tmp_path, "0123456789ab-nf4-2")
    (old.parent / "latest").write_text(old.name)
    not_imported(tmp_path)


def test_a_latest_that_points_nowhere_is_not_served(tmp_path: Path) -> None:
    item = stub(tmp_path, "folder-0123456789ab-nf4-2")
    not_imported(tmp_path)  # no latest
    (item.parent / "latest").write_text("folder-ffffffffffff-nf4-2")
    not_imported(tmp_path)
    (item.parent / "latest").write_text(item.name)
    (item / "manifest.json").unlink()
    not_imported(tmp_path)
