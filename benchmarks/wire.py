"""How one server is asked and how its answer is read: our /prompt, or a peer's /v1/chat/completions. Knows no load."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import jsonschema

from benchmarks import workload
from benchmarks.failure import Unusable
from benchmarks.workload import Question

Outcome = Literal["valid", "unfit", "broken", "refused", "failed"]
PROBE_SECONDS = 120.0
PROBE_TOKENS = 96  # room for white space: llama.cpp takes 29 for the one object there is
# Nobody answers this by chance: who does not was not held to it.
PROBE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"fruit": {"type": "string", "enum": ["quince"]}},
    "required": ["fruit"],
}


@dataclass(frozen=True)
class Answer:
    """What became of one question. valid: fits the schema; unfit: JSON that does not; broken: no JSON; refused: the
    server said no; failed: nothing usable came; these two are not done. Seconds count from when it was due."""

    outcome: Outcome
    seconds: float
    first: float | None = None
    tokens: int = 0
    finish: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Dialect:
    """What a chat server takes: response_format, stream, stream_options."""

    schema: bool
    stream: bool
    usage: bool = False


# From the most that can be asked to the least; the first that is answered is used.
SHAPES = ((True, True), (True, False), (False, False))
OFFERS = tuple(Dialect(schema, stream, usage) for schema in (True, False) for stream, usage in SHAPES)


@dataclass(frozen=True)
class Server:
    """Where to ask, and how; without a dialect it is ours."""

    name: str
    url: str
    model: str = ""
    dialect: Dialect | None = None
    schema: str = "on"


@dataclass(frozen=True)
class Said:
    """What came over the wire, unjudged."""

    status: int
    text: str
    first: float | None = None
    tokens: int = 0
    finish: str = ""


async def learn(client: httpx.AsyncClient, name: str, url: str, model: str = "") -> Server:
    """Find out what a chat server takes, with short questions. Raises Unusable if it answers none."""
    model = model or await _first_model(client, url)
    schema, last = "off: refused", ""
    for offer in OFFERS:
        if offer.schema and schema == "off: ignored":
            continue
        body = _chat(model, "Name a tool.", PROBE_SCHEMA, PROBE_TOKENS, offer)
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                said = await _post(client, f"{url}/v1/chat/completions", body)
        except (httpx.HTTPError, TimeoutError, ValueError, LookupError, TypeError) as error:
            last = f"{type(error).__name__}: {error}"
            continue
        last = f"HTTP {said.status} {said.text[:200]}"
        if said.status != 200:
            continue
        if not offer.schema:
            return Server(name, url, model, offer, schema)
        if judge(said.text, PROBE_SCHEMA) == "valid":
            return Server(name, url, model, offer)
        schema = "off: ignored"
    raise Unusable(f"it answers no form of the question: {last}")


async def _first_model(client: httpx.AsyncClient, url: str) -> str:
    try:
        return str((await client.get(f"{url}/v1/models")).json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return "default"


async def ask(client: httpx.AsyncClient, server: Server, question: Question, due: float, limit: float) -> Answer:
    """Ask and judge; never raises for what the server does. `due` is on time.perf_counter's clock."""
    path, body = request(server, question)
    try:
        async with asyncio.timeout(limit):
            said = await _post(client, server.url + path, body)
    except TimeoutError:
        return Answer("failed", time.perf_counter() - due, detail=f"no answer within {limit:g} s")
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        return Answer("failed", time.perf_counter() - due, detail=type(error).__name__)
    seconds = time.perf_counter() - due
    if said.status != 200:
        return Answer("refused", seconds, detail=f"HTTP {said.status} {said.text[:120]}")
    first = None if said.first is None else said.first - due
    return Answer(judge(said.text, workload.SCHEMA), seconds, first, said.tokens, said.finish)


def request(server: Server, question: Question) -> tuple[str, Mapping[str, Any]]:
    """Path and body of one question: the same text, greedy, the same limit for all."""
    if server.dialect is None:
        return "/prompt", {
            "prompt": workload.INSTRUCTION,
            "context": {"document": question.document},
            "schema": workload.SCHEMA,
            "max_new_tokens": workload.MAX_TOKENS,
            "temperature": 0.0,
        }
    text = workload.render(question)
    return "/v1/chat/completions", _chat(server.model, text, workload.SCHEMA, workload.MAX_TOKENS, server.dialect)


def _chat(model: str, text: str, schema: dict[str, Any], max_tokens: int, dialect: Dialect) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
    body |= {"max_tokens": max_tokens, "temperature": 0.0}
    if dialect.schema:
        form = {"name": "answer", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if dialect.stream:
        body["stream"] = True
    if dialect.usage:
        body["stream_options"] = {"include_usage": True}
    return body


async def _post(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> Said:
    async with client.stream("POST", url, json=body) as response:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return await _read_events(response)
        await response.aread()
        if response.status_code != 200:
            return Said(response.status_code, response.text)
        return _read_whole(response.json())


def _read_whole(reply: dict[str, Any]) -> Said:
    if "choices" not in reply:
        meta = reply["metadata"]
        return Said(200, reply["output"], None, meta["usage"]["completion_tokens"], meta["finish_reason"])
    (choice,) = reply["choices"]
    tokens = (reply.get("usage") or {}).get("completion_tokens", 0)
    return Said(200, choice["message"]["content"], None, tokens, choice.get("finish_reason") or "")


async def _read_events(response: httpx.Response) -> Said:
    """Join a stream. Where it does not count its tokens, its pieces are counted."""
    pieces: list[str] = []
    first, tokens, finish = None, 0, ""
    async for line in response.aiter_lines():
        if not line.startswith("data:") or line.endswith("[DONE]"):
            continue
        event = json.loads(line.removeprefix("data:"))
        if "error" in event:
            return Said(500, str(event["error"]))
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        for choice in event["choices"]:
            if piece := choice["delta"].get("content"):
                first = first or time.perf_counter()
                pieces.append(piece)
            finish = choice.get("finish_reason") or finish
    if not finish:
        raise ValueError("the stream broke off")
    return Said(response.status_code, "".join(pieces), first, tokens or len(pieces), finish)


def judge(text: str, schema: dict[str, Any]) -> Outcome:
    """As strict as a caller's json.loads: a fence around the object is no JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "broken"
    return "valid" if jsonschema.Draft202012Validator(schema).is_valid(value) else "unfit"
