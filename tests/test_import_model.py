"""scripts/import_model.py as an operator runs it: what it prints and how it exits."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models import catalog, manifest, origin
from models.failure import Failure
from scripts import import_model
from tests.conftest import ROOT


def run(home: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "scripts.import_model", *arguments],
        cwd=ROOT,
        env={**os.environ, "BENTOML_HOME": str(home), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tiny_home: Path, tmp_path: Path) -> Path:
    """A BENTOML_HOME that may be damaged."""
    return Path(shutil.copytree(tiny_home, tmp_path / "home"))


def located(home: Path) -> Path:
    return manifest.locate(catalog.SMOLLM2, home / "models")


def test_list_shows_the_tag_and_the_bytes(tiny_home: Path) -> None:
    result = run(tiny_home, "--list")
    described = manifest.read(located(tiny_home))
    assert result.stdout == f"{described.tag}  4 bits  {described.resident_bytes:,} bytes\n"
    assert result.returncode == 0


def test_list_of_an_empty_store_is_empty(tmp_path: Path) -> None:
    result = run(tmp_path, "--list")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_list_shows_every_item(copy: Path) -> None:
    item = located(copy)
    shutil.copytree(item, item.parent / "folder-zzzzzzzzzzzz-nf4-2")
    (item.parent / "folder-zzzzzzzzzzzz-nf4-2" / "manifest.json").write_text("{")
    result = run(copy, "--list")
    assert result.returncode == 1
    whole, broken = result.stdout.splitlines()
    assert "4 bits" in whole
    assert broken.startswith("smollm2-135m-instruct:folder-zzzzzzzzzzzz-nf4-2  BROKEN  ")


def test_verify_of_a_whole_store_is_0(tiny_home: Path) -> None:
    result = run(tiny_home, "--verify")
    described = manifest.read(located(tiny_home))
    assert result.stdout == f"{described.tag}  whole  {described.resident_bytes:,} bytes\n"
    assert result.returncode == 0


def test_verify_of_a_broken_store_is_1_and_names_the_file(copy: Path) -> None:
    file = located(copy) / "layer-001.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    result = run(copy, "--verify")
    assert result.returncode == 1
    assert "BROKEN" in result.stdout
    assert "layer-001.safetensors is not what was imported" in result.stdout
    assert run(copy, "--list").returncode == 0  # which reads no weights


def test_a_folder_is_imported_without_network_and_its_tag_printed(tmp_path: Path, tiny_folder: Path) -> None:
    nowhere = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
    result = run(tmp_path, "smollm2-135m-instruct", "--source", str(tiny_folder), **nowhere)
    assert result.returncode == 0, result.stderr
    described = manifest.verify(located(tmp_path))
    assert result.stdout == f"{described.tag}\n"


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process, with an empty BENTOML_HOME."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["scripts/import_model", *arguments])
        return import_model.main()

    return call


def test_a_folder_that_is_no_model_is_1(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("smollm2-135m-instruct", "--source", str(tmp_path / "absent")) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "scripts/import_model: the folder has no config.json\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "a NAME, --list or --verify is needed"),
        (("gpt-2",), "invalid choice: 'gpt-2'"),
        (("--source", "x"), "a NAME, --list or --verify is needed"),
        (("--wipe",), "unrecognized arguments: --wipe"),
    ],
)
def test_a_wrong_command_line_is_2(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: scripts/import_model ")
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_setting_is_1_and_named(
    main: Callable[..., int], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOPILOT_MAX_BODY", "lots")
    assert main("smollm2-135m-instruct", "--source", str(tiny_folder)) == 1
    assert capsys.readouterr().err.startswith("scripts/import_model: ZOPILOT_MAX_BODY is 'lots'")


def test_an_encoder_is_listed_with_its_bits(encoder_home: Path) -> None:
    result = run(encoder_home, "--list", "--verify")
    assert result.stdout == "all-minilm-l6-v2:53aa51172d14-float32-2  whole  90,261,504 bytes\n"
    assert (result.returncode, result.stderr) == (0, "")


def test_a_revision_is_for_rows_that_have_none(tmp_path: Path) -> None:
    deberta = catalog.DEBERTA
    named = import_model.pinned(deberta, "ab" * 20)
    assert named.source == origin.Hub("microsoft/deberta-xlarge-mnli", "ab" * 20)
    assert import_model.pinned(deberta, None) is deberta
    for name, revision, said in (
        (deberta.name, "main", "--revision takes a commit: 40 hexadecimal digits"),
        (catalog.MIXTRAL.name, "ab" * 20, "mixtral-8x7b-instruct has a revision of its own: leave out --revision"),
        (catalog.MINILM.name, "ab" * 20, "all-minilm-l6-v2 has a revision of its own: leave out --revision"),
    ):
        with pytest.raises(Failure) as refused:
            import_model.pinned(catalog.IMPORTS[name], revision)
        assert (refused.value.code, refused.value.message) == ("source_invalid", said)
    result = run(tmp_path, deberta.name)
    assert result.returncode == 1
    assert "no revision of deberta-xlarge-mnli with safetensors is known here" in result.stderr
