"""models/chat.py, serving/chat.py, serving/messages.py and serving/generation.py: conversations as the public API's own
client sends them, and what it gets back."""

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from transformers import PreTrainedTokenizerFast

from models.catalog import MIXTRAL
from models.failure import Failure, FieldFailure
from models.template import Template, Turn
from models.turns import read_turns
from serving.chat import Request
from tests.conftest import Server, serve

MODEL = "smollm2-135m-instruct"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
BODY: dict[str, Any] = {"model": MODEL, "messages": HELLO}
RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["invoice", "letter"]}, "pages": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["kind", "pages"],
    "additionalProperties": False,
}
LIKE = {"type": "json_schema", "json_schema": {"name": "record", "schema": RECORD, "strict": True}}
FILE: dict[str, Any] = {"type": "function", "function": {"name": "file", "parameters": RECORD, "strict": True}}
DROP: dict[str, Any] = {"type": "function", "function": {"name": "drop", "description": "away with it"}}
WARM: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_completion_tokens": 40}


def parse(**changes: Any) -> Request:
    return Request.parse(json.dumps({**BODY, **changes}).encode())


# ---- what is read --------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"wat": 1}, "unknown_parameter", "wat"),
    ({"reasoning_effort": "low"}, "unknown_parameter", "reasoning_effort"),
    ({"service_tier": "auto"}, "unknown_parameter", "service_tier"),
    ({"functions": []}, "unknown_parameter", "functions"),
    ({"frequency_penalty": 0.5}, "invalid_value", "frequency_penalty"),
    ({"presence_penalty": -1}, "invalid_value", "presence_penalty"),
    ({"logit_bias": {"5": 1}}, "invalid_value", "logit_bias"),
    ({"store": True}, "invalid_value", "store"),
    ({"store": 0}, "invalid_value", "store"),
    ({"metadata": {"a": 1}}, "invalid_value", "metadata.a"),
    ({"n": 5}, "invalid_value", "n"),
    ({"n": 0}, "invalid_value", "n"),
    ({"temperature": 2.1}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"seed": 2**63}, "invalid_value", "seed"),
    ({"stop": ["a"] * 5}, "invalid_value", "stop"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "invalid_value", "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"stream": True, "stream_options": {"wat": True}}, "unknown_parameter", "stream_options.wat"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "tools": [FILE]}, "invalid_value", "logprobs"),
    ({"stop": "x", "tools": [FILE]}, "invalid_value", "stop"),
    ({"stop": "x", "response_format": LIKE}, "invalid_value", "stop"),
    ({"tools": [FILE], "response_format": LIKE}, "invalid_value", "response_format"),
    ({"response_format": {"type": "grammar"}}, "invalid_value", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema"),
    ({"response_format": {**LIKE, "wat": 1}}, "unknown_parameter", "response_format.wat"),
    ({"tools": []}, "invalid_value", "tools"),
    ({"tools": [FILE, FILE]}, "invalid_value", "tools"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "invalid_value", "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_value", "tools.0.function.name"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    (
        {"tools": [FILE], "tool_choice": {"type": "function", "function": {"name": "wat"}}},
        "invalid_value",
        "tool_choice",
    ),
    ({"tools": [FILE], "tool_choice": {"type": "allowed_tools"}}, "invalid_value", "tool_choice"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [{"role": "function", "content": "x"}]}, "invalid_value", "messages.0.role"),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "unknown_parameter", "messages.0.name"),
    ({"messages": [{"role": "user"}]}, "invalid_value", "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages.0.content"),
    ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "invalid_value", "messages.0.content.0"),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "invalid_value",
        "messages.0.content.0.type",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages.0.tool_call_id"),
    ({"messages": [{"role": "assistant", "audio": {"id": "1"}}]}, "invalid_value", "messages.0.audio"),
]


@pytest.mark.parametrize(("changes", "code", "param"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named_by_its_path(changes: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(FieldFailure) as caught:
        parse(**changes)
    assert caught.value.code == code
    assert caught.value.param.startswith(param)
    assert caught.value.message.startswith(f"{caught.value.param}: ")


def test_what_has_no_effect_is_taken() -> None:
    asked = parse(
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        store=False,
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        metadata={"a": "b"},
        stop=None,
        n=None,
        tools=None,
        response_format={"type": "text"},
        stream=False,
    )
    assert (asked.rows, asked.stops, asked.functions) == (1, [], [])
    assert (asked.answer, asked.tops, asked.most) == (None, None, None)


def test_parts_stay_in_their_order() -> None:
    link = {"url": "data:image/png;base64,AA", "detail": "low"}
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": link}, {"type": "text", "text": "b"}]
    (message,) = parse(messages=[{"role": "user", "content": parts}]).messages
    first, image, last = message.parts
    assert (first, last) == ("a", "b")
    assert not isinstance(image, str) and image.image_url.url == link["url"]


def test_images_are_refused_where_the_model_sees_none(tiny_server: Server) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    answer = httpx.post(
        f"{tiny_server.url}/v1/chat/completions", json=BODY | {"messages": [{"role": "user", "content": parts}]}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "messages.0.content.1")
    assert "reads no images" in error["message"]


CALLED = {"id": "1", "type": "function", "function": {"name": "file", "arguments": '{"kind": "letter", "pages": 2}'}}
TALK: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "File"}, {"type": "text", "text": "it."}]},
    {"role": "assistant", "content": None, "tool_calls": [CALLED], "refusal": None, "annotations": []},
    {"role": "tool", "tool_call_id": "1", "content": 'done: "yes"'},
    {"role": "assistant", "content": "Done.", "function_call": None, "audio": None},
    {"role": "user", "content": "And now?"},
]


def turns(messages: list[Any], told: str = "") -> list[Turn]:
    return read_turns(parse(messages=messages).messages, told)


def texts(messages: list[Any], told: str = "") -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in turns(messages, told)]


def test_a_conversation_as_the_model_reads_it() -> None:
    assert texts(TALK, "Answer so.") == [
        ("system", "Answer so.\n\nBe brief."),
        ("user", "File\nit."),
        ("assistant", '{"tool_calls":[{"name":"file","arguments":{"kind": "letter", "pages": 2}}]}'),
        ("user", '{"tool_result":{"name":"file","content":"done: \\"yes\\""}}'),
        ("assistant", "Done."),
        ("user", "And now?"),
    ]
    assert texts(HELLO) == [("user", "Hello")]
    assert texts(HELLO, "Answer so.") == [("system", "Answer so."), ("user", "Hello")]


def test_a_result_needs_its_call() -> None:
    with pytest.raises(FieldFailure) as caught:
        turns([*HELLO, {"role": "tool", "tool_call_id": "2", "content": "x"}])
    assert caught.value.param == "messages.1.tool_call_id"


def test_results_fold_into_the_users_turns(mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    """Mixtral has no system turn, and lets user and assistant speak by turns."""
    template = Template(mixtral_tokenizer, MIXTRAL.markers, MIXTRAL.alternates)
    second = {**CALLED, "id": "2"}
    both = [{**TALK[2], "tool_calls": [CALLED, second]}, TALK[3], {**TALK[3], "tool_call_id": "2"}]
    text = str(mixtral_tokenizer.decode(template.encode(turns([*TALK[:2], *both], "Answer so."))))
    assert text.startswith("<s> [INST] Answer so.\n\nBe brief.\n\nFile\nit. [/INST]")
    assert text.count("[INST]") == 2 and text.count("tool_result") == 2
    with pytest.raises(Failure, match="begins and ends with a user's turn"):
        template.encode(turns(TALK[:-1]))


# ---- the public client against the service ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tiny_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **changes: Any) -> ChatCompletion:
    found = client.chat.completions.create(**{**BODY, **changes})
    assert isinstance(found, ChatCompletion)
    return found


def stream(client: openai.OpenAI, **changes: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(**{**BODY, **changes}, stream=True))


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> tuple[str, str | None]:
    """A choice's text and how it ended."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


def refused(client: openai.OpenAI, kind: type[openai.APIStatusError], **changes: Any) -> dict[str, Any]:
    """What the client raises, and the error in it; the same for a stream, which has not begun then."""
    found: list[Any] = []
    for streams in (False, True):
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**{**BODY, **changes, "stream": streams})
        assert isinstance(caught.value.body, dict)
        found.append({key: value for key, value in caught.value.body.items() if key != "request_id"})
    assert found[0] == found[1]
    return dict(found[0])


def test_a_completion(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**BODY, max_completion_tokens=7)
    found = raw.parse()
    (choice,) = found.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("length", 0, None)
    assert found.usage and (found.usage.completion_tokens, found.object) == (7, "chat.completion")
    assert found.usage.total_tokens == found.usage.prompt_tokens + 7
    assert found.model == MODEL and (found.system_fingerprint or "").startswith("fp_")
    assert abs(found.created - time.time()) < 60
    assert raw.headers["x-request-id"]
    text = json.loads(raw.text)
    assert text.keys() == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert text["choices"][0]["message"].keys() == {"role", "content", "refusal"}


def test_a_stream_to_the_letter(tiny_server: Server) -> None:
    body = {**BODY, **WARM, "stream": True, "n": 2, "stream_options": {"include_usage": True}}
    response = httpx.post(f"{tiny_server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache" and response.headers["x-request-id"]
    *events, done, end = response.content.decode("ascii").split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    told = [json.loads(event.removeprefix("data: ")) for event in events]
    chunks = [ChatCompletionChunk.model_validate(each) for each in told]
    assert len({(each.id, each.created, each.object, each.model, each.system_fingerprint) for each in chunks}) == 1
    assert [each.choices[0].delta.role for each in chunks[:3]] == ["assistant", "assistant", None]
    assert [len(each.choices) for each in chunks] == [1] * (len(chunks) - 1) + [0]
    assert all(each["usage"] is None for each in told[:-1])
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 80
    ended = [choice.finish_reason for each in chunks for choice in each.choices if choice.finish_reason]
    assert ended == ["length", "length"]
    without = httpx.post(
        f"{tiny_server.url}/v1/chat/completions", json={**body, "stream_options": None}, timeout=60
    ).text.split("\n\n")
    assert len(without) == len(events) + 1 and "usage" not in without[-3]


@pytest.mark.parametrize(
    "changes",
    [
        WARM,
        {**WARM, "n": 4},
        {**WARM, "stop": ["e", "qq"]},
        {**WARM, "response_format": {"type": "json_object"}},
        {**WARM, "response_format": LIKE},
        {**WARM, "tools": [FILE], "tool_choice": "none"},
    ],
    ids=range(6),
)
def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, changes: dict[str, Any]) -> None:
    whole, chunks = ask(client, **changes), stream(client, **changes)
    for choice in whole.choices:
        assert joined(chunks, choice.index) == (choice.message.content, choice.finish_reason)
    assert len(whole.choices) == changes.get("n", 1)


def test_an_end_is_told_apart(client: openai.OpenAI) -> None:
    text = ask(client, **WARM).choices[0].message.content or ""
    stop = text[20:24]
    (choice,) = ask(client, **WARM, stop=stop).choices
    assert (choice.message.content, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    for seed in range(6):
        (choice,) = ask(client, **{**WARM, "seed": seed, "response_format": LIKE}).choices
        found = json.loads(choice.message.content or "")
        assert found.keys() == {"kind", "pages"} and found["kind"] in ("invoice", "letter") and 1 <= found["pages"] <= 9
        assert choice.finish_reason == "stop"
    (choice,) = ask(client, **WARM, response_format={"type": "json_object"}).choices
    assert isinstance(json.loads(choice.message.content or ""), dict)


class Invoice(pydantic.BaseModel):
    kind: Literal["invoice", "letter"]
    total: float = pydantic.Field(ge=0, le=1000)


def test_the_clients_own_helpers(client: openai.OpenAI) -> None:
    parsed = (
        client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Invoice).choices[0].message.parsed
    )
    assert isinstance(parsed, Invoice)
    tool = openai.pydantic_function_tool(Invoice)
    called = client.chat.completions.parse(model=MODEL, messages=HELLO, tools=[tool], tool_choice="required")
    for call in called.choices[0].message.tool_calls or ():
        assert isinstance(call.function.parsed_arguments, Invoice)
    assert called.choices[0].message.tool_calls
    with client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Invoice) as events:
        assert any(event.type == "content.delta" for event in events)
        assert isinstance(events.get_final_completion().choices[0].message.parsed, Invoice)


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "file"}}], ids=str)
@pytest.mark.parametrize("parallel", [True, False])
def test_functions_are_called_with_arguments_that_fit(client: openai.OpenAI, choice: Any, parallel: bool) -> None:
    ended = set()
    for seed in range(4):
        changes = {**WARM, "max_completion_tokens": 120, "seed": seed, "tools": [FILE, DROP], "tool_choice": choice}
        (found,) = ask(client, **changes, parallel_tool_calls=parallel).choices
        ended.add(found.finish_reason)
        calls = found.message.tool_calls or []
        assert bool(calls) != bool(found.message.content is not None)
        assert (
            len({call.id for call in calls})
            == len(calls)
            <= (1 if not parallel or choice not in ("auto", "required") else 8)
        )
        for call in calls:
            assert call.type == "function"
            arguments = json.loads(call.function.arguments)
            assert arguments.keys() == ({"kind", "pages"} if call.function.name == "file" else set())
        if choice != "auto":
            assert calls
        if isinstance(choice, dict):
            assert [call.function.name for call in calls if call.type == "function"] == ["file"]
        chunks = stream(client, **changes, parallel_tool_calls=parallel)
        told = [piece for chunk in chunks for each in chunk.choices for piece in each.delta.tool_calls or ()]
        expected = [(at, call.function.arguments) for at, call in enumerate(calls) if call.type == "function"]
        assert [(piece.index, piece.function and piece.function.arguments) for piece in told] == expected
        assert joined(chunks) == (found.message.content or "", found.finish_reason)
    assert ended <= {"tool_calls", "stop", "length"} and (choice == "auto" or "tool_calls" in ended)


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    """As the client's own object, with the result of what was called."""
    message = ask(client, tools=[FILE], tool_choice="required", parallel_tool_calls=False).choices[0].message
    assert message.tool_calls and message.tool_calls[0].type == "function"
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    again = ask(client, messages=[*HELLO, message, result], tools=[FILE], max_completion_tokens=100)
    assert again.usage and again.usage.prompt_tokens > 60


def test_log_probabilities(client: openai.OpenAI) -> None:
    for changes in ({}, {"response_format": LIKE}):
        (choice,) = ask(client, **WARM, **changes, logprobs=True, top_logprobs=3).choices
        told = (choice.logprobs and choice.logprobs.content) or []
        spelled = b"".join(bytes(token.bytes or ()) for token in told)
        assert spelled.decode(errors="replace") == choice.message.content
        for token in told:
            assert token.logprob <= 0 and 1 <= len(token.top_logprobs) <= 3
            assert token.logprob <= token.top_logprobs[0].logprob + 1e-6
        chunks = stream(client, **WARM, **changes, logprobs=True, top_logprobs=3)
        heard = [
            token.token
            for chunk in chunks
            for piece in chunk.choices
            for token in ((piece.logprobs and piece.logprobs.content) or [])
        ]
        assert heard == [token.token for token in told]
    (choice,) = ask(client, **WARM, logprobs=True).choices
    assert choice.logprobs and all(not token.top_logprobs for token in choice.logprobs.content or ())


def test_seeds_make_answers_repeatable(client: openai.OpenAI) -> None:
    def texts(**changes: Any) -> list[str | None]:
        return [choice.message.content for choice in ask(client, **{**WARM, **changes}).choices]

    assert texts(n=3) == texts(n=3) == [text for seed in (5, 6, 7) for text in texts(seed=seed)]
    assert texts(seed=-1) == texts(seed=-1) != texts(seed=5)
    assert ask(client).choices[0].message.content == ask(client, temperature=0).choices[0].message.content


def test_what_cannot_be_served_is_refused(client: openai.OpenAI) -> None:
    unknown = refused(client, openai.NotFoundError, model="gpt-6-luna")
    assert (unknown["code"], unknown["param"]) == ("model_not_found", "model")
    assert refused(client, openai.BadRequestError, n=9)["param"] == "n"
    assert refused(client, openai.BadRequestError, max_tokens=9000)["code"] == "context_length_exceeded"
    long = [{"role": "user", "content": "word " * 9000}]
    assert refused(client, openai.BadRequestError, messages=long)["code"] == "context_length_exceeded"
    many = HELLO * 9000
    assert refused(client, openai.BadRequestError, messages=many)["code"] == "context_length_exceeded"
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    found = refused(client, openai.BadRequestError, messages=[{"role": "user", "content": picture}])
    assert (found["code"], found["param"]) == ("invalid_value", "messages.0.content.0")
    short = refused(client, openai.BadRequestError, response_format=LIKE, max_tokens=3)
    assert "the shortest answer found" in short["message"]


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "items": {}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "x-verbatim": True}, "x-verbatim"),
        ({"type": "object", "properties": {"a": {"type": "string", "x-evidence": "required"}}}, "x-evidence"),
        ({"type": "object", "x-check": []}, "x-check"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}, "$ref"),
        ({"type": 5}, "type"),
    ],
    ids=range(6),
)
def test_a_schema_that_cannot_be_enforced_is_named(client: openai.OpenAI, schema: dict[str, Any], keyword: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    found = refused(client, openai.BadRequestError, response_format=form)
    assert found["code"] in ("schema_unsupported", "schema_invalid") and f'"{keyword}" at' in found["message"]
    assert found["param"] == "response_format.json_schema.schema"
    bad = {"type": "function", "function": {"name": "bad", "parameters": schema}}
    found = refused(client, openai.BadRequestError, tools=[FILE, bad])
    assert found["param"] == "tools.1.function.parameters" and f'"{keyword}" at' in found["message"]


def engine(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/health").json()["engine"])


def wait_until_idle(server: Server) -> None:
    end = time.monotonic() + 10
    while engine(server)["running"] + engine(server)["waiting"] and time.monotonic() < end:
        time.sleep(0.02)
    found = engine(server)
    assert (found["running"], found["waiting"], found["kv_tokens"]["used"]) == (0, 0, 0)


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_frees_its_rows(tiny_server: Server, streams: bool) -> None:
    body = {**BODY, "n": 4, "max_tokens": 4000, "stream": streams, "temperature": 1.5}

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=tiny_server.url, timeout=60) as client:
            asked = asyncio.create_task(read(client))
            while (await client.get("/health")).json()["engine"]["running"] < 4:
                assert not asked.done()
            asked.cancel()

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for _ in response.aiter_lines():
                pass

    asyncio.run(leave())
    wait_until_idle(tiny_server)
    assert "Traceback" not in tiny_server.log.read_text()


def test_a_fault_in_mid_stream_is_the_last_event(tiny_home: Path, tmp_path: Path) -> None:
    """Where the time is up after the first words were told."""
    home = shutil.copytree(tiny_home, tmp_path / "home")
    with serve(home, tmp_path / "log", ZOPILOT_DEADLINE_MS="1500") as server:
        body = {**BODY, "max_tokens": 8000, "temperature": 2.0, "seed": 1}
        whole = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
        response = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60)
        *events, last, end = response.text.split("\n\n")
        assert (response.status_code, len(events) > 10, end) == (200, True, "")
        told = json.loads(last.removeprefix("data: "))["error"]
        assert told.keys() == whole.json()["error"].keys()
        assert (told["code"], told["type"]) == ("deadline_exceeded", "timeout_error")
        assert told["request_id"] == response.headers["x-request-id"]
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.APIError, match="not finished in time"):
            stream(client, max_tokens=8000, temperature=2.0)


def test_many_streams_at_once_do_not_mix(tiny_server: Server) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> tuple[str, str]:
        body = {**BODY, **WARM, "seed": seed}
        whole = await client.chat.completions.create(**body)
        text = ""
        async for chunk in await client.chat.completions.create(**body, stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        return text, whole.choices[0].message.content or ""

    async def all_of_them() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{tiny_server.url}/v1", api_key="x", max_retries=0) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(16)))

    answers = asyncio.run(all_of_them())
    assert all(text == whole for text, whole in answers)
    assert len({text for text, _ in answers}) == 16


def test_models_are_listed_and_found(tiny_server: Server, client: openai.OpenAI) -> None:
    served, encoder = client.models.list().data  # what is imported beside it can be asked for as well
    assert client.models.retrieve("all-minilm-l6-v2") == encoder
    assert (served.id, served.object, served.owned_by) == (MODEL, "model", "zopilot-gpu")
    tag = httpx.get(f"{tiny_server.url}/health").json()["model"]
    assert client.models.retrieve(MODEL) == client.models.retrieve(tag) == served
    assert ask(client, model=tag, max_tokens=1).model == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-6-luna")
    assert caught.value.code == "model_not_found"
    response = httpx.post(f"{tiny_server.url}/v1/models/{MODEL}")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


def test_no_word_of_what_is_said_is_logged(tiny_server: Server, client: openai.OpenAI) -> None:
    canary = "canary-9c1d"
    ask(client, messages=[{"role": "user", "content": canary}], max_tokens=2)
    wrong: list[dict[str, Any]] = [{"model": canary}, {"stop": [canary] * 5}]
    wrong += [{"messages": [{"role": canary}]}, {"tools": [{"type": canary}]}]
    for changes in wrong:
        assert canary not in json.dumps(refused(client, openai.APIStatusError, **changes))
    log = tiny_server.log.read_text()
    assert "Traceback" not in log and canary not in log


def test_the_real_model_answers(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
        (choice,) = ask(client, messages=question, max_tokens=40).choices
        assert "Paris" in (choice.message.content or "") and choice.finish_reason == "stop"
        assert joined(stream(client, messages=question, max_tokens=40)) == (choice.message.content, "stop")
