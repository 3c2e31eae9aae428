"""Everything at once: prompts, chat streams, embeddings and scores from many clients; every answer its asker's own.

    python -m benchmarks.mixed URL --clients 32 --seconds 60 [--pid PID]

A prompt and a chat may only answer with a code that no other request has; vectors and scores must be those that their
texts get alone. `lost` is what ended without exactly one answer. With the server's PID its memory is measured as well.
"""

import argparse
import asyncio
import json
import math
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

WORDS = "invoice receipt total due amount customer delivery order tax net gross paid bank note line item"
TOLERANCE = 1e-4  # in another micro-batch sums are rounded otherwise
GRACE = 120.0  # seconds for what is under way when the time is up
BUSY = (429, 503)
MIB = 1 << 20


class CrossTalk(Exception):
    """An answer that is not its asker's own."""


@dataclass
class Tally:
    """What came back, by kind of request; `memory`: bytes of the server, a sample a second."""

    done: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Memory in MiB: the mean of the second and of the last quarter, once all is loaded and warm."""
        told: dict[str, Any] = {"done": dict(self.done), "busy": dict(self.busy)}
        told |= {"lost": self.lost, "crossed": self.crossed}
        if quarter := len(self.memory) // 4:
            parts = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
            told["memory"] = [round(sum(part) / len(part) / MIB, 1) for part in parts]
        return told


@dataclass(frozen=True)
class Alone:
    """What the service says of these texts when nobody else asks."""

    vectors: dict[str, list[float]]
    scores: dict[tuple[str, str], float]


Ask = Callable[[httpx.AsyncClient, Alone, random.Random], Awaitable[int]]


def sentence(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS.split(), k=chance.randint(1, 60)))


def matches(code: str) -> dict[str, Any]:
    only = {"code": {"enum": [code]}}
    return {"type": "object", "properties": only, "required": ["code"], "additionalProperties": False}


def require_own(code: str, text: str) -> None:
    if json.loads(text) != {"code": code}:
        raise CrossTalk


async def ask_prompt(client: httpx.AsyncClient, _: Alone, chance: random.Random) -> int:
    code = secrets.token_hex(8)
    body = {"prompt": "Copy the code.", "context": {"document": f"{code} {sentence(chance)}"}, "schema": matches(code)}
    answer = await client.post("/prompt", json=body, headers={"X-Request-Id": code})
    if answer.status_code == 200:
        if answer.json()["metadata"]["request_id"] != code:
            raise CrossTalk
        require_own(code, answer.json()["output"])
    return answer.status_code


async def ask_chat(client: httpx.AsyncClient, _: Alone, chance: random.Random) -> int:
    """Streamed; whole only if it ends with [DONE]."""
    code = secrets.token_hex(8)
    form = {"type": "json_schema", "json_schema": {"name": "code", "schema": matches(code), "strict": True}}
    model = (await client.get("/v1/models")).json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": f"{code} {sentence(chance)}"}], "stream": True}
    said, ended = "", False
    async with client.stream("POST", "/v1/chat/completions", json=body | {"response_format": form}) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return answer.status_code
        async for line in answer.aiter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                ended = True
            elif data:
                said += "".join(choice["delta"].get("content") or "" for choice in json.loads(data)["choices"])
    if not ended:
        raise ConnectionError
    require_own(code, said)
    return 200


async def ask_embeddings(client: httpx.AsyncClient, alone: Alone, chance: random.Random) -> int:
    texts = chance.choices(list(alone.vectors), k=chance.randint(1, 16))
    answer = await client.post("/embed", json={"texts": texts})
    if answer.status_code == 200:
        for text, vector in zip(texts, answer.json()["embeddings"], strict=True):
            if math.dist(vector, alone.vectors[text]) > TOLERANCE:
                raise CrossTalk
    return answer.status_code


async def ask_scores(client: httpx.AsyncClient, alone: Alone, chance: random.Random) -> int:
    pairs = chance.choices(list(alone.scores), k=chance.randint(1, 4))
    candidates, references = zip(*pairs, strict=True)
    answer = await client.post("/bertscore", json={"candidates": candidates, "references": references})
    if answer.status_code == 200:
        for pair, score in zip(pairs, answer.json()["scores"], strict=True):
            if abs(score["f1"] - alone.scores[pair]) > TOLERANCE:
                raise CrossTalk
    return answer.status_code


KINDS: dict[str, Ask] = {
    "prompt": ask_prompt,
    "chat": ask_chat,
    "embed": ask_embeddings,
    "bertscore": ask_scores,
}


async def learn(client: httpx.AsyncClient, chance: random.Random) -> Alone:
    texts = [sentence(chance) for _ in range(48)]
    pairs = [(chance.choice(texts), chance.choice(texts)) for _ in range(24)]
    vectors, scores = {}, {}
    for text in texts:
        told = (await client.post("/embed", json={"texts": [text]})).raise_for_status().json()
        vectors[text] = told["embeddings"][0]
    for candidate, reference in pairs:
        body = {"candidates": [candidate], "references": [reference]}
        told = (await client.post("/bertscore", json=body)).raise_for_status().json()
        scores[candidate, reference] = told["scores"][0]["f1"]
    return Alone(vectors, scores)


async def run(url: str, clients: int, seconds: float, pid: int | None = None, seed: int = 7) -> Tally:
    """`clients` ask one thing after the other, of a kind by chance, until the time is up."""
    tally = Tally()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=GRACE, limits=limits) as client:
        alone = await learn(client, random.Random(seed))
        end = time.monotonic() + seconds
        work = [_ask_on(client, alone, random.Random(f"{seed} {number}"), end, tally) for number in range(clients)]
        await asyncio.gather(_measure(pid, end, tally), *work)
    return tally


async def _ask_on(client: httpx.AsyncClient, alone: Alone, chance: random.Random, end: float, tally: Tally) -> None:
    while time.monotonic() < end:
        kind = chance.choice(list(KINDS))
        try:
            status = await KINDS[kind](client, alone, chance)
        except CrossTalk:
            tally.crossed.append(kind)
        except Exception as error:  # whatever it is, there was no answer
            tally.lost.append(f"{kind}: {type(error).__name__}")
        else:
            if status == 200:
                tally.done[kind] += 1
            elif status in BUSY:
                tally.busy[kind] += 1
                await asyncio.sleep(chance.random())
            else:
                tally.lost.append(f"{kind}: {status}")


async def _measure(pid: int | None, end: float, tally: Tally) -> None:
    while pid is not None and time.monotonic() < end:
        server = psutil.Process(pid)
        tally.memory.append(sum(each.memory_info().rss for each in (server, *server.children(recursive=True))))
        await asyncio.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pid", type=int)
    told = parser.parse_args()
    tally = asyncio.run(run(told.url, told.clients, told.seconds, told.pid))
    print(json.dumps(tally.report(), indent=1))
    return 1 if tally.lost or tally.crossed else 0


if __name__ == "__main__":
    sys.exit(main())
