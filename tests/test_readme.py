"""README.md says only what is true: its commands run, its tree and its tables are those of the code."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deploy.control import arguments
from scripts.deploy import COMMANDS
from serving.errors import KINDS
from serving.protocol import Prompt
from serving.routes import ROUTES
from settings import Container, Operator, Settings
from tests.conftest import EXAMPLES, ROOT, free_port

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_commands_run_as_they_stand(home: Path, tmp_path: Path) -> None:
    """scripts/serve, the curl line and the client, on another port and with the model already imported."""
    serve, curl, test, promises = (shlex.split(block) for block in blocks("sh"))
    (client,) = blocks("python")
    port = free_port()
    environ = {**os.environ, "BENTOML_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen([*serve, "--port", str(port)], cwd=ROOT, env=environ, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 120
            while "ready at" not in (tmp_path / "log").read_text() and time.monotonic() < end:
                assert process.poll() is None
                time.sleep(0.2)
            said = (tmp_path / "log").read_text()
            assert f"curl -s http://localhost:{port}/prompt" in said, said
            assert "quantising" not in said and "Downloading" not in said
            asked = [part.replace(":3000", f":{port}") for part in curl]
            answer = json.loads(subprocess.check_output(asked, cwd=ROOT, timeout=120))
            asked = [part.replace(":3000", f":{port}") for part in promises]
            promised = json.loads(subprocess.check_output(asked, cwd=ROOT, timeout=200))
            told = subprocess.check_output(
                [sys.executable, "-c", client.replace(":3000", f":{port}")], text=True, timeout=120
            )
        finally:
            process.terminate()
            process.wait(60)
    schema = json.loads((EXAMPLES / "request.json").read_text())["schema"]
    assert answer["success"] is True
    jsonschema.validate(json.loads(answer["output"]), schema)
    assert told.strip() in ("invoice", "letter")
    assert promised["success"] is True, promised
    assert promised["metadata"].keys() >= {"evidence", "confidence", "checks", "receipt"}
    document = json.loads((EXAMPLES / "promises.json").read_text())["context"]["document"]
    assert json.loads(promised["output"])["invoice_number"] in document
    assert test == ["scripts/test"]
    assert process.returncode == 0


def test_the_plan_prints_what_is_shown() -> None:
    (shown,) = blocks("console")
    command, _, output = shown.partition("\n")
    printed = subprocess.check_output(shlex.split(command.removeprefix("$ ")), cwd=ROOT, text=True)
    assert printed == output


def test_every_script_is_named() -> None:
    (tree,) = blocks("text")
    line = next(line for line in tree.splitlines() if line.startswith("scripts/"))
    named = set(re.findall(r"\w+", line.split(maxsplit=1)[1]))
    assert named == {path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix}


def test_ci_runs_the_readmes_test_command() -> None:
    assert blocks("sh")[2].strip() in (ROOT / ".ci" / "run").read_text()


def test_the_commands_of_a_deployment_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    (commands,) = blocks("bash")
    lines = [shlex.split(line, comments=True) for line in commands.splitlines()]
    assert [line[0] for line in lines] == ["scripts/deploy"] * 5
    for _, *words in lines:
        monkeypatch.setattr(sys, "argv", ["scripts/deploy", *words])
        assert arguments.read("scripts/deploy", "", COMMANDS).command is COMMANDS[words[0]]


def test_the_tree_names_every_module_and_nothing_else() -> None:
    (tree,) = blocks("text")
    modules = {path.name for part in ("serving", "models", "deploy") for path in (ROOT / part).rglob("*.py")} - {
        "__init__.py"
    }
    listed = set(re.findall(r"\w+\.py", tree))
    assert all(list(ROOT.rglob(name)) for name in listed)
    for room, following in (("anatomy", "checkup.py"), ("engine", "schema/"), ("schema", "template.py")):
        inside = {path.stem for path in (ROOT / "models" / room).glob("*.py")} - {"__init__"}
        line = tree[tree.index(f"  {room}/") : tree.index(f"  {following}")]
        assert set(re.findall(r"\w+", line.split(":")[1])) == inside
        modules -= {f"{name}.py" for name in inside}
    assert listed >= modules


def test_the_table_of_routes_is_that_of_the_service() -> None:
    rows = re.findall(
        r"^\| `(GET|POST) (/\S+)` \| [^|]+ \|$", README[: README.index("## `POST /prompt`")], re.MULTILINE
    )
    assert len(rows) == len(set(rows))
    assert set(rows) == {(route.method, path) for path, route in ROUTES.items()}


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)
    expected = []
    for variable in (*fields(Settings), *fields(Container), *fields(Operator)):
        default: Any = variable.default
        shown = "" if default in ("", ()) else str(default if isinstance(default, str) else int(default))
        expected.append((variable.metadata["name"], shown, variable.metadata["about"]))
    assert rows == expected


def test_every_error_and_every_field_is_in_its_table() -> None:
    tables = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    statuses = {code: line.split("|")[1] for line in tables.splitlines() for code in re.findall(r"`([a-z_]+)`", line)}
    for code, kind in KINDS.items():
        assert str(kind.status) in statuses[code], code
    for field in Prompt.model_json_schema()["properties"]:
        assert f"`{field}`" in tables


def test_scripts_are_there_to_be_run() -> None:
    for path in (ROOT / "scripts").iterdir():
        assert path.suffix or path.is_dir() or os.access(path, os.X_OK), path
