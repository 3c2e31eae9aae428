"""The benchmark measures what it says: the same questions for all, every answer counted, nothing left out."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import psutil
import pytest

from benchmarks import figures, host, load, record, report, session, wire, workload
from benchmarks.__main__ import _loopback
from benchmarks.failure import Unusable
from benchmarks.load import Load, Run
from benchmarks.processes import complete, end, pause, resume, running, wait_ready
from benchmarks.record import OURS, Contestant, Record, Round
from benchmarks.session import Plan, Seat
from benchmarks.wire import Answer, Dialect, Server
from benchmarks.workload import Question
from models.question import answer_schema, render, task
from models.store import Loaded
from serving.protocol import Prompt
from tests.conftest import ROOT, free_port
from tests.conftest import Server as Running

GOOD = json.dumps(
    {"kind": "letter", "sender": "a", "number": "1", "date": "", "currency": "EUR", "total": "1", "paid": True}
)
CHAT = Server("peer", "", "m", Dialect(schema=True, stream=False), "on")


# The workload


def test_the_same_seed_asks_the_same_and_another_asks_others() -> None:
    assert workload.make("a", 9) == workload.make("a", 9)
    first, other = workload.make("a", 9), workload.make("b", 9)
    assert sorted(item.tokens for item in first) == sorted(item.tokens for item in other)
    assert not {item.document for item in first} & {item.document for item in other}


@pytest.mark.parametrize("count", [1, 2, 32])
def test_documents_are_as_long_as_stated(smollm2: Loaded, count: int) -> None:
    lengths = workload.spread(count)
    assert lengths[0] >= workload.SHORTEST and lengths[-1] <= workload.LONGEST
    for question in workload.make("lengths", count):
        counted = len(smollm2.tokenizer.encode(question.document, add_special_tokens=False))
        assert abs(counted - question.tokens) <= max(24, 0.06 * question.tokens), question.kind


def test_all_kinds_are_asked_and_lengths_span_the_range() -> None:
    asked = workload.make("kinds", 32)
    assert {item.kind for item in asked} == {"receipt", "invoice", "letter"}
    assert {min(item.tokens for item in asked), max(item.tokens for item in asked)} == {200, 3000}


def test_the_total_is_the_sum_of_what_is_listed() -> None:
    for question in workload.make("sums", 8):
        *lines, total = [line.split()[-1] for line in question.document.splitlines() if line[-3:-2] == "."]
        assert sum(round(float(line) * 100) for line in lines) == round(float(total) * 100)


def question_text(asked: Prompt) -> str:
    return render(asked.prompt, asked.context, task(answer_schema(asked)))


def test_a_peer_reads_letter_for_letter_what_our_model_reads() -> None:
    (question,) = workload.make("same", 1)
    path, body = wire.request(Server(OURS, ""), question)
    asked = Prompt.parse(json.dumps(body).encode())
    assert path == "/prompt"
    assert workload.render(question) == question_text(asked)
    _, chat = wire.request(CHAT, question)
    assert chat["messages"] == [{"role": "user", "content": workload.render(question)}]
    assert chat["response_format"]["json_schema"]["schema"] == body["schema"] == workload.SCHEMA
    assert (chat["max_tokens"], chat["temperature"]) == (body["max_new_tokens"], body["temperature"])


def test_a_good_answer_exists() -> None:
    jsonschema.Draft202012Validator.check_schema(workload.SCHEMA)
    assert wire.judge(GOOD, workload.SCHEMA) == "valid"


# The figures


def test_percentiles_are_those_of_a_known_sample() -> None:
    sample = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [figures.percentile(sample, rank) for rank in (0, 50, 75, 95, 100)] == [1, 3, 4, pytest.approx(4.8), 5]
    assert figures.percentile([7.0], 99) == 7 and figures.percentile([], 50) is None


def test_a_run_is_counted_by_hand() -> None:
    answers = (
        Answer("valid", 1.0, 0.5, 10, "stop"),
        Answer("unfit", 3.0, None, 20, "stop"),
        Answer("broken", 5.0, 1.5, 30, "length"),
        Answer("refused", 100.0, detail="HTTP 429"),
        Answer("failed", 200.0, detail="ReadError"),
    )
    found = figures.measure(Run(10.0, answers))
    assert (found.documents, found.usable, found.tokens) == (0.3, 0.1, 6.0)
    assert (found.p50, found.first) == (3.0, 1.0)
    assert found.p99 == pytest.approx(4.96)
    assert (found.json, found.schema, found.refused, found.failed) == (0.4, 0.2, 1, 1)


def test_nothing_done_has_no_latency() -> None:
    found = figures.measure(Run(2.0, (Answer("refused", 1.0),)))
    assert (found.documents, found.p50, found.first, found.schema) == (0, None, None, 0)


def test_ratios_are_taken_round_by_round() -> None:
    found = figures.compare([1.0, 4.0, 3.0], [2.0, 2.0, 1.0])
    assert found == figures.Compared(value=3.0, ratio=2.0, low=0.5, high=3.0)
    assert figures.compare([1.0], [0.0]) == figures.Compared(1.0, None, None, None)
    assert figures.compare([None], [1.0]) is None
    assert figures.spread([1.0, 2.0, 4.0]) == figures.Compared(2.0, 1.0, 0.5, 2.0)


# The clients, against a small server of our own

Reply = tuple[int, bytes] | tuple[int, bytes, str] | None


@asynccontextmanager
async def served(script: Callable[[dict[str, Any]], Reply], delay: float = 0.0) -> AsyncIterator[str]:
    """An HTTP server that answers a body as `script` says; None hangs up without a word."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            reply = script(json.loads(await reader.readexactly(length)))
            await asyncio.sleep(delay)
            if reply is not None:
                status, body, kind = reply if len(reply) == 3 else (*reply, "application/json")
                top = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}"]
                writer.write("\r\n".join([*top, "connection: close", "", ""]).encode() + body)
                await writer.drain()
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.create_task(handle(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the loop's next turn


def chat_reply(text: str, tokens: int = 3, finish: str = "stop") -> bytes:
    choice = {"message": {"content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": tokens}}).encode()


def stream_reply(pieces: Sequence[str], finish: str | None = "stop", usage: int = 0) -> bytes:
    events: list[Any] = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events += [{"choices": [{"delta": {}, "finish_reason": finish}]}]
    events += [{"choices": [], "usage": {"completion_tokens": usage}}] if usage else []
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


def ask_all(script: Callable[[dict[str, Any]], Reply], wanted: Load, count: int, **limits: float) -> Run:
    """One load on a scripted chat server."""

    async def go() -> Run:
        async with served(script, limits.get("delay", 0.0)) as url, httpx.AsyncClient(timeout=None) as client:
            server = replace(CHAT, url=url)

            async def ask(question: Question, due: float) -> Answer:
                return await wire.ask(client, server, question, due, limits.get("timeout", 5.0))

            return await load.run(wanted, workload.make("load", count), ask, "s", limits.get("limit", 10.0))

    return asyncio.run(go())


def test_every_outcome_is_counted_as_what_it_is() -> None:
    replies: list[Reply] = [
        (200, chat_reply(GOOD)),
        (200, chat_reply("{}")),
        (200, chat_reply('{"kind": "let', finish="length")),
        (200, chat_reply(f"```json\n{GOOD}\n```")),
        (429, b'{"error": "full"}'),
        (503, b"loading"),
        None,
        (200, b"not json"),
        (200, b'{"choices": []}'),
    ]
    waiting = list(replies)
    run = ask_all(lambda body: waiting.pop(), Load(clients=2), len(replies))
    outcomes = [answer.outcome for answer in run.answers]
    counted = {outcome: outcomes.count(outcome) for outcome in outcomes}
    assert counted == {"valid": 1, "unfit": 1, "broken": 2, "refused": 2, "failed": 3}
    assert any(answer.detail.startswith("HTTP 429") for answer in run.answers)
    assert figures.measure(run).documents == pytest.approx(4 / run.seconds)


@pytest.mark.parametrize("wanted", [Load(clients=1), Load(clients=4), Load(rate=200.0)])
def test_each_question_is_asked_once(wanted: Load) -> None:
    seen: list[str] = []

    def script(body: dict[str, Any]) -> Reply:
        seen.append(body["messages"][0]["content"])
        return 200, chat_reply(GOOD)

    run = ask_all(script, wanted, 9)
    assert sorted(seen) == sorted(workload.render(question) for question in workload.make("load", 9))
    assert [answer.outcome for answer in run.answers] == ["valid"] * 9


def test_a_closed_loop_keeps_so_many_open_and_no_more() -> None:
    run = ask_all(lambda body: (200, chat_reply(GOOD)), Load(clients=3), 9, delay=0.1)
    assert 0.3 <= run.seconds < 0.8


def test_an_open_loop_counts_from_when_a_question_was_due() -> None:
    times = load.arrivals(0.5, 4000, "x")
    assert times == sorted(times) and times == load.arrivals(0.5, 4000, "x") != load.arrivals(0.5, 4000, "y")
    assert times[-1] / 4000 == pytest.approx(2.0, rel=0.1)

    async def slow(question: Question, due: float) -> Answer:
        time.sleep(0.05)  # the whole loop stands still; those who are due meanwhile have waited
        return Answer("valid", time.perf_counter() - due)

    run = asyncio.run(load.run(Load(rate=1000.0), workload.make("due", 8), slow, "s", 5.0))
    assert max(answer.seconds for answer in run.answers) > 0.25


def test_what_is_not_answered_in_time_has_failed() -> None:
    run = ask_all(lambda body: (200, chat_reply(GOOD)), Load(clients=2), 4, delay=0.5, timeout=0.1)
    assert {(answer.outcome, answer.detail) for answer in run.answers} == {("failed", "no answer within 0.1 s")}
    run = ask_all(lambda body: (200, chat_reply(GOOD)), Load(clients=2), 4, delay=0.5, limit=0.7)
    assert [answer.outcome for answer in run.answers] == ["valid", "valid", "failed", "failed"]
    assert run.seconds < 1.0


def test_a_stream_gives_its_first_token_and_its_count() -> None:
    half = len(GOOD) // 2
    body = stream_reply(["", GOOD[:half], GOOD[half:]], usage=7)
    (answer,) = ask_all(lambda _: (200, body, "text/event-stream"), Load(clients=1), 1).answers
    assert (answer.outcome, answer.tokens, answer.finish) == ("valid", 7, "stop")
    assert answer.first is not None and 0 < answer.first <= answer.seconds
    uncounted = stream_reply([GOOD[:half], GOOD[half:]])
    (answer,) = ask_all(lambda _: (200, uncounted, "text/event-stream"), Load(clients=1), 1).answers
    assert answer.tokens == 2
    torn = stream_reply([GOOD[:half]], finish=None)
    (answer,) = ask_all(lambda _: (200, torn, "text/event-stream"), Load(clients=1), 1).answers
    assert answer.outcome == "failed"
    (answer,) = ask_all(lambda _: (200, b'data: {"error": "x"}\n\n', "text/event-stream"), Load(clients=1), 1).answers
    assert answer.outcome == "refused"


def learned(script: Callable[[dict[str, Any]], Reply]) -> Server:
    async def go() -> Server:
        async with served(script) as url, httpx.AsyncClient(timeout=None) as client:
            return await wire.learn(client, "peer", url, "m")

    return asyncio.run(go())


def test_a_peer_is_asked_for_all_that_it_takes_and_no_more() -> None:
    fruit = chat_reply('{"fruit": "quince"}')

    def refuses(*fields: str) -> Callable[[dict[str, Any]], Reply]:
        return lambda body: (422, b"no") if set(fields) & set(body) else (200, fruit)

    assert learned(refuses()).dialect == Dialect(schema=True, stream=True, usage=True)
    assert learned(refuses("stream_options")).dialect == Dialect(schema=True, stream=True)
    assert learned(refuses("stream")).dialect == Dialect(schema=True, stream=False)
    plain = learned(refuses("response_format", "stream_options"))
    assert (plain.dialect, plain.schema) == (Dialect(schema=False, stream=True), "off: refused")
    deaf = learned(lambda body: (200, chat_reply("A hammer.")))
    assert deaf.dialect is not None
    assert (deaf.dialect.schema, deaf.schema) == (False, "off: ignored")
    with pytest.raises(Unusable, match="HTTP 500"):
        learned(lambda body: (500, b"broken"))


# The report


def round_of(server: str, number: int, wanted: Load, seconds: float, outcome: wire.Outcome = "valid") -> Round:
    return Round(server, number, wanted, Run(seconds, (Answer(outcome, seconds, None, 10, "stop"),)))


def sample() -> Record:
    wanted = Load(clients=16)
    contestants = [
        Contestant(OURS, "ours"),
        Contestant("fast", "a peer", belief="it is", versions={"torch": "2"}, installed="installed in 3 s"),
        Contestant("slow", "a peer", schema="off: refused"),
        Contestant("gone", "a peer", absent="needs a | torch that is not to be had"),
    ]
    rounds = [round_of(OURS, number, wanted, 2.0) for number in range(2)]
    rounds += [round_of("fast", number, wanted, 1.0) for number in range(2)]
    rounds += [round_of("slow", 0, wanted, 8.0), round_of("slow", 1, wanted, 4.0, "refused")]
    return Record({"CPU": "a CPU", "cores": "2", "date": "today"}, {"rounds": "2"}, contestants, rounds)


def test_the_report_leaves_nobody_out() -> None:
    text = report.markdown(sample())
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert list(rows) == ["", "---", OURS, "fast", "slow", "gone"]
    assert "1.000 **2.00x** (2.00-2.00)" in rows["fast"]  # a row that we lose
    assert "0.062 0.12x (0.00-0.25)" in rows["slow"] and "**" not in rows["slow"]
    assert "off: refused" in rows["slow"] and "1 refused, 0 failed" in rows["slow"]
    assert "missing: needs a / torch that is not to be had" in rows["gone"]
    assert len({line.count("|") for line in rows.values()}) == 1
    assert "a CPU" in text and "torch 2" in text and "installed in 3 s" in text and "we believe: it is" in text


def test_no_figure_stands_without_its_ratio() -> None:
    rows = [line for line in report.markdown(sample()).splitlines() if line.startswith(("| fast", "| slow"))]
    for row in rows:
        for cell in row.strip("| ").split(" | ")[2:-1]:
            assert cell == "-" or "x" in cell, cell


def test_a_first_token_is_compared_with_our_whole_answer() -> None:
    found = sample()
    streamed = Run(1.0, (Answer("valid", 1.0, 0.5, 10, "stop"),))
    found.rounds.append(Round("streams", 0, Load(clients=16), streamed))
    (column,) = [column for column in report.COLUMNS if column.title == "first token s"]
    cell = report.compared(found, "streams", Load(clients=16), column)
    assert cell is not None and (cell.value, cell.ratio) == (0.5, 0.25)
    assert report.compared(found, OURS, Load(clients=16), column) is None


def test_the_file_comes_back_as_it_was(tmp_path: Path) -> None:
    found = sample()
    found.rounds.append(Round("slow", 2, Load(rate=0.5), Run(1.0, (Answer("failed", 1.0, detail="gone"),))))
    record.write(found, tmp_path / "bench.json")
    assert record.read(tmp_path / "bench.json") == found
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    plot.draw(sample(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_host_is_named(tmp_path: Path) -> None:
    facts = host.describe(ROOT)
    assert all(facts[name] for name in ("CPU", "cores", "memory", "date", "commit"))
    (tmp_path / "cpuinfo").write_text("model name\t: A CPU\nflags\t\t: fpu avx2 avx512f\n")
    assert host.processor(tmp_path / "cpuinfo") == "A CPU (avx2, avx512f)"
    assert host.versions(ROOT / ".venv", ("httpx", "no-such-thing")) == {"httpx": httpx.__version__}


# Processes

FAMILY = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"


def test_a_family_is_paused_and_ended_whole(tmp_path: Path) -> None:
    with running([sys.executable, "-c", f"{FAMILY}; time.sleep(99)"], tmp_path / "log", tmp_path) as head:
        while not head.children():
            time.sleep(0.01)
        members = [head, *head.children()]
        pause(head)
        end_by = time.monotonic() + 5  # a signal takes its time
        while {member.status() for member in members} != {psutil.STATUS_STOPPED}:
            assert time.monotonic() < end_by
        resume(head)
        assert psutil.STATUS_STOPPED not in {member.status() for member in members}
        pause(head)  # as it is when a benchmark is interrupted
    assert not any(member.is_running() for member in members)


def test_an_orphan_is_ended_as_well(tmp_path: Path) -> None:
    with running([sys.executable, "-c", f"{FAMILY}"], tmp_path / "log", tmp_path) as head:
        head.wait(20)
        orphans = [process for process in psutil.process_iter() if os.getsid(process.pid) == head.pid]
        assert orphans
        end(head)
    assert not any(process.is_running() for process in orphans)


def test_a_failed_step_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="no such wheel"):
        complete([sys.executable, "-c", "import sys; sys.exit('no such wheel')"], tmp_path / "log", tmp_path, 20)
    with pytest.raises(Unusable, match="not done after"):
        complete([sys.executable, "-c", "import time; time.sleep(99)"], tmp_path / "log", tmp_path, 0.2)
    dying = [sys.executable, "-c", "print('no memory')"]
    with running(dying, tmp_path / "log", tmp_path) as head, pytest.raises(Unusable, match="no memory"):
        wait_ready(head, f"http://127.0.0.1:{free_port()}", tmp_path / "log", 20)


@pytest.mark.parametrize("url", ["http://10.0.0.1:80", "http://example.com", "http://192.168.1.2", "nonsense"])
def test_only_this_machine_is_asked(url: str) -> None:
    with pytest.raises(Exception, match="not on this machine"):
        _loopback(url)
    assert _loopback("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000"


# The whole


def test_turns_alternate_and_ask_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    async def measure(seat: Seat, wanted: Load, questions: Sequence[Question], seed: str, plan: Plan) -> Run:
        asked.append((seat.contestant.name, tuple(question.document for question in questions)))
        return Run(1.0, ())

    monkeypatch.setattr(session, "_measure", measure)
    seats = [Seat(Contestant(name, ""), Server(name, "")) for name in (OURS, "a", "b")]
    seats.append(Seat(Contestant("gone", "", absent="why"), None))
    plan = Plan([Load(clients=4)], documents=2, rounds=2, seed=1, timeout=1, limit=1)
    turns = list(session.take_turns(seats, plan))
    assert [turn.server for turn in turns] == [name for name, _ in asked] == [OURS, "a", "b", OURS, "b", "a"]
    assert len({documents for _, documents in asked[:3]}) == len({documents for _, documents in asked[3:]}) == 1
    assert asked[0][1] != asked[3][1]
    assert len(asked[0][1]) == 4  # never fewer than clients


@pytest.mark.slow
def test_our_own_service_is_measured_and_compared(tiny_server: Running, tmp_path: Path) -> None:
    """The whole command, with a peer that is not there."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--cache", str(tmp_path), "--ours", tiny_server.url]
    command += ["--peer", f"gone=http://127.0.0.1:{free_port()}", "--documents", "6", "--clients", "3", "--rate", "2"]
    command += ["--rounds", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    found = record.read(out)
    assert [(turn.server, len(turn.run.answers)) for turn in found.rounds] == [(OURS, 6)] * 4
    outcomes = {answer.outcome for turn in found.rounds for answer in turn.run.answers}
    assert outcomes <= {"valid", "refused"}  # a random model may not end by itself; it is never invalid
    assert "ConnectError" in found.contestants[1].absent
    assert report.markdown(found) in done.stdout
