"""Every error the service can answer: its code, status and whether trying again may help; and the envelope it comes in.

No exception text, path, stack or document text ever leaves through here: a message is either fixed or a Failure's own.
"""

import math
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter
from starlette.responses import JSONResponse

from models.failure import Failure
from serving.caller import Caller


@dataclass(frozen=True)
class Kind:
    """`retry_after` in seconds; None: the same request will fail again, so no Retry-After is sent."""

    status: int
    message: str
    retry_after: float | None = None


KINDS: dict[str, Kind] = {
    "invalid_json": Kind(400, "the body is not valid JSON"),
    "invalid_value": Kind(400, "a field has a value that is not allowed"),
    "invalid_image": Kind(400, "an image is not one that is taken"),
    "invalid_text": Kind(400, "a text holds NUL or half a surrogate pair"),
    "unknown_parameter": Kind(400, "a field is not known"),
    "schema_invalid": Kind(400, "the schema is not a valid JSON Schema"),
    "schema_unsupported": Kind(400, "the schema cannot be enforced"),
    "context_length_exceeded": Kind(400, "the prompt is too long"),
    "unauthorized": Kind(401, "a valid key is needed: X-API-Key, or Authorization: Bearer"),
    "not_found": Kind(404, "there is no such route"),
    "model_not_found": Kind(404, "there is no such model"),
    "job_not_found": Kind(404, "there is no such job, or its answer is no longer kept"),
    "method_not_allowed": Kind(405, "this route takes another method"),
    "request_timeout": Kind(408, "the body did not arrive in time", 1),
    "request_too_large": Kind(413, "the body is too large"),
    "unsupported_media_type": Kind(415, "send Content-Type: application/json"),
    "answer_truncated": Kind(422, "the answer was cut"),
    "answer_too_large": Kind(422, "the answer is larger than what carries it takes"),
    "answer_invalid": Kind(422, "the answer is not what was asked for"),
    "check_failed": Kind(422, "the answer breaks a rule of x-check"),
    "evidence_absent": Kind(422, "the answer has values that are not in the document"),
    "windows_conflict": Kind(422, "parts of the document say different things"),
    "idempotency_conflict": Kind(422, "this Idempotency-Key stands for another request"),
    "image_unprocessable": Kind(422, "an image cannot be decoded"),
    "verbatim_absent": Kind(422, "nothing in the document fits a copy-only field"),
    "queue_full": Kind(429, "too many prompts are waiting", 10),
    "client_closed_request": Kind(499, "the client left"),
    "calibration_invalid": Kind(500, "a calibration of this service cannot be used"),
    "internal_error": Kind(500, "an unexpected error happened here"),
    "model_error": Kind(500, "the model failed on this prompt"),
    "model_loading": Kind(503, "the model is being loaded", 5),
    "model_unavailable": Kind(503, "the model could not be loaded"),
    "busy": Kind(503, "too many requests are under way", 5),
    "interrupted": Kind(503, "the service died while it worked on this; it is being started again", 10),
    "job_unrecorded": Kind(503, "the job could not be recorded, so it is not accepted", 30),
    "draining": Kind(503, "the service is shutting down", 10),
    "deadline_exceeded": Kind(504, "not finished before the deadline"),
}

# Of an import or a start: shown to the operator, never answered over HTTP.
OPERATOR_CODES = frozenset(
    {"import_failed", "machine_unfit", "memory_too_small", "model_broken", "model_not_imported", "model_unsupported"}
    | {"source_invalid", "source_unavailable", "upload_failed"}
)


# Under here errors look as the public API's clients expect them.
OPENAI = "/v1/"
TYPES = {
    401: "authentication_error",
    429: "overloaded_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}  # of any other status: invalid_request_error


REFUSALS = Counter("zopilot_refusals", "answers that are errors, by error_type", ["code"])


def respond(failure: Failure, caller: Caller) -> JSONResponse:
    """The failure in the envelope of its path, with its status and, where trying again may help, Retry-After."""
    REFUSALS.labels(failure.code).inc()
    caller.outcome = failure.code
    kind = KINDS[failure.code]
    retry_after = kind.retry_after if failure.retry_after is None else failure.retry_after
    headers = {"X-Request-Id": caller.request_id}
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(retry_after))
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if not caller.path.startswith(OPENAI):
        return JSONResponse(envelop(failure, caller.request_id), kind.status, headers)
    if kind.status >= 500 and retry_after is None:
        headers["X-Should-Retry"] = "false"  # its clients try any of these again
    return JSONResponse({"error": describe(failure, caller.request_id)}, kind.status, headers)


def envelop(failure: Failure, request_id: str) -> dict[str, Any]:
    """The failure as our own routes tell it; one whose code is not known here as well."""
    kind = KINDS.get(failure.code, Kind(500, ""))
    return {
        "success": False,
        "error": failure.message or kind.message,
        "error_type": failure.code,
        "retryable": failure.retry_after is not None or kind.retry_after is not None,
        "request_id": request_id,
    }


def describe(failure: Failure, request_id: str) -> dict[str, Any]:
    """The failure as the public API's error object."""
    kind = KINDS[failure.code]
    return {
        "message": failure.message or kind.message,
        "type": TYPES.get(kind.status, "invalid_request_error"),
        "param": getattr(failure, "param", None),
        "code": failure.code,
        "retryable": failure.retry_after is not None or kind.retry_after is not None,
        "request_id": request_id,
    }


def failure(code: str) -> Failure:
    """A Failure with the code's fixed message."""
    return Failure(code, KINDS[code].message)
