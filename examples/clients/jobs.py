"""Asks a pod for what takes longer than a proxy waits: accepted as a job, fetched when it is done.

    ZOPILOT_KEY=… python jobs.py https://POD-3000.proxy.runpod.net examples/request.json

Copy it into your project: it needs httpx and nothing else.
"""

import json
import os
import random
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

FIRST_POLL, LONGEST_POLL = 1.0, 5.0  # seconds
HTTP_SECONDS = 30.0
LATER = (408, 429, 500, 502, 503, 504, 524)


class JobError(Exception):
    """Why there is no answer. `error_type` and `retryable` are the service's (README: errors)."""

    def __init__(self, error_type: str, message: str, retryable: bool = False) -> None:
        super().__init__(f"{error_type}: {message}")
        self.error_type = error_type
        self.retryable = retryable


def ask(url: str, key: str, body: dict[str, Any], seconds: float = 900, route: str = "/prompt") -> dict[str, Any]:
    """The answer of the route, within `seconds`; JobError says why there is none.

    The job has a name of ours, so that asking again after a broken connection makes no second one.
    """
    end = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=HTTP_SECONDS) as http:
        wish = {"Prefer": "respond-async", "Idempotency-Key": str(uuid.uuid4())}
        response = _persist(http, end, "POST", route, json=body, headers=wish)
        told = _read(response)
        if response.status_code != 202:
            return _answer(response.status_code, told)  # it makes no jobs: this is the answer itself
        location, pause = str(told["location"]), FIRST_POLL
        try:
            while told.get("status") in ("queued", "running"):
                _sleep(pause, end)
                pause = min(LONGEST_POLL, 1.5 * pause)
                told = _read(_persist(http, end, "GET", location))
        except (JobError, KeyboardInterrupt):
            with suppress(httpx.HTTPError):
                http.delete(location)
            raise
    if "answer" not in told:
        raise _failure(told)  # job_not_found: it was cancelled long ago, or its answer is a day old
    return _answer(told["http_status"], told["answer"])


def _persist(http: httpx.Client, end: float, method: str, path: str, **request: Any) -> httpx.Response:
    """A response that is not about this moment; until `end`."""
    while True:
        pause = LONGEST_POLL
        try:
            response = http.request(method, path, **request)
            if response.status_code not in LATER:
                return response
            if "json" in response.headers.get("Content-Type", "") and not response.json().get("retryable", True):
                return response
            after = response.headers.get("Retry-After", "")
            pause = float(after) if after.isdigit() else pause
        except httpx.UnsupportedProtocol:  # no https:// before it: nothing will ever answer there
            raise
        except (httpx.TransportError, ValueError):
            pass
        _sleep(pause, end)


def _sleep(pause: float, end: float) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise JobError("deadline_exceeded", "not done in the time that it was given, and cancelled")
    time.sleep(min(left, pause * random.uniform(0.8, 1.2)))


def _read(response: httpx.Response) -> dict[str, Any]:
    """What the service said; a proxy's page is none of it."""
    try:
        told = response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise JobError("unknown", f"HTTP {response.status_code}, and not from the service")
    return told


def _answer(status: int, told: dict[str, Any]) -> dict[str, Any]:
    if status >= 400 or told.get("success") is False:
        raise _failure(told)
    return told


def _failure(told: dict[str, Any]) -> JobError:
    """The service's own envelope, or that of the public API."""
    error = told.get("error")
    if isinstance(error, dict):
        return JobError(error["code"], error["message"], error["retryable"])
    return JobError(told.get("error_type", "unknown"), str(error), bool(told.get("retryable")))


def main() -> None:
    """Ask once and print the answer."""
    url, request = sys.argv[1:]
    try:
        print(json.dumps(ask(url, os.environ.get("ZOPILOT_KEY", ""), json.loads(Path(request).read_text()))))
    except JobError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
