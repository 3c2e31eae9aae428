"""control/upload.py: a model on a volume is whole and proven, or it is no model; against the S3 API as documented."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from deploy.control import volume
from deploy.control.upload import upload
from models import catalog, manifest
from models.failure import Failure
from tests import volume_server
from tests.conftest import ROOT
from tests.volume_server import KEY, REGION, SECRET, VOLUME, Shelf

PART = 100_000
VERSION = "folder-0123456789ab-nf4-2"
FOLDER = f"models/{catalog.SMOLLM2.name}/{VERSION}"
LARGE = f"{FOLDER}/outside-layers.safetensors"
MANIFEST, BENTO, LATEST = f"{FOLDER}/manifest.json", f"{FOLDER}/model.yaml", f"models/{catalog.SMOLLM2.name}/latest"
UPLOAD = f"""
import sys
from pathlib import Path
from deploy.control import volume
from deploy.control.upload import upload
from models import catalog
volume.PART = {PART}
print(upload(catalog.SMOLLM2, Path(sys.argv[1]), {VOLUME!r}, {REGION!r}, sys.argv[2]).tag)
"""


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """boto3's own, which keeps what it has read of itself; and the key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        yield


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is taken, nothing of whoever runs this, and parts that are small."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setattr(volume, "PART", PART)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with volume_server.serve() as serving:
        yield serving


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one item, whose files are as an import leaves them; what is in them does not matter here."""
    item = tmp_path / "models" / catalog.SMOLLM2.name / VERSION
    item.mkdir(parents=True)
    sizes = {"layer-000.safetensors": 40_000, "outside-layers.safetensors": 1_234_567, "model.yaml": 386, "empty": 0}
    for number, (name, size) in enumerate(sizes.items()):
        (item / name).write_bytes(random.Random(number).randbytes(size))
    files = {path.name: manifest.describe(path) for path in sorted(item.iterdir())}
    told = ("smollm2-135m-instruct", VERSION, "LlamaForCausalLM", 4, "bfloat16")
    manifest.write(manifest.Manifest(manifest.FORMAT, *told, {}, "cpu", {}, {}, files), item)
    (item.parent / "latest").write_text(VERSION)
    return tmp_path / "models"


@dataclass
class Copy:
    """What a worker would find on the volume, as a folder here."""

    shelf: Shelf
    path: Path

    def locate(self) -> Path:
        for key, body in self.shelf.files.items():
            (self.path / key).parent.mkdir(parents=True, exist_ok=True)
            (self.path / key).write_bytes(body)
        return manifest.locate(catalog.SMOLLM2, self.path / "models")


@pytest.fixture
def copy(shelf: Shelf, tmp_path: Path) -> Copy:
    return Copy(shelf, tmp_path / "volume")


def send(store: Path, shelf: Shelf) -> manifest.Manifest:
    return upload(catalog.SMOLLM2, store, VOLUME, REGION, shelf.url)


def flip(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def test_a_worker_finds_what_was_imported(store: Path, shelf: Shelf, copy: Copy) -> None:
    described = send(store, shelf)
    item = copy.locate()
    assert manifest.verify(item) == described
    assert {path.name: path.read_bytes() for path in item.iterdir()} == {
        path.name: path.read_bytes() for path in (store / catalog.SMOLLM2.name / VERSION).iterdir()
    }
    assert shelf.files[LATEST].decode() == VERSION
    assert not shelf.begun


def test_what_makes_it_a_model_comes_last(store: Path, shelf: Shelf) -> None:
    send(store, shelf)
    assert shelf.sent()[-3:] == [BENTO, MANIFEST, LATEST]
    read = [at for at, asked in enumerate(shelf.asked) if asked == ("GetObject", LARGE)]
    assert len(read) == 13  # in pieces, all of it
    assert read[-1] < shelf.asked.index(("PutObject", MANIFEST))


def test_it_is_sent_in_parts_that_are_taken(store: Path, shelf: Shelf) -> None:
    shelf.most = PART
    send(store, shelf)
    assert shelf.count("UploadPart") == 13


def test_parts_are_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert volume.PART <= volume_server.MOST
    assert 10_000 * volume.PART > 93_405_585_408  # the largest file that there could be: Mixtral in bf16


def test_what_is_there_is_proven_and_not_sent_again(store: Path, shelf: Shelf) -> None:
    send(store, shelf)
    shelf.asked.clear()
    send(store, shelf)
    assert shelf.sent() == [LATEST]
    assert shelf.count("GetObject") > 13
    assert shelf.count("DeleteObject") == 0


def test_killed_in_the_middle_it_goes_on_where_it_was(store: Path, shelf: Shelf, copy: Copy) -> None:
    _kill_after(6, store, shelf)
    (begun,) = shelf.begun.values()
    there = dict(begun.parts)
    with pytest.raises(Failure, match="is not imported"):
        copy.locate()
    shelf.asked.clear()
    send(store, shelf)
    assert len(there) >= 6
    assert shelf.count("UploadPart") == 13 - len(there)
    assert shelf.count("CreateMultipartUpload") == 0
    assert manifest.verify(copy.locate()).tag.endswith(VERSION)


def test_a_part_that_was_damaged_there_meanwhile_is_found(store: Path, shelf: Shelf, copy: Copy) -> None:
    """The server still has the digest of what came: only reading it back can tell."""
    _kill_after(4, store, shelf)
    (begun,) = shelf.begun.values()
    number = min(begun.parts)
    begun.parts[number] = flip(begun.parts[number])
    shelf.asked.clear()
    send(store, shelf)
    assert shelf.count("CompleteMultipartUpload") == 2
    manifest.verify(copy.locate())


def _kill_after(parts: int, store: Path, shelf: Shelf) -> None:
    """Run an upload of its own process and kill it when so many parts have come."""
    shelf.parts_taken = parts
    command = [sys.executable, "-c", UPLOAD, str(store), shelf.url]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while shelf.count("UploadPart") < parts and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    shelf.parts_taken = volume_server.MOST
    shelf.room.set()


def test_a_volume_that_writes_something_else_gets_no_manifest(store: Path, shelf: Shelf) -> None:
    shelf.damage = lambda key, body: flip(body) if key.endswith("layer-000.safetensors") else body
    with pytest.raises(Failure, match="something else: layer-000") as raised:
        send(store, shelf)
    assert raised.value.code == "upload_failed"
    assert not {MANIFEST, BENTO, LATEST} & shelf.files.keys()


def test_what_rots_in_a_model_takes_its_manifest_away_until_it_is_mended(store: Path, shelf: Shelf, copy: Copy) -> None:
    send(store, shelf)
    shelf.files[LARGE] = flip(shelf.files[LARGE])
    shelf.asked.clear()
    send(store, shelf)
    order = [asked for asked in shelf.asked if asked[0] not in ("HeadObject", "GetObject")]
    assert order[:2] == [("DeleteObject", BENTO), ("DeleteObject", MANIFEST)]
    assert shelf.sent()[-3:] == [BENTO, MANIFEST, LATEST]
    manifest.verify(copy.locate())


def test_another_import_of_the_same_version_replaces_it(store: Path, shelf: Shelf, copy: Copy) -> None:
    """Quantised on a card the constants may differ in their last bits: same version, other bytes."""
    send(store, shelf)
    item = store / catalog.SMOLLM2.name / VERSION
    (item / "layer-000.safetensors").write_bytes(b"other")
    described = manifest.read(item)
    described.files["layer-000.safetensors"] = manifest.describe(item / "layer-000.safetensors")
    manifest.write(described, item)
    send(store, shelf)
    assert manifest.verify(copy.locate()) == described


@pytest.mark.parametrize("operation", ["CompleteMultipartUpload", "UploadPart", "CreateMultipartUpload", "PutObject"])
def test_an_answer_that_is_lost_loses_nothing(operation: str, store: Path, shelf: Shelf, copy: Copy) -> None:
    shelf.lost.add(operation)
    send(store, shelf)
    assert not shelf.lost
    manifest.verify(copy.locate())


def test_a_body_that_breaks_off_is_read_again(store: Path, shelf: Shelf) -> None:
    shelf.cut.add(LARGE)
    send(store, shelf)
    assert not shelf.cut
    assert shelf.count("UploadPart") == 13


def test_a_busy_server_is_asked_again(store: Path, shelf: Shelf) -> None:
    shelf.busy = 2
    send(store, shelf)
    assert shelf.busy == 0


def test_what_is_damaged_here_is_not_sent(store: Path, shelf: Shelf) -> None:
    path = store / catalog.SMOLLM2.name / VERSION / "layer-000.safetensors"
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(Failure, match="is damaged: run scripts/import_model smollm2"):
        send(store, shelf)
    assert not shelf.asked


def test_a_key_that_is_not_taken(store: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rps_WRONG")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(Failure, match="S3 key of RunPod's console") as raised:
        send(store, shelf)
    assert "rps_" not in raised.value.message and KEY not in raised.value.message
    assert not shelf.files


def test_no_key(store: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(Failure, match="no key is set"):
        send(store, shelf)


def test_no_such_volume(store: Path, shelf: Shelf) -> None:
    with pytest.raises(Failure, match="no such volume in this data center"):
        upload(catalog.SMOLLM2, store, "another", REGION, shelf.url)


def test_nobody_there(store: Path) -> None:
    with volume_server.serve() as gone:
        pass
    with pytest.raises(Failure, match=r"nothing answers for this data center: .* EU-RO-1"):
        send(store, gone)


def test_a_model_that_was_not_imported(tmp_path: Path, shelf: Shelf) -> None:
    with pytest.raises(Failure, match="run scripts/import_model") as raised:
        send(tmp_path, shelf)
    assert raised.value.code == "model_not_imported"


@pytest.mark.parametrize(
    ("data_center", "url"),
    [("EU-RO-1", "https://s3api-eu-ro-1.runpod.io/"), ("eur-is-1", "https://s3api-eur-is-1.runpod.io/")],
)
def test_where_a_data_center_answers(data_center: str, url: str) -> None:
    assert volume.endpoint_of(data_center) == url


@pytest.mark.parametrize("data_center", ["", "EU", "evil.example/#", "EU-RO-1.example", "EU RO 1", "EU-RO-1\n"])
def test_a_name_that_is_none_leads_nowhere(data_center: str) -> None:
    with pytest.raises(Failure, match="EU-RO-1"):
        volume.endpoint_of(data_center)
