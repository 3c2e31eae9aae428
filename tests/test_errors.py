"""serving/errors.py: one table of codes, one envelope."""

import ast
import json
from pathlib import Path

import pytest

from models.failure import Failure
from serving.caller import Caller
from serving.errors import KINDS, OPERATOR_CODES, failure, respond
from tests.conftest import ROOT

SOURCES = [ROOT / "service.py", *(p for part in ("serving", "models", "deploy") for p in (ROOT / part).rglob("*.py"))]


def codes_raised(path: Path) -> set[str]:
    """First arguments of every Failure(...) and failure(...) call in a file."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id in ("Failure", "failure")]
    return {c.args[0].value for c in named if isinstance(c.args[0], ast.Constant) and isinstance(c.args[0].value, str)}


def test_every_code_that_is_raised_is_in_a_table_and_every_entry_is_raised() -> None:
    raised = set().union(*(codes_raised(path) for path in SOURCES))
    assert raised == set(KINDS) | OPERATOR_CODES


@pytest.mark.parametrize("code", list(KINDS))
def test_the_envelope(code: str) -> None:
    response = respond(failure(code), Caller("an-id"))
    body = json.loads(bytes(response.body))
    assert response.status_code == KINDS[code].status
    assert list(body) == ["success", "error", "error_type", "retryable", "request_id"]
    assert (body["success"], body["error_type"], body["request_id"]) == (False, code, "an-id")
    assert response.headers["x-request-id"] == "an-id"
    assert body["retryable"] == ("retry-after" in response.headers)


def test_a_measured_retry_after_goes_before_the_default_and_is_rounded_up() -> None:
    response = respond(Failure("queue_full", "3 prompts are waiting", retry_after=6.2), Caller("id"))
    assert response.headers["retry-after"] == "7"


def test_permanent_faults_are_not_offered_again() -> None:
    # Clients retry 429 and 5xx by themselves; only these may ask for it.
    retried = {code for code, kind in KINDS.items() if kind.retry_after is not None}
    assert retried == {
        "request_timeout",
        "queue_full",
        "model_loading",
        "busy",
        "draining",
        "interrupted",
        "job_unrecorded",
    }


def test_401_names_the_scheme() -> None:
    assert respond(failure("unauthorized"), Caller("id")).headers["www-authenticate"] == "Bearer"
