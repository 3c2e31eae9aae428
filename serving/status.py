"""What the service says of itself: loading, ready, draining or failed, and the figures behind it. Knows no model."""

import time
from collections.abc import Callable
from typing import Any, Literal

from starlette.responses import JSONResponse

from models.failure import Failure
from serving.caller import Caller
from serving.errors import failure, respond
from serving.jobs import Jobs

State = Literal["loading", "ready", "failed"]


class Status:
    """Set by whoever loads the model, read by the gate; the rest is asked of a ready service."""

    def __init__(self) -> None:
        self.state: State = "loading"
        self._since = time.monotonic()
        self._detail: Callable[[], dict[str, Any]] = dict
        self._info: Callable[[], dict[str, Any]] = dict
        self.jobs = Jobs()
        self._queue: Callable[[], dict[str, Any]] = dict
        self._alive: Callable[[], bool] = lambda: True

    def become_ready(
        self,
        detail: Callable[[], dict[str, Any]],
        alive: Callable[[], bool],
        info: Callable[[], dict[str, Any]] = dict,
        queue: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._detail, self._alive, self._info, self._queue = detail, alive, info, queue
        self.state = "ready"

    def fail(self) -> None:
        self.state = "failed"

    @property
    def alive(self) -> bool:
        return self.state != "failed" and self._alive()

    @property
    def ready(self) -> bool:
        return self.state == "ready" and self._alive()

    def livez(self, caller: Caller) -> JSONResponse:
        """200 while the process can do its work or get there."""
        return JSONResponse({"alive": self.alive}, 200 if self.alive else 503, {"X-Request-Id": caller.request_id})

    def readyz(self, caller: Caller) -> JSONResponse:
        """200 when a prompt would be answered now, else 503 with Retry-After."""
        if self.ready:
            return JSONResponse({"ready": True}, headers={"X-Request-Id": caller.request_id})
        return respond(failure("model_loading"), caller)

    def info(self, caller: Caller) -> JSONResponse:
        """What is served and what its answers are made with; a refusal while there is nothing yet."""
        if not self.ready:
            return respond(failure("model_loading"), caller)
        try:
            return JSONResponse(self._info(), headers={"X-Request-Id": caller.request_id})
        except Failure as refused:
            return respond(refused, caller)

    def status(self, caller: Caller) -> JSONResponse:
        """What is under way and what has ended lately, without a word of anyone's text."""
        body = {"state": self.state, "queue": self._queue(), **self.jobs.tell()}
        return JSONResponse(body, headers={"X-Request-Id": caller.request_id})

    def health(self, caller: Caller) -> JSONResponse:
        """The detail; same status as readyz."""
        body = {"status": self.state, "uptime": round(time.monotonic() - self._since, 1), **self._detail()}
        headers = {"X-Request-Id": caller.request_id}
        if not self.ready:
            headers["Retry-After"] = "5"
        return JSONResponse(body, 200 if self.ready else 503, headers)
