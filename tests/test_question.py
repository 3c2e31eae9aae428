"""models/question.py: which part of a question is its document, and how it is shown; no text poses as structure."""

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.question import Document, compact, find_document, render, replace_document

# ---- where the document is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "context", "document"),
    [
        ("Total?", {"document": "12.50"}, Document(("12.50",))),
        ("Total?", {"document": ""}, Document(("",))),
        ("Total?", {"document": ["a", "b"]}, Document(("a", "b"), paged=True)),
        ("Total?", {"document": ["a"]}, Document(("a",), paged=True)),
        ("Total?\n\nbelow", {"document": "12.50"}, Document(("12.50",))),
        ("Total?\n\nbelow", {"document": ["", ""]}, Document(("", ""), paged=True)),
        ("Total?", {}, None),
        ("Total?", {"text": "12.50"}, None),
        ("Total?", {"Document": "12.50"}, None),
        ("Total?", {"document": []}, None),
        ("Total?", {"document": 12.5}, None),
        ("Total?", {"document": {"a": "b"}}, None),
        ("Total?", {"document": ["a", 1]}, None),
        ("Total?", {"document": None}, None),
        ("Total?\n\n12.50", {"document": []}, Document(("12.50",), shift=8)),
        ("Total?\n\n12.50", {"document": ["a", 1]}, Document(("12.50",), shift=8)),
        ("Total?\n\n12.50", {"text": "x"}, Document(("12.50",), shift=8)),
    ],
)
def test_the_document_is_the_contexts_else_the_prompts(
    prompt: str, context: dict[str, Any], document: Document | None
) -> None:
    assert find_document(prompt, context) == document


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Do it.\n\nDear Sir", "Dear Sir"),
        ("Do it.\r\n\r\nDear Sir\r\n", "Dear Sir\r\n"),
        ("Do it.\n \t\nDear Sir", "Dear Sir"),
        ("Do it.\r\n \r\n\r\nDear Sir", "Dear Sir"),
        ("Do it.\n\n\n\n  Dear Sir\n\nYours", "Dear Sir\n\nYours"),
        ("\n\nDear Sir", "Dear Sir"),
        ("One\ntwo\n\nDear\nSir", "Dear\nSir"),
        ("Do it.\n\n\u00e9\n\n", "\u00e9\n\n"),
        ("Do it.\nDear Sir", None),
        ("Do it.\n", None),
        ("Do it.\n\n", None),
        ("Do it.\n\n \t\r\n", None),
        ("Do it.\r\n\r\n", None),
        ("Do it.\n.\nDear Sir", None),
    ],
)
def test_a_prompts_document_begins_behind_its_first_blank_line(prompt: str, text: str | None) -> None:
    found = find_document(prompt, {})
    if text is None:
        assert found is None
        return
    assert found == Document((text,), shift=len(prompt) - len(text))
    assert prompt[found.shift :] == text


BLANKS = st.lists(st.sampled_from([" ", "\t", "\r", "\n", "a", "\u00e9", "\u2028"]), max_size=12).map("".join)


@given(BLANKS)
def test_whatever_the_blanks_the_document_is_the_prompts_own_end(prompt: str) -> None:
    found = find_document(prompt, {})
    rest = prompt.replace("\r", "").replace(" ", "").replace("\t", "")
    if found is None:
        assert "\n\n" not in rest or not prompt[prompt.index("\n") :].strip() or "\n\n" not in rest.rstrip("\n\u2028")
    else:
        (text,) = found.pages
        assert text and not text[0].isspace()
        assert prompt == prompt[: found.shift] + text
        assert "\n\n" in rest


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ["\n", "\r", "\n \t", " ", "\n\r\ta"])
def test_a_prompt_of_nothing_but_blanks_is_searched_soon(piece: str) -> None:
    prompt = piece * (4_000_000 // len(piece))
    found = find_document(prompt, {})
    assert found is None or prompt.endswith(found.pages[0])


# ---- another document in its place ---------------------------------------------------------------------------------


def test_another_document_stands_where_the_first_did() -> None:
    assert replace_document("Q", {"a": 1, "document": "x"}, ["y"]) == ("Q", {"a": 1, "document": "y"})
    assert replace_document("Q", {"document": ["x", "z"]}, ["y"]) == ("Q", {"document": ["y"]})
    assert replace_document("Q\n\nx", {"a": 1}, ["y"]) == ("Q\n\ny", {"a": 1})
    assert replace_document("Q\r\n\r\n x", {"document": 5}, [""]) == ("Q\r\n\r\n ", {"document": 5})
    assert replace_document("Q\n\nx", {"document": "d"}, ["y"]) == ("Q\n\nx", {"document": "y"})


def test_what_was_asked_is_left_as_it_was() -> None:
    context = {"document": ["x"], "a": {"b": [1]}}
    replace_document("Q", context, ["y"])
    assert context == {"document": ["x"], "a": {"b": [1]}}


def test_where_there_is_no_document_none_can_be_replaced() -> None:
    with pytest.raises(AssertionError):
        replace_document("Q", {}, ["y"])


@given(st.text(max_size=8), st.text(st.characters(exclude_categories=["Zs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8))
def test_a_document_put_in_is_found_again(before: str, text: str) -> None:
    prompt = f"{before}\n\nold"
    document = find_document(prompt, {})
    assert document is not None
    put, context = replace_document(prompt, {}, [text])
    assert find_document(put, context) == Document((text,), shift=document.shift)


# ---- render --------------------------------------------------------------------------------------------------------


def test_text_is_the_prompt_and_its_context_in_order() -> None:
    shown = render("Sum up.", {"b": "two\nlines", "a": {"n": [1, "é"]}}, [])
    assert shown == 'Sum up.\n\n"b":\n```\ntwo\nlines\n```\n\n"a":\n```\n{"n":[1,"é"]}\n```'


def test_what_form_the_answer_is_to_have_comes_first() -> None:
    assert render("Which?", {}, ["Be brief:", '{"a":1}']) == 'Be brief:\n\n{"a":1}\n\nWhich?'


def test_pages_are_numbered_and_any_other_list_is_json() -> None:
    shown = render("Q", {"document": ["one", "two"], "other": ["one", "two"]}, [])
    pages = '"document", page 1:\n```\none\n```\n\n"document", page 2:\n```\ntwo\n```'
    assert shown == f'Q\n\n{pages}\n\n"other":\n```\n["one","two"]\n```'
    assert render("Q", {"document": ["one", 2]}, []) == 'Q\n\n"document":\n```\n["one",2]\n```'
    assert render("Q", {"document": []}, []) == 'Q\n\n"document":\n```\n[]\n```'


def test_a_name_cannot_leave_its_line() -> None:
    shown = render("Q", {'a"\n```\nb': "text"}, [])
    assert shown == 'Q\n\n"a\\"\\n```\\nb":\n```\ntext\n```'


FENCES = ["`", "``", "```", "````", "\n", "\n```\n", "x"]


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.lists(st.sampled_from(FENCES)).map("".join), max_size=4),
    st.lists(st.lists(st.sampled_from(FENCES)).map("".join), max_size=3),
)
def test_no_text_holds_the_fence_around_it(context: dict[str, str], pages: list[str]) -> None:
    assume("document" not in context)
    shown = render("Q", {**context, **({"document": pages} if pages else {})}, [])
    texts = [(json.dumps(key, ensure_ascii=False), text) for key, text in context.items()]
    texts += [(f'"document", page {number}', page) for number, page in enumerate(pages, 1)]
    fence = max((line for line in shown.split("\n") if set(line) == {"`"}), key=len, default="```")
    assert not any(fence in text for _, text in texts)
    assert shown == "\n\n".join(["Q", *(f"{name}:\n{fence}\n{text}\n{fence}" for name, text in texts)])
    assert fence == "```" or any(fence[1:] in text for _, text in texts)


@pytest.mark.timeout(30)
def test_a_text_of_nothing_but_backticks_is_rendered_soon() -> None:
    ticks = "`" * 2_000_000
    assert render("Q", {"a": ticks}, []) == f'Q\n\n"a":\n{ticks}`\n{ticks}\n{ticks}`'


def test_compact_has_no_blanks_and_keeps_letters() -> None:
    assert compact({"a": [1, None, "é b"]}) == '{"a":[1,null,"é b"]}'
