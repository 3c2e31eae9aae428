"""Asks a running service over HTTP: so many questions at once, and again when it says so. Judges nothing."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from tqdm import tqdm

from verification.failure import Unusable

TIMEOUT = 3660.0  # seconds; beyond the longest deadline that the service can be given


@dataclass(frozen=True)
class Service:
    """`concurrency`: requests open at once; `patience`: the seconds for which a request that is told to come again
    does so."""

    url: str
    key: str = ""
    concurrency: int = 8
    patience: float = 600.0

    def open(self) -> httpx.AsyncClient:
        headers = {"X-API-Key": self.key} if self.key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        return httpx.AsyncClient(base_url=self.url, headers=headers, limits=limits, timeout=TIMEOUT)


@dataclass(frozen=True)
class Reply:
    """What became of one request, `seconds` after it was first sent: an answer, or the `error_type` of none."""

    seconds: float
    answer: dict[str, Any] | None = None
    error: str = ""

    @property
    def output(self) -> Any:
        """The answer's own, parsed where it is JSON."""
        assert self.answer is not None
        try:
            return json.loads(self.answer["output"])
        except ValueError:
            return self.answer["output"]

    @property
    def metadata(self) -> dict[str, Any]:
        assert self.answer is not None
        found: dict[str, Any] = self.answer["metadata"]
        return found

    def tell(self, name: str) -> Any:
        """What the metadata must hold by this name; raises Unusable."""
        if not self.metadata.get(name):
            raise Unusable(f"the service's answers have no metadata.{name}")
        return self.metadata[name]


def find_tag(service: Service) -> str:
    """The tag of the weights that it serves, from /health. Raises Unusable where it cannot be asked now."""
    try:
        with httpx.Client(base_url=service.url, headers={"X-API-Key": service.key}, timeout=30) as client:
            reply = client.get("/health")
        found = reply.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise Unusable(f"{service.url} does not answer: {type(error).__name__}") from None
    if reply.status_code != 200 or not isinstance(found.get("model"), str):
        raise Unusable(f"{service.url}/health says {reply.status_code} {found.get('error_type', '')}".strip())
    return str(found["model"])


def ask(service: Service, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
    """A reply to each, in their order; never raises for what the service does."""
    return asyncio.run(_ask_all(service, bodies))


async def _ask_all(service: Service, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
    places = asyncio.Semaphore(service.concurrency)
    # On a terminal only.
    with tqdm(total=len(bodies), unit="row", disable=None) as bar:
        async with service.open() as client:

            async def one(body: dict[str, Any]) -> Reply:
                async with places:
                    reply = await _ask(client, body, service.patience)
                bar.update()
                return reply

            return list(await asyncio.gather(*map(one, bodies)))


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], patience: float) -> Reply:
    began = time.perf_counter()
    while True:
        try:
            response = await client.post("/prompt", json=body)
        except httpx.TimeoutException:
            return Reply(time.perf_counter() - began, error="timeout")
        except httpx.HTTPError:
            return Reply(time.perf_counter() - began, error="unreachable")
        seconds = time.perf_counter() - began
        again = response.headers.get("retry-after", "")
        if response.status_code not in (429, 503) or not again.isdigit() or seconds + int(again) > patience:
            return _read(response, seconds, body)
        await asyncio.sleep(max(1, int(again)))


def _read(response: httpx.Response, seconds: float, body: dict[str, Any]) -> Reply:
    """An answer is taken as one only in the form that was promised."""
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return Reply(seconds, error=f"http_{response.status_code}")
    if response.status_code != 200:
        return Reply(seconds, error=str(found.get("error_type", f"http_{response.status_code}")))
    return Reply(seconds, answer=found) if _is_whole(found, body) else Reply(seconds, error="no_answer")


def _is_whole(found: dict[str, Any], body: dict[str, Any]) -> bool:
    output = found.get("output")
    if found.get("success") is not True or not isinstance(output, str) or not isinstance(found.get("metadata"), dict):
        return False
    if body.get("format") == "text":
        return True
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return False
    return "labels" not in body or (isinstance(value, dict) and {"label", "abstained"} <= value.keys())
