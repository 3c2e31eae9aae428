"""Whether a service says the same again: recorded replies beside fresh ones, receipt by receipt. Asks nobody."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verification.client import Reply

SAME = ("model", "finish_reason", "evidence")  # of the metadata, beside the receipt
MISSING = object()


@dataclass(frozen=True)
class Verdict:
    """Of one line: proven if nothing `differs`; `unasked`: the error_type, where there was no second answer;
    `distance`: by how much at most the probabilities of a label answer do, where that was let pass."""

    line: int
    differs: tuple[str, ...] = ()
    unasked: str = ""
    distance: float = 0.0

    @property
    def proven(self) -> bool:
        return not self.differs and not self.unasked

    def __str__(self) -> str:
        if self.unasked:
            return f"line {self.line}: not proven, no second answer: {self.unasked}"
        return f"line {self.line}: " + (f"disproven, differs: {', '.join(self.differs)}" if self.differs else "proven")


def again(request: Mapping[str, Any], reply: Mapping[str, Any]) -> dict[str, Any]:
    """The same request, with the seed that was drawn for it."""
    seed = _seed(_receipt(reply))
    return {**request, **({} if seed is None else {"seed": seed})}


def judge(
    line: int, request: Mapping[str, Any], recorded: Mapping[str, Any], fresh: Reply, tolerance: float = 0.0
) -> Verdict:
    """Both replies must hold receipts; every field of either is compared, and the outputs letter for letter.

    The key of the hashes is the service's, so only it can tell what the recorded output hashes to: where the receipts
    are the same and the outputs are not, the recorded output is not the one that its receipt is of. Probabilities of
    labels are rounded otherwise in other company, so they may differ by `tolerance`; the decision may not.
    """
    if fresh.answer is None:
        return Verdict(line, unasked=fresh.error)
    one, two = _receipt(recorded), _receipt(fresh.answer)
    if not isinstance(one, dict) or not isinstance(two, dict) or not one or not two:
        return Verdict(line, ("receipt is missing",))
    differs = _differences(one, two)
    distance = 0.0
    if recorded.get("output") != fresh.answer["output"] and "output" not in differs:
        differs.append("output is not what its receipt says")
    elif "output" in differs and (near := _distance(recorded.get("output"), fresh.answer["output"])) <= tolerance:
        differs.remove("output")
        distance = near
    if request.get("seed", _seed(one)) != _seed(one):
        differs.append("seed is not the one that was asked for")
    before, after = recorded["metadata"], fresh.metadata
    differs += [name for name in SAME if before.get(name, MISSING) != after.get(name, MISSING)]
    return Verdict(line, tuple(differs), distance=distance)


def _distance(one: Any, two: Any) -> float:
    """The most by which the probabilities of two label answers with the same decision differ, else infinity."""
    try:
        (decided, before), (again, after) = (_take_apart(json.loads(text)) for text in (one, two))
        if decided != again or before.keys() != after.keys():
            return math.inf
        return max(abs(before[label] - after[label]) for label in before)
    except (ValueError, KeyError, TypeError, AttributeError):
        return math.inf


def _take_apart(output: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Decision and probabilities, of which `probability` has to be the greatest."""
    probabilities = output.pop("probabilities")
    if output.pop("probability") != max(probabilities.values()):
        raise ValueError("not of one answer")
    return output, probabilities


def _receipt(reply: Mapping[str, Any]) -> Any:
    metadata = reply.get("metadata")
    return metadata.get("receipt") if isinstance(metadata, dict) else None


def _seed(receipt: Any) -> Any:
    sampling = receipt.get("sampling") if isinstance(receipt, dict) else None
    return sampling.get("seed") if isinstance(sampling, dict) else None


def _differences(one: Any, two: Any, name: str = "") -> list[str]:
    """Names of the fields, a dot between inner and outer, in which two receipts are not the same."""
    if isinstance(one, dict) and isinstance(two, dict):
        names = dict.fromkeys([*one, *two])
        return [
            each
            for key in names
            for each in _differences(one.get(key, MISSING), two.get(key, MISSING), f"{name}.{key}".lstrip("."))
        ]
    return [] if type(one) is type(two) and one == two else [name]
