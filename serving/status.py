"""What the service says of itself: loading, ready, draining or failed, and the figures behind it. Knows no model."""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from starlette.responses import JSONResponse

from models.failure import Failure
from serving.activity import Activity
from serving.caller import Caller
from serving.errors import failure, respond

State = Literal["loading", "ready", "failed"]


class Served(NamedTuple):
    """A model that can be asked for by its name or by the `tag` of its weights; `since`, in seconds of Unix time."""

    name: str
    tag: str
    since: int

    def write(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.since, "owned_by": "zopilot-gpu", "tag": self.tag}


class Status:
    """Set by whoever loads the model, read by the gate; the rest is asked of a ready service."""

    def __init__(self) -> None:
        self.state: State = "loading"
        self._since = time.monotonic()
        self._detail: Callable[[], dict[str, Any]] = dict
        self._info: Callable[[], dict[str, Any]] = dict
        self.activity = Activity()
        self._queue: Callable[[], dict[str, Any]] = dict
        self._models: Callable[[], list[Served]] = list
        self._alive: Callable[[], bool] = lambda: True

    def become_ready(
        self,
        detail: Callable[[], dict[str, Any]],
        alive: Callable[[], bool],
        info: Callable[[], dict[str, Any]] = dict,
        queue: Callable[[], dict[str, Any]] = dict,
        models: Callable[[], "list[Served]"] = list,
    ) -> None:
        self._detail, self._alive, self._info = detail, alive, info
        self._queue, self._models = queue, models
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
        body = {"state": self.state, "queue": self._queue(), **self.activity.tell()}
        return JSONResponse(body, headers={"X-Request-Id": caller.request_id})

    def models(self, caller: Caller) -> JSONResponse:
        """What can be asked for by name on the public API's routes, as it lists models."""
        if not self.ready:
            return respond(failure("model_loading"), caller)
        body = {"object": "list", "data": [each.write() for each in self._models()]}
        return JSONResponse(body, headers={"X-Request-Id": caller.request_id})

    def model(self, caller: Caller) -> JSONResponse:
        """The one that the path names, or a refusal."""
        if not self.ready:
            return respond(failure("model_loading"), caller)
        name = caller.path.rpartition("/")[2]
        found = next((each for each in self._models() if name in (each.name, each.tag)), None)
        if found is None:
            return respond(failure("model_not_found"), caller)
        return JSONResponse(found.write(), headers={"X-Request-Id": caller.request_id})

    def health(self, caller: Caller) -> JSONResponse:
        """The detail; same status as readyz."""
        body = {"status": self.state, "uptime": round(time.monotonic() - self._since, 1), **self._detail()}
        headers = {"X-Request-Id": caller.request_id}
        if not self.ready:
            headers["Retry-After"] = "5"
        return JSONResponse(body, 200 if self.ready else 503, headers)
