"""scripts/plan.py as an operator runs it, before anything is installed: what it prints and how it exits.

And from where the wrappers run that take a path."""

import json
import os
import shlex
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import catalog, plan
from models.machine import CARDS
from scripts import plan as script
from tests.conftest import ROOT

MIXTRAL = "mixtral-8x7b-instruct"
NEEDED = 27_705_740_800  # weights, 2 GiB of workspace, 8,192 tokens of KV cache
LEDGER = """\
mixtral-8x7b-instruct: 46,702,792,704 weights, the matrices in NF4

  experts                     22,548,578,304 bytes
  attention                      671,088,640 bytes
  router                           2,097,152 bytes
  norms                              532,480 bytes
  embeddings                     524,288,000 bytes
  quantisation constants         737,930,752 bytes
  weights                     24,484,515,328 bytes  22.80 GiB
  KV cache, one token                131,072 bytes
  workspace on a card          2,147,483,648 bytes  an allowance, not measured yet
"""


KNOWN = f"known: {', '.join(plan.ANATOMIES)}"
MEND = "free some, ask for fewer tokens (ZOPILOT_KV_TOKENS), or take a larger card or a smaller model"


def run(*command: str, cwd: Path = ROOT, **environ: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ZOPILOT", "BENTOML"))}
    return subprocess.run(
        command, cwd=cwd, env={**inherited, **environ}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process; what argparse refuses is its exit status as well."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["scripts/plan", *arguments])
        try:
            return script.main()
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            return ended.code

    return call


def test_the_wrapper_runs_from_any_folder(tmp_path: Path) -> None:
    result = run(str(ROOT / "scripts" / "plan"), MIXTRAL, "--card", "rtx-5090", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "24,484,515,328" in result.stdout
    assert "33 documents of 1,620 tokens" in result.stdout
    assert result.stderr == ""


def test_the_wrapper_passes_on_what_does_not_fit() -> None:
    result = run(str(ROOT / "scripts" / "plan"), MIXTRAL, "--card", "rtx-4090")
    assert (result.returncode, result.stderr) == (1, "")


def test_a_relative_path_is_that_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(catalog.MIXTRAL.config))
    result = run(str(ROOT / "scripts" / "plan"), "config.json", "--card", "rtx-5090", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(LEDGER.replace(MIXTRAL, "config.json"))
    (tmp_path / "folder").mkdir()
    script = os.path.relpath(ROOT / "scripts" / "plan", tmp_path / "folder")
    result = run(script, "../config.json", "--card", "rtx-4090", cwd=tmp_path / "folder")
    assert (result.returncode, result.stderr) == (1, "")
    assert LEDGER.removeprefix(MIXTRAL) in result.stdout


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with modules of our names, and of the library's, that end whoever imports them."""
    path = tmp_path / "strange"
    modules = "models/__init__ models/catalog models/failure scripts/__init__ scripts/plan scripts/doctor "
    modules += "scripts/import_model settings/__init__ argparse json sitecustomize"
    for module in modules.split():
        file = path / f"{module}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise SystemExit('not ours')\n")
    (path / "config.json").write_text(json.dumps(catalog.MIXTRAL.config))
    (path / "home" / "models" / "smollm2-135m-instruct" / "x").mkdir(parents=True)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts as they are, in a checkout whose environment is this Python and has all that it needs."""
    path = tmp_path / "check out"
    (path / "scripts").mkdir(parents=True)
    for file in (ROOT / "scripts").iterdir():
        (path / "scripts" / file.name).symlink_to(file)
    for name in ("models", "settings.py"):
        (path / name).symlink_to(ROOT / name)
    (path / ".venv" / "bin").mkdir(parents=True)
    (path / "scripts" / "install").unlink()
    for name, line in ("scripts/install", "exit 0"), (".venv/bin/python", f'exec {shlex.quote(sys.executable)} "$@"'):
        (path / name).write_text(f"#!/bin/sh\n{line}\n")
        (path / name).chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "argument", "status", "said"),
    [
        ("plan", "config.json", 0, "config.json: 46,702,792,704 weights, the matrices in NF4"),
        ("doctor", "smollm2-135m-instruct", 1, "FAIL  TORCH_DEVICE is 'tpu'; "),
        ("import_model", "--list", 1, "smollm2-135m-instruct:x  BROKEN  "),
    ],
)
def test_what_lies_where_the_caller_stands_is_not_imported(
    strange: Path, checkout: Path, script: str, argument: str, status: int, said: str
) -> None:
    """The paths (of the config, of BENTOML_HOME) are relative to that folder all the same."""
    environ = {"BENTOML_HOME": "home", "TORCH_DEVICE": "tpu", "PYTHONDONTWRITEBYTECODE": "1"}
    result = run(str(checkout / "scripts" / script), argument, cwd=strange, **environ)
    assert (result.returncode, result.stderr) == (status, "")
    assert result.stdout.startswith(said)


def test_the_ledger_is_printed(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MIXTRAL) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (LEDGER, "")


def test_mixtral_fits_a_32_gb_card(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MIXTRAL, "--card", "rtx-5090") == 0
    said = capsys.readouterr()
    assert said.out == LEDGER + (
        "\nrtx-5090: 33,672,543,600 bytes, 31.36 GiB\n"
        "  fits: 53,715 tokens of KV cache, 33 documents of 1,620 tokens in flight\n"
    )
    assert said.err == ""


def test_a_24_gb_card_is_refused_with_the_numbers(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MIXTRAL, "--card", "rtx-4090") == 1
    said = capsys.readouterr()
    assert said.out == LEDGER + (
        "\nrtx-4090: 25,232,932,864 bytes, 23.50 GiB\n"
        "  DOES NOT FIT: mixtral-8x7b-instruct needs 27,705,740,800 bytes: 24,484,515,328 of weights, "
        "2,147,483,648 of workspace, 1,073,741,824 for 8,192 tokens of KV cache; "
        "rtx-4090 has 25,232,932,864 free, 2,472,807,936 too few; "
        "free some, ask for fewer tokens (ZOPILOT_KV_TOKENS), or take a larger card or a smaller model\n"
    )
    assert said.err == ""


@pytest.mark.parametrize("name", CARDS)
def test_every_card_gets_the_verdict_of_its_size(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    fits = CARDS[name].total >= NEEDED
    assert main(MIXTRAL, "--card", name) == (0 if fits else 1)
    assert ("  fits: " if fits else "  DOES NOT FIT: ") in capsys.readouterr().out
    assert main("smollm2-135m-instruct", "--card", name) == 0


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("32GiB", 32 * 2**30),
        ("32gib", 32 * 2**30),
        (" 32 GiB ", 32 * 2**30),
        ("31.5GiB", 63 * 2**29),
        ("24000MB", 24_000_000_000),
        ("24MiB", 24 * 2**20),
        ("24GB", 24_000_000_000),
        ("7KB", 7000),
        ("7KiB", 7168),
        ("34359738368", 34_359_738_368),
        ("1", 1),
        ("0", 0),
        ("0GiB", 0),
        ("0.5", 0),
        ("1.5KiB", 1536),
        ("999999999999999", 999_999_999_999_999),
        ("999999999999999GiB", 999_999_999_999_999 * 2**30),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(said: str, size: int) -> None:
    assert script.size(said) == size


@pytest.mark.parametrize(
    "said",
    [
        *("", " ", "GiB", "-1", "-32GiB", "32 parsecs", "32G", "1TB", "1e9", "0x10", "1,000", "32GiBGiB", "٣٢", "nan"),
        *("inf", "+1", ".5GiB", "5.GiB", "1.2.3GiB", "1 2", "9" * 16, "9" * 400, "9" * 5000 + "GiB", "0." + "1" * 16),
    ],
    ids=lambda said: repr(said[:16]),
)
def test_nonsense_is_no_size(main: Callable[..., int], capsys: pytest.CaptureFixture[str], said: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no size; write 32GiB or 34359738368"):
        script.size(said)
    assert main(MIXTRAL, f"--vram={said}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: scripts/plan ")
    assert f"argument --vram: {said!r} is no size" in err


def test_a_size_in_bytes_is_taken_to_the_byte(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MIXTRAL, "--vram", str(NEEDED)) == 0
    assert (
        "\nthe card: 27,705,740,800 bytes, 25.80 GiB\n  fits: 8,192 tokens of KV cache, 5 doc"
        in capsys.readouterr().out
    )
    assert main(MIXTRAL, "--vram", str(NEEDED - 1)) == 1
    assert capsys.readouterr().out.endswith(f"the card has 27,705,740,799 free, 1 too few; {MEND}\n")


def test_a_card_without_memory_is_judged_as_well(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("0", "0GiB", "0.1"):
        assert main(MIXTRAL, "--vram", size) == 1
        out, err = capsys.readouterr()
        assert "\nthe card: 0 bytes, 0.00 GiB\n  DOES NOT FIT: " in out
        assert out.endswith(f"the card has 0 free, 27,705,740,800 too few; {MEND}\n")
        assert err == ""


def test_tokens_that_must_fit_are_asked_for(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MIXTRAL, "--card", "rtx-5090", "--kv-tokens", "53715") == 0
    assert "  fits: 53,715 tokens of KV cache, 33 documents" in capsys.readouterr().out
    assert main(MIXTRAL, "--card", "rtx-5090", "--kv-tokens", "53716") == 1
    assert "7,040,663,552 for 53,716 tokens of KV cache; " in capsys.readouterr().out
    assert main(MIXTRAL, "--vram", "25GiB", "--kv-tokens", "100") == 0
    assert main(MIXTRAL, "--vram", "25GiB", "--kv-tokens", "1") == 0
    assert "  fits: 1 tokens of KV cache, 0 documents" in capsys.readouterr().out
    assert main(MIXTRAL, "--card", "b200", "--kv-tokens", "999999999") == 1


@pytest.mark.parametrize(
    "said",
    [
        "many",
        "",
        " ",
        "0",
        "000",
        "-1",
        "-53715",
        "1.5",
        "1e3",
        "1,000",
        "1 000",
        "5\n",
        "+5",
        "٣",
        "9" * 10,
        "9" * 5000,
    ],
    ids=lambda said: repr(said[:16]),
)
def test_tokens_are_a_number_from_1(main: Callable[..., int], capsys: pytest.CaptureFixture[str], said: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no number from 1 to 999999999"):
        script.count(said)
    assert main(MIXTRAL, "--card", "rtx-5090", f"--kv-tokens={said}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f"argument --kv-tokens: {said!r} is no number from 1 to 999999999\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: model"),
        ((MIXTRAL, "--card", "rtx-9999"), "invalid choice: 'rtx-9999'"),
        ((MIXTRAL, "--card", "rtx-5090", "--vram", "32GiB"), "not allowed with argument --card"),
        ((MIXTRAL, "--kv-tokens", "-5"), "argument --kv-tokens: '-5' is no number from 1 to 999999999"),
        ((MIXTRAL, "--vram", "-5"), "argument --vram: '-5' is no size"),
        ((MIXTRAL, "--wipe"), "unrecognized arguments: --wipe"),
    ],
)
def test_a_wrong_command_line_is_2(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert main(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_help_names_the_models_and_the_cards(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # argparse breaks lines at hyphens
    assert main("--help") == 0
    said = capsys.readouterr().out
    assert f"{', '.join(catalog.ROWS)}, or the path of a config.json" in said
    assert ", ".join(CARDS) in said


def test_a_config_of_ones_own_is_planned(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "my-mixtral"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**catalog.MIXTRAL.config, "torch_dtype": "bfloat16"}))
    assert main(str(folder / "config.json"), "--card", "rtx-5090") == 0
    said = capsys.readouterr().out
    assert said.startswith(LEDGER.replace(MIXTRAL, "my-mixtral"))
    assert "33 documents of 1,620 tokens" in said


@pytest.mark.parametrize(
    ("described", "bytes_of_a_token"),
    [
        ({}, 131_072),
        ({"dtype": "float32"}, 262_144),
        ({"torch_dtype": "float32"}, 262_144),
        ({"dtype": "float16", "torch_dtype": "float32"}, 131_072),
        ({"dtype": None, "torch_dtype": None}, 131_072),
    ],
)
def test_the_dtype_is_that_of_the_config_or_bfloat16(
    tmp_path: Path, described: dict[str, str | None], bytes_of_a_token: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**catalog.MIXTRAL.config, **described}))
    assert script.read(str(tmp_path / "config.json")).kv_bytes_per_token == bytes_of_a_token


def changed(**changes: Any) -> str:
    """Mixtral's config.json with these values."""
    return json.dumps({**catalog.MIXTRAL.config, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no model of the catalogue and no config.json"),
        ("", "is no model of the catalogue and no config.json"),
        ("{", "is no model of the catalogue and no config.json"),
        ("[]", "is no model of the catalogue and no config.json"),
        ("7", "is no model of the catalogue and no config.json"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is no model of the catalogue and no config.json"),
        (
            "{}",
            f" cannot be planned: architectures is None; {KNOWN}",
        ),
        (
            changed(architectures=["GPT2LMHeadModel"]),
            f"architectures is ['GPT2LMHeadModel']; {KNOWN}",
        ),
        (changed(hidden_size=None), " cannot be planned: hidden_size is None, not a whole number from 1 to 16,777,216"),
        (changed(num_attention_heads=0), "num_attention_heads is 0, not a whole number from 1 to 16,777,216"),
        (changed(num_key_value_heads=0), "num_key_value_heads is 0, not a whole number from 1 to 16,777,216"),
        (changed(num_hidden_layers=0), "num_hidden_layers is 0, not a whole number from 1 to 1,000"),
        (changed(num_hidden_layers=-32), "num_hidden_layers is -32, not a whole number from 1 to 1,000"),
        (changed(num_hidden_layers="32"), "num_hidden_layers is '32', not a whole number from 1 to 1,000"),
        (changed(vocab_size=32e3), "vocab_size is 32000.0, not a whole number from 1 to 16,777,216"),
        (changed(vocab_size=float("inf")), "vocab_size is inf, not a whole number from 1 to 16,777,216"),
        (changed(tie_word_embeddings="false"), "tie_word_embeddings is 'false', neither true nor false"),
        (changed(dtype="int8"), " cannot be planned: dtype is 'int8'; bfloat16, float16, float32 are known"),
        (changed(torch_dtype=16), " cannot be planned: dtype is 16; bfloat16, float16, float32 are known"),
    ],
)
def test_what_cannot_be_planned_is_2(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    assert main(str(path), "--card", "rtx-5090") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scripts/plan: ")
    assert err.endswith(f"{said}\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("path", [".", "/", "mixtral", "MIXTRAL-8X7B-INSTRUCT", "/dev/null", "a\0b"])
def test_a_path_of_something_else_is_2(main: Callable[..., int], capsys: pytest.CaptureFixture[str], path: str) -> None:
    assert main(path) == 2
    assert capsys.readouterr().err == f"scripts/plan: {path} is no model of the catalogue and no config.json\n"


BARE = """
import pathlib, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
before = set(sys.modules)  # a .pth file may have imported something
try:
    runpy.run_module("scripts.plan", run_name="__main__")
except SystemExit as ended:
    files = [pathlib.Path(getattr(sys.modules[name], "__file__", None) or "") for name in set(sys.modules) - before]
    print([str(file) for file in files if "site-packages" in file.parts])
    raise
"""


@pytest.mark.parametrize("options", [("-I", "-S"), ("-I",)], ids=["bare", "with site-packages"])
def test_it_needs_nothing_but_python(options: tuple[str, ...]) -> None:
    """-S leaves out site-packages; without it what lies there is not imported."""
    command = [sys.executable, *options, "-B", "-c", BARE, str(ROOT), MIXTRAL, "--card", "rtx-5090"]
    result = run(*command, cwd=Path("/"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(LEDGER)
    assert result.stdout.splitlines()[-1] == "[]"
    assert result.stderr == ""


def test_a_row_whose_share_of_a_card_is_bounded_is_planned_within_it(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("shizhengpt-32b-vl", "--card", "a100-80gb") == 0
    told = capsys.readouterr().out
    assert told.startswith("shizhengpt-32b-vl: 33,452,718,336 weights, none of them in NF4\n")
    assert "  vision                       1,377,683,968 bytes\n" in told
    assert "79.10 GiB\n  of which this model may take 75,000,000,000\n  fits: 22,686 tokens of KV cache" in told
    assert main("shizhengpt-32b-vl", "--vram", "90GB") == 0
    assert "  fits: 22,686 tokens" in capsys.readouterr().out
    assert main("shizhengpt-32b-vl", "--card", "rtx-5090") == 1
    assert main("shizhengpt-32b-vl-nf4", "--card", "rtx-5090") == 0
