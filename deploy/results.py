"""What a job is answered, as RunPod takes it: an output that is JSON and not too large, or an error as a string."""

import json
from typing import Any

from deploy.limits import MB, QUEUE_BYTES
from models.failure import Failure
from serving.errors import envelop

MAX_RESULT = QUEUE_BYTES
MAX_CHUNK = MB  # of one piece of a stream


def pack(output: Any) -> bytes:
    """The output of a job that went well; raises Failure where RunPod could not take it."""
    return _write({"output": output}, MAX_RESULT, "the answer of a job")


def pack_chunk(piece: Any) -> bytes:
    """A piece of its stream."""
    return _write({"output": piece}, MAX_CHUNK, "a piece of a job's stream")


def pack_error(failure: Failure, name: str) -> bytes:
    """Why the job `name` has failed: the envelope of our own routes, as a string, for RunPod drops an object."""
    return json.dumps({"error": json.dumps(envelop(failure, name))}).encode()


def parse(body: bytes) -> Any:
    """What the service has answered; raises ValueError for what only resembles JSON."""
    return json.loads(body, parse_constant=_refuse)


def too_large(what: str, found: int, limit: int) -> Failure:
    return Failure("answer_too_large", f"{what} has {found:,} bytes; RunPod takes at most {limit:,}")


def _refuse(constant: str) -> Any:
    raise ValueError("a number that JSON does not have")


def _write(result: dict[str, Any], limit: int, what: str) -> bytes:
    try:
        written = json.dumps(result, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise Failure("internal_error", "the answer is not one that JSON can say") from None
    if len(written) > limit:
        raise too_large(what, len(written), limit)
    return written
