"""serving/embeddings.py over the real server and the real MiniLM: both routes, their limits, others' clients."""

import base64
import json
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
import httpx
import numpy as np
import openai
import pytest

from tests.conftest import Server

NAME = "all-minilm-l6-v2"
NOT_HERE = "deberta-xlarge-mnli is not imported: run scripts/import_model deberta-xlarge-mnli"


@pytest.fixture(scope="module")
def http(tiny_server: Server) -> Any:
    with httpx.Client(base_url=tiny_server.url, timeout=120) as client:
        yield client


def embed(http: httpx.Client, texts: list[str], **more: Any) -> dict[str, Any]:
    answer = http.post("/embed", json={"texts": texts, **more})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def refused(http: httpx.Client, path: str, body: Any) -> tuple[int, str, str, str | None]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.post(path, content=content, headers={"Content-Type": "application/json", "X-Request-Id": "it"})
    assert answer.headers["X-Request-Id"] == "it"
    told = answer.json()
    if path.startswith("/v1/"):
        error = told["error"]
        return answer.status_code, error["code"], error["message"], error["param"]
    assert told["success"] is False
    return answer.status_code, told["error_type"], told["error"], None


def test_an_answer_has_all_that_is_promised(http: httpx.Client) -> None:
    answer = http.post("/embed", json={"texts": ["one", "two"]}, headers={"X-Request-Id": "mine"})
    told = answer.json()
    assert answer.headers["X-Request-Id"] == "mine"
    assert told.keys() == {"embeddings", "model", "dim", "normalized", "processing_time"}
    assert told["model"].startswith(f"{NAME}:") and told["dim"] == 384 and told["normalized"] is True
    assert np.allclose(np.linalg.norm(told["embeddings"], axis=1), 1, atol=1e-6)
    assert told["processing_time"] > 0
    named = embed(http, ["one", "two"], model=told["model"])
    assert np.allclose(named["embeddings"], told["embeddings"], atol=1e-6)


def test_bentos_own_client_can_call_it(tiny_server: Server) -> None:
    with bentoml.SyncHTTPClient(tiny_server.url, timeout=60) as client:
        assert len(client.embed({"texts": ["a text"]})["embeddings"][0]) == 384


def test_a_text_that_is_too_long_is_told_or_refused(http: httpx.Client) -> None:
    long = "word " * 300
    told = embed(http, ["short", long, "short", long])
    assert told["truncated"] == [1, 3]
    assert refused(http, "/embed", {"texts": ["short", long], "truncate": False}) == (
        *(400, "context_length_exceeded", "texts.1: the text has 302 tokens; the model reads 256", None),
    )
    assert refused(http, "/v1/embeddings", {"model": NAME, "input": ["a", "b", "c", long]}) == (
        *(400, "context_length_exceeded", "input.3: the text has 302 tokens; the model reads 256", "input.3"),
    )
    assert "truncated" not in embed(http, ["word " * 254], truncate=False)


def test_the_public_client_gets_the_same_numbers_in_both_forms(tiny_server: Server, http: httpx.Client) -> None:
    client = openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0)
    texts = ["first", "", "third 😀"]
    coded = client.embeddings.create(model=NAME, input=texts, user="someone", dimensions=384)
    plain = client.embeddings.create(model=NAME, input=texts, encoding_format="float")
    ours = np.array(embed(http, texts)["embeddings"])
    for answer in (coded, plain):
        assert answer.object == "list" and answer.model.startswith(f"{NAME}:")
        assert [(each.object, each.index) for each in answer.data] == [("embedding", at) for at in range(3)]
        assert np.allclose([each.embedding for each in answer.data], ours, atol=1e-6)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3 + 2 + 4
    one = client.embeddings.create(model=NAME, input="first")
    assert np.allclose(one.data[0].embedding, ours[0], atol=1e-6)
    raw = http.post("/v1/embeddings", json={"model": NAME, "input": "first", "encoding_format": "base64"}).json()
    assert np.allclose(struct.unpack("<384f", base64.b64decode(raw["data"][0]["embedding"])), ours[0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code", "said", "param"),
    [
        ({"input": None}, "invalid_value", "input: Input should be a valid list", "input"),
        ({"input": []}, "invalid_value", "input: List should have at least 1 item", "input"),
        ({"input": [1, 2]}, "invalid_value", "input: token arrays are not read here", "input"),
        ({"input": [[1]]}, "invalid_value", "input: token arrays are not read here", "input"),
        ({"input": ["a", None]}, "invalid_value", "input.1: Input should be a valid string", "input.1"),
        ({"input": ["a"] * 101}, "invalid_value", "input: 101 texts; at most 100 are taken", "input"),
        ({"input": ["a", "b" * 10_001]}, "invalid_value", "input.1: 10,001 characters; at most 10,000", "input.1"),
        ({"dimensions": 256}, "invalid_value", f"dimensions: 256; {NAME} has 384", "dimensions"),
        ({"encoding_format": "int8"}, "invalid_value", "encoding_format: ", "encoding_format"),
        ({"truncate": True}, "unknown_parameter", "truncate: unknown field", "truncate"),
        ({"model": "ada"}, "model_not_found", "model: no encoder is called so", "model"),
        ({"model": f"{NAME}:other"}, "model_not_found", f"model: {NAME} is here as {NAME}:", "model"),
        ({"model": "deberta-xlarge-mnli"}, "model_not_found", NOT_HERE, None),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    http: httpx.Client, change: Any, code: str, said: str, param: str | None
) -> None:
    found = refused(http, "/v1/embeddings", {"model": NAME, "input": "a", **change})
    assert found[2].startswith(said), found
    assert (found[0], found[1], found[3]) == (404 if code == "model_not_found" else 400, code, param)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({}, "invalid_value", "texts: Field required"),
        ({"texts": []}, "invalid_value", "texts: List should have at least 1 item"),
        ({"texts": "a"}, "invalid_value", "texts: Input should be a valid list"),
        ({"texts": ["a"], "normalize": True}, "unknown_parameter", "normalize: unknown field"),
        ({"texts": ["a"] * 101}, "invalid_value", "texts: 101 texts; at most 100 are taken (GPU_MAX_BATCH_SIZE)"),
        ({"texts": ["é" * 10_001]}, "invalid_value", "texts.0: 10,001 characters; at most 10,000 are taken (GPU_MAX_T"),
        (b'{"texts": ["a\\u0000"]}', "invalid_text", ""),
        (b'{"texts": ["\\ud800"]}', "invalid_text", ""),
        (b'{"texts": ["a"], "texts": ["b"]}', "invalid_json", ""),
        (b'{"texts": [NaN]}', "invalid_json", ""),
        (b'{"texts": ["a"', "invalid_json", ""),
    ],
)
def test_a_wrong_body_is_refused(http: httpx.Client, body: Any, code: str, said: str) -> None:
    status, found, message, _ = refused(http, "/embed", body)
    assert (status, found) == (400, code)
    assert message.startswith(said)


def test_hostile_texts_get_vectors(http: httpx.Client) -> None:
    texts = ["e" + "\u0301" * 9_999, "[SEP][CLS][PAD]", "\u202e\ufeff", "字" * 10_000, " \n\t"]
    told = embed(http, texts)
    assert np.isfinite(told["embeddings"]).all()
    assert told["truncated"] == [3]


def test_one_bad_request_fails_alone_and_everyone_gets_his_own(http: httpx.Client) -> None:
    """32 at once, each with a canary; every fourth is refused, some after they have been batched."""
    texts = [[f"canary {at}", "bird " * at] for at in range(32)]
    alone = [embed(http, each)["embeddings"] for each in texts]
    start = threading.Barrier(32)

    def ask(at: int) -> httpx.Response:
        start.wait()
        long = {"texts": [*texts[at], "word " * 300], "truncate": False} if at % 4 == 0 else {"texts": texts[at]}
        return http.post("/embed", json=long)

    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(ask, range(32)))
    for at, answer in enumerate(answers):
        if at % 4 == 0:
            assert answer.json()["error_type"] == "context_length_exceeded"
        else:
            assert np.allclose(answer.json()["embeddings"], alone[at], atol=1e-5)


def test_prompts_are_answered_while_texts_are_embedded(http: httpx.Client) -> None:
    """100 texts of 10,000 characters by the side: what is asked meanwhile, prompt or small text, comes back first."""
    with ThreadPoolExecutor(1) as thread:
        heavy = thread.submit(embed, http, ["many words here " * 624] * 100)
        while not heavy.running():
            pass
        prompt = http.post(
            "/prompt", json={"prompt": "Say it.", "format": "text", "max_new_tokens": 2, "allow_partial": True}
        )
        small = embed(http, ["a small one"])
        first = not heavy.done()
        assert prompt.status_code == 200, prompt.text
        assert len(small["embeddings"]) == 1
        assert heavy.result()["truncated"] == list(range(100))
        assert first
