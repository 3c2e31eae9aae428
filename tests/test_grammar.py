"""models/engine/grammar.py: what a mask lets through is compact JSON that fits the schema; the rest is refused."""

import json
import random
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llguidance.numpy
import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from llguidance import LLMatcher
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from models import store
from models.engine.grammar import Grammars
from models.engine.sampler import forbid
from models.failure import Failure
from models.runtime import stop_ids
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE_SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted((EXAMPLES / "schemas").glob("*.json"))}
STRING = {"type": "string"}


def record(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS = EXAMPLE_SCHEMAS | {
    "any object": {"type": "object"},
    "any value": {},
    "labels": record(label={"enum": ["invoice", "credit note", 'with "quotes"', "é 🎉", "[INST]"]}),
    "numbers": record(a={"type": "integer", "minimum": -5, "maximum": 300}, b={"type": "number", "multipleOf": 0.25}),
    "nullable": record(a={"anyOf": [{"type": "integer"}, {"type": "null"}]}, b={"type": ["boolean", "null"]}),
    "pattern": record(
        date={"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}, day={"type": "string", "format": "date"}
    ),
    "optional": {
        "type": "object",
        "properties": {"a": STRING, "b": STRING, "c": STRING},
        "additionalProperties": False,
    },
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {"node": record(name=STRING, children={"type": "array", "items": {"$ref": "#/$defs/node"}})},
    },
    "tuple": {"type": "array", "prefixItems": [STRING, {"type": "integer"}], "minItems": 2, "items": False},
    "all of": {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"const": {"x": [1, 2]}}}}]},
}


@pytest.fixture(scope="module")
def grammars(smollm2: store.Loaded) -> Grammars:
    return Grammars(smollm2.tokenizer, smollm2.network.config.vocab_size, stop_ids(smollm2))


def number_of(token: str, tokenizer: PreTrainedTokenizerFast) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def bits(matcher: LLMatcher) -> NDArray[np.uint8]:
    return np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)


def allowed(matcher: LLMatcher, vocabulary: int) -> list[int]:
    logits = torch.zeros(1, vocabulary)
    forbid(logits, bits(matcher)[None])
    return logits[0].isfinite().nonzero().flatten().tolist()


def walk(matcher: LLMatcher, tokenizer: PreTrainedTokenizerFast, stop: int, rng: random.Random) -> str:
    """Text of a random walk under the mask; after 60 tokens it takes what ends things wherever it may."""
    closers = [stop, *(number_of(token, tokenizer) for token in ('"', "}", "]", ":"))]
    tokens: list[int] = []
    while not matcher.is_stopped():
        choices = allowed(matcher, len(tokenizer))
        assert choices, "a mask that forbids everything"
        ending = [token for token in closers if token in choices] if len(tokens) > 60 else []
        token = ending[0] if ending else rng.choice(choices)
        assert matcher.consume_token(token)
        if token != stop:
            tokens.append(token)
        assert len(tokens) < 5000
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def refusal(grammars: Grammars, schema: dict[str, Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        grammars.matcher(schema)
    assert caught.value.code == "schema_unsupported"
    return caught.value


def assert_compact(text: str) -> None:
    """Outside of strings there is no white space."""
    assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text)), text


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_random_walk_ends_in_compact_json_that_fits(name: str, grammars: Grammars, smollm2: store.Loaded) -> None:
    tokenizer = smollm2.tokenizer
    for seed in range(6):
        text = walk(grammars.matcher(SCHEMAS[name]), tokenizer, tokenizer.eos_token_id, random.Random(seed))
        Draft202012Validator(SCHEMAS[name]).validate(json.loads(text))
        assert_compact(text)


@pytest.mark.parametrize("name", [*EXAMPLE_SCHEMAS, "labels"])
def test_a_random_walk_with_the_tokens_of_mixtral(name: str, mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    stop = mixtral_tokenizer.eos_token_id
    mixtral = Grammars(mixtral_tokenizer, len(mixtral_tokenizer), {stop})
    for seed in range(2):
        text = walk(mixtral.matcher(SCHEMAS[name]), mixtral_tokenizer, stop, random.Random(seed))
        Draft202012Validator(SCHEMAS[name]).validate(json.loads(text))
        assert_compact(text)


def test_no_white_space_is_allowed_where_structure_is_due(grammars: Grammars, smollm2: store.Loaded) -> None:
    tokenizer = smollm2.tokenizer
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    blank = {number for number, name in enumerate(names) if name[0] in "ĠĊĉč"}
    assert len(blank) > 10_000
    matcher = grammars.matcher(record(a=STRING, b={"type": "array", "items": {"type": "integer"}}))
    for piece in ["{", '"', "a", '"', ":", '"']:
        assert not blank & set(allowed(matcher, len(tokenizer)))
        assert matcher.consume_token(number_of(piece, tokenizer))
    assert blank & set(allowed(matcher, len(tokenizer)))  # inside a string they are text
    for piece in ['"', ",", '"', "b", '"', ":", "[", "1", ",", "2", "]", "}"]:
        assert matcher.consume_token(number_of(piece, tokenizer))
        assert not blank & set(allowed(matcher, len(tokenizer)))
    assert matcher.is_stopped()


@pytest.mark.parametrize("vocabulary", [49_152, 49_153, 49_179])
def test_the_mask_agrees_with_llguidance_bit_for_bit(vocabulary: int, smollm2: store.Loaded) -> None:
    """Also where the network has more logits than the tokenizer has tokens."""
    wide = Grammars(smollm2.tokenizer, vocabulary, stop_ids(smollm2))
    matcher = wide.matcher(EXAMPLE_SCHEMAS["invoice"])
    rng = random.Random(0)
    for _ in range(30):
        words = llguidance.numpy.allocate_token_bitmask(1, vocabulary)
        llguidance.numpy.fill_next_token_bitmask(matcher, words)
        expected = [token for token in range(vocabulary) if words[0, token // 32] >> (token % 32) & 1]
        assert allowed(matcher, vocabulary) == expected
        assert matcher.consume_token(rng.choice(expected))


def test_the_mask_leaves_what_it_allows_as_it_is(grammars: Grammars) -> None:
    logits = torch.randn(1, 49_152)
    before = logits.clone()
    forbid(logits, bits(grammars.matcher({"type": "object"}))[None])
    kept = logits.isfinite()
    assert torch.equal(logits[kept], before[kept])
    assert bool((logits[~kept] == -torch.inf).all())
    assert 0 < int(kept.sum()) < 100


def test_matchers_of_one_schema_are_independent(grammars: Grammars, smollm2: store.Loaded) -> None:
    brace = number_of("{", smollm2.tokenizer)
    first, second = grammars.matcher({"type": "object"}), grammars.matcher({"type": "object"})
    fresh = allowed(first, 49_152)
    assert first.consume_token(brace)
    assert allowed(second, 49_152) == fresh != allowed(first, 49_152)
    assert allowed(grammars.matcher({"type": "object"}), 49_152) == fresh


def test_many_threads_may_compile_at_once(grammars: Grammars) -> None:
    schemas = [record(**{f"field{number % 10}": STRING}) for number in range(80)]
    with ThreadPoolExecutor(8) as pool:
        matchers = list(pool.map(grammars.matcher, schemas))
    assert len({id(matcher) for matcher in matchers}) == 80
    assert all(np.array_equal(allowed(m, 49_152), allowed(matchers[0], 49_152)) for m in matchers[:20])


@pytest.mark.parametrize(
    ("keyword", "schema"),
    [
        ("uniqueItems", {"type": "array", "uniqueItems": True}),
        ("contains", {"type": "array", "contains": STRING}),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_named(keyword: str, schema: dict[str, Any], grammars: Grammars) -> None:
    assert f'"{keyword}" at /{keyword}' in refusal(grammars, schema).message
    assert f'"{keyword}" at /properties/a/{keyword}' in refusal(grammars, record(a=schema)).message


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"not": STRING}, ["1", "null"], ['"a"']),
        ({"if": STRING, "then": {"maxLength": 1}}, ['"a"', "1"], ['"ab"']),
        ({"oneOf": [STRING, {"type": "string", "maxLength": 3}]}, ['"abcd"'], ['"abc"', "1"]),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, ["{}"], ['{"a":1}']),
        ({"type": "object", "propertyNames": {"maxLength": 3}}, ["{}", '{"abc":1}'], ['{"abcd":1}']),
        ({"type": "object", "unevaluatedProperties": False}, ["{}"], ['{"a":1}']),
    ],
)
def test_what_is_put_in_other_words_is_enforced(
    schema: dict[str, Any], right: list[str], wrong: list[str], grammars: Grammars, smollm2: store.Loaded
) -> None:
    def fits(text: str) -> bool:
        matcher = grammars.matcher(schema)
        ids = smollm2.tokenizer.encode(text, add_special_tokens=False)
        return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()

    assert [fits(text) for text in right] == [True] * len(right)
    assert [fits(text) for text in wrong] == [False] * len(wrong)


def is_named(message: str) -> bool:
    return re.search(r'^the schema cannot be enforced: "[^"]+" at /', message) is not None


def test_enforcement_cannot_be_switched_off(grammars: Grammars) -> None:
    assert "x-guidance" in refusal(grammars, {"x-guidance": {"lenient": True}, "not": STRING}).message
    assert "x-guidance" in refusal(grammars, {"x-guidance": {}, "type": "object"}).message
    # Below the top llguidance does not read it.
    assert "x-guidance" in refusal(grammars, record(a={"x-guidance": {"lenient": True}, "not": STRING})).message


def test_an_over_long_schema_is_refused(grammars: Grammars) -> None:
    assert "bytes" in refusal(grammars, {"type": "object", "description": "x" * 65_536}).message


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": []},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "integer", "minimum": 5, "maximum": 2},
        {"allOf": [STRING, {"type": "number"}]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
    ],
)
def test_a_schema_that_nothing_fits_is_refused(schema: dict[str, Any], grammars: Grammars) -> None:
    assert is_named(refusal(grammars, schema).message)


@pytest.mark.parametrize("pattern", ["(?=a)b", "(?!a)b", "(?<=a)b", "(?<!a)b", r"(a)\1", "(", "[a-"])
def test_a_pattern_beyond_linear_time_is_refused(pattern: str, grammars: Grammars) -> None:
    message = refusal(grammars, record(a={"type": "string", "pattern": pattern})).message
    assert '"pattern" at /properties/a/pattern' in message  # and nothing of the library's own words


@pytest.mark.parametrize(
    ("keyword", "schema"),
    [
        ("type", {"type": "foo"}),
        ("format", {"type": "string", "format": "no-such-format"}),
        ("$schema", {"$schema": "http://127.0.0.1:9/no-such-dialect", "type": "object"}),
        ("$ref", {"$ref": "#"}),
    ],
)
def test_what_else_cannot_be_enforced_is_refused(keyword: str, schema: dict[str, Any], grammars: Grammars) -> None:
    with pytest.raises(Failure) as caught:
        grammars.compile(schema)
    assert f'"{keyword}" at /{keyword}' in caught.value.message


def test_a_remote_reference_is_refused_and_never_fetched(grammars: Grammars) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
        for schema in (
            {"$ref": url},
            {"$ref": f"{url}#/$defs/a"},
            record(a={"$ref": url}),
            {"$id": url, "$ref": "other.json"},
            {"$schema": url, "type": "object"},
            {"$ref": "file:///dev/null"},
        ):
            refusal(grammars, schema)
        with pytest.raises(BlockingIOError):
            listener.accept()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = STRING
    for _ in range(depth):
        schema = record(a=schema)
    return schema


HOSTILE = {
    "long string": record(a={"type": "string", "maxLength": 10**9}),
    "longer than any": record(a={"type": "string", "minLength": 10**9}),
    "beyond 64 bits": record(a={"type": "string", "maxLength": 10**30}),
    "many items": {"type": "array", "minItems": 10**9, "items": STRING},
    "many properties": {"type": "object", "minProperties": 10**9},
    "sixty levels": nested(60),
    "large enum": {"enum": list(range(10_000))},
    "large enum of strings": {"enum": [f"v{number}" for number in range(7000)]},
    "wide any of": {"anyOf": [record(**{f"k{number}": STRING}) for number in range(300)]},
    "deep all of": json.loads('{"allOf":[{"type":"string"},' * 60 + "{}" + "]}" * 60),
    "product of any of": {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(10)]},
    "counted repeats": record(a={"type": "string", "pattern": "^((a{0,100}b{0,100}){0,100}c{0,100}){0,100}$"}),
    "many states": record(a={"type": "string", "pattern": "^.*a.{200}$"}),
    "conjunction of patterns": {"allOf": [{"type": "string", "pattern": f"a{number}"} for number in range(40)]},
    "many pattern properties": {"type": "object", "patternProperties": {f"^{n}a": STRING for n in range(1000)}},
    "large divisor": {"type": "integer", "multipleOf": 9_999_991},
    "divisors": {"allOf": [{"type": "integer", "multipleOf": number} for number in (101, 103, 107, 109)]},
    "doubling": {
        "$ref": "#/$defs/0",
        "$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": STRING},
    },
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_enforced_or_refused_soon(name: str, grammars: Grammars) -> None:
    """Each took seconds to hours, or gigabytes, somewhere; the time-out of the test is the assertion on that."""
    try:
        matcher = grammars.matcher(HOSTILE[name])
    except Failure as refused:
        assert refused.code == "schema_unsupported"
        return
    rng = random.Random(0)
    for _ in range(100):
        if matcher.is_stopped():
            break
        assert matcher.consume_token(rng.choice(allowed(matcher, 49_152)))
    assert not matcher.is_error()
