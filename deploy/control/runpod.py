"""RunPod's REST v2 as a client: typed errors, patience where it helps, and no POST that could make a thing twice.

Knows nothing of what is deployed. Errors are RFC 9457 problems; which are worth another try is RunPod's own table.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx
from pydantic import ValidationError

from deploy.control import problem
from deploy.control.bodies import (
    ActionBody,
    Answer,
    Body,
    DataCenter,
    Endpoint,
    GpuType,
    LogLine,
    Pod,
    Registry,
    Volume,
    WorkerList,
)
from deploy.control.problem import Conflict, Limited, NotFound, Unavailable, Unsure

URL = "https://api.runpod.io"
TIMEOUT = httpx.Timeout(60, connect=10)
TRIES = 5
LOOKS = 3  # after a POST of which nobody knows whether it was carried out
LONGEST_WAIT = 120.0  # a quota that comes back later than this is the operator's to wait for
QUIET = 3.0  # a log that says nothing for so many seconds has said what there was

Thing = TypeVar("Thing", Pod, Endpoint, Volume, Registry)
Read = TypeVar("Read", bound=Answer)


@dataclass(frozen=True)
class Kind(Generic[Thing]):
    """A kind of thing that RunPod keeps: its path, the key of its list, how it is read, what an operator calls it."""

    path: str
    key: str
    answer: type[Thing]
    word: str


PODS = Kind("/v2/pods", "pods", Pod, "pod")
ENDPOINTS = Kind("/v2/serverless", "endpoints", Endpoint, "endpoint")
VOLUMES = Kind("/v2/network-volumes", "networkVolumes", Volume, "network volume")
REGISTRIES = Kind("/v2/registries", "registries", Registry, "registry credential")


class Client:
    """`say` is told every step, and what is waited for; `transport` is in place of the network."""

    def __init__(
        self,
        key: str,
        url: str = URL,
        transport: httpx.BaseTransport | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, transport=transport)
        self.say = say

    def close(self) -> None:
        self._http.close()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fetch(self, kind: Kind[Thing]) -> list[Thing]:
        """All of the account's."""
        return self._list(kind.answer, kind.path, kind.key)

    def get(self, kind: Kind[Thing], id: str) -> Thing:
        return _read(kind.answer, self._ask("GET", f"{kind.path}/{id}"))

    def create(self, kind: Kind[Thing], body: Body, name: str) -> Thing:
        """A new one called `name`, which must not be there before. Where nobody knows whether a POST was carried out,
        it is looked for by that name before another is sent."""
        for left in reversed(range(TRIES)):
            try:
                return _read(kind.answer, self._ask("POST", kind.path, body=body.write()))
            except (Unavailable, Conflict) as error:
                if found := self._appeared(kind, name):
                    return found
                if not left or not isinstance(error, Unsure):
                    raise
        raise AssertionError("the last try returns or raises")

    def delete(self, kind: Kind[Thing], id: str) -> None:
        """Gone afterwards, whoever removed it."""
        with suppress(NotFound):
            self._ask("DELETE", f"{kind.path}/{id}")

    def act(self, id: str, action: str) -> None:
        """Start or stop a pod; one that is there already is left as it is."""
        body = ActionBody.model_validate({"action": action})
        for left in reversed(range(TRIES)):
            if action not in self.get(PODS, id).actions:
                return
            try:
                self._ask("POST", f"{PODS.path}/{id}/action", body=body.write())
                return
            except (Unsure, Conflict):
                if not left:
                    raise
                self._back_off(TRIES - left)

    def gpus(self, product: str, cuda: str) -> list[GpuType]:
        """The catalogue's cards with their prices, and what of them is free now for `product` (POD or SERVERLESS)."""
        params = {"include": "AVAILABILITY", "product": product, "cloud": "SECURE", "minCudaVersion": cuda}
        return self._list(GpuType, "/v2/catalog/gpus", "gpus", params)

    def data_centers(self) -> list[DataCenter]:
        return self._list(DataCenter, "/v2/catalog/datacenters", "dataCenters")

    def workers(self, id: str) -> WorkerList:
        return _read(WorkerList, self._ask("GET", f"{ENDPOINTS.path}/{id}/workers"))

    def logs(self, path: str, tail: int, follow: bool) -> Iterator[LogLine]:
        """Lines of the log at `path`; a stream that breaks is taken up where it broke, and no line is told twice."""
        last, failures = "", 0
        timeout = httpx.Timeout(60 if follow else QUIET, connect=10)
        while failures < TRIES:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
            try:
                with self._http.stream("GET", path, params={"tail": tail}, headers=headers, timeout=timeout) as stream:
                    if stream.status_code != 200:
                        stream.read()
                        raise problem.read(stream, "GET")
                    for line in _events(stream.iter_lines()):
                        if line.id and line.id == last:
                            continue
                        last, failures = line.id or last, 0
                        yield line
                if not follow:
                    return
                failures += 1
                self._back_off(failures)
            except httpx.ReadTimeout:
                if not follow:
                    return
            except (httpx.RequestError, Unavailable, Limited):
                failures += 1
                self._back_off(failures)
        raise Unavailable(0, f"the log breaks off again and again: GET {path}")

    def _list(self, form: type[Read], path: str, key: str, params: dict[str, str] | None = None) -> list[Read]:
        """A list that is not there is no empty one: what stands would be made a second time."""
        found = self._ask("GET", path, params)
        if not isinstance(found, dict) or not isinstance(found.get(key), list):
            raise Unavailable(0, f"RunPod's answer to GET {path} has no {key}")
        return [_read(form, each) for each in found[key]]

    def _appeared(self, kind: Kind[Thing], name: str) -> Thing | None:
        for look in range(LOOKS):
            self._back_off(look + 1)
            if found := [each for each in self.fetch(kind) if bare(each.name) == name]:
                return found[0]
        return None

    def _ask(self, method: str, path: str, params: dict[str, str] | None = None, body: Any = None) -> Any:
        """The answer as JSON. Waits out 429; tries again what failed in between, but never a POST that may have
        been carried out."""
        for attempt in range(1, TRIES + 1):
            try:
                response = self._http.request(method, path, params=params, json=body)
                error = None if response.is_success else problem.read(response, method)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as broken:
                error = Unavailable(0, f"RunPod cannot be reached ({type(broken).__name__}): {method} {path}")
            except httpx.RequestError as broken:
                kind = Unsure if method == "POST" else Unavailable
                error = kind(0, f"the connection broke ({type(broken).__name__}): {method} {path}")
            if error is None:
                return _json(response, method)
            patient = isinstance(error, Limited) and error.wait <= LONGEST_WAIT
            if attempt == TRIES or not (patient or type(error) is Unavailable):
                raise error
            self.say(f"{error}; trying again")
            self._back_off(attempt, error.wait if isinstance(error, Limited) else 0)
        raise AssertionError("the last try returns or raises")

    def _back_off(self, attempt: int, least: float = 0) -> None:
        """Somewhere between half and all of 1, 2, 4, … seconds, so that many do not come back at once."""
        self.sleep(max(least, min(30, 2 ** (attempt - 1)) * random.uniform(0.5, 1)))


def bare(name: str) -> str:
    """A name without what RunPod appends to that of an endpoint with FlashBoot."""
    return name.removesuffix(" -fb")


def _json(response: httpx.Response, method: str) -> Any:
    if response.status_code == 204:
        return None
    try:
        return response.json()
    except ValueError:
        raise (Unsure if method == "POST" else Unavailable)(0, "RunPod's answer is no JSON") from None


def _read(form: type[Read], value: Any) -> Read:
    try:
        return form.model_validate(value)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise Unavailable(0, f"RunPod's answer cannot be read as {form.__name__}: {fields}") from None


def _events(lines: Iterator[str]) -> Iterator[LogLine]:
    """Server-sent events: an id, data, a blank line. What is no line of a log is passed over."""
    id, data = "", ""
    for line in lines:
        name, _, value = line.partition(":")
        if name == "id":
            id = value.strip()
        elif name == "data":
            data += value.strip()
        elif not line and data:
            with suppress(ValidationError):
                yield LogLine.model_validate_json(data).model_copy(update={"id": id})
            data = ""
