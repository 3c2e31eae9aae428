"""A job on the wire: what a client says of the one it wants, and how it is told. Does no work."""

import hashlib
import json
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from deploy.journal import Job
from models.failure import Failure
from serving.caller import Caller
from serving.gate import show


def tell(job: Job) -> dict[str, Any]:
    """The job as its owner sees it."""
    told: dict[str, Any] = {
        "id": job.id,
        "status": job.state,
        "route": job.route,
        "location": f"/jobs/{job.id}",
        "request_id": job.request_id,
        "created": round(job.created, 3),
        "ended": None if job.ended is None else round(job.ended, 3),
    }
    if job.status is not None and job.answer is not None:
        told |= {"http_status": job.status, "answer": json.loads(job.answer)}
    return told


def accept(job: Job, caller: Caller) -> JSONResponse:
    """The answer to what is a job now. Who overlooks the status finds no `success`."""
    told = tell(job)
    headers = {"Location": told["location"], "Retry-After": "1", "X-Request-Id": caller.request_id}
    return JSONResponse({"success": False, **told}, 202, headers)


def asks_for_one(headers: Headers) -> bool:
    """Whether the client would rather have a job (RFC 7240, 4.1)."""
    wishes = ",".join(headers.getlist("prefer")).split(",")
    return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes)


def find_owner(headers: Headers) -> str:
    """A job is its key's alone; the key itself is not kept."""
    return hashlib.sha256(show(headers).encode("latin-1")).hexdigest()


def find_key(headers: Headers) -> str | None:
    """The client's name for the request, under which it is done once; raises Failure for one that is too long."""
    key = headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= 255:
        raise Failure("invalid_value", "Idempotency-Key: from 1 to 255 characters")
    return key
