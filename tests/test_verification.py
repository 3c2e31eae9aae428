"""scripts/verify, against a service of our own that is as sure, slow or false as a test needs, and the real one."""

import argparse
import hashlib
import hmac
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV  # type: ignore[import-untyped]
from sklearn.frozen import FrozenEstimator  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.metrics import brier_score_loss, log_loss  # type: ignore[import-untyped]

from benchmarks import banking
from models import calibration, labels
from models.calibration import Calibration
from tests.conftest import ROOT, Server
from verification import __main__ as script
from verification import client, fit, golden, measures, replay, report, run, scaling
from verification.client import Reply, Service
from verification.failure import Unusable
from verification.golden import Row

TAG = "fake:1"
LABELS = ["credit note", "invoice", "letter"]
WARMTH, LEANING = 3.0, np.array([1.0, 0.0, -1.0])  # what is to be found: the fake's own temperature and bias
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}}
TOLD = {"computed": "reference on cpu", "versions": {"torch": "2"}, "weights": "w" * 64, "template": "t" * 64}


# A service


def scores_of(document: str, names: Sequence[str]) -> list[float]:
    """The same for the same document, in nats and far too sure."""
    chance = np.random.default_rng(int.from_bytes(hashlib.sha256(document.encode()).digest()[:4]))
    return list(chance.normal(0, 6, len(names)))


def truth_of(document: str) -> str:
    """Drawn with the probabilities that a perfect calibration finds."""
    shares = np.exp(np.array(scores_of(document, LABELS)) / WARMTH + LEANING)
    return str(np.random.default_rng(len(document) + int(document.split()[-1])).choice(LABELS, p=shares / shares.sum()))


@dataclass
class Fake:
    """What the service does: `refusals` are answered first, one a request; `change` spoils a whole reply."""

    key: str = ""
    refusals: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    change: Callable[[dict[str, Any], dict[str, Any]], Any] = lambda body, reply: None
    delay: float = 0.0
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def health(self) -> tuple[int, dict[str, Any]]:
        return 200, {"status": "ready", "model": TAG}

    def prompt(self, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.delay)
        answer = self.decide(body) if "labels" in body else self.extract(body)
        output = json.dumps(answer["output"])
        seed = body.get("seed", 4711 if body.get("temperature") else None)
        form = body.get("schema") or body["labels"]
        receipt = {
            "input": hide([body["prompt"], body.get("context", {})]),
            "output": hide(output),
            "form": hashlib.sha256(json.dumps(form).encode()).hexdigest(),
            "sampling": None if "labels" in body else {"temperature": body.get("temperature", 0.0), "seed": seed},
            **TOLD,
        }
        told = {"model": "fake", "finish_reason": "stop", "receipt": receipt, **answer["told"]}
        reply = {"success": True, "output": output, "metadata": told}
        self.change(body, reply)
        return reply

    def decide(self, body: dict[str, Any]) -> dict[str, Any]:
        names = [each if isinstance(each, str) else each["label"] for each in body["labels"]]
        names += [fit.NONE] * body.get("none_of_these", False)
        scores = scores_of(body["context"]["document"], sorted(names))
        scores = [scores[sorted(names).index(name)] for name in names]
        shares = np.exp(scores) / np.exp(scores).sum()
        best = int(np.argmax(shares))
        abstained = bool(shares[best] < body.get("abstain_below", 0.0))
        label = None if abstained or names[best] == fit.NONE else names[best]
        told = {"scores": dict(zip(names, scores, strict=True)), "prior": "content-free", "calibration": None}
        output = {
            "label": label,
            "probability": float(shares[best]),
            "probabilities": dict(zip(names, map(float, shares), strict=True)),
            "abstained": abstained,
        }
        return {"output": output, "told": {"labels": told}}

    def extract(self, body: dict[str, Any]) -> dict[str, Any]:
        """The total is what it says, and is right as often as `chance_of` its raw confidence."""
        total = int(body["context"]["document"].split()[-1])
        warm = {"total": total + 1000 * bool(body.get("temperature")), "paid": True}
        evidence = [{"pointer": "/total", "match": "exact"}, {"pointer": "/paid", "match": "absent"}]
        sure = {"/total": {"raw": raw_of(total), "calibrated": None}, "/paid": {"raw": 0.5, "calibrated": None}}
        return {"output": warm, "told": {"evidence": evidence, "confidence": sure}}


def raw_of(number: int) -> float:
    return 0.05 + 0.9 * (number * 37 % 101) / 100


def chance_of(raw: float) -> float:
    """Platt's form: slope 0.5, offset -0.5."""
    return 1 / (1 + math.exp(0.5 - 0.5 * calibration.logit_of(raw)))


def hide(value: Any) -> str:
    return hmac.new(b"the fake's own", json.dumps(value).encode(), hashlib.sha256).hexdigest()


@contextmanager
def listen(fake: Fake) -> Iterator[Fake]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # a reply in one piece

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(*(fake.health() if self.admits() else (401, {"error_type": "unauthorized"})))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self.admits():
                return self.answer(401, {"error_type": "unauthorized"})
            with fake.lock:
                fake.seen.append(body)
                fake.open += 1
                fake.most = max(fake.most, fake.open)
                refusal = fake.refusals.pop(0) if fake.refusals else None
            reply = None if refusal else fake.prompt(body)
            with fake.lock:
                fake.open -= 1
            if refusal:
                status, headers, said = refusal
                return self.answer(status, said, **headers)
            return self.answer(200, reply)

        def admits(self) -> bool:
            return self.headers.get("x-api-key", "") == fake.key

        def answer(self, status: int, said: Any, **headers: str) -> None:
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        fake.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield fake
        server.shutdown()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with listen(Fake()) as found:
        yield found


def label_row(number: int, **more: Any) -> dict[str, Any]:
    document = f"document {number}"
    asked = {"prompt": "What is this?", "context": {"document": document}, "labels": LABELS}
    return {**asked, "expected": truth_of(document), **more}


def value_row(number: int, **more: Any) -> dict[str, Any]:
    """The total is said rightly as often as an honest confidence would say."""
    right = np.random.default_rng(number).random() < chance_of(raw_of(number))
    asked = {"prompt": "Extract.", "context": {"document": f"total {number}"}, "schema": SCHEMA}
    return {**asked, "expected": {"total": number if right else -1}, **more}


def lay(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The command in this process, beside a store of its own; what argparse refuses is its exit status as well."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOPILOT_GPU_API_KEY", raising=False)

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["scripts/verify", *map(str, arguments)])
        try:
            return script.main()
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            return ended.code

    return call


# Rows


def test_rows_are_read_as_they_stand(tmp_path: Path) -> None:
    lines = ['{"prompt": "a", "labels": ["x"], "expected": null}', "", '{"prompt": "b", "labels": ["y"]}']
    path = tmp_path / "golden.jsonl"
    path.write_text("\n".join(lines))
    rows, digest = golden.read(path)
    assert rows == [
        Row(1, {"prompt": "a", "labels": ["x"]}, None, True),
        Row(3, {"prompt": "b", "labels": ["y"]}, None, False),
    ]
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_labels_that_stand_once_are_for_rows_without_any(tmp_path: Path) -> None:
    path = lay(tmp_path / "golden", [{"prompt": "a"}, {"prompt": "b", "labels": ["own"]}, value_row(1)])
    listed = tmp_path / "labels.json"
    listed.write_text('["x", {"label": "y", "description": "why"}]')
    rows, _ = golden.read(path, golden.read_labels(listed))
    assert [row.request.get("labels") for row in rows] == [["x", {"label": "y", "description": "why"}], ["own"], None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n \n",
        "[]",
        "{",
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        '{"labels": ["a"], "expected": 1}',
        "\xff",
        "[" * 99_999,
    ],
)
def test_what_is_no_row_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "golden"
    path.write_bytes(b'{"prompt": "secret"}\n' * bool(text.strip()) + text.encode("latin-1"))
    with pytest.raises(Unusable, match=r"line 2|no rows") as refused:
        golden.read(path)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{}", "[]", "["])
def test_what_is_no_list_of_labels_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels"
    path.write_text(text)
    with pytest.raises(Unusable, match="labels"):
        golden.read_labels(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"none\.jsonl: No such file"):
        golden.read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        ({"a": 12}, {"a": 12.0, "b": 1}, {"/a": [True]}),
        ({"a": "12"}, {"a": 12}, {"/a": [False]}),
        ({"a": 1}, {"a": True}, {"/a": [False]}),
        ({"a": None}, {}, {"/a": [False]}),
        ({"a": None}, {"a": None}, {"/a": [True]}),
        ({"a": "x "}, {"a": "x"}, {"/a": [False]}),
        ({"a/b": {"~": 1}}, {"a/b": {"~": 1}}, {"/a~1b/~0": [True]}),
        ({"a": [1, 2]}, {"a": [1]}, {"/a/*": [True, False]}),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}, {"b": 2}]}, {"/a/*/b": [True, False]}),
        ({"a": []}, {"a": []}, {"/a": [True]}),
        ({"a": []}, {"a": [1]}, {"/a": [False]}),
        ({"a": {"b": 1}}, {"a": [1]}, {"/a/b": [False]}),
        ({"a": [1]}, "text", {"/a/*": [False]}),
        (5, 5, {"": [True]}),
    ],
)
def test_when_a_value_is_the_expected_one(expected: Any, found: Any, told: dict[str, list[bool]]) -> None:
    judged: dict[str, list[bool]] = {}
    for pointer, right in golden.compare(expected, found):
        judged.setdefault(pointer, []).append(right)
    assert judged == told


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_everything_is_what_it_is(value: Any) -> None:
    assert all(right for _, right in golden.compare(value, value))
    assert len(list(golden.compare(value, value))) == len(list(golden.leaves(value)))


@given(VALUES, VALUES)
def test_what_differs_is_seen(expected: Any, found: Any) -> None:
    exact = dict(golden.leaves(expected))
    lost = any(pointer not in dict(golden.leaves(found)) for pointer in exact)
    assert not (lost and all(right for _, right in golden.compare(expected, found)))


# The client


def test_replies_come_in_the_order_of_the_questions_and_so_many_at_once(fake: Fake) -> None:
    fake.delay = 0.02
    bodies = [golden_free(value_row(number)) for number in range(20)]
    replies = client.ask(Service(fake.url, concurrency=3), bodies)
    assert [reply.output["total"] for reply in replies] == list(range(20))
    assert fake.most == 3
    assert all(reply.seconds >= 0.02 for reply in replies)


def golden_free(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "expected"}


BUSY = (429, {"Retry_After": "1"}, {"error_type": "queue_full"})
REFUSALS = [
    ((400, {}, {"error_type": "schema_unsupported"}), "schema_unsupported"),
    ((429, {}, {"error_type": "queue_full"}), "queue_full"),
    ((503, {"Retry_After": "soon"}, {"error_type": "draining"}), "draining"),
    ((429, {"Retry_After": "99"}, {"error_type": "queue_full"}), "queue_full"),
    ((502, {}, b"<html>"), "http_502"),
    ((500, {}, {}), "http_500"),
    ((200, {}, b"{"), "http_200"),
    ((200, {}, {"success": False, "output": "{}", "metadata": {}}), "no_answer"),
    ((200, {}, {"success": True, "output": "{", "metadata": {}}), "no_answer"),
    ((200, {}, {"success": True, "metadata": {}}), "no_answer"),
    ((200, {}, {"success": True, "output": "{}"}), "no_answer"),
]


def test_who_is_told_to_come_again_does_so_when_told(fake: Fake) -> None:
    fake.refusals = [BUSY]
    (reply,) = client.ask(Service(fake.url), [golden_free(value_row(5))])
    assert reply.output["total"] == 5 and len(fake.seen) == 2
    assert reply.seconds >= 1


@pytest.mark.parametrize(("refusal", "error"), REFUSALS)
def test_a_refusal_is_an_error_by_its_type(fake: Fake, refusal: Any, error: str) -> None:
    fake.refusals = [refusal]
    (reply,) = client.ask(Service(fake.url, patience=10), [golden_free(value_row(5))])
    assert (reply.error, reply.answer, len(fake.seen)) == (error, None, 1)


def test_a_label_that_is_not_in_the_promised_form_is_no_answer(fake: Fake) -> None:
    fake.change = lambda body, reply: reply.update(output='{"label": "invoice"}')
    (reply,) = client.ask(Service(fake.url), [golden_free(label_row(5))])
    assert reply.error == "no_answer"


def test_text_is_an_answer_where_text_was_asked_for(fake: Fake) -> None:
    fake.change = lambda body, reply: reply.update(output="plain {")
    (reply,) = client.ask(Service(fake.url), [golden_free(value_row(5, format="text"))])
    assert reply.output == "plain {"


def test_nobody_there_is_an_error_of_each_row_and_unusable_beforehand() -> None:
    nobody = Service("http://127.0.0.1:9")
    assert [reply.error for reply in client.ask(nobody, [{}, {}])] == ["unreachable"] * 2
    for url in (nobody.url, "no url"):
        with pytest.raises(Unusable, match="does not answer"):
            client.find_tag(Service(url))


def test_a_key_is_shown_everywhere() -> None:
    with listen(Fake(key="right")) as fake:
        assert client.find_tag(Service(fake.url, "right")) == TAG
        assert client.ask(Service(fake.url, "right"), [golden_free(value_row(1))])[0].answer
        assert client.ask(Service(fake.url, "wrong"), [golden_free(value_row(1))])[0].error == "unauthorized"
        with pytest.raises(Unusable, match="401 unauthorized"):
            client.find_tag(Service(fake.url, "wrong"))


# Measures and scaling, beside scikit-learn's


def weigh(scores: measures.Floats, slope: float) -> measures.Floats:
    """Without bias or noise."""
    return scaling.Scale(slope, np.zeros(scores.shape[1])).weigh(scores)


def draw(rows: int, columns: int, seed: int = 0) -> tuple[measures.Floats, measures.Whole]:
    """Scores that are WARMTH times too sure, and truths drawn from the honest probabilities."""
    chance = np.random.default_rng(seed)
    scores = chance.normal(0, 5, (rows, columns))
    shares = weigh(scores, 1 / WARMTH)
    return scores, np.array([chance.choice(columns, p=row) for row in shares])


def test_measures_agree_with_another_library() -> None:
    scores, truth = draw(400, 4)
    shares = weigh(scores, 1.0)
    found = measures.measure(shares, truth)
    assert found.nll == pytest.approx(log_loss(truth, shares))
    assert found.brier == pytest.approx(brier_score_loss(truth, shares, scale_by_half=False))
    assert found.accuracy == pytest.approx((shares.argmax(1) == truth).mean())
    chances, right = measures.judge(shares, truth)
    single = measures.measure_chances(chances, right)
    assert single.nll == pytest.approx(log_loss(right, chances))
    assert single.brier == pytest.approx(brier_score_loss(right, chances))
    assert single.ece == found.ece and single.accuracy == found.accuracy


def test_the_calibration_error_agrees_with_another_library() -> None:
    theirs = pytest.importorskip("netcal.metrics", reason="pip install --no-deps netcal==1.4.0")
    for rows, columns in ((500, 5), (37, 3)):  # of two it would judge the second alone
        scores, truth = draw(rows, columns)
        shares = weigh(scores, 1.0)
        there = theirs.ECE(bins=15).measure(shares, truth)
        assert measures.measure(shares, truth).ece == pytest.approx(there, abs=1e-12)


def test_bins_hold_every_row_once_with_the_upper_end_inside() -> None:
    confidence = np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 0.5, 1.0])
    bins = measures.bin_up(confidence, np.array([0.0, 1, 0, 1, 1]))
    assert [item.count for item in bins] == [2, 1, 1, 1]
    assert bins[0].right == 0.5


def test_honest_probabilities_err_only_by_chance() -> None:
    scores, truth = draw(4000, 5)
    confidence, right = measures.judge(weigh(scores, 1 / WARMTH), truth)
    chance = measures.expect_ece(confidence, 1)
    assert 0 < chance < 0.03
    assert abs(measures.ece(confidence, right) - chance) < 0.02
    sure, right = measures.judge(weigh(scores, 1.0), truth)
    assert measures.ece(sure, right) > 5 * measures.expect_ece(sure, 1)


def test_a_temperature_is_the_one_that_scikit_learn_finds() -> None:
    scores, truth = draw(600, 4)

    class Scores(LogisticRegression):  # type: ignore[misc]
        """Hands its input on as its decision."""

        def decision_function(self, given: Any) -> Any:
            return given

    fitted = Scores().fit(scores, truth)
    theirs = CalibratedClassifierCV(FrozenEstimator(fitted), method="temperature", cv=2, ensemble=False)
    theirs.fit(scores, truth)
    found = scaling.fit(scores, scaling.pick(truth, 4), None, noisy=False)
    assert found.weigh(scores) == pytest.approx(theirs.predict_proba(scores), abs=2e-4)
    assert 1 / found.slope == pytest.approx(WARMTH, rel=0.15)
    assert not found.bias.any() and found.noise == 0


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_temperature_bias_and_noise_are_found_again(noise: float) -> None:
    chance = np.random.default_rng(3)
    scores = chance.normal(0, 6, (6000, 3))
    shares = scaling.Scale(1 / WARMTH, LEANING, noise).weigh(scores)
    truth = np.array([chance.choice(3, p=row) for row in shares])
    found = scaling.fit(scores, scaling.pick(truth, 3), 0.1)
    assert 1 / found.slope == pytest.approx(WARMTH, rel=0.1)
    assert found.bias - found.bias.mean() == pytest.approx(LEANING, abs=0.15)
    assert found.noise == pytest.approx(noise, abs=0.03)


def test_noise_keeps_a_few_wrong_rows_from_flattening_all_others() -> None:
    scores, truth = draw(2000, 4)
    truth[:400] = np.random.default_rng(1).integers(0, 4, 400)
    flat = scaling.fit(scores, scaling.pick(truth, 4), None, noisy=False)
    fair = scaling.fit(scores, scaling.pick(truth, 4), None)
    assert 1 / fair.slope == pytest.approx(WARMTH, rel=0.1) and 1 / flat.slope > 1.1 / fair.slope
    assert measures.measure(fair.weigh(scores), truth).nll < measures.measure(flat.weigh(scores), truth).nll


def test_a_ridge_draws_the_bias_to_nothing() -> None:
    scores, truth = draw(600, 3)
    found = [scaling.fit(scores + LEANING, scaling.pick(truth, 3), ridge).bias for ridge in (0.1, 1e3, 1e6)]
    sizes = [np.abs(bias).max() for bias in found]
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] < 0.01


@pytest.mark.parametrize(("ridge", "noisy"), [(None, False), (None, True), (0.5, False), (0.5, True)])
def test_no_step_aside_is_better(ridge: float | None, noisy: bool) -> None:
    """What was found is where its own loss is least, however it is moved."""
    scores, truth = draw(300, 3)

    def loss(scale: scaling.Scale) -> float:
        exact = scale.weigh(scores)[np.arange(300), truth]
        return float(-np.log(exact).sum() + 0.5 * (ridge or 0.0) * (scale.bias**2).sum())

    best = scaling.fit(scores, scaling.pick(truth, 3), ridge, noisy)
    aside = [replace(best, slope=best.slope * factor) for factor in (0.99, 1.01)]
    aside += [replace(best, noise=best.noise * factor) for factor in (0.9, 1.1)] if best.noise > 0.001 else []
    aside += [replace(best, bias=best.bias + step) for step in 0.02 * np.eye(3)] if ridge else []
    assert all(loss(other) >= loss(best) for other in aside)


def test_scaling_does_not_depend_on_what_is_added_to_all_scores_of_a_row() -> None:
    scores, truth = draw(300, 4)
    one = scaling.fit(scores, scaling.pick(truth, 4), 1.0)
    two = scaling.fit(scores + np.arange(300)[:, None], scaling.pick(truth, 4), 1.0)
    assert one.slope == pytest.approx(two.slope, rel=1e-3) and one.bias == pytest.approx(two.bias, abs=1e-3)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_scaling_finds_its_way_in_any_unit(unit: float) -> None:
    scores, truth = draw(600, 4)
    plain = scaling.fit(scores, scaling.pick(truth, 4), None)
    assert scaling.fit(scores * unit, scaling.pick(truth, 4), None).slope * unit == pytest.approx(plain.slope, rel=1e-3)


def test_platts_scaling_is_the_one_that_scikit_learn_finds() -> None:
    chance = np.random.default_rng(5)
    logits = chance.normal(1, 3, 3000)
    right = (chance.random(3000) < 1 / (1 + np.exp(0.5 - 0.5 * logits))).astype(np.float64)
    slope, offset = scaling.fit_chances(logits, right)
    theirs = LogisticRegression(C=1e9).fit(logits[:, None], right)
    assert (slope, offset) == pytest.approx((theirs.coef_[0, 0], theirs.intercept_[0]), abs=0.02)
    assert (slope, offset) == pytest.approx((0.5, -0.5), abs=0.1)


def test_a_confidence_that_says_nothing_or_the_contrary_becomes_the_share() -> None:
    logits = np.linspace(-3, 3, 400)
    right = (logits < 0).astype(np.float64)
    right[::4] = 1
    slope, offset = scaling.fit_chances(logits, right)
    assert slope == 0
    assert 1 / (1 + math.exp(-offset)) == pytest.approx(right.mean(), abs=0.01)


@pytest.mark.parametrize("rows", [20, 60])
def test_what_was_always_right_is_no_certainty(rows: int) -> None:
    slope, offset = scaling.fit_chances(np.full(rows, 2.0), np.ones(rows))
    assert 1 / (1 + math.exp(-(2 * slope + offset))) == pytest.approx((rows + 1) / (rows + 2), abs=1e-3)


def test_a_bias_is_tried_only_where_every_label_has_its_rows_and_kept_only_if_it_helps() -> None:
    scores, truth = draw(400, 4)
    assert [item.ridge for item in scaling.try_all(scores, truth, 401, 1)] == [None]
    plain = scaling.try_all(scores, truth, 5, 1)
    assert [item.nll for item in plain] == sorted(item.nll for item in plain) and len(plain) == 4
    leaning = scores - np.array([4.0, 0, 0, -4]) * WARMTH
    best = scaling.try_all(leaning, truth, 5, 1)[0]
    assert best.ridge is not None
    assert best.name.startswith("temperature and bias")
    assert best.nll == pytest.approx(log_loss(truth, best.probabilities))


@pytest.mark.parametrize("target", [0.6, 0.8, 0.9, 0.99])
def test_a_threshold_is_the_lowest_that_keeps_its_promise(target: float) -> None:
    chance = np.random.default_rng(7)
    confidence = np.round(chance.random(500), 2)  # many are equal
    right = (chance.random(500) < confidence).astype(np.float64)
    found = scaling.find_threshold(confidence, right, target)
    kept = {mark: right[confidence >= mark].mean() for mark in sorted(set(confidence))}
    good = [mark for mark, share in kept.items() if share >= target and (confidence >= mark).sum() >= 20]
    assert found == (None if not good else 0.0 if good[0] == min(kept) else good[0])


def test_no_threshold_is_taken_from_a_handful() -> None:
    confidence = np.linspace(0, 1, 100)
    right = (confidence > 0.85).astype(np.float64)
    assert scaling.find_threshold(confidence, right, 0.99) is None
    assert scaling.find_threshold(confidence, np.ones(100), 0.99) == 0.0


# fit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "calibrations"


def shown(text: str, name: str) -> list[float]:
    """The figures in a line of the report."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
    return [float(word.strip(",;")) for word in line.replace(name, "").split() if word.strip(",;")[-1:].isdigit()]


def answered(rows: Sequence[dict[str, Any]]) -> tuple[list[Row], list[Reply]]:
    """Rows and what the fake says to them, without the way between."""
    read = [Row(line, golden_free(row), row["expected"], True) for line, row in enumerate(rows, 1)]
    return read, [Reply(0.1, Fake().prompt(row.request)) for row in read]


def test_fit_finds_what_makes_the_scores_honest() -> None:
    rows, replies = answered([label_row(number) for number in range(1200)])
    found = fit.fit_labels(TAG, rows, replies, fit.Plan("0" * 64))
    made = found.calibration
    assert made.temperature == pytest.approx(WARMTH, rel=0.25)
    assert np.array(made.bias) - np.mean(made.bias) == pytest.approx(LEANING, abs=0.4)
    assert (made.fit.fitted, made.fit.measured) == (600, 600)
    assert made.fit.after.ece < 0.06 < made.fit.before.ece
    assert made.fit.after.nll < made.fit.before.nll and made.fit.after.brier < made.fit.before.brier
    assert 0.01 < found.honest_ece < 0.06
    assert measures.ece(found.after.chances, found.after.right) == made.fit.after.ece


def test_what_was_fitted_is_put_where_the_service_looks_and_what_is_told_is_what_is_kept(
    main: Callable[..., int], fake: Fake, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lay(tmp_path / "rows", [label_row(number) for number in range(160)])
    picture = tmp_path / "r.png"
    assert main("fit", "--url", fake.url, "--data", data, "--png", picture) == 0
    found = calibration.find(folder, TAG, LABELS[::-1], "content-free")
    assert found is not None
    assert found.fit.data == hashlib.sha256(data.read_bytes()).hexdigest()
    told = capsys.readouterr().out
    assert "fitted on 80 rows; measured on 80 others" in told and "ridge" in told and "15 equally wide" in told
    for name, item in (("as scored", found.fit.before), ("calibrated", found.fit.after)):
        assert shown(told, name) == pytest.approx([item.accuracy, item.ece, item.brier, item.nll], abs=1e-4)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_was_not_fitted_on() -> None:
    rows, replies = answered([label_row(number) for number in range(200)])
    plan = fit.Plan("0" * 64, 0.7, seed=9)
    made = fit.fit_labels(TAG, rows, replies, plan).calibration
    fitted, rest = fit.split(200, plan)
    assert sorted([*fitted, *rest]) == list(range(200)) and len(fitted) == 140
    documents = [rows[place].request["context"]["document"] for place in rest]
    shares = [made.apply(made.labels, scores_of(document, made.labels)) for document in documents]
    truth = np.array([made.labels.index(rows[place].expected) for place in rest])
    after = measures.measure(np.array(shares), truth)
    assert (after.nll, after.ece) == pytest.approx((made.fit.after.nll, made.fit.after.ece), abs=1e-9)


def test_the_threshold_keeps_its_promise_on_the_rest_or_there_is_none() -> None:
    rows, replies = answered([label_row(number) for number in range(800)])
    found = fit.fit_labels(TAG, rows, replies, fit.Plan("0" * 64, target=0.85))
    assert found.reached and 0.4 < found.calibration.abstain_below < 0.9
    assert 0.2 < found.answered < 1 and found.kept == pytest.approx(0.85, abs=0.06)
    told = report.tell_labels(found, fit.Plan("", target=0.85))
    assert shown(told, "abstain_below:")[-2:] == pytest.approx([found.answered, found.kept], abs=1e-3)
    found = fit.fit_labels(TAG, rows, replies, fit.Plan("0" * 64, target=0.99999))
    assert not found.reached and found.calibration.abstain_below == 0.0 and found.answered == 1.0
    assert "abstain_below: none" in report.tell_labels(found, fit.Plan("", target=0.99999))


@pytest.mark.parametrize(("target", "status"), [(0.4, 0), (0.9999, 1)])
def test_a_target_that_was_named_and_not_reached_fails(
    main: Callable[..., int], fake: Fake, folder: Path, tmp_path: Path, target: float, status: int
) -> None:
    data = lay(tmp_path / "rows", [label_row(number) for number in range(60)])
    assert main("fit", "--url", fake.url, "--data", data, "--target-accuracy", target) == status
    assert len(calibration.find_all(folder, TAG)) == 1


def test_a_target_that_nobody_named_does_not_fail(main: Callable[..., int], fake: Fake, tmp_path: Path) -> None:
    rows = [label_row(number, expected=LABELS[number % 3]) for number in range(90)]
    assert main("fit", "--url", fake.url, "--data", lay(tmp_path / "rows", rows)) == 0


def test_what_makes_things_worse_is_not_put_in_force(
    main: Callable[..., int], fake: Fake, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fitted half says that the likeliest label is always right; on the rest the scores are as sure as they say."""
    fitted, _ = fit.split(200, fit.Plan(""))
    chance = np.random.default_rng(0)
    rows = [label_row(number) for number in range(200)]
    for place, row in enumerate(rows):
        shares = weigh(np.array([scores_of(row["context"]["document"], LABELS)]), 1.0)[0]
        row["expected"] = LABELS[shares.argmax()] if place in fitted else str(chance.choice(LABELS, p=shares))
    assert main("fit", "--url", fake.url, "--data", lay(tmp_path / "rows", rows)) == 1
    assert "NOT in force for fake:1" in capsys.readouterr().out
    assert not folder.exists()


def test_no_bias_without_its_rows(
    main: Callable[..., int], fake: Fake, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lay(tmp_path / "rows", [label_row(number) for number in range(200)])
    assert main("fit", "--url", fake.url, "--data", data, "--floor-rows", 90) == 0
    (found,) = calibration.find_all(folder, TAG)
    assert isinstance(found, Calibration) and not any(found.bias)
    assert "no bias tried, as not every label has 90 rows" in capsys.readouterr().out


def test_none_of_these_is_a_label_like_another(
    main: Callable[..., int], fake: Fake, folder: Path, tmp_path: Path
) -> None:
    more = {"none_of_these": True}
    rows = [label_row(number, **more, **({} if number % 4 else {"expected": None})) for number in range(120)]
    assert main("fit", "--url", fake.url, "--data", lay(tmp_path / "rows", rows)) == 0
    (found,) = calibration.find_all(folder, TAG)
    assert isinstance(found, Calibration) and set(found.labels) == {*LABELS, fit.NONE}


def test_the_service_and_we_mean_the_same_by_none_of_these() -> None:

    assert fit.NONE == labels.NONE


def test_rows_that_were_refused_are_left_out_and_counted(
    main: Callable[..., int], fake: Fake, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.refusals = [(400, {}, {"error_type": "context_length_exceeded"})] * 3
    data = lay(tmp_path / "rows", [label_row(number) for number in range(60)])
    assert main("fit", "--url", fake.url, "--data", data, "--concurrency", 1) == 0
    assert "3 of 60 rows were not answered and are left out: 3 context_length_exceeded" in capsys.readouterr().out
    (found,) = calibration.find_all(folder, TAG)
    assert found.fit.fitted + found.fit.measured == 57


def test_fields_get_platts_scaling() -> None:
    rows, replies = answered([value_row(number) for number in range(1500)])
    (found,) = fit.fit_fields(TAG, rows, replies, fit.Plan("0" * 64))
    made = found.calibration
    assert (made.slope, made.offset) == pytest.approx((0.5, -0.5), abs=0.2)
    assert made.fit.after.ece < 0.07 < made.fit.before.ece
    assert made.fit.after.accuracy == made.fit.before.accuracy
    assert [made.apply(raw) for raw in found.before.chances[:9]] == pytest.approx(list(found.after.chances[:9]))


def test_each_schemas_fields_are_put_where_the_service_looks(
    main: Callable[..., int], fake: Fake, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**SCHEMA, "title": "another"}
    rows = [value_row(number) for number in range(80)]
    rows += [value_row(number, schema=other) for number in range(100)]
    data = lay(tmp_path / "rows", rows)
    assert main("fit", "--url", fake.url, "--data", data, "--png", tmp_path / "r.png") == 0
    for schema, values in ((SCHEMA, 40), (other, 50)):
        made = calibration.find_fields(folder, TAG, hashlib.sha256(json.dumps(schema).encode()).hexdigest())
        assert made is not None and (made.fit.fitted, made.fit.measured) == (values, values)
    told = capsys.readouterr().out
    assert "fitted on 40 values" in told and "fitted on 50 values" in told
    assert {path.name for path in tmp_path.glob("*.png")} == {"r.fields.png", "r.fields1.png"}


def test_a_confidence_is_judged_where_value_truth_and_confidence_meet() -> None:
    told = {"confidence": {"/a": {"raw": 0.9}, "/b": {"raw": 0.5}, "/d": {"raw": 0.1}}}
    answer = {"output": '{"a": 1, "b": "x", "c": 2, "d": 3}', "metadata": told}
    row = Row(1, {}, {"a": 1.0, "b": "y", "c": 2, "e": 5}, True)
    assert fit.judge_confidence(row, Reply(0.1, answer)) == [(0.9, True), (0.5, False)]


def _strip(name: str) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda body, reply: reply["metadata"].pop(name)


def _other_prior(body: dict[str, Any], reply: dict[str, Any]) -> None:
    if body["context"]["document"].endswith("7"):
        reply["metadata"]["labels"]["prior"] = "none"


FITTABLE = [label_row(number) for number in range(60)]
UNFIT: dict[str, tuple[list[dict[str, Any]], Any, str]] = {
    "too few": (FITTABLE[:30], None, "30 answered rows are too few"),
    "nothing expected": ([*FITTABLE, golden_free(label_row(1))], None, "line 61: nothing is expected"),
    "not its label": ([*FITTABLE, label_row(1, expected="bill")], None, "line 61: what is expected is none"),
    "two label sets": ([*FITTABLE, label_row(1, labels=LABELS[:2])], None, "2 different questions"),
    "two priors": (FITTABLE, _other_prior, "2 different questions"),
    "no scores": (FITTABLE, _strip("labels"), "no metadata.labels"),
    "no confidence": ([value_row(number) for number in range(60)], _strip("confidence"), "no metadata.confidence"),
    "all right": ([value_row(n, expected={"total": n}) for n in range(60)], None, "10 right and as many wrong"),
    "nobody answers": (FITTABLE, 401, "401 unauthorized"),
}


@pytest.mark.parametrize(("rows", "change", "reason"), UNFIT.values(), ids=UNFIT.keys())
def test_what_cannot_be_fitted_is_said_and_nothing_is_put_in_force(
    main: Callable[..., int],
    fake: Fake,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    change: Any,
    reason: str,
) -> None:
    if change == 401:
        fake.key = "a key"
    elif change is not None:
        fake.change = change
    assert main("fit", "--url", fake.url, "--data", lay(tmp_path / "rows", rows)) == 2
    assert reason in capsys.readouterr().err
    assert not folder.exists()


# run


def test_run_counts_what_became_of_every_row(
    main: Callable[..., int], fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [value_row(number, expected={"total": number, "paid": number % 2 == 0}) for number in range(8)]
    rows += [label_row(number, abstain_below=0.999 if number < 2 else 0.0) for number in range(6)]
    data = lay(tmp_path / "rows", [*rows, golden_free(value_row(3))])
    fake.refusals = [(422, {}, {"error_type": "answer_truncated"})]
    assert main("run", "--url", fake.url, "--data", data, "--concurrency", 1, "--price-per-hour", 0.9) == 0
    told = capsys.readouterr().out
    assert "15 rows, 1 at once" in told
    # The first row was refused, so both of its values count as wrong.
    assert shown(told, "/total") == [0.875]
    assert shown(told, "/paid") == [0.375]
    assert shown(told, "field_accuracy") == [0.625]
    assert shown(told, "evidence_rate") == [0.5]
    assert shown(told, "error_rate") == [pytest.approx(1 / 15, abs=1e-4)]
    assert shown(told, "error answer_truncated:") == [1]
    right = [label == row["expected"] for row in rows[8:] if (label := fake.decide(row)["output"]["label"]) is not None]
    assert shown(told, "label_accuracy") == [pytest.approx(sum(right) / 6, abs=1e-4)]
    assert shown(told, "answered_accuracy") == [pytest.approx(sum(right) / len(right), abs=1e-4)]
    assert shown(told, "abstain_rate") == [pytest.approx(1 - len(right) / 6, abs=1e-4)]
    hourly, cost = shown(told, "documents_per_hour")[0], shown(told, "cost_per_1000")[0]
    assert cost == pytest.approx(900 / hourly, rel=1e-3)


def test_times_are_percentiles_of_what_was_answered() -> None:
    answer = {"output": "{}", "metadata": {}}
    replies = [Reply(float(second), answer) for second in range(101)] + [Reply(999.0, error="timeout")]
    found = run.measure([Row(n, {}) for n in range(102)], replies, 3600.0, None)
    assert (found.figures["p50"], found.figures["p95"]) == (50, 95)
    assert found.figures["documents_per_hour"] == 101
    assert found.figures["cost_per_1000"] is None
    assert found.errors == {"timeout": 1}


@pytest.mark.parametrize("rows", [[Row(1, {})], [Row(1, {"labels": ["a"]})]])
def test_nothing_to_measure_is_no_figure_and_the_names_are_known(rows: list[Row]) -> None:
    found = run.measure(rows, [Reply(1.0, error="timeout")], 1.0, 0.9)
    assert tuple(found.figures) == run.NAMES
    assert {name for name, figure in found.figures.items() if figure is not None} == {"error_rate"}


def test_a_row_without_an_answer_is_wrong_in_all_it_should_have_said() -> None:
    rows = [Row(1, {"labels": ["a"]}, "a", True), Row(2, {}, {"a": {"b": 1, "c": [1, 2]}}, True)]
    found = run.measure(rows, [Reply(1.0, error="timeout")] * 2, 1.0, None)
    assert (found.figures["label_accuracy"], found.figures["field_accuracy"]) == (0, 0)
    assert found.fields == {"/a/b": 0, "/a/c/*": 0}
    assert found.figures["answered_accuracy"] is None


def test_none_of_these_is_right_only_if_it_was_said_without_abstaining() -> None:
    row = Row(1, {"labels": ["a"], "none_of_these": True}, None, True)
    said = [{"label": None, "abstained": abstained} for abstained in (False, True)]
    replies = [Reply(1.0, {"output": json.dumps(output), "metadata": {}}) for output in said]
    assert run.measure([row] * 2, replies, 1.0, None).figures["label_accuracy"] == 0.5


GATES = [
    (["--floor", "field_accuracy=0.5"], 0, "passed: 1 bounds hold"),
    (["--floor", "field_accuracy=0.50001"], 1, "NOT PASSED: field_accuracy is 0.5, below 0.50001"),
    (["--floor", "/total=1", "--floor", "/paid=0.1"], 1, "NOT PASSED: /paid is 0, below 0.1"),
    (["--ceiling", "p95=600", "--floor", "evidence_rate=0.5"], 0, "passed: 2 bounds hold"),
    (["--ceiling", "p95=0"], 1, "above 0"),
    (["--ceiling", "error_rate=0"], 0, "passed"),
    (["--floor", "label_accuracy=0"], 1, "NOT PASSED: label_accuracy was not measured"),
    (["--ceiling", "cost_per_1000=9"], 1, "NOT PASSED: cost_per_1000 was not measured"),
    (["--floor", "/nothing=0"], 1, "NOT PASSED: /nothing was not measured"),
]


@pytest.mark.parametrize(("bounds", "status", "told"), GATES)
def test_the_gate_opens_only_for_what_was_measured_and_holds(
    main: Callable[..., int],
    fake: Fake,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bounds: list[str],
    status: int,
    told: str,
) -> None:
    data = lay(tmp_path / "rows", [value_row(number, expected={"total": number, "paid": 1}) for number in range(4)])
    assert main("run", "--url", fake.url, "--data", data, *bounds) == status
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--floor", "field_acuracy=0.9"],
        ["--floor", "field_accuracy=nan"],
        ["--ceiling", "p95"],
        ["--ceiling", "p95=inf"],
        ["--concurrency", "0"],
        ["--labels", "nowhere.json"],
    ],
)
def test_a_gate_that_was_not_understood_is_shut(
    main: Callable[..., int], fake: Fake, tmp_path: Path, wrong: list[str]
) -> None:
    assert main("run", "--url", fake.url, "--data", lay(tmp_path / "rows", [value_row(1)]), *wrong) == 2
    assert not fake.seen


@pytest.mark.parametrize("wrong", [["--split", "1"], ["--target-accuracy", "0"], ["--floor-rows", "0"]])
def test_a_fit_that_was_not_understood_asks_nothing(
    main: Callable[..., int], fake: Fake, tmp_path: Path, wrong: list[str]
) -> None:
    assert main("fit", "--url", fake.url, "--data", lay(tmp_path / "rows", FITTABLE), *wrong) == 2
    assert not fake.seen


def test_a_service_that_is_not_there_passes_no_gate(main: Callable[..., int], tmp_path: Path) -> None:
    assert main("run", "--url", "http://127.0.0.1:9", "--data", lay(tmp_path / "rows", [value_row(1)])) == 2


def test_the_key_may_stand_in_the_environment(
    main: Callable[..., int], fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.key = "first"
    data = lay(tmp_path / "rows", [value_row(1)])
    assert main("run", "--url", fake.url, "--data", data) == 2
    monkeypatch.setenv("ZOPILOT_GPU_API_KEY", "first, second")
    assert main("run", "--url", fake.url, "--data", data) == 0
    assert main("run", "--url", fake.url, "--data", data, "--key", "other") == 2


# replay


@pytest.fixture
def recorded(main: Callable[..., int], fake: Fake, tmp_path: Path) -> Path:
    """50 answers: values greedy and drawn, and labels."""
    rows = [value_row(number) for number in range(20)]
    rows += [value_row(number, temperature=0.7) for number in range(10)]
    rows += [label_row(number) for number in range(20)]
    path = tmp_path / "replies"
    assert main("run", "--url", fake.url, "--data", lay(tmp_path / "rows", rows), "--record", path) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert not path.with_name("replies.part").exists()
    return path


def test_what_is_asked_again_unchanged_is_proven_with_the_seed_that_was_drawn(
    main: Callable[..., int], fake: Fake, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.seen.clear()
    assert main("replay", "--url", fake.url, "--data", recorded) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "50 of 50 proven"
    assert sorted(body.get("seed", 0) for body in fake.seen) == [0] * 40 + [4711] * 10


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another prompt": (lambda line: line["request"].update(prompt="Extract!"), "differs: input"),
    "another document": (lambda line: line["request"]["context"].update(document="total 8"), "differs: input, output"),
    "another output": (lambda line: line["reply"].update(output="{}"), "differs: output is not what its receipt says"),
    "another receipt of it": (lambda line: line["reply"]["metadata"]["receipt"].update(output="0"), "differs: output"),
    "other weights": (lambda line: line["reply"]["metadata"]["receipt"].update(weights="0"), "differs: weights"),
    "another version": (
        lambda line: line["reply"]["metadata"]["receipt"]["versions"].update(torch="1"),
        "differs: versions.torch",
    ),
    "a version more": (
        lambda line: line["reply"]["metadata"]["receipt"]["versions"].update(jax="1"),
        "differs: versions.jax",
    ),
    "another schema": (lambda line: line["request"].update(schema={"type": "object"}), "differs: form"),
    "another seed": (
        lambda line: line["request"].update(seed=3),
        "differs: sampling.seed, seed is not the one that was asked for",
    ),
    "other evidence": (lambda line: line["reply"]["metadata"]["evidence"].clear(), "differs: evidence"),
    "no receipt": (lambda line: line["reply"]["metadata"].pop("receipt"), "differs: receipt is missing"),
    "no metadata": (lambda line: line["reply"].pop("metadata"), "differs: receipt is missing"),
}


@pytest.mark.parametrize(("tamper", "told"), TAMPERED.values(), ids=TAMPERED.keys())
def test_what_was_changed_is_disproven_and_the_rest_is_not(
    main: Callable[..., int],
    fake: Fake,
    recorded: Path,
    capsys: pytest.CaptureFixture[str],
    tamper: Callable[[dict[str, Any]], Any],
    told: str,
) -> None:
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    tamper(lines[6])
    assert main("replay", "--url", fake.url, "--data", lay(recorded, lines)) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [f"line 7: disproven, {told}", "49 of 50 proven"]


def test_a_seed_that_was_not_the_one_drawn_is_disproven(recorded: Path) -> None:
    _, request, reply = golden.read_replies(recorded)[25]
    fresh = Reply(0.1, reply)
    assert request["temperature"] and replay.judge(26, request, reply, fresh).proven
    assert replay.judge(26, {**request, "seed": 4711}, reply, fresh).proven
    assert not replay.judge(26, {**request, "seed": 4712}, reply, fresh).proven


def test_without_a_second_answer_nothing_is_proven(
    main: Callable[..., int], fake: Fake, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    fake.refusals = [(504, {}, {"error_type": "deadline_exceeded"})]
    assert main("replay", "--url", fake.url, "--data", recorded, "--concurrency", 1) == 1
    assert capsys.readouterr().out == "line 1: not proven, no second answer: deadline_exceeded\n49 of 50 proven\n"


def test_a_service_that_says_something_else_each_time_is_found_out(
    main: Callable[..., int], fake: Fake, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(body: dict[str, Any], reply: dict[str, Any]) -> None:
        if body["context"]["document"] == "document 3":
            reply["output"] = reply["output"].replace("null", "1").replace("false", "true")
            reply["metadata"]["receipt"]["output"] = hide(reply["output"])

    fake.change = spoil
    assert main("replay", "--url", fake.url, "--data", recorded) == 1
    assert "differs: output\n49 of 50 proven" in capsys.readouterr().out


def decision(invoice: float, label: str = "invoice", **other: Any) -> str:
    shares = {"invoice": invoice, "letter": 1 - invoice}
    return json.dumps({"label": label, "probability": max(shares.values()), "probabilities": shares} | other)


NEAR = [
    (decision(0.7), decision(0.7), True, 0.0),
    (decision(0.7), decision(0.705), True, 0.005),
    (decision(0.7), decision(0.72), False, 0.0),
    (decision(0.7), decision(0.7, "letter"), False, 0.0),
    (decision(0.7), decision(0.7, abstained=True), False, 0.0),
    (decision(0.7, probability=0.9), decision(0.701), False, 0.0),
    (decision(0.7, probabilities={"invoice": 0.7}), decision(0.7), False, 0.0),
    (decision(0.7, probabilities={"invoice": "0.7", "letter": 0.3}), decision(0.701), False, 0.0),
    ('{"total": 1}', '{"total": 1.001}', False, 0.0),
    ("[]", "[ ]", False, 0.0),
    ("{", decision(0.7), False, 0.0),
]


@pytest.mark.parametrize(("before", "after", "proven", "distance"), NEAR)
def test_probabilities_may_be_rounded_otherwise_but_not_the_decision(
    before: str, after: str, proven: bool, distance: float
) -> None:
    one, two = (
        {"output": text, "metadata": {"receipt": {"input": "i", "output": hide(text)}}} for text in (before, after)
    )
    verdict = replay.judge(1, {}, one, Reply(0.1, two), 0.01)
    assert verdict.proven == proven and verdict.distance == pytest.approx(distance)
    assert replay.judge(1, {}, one, Reply(0.1, two)).proven == (before == after)
    told = report.tell_replay([verdict, replay.Verdict(2)])
    assert ("2 of 2 proven" in told) == proven and ("differ by up to 0.005" in told) == (distance > 0)


def test_a_forged_output_is_found_however_near_it_is() -> None:
    reply = {"output": decision(0.7), "metadata": {"receipt": {"input": "i", "output": "h"}}}
    forged = {**reply, "output": decision(0.7001)}
    assert not replay.judge(1, {}, forged, Reply(0.1, reply), 0.01).proven


@pytest.mark.parametrize("tolerance", ["inf", "nan", "1", "-0.1"])
def test_no_tolerance_lets_everything_pass(
    main: Callable[..., int], fake: Fake, recorded: Path, tolerance: str
) -> None:
    assert main("replay", "--url", fake.url, "--data", recorded, "--tolerance", tolerance) == 2


@pytest.mark.parametrize("text", ["", "{}", '{"request": {}, "reply": []}', '{"request": 1, "reply": {}}', "x"])
def test_what_is_no_record_is_refused(
    main: Callable[..., int], fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "replies"
    path.write_text(text)
    assert main("replay", "--url", fake.url, "--data", path) == 2
    assert "replies" in capsys.readouterr().err


# As an operator runs it


def test_a_path_means_what_it_says_from_where_the_caller_stands(fake: Fake, tmp_path: Path) -> None:
    """The wrapper, whose environment is taken to be installed: this one."""
    lock = (ROOT / "verification" / "requirements.lock").read_bytes()
    check, size = subprocess.run(["cksum"], input=lock, capture_output=True, check=True).stdout.decode().split()
    folder = tmp_path / "zopilot-verify" / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / f"installed-{check}-{size}").touch()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    lay(tmp_path / "rows.jsonl", [value_row(1, expected={"total": 1})])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ZOPILOT", "BENTOML"))}
    environ = {**inherited, "XDG_CACHE_HOME": str(tmp_path)}
    for name, status in (("rows.jsonl", 0), ("rows.json", 2)):
        command = [str(ROOT / "scripts" / "verify"), "run", "--url", fake.url, "--data", name, "--floor", "/total=1"]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
    assert "rows.json: No such file" in done.stderr


def test_it_asks_for_no_model_library() -> None:
    names = ("verification.__main__", "verification.diagram")
    code = f"import sys, {', '.join(names)}; print(*{{'torch', 'transformers', 'bentoml'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_its_lock_names_all_that_it_imports_in_the_projects_own_versions() -> None:
    def pinned(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text().splitlines()
        found = dict(line.split("==") for line in lines if "==" in line)
        return {key.lower().replace("_", "-"): version for key, version in found.items()}

    ours = pinned("verification/requirements.lock")
    assert {"httpx", "matplotlib", "numpy", "scipy", "tqdm"} <= set(ours)
    for other in ("requirements.lock", "benchmarks/requirements.lock"):
        theirs = pinned(other)
        assert {name: ours[name] for name in ours.keys() & theirs.keys()} == {
            name: theirs[name] for name in ours.keys() & theirs.keys()
        }


# The real service


@pytest.fixture
def golden_real(tmp_path: Path) -> Path:
    """Values greedy and drawn, and labels, of which one begins another; what is expected is of no importance."""
    form = {
        "type": "object",
        "properties": {"total": {"type": "number"}, "number": {"type": "string", "maxLength": 8}},
        "required": ["total", "number"],
        "additionalProperties": False,
    }
    rows: list[dict[str, Any]] = []
    for number in range(6):
        asked = {"prompt": "Extract.", "context": {"document": f"INVOICE no {number}77\ntotal {number}2.50 EUR"}}
        values = {**asked, "schema": form, "max_new_tokens": 64, "allow_partial": True}
        values["expected"] = {"total": 1, "number": "x"}
        rows += [values, {**values, "temperature": 1.5}]
        rows.append({**asked, "labels": ["invoice", "invoice copy", "letter"], "expected": "letter"})
    return lay(tmp_path / "golden", rows)


def test_the_real_service_says_the_same_again_and_a_change_is_found(
    main: Callable[..., int],
    tiny_server: Server,
    golden_real: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "replies"
    bounds = ["--floor", "/total=0", "--floor", "evidence_rate=0", "--ceiling", "error_rate=0", "--ceiling", "p95=60"]
    assert main("run", "--url", tiny_server.url, "--data", golden_real, "--record", path, *bounds) == 0
    told = capsys.readouterr().out
    assert shown(told, "abstain_rate") == [0] and shown(told, "documents_per_hour")[0] > 0
    assert main("replay", "--url", tiny_server.url, "--data", path) == 0
    assert "18 of 18 proven" in capsys.readouterr().out
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["request"]["context"]["document"] += "!"
    lines[1]["reply"]["output"] = lines[1]["reply"]["output"].replace('"total"', '"Total"')
    lines[2]["request"]["labels"].append("receipt")
    assert main("replay", "--url", tiny_server.url, "--data", lay(path, lines)) == 1
    *found, last = capsys.readouterr().out.splitlines()
    assert last.startswith("15 of 18 proven")
    assert ["input" in found[0], "output" in found[1], "form" in found[2]] == [True] * 3


def test_the_real_service_answers_as_it_was_fitted_from_then_on(
    main: Callable[..., int], tiny_home: Path, tiny_server: Server, tmp_path: Path
) -> None:
    """Its scores say nothing, so all there is to learn is that one label is right more often."""
    names = ["fitted a", "fitted b", "fitted c"]
    bodies = [{"prompt": "What?", "context": {"document": f"number {n}"}, "labels": names} for n in range(60)]
    rows = [{**body, "expected": names[(0, 0, 0, 1, 2)[place % 5]]} for place, body in enumerate(bodies)]
    service, out = Service(tiny_server.url), tiny_home / "calibrations"
    data = lay(tmp_path / "rows", rows)
    assert main("fit", "--url", tiny_server.url, "--data", data, "--out", out, "--floor-rows", 3) == 0
    found = [item for item in calibration.find_all(out, client.find_tag(service)) if isinstance(item, Calibration)]
    (made,) = [item for item in found if set(item.labels) == set(names)]
    after = client.ask(service, bodies[:5])
    for reply in after:
        told = reply.tell("labels")
        assert told["calibration"] == made.id
        fair = made.apply(names, [told["scores"][name] for name in names])
        assert [reply.output["probabilities"][name] for name in names] == pytest.approx(fair, abs=1e-9)


def test_the_real_services_values_get_their_chances_from_then_on(
    main: Callable[..., int], tiny_home: Path, tiny_server: Server, tmp_path: Path
) -> None:
    """Four of five values are said to be right, whatever they are."""
    form: dict[str, Any] = {"type": "object", "properties": {"late": {"type": "boolean"}}, "required": ["late"]}
    form["additionalProperties"] = False
    bodies = [{"prompt": "Late?", "context": {"document": f"letter {n}"}, "schema": form} for n in range(150)]
    service, out = Service(tiny_server.url), tiny_home / "calibrations"
    said = [reply.output["late"] for reply in client.ask(service, bodies)]
    rows = [{**body, "expected": {"late": said[place] != (place % 5 == 0)}} for place, body in enumerate(bodies)]
    data = lay(tmp_path / "rows", rows)
    assert main("fit", "--url", tiny_server.url, "--data", data, "--out", out) == 0
    (reply,) = client.ask(service, bodies[:1])
    made = calibration.find_fields(out, client.find_tag(service), reply.tell("receipt")["form"])
    told = reply.tell("confidence")["/late"]
    assert made is not None and told["calibrated"] == pytest.approx(made.apply(told["raw"]))
    assert told["calibrated"] == pytest.approx(0.8, abs=0.12)


# benchmarks/banking.py


def bank(path: Path, rows: int) -> Path:
    lines = [f'"Why, {number} is my card late?",topic_{"abcde"[number % 5]}' for number in range(rows)]
    path.write_text("\n".join(["text,category", *lines]) + "\n")
    return path


def test_the_same_seed_draws_the_same_labels_and_rows(tmp_path: Path) -> None:
    path = bank(tmp_path / "bank.csv", 100)
    names, rows = banking.read(path, 3, 40, 1)
    assert (names, rows) == banking.read(path, 3, 40, 1) != banking.read(path, 3, 40, 2)
    assert len(names) == 3 and len(rows) == 40 and names == sorted(names)
    assert {row.expected for row in rows} == set(names) and all(name.startswith("topic ") for name in names)
    assert all(row.request["labels"] == names and row.judged for row in rows)
    assert len({row.request["context"]["document"] for row in rows}) == 40
    assert len(banking.read(path, 5, 1000, 1)[1]) == 100


def test_who_was_right_is_counted_row_by_row() -> None:
    one, other = np.eye(3)[[0, 0, 1, 2]], np.eye(3)[[0, 1, 0, 1]]
    counts = banking.compare(one, other, np.array([0, 0, 0, 0]))
    assert counts == {"both right": 1, "only ours": 1, "only theirs": 1, "none": 1}


def test_both_ways_decide_the_same_rows(tiny_server: Server, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("netcal.metrics", reason="pip install --no-deps netcal==1.4.0")
    told = {"url": tiny_server.url, "key": "", "folder": tiny_folder, "classes": 4, "rows": 60}
    told |= {"split": 0.5, "seed": 1, "theirs": 12, "store": None}
    found = banking.measure(argparse.Namespace(data=bank(tmp_path / "bank.csv", 100), **told))
    assert (found["rows"]["fitted"], found["rows"]["measured"]) == (30, 30)
    assert sum(found["paired"].values()) == 12
    for figures in (found["ours"]["as scored"], found["ours"]["calibrated"], found["pipeline"]):
        assert figures["ece by netcal"] == pytest.approx(figures["ece"], abs=1e-9)
        assert 0 <= figures["accuracy"] <= 1 and figures["seconds a row"] > 0
    assert json.loads(json.dumps(found)) == found
