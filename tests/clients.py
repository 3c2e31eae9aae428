"""What unmodified clients of the public API do against a running service. Runs in an environment of their own:

python -m tests.clients CHECK URL
"""

import base64
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic

MODEL = "smollm2-135m-instruct"
SAYS: list[Any] = [{"role": "user", "content": "INVOICE no. 77, two pages. What is it?"}]
# Nothing but the service is asked.
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LANGSMITH_TRACING": "false"}
CHECKS: dict[str, Callable[[str], None]] = {}


class Paper(pydantic.BaseModel):
    """What lies on the desk."""

    kind: Literal["invoice", "letter"]
    pages: int = pydantic.Field(ge=1, le=9)


TOOL: Any = {
    "type": "function",
    "function": {"name": "file_paper", "description": "Files it.", "parameters": Paper.model_json_schema()},
}


def check(run: Callable[[str], None]) -> Callable[[str], None]:
    CHECKS[run.__name__] = run
    return run


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@check
def openai_chat(url: str) -> None:
    client = client_of(url)
    answer = client.chat.completions.create(
        model=MODEL, messages=SAYS, max_tokens=20, n=2, logprobs=True, top_logprobs=2
    )
    assert len(answer.choices) == 2 and answer.usage and answer.usage.completion_tokens <= 40
    told = answer.choices[0].logprobs
    assert told and told.content and all(len(token.top_logprobs) == 2 for token in told.content)
    heard = ""
    usage = None
    for chunk in client.chat.completions.create(
        model=MODEL, messages=SAYS, max_tokens=20, stream=True, stream_options={"include_usage": True}
    ):
        heard += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert heard == answer.choices[0].message.content and usage
    assert client.completions.create(model=MODEL, prompt="One, two,", max_tokens=5).choices[0].text
    assert MODEL in [model.id for model in client.models.list()]


@check
def openai_forms(url: str) -> None:
    client = client_of(url)
    parsed = client.chat.completions.parse(model=MODEL, messages=SAYS, response_format=Paper).choices[0].message.parsed
    assert isinstance(parsed, Paper)
    forced: Any = {"type": "function", "function": {"name": "file_paper"}}
    for choice in (forced, "required", "auto"):
        answer = client.chat.completions.create(
            model=MODEL, messages=SAYS, tools=[TOOL], tool_choice=choice, max_tokens=200
        )
        message = answer.choices[0].message
        for call in message.tool_calls or ():
            assert call.type == "function"
            Paper.model_validate_json(call.function.arguments)
        assert message.tool_calls or choice == "auto"


@check
def openai_errors(url: str) -> None:
    client = client_of(url)
    faults: list[tuple[type[openai.APIStatusError], str, dict[str, Any]]] = [
        (openai.NotFoundError, "model_not_found", {"model": "gpt-6-luna"}),
        (openai.BadRequestError, "invalid_value", {"temperature": 9}),
        (openai.BadRequestError, "unknown_parameter", {"reasoning_effort": "low"}),
        (openai.BadRequestError, "context_length_exceeded", {"max_tokens": 100_000}),
    ]
    for kind, code, changes in faults:
        for streams in (True, False):
            try:
                client.chat.completions.create(**{"model": MODEL, "messages": SAYS, "stream": streams, **changes})
            except kind as error:
                assert error.code == code and error.request_id, error
            else:
                raise AssertionError(code)


@check
def langchain(url: str) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=MODEL, max_tokens=100, max_retries=0)
    said = chat.invoke("Say hello.")
    assert said.content and said.usage_metadata["total_tokens"] > 0
    heard = list(chat.stream("Say hello."))
    assert len(heard) > 2 and "".join(chunk.content for chunk in heard) == said.content
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Paper, method=method).invoke("INVOICE, two pages"), Paper)
    assert isinstance(chat.with_structured_output(method="json_mode", schema=None).invoke("Answer in JSON."), dict)
    called = chat.bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False).invoke("INVOICE, two pages")
    (call,) = called.tool_calls
    Paper.model_validate(call["args"])
    history = [HumanMessage("INVOICE"), called, ToolMessage("filed", tool_call_id=call["id"])]
    assert isinstance(chat.bind_tools([TOOL]).invoke(history), AIMessage)


@check
def instructor(url: str) -> None:
    import instructor

    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS, instructor.Mode.JSON):
        client = instructor.from_openai(client_of(url), mode=mode)
        schema_kept = mode is not instructor.Mode.JSON  # which asks for any object and tries until it fits
        try:
            paper = client.chat.completions.create(
                model=MODEL, messages=SAYS, response_model=Paper, max_retries=0, max_tokens=200
            )
        except Exception:
            assert not schema_kept
        else:
            assert isinstance(paper, Paper)


@check
def litellm(url: str) -> None:
    import litellm

    asked = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none", "messages": SAYS, "num_retries": 0}
    said = litellm.completion(**asked, max_tokens=20)
    heard = list(litellm.completion(**asked, max_tokens=20, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in heard)
    assert text == said.choices[0].message.content and len(heard) > 3
    assert heard[-1].choices[0].finish_reason == said.choices[0].finish_reason
    like = litellm.completion(**asked, response_format=Paper)
    Paper.model_validate_json(like.choices[0].message.content)
    called = litellm.completion(**asked, tools=[TOOL], tool_choice="required")
    Paper.model_validate_json(called.choices[0].message.tool_calls[0].function.arguments)
    try:
        litellm.completion(**{**asked, "model": "openai/wat"})
    except litellm.NotFoundError:
        pass
    else:
        raise AssertionError("an unknown model was found")


@check
def llm(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = f"- model_id: served\n  model_name: {MODEL}\n  api_base: {url}/v1\n  api_key_name: served\n"
        Path(folder, "extra-openai-models.yaml").write_text(f"{model}  supports_schema: true\n  supports_tools: true\n")
        Path(folder, "keys.json").write_text(json.dumps({"served": "none"}))
        program = str(Path(sys.executable).parent / "llm")
        environ = {**os.environ, "LLM_USER_PATH": folder}

        def run(*more: str) -> str:
            command = [program, "-m", "served", "-o", "max_tokens", "40", *more, "INVOICE, two pages"]
            done = subprocess.run(
                command, env=environ, text=True, input="", capture_output=True, check=True, timeout=120
            )
            return done.stdout

        assert run().strip() == run("--no-stream").strip() != ""
        Paper.model_validate_json(run("--schema", json.dumps(Paper.model_json_schema())))


@check
def embeddings(url: str) -> None:
    client = client_of(url)
    named = [model.id for model in client.models.list() if "minilm" in model.id.lower()]
    texts = ["an invoice", "a letter"]
    plain = client.embeddings.create(model=named[0], input=texts)
    floats = client.embeddings.create(model=named[0], input=texts, encoding_format="float")
    for one, other in zip(plain.data, floats.data, strict=True):
        assert max(abs(a - b) for a, b in zip(one.embedding, other.embedding, strict=True)) < 1e-6
    from langchain_openai import OpenAIEmbeddings

    lang = OpenAIEmbeddings(base_url=f"{url}/v1", api_key="none", model=named[0], check_embedding_ctx_length=False)
    import litellm

    found = litellm.embedding(f"openai/{named[0]}", input=texts, api_base=f"{url}/v1", api_key="none")
    for vectors in (lang.embed_documents(texts), [each["embedding"] for each in found.data]):
        for vector, each in zip(vectors, floats.data, strict=True):
            assert max(abs(a - b) for a, b in zip(vector, each.embedding, strict=True)) < 1e-5


@check
def image(url: str) -> None:
    """A black square of 56 x 56 points, and one of a single point, which is refused."""
    import litellm
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    client = client_of(url)
    model = client.models.list().data[0].id
    parts: list[Any] = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": png(56)}}]
    asked: list[Any] = [{"role": "user", "content": parts}]
    plain = client.chat.completions.create(model=model, messages=asked, max_tokens=5)
    blind = client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts[:1]}], max_tokens=5)
    assert plain.usage and blind.usage
    assert plain.usage.prompt_tokens == blind.usage.prompt_tokens + 4 + 2  # 2 x 2 tokens and their two marks
    by_litellm = litellm.completion(
        f"openai/{model}", messages=asked, max_tokens=5, api_base=f"{url}/v1", api_key="none"
    )
    by_langchain = ChatOpenAI(base_url=f"{url}/v1", api_key=SecretStr("none"), model=model, max_completion_tokens=5)
    said = plain.choices[0].message.content
    assert by_litellm.choices[0].message.content == said == by_langchain.invoke([HumanMessage(content=parts)]).content
    parts[1]["image_url"]["url"] = png(1)
    try:
        client.chat.completions.create(model=model, messages=asked, max_tokens=5)
    except openai.BadRequestError as error:
        assert error.code == "invalid_image"
    else:
        raise AssertionError


def png(side: int) -> str:
    """A black square as a data URL."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    points = zlib.compress(bytes((side + 1) * side))
    whole = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", points) + part(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(whole).decode()}"


if __name__ == "__main__":
    os.environ |= {**QUIET, "OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1"}
    CHECKS[sys.argv[1]](sys.argv[2])
