"""service.py against the real BentoML server: the contract of POST /prompt, and the two hooks it hangs on."""

import asyncio
import hmac
import itertools
import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest

from tests.conftest import Server, serve, wait_until_ready
from tests.test_protocol import MALFORMED

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number", "maximum": 1000, "minimum": 0}, "city": {"enum": ["Rome", "Oslo"]}},
    "required": ["total", "city"],
    "additionalProperties": False,
}
TOTAL = {"prompt": "Where and how much?", "context": {"document": "Oslo, 12.50"}, "schema": SCHEMA}
GOOD = {"prompt": "Where and how much?", "context": {"document": "Oslo, 12.50"}, "labels": ["Rome", "Oslo"]}


def post(server: Server, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/prompt", json=body, timeout=120, **options)


def health(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/health").json())


def test_the_answer_has_exactly_the_documented_form(tiny_server: Server) -> None:
    response = post(tiny_server, GOOD)
    body = response.json()
    assert response.status_code == 200
    assert list(body) == ["success", "output", "metadata"]
    assert body["success"] is True
    output = json.loads(body["output"])
    assert list(output) == ["label", "probability", "probabilities", "abstained"]
    assert output["probabilities"].keys() == {"Rome", "Oslo"}
    known = {"model", "generation_time", "finish_reason", "usage", "request_id"}
    assert body["metadata"].keys() == known | {"labels", "receipt"}
    assert body["metadata"]["labels"]["prior"] == "content-free"
    assert body["metadata"]["finish_reason"] == "stop"
    assert body["metadata"]["usage"]["prompt_tokens"] > 20
    assert body["metadata"]["request_id"] == response.headers["x-request-id"]


def test_a_callers_schema_is_kept(tiny_server: Server) -> None:
    output = json.loads(post(tiny_server, {"prompt": "x", "context": {}, "schema": SCHEMA}).json()["output"])
    assert output.keys() == {"total", "city"} and 0 <= output["total"] <= 1000


def test_what_is_known_of_an_answer_comes_with_it(tiny_server: Server) -> None:
    checks = [{"rule": "equal", "of": ["/total", "/total"]}]
    told = post(tiny_server, {**TOTAL, "schema": {**SCHEMA, "x-check": checks}}).json()
    metadata, output = told["metadata"], json.loads(told["output"])
    assert [each["pointer"] for each in metadata["evidence"]] == ["/total", "/city"]
    assert [each["value"] for each in metadata["evidence"]] == [output["total"], output["city"]]
    assert metadata["confidence"].keys() == {"/total", "/city"}
    assert all(0 < each["raw"] <= 1 for each in metadata["confidence"].values())
    assert [each["passed"] for each in metadata["checks"]] == [True]
    assert metadata["receipt"]["sampling"]["temperature"] == 0
    assert post(tiny_server, TOTAL).json()["metadata"].keys() >= {"evidence", "confidence", "receipt"}


def only(**values: Any) -> dict[str, Any]:
    """A schema that one answer alone fits."""
    properties = {name: {"const": value} for name, value in values.items()}
    return {"type": "object", "properties": properties, "required": list(values), "additionalProperties": False}


def test_evidence_points_into_the_text_that_was_sent(tiny_server: Server) -> None:
    prompt = "Where?\r\n\r\n  In Oslo \U0001f389, for 12,50 \u20ac."
    schema = only(city="Oslo", total=12.5, other="Rome")
    for text, context in ((prompt, {}), ("Where?", {"document": prompt})):
        found = post(tiny_server, {"prompt": text, "context": context, "schema": schema}).json()["metadata"]["evidence"]
        assert [each["match"] for each in found] == ["exact", "normalised", "absent"]
        assert [prompt[each["start"] : each["end"]] for each in found[:2]] == [each["text"] for each in found[:2]]
        assert found[0]["text"] == "Oslo" and "12,50" in found[1]["text"]


def test_what_was_forced_is_certain(tiny_server: Server) -> None:
    metadata = post(tiny_server, {**TOTAL, "schema": only(city="Oslo")}).json()["metadata"]
    assert metadata["confidence"] == {"/city": {"raw": 1.0, "calibrated": None}}


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"schema": only(city="Oslo", land="Norway"), "require_evidence": True}, "evidence_absent", "/land"),
        (
            {"schema": {**only(a="Oslo", b="Bergen"), "x-evidence": "required"}},
            "evidence_absent",
            "/b",
        ),
        (
            {
                "schema": {
                    **only(net=10, total=12.5),
                    "x-check": [{"rule": "equal", "name": "no tax", "of": ["/net", "/total"], "on_fail": "error"}],
                }
            },
            "check_failed",
            "no tax",
        ),
    ],
)
def test_an_answer_that_breaks_a_promise_is_a_typed_error(
    fields: dict[str, Any], code: str, named: str, tiny_server: Server
) -> None:
    response = post(tiny_server, {**TOTAL, **fields})
    body = response.json()
    assert (response.status_code, body["error_type"], body["success"]) == (422, code, False)
    assert named in body["error"]
    assert "Norway" not in body["error"] and "Oslo" not in body["error"]


def test_labels_are_probable_abstained_from_or_none_of_them(tiny_server: Server) -> None:
    labels = ["Rome", {"label": "Oslo", "description": "in the north"}]
    body = {**GOOD, "labels": labels, "none_of_these": True}
    told = json.loads(post(tiny_server, body).json()["output"])
    assert list(told["probabilities"]) == ["Rome", "Oslo", "none of these"]
    assert sum(told["probabilities"].values()) == pytest.approx(1)
    assert told["abstained"] is False
    told = json.loads(post(tiny_server, {**body, "abstain_below": 1}).json()["output"])
    assert (told["label"], told["abstained"]) == (None, True)


def test_the_same_question_has_the_same_receipt(tiny_server: Server) -> None:
    first, again, other = (
        post(tiny_server, body).json()["metadata"]["receipt"] for body in (TOTAL, TOTAL, {**TOTAL, "prompt": "x"})
    )
    assert first == again
    assert {name for name in first if first[name] != other[name]} >= {"input"}
    assert first["form"] == other["form"]


def test_text_is_text(tiny_server: Server) -> None:
    # A random model never ends its turn by itself, so the honest answer is that it was cut.
    response = post(tiny_server, {"prompt": "x", "format": "text", "max_new_tokens": 7})
    assert (response.status_code, response.json()["error_type"]) == (422, "answer_truncated")
    assert "7 tokens" in response.json()["error"]


def test_the_same_seed_gives_the_same_answer(tiny_server: Server) -> None:
    text = {"type": "string", "maxLength": 30}
    schema = {"type": "object", "properties": {"a": text}, "required": ["a"], "additionalProperties": False}
    body = {"prompt": "x", "schema": schema, "temperature": 1.5}

    def output(seed: int) -> str:
        return str(post(tiny_server, {**body, "seed": seed}).json()["output"])

    assert output(1) == output(1)
    assert len({output(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(("body", "code"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_bodies_get_their_typed_error(tiny_server: Server, body: bytes, code: str) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{tiny_server.url}/prompt", content=body, headers=headers, timeout=30)
    assert (response.status_code, response.json()["error_type"]) == (400, code)
    assert response.json()["success"] is False


def test_after_all_that_a_good_request_is_answered(tiny_server: Server) -> None:
    assert post(tiny_server, GOOD).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"schema": {"type": "object", "not": {}}}, 400, "schema_unsupported"),
        ({"schema": {"type": "wat"}}, 400, "schema_invalid"),
        ({"schema": {"type": "string", "pattern": "(?=x)"}}, 400, "schema_unsupported"),
        ({"schema": {"$ref": "http://127.0.0.1:9/x"}}, 400, "schema_unsupported"),
        ({"schema": {"type": "string", "minLength": 9, "maxLength": 3}}, 400, "schema_unsupported"),
        ({"schema": {"type": "object", "x-guidance": {"lenient": True}}}, 400, "schema_unsupported"),
        ({"schema": {**SCHEMA, "x-check": [{"rule": "magic"}]}}, 400, "schema_invalid"),
        ({"schema": {**SCHEMA, "x-evidence": "perhaps"}}, 400, "schema_invalid"),
        ({"context": {}, "require_evidence": True}, 400, "invalid_value"),
        ({"prompt": "word " * 9000}, 400, "context_length_exceeded"),
        ({"prompt": "word " * 9000, "schema": None, "labels": ["a", "b"]}, 400, "context_length_exceeded"),
        ({"max_new_tokens": 8190}, 400, "context_length_exceeded"),
        ({"max_new_tokens": 1}, 400, "invalid_value"),
        ({"deadline_ms": 1}, 504, "deadline_exceeded"),
        ({"deadline_ms": 1, "schema": None, "labels": ["a", "b"], "context": {}}, 504, "deadline_exceeded"),
    ],
    ids=range(15),
)
def test_refusals_from_behind_the_door(tiny_server: Server, changes: dict[str, Any], status: int, code: str) -> None:
    response = post(tiny_server, {**TOTAL, **changes})
    assert (response.status_code, response.json()["error_type"]) == (status, code)


def test_counts_are_named_when_the_prompt_is_too_long(tiny_server: Server) -> None:
    for body in (GOOD, TOTAL):
        long = {**body, "prompt": "word " * 9000}
        message = post(tiny_server, long).json()["error"]
        assert re.search(r"prompt without its document has 9\d\d\d tokens; of the [78]\d\d\d ", message)
        message = post(tiny_server, {**long, "context": {}}).json()["error"]
        assert re.search(r"prompt has 9\d\d\d tokens .* context is 8192", message)


def test_a_bad_row_among_seven_good_ones_fails_alone(tiny_server: Server) -> None:
    bodies = [{**GOOD, "prompt": f"question {number}"} for number in range(8)]
    bodies[3] = {**TOTAL, "schema": {"not": {}}}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda body: post(tiny_server, body), bodies))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 200, 200, 200, 200]


def test_answers_reach_the_client_that_asked(tiny_server: Server) -> None:
    """Each of 48 concurrent clients may only be told its own label."""

    def ask(number: int) -> str:
        body = {"prompt": "which?", "labels": [f"this-is-{number}", f"also-{number}"]}
        return str(json.loads(post(tiny_server, body).json()["output"])["label"])

    with ThreadPoolExecutor(48) as clients:
        told = list(clients.map(ask, range(48)))
    assert all(label in (f"this-is-{number}", f"also-{number}") for number, label in enumerate(told))


def batch_sizes(server: Server) -> tuple[float, float]:
    """Batches so far, and those of a single prompt."""
    text = httpx.get(f"{server.url}/metrics").text
    counted = re.search(r"adaptive_batch_size_count\{[^}]*\} (\S+)", text)
    single = re.search(r'adaptive_batch_size_bucket\{le="1.0"[^}]*\} (\S+)', text)
    assert counted and single
    return float(counted[1]), float(single[1])


def test_bentoml_gathers_prompts_into_batches(tiny_server: Server) -> None:
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda _: post(tiny_server, GOOD).status_code, range(128)))
    counted, single = batch_sizes(tiny_server)
    assert answers == [200] * 128
    assert counted > single


def test_a_short_answer_overtakes_a_long_one(tiny_server: Server) -> None:
    finished: list[str] = []

    def ask(name: str, body: dict[str, Any]) -> None:
        post(tiny_server, body)
        finished.append(name)

    with ThreadPoolExecutor(2) as clients:
        long = clients.submit(ask, "long", {"prompt": "x", "format": "text", "max_new_tokens": 1500})
        while health(tiny_server)["engine"]["running"] == 0:
            assert not long.done()
        clients.submit(ask, "short", GOOD).result()
    assert finished == ["short", "long"]


def test_a_client_that_leaves_frees_its_sequence(tiny_server: Server) -> None:
    host, port = tiny_server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "x", "format": "text", "max_new_tokens": 6000}).encode()
    request = b"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(request % (len(body), body))
        while health(tiny_server)["engine"]["running"] == 0:
            time.sleep(0.01)
    end = time.monotonic() + 5  # 6,000 tokens would take far longer
    while health(tiny_server)["engine"]["running"] and time.monotonic() < end:
        time.sleep(0.01)
    engine = health(tiny_server)["engine"]
    assert (engine["running"], engine["kv_tokens"]["used"]) == (0, 0)


def test_clients_that_leave_at_any_moment_leave_nothing_behind(tiny_server: Server) -> None:
    async def storm() -> None:
        async with httpx.AsyncClient(base_url=tiny_server.url) as client:
            body = {"prompt": "x", "format": "text", "max_new_tokens": 4000}
            for wave in range(5):
                tasks = [asyncio.create_task(client.post("/prompt", json=body, timeout=60)) for _ in range(10)]
                await asyncio.sleep(0.004 * 3**wave)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(storm())
    end = time.monotonic() + 10
    while (health(tiny_server)["engine"]["running"] or health(tiny_server)["engine"]["waiting"]) and (
        time.monotonic() < end
    ):
        time.sleep(0.05)
    engine = health(tiny_server)["engine"]
    assert (engine["running"], engine["waiting"], engine["kv_tokens"]["used"]) == (0, 0, 0)
    assert post(tiny_server, GOOD).status_code == 200


def test_weights_in_memory_are_what_the_manifest_says(tiny_server: Server) -> None:
    found = health(tiny_server)
    weights = found["weights"]
    assert found["bits"] == 4
    assert weights["resident_bytes"] == weights["planned_bytes"] == sum(weights["ledger"].values())
    assert weights["quantised_on"] in ("cpu", "cuda")


def test_metrics_tell_what_the_engine_did_and_nothing_of_what_was_said(tiny_server: Server) -> None:
    secret = "Zebra-4711"
    for body in (GOOD, TOTAL):
        asked = {**body, "prompt": f"What is {secret}?", "context": {"document": secret}}
        assert post(tiny_server, asked).status_code == 200
    assert post(tiny_server, {**GOOD, "wrong": 1}).status_code == 400
    told = httpx.get(f"{tiny_server.url}/metrics").text
    values = {name: float(value) for name, value in re.findall(r"^(zopilot_\S+) (\S+)$", told, re.MULTILINE)}
    assert values['zopilot_tokens_total{kind="prompt"}'] > 0
    assert values['zopilot_tokens_total{kind="answer"}'] > 0
    assert values['zopilot_tokens_total{kind="forced"}'] > 0
    assert values['zopilot_refusals_total{code="unknown_parameter"}'] >= 1
    assert values["zopilot_step_seconds_count"] >= values["zopilot_first_token_seconds_count"] >= 1
    assert values['zopilot_rows{state="running"}'] == 0
    held = [values[f'zopilot_kv_tokens{{use="{use}"}}'] for use in ("used", "pinned", "evictable", "free")]
    assert sum(held) == health(tiny_server)["engine"]["kv_tokens"]["budget"]
    assert secret not in told


def test_no_path_that_a_stranger_asks_for_is_kept_in_the_metrics(tiny_server: Server) -> None:
    for path in ("/Zebra-4712", "/v1/models/Zebra-4712", "/prompt/Zebra-4712"):
        assert httpx.get(tiny_server.url + path).status_code == 404
    told = httpx.get(f"{tiny_server.url}/metrics").text
    assert "Zebra-4712" not in told
    assert 'bentoml_service_request_total{endpoint="/prompt"' in told


@pytest.mark.parametrize("size", [10, 10_000])
def test_whoever_leaves_before_the_answer_begins_leaves_nothing_behind(tiny_server: Server, size: int) -> None:
    """Else each would hold up a shutdown until BentoML's own timeout."""
    body = json.dumps({**GOOD, "format": "text", "max_new_tokens": 64}).encode()
    head = f"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", int(tiny_server.url.rpartition(":")[2]))) as connection:
            connection.sendall((head.encode() + body)[: len(head) + size])
    under_way = re.compile(r'bentoml_service_request_in_progress\{endpoint="/prompt".* (\S+)')
    until = time.monotonic() + 30
    while (found := under_way.search(httpx.get(f"{tiny_server.url}/metrics").text)) and float(found[1]) > 0:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert found


def test_a_partial_answer_is_flagged_where_it_is_allowed_and_an_error_where_not(tiny_server: Server) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    body = {"prompt": "x", "schema": {**schema, "additionalProperties": False}, "max_new_tokens": 30}
    refused = post(tiny_server, body)
    assert (refused.status_code, refused.json()["error_type"]) == (422, "answer_truncated")
    taken = post(tiny_server, {**body, "allow_partial": True, "lane": "bulk"}).json()
    assert taken["success"] is True
    assert taken["metadata"]["finish_reason"] == "closed"
    assert json.loads(taken["output"]).keys() == {"text"}
    assert taken["metadata"]["usage"]["completion_tokens"] <= 30


def test_the_openapi_description_has_the_exact_body(tiny_server: Server) -> None:
    described = httpx.get(f"{tiny_server.url}/openapi.json").json()
    operation = described["paths"]["/prompt"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Prompt"}
    body = described["components"]["schemas"]["Prompt"]
    assert body["required"] == ["prompt"]
    assert body["properties"].keys() == {
        "prompt",
        "context",
        "schema",
        "labels",
        "none_of_these",
        "abstain_below",
        "require_evidence",
        "format",
        "max_new_tokens",
        "temperature",
        "top_p",
        "seed",
        "deadline_ms",
        "lane",
        "on_conflict",
        "allow_partial",
    }
    reply = described["components"]["schemas"]["Reply"]
    assert reply["required"] == ["success", "output", "metadata"]


def test_bentomls_own_clients_agree(tiny_server: Server) -> None:
    with bentoml.SyncHTTPClient(tiny_server.url, timeout=60) as client:
        told = client.prompt(GOOD)
    assert told["success"] is True and "label" in json.loads(told["output"])

    async def ask() -> Any:
        async with bentoml.AsyncHTTPClient(tiny_server.url, timeout=60) as client:
            return await client.prompt(GOOD)

    again = asyncio.run(ask())
    assert json.loads(again["output"])["label"] == json.loads(told["output"])["label"]


LONG = "\n".join(f"Line {number}: nothing is due." for number in range(1500))


def test_a_document_longer_than_the_context_is_read_in_windows(tiny_server: Server) -> None:
    fields = {"prompt": "Which?", "context": {"document": LONG}}
    told = post(tiny_server, {**fields, "labels": ["invoice", "letter"]}).json()
    assert sum(json.loads(told["output"])["probabilities"].values()) == pytest.approx(1)
    pieces = [piece for (piece,) in told["metadata"]["windows"]["pieces"]]
    assert (pieces[0]["start"], pieces[-1]["end"]) == (0, len(LONG))
    assert all(before["end"] > after["start"] > before["start"] for before, after in itertools.pairwise(pieces))
    schema = {"type": "object", "properties": {"line": {"enum": ["Line 7", "Line 1400"]}}}
    body = {**fields, "schema": schema, "temperature": 1, "max_new_tokens": 60}
    for seed in range(6):
        reported = post(tiny_server, {**body, "seed": seed, "on_conflict": "report"}).json()
        answer = post(tiny_server, {**body, "seed": seed})
        if reported["metadata"]["windows"]["conflicts"]:
            assert (answer.status_code, answer.json()["error_type"]) == (422, "windows_conflict")
        else:
            assert answer.json()["output"] == reported["output"]
        for each in reported["metadata"]["evidence"]:
            assert LONG[each["start"] : each["end"]] == each["value"]


def test_who_leaves_a_long_document_frees_all_its_windows(tiny_server: Server) -> None:
    schema = {"type": "object", "properties": {"line": {"type": "string", "maxLength": 900}}, "required": ["line"]}
    with pytest.raises(httpx.ReadTimeout):
        body = {"prompt": "Which?", "context": {"document": LONG}, "schema": schema}
        httpx.post(f"{tiny_server.url}/prompt", json=body, timeout=1.5)
    end = time.monotonic() + 10
    while (engine := health(tiny_server)["engine"])["running"] + engine["waiting"] and time.monotonic() < end:
        time.sleep(0.05)
    assert (engine["running"], engine["waiting"], engine["kv_tokens"]["used"]) == (0, 0, 0)


@pytest.fixture(scope="module")
def strict_server(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With keys, a small queue, a small body and one browser origin. In a home of its own: BentoML empties the metrics
    of all that share one."""
    folder = tmp_path_factory.mktemp("strict")
    with serve(
        shutil.copytree(tiny_home, folder / "home"),
        folder / "log",
        ZOPILOT_GPU_API_KEY="first,second",
        ALLOWED_ORIGINS="https://app.example",
        HEALTH_CHECK_PUBLIC="0",
        ZOPILOT_QUEUE_TOKENS="40000",
        ZOPILOT_MAX_BODY="4096",
        ZOPILOT_KV_TOKENS="2100",
        ZOPILOT_RECEIPT_KEY="of the operator",
    ) as server:
        yield server


def test_a_key_is_asked_for(strict_server: Server) -> None:
    assert post(strict_server, GOOD).status_code == 401
    assert post(strict_server, GOOD, headers={"x-api-key": "wrong"}).status_code == 401
    assert post(strict_server, GOOD, headers={"x-api-key": "second"}).status_code == 200
    assert httpx.get(f"{strict_server.url}/metrics").status_code == 401
    assert httpx.get(f"{strict_server.url}/health").status_code == 401
    assert httpx.get(f"{strict_server.url}/readyz").status_code == 200


def test_a_receipt_can_be_proven_with_the_operators_key(strict_server: Server) -> None:
    """By anyone who has it, with nothing but the standard library."""
    told = post(strict_server, GOOD, headers={"x-api-key": "first"}).json()

    def sealed(kind: str, text: str) -> str:
        return hmac.new(b"of the operator", f"{kind}\0{text}".encode(), "sha256").hexdigest()

    asked = json.dumps([GOOD["prompt"], GOOD["context"]], ensure_ascii=False, separators=(",", ":"))
    receipt = told["metadata"]["receipt"]
    assert (receipt["input"], receipt["output"]) == (sealed("input", asked), sealed("output", told["output"]))


def test_bentomls_client_sends_the_key_as_a_bearer_token(strict_server: Server) -> None:
    with bentoml.SyncHTTPClient(strict_server.url, token="first", timeout=60) as client:
        assert client.prompt(GOOD)["success"] is True


def test_too_large_a_body_is_refused_and_the_next_one_is_answered(strict_server: Server) -> None:
    key = {"x-api-key": "first"}
    large = post(strict_server, {**GOOD, "prompt": "x" * 5000}, headers=key)
    assert (large.status_code, large.json()["error_type"]) == (413, "request_too_large")
    assert post(strict_server, GOOD, headers=key).status_code == 200


def test_a_browser_of_the_allowed_origin_may_ask(strict_server: Server) -> None:
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key,content-type",
    }
    flight = httpx.options(f"{strict_server.url}/prompt", headers=asked)
    assert flight.status_code == 200
    assert flight.headers["access-control-allow-origin"] == "https://app.example"
    refused = post(strict_server, GOOD, headers={"origin": "https://app.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    other = httpx.options(f"{strict_server.url}/prompt", headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_full_queue_says_when_to_come_back(strict_server: Server) -> None:
    body = {"prompt": "x", "format": "text", "max_new_tokens": 2000}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: post(strict_server, body, headers={"x-api-key": "first"}), range(8)))
    codes = [answer.json()["error_type"] for answer in answers]
    assert set(codes) == {"answer_truncated", "queue_full"}
    refused = answers[codes.index("queue_full")]
    assert refused.status_code == 429 and refused.json()["retryable"] is True
    assert 1 <= int(refused.headers["retry-after"]) <= 120


def test_from_the_first_second_it_says_that_it_is_loading(tiny_home: Path, tmp_path: Path) -> None:
    with serve(tiny_home, tmp_path / "log", ready=False) as server:
        seen: list[tuple[int, str]] = []
        while not seen or seen[-1][0] != 200:
            try:
                response = httpx.get(f"{server.url}/readyz", timeout=10)
            except httpx.ConnectError:
                assert server.process.poll() is None
                time.sleep(0.05)
                continue
            seen.append((response.status_code, response.headers.get("retry-after", "")))
        assert seen[0] == (503, "5")
        assert set(seen) == {(503, "5"), (200, "")}
        assert httpx.get(f"{server.url}/livez").status_code == 200


def test_a_model_that_is_not_imported_ends_the_start_with_the_command_that_helps(tmp_path: Path) -> None:
    with serve(tmp_path / "empty", tmp_path / "log", ready=False) as server:
        assert server.process.wait(60) != 0
        assert "scripts/import_model smollm2-135m-instruct" in server.log.read_text()


def test_a_broken_model_ends_the_process_with_the_reason(tiny_home: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_home, tmp_path / "home")
    shard = next((tmp_path / "home" / "models").rglob("layer-001.safetensors"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with serve(tmp_path / "home", tmp_path / "log", ready=False) as server:
        assert server.process.wait(90) != 0
        assert "layer-001.safetensors is not what was imported" in server.log.read_text()


def test_sigterm_lets_work_in_hand_finish(tiny_home: Path, tmp_path: Path) -> None:
    with serve(tiny_home, tmp_path / "log") as server, ThreadPoolExecutor(1) as client:
        asked = client.submit(post, server, {"prompt": "x", "format": "text", "max_new_tokens": 400})
        while health(server)["engine"]["running"] == 0:
            time.sleep(0.01)
        server.process.terminate()
        assert asked.result().json()["error_type"] == "answer_truncated"  # all 400 tokens were made
        assert server.process.wait(60) == 0


def test_logs_hold_no_text_of_documents_or_keys(tiny_home: Path, tmp_path: Path) -> None:
    canary = "canary-7f3a"
    with serve(tiny_home, tmp_path / "log", ZOPILOT_GPU_API_KEY=f"key-{canary}") as server:
        key = {"x-api-key": f"key-{canary}"}
        post(server, {**GOOD, "prompt": canary}, headers=key)
        post(server, {"prompt": canary, canary: 1}, headers=key)
        post(server, {"prompt": canary, "schema": {"type": canary}}, headers=key)
        post(server, {"prompt": canary, "max_new_tokens": canary}, headers={"x-api-key": canary})
        described = {"label": canary, "description": canary}
        post(server, {"prompt": canary, "context": {"document": canary}, "labels": [described]}, headers=key)
        strict = {"schema": only(**{canary: canary}), "require_evidence": True}
        post(server, {"prompt": canary, "context": {"document": "x"}, **strict}, headers=key)
        httpx.get(f"{server.url}/{canary}")
        wait_until_ready(server)
        log = server.log.read_text()
    assert "Traceback" not in log and canary not in log
