"""scripts/image and what it builds from, as far as it shows without building: .ci/image builds it, and runs it."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import image, image_check, image_probe, image_smoke
from tests.conftest import ROOT

RECIPE = (ROOT / "deploy" / "Containerfile").read_text()
STAGES = re.split(r"^(?=FROM )", RECIPE, flags=re.MULTILINE)[1:]
SHIPPED = next(stage for stage in STAGES if " AS service" in stage)
BENTO = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
GOOD: dict[str, Any] = {
    "User": "1034:1034",
    "Entrypoint": ["python", "-m", "deploy"],
    "StopSignal": "SIGTERM",
    "ExposedPorts": {"3000/tcp": {}},
    "Env": ["PATH=/bin", "HOME=/tmp", "HF_HUB_OFFLINE=1", "BENTOML_DO_NOT_TRACK=True", "GPG_KEY=A035"],
    "Labels": {
        f"org.opencontainers.image.{name}": value
        for name, value in {
            "title": "zopilot-gpu",
            "version": "0.1.0",
            "revision": "0" * 40,
            "licenses": "Apache-2.0",
        }.items()
    },
}
HEALTH = ["CMD", "python", "-c", "…"]
CLEAN: dict[str, Any] = {"raised": [], "loose": [], "owned": ["/runpod-volume"], "commands": [], "caches": []}
CLEAN |= {"bytes": 1, "packages": {"torch": "2.13.0+cpu"}}


def packed() -> set[Path]:
    return {path for pattern in BENTO["include"] for path in ROOT.glob(pattern.lstrip("/"))}


def modules(path: Path) -> set[str]:
    """What a file imports, with each name as if it were a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("pattern", BENTO["include"])
def test_every_pattern_names_something(pattern: str) -> None:
    assert list(ROOT.glob(pattern.lstrip("/")))


def test_all_that_is_imported_is_packed_and_nothing_else_is() -> None:
    files = packed()
    for path in files:
        if path.suffix != ".py":
            continue
        for name in modules(path):
            wanted = ROOT.joinpath(*name.split("."))
            for there in (wanted.with_suffix(".py"), wanted / "__init__.py"):
                assert not there.is_file() or there in files, f"{path} imports {name}"
    rooms = {path.relative_to(ROOT).parts[0] for path in files}
    assert not rooms & {"tests", "benchmarks", "verification", "examples", ".git", ".ci"}
    assert not [path for path in files if path.suffix in (".safetensors", ".gguf", ".key", ".env")]


def test_the_locks_that_the_recipe_installs_are_packed() -> None:
    named = set(re.findall(r"/locks/(\S+\.lock)", RECIPE))
    assert named == {"requirements-deploy.lock", "requirements-cuda.lock"}
    assert {*named, "requirements.lock"} == set(image_check.locks("cuda"))
    assert {ROOT / name for name in image_check.locks("cuda")} <= packed()


def test_the_base_is_a_pinned_slim_python_of_the_locks_version() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", RECIPE, re.MULTILINE)
    assert re.fullmatch(rf"docker\.io/library/python:{re.escape(image.BASE_PYTHON)}\.\d+-slim-\w+", base)
    assert all(stage.startswith(("FROM ${BASE} ", "FROM service")) for stage in STAGES)


def test_what_is_shipped_installs_nothing_and_runs_as_nobody_in_particular() -> None:
    assert not re.search(r"apt-get|gcc|pip install|http", SHIPPED.replace("http://127.0.0.1", "").partition("ENTRY")[0])
    assert re.findall(r"^USER (.*)$", RECIPE, re.MULTILINE)[-1] == "1034:1034"
    assert 'ENTRYPOINT ["python", "-m", "deploy"]' in SHIPPED
    assert not re.search(r"^(ARG|ENV)\b.*(KEY|TOKEN|SECRET|PASSWORD)=", RECIPE, re.MULTILINE)
    assert "--no-deps" in RECIPE and "--only-binary :all:" in RECIPE


def test_no_lock_of_the_image_brings_what_must_stay_out() -> None:
    pinned = image_check.read_locks("cuda")
    assert not image_check.UNWANTED & pinned.keys()
    assert {"torch", "bentoml", "runpod", "triton", "nvidia-cublas"} <= pinned.keys()
    assert not {"triton", "nvidia-cublas"} & image_check.read_locks("cpu").keys()


def test_every_rule_that_is_passed_over_says_why() -> None:
    lines = RECIPE.splitlines()
    passed = [number for number, line in enumerate(lines) if "hadolint ignore" in line]
    assert passed
    assert all(re.match(r"# \w.*\.$", lines[number - 1]) for number in passed)


@pytest.mark.skipif(not (image_check.TOOLS / "hadolint").exists(), reason="scripts/image has not been run here")
def test_hadolint_finds_nothing() -> None:
    assert image_check.lint() == []


def test_a_good_configuration_is_found_good() -> None:
    assert image_check.judge_config(GOOD, HEALTH) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"User": "root"}, "user is 'root', not '1034:1034'"),
        ({"User": ""}, "user is ''"),
        ({"Entrypoint": ["/bin/sh", "-c", "python -m deploy"]}, "entry point is"),
        ({"Cmd": ["python3"]}, "command is ['python3']"),
        ({"ExposedPorts": {"3000/tcp": {}, "22/tcp": {}}}, "ports is"),
        ({"StopSignal": "SIGKILL"}, "stop signal is 'SIGKILL'"),
        ({"Labels": None}, "no label revision"),
        ({"Env": [*GOOD["Env"], "ZOPILOT_GPU_API_KEY=x"]}, "ZOPILOT_GPU_API_KEY is in the environment"),
        ({"Env": [*GOOD["Env"], "HUGGING_FACE_TOKEN="]}, "HUGGING_FACE_TOKEN is in the environment"),
        ({"Env": GOOD["Env"][:2]}, "HF_HUB_OFFLINE is None, not '1'"),
    ],
)
def test_a_configuration_is_judged(change: dict[str, Any], said: str) -> None:
    assert any(said in finding for finding in image_check.judge_config({**GOOD, **change}, HEALTH))


def test_a_missing_health_check_is_found_in_either_engines_words() -> None:
    assert image_check.healthcheck({"Config": {"Healthcheck": {"Test": HEALTH}}}) == HEALTH  # docker
    assert image_check.healthcheck({"Config": {}, "Healthcheck": {"Test": HEALTH}}) == HEALTH  # podman
    assert image_check.healthcheck({"Config": {}}) == []
    assert image_check.judge_config(GOOD, []) == ["health check is [], not ['CMD', 'python', '-c']"]


def test_a_secret_in_the_history_is_named_and_not_shown() -> None:
    history = "RUN |2 VARIANT=cpu HUGGING_FACE_TOKEN=hf_abc /bin/sh -c pip\nENV GPG_KEY=A035C8C1"
    assert image_check.judge_history(history) == ["HUGGING_FACE_TOKEN is in the history"]
    assert image_check.judge_history("ENV GPG_KEY=A035C8C1\nARG VERSION=0.1.0") == []


def test_clean_contents_are_found_clean() -> None:
    assert image_check.judge_contents(CLEAN) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"raised": ["/usr/bin/su"]}, "/usr/bin/su gives its owner's rights to whoever runs it"),
        ({"loose": ["/opt/x"]}, "/opt/x can be written by anybody"),
        ({"owned": ["/runpod-volume", "/opt/zopilot/src"]}, "/opt/zopilot/src belongs to the service's user"),
        ({"commands": ["gcc"]}, "gcc is there, which only a build needs"),
        ({"caches": ["/root/.cache"]}, "/root/.cache was left behind"),
        ({"packages": {"httptools": "0.9.0"}}, "httptools is installed"),
        ({"packages": {"Kernels": "1.0"}}, "kernels is installed"),
    ],
)
def test_contents_are_judged(change: dict[str, Any], said: str) -> None:
    assert image_check.judge_contents({**CLEAN, **change}) == [said]


def test_packages_are_compared_by_name_and_version() -> None:
    pinned = {"torch": "2.13.0", "simple-di": "0.1.5", "a": "1"}
    found = {"torch": "2.13.0+cpu", "simple_di": "0.1.4", "b": "2"}
    assert image_check.compare("x", found, pinned) == [
        "x lacks a",
        "x has b, which no lock names",
        "x has simple-di 0.1.4, not 0.1.5",
    ]


def test_an_sbom_is_read_by_its_python_packages(tmp_path: Path) -> None:
    components = [
        {"name": "torch", "version": "2.13.0", "purl": "pkg:pypi/torch@2.13.0"},
        {"name": "libc6", "version": "2.36", "purl": "pkg:deb/debian/libc6@2.36"},
        {"name": "/etc/passwd", "type": "file"},
    ]
    (tmp_path / "sbom.json").write_text(json.dumps({"components": components}))
    assert image_check.read_sbom(tmp_path / "sbom.json") == {"torch": "2.13.0"}


def test_the_probe_runs_on_the_standard_library_alone() -> None:
    names = {name.split(".")[0] for name in modules(ROOT / "scripts" / "image_probe.py")}
    assert names <= {"json", "os", "shutil", "stat", "sys", "collections", "importlib", "pathlib"}
    assert image_probe.USER == 1034


def test_a_package_that_comes_from_torchs_own_index_is_asked_for_there() -> None:
    given = image.arguments(image.parse(["build", "--variant", "cpu", "--base", "localhost/python"]))
    assert given["TORCH_INDEX"].endswith("/cpu") and given["BASE"] == "localhost/python"
    assert "TORCH_INDEX" not in image.arguments(image.parse(["build", "--variant", "cpu", "--download"]))
    assert "TORCH_INDEX" not in image.arguments(image.parse(["build"]))
    assert set(given) <= set(re.findall(r"^ARG (\w+)", RECIPE, re.MULTILINE))


def test_a_tag_says_version_and_variant() -> None:
    assert image.parse(["build"]).tag == f"localhost/zopilot-gpu:{image.version()}-cuda"
    assert image.parse(["build", "--variant", "cpu", "--tag", "x"]).tag == "x"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://example.com/a/b.git", "https://example.com/a/b.git"),
        ("https://me:secret@example.com/b.git", ""),
        ("/somewhere/here", ""),
        ("git@example.com:a/b.git", ""),
    ],
)
def test_only_a_public_place_is_told_as_the_source(url: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "git", lambda *_: url)
    assert image.source() == told


def test_the_smoke_run_takes_every_right_away(tmp_path: Path) -> None:
    command = " ".join(image_smoke.arguments("tag", tmp_path, "name", "a-key", tmp_path / "volume", 1234))
    for option in ("--read-only", "--cap-drop all", "no-new-privileges", "--memory", "--pids-limit", "noexec"):
        assert option in command
    assert f"{tmp_path}/models:/runpod-volume/models:ro" in command
    assert "ZOPILOT_RECEIPT_KEY" not in command
    assert "ZOPILOT_RECEIPT_KEY" in " ".join(image_smoke.arguments("tag", None, "n", "k", tmp_path, 1))


def test_the_scripts_are_shells(tmp_path: Path) -> None:
    for script in ("scripts/image", ".ci/image"):
        subprocess.run([shutil.which("sh") or "sh", "-n", str(ROOT / script)], check=True)
    assert "deb.debian.org" not in (ROOT / ".ci" / "image").read_text()
