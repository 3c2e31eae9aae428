"""What was fitted on labelled data to make a model's probabilities honest: one small file each, beside the models.

A file is used whole or refused. Knows no model and no HTTP: verification/ fits and writes, whoever answers looks up.
"""

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from models.failure import Failure

FORMAT = 1
LARGEST = 1 << 20  # bytes of a file: 256 labels of 200 characters fit four times, whatever their script
SURE = 1e-6  # how far a raw confidence is taken to be from 0 and 1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Measures:
    """Probabilities against the truth. `accuracy`: how often the likeliest label, or a value, was right; `ece`: 15
    equally wide bins of its probability; `brier`: summed over the labels; `nll`: in nats."""

    accuracy: float
    ece: float
    brier: float
    nll: float


@dataclass(frozen=True)
class Fit:
    """Where it comes from: `data` is the sha256 of a file, `fitted` rows of which (or values) were fitted on, and
    `before` and `after` are of `measured` others. `created` in UTC, as ISO 8601 has it."""

    data: str
    fitted: int
    measured: int
    before: Measures
    after: Measures
    created: str

    def __post_init__(self) -> None:
        _require(isinstance(self.created, str) and isinstance(self.data, str), "no text")
        _require(DIGEST.fullmatch(self.data) is not None, "its data has no digest")
        _require(_are_finite((*astuple(self.before), *astuple(self.after))), "a measure is no finite number")
        counts = (self.fitted, self.measured)
        _require(all(type(count) is int and count > 0 for count in counts), "it was fitted or measured on nothing")

    @property
    def helps(self) -> bool:
        return self.after.nll < self.before.nll


@dataclass(frozen=True)
class Calibration:
    """Of one set of labels, asked in one way: (1 - noise) * softmax(scores / temperature + bias) + noise / labels, as
    if of some share of the rows, `noise`, the scores said nothing.

    `model` is the tag of the weights; `labels` are sorted, `bias` is in their order. `prior` and `task` are what the
    service says of its scores: how they were corrected, and a digest of the question without its document.
    """

    model: str
    labels: tuple[str, ...]
    prior: str
    task: str
    temperature: float
    bias: tuple[float, ...]
    noise: float
    abstain_below: float
    fit: Fit

    def __post_init__(self) -> None:
        _require(all(isinstance(text, str) for text in (self.model, *self.labels, self.prior, self.task)), "no text")
        _require(self.labels == tuple(sorted(set(self.labels))) != (), "its labels are not sorted, or one stands twice")
        _require(_are_finite((self.temperature, self.noise, self.abstain_below, *self.bias)), "a number is not finite")
        in_range = self.temperature > 0 and 0 <= self.noise < 1 and 0 <= self.abstain_below <= 1
        _require(in_range, "a number is out of its range")
        _require(len(self.bias) == len(self.labels), "it has not one bias a label")

    @property
    def key(self) -> str:
        return key(self.model, self.labels, self.prior, self.task)

    @cached_property
    def id(self) -> str:
        """Of these very numbers; a new fit has another."""
        return _digest(asdict(self))[:16]

    def apply(self, labels: Sequence[str], scores: Sequence[float]) -> list[float]:
        """Probabilities in the order of `labels`, which are this calibration's own in any order."""
        leaning = dict(zip(self.labels, self.bias, strict=True))
        logits = [score / self.temperature + leaning[label] for label, score in zip(labels, scores, strict=True)]
        most = max(logits)
        shares = [math.exp(logit - most) for logit in logits]
        certain = (1 - self.noise) / math.fsum(shares)
        return [share * certain + self.noise / len(shares) for share in shares]


@dataclass(frozen=True)
class FieldCalibration:
    """Of the values in answers to one schema: the chance that one is right, from its raw confidence. `schema` is the
    digest that receipts show as the form."""

    model: str
    schema: str
    slope: float
    offset: float
    fit: Fit

    def __post_init__(self) -> None:
        _require(isinstance(self.model, str) and isinstance(self.schema, str), "no text")
        _require(_are_finite((self.slope, self.offset)) and self.slope >= 0, "a number is out of its range")

    @property
    def key(self) -> str:
        return field_key(self.model, self.schema)

    @cached_property
    def id(self) -> str:
        return _digest(asdict(self))[:16]

    def apply(self, raw: float) -> float:
        """Of a raw confidence from 0 to 1; the surer stays the surer."""
        logit = self.slope * logit_of(raw) + self.offset
        return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def logit_of(raw: float) -> float:
    """ln(raw / (1 - raw)), finite from 0 to 1."""
    kept = min(max(raw, SURE), 1 - SURE)
    return math.log(kept / (1 - kept))


def key(model: str, labels: Sequence[str], prior: str = "none", task: str = "") -> str:
    """Where the calibration of these labels lies, in whatever order they are asked."""
    return _digest(["labels", model, sorted(labels), prior, task])[:32]


def field_key(model: str, schema: str) -> str:
    return _digest(["fields", model, schema])[:32]


def find(folder: Path, model: str, labels: Sequence[str], prior: str = "none", task: str = "") -> Calibration | None:
    """What is in force now, a file's status away; None where nothing was fitted. Failure where it cannot be used."""
    found = _look(_place(folder, model, key(model, labels, prior, task)))
    assert found is None or isinstance(found, Calibration)  # its key says so
    return found


def find_fields(folder: Path, model: str, schema: str) -> FieldCalibration | None:
    """As `find`, by the schema's digest."""
    found = _look(_place(folder, model, field_key(model, schema)))
    assert found is None or isinstance(found, FieldCalibration)
    return found


def find_all(folder: Path, model: str) -> list[Calibration | FieldCalibration]:
    """All that are in force for these weights, the newest first. Failure where one cannot be used."""
    paths = sorted(_place(folder, model, "*").parent.glob("[0-9a-f]*.json"))
    found = [item for path in paths if (item := _look(path)) is not None and item.model == model]
    return sorted(found, key=lambda item: item.fit.created, reverse=True)


def write(calibration: Calibration | FieldCalibration, folder: Path) -> Path:
    """Put it in force: whoever looks finds the old file or this one, whole."""
    path = _place(folder, calibration.model, calibration.key)
    sealed = {"format": FORMAT, "calibration": asdict(calibration), "sha256": _digest(asdict(calibration))}
    scratch = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return path


def _place(folder: Path, model: str, name: str) -> Path:
    """The model's name may come from afar and becomes a folder's."""
    short = model.partition(":")[0]
    _require(NAME.fullmatch(short) is not None, "the model's name is none")
    return folder / short / f"{name}.json"


def _look(path: Path) -> Calibration | FieldCalibration | None:
    try:
        seen = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _refuse(f"{path.name} cannot be read: {error.strerror}") from error
    return _read(path, (seen.st_ino, seen.st_mtime_ns, seen.st_size))


@lru_cache(maxsize=1024)
def _read(path: Path, stamp: tuple[int, int, int]) -> Calibration | FieldCalibration:
    """`stamp` tells one file at this path from the next; what fails is read again."""
    _require(stamp[2] <= LARGEST, f"{path.name} is larger than {LARGEST} bytes")
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        if sealed["format"] != FORMAT or _digest(sealed["calibration"]) != sealed["sha256"]:
            raise ValueError("format or digest")
        found = _rebuild(dict(sealed["calibration"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refuse(f"{path.name} is damaged or none of ours") from error
    _require(found.key == path.stem, f"{path.name} is the calibration of something else")
    return found


def _rebuild(body: dict[str, Any]) -> Calibration | FieldCalibration:
    fit = dict(body["fit"])
    body["fit"] = Fit(**{**fit, "before": Measures(**fit["before"]), "after": Measures(**fit["after"])})
    if "labels" not in body:
        return FieldCalibration(**body)
    return Calibration(**{**body, "labels": tuple(body["labels"]), "bias": tuple(body["bias"])})


def _are_finite(numbers: Sequence[float]) -> bool:
    return all(isinstance(number, float) and math.isfinite(number) for number in numbers)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _refuse(otherwise)


def _refuse(reason: str) -> Failure:
    return Failure("calibration_invalid", f"a calibration cannot be used: {reason}; scripts/verify fit makes another")


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
