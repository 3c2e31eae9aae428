"""Schemas with instances out of an archive: MaskBench, and the official JSON-Schema-Test-Suite."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.schema.dialect import Schema

DIALECTS = {
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
    "draft7": "http://json-schema.org/draft-07/schema#",
}


@dataclass(frozen=True)
class Case:
    """One schema: its name, the group it is counted with, and instances with whether they are valid."""

    name: str
    group: str
    schema: Schema
    tests: list[tuple[Any, bool]]


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder


def read_maskbench(folder: Path) -> Iterator[Case]:
    """One file a schema; its group is the source that it comes from."""
    for path in sorted(folder.rglob("*.json")):
        found = json.loads(path.read_text())
        if isinstance(found.get("schema"), dict):
            tests = [(test["data"], bool(test["valid"])) for test in found["tests"]]
            yield Case(path.stem, path.stem.split("---")[0].split("_")[0], found["schema"], tests)


def read_suite(folder: Path) -> Iterator[Case]:
    """The required part and the formats; its group is the keyword. Schemas that are true or false are left out."""
    for draft, dialect in DIALECTS.items():
        root = folder / "tests" / draft
        for path in [*sorted(root.glob("*.json")), *sorted(root.glob("optional/format/*.json"))]:
            group = f"{draft} {'format ' if path.parent.name == 'format' else ''}{path.stem}"
            for number, each in enumerate(json.loads(path.read_text())):
                if isinstance(each["schema"], dict):
                    schema = {"$schema": dialect} | each["schema"]
                    tests = [(test["data"], test["valid"]) for test in each["tests"]]
                    yield Case(f"{group} {number}: {each['description']}", group, schema, tests)
