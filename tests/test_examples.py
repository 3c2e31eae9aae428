"""The whole way on real input: every example document, asked of the real small model through the real server."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.conftest import EXAMPLES, Server

DOCUMENTS = sorted((EXAMPLES / "documents").glob("*.txt"))
TYPED = {"answer_truncated"}


def request(document: Path) -> dict[str, Any]:
    kind = document.stem.split("-")[0]
    return {
        "prompt": f"Extract the fields of this {kind}.",
        "context": {"document": document.read_text()},
        "schema": json.loads((EXAMPLES / "schemas" / f"{kind}.json").read_text()),
        "max_new_tokens": 300,
    }


def ask(server: Server, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/prompt", json=body, timeout=400)


def test_there_are_enough_of_them() -> None:
    assert len(DOCUMENTS) >= 12
    assert len(list((EXAMPLES / "schemas").glob("*.json"))) >= 3


def test_the_readmes_request_is_made_of_the_examples() -> None:
    body = json.loads((EXAMPLES / "request.json").read_text())
    assert body["context"]["document"] == (EXAMPLES / "documents" / "receipt-grocery.txt").read_text()
    assert body["schema"] == json.loads((EXAMPLES / "schemas" / "receipt.json").read_text())


def check(body: dict[str, Any], response: httpx.Response) -> bool:
    """Whether it succeeded; whatever it is, it must be whole or typed."""
    told = response.json()
    if not told["success"]:
        assert told["error_type"] in TYPED
        return False
    output, metadata, document = json.loads(told["output"]), told["metadata"], body["context"]["document"]
    jsonschema.validate(output, body["schema"])
    assert metadata["receipt"]["sampling"]["max_new_tokens"] == body["max_new_tokens"]
    assert all(0 < each["raw"] <= 1 for each in metadata["confidence"].values())
    assert {each["pointer"] for each in metadata["evidence"]} <= metadata["confidence"].keys()
    for each in metadata["evidence"]:
        if each["match"] != "absent":
            assert document[each["start"] : each["end"]] == each["text"]
    return True


@pytest.mark.timeout(900)
def test_every_document_is_answered_whole_or_refused_with_a_type(server: Server) -> None:
    bodies = [request(document) for document in DOCUMENTS]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda body: ask(server, body), bodies))
    succeeded = [check(body, answer) for body, answer in zip(bodies, answers, strict=True)]
    assert sum(succeeded) >= 12


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_64_requests_of_16_clients(server: Server) -> None:
    bodies = [request(DOCUMENTS[number % len(DOCUMENTS)]) for number in range(64)]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda body: ask(server, body), bodies))
    succeeded = [check(body, answer) for body, answer in zip(bodies, answers, strict=True)]
    metrics = httpx.get(f"{server.url}/metrics").text
    counted = re.search(r"adaptive_batch_size_count\{[^}]*\} (\S+)", metrics)
    total = re.search(r"adaptive_batch_size_sum\{[^}]*\} (\S+)", metrics)
    assert counted and total
    print(f"{sum(succeeded)} of 64 succeeded; {total[1]} prompts in {counted[1]} batches")
    assert len(answers) == 64
    assert float(total[1]) > float(counted[1])
