"""models/inquiry.py: a question to many windows, answered by a reader that is always right about what it is shown."""

import asyncio
import json
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import audit
from models.failure import Failure
from models.inquiry import NOTE, Inquiry
from models.pooling import pool
from models.question import Answer, Question, answer_schema, find_document, render
from models.windows import MOST
from serving.protocol import Prompt

ROOM = 1500  # characters of a prompt
TOTAL = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
ROW = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "price": {"type": "number"}},
    "required": ["name", "price"],
}
BILL = {
    "type": "object",
    "properties": {
        "number": {"type": "string", "x-evidence": "required"},
        "total": {"type": "number"},
        "note": {"type": "string"},
        "rows": {"type": "array", "items": ROW, "minItems": 1, "maxItems": 2000},
    },
    "required": ["number", "total", "rows"],
    "x-check": [{"rule": "sum", "of": ["/rows/*/price"], "equals": "/total", "on_fail": "error"}],
}
Reader = Callable[[str], Any]


def ask(**fields: Any) -> Question:
    asked: Question = Prompt.model_validate({"prompt": "What?", **fields})
    return asked


def measure(question: Question) -> int:
    return len(render(question.prompt, question.context, []))


def shown(question: Question) -> str:
    document = find_document(question.prompt, question.context)
    return "" if document is None else "\n".join(document.pages)


class Said:
    """An answer that is there at once, or when the gate opens; cancelled, it never comes."""

    progress = 0.5

    def __init__(self, answer: Answer | Failure, gate: asyncio.Event | None = None) -> None:
        self.said, self.gate = answer, gate
        self.cancelled = self.waiting = False

    def cancel(self) -> None:
        self.cancelled = True
        if self.gate is not None:
            self.gate.set()

    async def answer(self) -> Answer:
        if self.gate is not None:
            self.waiting = True
            await self.gate.wait()
        if self.cancelled:
            raise asyncio.CancelledError
        if isinstance(self.said, Failure):
            raise self.said
        return self.said


class Oracle:
    """Answers each question by what `read` finds in the document, with evidence as models/audit.py finds it."""

    def __init__(self, read: Reader) -> None:
        self.read = read
        self.asked: list[Question] = []

    def __call__(self, question: Question) -> Said:
        self.asked.append(question)
        value = self.read(shown(question))
        schema = answer_schema(question)
        assert schema is not None
        output = json.dumps(value)
        detail = audit.audit(output, audit.read(question, schema))
        detail["confidence"] = {"/total": {"raw": 1 / len(self.asked), "calibrated": None}}
        return Said(Answer(output, "oracle", "stop", 100, 7, len(self.asked), detail))


def as_it_is(answer: Answer) -> Answer:
    return answer


def run(question: Question, read: Reader, room: int = ROOM, report: bool = False) -> Answer:
    on_conflict: Any = "report" if report else "error"
    return asyncio.run(Inquiry(question, room, measure, Oracle(read), as_it_is, on_conflict).answer())


def total(text: str) -> Any:
    """The last one, as a reader takes it who reads to the end."""
    found = re.findall(r"^Total: (\d+\.\d\d)\b", text, re.MULTILINE)
    return {"total": float(found[-1]) if found else None}


def document(*lines: tuple[int, str], count: int = 400) -> str:
    """One in which these lines stand, all lines being of one length, so that windows do not depend on them."""
    found = [f"line {number:04} of no meaning at all" for number in range(count)]
    for at, line in lines:
        found[at] = f"{line} ".ljust(len(found[0]), ".")
    return "\n".join(found)


def pages_of(text: str, count: int) -> list[str]:
    lines = text.splitlines(keepends=True)
    size = -(-len(lines) // count)
    return ["".join(lines[at : at + size]) for at in range(0, len(lines), size)]


# How a document may be sent; the strings in which offsets then count.
WAYS: dict[str, Callable[[str], tuple[dict[str, Any], list[str]]]] = {
    "context": lambda text: ({"context": {"document": text}}, [text]),
    "prompt": lambda text: ({"prompt": f"What is it?\n \n{text}"}, [f"What is it?\n \n{text}"]),
    "pages": lambda text: ({"context": {"document": pages_of(text, 7), "unit": "EUR"}}, pages_of(text, 7)),
}


def places(answer: Answer, strings: Sequence[str]) -> dict[str, str]:
    """What stands where the evidence says, by pointer."""
    told = answer.detail["evidence"]
    assert all((each["page"] is None) == (len(strings) == 1) for each in told if each["start"] is not None)
    return {
        each["pointer"]: strings[each["page"] or 0][each["start"] : each["end"]]
        for each in told
        if each["start"] is not None
    }


@pytest.mark.parametrize("way", WAYS)
def test_a_value_is_found_wherever_it_stands(way: str) -> None:
    """Around each border of the windows, and in their middle."""
    fields, strings = WAYS[way](document())
    nothing = ask(schema={"properties": {"total": {"type": ["number", "null"]}}}, **fields)
    windows = run(nothing, total).detail["windows"]
    assert windows["count"] == len(windows["pieces"]) > 10
    assert windows["from"] == {"/total": 0}
    starts = [sum(map(len, strings[:number])) for number in range(len(strings))]
    borders = {
        starts[piece["page"] or 0] + piece[side]
        for each in windows["pieces"]
        for piece in each
        for side in ("start", "end")
    }
    lines = {min(border // 33 + by, 399) for border in sorted(borders)[::3] for by in (-1, 0, 1)}
    for line in sorted(lines):
        fields, strings = WAYS[way](document((line, f"Total: {line + 100}.50")))
        answer = run(ask(schema=TOTAL, **fields), total)
        assert json.loads(answer.output) == {"total": line + 100.5}
        assert places(answer, strings) == {"/total": f"{line + 100}.50"}
        told = answer.detail["windows"]
        assert (told["conflicts"], told["uncertain"], told["pieces"]) == ([], [], windows["pieces"])
        holder = told["pieces"][told["from"]["/total"]]
        (found,) = answer.detail["evidence"]
        assert any(
            (piece["page"], piece["start"] <= found["start"], found["end"] <= piece["end"])
            == (found["page"], True, True)
            for piece in holder
        )


@pytest.mark.parametrize("way", WAYS)
def test_two_totals_are_an_error_or_reported(way: str) -> None:
    fields, strings = WAYS[way](document((20, "Total: 31.50"), (377, "Total: 45.70")))
    with pytest.raises(Failure, match="/total") as refused:
        run(ask(schema=TOTAL, **fields), total)
    assert refused.value.code == "windows_conflict"
    assert not re.search("31|45", refused.value.message)
    answer = run(ask(schema=TOTAL, **fields), total, report=True)
    assert json.loads(answer.output) == {"total": 31.5}
    (conflict,) = answer.detail["windows"]["conflicts"]
    assert conflict["pointer"] == "/total"
    assert [each["value"] for each in conflict["candidates"]] == [31.5, 45.7]
    stand = [strings[each["page"] or 0][each["start"] : each["end"]] for each in conflict["candidates"]]
    assert stand == ["31.50", "45.70"]
    assert conflict["candidates"][0]["window"] == answer.detail["windows"]["from"]["/total"] == 0


def test_a_conflict_does_not_tell_names_out_of_the_document() -> None:
    def read(text: str) -> Any:
        return {name: float(at) for name, at in re.findall(r"^(Ada \w+): (\d+\.\d\d)", text, re.MULTILINE)}

    text = document((20, "Ada Lovelace: 31.50"), (377, "Ada Lovelace: 45.70"))
    with pytest.raises(Failure, match=r"/\*") as refused:
        run(ask(schema={"additionalProperties": {"type": "number"}}, context={"document": text}), read)
    assert refused.value.code == "windows_conflict"
    assert "Ada" not in refused.value.message


def test_what_may_be_lost_or_doubled_at_a_cut_is_an_error_unless_a_report_is_wanted() -> None:
    def read(text: str) -> Any:
        """All such lines but one."""
        return {"rows": [float(price) for price in re.findall(r"^Coffee: (\d\.\d\d)", text, re.MULTILINE)][1:]}

    text = document(*((at, "Coffee: 3.50") for at in range(0, 400, 9)))
    rows = {"type": "object", "properties": {"rows": {"type": "array", "items": {"type": "number"}}}}
    question = ask(schema=rows, context={"document": text})
    told = run(question, read, report=True).detail["windows"]
    assert (told["conflicts"], bool(told["uncertain"])) == ([], True)
    with pytest.raises(Failure, match="/rows"):
        run(question, read)


def test_splitting_ends_with_the_deadline() -> None:
    oracle = Oracle(total)
    question = ask(schema=TOTAL, context={"document": document()})
    with pytest.raises(Failure) as refused:
        asyncio.run(Inquiry(question, ROOM, measure, oracle, as_it_is, deadline=0.0).answer())
    assert (refused.value.code, oracle.asked) == ("deadline_exceeded", [])


def test_who_splits_leaves_the_threads_to_others() -> None:
    """Short answers are closed in them."""
    gate = threading.Event()

    def wait(question: Question) -> int:
        gate.wait(30)
        return measure(question)

    async def look() -> None:
        question = ask(schema={}, context={"document": document()})
        inquiries = [Inquiry(question, ROOM, wait, Oracle(total), as_it_is) for _ in range(40)]
        tasks = [asyncio.create_task(inquiry.answer()) for inquiry in inquiries]
        await asyncio.sleep(0)
        try:
            assert await asyncio.wait_for(asyncio.to_thread(int), 10) == 0
        finally:
            for inquiry in inquiries:
                inquiry.cancel()
            gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(look())


def test_the_same_total_twice_is_none() -> None:
    text = document((20, "Total: 31.50"), (377, "Total: 31.50"))
    answer = run(ask(schema=TOTAL, context={"document": text}), total)
    assert json.loads(answer.output) == {"total": 31.5}
    assert answer.detail["evidence"][0]["start"] == text.index("31.50")


def bill(text: str) -> Any:
    """A whole invoice, as far as the text has it."""
    number = re.search(r"^Invoice (\S+)", text, re.MULTILINE)
    rows = re.findall(r"^Item (\w+) at (\d+\.\d\d)\b", text, re.MULTILINE)
    return {
        "number": number[1] if number else None,
        **total(text),
        "note": None,
        "rows": [{"name": name, "price": float(price)} for name, price in rows],
    }


@settings(deadline=None, max_examples=25)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(WAYS)), st.integers(600, 3000))
def test_an_invoice_over_many_pages(random: Any, way: str, room: int) -> None:
    """Rows, many of them equal, at random places; the number first and the total last."""
    at = sorted(random.sample(range(1, 399), random.randint(1, 250)))
    rows = [{"name": random.choice(["Tea", "Milk", "Rye"]), "price": random.choice([1.5, 2.25, 13.0])} for _ in at]
    sum_ = math.fsum(row["price"] for row in rows)
    lines = [(line, f"Item {row['name']} at {row['price']:.2f}") for line, row in zip(at, rows, strict=True)]
    fields, strings = WAYS[way](document((0, "Invoice A-77"), *lines, (399, f"Total: {sum_:.2f}")))
    oracle = Oracle(bill)
    closed: list[Answer] = []

    def close(answer: Answer) -> Answer:
        closed.append(answer)
        return answer

    question, began = ask(schema=BILL, require_evidence=True, **fields), time.monotonic()
    answer = asyncio.run(Inquiry(question, room, measure, oracle, close).answer())
    assert json.loads(answer.output) == {"number": "A-77", "total": sum_, "rows": rows}
    audit.parse(answer.output, BILL)
    told = answer.detail["windows"]
    assert (told["conflicts"], told["uncertain"]) == ([], [])
    assert len(oracle.asked) == told["count"] == len(told["pieces"])
    assert all(measure(part) <= room for part in oracle.asked)
    found = places(answer, strings)
    assert [found[f"/rows/{number}/name"] for number in range(len(rows))] == [row["name"] for row in rows]
    assert set(told["from"]) == {*found}
    assert closed == [answer]
    assert answer.prompt_tokens == 100 * told["count"]
    assert answer.completion_tokens == 7 * told["count"]
    assert 0 < answer.seconds < time.monotonic() - began  # splitting and merging are part of it
    assert answer.detail["confidence"] == {"/total": {"raw": 1 / (told["from"]["/total"] + 1), "calibrated": None}}


def test_a_window_is_asked_less_strictly() -> None:
    oracle = Oracle(total)
    question = ask(
        schema=BILL | {"required": []},
        require_evidence=True,
        context={"document": document(), "unit": "EUR"},
        temperature=0.5,
    )
    asyncio.run(Inquiry(question, ROOM, measure, oracle, as_it_is).answer())
    for part in oracle.asked:
        assert part.prompt == NOTE + "What?"
        assert part.context["unit"] == "EUR"
        assert not part.require_evidence
        assert part.temperature == 0.5
        assert part.json_schema is not None
        assert "x-check" not in part.json_schema
    assert question.prompt == "What?"
    assert question.context["document"] == document()
    assert question.json_schema == BILL | {"required": []}


def test_pages_keep_their_numbers() -> None:
    oracle = Oracle(total)
    pages = pages_of(document((3, "Total: 31.50")), 40)
    pages[7:7] = ["", ""]
    question = ask(schema=TOTAL, context={"document": pages})
    answer = asyncio.run(Inquiry(question, ROOM, measure, oracle, as_it_is).answer())
    for part, pieces in zip(oracle.asked, answer.detail["windows"]["pieces"], strict=True):
        sent = part.context["document"]
        assert sent.numbers == [piece["page"] + 1 for piece in pieces]
        assert list(sent) == [pages[piece["page"]][piece["start"] : piece["end"]] for piece in pieces]
        assert "" not in sent


def test_what_no_window_has_is_null_or_left_out_or_an_error() -> None:
    fields = {"context": {"document": document()}}
    number: dict[str, Any] = {"type": "number"}
    for schema, output in (
        ({"properties": {"total": {"type": ["number", "null"]}}, "required": ["total"]}, {"total": None}),
        ({"properties": {"total": number}}, {}),
    ):
        answer = run(ask(schema=schema, **fields), total)
        assert json.loads(answer.output) == output
        assert set(answer.detail["windows"]["from"]) == {f"/{name}" for name in output}
        assert answer.detail["evidence"] == []
    with pytest.raises(Failure, match="/total") as refused:
        run(ask(schema=TOTAL, **fields), total)
    assert refused.value.code == "answer_invalid"


def test_what_windows_invent_loses_to_what_stands_in_one() -> None:
    """A schema that cannot be relaxed, as a reference leads through its properties, has each window say a number."""
    schema = TOTAL | {"patternProperties": {"^z": {"$ref": "#/properties/total/properties/z"}}}
    schema["properties"] = {"total": {"type": "number", "properties": {"z": {"type": "null"}}}}

    def invent(text: str) -> Any:
        return {"total": total(text)["total"] or 777.25}

    text = document((200, "Total: 31.50"))
    answer = run(ask(schema=schema, context={"document": text}), invent)
    assert json.loads(answer.output) == {"total": 31.5}
    answer = run(ask(schema=schema, context={"document": document()}), invent)
    assert json.loads(answer.output) == {"total": 777.25}
    assert [each["match"] for each in answer.detail["evidence"]] == ["absent"]


def test_a_document_that_fits_is_one_window() -> None:
    text = document((3, "Total: 31.50"), count=10)
    answer = run(ask(prompt=f"Total?\n\n{text}", schema=TOTAL), total)
    assert json.loads(answer.output) == {"total": 31.5}
    assert answer.detail["windows"]["pieces"] == [[{"page": None, "start": 8, "end": 8 + len(text)}]]


@pytest.mark.parametrize("prompt", ["\n\n", "x\n\n  \n", "\nx\n\n", " \n \t\n\n"])
def test_a_document_in_the_prompt_begins_where_it_is_found(prompt: str) -> None:
    text = prompt + document((3, "Total: 31.50"))
    answer = run(ask(prompt=text, schema=TOTAL), total)
    assert places(answer, [text]) == {"/total": "31.50"}


@pytest.mark.parametrize("text", ["Total: 31.50\n" + " \n" * 3000, " \n" * 3000 + "Total: 31.50"])
def test_blank_parts_are_not_asked_about(text: str) -> None:
    for fields in ({"prompt": f"x\n\ny\n{text}"}, {"context": {"document": text}}):
        answer = run(ask(schema=TOTAL, **fields), total)
        assert json.loads(answer.output) == {"total": 31.5}
        assert answer.detail["windows"]["count"] == len(answer.detail["windows"]["pieces"]) <= 2
    assert run(ask(schema={}, context={"document": " "}), total).detail["windows"]["count"] == 1


def test_too_long_a_document_and_too_long_a_prompt_are_refused() -> None:
    text = document(count=4 * MOST * ROOM // 33)
    for prompt in ("What?", "What? " * ROOM):
        with pytest.raises(Failure) as refused:
            run(ask(prompt=prompt, schema=TOTAL, context={"document": text}), total)
        assert refused.value.code == "context_length_exceeded"


# Labels


def decide(shares: dict[str, float]) -> Answer:
    best = max(shares, key=shares.__getitem__)
    output = {"label": best, "probability": shares[best], "probabilities": shares, "abstained": False}
    labels = {"scores": {name: math.log(share) for name, share in shares.items()}, "prior": "none", "task": best}
    return Answer(json.dumps(output), "oracle", "stop", 10, 0, 1.0, {"labels": labels})


def label(text: str) -> Said:
    return Said(
        decide(
            {"a": 0.7, "b": 0.2, "none of these": 0.1} if "odd" in text else {"a": 0.1, "b": 0.6, "none of these": 0.3}
        )
    )


def test_labels_are_pooled_by_the_letters_of_each_window() -> None:
    text = document(*((at, "odd") for at in range(0, 60, 5)))
    question = ask(labels=["a", "b"], none_of_these=True, abstain_below=0.4, context={"document": text})
    asked: list[Question] = []

    def put(part: Question) -> Said:
        asked.append(part)
        return label(shown(part))

    answer = asyncio.run(Inquiry(question, ROOM, measure, put, as_it_is).answer())
    told = json.loads(answer.output)
    weights = [len(re.sub(r"\s", "", shown(part))) for part in asked]
    odd = sum(weight for weight, part in zip(weights, asked, strict=True) if "odd" in shown(part)) / sum(weights)
    logs = {
        name: odd * math.log(one) + (1 - odd) * math.log(other)
        for name, one, other in (("a", 0.7, 0.1), ("b", 0.2, 0.6), ("none of these", 0.1, 0.3))
    }
    raised = {name: math.exp(log) for name, log in logs.items()}
    assert 0 < odd < 0.5
    assert told["probabilities"] == pytest.approx(
        {name: share / sum(raised.values()) for name, share in raised.items()}
    )
    assert (told["label"], told["abstained"]) == ("b", False)
    assert told["probability"] == told["probabilities"]["b"]
    (conflict,) = answer.detail["windows"]["conflicts"]
    assert [each["value"] for each in conflict["candidates"]] == [
        "a" if "odd" in shown(part) else "b" for part in asked
    ]
    assert answer.detail["labels"]["prior"] == "none"
    assert "task" not in answer.detail["labels"]  # of which there is not one
    assert answer.detail["labels"]["scores"] == pytest.approx(logs)
    assert all(part.abstain_below is None and part.prompt == "What?" for part in asked)


@pytest.mark.parametrize(
    ("shares", "below", "answer"),
    [
        ({"a": 0.6, "b": 0.4}, None, ("a", False)),
        ({"a": 0.6, "b": 0.4}, 0.61, (None, True)),
        ({"a": 0.1, "none of these": 0.9}, 0.5, (None, False)),
        ({"a": 1.0, "none of these": 1e-320}, None, ("a", False)),
    ],
)
def test_labels_on_which_all_windows_agree(shares: dict[str, float], below: float | None, answer: Any) -> None:
    labels = [name for name in shares if name != "none of these"]
    fields = {"none_of_these": len(labels) < len(shares), "abstain_below": below}
    question = ask(labels=labels, context={"document": document()}, **fields)
    found = asyncio.run(Inquiry(question, ROOM, measure, lambda _: Said(decide(shares)), as_it_is).answer())
    told = json.loads(found.output)
    assert (told["label"], told["abstained"]) == answer
    assert told["probabilities"] == pytest.approx(shares)
    assert found.detail["windows"]["conflicts"] == []


@pytest.mark.parametrize(("below", "abstained"), [(None, True), (0.5, False), (0.0, False), (0.9, True)])
def test_what_was_fitted_says_when_to_abstain_unless_the_caller_does(below: float | None, abstained: bool) -> None:
    def put(_: Question) -> Said:
        answer = decide({"a": 0.6, "b": 0.4})
        answer.detail["labels"]["abstain_below"] = 0.7
        return Said(answer)

    question = ask(labels=["a", "b"], abstain_below=below, context={"document": document()})
    answer = asyncio.run(Inquiry(question, ROOM, measure, put, as_it_is).answer())
    assert json.loads(answer.output)["abstained"] is abstained


def test_the_most_careful_window_says_when_to_abstain() -> None:
    """Windows of two pages may be fitted otherwise than those of one."""

    def put(part: Question) -> Said:
        answer = decide({"a": 0.6, "b": 0.4})
        answer.detail["labels"]["abstain_below"] = 0.9 if len(part.context["document"]) == 1 else 0.0
        return Said(answer)

    question = ask(labels=["a", "b"], context={"document": ["x " * 3000, "y " * 3000]})
    answer = asyncio.run(Inquiry(question, ROOM, measure, put, as_it_is).answer())
    assert {len(pieces) for pieces in answer.detail["windows"]["pieces"]} == {1, 2}
    assert json.loads(answer.output)["abstained"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1, 1e6)), min_size=1, max_size=64))
def test_pooled_probabilities_sum_to_one_and_lie_between(windows: list[tuple[float, float]]) -> None:
    shares = [{"a": share, "b": 1 - share} for share, _ in windows]
    pooled = pool(shares, [weight for _, weight in windows])
    assert math.fsum(pooled.values()) == pytest.approx(1)
    low, high = min(share for share, _ in windows), max(share for share, _ in windows)
    assert low - 1e-9 <= pooled["a"] <= high + 1e-9


# On its way


def said(value: Any = None) -> Answer:
    return Answer(json.dumps(value or {"total": None}), "oracle", "stop", 1, 1, 1.0, {})


def long_question() -> Question:
    return ask(schema={"properties": {"total": {"type": ["number", "null"]}}}, context={"document": document()})


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_all_windows_are_asked_before_any_answers() -> None:
    async def go() -> None:
        gate, tickets = asyncio.Event(), list[Said]()

        def put(part: Question) -> Said:
            tickets.append(Said(said(), gate))
            return tickets[-1]

        task = asyncio.create_task(Inquiry(long_question(), ROOM, measure, put, as_it_is).answer())
        await until(lambda: len(tickets) > 10 and all(ticket.waiting for ticket in tickets))
        gate.set()
        assert (await task).detail["windows"]["count"] == len(tickets)

    asyncio.run(go())


@pytest.mark.parametrize("leaves", ["ticket", "task"])
def test_who_leaves_frees_all_windows(leaves: str) -> None:
    async def go() -> None:
        gate, tickets = asyncio.Event(), list[Said]()

        def put(part: Question) -> Said:
            tickets.append(Said(said(), gate))
            return tickets[-1]

        inquiry = Inquiry(long_question(), ROOM, measure, put, as_it_is)
        task = asyncio.create_task(inquiry.answer())
        await until(lambda: len(tickets) > 5)
        inquiry.cancel() if leaves == "ticket" else task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        count = len(tickets)
        await asyncio.sleep(0.01)
        assert len(tickets) == count
        assert all(ticket.cancelled for ticket in tickets)

    asyncio.run(go())


def test_who_leaves_while_a_window_is_submitted_frees_that_too() -> None:
    async def go() -> None:
        entered, go_on, tickets = threading.Event(), threading.Event(), list[Said]()

        def put(part: Question) -> Said:
            entered.set()
            go_on.wait(10)
            tickets.append(Said(said()))
            return tickets[-1]

        inquiry = Inquiry(long_question(), ROOM, measure, put, as_it_is)
        task = asyncio.create_task(inquiry.answer())
        await until(entered.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await until(lambda: bool(tickets))
        await until(lambda: tickets[0].cancelled)

    asyncio.run(go())


@pytest.mark.parametrize("when", ["before", "splitting"])
def test_who_leaves_early_has_nothing_asked(when: str) -> None:
    async def go() -> None:
        counted = 0

        def count(question: Question) -> int:
            nonlocal counted
            counted += 1
            if counted == 5:
                inquiry.cancel()
            return measure(question)

        def put(part: Question) -> Said:
            raise AssertionError

        inquiry = Inquiry(long_question(), ROOM, count, put, as_it_is)
        if when == "before":
            inquiry.cancel()
        with pytest.raises(asyncio.CancelledError):
            await inquiry.answer()
        assert counted == (0 if when == "before" else 5)

    asyncio.run(go())


def test_one_failure_ends_all_and_is_the_answer() -> None:
    async def go() -> None:
        gate, tickets = asyncio.Event(), list[Said]()

        def put(part: Question) -> Said:
            last = len(tickets) == 5
            tickets.append(Said(Failure("answer_truncated", "so long") if last else said(), None if last else gate))
            return tickets[-1]

        with pytest.raises(Failure, match="answer_truncated"):
            await Inquiry(long_question(), ROOM, measure, put, as_it_is).answer()
        assert all(ticket.cancelled for ticket in tickets)

    asyncio.run(go())


def test_a_queue_full_of_our_own_windows_is_waited_for() -> None:
    async def go() -> None:
        tickets, refused, gates = list[Said](), 0, list[asyncio.Event]()

        def put(part: Question) -> Said:
            nonlocal refused
            if sum(not gate.is_set() for gate in gates) == 3:
                refused += 1
                raise Failure("queue_full", "wait", retry_after=9)
            gates.append(asyncio.Event())
            tickets.append(Said(said(), gates[-1]))
            return tickets[-1]

        async def serve() -> None:
            while True:
                await asyncio.sleep(0.001)
                for gate in [gate for gate in gates if not gate.is_set()][:1]:
                    gate.set()

        server = asyncio.create_task(serve())
        answer = await Inquiry(long_question(), ROOM, measure, put, as_it_is).answer()
        server.cancel()
        assert answer.detail["windows"]["count"] == len(tickets) > 10
        assert 0 < refused <= len(tickets)

    asyncio.run(go())


@pytest.mark.parametrize("code", ["queue_full", "draining"])
def test_a_queue_full_of_others_is_told_to_the_caller(code: str) -> None:
    def put(part: Question) -> Said:
        raise Failure(code, "wait", retry_after=9)

    with pytest.raises(Failure, match=code) as refused:
        asyncio.run(Inquiry(long_question(), ROOM, measure, put, as_it_is).answer())
    assert refused.value.retry_after == 9


def test_an_answer_that_was_closed_makes_the_whole_one_so() -> None:
    def put(part: Question) -> Said:
        reason: Any = "closed" if "line 0100" in shown(part) else "stop"
        return Said(Answer('{"total": null}', "oracle", reason, 1, 1, 1.0, {}))

    answer = asyncio.run(Inquiry(long_question(), ROOM, measure, put, as_it_is).answer())
    assert answer.finish_reason == "closed"


def test_what_judges_the_whole_answer_may_refuse_it() -> None:
    def close(answer: Answer) -> Answer:
        raise Failure("check_failed", "no")

    with pytest.raises(Failure, match="check_failed"):
        asyncio.run(Inquiry(long_question(), ROOM, measure, Oracle(total), close).answer())
