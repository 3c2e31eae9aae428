"""All that a benchmark has found, as one JSON file: the host, the plan, who took part, every single answer."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.load import Load, Run
from benchmarks.wire import Answer

OURS = "ZopilotGPU"


@dataclass(frozen=True)
class Contestant:
    """A server; `absent` is why it took no part."""

    name: str
    about: str
    schema: str = "on"
    belief: str = ""
    installed: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    absent: str = ""


@dataclass(frozen=True)
class Round:
    """One load on one server, in one round."""

    server: str
    number: int
    load: Load
    run: Run


@dataclass(frozen=True)
class Record:
    """A whole benchmark; `host` and `plan` are what a reader must know of it, by name."""

    host: dict[str, str]
    plan: dict[str, str]
    contestants: list[Contestant]
    rounds: list[Round]


def write(record: Record, path: Path) -> None:
    """The file is whole at any moment: an interrupted benchmark keeps its rounds."""
    scratch = path.with_name(f"{path.name}.part")
    scratch.write_text(json.dumps(asdict(record), indent=1))
    scratch.replace(path)


def read(path: Path) -> Record:
    """What `write` wrote."""
    found = json.loads(path.read_text())
    rounds = [
        Round(
            item["server"],
            item["number"],
            Load(**item["load"]),
            Run(item["run"]["seconds"], tuple(Answer(**answer) for answer in item["run"]["answers"])),
        )
        for item in found["rounds"]
    ]
    contestants = [Contestant(**item) for item in found["contestants"]]
    return Record(found["host"], found["plan"], contestants, rounds)
