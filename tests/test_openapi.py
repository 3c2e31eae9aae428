"""serving/openapi.py: the document says what the running service does, found out by generated requests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from serving.errors import KINDS
from serving.openapi import describe
from serving.routes import ROUTES, Route
from tests.conftest import ROOT, Server

CONFIG = ROOT / "tests" / "schemathesis.toml"
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
]
BODIES = [route for route in ROUTES.values() if route.body is not None]


def test_the_document_is_openapi(tiny_server: Server) -> None:
    told = httpx.get(f"{tiny_server.url}/openapi.json")
    assert told.json() == describe()
    assert told.headers["x-request-id"]
    assert told.json()["openapi"] == "3.1.0"
    for schema in told.json()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_route_is_described() -> None:
    paths = describe()["paths"]
    assert paths.keys() == ROUTES.keys()
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names))
    for path, route in ROUTES.items():
        operation = paths[path][route.method.lower()]
        assert operation["summary"] and operation["responses"]["200"]["content"]
        assert (route.method == "POST") == ("requestBody" in operation)


def test_every_error_has_its_status() -> None:
    operations = [operation for path in describe()["paths"].values() for operation in path.values()]
    told = {int(status) for operation in operations for status in operation["responses"]}
    assert told == {200} | {kind.status for kind in KINDS.values()} - {499}  # nobody is there to see that one


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.path)
def test_every_example_is_answered(route: Route, tiny_server: Server) -> None:
    answer = httpx.post(f"{tiny_server.url}{route.path}", json=route.example, timeout=60)
    assert answer.status_code == 200, answer.text
    content = describe()["paths"][route.path]["post"]["responses"]["200"]["content"]
    schema = {**content["application/json"]["schema"], "components": describe()["components"]}
    Draft202012Validator(schema).validate(answer.json())


def fuzz(server: Server, folder: Path, phases: str, examples: int) -> None:
    """Schemathesis over the running service: what the document allows, and what it forbids."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(CONFIG), "--no-color"]
    command += ["run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS), "--continue-on-failure"]
    command += ["--phases", phases, "--mode", "all", "--seed", "7", "--request-timeout", "60"]
    done = subprocess.run(
        [*command, "--max-examples", str(examples)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"Tested: {len(ROUTES) - 1}" in done.stdout  # all but the document itself


def test_generated_requests_find_nothing(tiny_server: Server, tmp_path: Path) -> None:
    fuzz(tiny_server, tmp_path, "examples,fuzzing", 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_generated_requests_find_nothing(tiny_server: Server, tmp_path: Path) -> None:
    fuzz(tiny_server, tmp_path, "examples,coverage,fuzzing", 300)


def test_every_reference_leads_somewhere() -> None:
    def refs(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*map(refs, node.values()))
        return set().union(*map(refs, node)) if isinstance(node, list) else set()

    document = json.loads(json.dumps(describe()))
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert refs(document) <= known
