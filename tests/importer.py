"""A process that has torch imported and forks for each task, so that one starts, and can be killed, in milliseconds."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parent.parent


@dataclass
class Task:
    """A fork at work."""

    importer: "Importer"
    pid: int
    result: Path

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> dict[str, Any]:
        """What the task returned; {} if it was killed."""
        self.importer.ask({"wait": self.pid})
        return json.loads(self.result.read_text()) if self.result.exists() else {}


@dataclass
class Importer:
    """The process that forks."""

    process: "subprocess.Popen[str]"
    scratch: Path
    started: int = 0

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the importing process ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self, task: str, **arguments: Any) -> Task:
        self.started += 1
        result = self.scratch / f"{self.started}.json"
        pid = self.ask({"task": task, "arguments": arguments, "result": str(result)})["pid"]
        return Task(self, pid, result)

    def run(self, task: str, **arguments: Any) -> dict[str, Any]:
        return self.start(task, **arguments).wait()


@contextmanager
def open_importer(scratch: Path, **environ: str) -> Iterator[Importer]:
    """Run one until the block ends. HF_HUB_OFFLINE is set only if `environ` says so."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environ = {**inherited, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", **environ}
    with (scratch / "log").open("w") as log:
        command = [sys.executable, "-m", "tests.importer"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    with process:
        yield Importer(process, scratch)


FILE_CALLS = ("open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def die_at(call: int, under: str) -> list[str]:
    """Be killed just before the `call`th time (0: never) that a file under a path is touched; returns what was done."""
    done: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_CALLS and str(arguments[0]).startswith(under):
            done.append(event)
            if len(done) == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    return done


def bring(
    *, store: str, folder: str | None = None, token: str = "", limit: int = 0, call: int = 0, **source: str
) -> dict[str, Any]:
    """Import a folder, or `repository` at `revision` of a hub, in place of SmolLM2.

    No file may grow beyond `limit` bytes; killed before the `call`th touch of the store.
    """
    from models import catalog, origin
    from models import store as model_store

    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    model = replace(catalog.SMOLLM2, source=origin.Hub(**source)) if source else catalog.SMOLLM2
    done = die_at(call, str(Path(store).parent))
    tag = model_store.import_model(model, Path(store), Path(folder) if folder else None, token)
    return {"tag": tag, "calls": done}


def fetch(*, repository: str, revision: str, token: str = "") -> dict[str, Any]:
    """Fetch a snapshot without ever sleeping; `slept` is what the main thread would have slept."""
    from models import source
    from models.failure import Failure

    slept: list[float] = []

    def sleep(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            slept.append(seconds)

    from models import origin

    with patch.object(time, "sleep", sleep):
        try:
            return {"path": str(source.fetch_hub(origin.Hub(repository, revision), token)), "slept": slept}
        except Failure as failure:
            return {"code": failure.code, "message": failure.message, "slept": slept}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"bring": bring, "fetch": fetch}


def work(asked: dict[str, Any]) -> None:
    """In the fork: do the task, leave its result in a file."""
    from models.failure import Failure

    os.dup2(2, 1)
    try:
        result = TASKS[asked["task"]](**asked["arguments"])
    except Failure as failure:
        result = {"code": failure.code, "message": failure.message}
    except BaseException as error:
        result = {"raised": f"{type(error).__name__}: {error}"}
    Path(asked["result"]).write_text(json.dumps(result))


def main() -> None:
    """Answer questions, one a line."""
    import torch

    from models import store  # noqa: F401 - forks find it imported

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = {"status": os.waitpid(asked["wait"], 0)[1]}
        else:
            pid = os.fork()
            if pid == 0:
                try:
                    work(asked)
                finally:
                    os._exit(0)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
