"""serving/bertscore.py over the real server and the real MiniLM: /bertscore, /warmup, what is said of encoders."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest

from models import catalog
from tests.conftest import Server, serve

NAME = catalog.MINILM.name
LONG = "many words here " * 624


@pytest.fixture(scope="module")
def http(tiny_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny_server.url, timeout=120) as client:
        yield client


def refuse(http: httpx.Client, path: str, body: Any) -> tuple[int, str, str]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.post(path, content=content, headers={"Content-Type": "application/json", "X-Request-Id": "it"})
    told = answer.json()
    assert answer.headers["X-Request-Id"] == told["request_id"] == "it"
    assert told["success"] is False
    return answer.status_code, told["error_type"], told["error"]


def test_an_answer_has_all_that_is_promised(http: httpx.Client) -> None:
    body = {"candidates": ["a cat", "", LONG], "references": ["a cat", "a", [LONG, "words"]]}
    answer = http.post("/bertscore", json=body, headers={"X-Request-Id": "mine"})
    told = answer.json()
    assert answer.status_code == 200, told
    assert answer.headers["X-Request-Id"] == "mine"
    assert told.keys() == {"scores", "signature", "model", "processing_time"}
    same, empty, long = told["scores"]
    assert same.keys() == {"precision", "recall", "f1"} and same["f1"] == pytest.approx(1, abs=1e-5)
    assert empty == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "empty": True}
    assert long["windows"] is True and long["f1"] == pytest.approx(1, abs=1e-5)
    assert told["signature"].keys() == {"model", "layer", "idf", "rescale", "baseline", "version"}
    assert told["signature"]["model"] == told["model"] and told["model"].startswith(f"{NAME}:")
    assert (told["signature"]["layer"], told["signature"]["idf"]) == (5, False)


def test_bentos_own_client_can_call_it(tiny_server: Server) -> None:
    with bentoml.SyncHTTPClient(tiny_server.url, timeout=60) as client:
        told = client.score({"candidates": ["a"], "references": ["a"], "idf": True})
    assert told["scores"][0]["unweighted"] is True


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"references": ["a", "b"]}, "invalid_value", "body: Value error, 1 candidates and 2 references; one for each"),
        ({"references": [[]]}, "invalid_value", "references.0: List should have at least 1 item"),
        ({"references": [[1]]}, "invalid_value", "references.0.0: Input should be a valid string"),
        ({"candidates": []}, "invalid_value", "candidates: List should have at least 1 item"),
        ({"candidates": "a"}, "invalid_value", "candidates: Input should be a valid list"),
        ({"layer": 4}, "unknown_parameter", "layer: unknown field"),
        ({"idf": "yes"}, "invalid_value", "idf: Input should be a valid boolean"),
        (
            {"rescale_with_baseline": True},
            "invalid_value",
            f"rescale_with_baseline: {NAME} has no baseline for layer 5",
        ),
        (
            {"model": "deberta-xlarge-mnli"},
            "model_not_found",
            "deberta-xlarge-mnli is not imported: run scripts/import",
        ),
        ({"candidates": ["a"] * 101, "references": ["a"] * 101}, "invalid_value", "candidates: 101 texts; at most 100"),
        ({"references": [["a"] * 101]}, "invalid_value", "references.0: 101 texts; at most 100 are taken"),
        (
            {"candidates": ["a", "b"], "references": [["a"] * 51, ["a"] * 50]},
            *("invalid_value", "references: 101 pairs; at most 100 are taken (GPU_MAX_BATCH_SIZE)"),
        ),
        ({"candidates": ["a" * 10_001]}, "invalid_value", "candidates.0: 10,001 characters; at most 10,000 are taken"),
        ({"references": [["a", "a" * 10_001]]}, "invalid_value", "references.0.1: 10,001 characters; at most 10,000"),
        ({"candidates": ["a\0"]}, "invalid_text", ""),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(http: httpx.Client, change: Any, code: str, said: str) -> None:
    status, found, message = refuse(http, "/bertscore", {"candidates": ["a"], "references": ["b"], **change})
    assert (status, found) == (404 if code == "model_not_found" else 400, code)
    assert message.startswith(said)


def test_a_warm_up_tells_what_is_in_memory(http: httpx.Client) -> None:
    for body in ({}, {"models": [NAME]}):
        told = http.post("/warmup", json=body).json()
        (encoder,) = told["encoders"]
        assert (encoder["name"], encoder["state"], encoder["users"]) == (NAME, "loaded", 0)
        assert encoder["bytes"] > 90_000_000 and told["processing_time"] >= 0
    assert refuse(http, "/warmup", {"models": ["gpt-2"]})[:2] == (404, "model_not_found")
    assert refuse(http, "/warmup", {"model": NAME})[:2] == (400, "unknown_parameter")
    assert refuse(http, "/warmup", b"")[:2] == (400, "invalid_json")
    health, info = http.get("/health").json(), http.get("/info").json()
    for (told,) in (health["encoders"], info["encoders"]):
        assert told["tag"].startswith(f"{NAME}:") and told["state"] == "loaded"


def test_routes_that_take_a_body_take_no_other_method(http: httpx.Client) -> None:
    for path in ("/embed", "/v1/embeddings", "/bertscore", "/warmup"):
        answer = http.get(path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


def test_without_an_encoder_all_say_how_to_bring_one(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for path, body in (("/embed", {"texts": ["a"]}), ("/bertscore", {"candidates": ["a"], "references": ["a"]})):
            said = f"{NAME} is not imported: run scripts/import_model {NAME}"
            assert refuse(http, path, body) == (404, "model_not_found", said)
        assert http.post("/warmup", json={}).json()["encoders"] == []
        assert http.get("/health").json()["encoders"] == []


def test_limits_are_the_operators_and_too_many_at_once_are_busy(
    tiny_home: Path, encoder_home: Path, tmp_path: Path
) -> None:
    """A server for two requests at once, of three texts of 20,000 characters each."""
    (tmp_path / "models").mkdir()
    for path in ((tiny_home / "models").iterdir(), (encoder_home / "models").iterdir()):
        for model in path:
            (tmp_path / "models" / model.name).symlink_to(model)
    limits: Any = {"GPU_MAX_CONCURRENT": "2", "GPU_MAX_BATCH_SIZE": "3", "GPU_MAX_TEXT_LENGTH": "20000"}
    with serve(tmp_path, tmp_path / "log", **limits) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        assert refuse(http, "/embed", {"texts": ["a"] * 4})[2].startswith("texts: 4 texts; at most 3 are taken")
        assert refuse(http, "/embed", {"texts": ["a" * 20_001]})[2].startswith("texts.0: 20,001 characters; at most")
        start = threading.Barrier(8)

        def ask(_: int) -> httpx.Response:
            start.wait()
            return http.post("/bertscore", json={"candidates": ["some words " * 300] * 3, "references": ["other"] * 3})

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, range(8)))
        busy = [answer for answer in answers if answer.status_code != 200]
        assert 1 <= len(busy) <= 6
        for answer in busy:
            told = answer.json()
            assert (answer.status_code, told["error_type"], told["retryable"]) == (503, "busy", True)
            assert told["error"] == "2 requests are under way, as many as may be"
            assert answer.headers["Retry-After"] == "5"
        assert http.post("/embed", json={"texts": ["a"]}).status_code == 200
