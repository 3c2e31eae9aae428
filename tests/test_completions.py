"""serving/completions.py: texts to go on with, as the public API's older form has them."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from transformers import PreTrainedTokenizerFast

from models import store
from models.catalog import MIXTRAL
from models.failure import FieldFailure
from models.template import Template
from serving.completions import Request
from tests.conftest import Server

MODEL = "smollm2-135m-instruct"
BODY: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time"}
WARM: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_tokens": 30}


def parse(**changes: Any) -> Request:
    return Request.parse(json.dumps({**BODY, **changes}).encode())


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"wat": 1}, "unknown_parameter", "wat"),
    ({"messages": []}, "unknown_parameter", "messages"),
    ({"max_completion_tokens": 5}, "unknown_parameter", "max_completion_tokens"),
    ({"tools": []}, "unknown_parameter", "tools"),
    ({"prompt": None}, "invalid_value", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": ["a"] * 17}, "invalid_value", "prompt"),
    ({"prompt": [1, 2]}, "invalid_value", "prompt"),
    ({"prompt": [[1, 2]]}, "invalid_value", "prompt"),
    ({"echo": True}, "invalid_value", "echo"),
    ({"echo": 0}, "invalid_value", "echo"),
    ({"best_of": 2}, "invalid_value", "best_of"),
    ({"suffix": "x"}, "invalid_value", "suffix"),
    ({"logprobs": 6}, "invalid_value", "logprobs"),
    ({"n": 5}, "invalid_value", "n"),
    ({"frequency_penalty": 1}, "invalid_value", "frequency_penalty"),
]


@pytest.mark.parametrize(("changes", "code", "param"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named_by_its_path(changes: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(FieldFailure) as caught:
        parse(**changes)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_tokens_are_refused_in_words() -> None:
    with pytest.raises(FieldFailure, match="send texts"):
        parse(prompt=[1, 2])


def test_what_is_read() -> None:
    asked = parse(stop="x", echo=False, best_of=None, suffix=None, logprobs=0)
    assert (asked.prompts, asked.most, asked.stops, asked.tops, asked.rows) == (["Once upon a time"], 16, ["x"], 0, 1)
    assert parse(prompt=["a", ""]).prompts == ["a", ""]


def test_a_text_is_tokenised_as_it_stands(smollm2: store.Loaded, mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    """Behind what begins any prompt of the model, if that is no mark of a turn; no text becomes a control token."""
    text = "Once [INST] </s><|im_end|>"
    mixtral = Template(mixtral_tokenizer, MIXTRAL.markers, MIXTRAL.alternates).continued(text)
    assert mixtral[0] == mixtral_tokenizer.bos_token_id and mixtral.count(2) == 0
    assert mixtral_tokenizer.decode(mixtral[1:]) == text
    small = Template(smollm2.tokenizer, (), alternates=False).continued(text)
    assert smollm2.tokenizer.decode(small) == text
    assert not set(small) & set(smollm2.tokenizer.all_special_ids)


# ---- the public client against the service ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tiny_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **changes: Any) -> Completion:
    found = client.completions.create(**{**BODY, **changes})
    assert isinstance(found, Completion)
    return found


def test_a_completion(client: openai.OpenAI) -> None:
    found = ask(client)
    (choice,) = found.choices
    assert (found.object, choice.finish_reason, choice.index, choice.logprobs) == ("text_completion", "length", 0, None)
    assert found.usage and found.usage.completion_tokens == 16 and choice.text


def test_several_prompts_and_choices(client: openai.OpenAI) -> None:
    """In the order of the prompts, a prompt's choices together; each as if it had been asked for alone."""
    texts = ["Once upon", "The end", "Once upon"]
    found = ask(client, **WARM, prompt=texts, n=2)
    assert [choice.index for choice in found.choices] == list(range(6))
    expected = [ask(client, **{**WARM, "seed": seed}, prompt=text).choices[0].text for text in texts for seed in (5, 6)]
    assert [choice.text for choice in found.choices] == expected
    assert found.usage and found.usage.completion_tokens == 180


@pytest.mark.parametrize("changes", [WARM, {**WARM, "n": 3}, {**WARM, "stop": ["a", "e"]}, {**WARM, "logprobs": 2}])
def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, changes: dict[str, Any]) -> None:
    whole = ask(client, **changes)
    chunks = list(client.completions.create(**{**BODY, **changes}, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    for choice in whole.choices:
        told = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert "".join(each.text for each in told) == choice.text
        assert [each.finish_reason for each in told if each.finish_reason] == [choice.finish_reason]
        if choice.logprobs:
            offsets = [at for each in told if each.logprobs for at in each.logprobs.text_offset or ()]
            assert offsets == choice.logprobs.text_offset


def test_a_stream_to_the_letter(tiny_server: Server) -> None:
    response = httpx.post(
        f"{tiny_server.url}/v1/completions", json={**BODY, "max_tokens": 2, "stream": True}, timeout=60
    )
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events)


def test_log_probabilities_in_the_older_form(client: openai.OpenAI) -> None:
    (choice,) = ask(client, **WARM, logprobs=3).choices
    told = choice.logprobs
    assert told and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
    assert "".join(told.tokens) == choice.text
    for at, offset in enumerate(told.text_offset):  # behind bytes that come to be no character, their place is told
        assert 0 <= len("".join(told.tokens[:at])) - offset <= 4
    for token, logprob, tops in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert tops[token] == logprob <= max(tops.values()) and 3 <= len(tops) <= 4
    (bare,) = ask(client, **WARM, logprobs=0).choices
    assert bare.logprobs and bare.logprobs.top_logprobs
    assert [list(tops) for tops in bare.logprobs.top_logprobs] == [[token] for token in told.tokens]


def test_what_cannot_be_served_is_refused(client: openai.OpenAI) -> None:
    for changes, kind, param in (
        ({"model": "x"}, openai.NotFoundError, "model"),
        ({"prompt": [1]}, openai.BadRequestError, "prompt"),
        ({"prompt": ""}, openai.BadRequestError, "prompt"),
        ({"prompt": "word " * 9000}, openai.BadRequestError, None),
        ({"max_tokens": 9000}, openai.BadRequestError, None),
    ):
        with pytest.raises(kind) as caught:
            ask(client, **changes)
        assert caught.value.param == param


def test_the_real_model_goes_on(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        (choice,) = ask(client, prompt="The capital of France is", max_tokens=8).choices
        assert choice.text.startswith(" Paris")
