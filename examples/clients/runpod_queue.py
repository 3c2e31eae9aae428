"""Asks a RunPod queue endpoint and always comes to an end: the output, or an exception that says why there is none.

    RUNPOD_API_KEY=… python runpod_queue.py ENDPOINT_ID examples/request.json

Copy it into your project: it needs httpx and nothing else.
"""

import json
import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

URL = "https://api.runpod.ai/v2"
LIMITS = {"run": 10_000_000, "runsync": 20_000_000}  # bytes of a request
PARAMETERS = {"run": {}, "runsync": {"wait": "20000"}}  # milliseconds that it is held open
FIRST_POLL, LONGEST_POLL = 1.0, 5.0  # seconds
HTTP_SECONDS = 30.0
WEEK = 7 * 24 * 3600  # the longest that RunPod keeps a job
WAITING = ("IN_QUEUE", "IN_PROGRESS", "RUNNING")


class QueueError(Exception):
    """Why there is no output. `job`: its id, where it has one: `Queue.wait(job, seconds)` looks for it again."""

    def __init__(self, message: str, job: str = "") -> None:
        super().__init__(message)
        self.job = job


class TooLarge(QueueError):
    """More bytes than RunPod takes; nothing was sent."""


class Refused(QueueError):
    """RunPod has not taken the request; asking the same again is of no use."""


class Unreachable(QueueError):
    """The job may or may not have been taken: the connection broke before that was said."""


class Failed(QueueError):
    """The job has failed. `error_type` is the service's own (README: errors), "" where RunPod itself says why."""

    def __init__(self, message: str, job: str, error_type: str = "", retryable: bool = False) -> None:
        super().__init__(f"{error_type}: {message}" if error_type else message, job)
        self.error_type = error_type
        self.retryable = retryable


class Cancelled(QueueError):
    """Somebody has cancelled it."""


class TimedOut(QueueError):
    """It took longer than the endpoint's execution timeout."""


class Expired(QueueError):
    """RunPod knows no such job any more: results are kept 30 minutes, of /runsync 1 minute."""


class DeadlineExceeded(QueueError):
    """It was not done in the time that it was given, and was cancelled."""


class UnknownStatus(QueueError):
    """RunPod calls the job something that this client has never heard of."""


class Queue:
    """One endpoint. Every method ends within its seconds and one HTTP timeout."""

    def __init__(self, endpoint: str, key: str, url: str = URL) -> None:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._http = httpx.Client(base_url=f"{url}/{endpoint}", headers=headers, timeout=HTTP_SECONDS)

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *raised: object) -> None:
        self._http.close()

    def ask(self, given: dict[str, Any], seconds: float = 900, operation: str = "run") -> Any:
        """The output for this input. `operation` "runsync" answers short ones sooner and takes 20 MB, not 10."""
        end = time.monotonic() + seconds
        # Should every cancellation be lost, RunPod forgets the job by itself.
        policy = {"ttl": int(1000 * min(WEEK, seconds + 60))}
        body = json.dumps({"input": given, "policy": policy}).encode()
        if len(body) > LIMITS[operation]:
            raise TooLarge(f"the request has {len(body):,} bytes; /{operation} takes at most {LIMITS[operation]:,}")
        return self._follow(self._submit(operation, body, end), end)

    def wait(self, job: str, seconds: float = 900) -> Any:
        """The output of a job that was submitted before."""
        return self._follow({"id": job, "status": "IN_QUEUE"}, time.monotonic() + seconds)

    def cancel(self, job: str) -> None:
        """As far as it can be: what is lost here ends by its ttl."""
        with suppress(httpx.HTTPError):
            self._http.post(f"/cancel/{job}")

    def _submit(self, operation: str, body: bytes, end: float) -> dict[str, Any]:
        """The job as it was taken. Sent again only where it was certainly not taken."""
        while True:
            try:
                response = self._http.post(f"/{operation}", content=body, params=PARAMETERS[operation])
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                pause, why = LONGEST_POLL, str(error)
            except httpx.HTTPError as error:
                raise Unreachable(f"{type(error).__name__}: it may have been taken") from error
            else:
                if response.is_success:
                    return _read(response)
                if response.status_code >= 500:
                    raise Unreachable(f"HTTP {response.status_code}: it may have been taken")
                if response.status_code != 429:
                    raise Refused(f"HTTP {response.status_code}: {response.text[:200]}")
                pause, why = _retry_after(response), "HTTP 429"
            if time.monotonic() + pause >= end:
                raise DeadlineExceeded(f"it could not be submitted in time: {why}")
            time.sleep(pause)

    def _follow(self, told: dict[str, Any], end: float) -> Any:
        """Poll until it is final; 1 second at first, 5 at last, never all clients at the same moment."""
        job, pause = str(told.get("id", "")), FIRST_POLL
        try:
            while told.get("status") in WAITING:
                left = end - time.monotonic()
                if left <= 0:
                    self.cancel(job)
                    raise DeadlineExceeded(f"it was {told['status']} when its time was up", job)
                time.sleep(min(left, pause * random.uniform(0.8, 1.2)))
                pause = min(LONGEST_POLL, 1.5 * pause)
                told = self._poll(job, end) or told
        except KeyboardInterrupt:
            self.cancel(job)
            raise
        return _conclude(told, job)

    def _poll(self, job: str, end: float) -> dict[str, Any] | None:
        """What is said of the job; None where nothing is, for now."""
        try:
            response = self._http.get(f"/status/{job}")
        except httpx.HTTPError:
            return None
        if response.status_code == 404:
            raise Expired("there is no such job, or not any more", job)
        if response.status_code == 429:
            time.sleep(max(0.0, min(end - time.monotonic(), _retry_after(response))))
        elif 400 <= response.status_code < 500:
            raise Refused(f"HTTP {response.status_code}: {response.text[:200]}", job)
        return _read(response) if response.is_success else None


def _conclude(told: dict[str, Any], job: str) -> Any:
    """The output of a job in its final state, or what that state means."""
    status = told.get("status")
    if status == "COMPLETED":
        if "output" not in told:
            raise Failed("COMPLETED, but without an output", job)
        return told["output"]
    if status == "FAILED":
        raise _failure(told.get("error"), job)
    if status == "CANCELLED":
        raise Cancelled("it was cancelled", job)
    if status == "TIMED_OUT":
        raise TimedOut("it ran longer than the endpoint allows", job)
    raise UnknownStatus(f"its status is {status!r}", job)


def _failure(error: Any, job: str) -> Failed:
    """Our service puts its typed error into the string; what RunPod itself writes there is only text."""
    try:
        told = json.loads(error)
        return Failed(told["error"], job, told["error_type"], told["retryable"])
    except (TypeError, ValueError, KeyError):
        return Failed(str(error or "without a reason"), job)


def _read(response: httpx.Response) -> dict[str, Any]:
    try:
        told = response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("id"), str):
        raise UnknownStatus("the answer is not a job")
    return told


def _retry_after(response: httpx.Response) -> float:
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdigit() else LONGEST_POLL


def main() -> None:
    """Ask once and print the answer."""
    endpoint, request = sys.argv[1:]
    url = os.environ.get("RUNPOD_ENDPOINT_BASE_URL", URL)
    with Queue(endpoint, os.environ["RUNPOD_API_KEY"], url) as queue:
        try:
            print(json.dumps(queue.ask(json.loads(Path(request).read_text()))))
        except QueueError as error:
            sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
