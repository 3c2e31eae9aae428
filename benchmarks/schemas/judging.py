"""Whether a value fits a schema by the jsonschema library, in a process of its own: it may hang or crash on some."""

import multiprocessing as mp
from multiprocessing.connection import Connection
from typing import Any

from models.schema.dialect import Schema

SECONDS = 10.0  # for one schema with all its values


class Judge:
    """Asks the library, formats asserted; a verdict is True, False, or what went wrong."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()

    def verdicts(self, schema: Schema, values: list[Any]) -> list[bool | str]:
        self._ours.send((schema, values))
        if self._ours.poll(SECONDS):
            found: list[bool | str] = self._ours.recv()
            return found
        self.stop()
        self._start()
        return ["took too long"] * len(values)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def _work(ours: Connection) -> None:
    from jsonschema.validators import Draft202012Validator, validator_for

    while True:
        schema, values = ours.recv()
        kind = validator_for(schema, default=Draft202012Validator)
        validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
        ours.send([_verdict(validator, value) for value in values])


def _verdict(validator: Any, value: Any) -> bool | str:
    try:
        return bool(validator.is_valid(value))
    except Exception as error:  # of many kinds: patterns that Python does not know, references, recursion
        return type(error).__name__
