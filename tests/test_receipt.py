"""models/receipt.py: a receipt changes with what it was made of, says no word of it, and its key is made once."""

import json
import multiprocessing
import os
import stat
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.sequence import Sampling
from models.question import Question
from models.receipt import FILE, Receipts, find_key
from serving.protocol import Prompt

WORDS = ["zebra-prompt", "zebra-key", "zebra-document", "zebra-output", "zebra-name"]
MADE_WITH = {"weights": "0" * 64, "versions": {"torch": "1"}}
RECEIPTS = Receipts(b"zebra-key", MADE_WITH)
SCHEMA = {"type": "object", "properties": {"zebra-name": {"type": "string"}}}
SAMPLING = Sampling(100, temperature=0.5, top_p=0.9, seed=7)


def asked(prompt: str = "zebra-prompt", context: Any = None, **fields: Any) -> Question:
    context = {"document": "zebra-document"} if context is None else context
    question: Question = Prompt.model_validate({"prompt": prompt, "context": context, **fields})
    return question


def write(
    question: Question | None = None,
    form: Any = SCHEMA,
    sampling: Sampling | None = SAMPLING,
    output: str = "zebra-output",
    receipts: Receipts = RECEIPTS,
) -> dict[str, Any]:
    return receipts.write(question or asked(), form, sampling, output)


def test_a_receipt_is_the_same_for_the_same_and_says_no_word_of_it() -> None:
    told = json.dumps(write())
    assert told == json.dumps(write())
    assert not any(word in told for word in WORDS)
    assert write().keys() == {"input", "output", "form", "sampling", "weights", "versions"}
    assert all(len(write()[field]) == 64 for field in ("input", "output", "form"))
    assert write()["sampling"] == {"max_new_tokens": 100, "temperature": 0.5, "top_p": 0.9, "seed": 7}


CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"question": asked("zebra-promp")}, {"input"}),
    ({"question": asked(context={})}, {"input"}),
    ({"question": asked(context={"document": "zebra-documenT"})}, {"input"}),
    ({"question": asked(context={"document": ["zebra-document"]})}, {"input"}),
    ({"question": asked(context={"Document": "zebra-document"})}, {"input"}),
    ({"question": asked(context={"document": "zebra-document", "a": 1})}, {"input"}),
    ({"output": "zebra-output "}, {"output"}),
    ({"output": ""}, {"output"}),
    ({"form": {**SCHEMA, "required": ["zebra-name"]}}, {"form"}),
    ({"form": ["invoice", "letter"]}, {"form"}),
    ({"form": None}, {"form"}),
    ({"sampling": None}, {"sampling"}),
    ({"sampling": replace(SAMPLING, seed=8)}, {"sampling"}),
    ({"sampling": replace(SAMPLING, temperature=0.0)}, {"sampling"}),
    ({"sampling": replace(SAMPLING, max_new_tokens=99)}, {"sampling"}),
    ({"receipts": Receipts(b"zebra-key", {**MADE_WITH, "weights": "1" * 64})}, {"weights"}),
    ({"receipts": Receipts(b"zebra-key", {**MADE_WITH, "versions": {"torch": "2"}})}, {"versions"}),
    ({"receipts": Receipts(b"another", MADE_WITH)}, {"input", "output"}),
]


@pytest.mark.parametrize(("change", "fields"), CHANGES, ids=range(len(CHANGES)))
def test_a_change_shows_where_it_was_made_and_nowhere_else(change: dict[str, Any], fields: set[str]) -> None:
    before, after = write(), write(**change)
    assert before.keys() == after.keys()
    assert {field for field in before if before[field] != after[field]} == fields


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)


@given(st.lists(st.tuples(TEXT, st.dictionaries(TEXT, TEXT, max_size=2)), min_size=2, max_size=2, unique_by=str))
def test_no_two_questions_share_an_input(pairs: list[tuple[str, dict[str, str]]]) -> None:
    """However text is moved between prompt, names and context."""
    one, other = (write(asked(prompt, context))["input"] for prompt, context in pairs)
    assert one != other


def test_what_is_both_asked_and_answered_is_not_seen_to_be() -> None:
    told = write(output=json.dumps(["zebra-prompt", {"document": "zebra-document"}], separators=(",", ":")))
    assert told["input"] != told["output"]


# ---- the key -------------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "home"
    before = os.umask(0)
    try:
        key = find_key("", folder)
    finally:
        os.umask(before)
    assert len(key) == 32
    assert find_key("", folder) == key
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert find_key("", tmp_path) != key


def test_a_key_that_is_given_goes_before_one_that_was_made(tmp_path: Path) -> None:
    assert find_key("of the operator", tmp_path / "none") == b"of the operator"
    assert not (tmp_path / "none").exists()
    made = find_key("", tmp_path)
    assert find_key("é", tmp_path) == "é".encode()
    assert find_key("", tmp_path) == made


def find_together(folder: Path, together: Barrier, told: "Queue[bytes]") -> None:
    together.wait()
    told.put(find_key("", folder))


def test_eight_processes_at_once_find_one_key(tmp_path: Path) -> None:
    """They all wait for the same moment, ten times; whoever comes first has made it."""
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would have to import torch
    for number in range(10):
        folder, told, together = tmp_path / str(number), fork.Queue(), fork.Barrier(8)
        started = [fork.Process(target=find_together, args=(folder, together, told)) for _ in range(8)]
        for process in started:
            process.start()
        (key,) = {told.get(timeout=60) for _ in started}
        for process in started:
            process.join(60)
            assert process.exitcode == 0
        assert key == find_key("", folder)
        assert [path.name for path in folder.iterdir()] == [FILE]
