"""The house: imports run downward, torch and the environment stay in their rooms, every file says what it is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A room may import rooms of a lower floor, and its own.
FLOORS = {
    "settings": 0,
    "models.failure": 0,
    "models.normal": 0,
    "models.reading": 0,
    "models.text": 0,
    "models.confidence": 0,
    "models.config": 1,
    "models.origin": 0,
    "models.catalog": 1,
    "models.decoding": 0,
    "models.picture": 0,
    "models.machine": 1,
    "models.gguf": 1,
    "models.header": 1,
    "models.wheels": 2,
    "models.calibration": 1,
    "models.likeness": 1,
    "models.printed": 1,
    "models.rules": 1,
    "models.schema": 1,
    "models.windows": 1,
    "models.nf4": 2,
    "models.vision": 2,
    "models.loading": 2,
    "models.manifest": 2,
    "models.evidence": 2,
    "models.verdict": 2,
    "models.anatomy": 3,
    "models.network": 3,
    "models.source": 3,
    "models.plan": 4,
    "models.shards": 4,
    "models.checkup": 5,
    "models.store": 5,
    "models.engine": 5,
    "models.markers": 0,
    "models.errand": 5,
    "models.encoder": 6,
    "models.encoders": 7,
    "models.embedding": 8,
    "models.bertscore": 8,
    "models.template": 5,
    "models.question": 6,
    "models.scoring": 6,
    "models.sightings": 6,
    "serving": 6,
    "models.ticket": 7,
    "models.audit": 7,
    "models.receipt": 7,
    "models.pairing": 7,
    "models.pooling": 7,
    "models.tools": 7,
    "models.turns": 8,
    "models.labels": 8,
    "models.leniency": 8,
    "models.speech": 8,
    "models.merging": 8,
    "models.chat": 10,
    "models.inquiry": 9,
    "models.viewing": 9,
    "models.priors": 9,
    "models.decisions": 10,
    "models.prompt": 10,
    "models.runtime": 11,
    "verification": 11,
    "service": 12,
    "deploy": 12,
    "deploy.control": 13,
    "scripts": 14,
    "benchmarks": 12,
}
TORCH_FREE = ["settings", "service", "serving.gate", "serving.status", "models.catalog", "models.machine"]
TORCH_FREE += ["models.manifest", "models.plan", "models.checkup", "serving.protocol", "serving.errors"]
TORCH_FREE += ["scripts.serve", "scripts.import_model", "scripts.plan", "scripts.doctor"]
TORCH_FREE += ["models.confidence", "models.calibration", "models.evidence", "models.verdict", "models.merging"]
TORCH_FREE += ["serving.body", "serving.chat", "serving.completions"]
TORCH_FREE += ["serving.limits", "serving.arrival", "serving.embeddings", "serving.bertscore"]
TORCH_FREE += ["models.anatomy.encoder", "models.wheels", "models.errand", "verification.__main__"]
TORCH_FREE += ["deploy.__main__", "deploy.backend", "deploy.scaler", "deploy.front", "deploy.worker"]
TORCH_FREE += ["deploy.control.upload", "deploy.control.rollout", "deploy.control.watch", "scripts.deploy"]
ROOMS = ["service.py", "settings.py", "serving/**/*.py", "models/**/*.py", "scripts/**/*.py", "benchmarks/**/*.py"]
ROOMS += ["verification/**/*.py", "deploy/**/*.py"]
FILES = [path for part in ROOMS for path in ROOT.glob(part)]


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str | None:
    """The longest known prefix of a module's name."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in FLOORS), None)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_downward(path: Path) -> None:
    here = room(module(path))
    if here is None:
        assert module(path) == "models"  # the map alone; it imports nothing
        assert not imports(path)
        return
    for name in imports(path):
        there = room(name)
        if there is not None and there != here:
            assert FLOORS[there] < FLOORS[here], f"{here} imports {there}"
    if here == "serving":
        assert {room(name) for name in imports(path)} <= {None, "serving", "models.failure"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_only_settings_reads_the_environment(path: Path) -> None:
    reads = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    # These hand their own environment to their children.
    assert not reads or module(path) in (
        "settings",
        "scripts.serve",
        "scripts.image",
        "scripts.image_check",
        "benchmarks.peers",
        "deploy.__main__",
        "deploy.backend",
    )


def test_heavy_libraries_stay_out_of_the_supervisor() -> None:
    code = f"import sys, {', '.join(TORCH_FREE)}; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_says_what_it_is_and_stays_small(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= 250
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_tests_are_no_smaller_than_what_they_test() -> None:
    def lines(paths: list[Path]) -> int:
        return sum(len(path.read_text().splitlines()) for path in paths)

    assert lines(list((ROOT / "tests").glob("*.py"))) >= lines(FILES)
