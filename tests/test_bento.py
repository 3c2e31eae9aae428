"""bentofile.yaml: what is built can be served, and holds the code and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import httpx

from models import catalog, manifest
from tests.conftest import ROOT, serve


def bentoml(home: Path, *arguments: str) -> str:
    environ = {**os.environ, "BENTOML_HOME": str(home)}
    command = [sys.executable, "-m", "bentoml", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout


def test_a_built_bento_serves(tiny_home: Path, tmp_path: Path) -> None:
    tag = bentoml(tiny_home, "build", "-o", "tag").strip().rpartition(":")[2]
    built = tiny_home / "bentos" / "zopilot-gpu" / tag
    packed = {str(path.relative_to(built / "src")) for path in (built / "src").rglob("*") if path.is_file()}
    code = {str(p.relative_to(ROOT)) for part in ("serving", "models", "deploy") for p in (ROOT / part).rglob("*.py")}
    code = {name for name in code if not name.startswith("deploy/control/")}  # which is the operator's
    scripts = {f"scripts/{name}.py" for name in ("import_model", "doctor", "kernels")}
    locks = {f"requirements{name}.lock" for name in ("", "-deploy", "-cuda")}
    assert packed == code | scripts | locks | {"service.py", "settings.py", "LICENSE", "bentofile.yaml"}
    assert not list(built.rglob("*.safetensors"))
    with serve(tiny_home, tmp_path / "log", target=f"zopilot-gpu:{tag}") as server:
        body = {"prompt": "which?", "labels": ["a", "b"]}
        assert httpx.post(f"{server.url}/prompt", json=body, timeout=60).json()["success"] is True


def test_bentoml_lists_the_model(home: Path) -> None:
    tag = f"smollm2-135m-instruct:{manifest.item_version(catalog.SMOLLM2.source.revision[:12], catalog.SMOLLM2)}"
    assert tag in bentoml(home, "models", "list", "-o", "json")
