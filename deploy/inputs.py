"""A job's input: which route of the service it asks, with what body. Knows no queue and asks nothing.

Three forms. `{"openai_route": "/v1/...", "openai_input": {...}}` is what RunPod makes of a request to its own
/openai/v1/...; `{"route": "/v1/decisions", "body": {...}}` names any route of ours; any other object is itself the body
of /prompt.
"""

import json
from dataclasses import dataclass
from typing import Any

from models.failure import Failure
from serving import routes
from serving.errors import OPENAI, failure

DEFAULT = "/prompt"


@dataclass(frozen=True)
class Request:
    """`body` None: a GET. `listed`: its output is a list even of one, as RunPod's /openai reads it."""

    path: str
    body: bytes | None
    listed: bool = False


def read(given: Any) -> Request:
    """The request that a job's input asks for; raises Failure."""
    if not isinstance(given, dict):
        raise Failure("invalid_value", "input: it must be an object")
    if "openai_route" in given:
        path, body, listed = given["openai_route"], given.get("openai_input"), True
        if not isinstance(path, str) or not path.startswith(OPENAI):
            raise failure("not_found")
    elif "route" in given:
        path, body, listed = given["route"], given.get("body"), False
        for name in given.keys() - {"route", "body"}:
            raise Failure("unknown_parameter", f"input.{name[:64]}: unknown field")
    else:
        path, body, listed = DEFAULT, given, False
    return Request(path, _write(path, body), listed)


def _write(path: Any, body: Any) -> bytes | None:
    route = routes.find(path) if isinstance(path, str) else None
    if route is None or (route.method == "GET" and not path.startswith("/v1/models")):
        raise failure("not_found")
    if route.method == "GET":
        return None
    try:
        return json.dumps(body, allow_nan=False).encode()  # in ASCII: half a surrogate pair is the service's to refuse
    except (ValueError, RecursionError):
        raise Failure("invalid_json", "input: it is not valid JSON") from None
