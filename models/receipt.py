"""A receipt for each answer: what it was made from and with, without a word of it. Asking again proves it, or not.

What is the caller's own text goes in as an HMAC-SHA256 under the operator's key, so that nobody can guess it back from
the receipt; what identifies model and schema as plain SHA-256.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.engine.sequence import Sampling
from models.question import Question, compact

FILE = "receipt.key"  # beside the model store, where the operator has given no key


def find_key(given: str, folder: Path) -> bytes:
    """The operator's key; where there is none, one made once and kept in `folder`, readable by its owner alone."""
    if given:
        return given.encode()
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{FILE}-{secrets.token_hex(8)}")
    made.touch(0o600)
    made.write_bytes(secrets.token_bytes(32))
    try:
        os.link(made, path)  # whoever comes first has made it
    except FileExistsError:
        pass
    finally:
        made.unlink()
    return path.read_bytes()


@dataclass(frozen=True)
class Receipts:
    """Writes receipts under one key; `made_with` is the same in all of them: weights, template, versions."""

    key: bytes
    made_with: dict[str, Any]

    def write(self, question: Question, form: Any, sampling: Sampling | None, output: str) -> dict[str, Any]:
        """`form`: the schema or the labels of the answer, as JSON has them; `sampling`: None where nothing is drawn."""
        return {
            "input": self._hide("input", compact([question.prompt, question.context])),
            "output": self._hide("output", output),
            "form": hashlib.sha256(compact(form).encode()).hexdigest(),
            "sampling": None if sampling is None else asdict(sampling),
            **self.made_with,
        }

    def _hide(self, kind: str, text: str) -> str:
        return hmac.new(self.key, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()
