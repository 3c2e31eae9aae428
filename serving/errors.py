"""Every error the service can answer: its code, status and whether trying again may help; and the envelope it comes in.

No exception text, path, stack or document text ever leaves through here: a message is either fixed or a Failure's own.
"""

import math
from dataclasses import dataclass

from prometheus_client import Counter
from starlette.responses import JSONResponse

from models.failure import Failure


@dataclass(frozen=True)
class Kind:
    """`retry_after` in seconds; None: the same request will fail again, so no Retry-After is sent."""

    status: int
    message: str
    retry_after: float | None = None


KINDS: dict[str, Kind] = {
    "invalid_json": Kind(400, "the body is not valid JSON"),
    "invalid_value": Kind(400, "a field has a value that is not allowed"),
    "invalid_text": Kind(400, "a text holds NUL or half a surrogate pair"),
    "unknown_parameter": Kind(400, "a field is not known"),
    "schema_invalid": Kind(400, "the schema is not a valid JSON Schema"),
    "schema_unsupported": Kind(400, "the schema cannot be enforced"),
    "context_length_exceeded": Kind(400, "the prompt is too long"),
    "unauthorized": Kind(401, "a valid key is needed: X-API-Key, or Authorization: Bearer"),
    "not_found": Kind(404, "there is no such route"),
    "model_not_found": Kind(404, "there is no such model"),
    "method_not_allowed": Kind(405, "this route takes another method"),
    "request_timeout": Kind(408, "the body did not arrive in time", 1),
    "request_too_large": Kind(413, "the body is too large"),
    "unsupported_media_type": Kind(415, "send Content-Type: application/json"),
    "answer_truncated": Kind(422, "the answer was cut"),
    "answer_invalid": Kind(422, "the answer is not what was asked for"),
    "queue_full": Kind(429, "too many prompts are waiting", 10),
    "client_closed_request": Kind(499, "the client left"),
    "internal_error": Kind(500, "an unexpected error happened here"),
    "model_error": Kind(500, "the model failed on this prompt"),
    "model_loading": Kind(503, "the model is being loaded", 5),
    "draining": Kind(503, "the service is shutting down", 10),
    "deadline_exceeded": Kind(504, "not finished before the deadline"),
}

# Of an import or a start: shown to the operator, never answered over HTTP.
OPERATOR_CODES = frozenset(
    {"import_failed", "machine_unfit", "memory_too_small", "model_broken", "model_not_imported", "model_unsupported"}
    | {"source_invalid", "source_unavailable"}
)


REFUSALS = Counter("zopilot_refusals", "answers that are errors, by error_type", ["code"])


def respond(failure: Failure, request_id: str) -> JSONResponse:
    """The failure in our envelope, with its status and, where trying again may help, Retry-After."""
    REFUSALS.labels(failure.code).inc()
    kind = KINDS[failure.code]
    retry_after = kind.retry_after if failure.retry_after is None else failure.retry_after
    headers = {"X-Request-Id": request_id}
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(retry_after))
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {
        "success": False,
        "error": failure.message or kind.message,
        "error_type": failure.code,
        "retryable": retry_after is not None,
        "request_id": request_id,
    }
    return JSONResponse(body, kind.status, headers)


def failure(code: str) -> Failure:
    """A Failure with the code's fixed message."""
    return Failure(code, KINDS[code].message)
