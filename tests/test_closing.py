"""models/engine/closing.py: an answer whose shortest form fits its budget is never cut, whatever is chosen."""

import json
import math
import random
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from models import store
from models.engine.closing import Closer, Guard
from models.engine.grammar import Grammars
from models.engine.pieces import Plan
from models.engine.place import START, Place
from models.failure import Failure
from models.runtime import stop_ids
from tests.conftest import EXAMPLES

Schema = dict[str, Any]
EXAMPLE_SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted((EXAMPLES / "schemas").glob("*.json"))}
MOST = 400
PATTERNS = ["^[A-Z]{2}[0-9]{4}$", "^(EUR|USD)$", "^[a-z]+@[a-z]+$", "^a*b$", "^[0-9]{4}-[0-9]{2}$", "^x{3,}$"]
LABELS = ["invoice", "credit note", 'with "quotes"', "é 🎉", "in", "a\\b", "", 7, 1.5, None, True]


@dataclass
class Kit:
    """A tokenizer with all that is made from it."""

    grammars: Grammars
    tokenizer: LLTokenizer
    vocabulary: int
    closer: Closer = field(init=False)
    openers: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.closer = Closer(self.tokenizer, self.vocabulary)
        texts = [self.tokenizer.decode_bytes([token]) for token in range(self.vocabulary)]
        self.openers = {n for n, text in enumerate(texts) if set(text) & set(b'{[,"-') and not set(text) & set(b"}]")}

    def ids(self, text: str) -> list[int]:
        return self.closer.tokens(self.closer.cover(text.encode()))

    def allowed(self, matcher: LLMatcher) -> list[int]:
        packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        found: list[int] = np.flatnonzero(np.unpackbits(packed, bitorder="little", count=self.vocabulary)).tolist()
        return found


def kit_of(tokenizer: PreTrainedTokenizerFast, vocabulary: int, stops: set[int]) -> Kit:
    grammars = Grammars(tokenizer, vocabulary, stops)
    return Kit(grammars, from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(stops)), vocabulary)


@pytest.fixture(scope="module")
def kit(smollm2: store.Loaded) -> Kit:
    return kit_of(smollm2.tokenizer, smollm2.network.config.vocab_size, stop_ids(smollm2))


def record(required: list[str] | None = None, /, **properties: Any) -> Schema:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def make_string(rng: random.Random) -> Schema:
    least = rng.choice([0, 0, 1, 3, 30])
    kinds: list[Schema] = [
        {},
        {"minLength": least},
        {"minLength": least, "maxLength": least + rng.randint(0, 9)},
        {"pattern": rng.choice(PATTERNS)},
        {"format": rng.choice(["date", "date-time", "time", "email", "uuid"])},
    ]
    return {"type": "string"} | rng.choice(kinds)


def make_number(rng: random.Random) -> Schema:
    low = rng.choice([-1000, -3, 0, 1, 17, 250, 10_000_000])
    kinds: list[Schema] = [
        {"type": "integer"},
        {"type": "integer", "minimum": low},
        {"type": "integer", "minimum": low, "maximum": low + rng.choice([0, 5, 300])},
        {"type": "integer", "minimum": 1, "multipleOf": rng.choice([7, 100])},
        {"type": "number"},
        {"type": "number", "minimum": low + 0.25, "maximum": low + 0.5},
        {"type": "number", "exclusiveMinimum": low},
        {"type": "number", "multipleOf": 0.25},
    ]
    return rng.choice(kinds)


def make_object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["id", "name", "total", "items", "note", "a", "ab", "é", 'q"t', "due_date"], rng.randint(0, 5))
    schema = record([name for name in names if rng.random() < 0.5], **{name: make(rng, depth - 1) for name in names})
    if rng.random() < 0.3:
        schema["additionalProperties"] = rng.choice([True, {"type": "integer"}])
    return schema


def make_array(rng: random.Random, depth: int) -> Schema:
    least = rng.choice([0, 0, 1, 2])
    bounds = rng.choice([{}, {"minItems": least}, {"minItems": least, "maxItems": least + 1}])
    return {"type": "array", "items": make(rng, depth - 1), **bounds}


def make(rng: random.Random, depth: int) -> Schema:
    """A random schema of at most `depth` levels; `#/$defs/node` stands for a recursive one."""
    scalars: list[Schema] = [
        make_string(rng),
        make_number(rng),
        {"type": rng.choice(["boolean", "null", "string"])},
        {"enum": rng.sample(LABELS, rng.randint(1, 5))},
        {"const": rng.choice([*LABELS, {"x": [1, "y"]}])},
    ]
    if depth <= 0 or rng.random() < 0.3:
        return rng.choice(scalars)
    deep = rng.choice([make_object, make_object, make_array])
    kinds: list[Schema] = [
        deep(rng, depth),
        {"anyOf": [deep(rng, depth), rng.choice(scalars)]},
        {"$ref": "#/$defs/node"},
    ]
    return rng.choices(kinds, [6, 2, 1])[0]


def schema_of(seed: int) -> Schema:
    rng = random.Random(seed)
    node = record(label=make_string(rng), next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})
    return rng.choice([make_object, make_array])(rng, 3) | {"$defs": {"node": node}}


def matcher_of(kit: Kit, schema: Schema) -> LLMatcher | None:
    try:
        return kit.grammars.matcher(schema)
    except Failure:
        return None


def answer(kit: Kit, matcher: LLMatcher, path: list[int], budget: int, rng: random.Random) -> tuple[list[int], Guard]:
    """What a sampler writes that chooses blindly, or what opens things, when guarded as an engine would."""
    guard = Guard(kit.closer, matcher, path)
    output: list[int] = []
    while len(output) < budget and not matcher.is_stopped():
        choices = kit.allowed(matcher)
        opening = kit.openers.intersection(choices) if rng.random() < 0.3 else set()
        token = guard.admit(rng.choice(sorted(opening) or choices), budget - len(output))
        assert matcher.consume_token(token)
        if token in kit.closer.stops:
            break
        output.append(token)
        if not matcher.is_stopped():
            forced = guard.force(matcher.compute_ff_tokens()[: budget - len(output)], budget - len(output))
            assert matcher.consume_tokens(forced)
            output += forced
    assert not guard.lost
    return output, guard


def number_of(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.copysign(1e300, value)  # 1e999 is JSON, but no float


def assert_whole(kit: Kit, schema: Schema, matcher: LLMatcher, output: list[int], budget: int) -> None:
    assert len(output) <= budget
    assert matcher.is_accepting(), kit.closer.decode(output)
    value = json.loads(kit.closer.decode(output), parse_float=number_of)
    jsonschema_rs.validator_for(schema).validate(value)


def sweep(kit: Kit, seeds: range, budgets: int) -> int:
    """How many of the schemas were answered whole, each with its shortest budget and some of the next twelve."""
    answered = 0
    for seed in seeds:
        schema = schema_of(seed)
        if (matcher := matcher_of(kit, schema)) is None:
            continue
        path = kit.closer.path(matcher, MOST)
        if path is None:
            continue  # a bound supplied beside a pattern can be too much for the search; the count below bounds these
        assert all(kit.closer.path(matcher, less) is None for less in {0, len(path) // 2, len(path) - 1})
        rng = random.Random(seed)
        for extra in [0, *rng.sample(range(1, 13), budgets - 1)]:
            row = matcher.deep_copy()
            output, _ = answer(kit, row, path, len(path) + extra, rng)
            assert_whole(kit, schema, row, output, len(path) + extra)
        answered += 1
    return answered


def test_no_answer_is_cut_and_none_is_invalid(kit: Kit) -> None:
    assert sweep(kit, range(300), 2) >= 250


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_answer_is_cut_with_any_budget(kit: Kit) -> None:
    assert sweep(kit, range(1000, 2200), 13) >= 1000


@pytest.mark.parametrize(
    ("schema", "begun", "expected"),
    [
        (record(a={"type": "string"}), "", '{"a":""}'),
        (record(a={"type": "string"}), '{"a":"x}', '"}'),
        (record(a={"type": "string"}), '{"a":"\\', None),
        (record(["r"], o={"type": "string"}, p={"type": "null"}, r={"type": "integer"}), "", '{"r":0}'),
        (record(["ab"], abc={"type": "null"}, ab={"type": "null"}), "", '{"ab":null}'),
        (record(["r"], o={"type": "string"}, r={"type": "integer"}), '{"o":"', '","r":0}'),
        ({"anyOf": [record(k={"const": "long"}, x={"type": "string"}), record(k={"const": "b"})]}, "", '{"k":"b"}'),
        ({"type": "array", "items": {"type": "integer", "minimum": 12}, "minItems": 2}, "", "[12,12]"),
        ({"type": "array", "items": {"type": "integer"}}, "[[1"[1:] + ",-", "0]"),
        ({"type": "string", "minLength": 1000, "maxLength": 1000}, "", None),
        ({"type": "string", "format": "date"}, '"20', None),
        ({"type": "integer"}, "12", ""),
        ({"type": "integer", "multipleOf": 1000}, "3", "000"),
        ({"enum": ["a considerably longer label", "ok"]}, "", '"ok"'),
    ],
)
def test_the_path_is_short(schema: Schema, begun: str, expected: str | None, kit: Kit) -> None:
    matcher = kit.grammars.matcher(schema)
    assert matcher.consume_tokens(kit.ids(begun))
    before = kit.allowed(matcher)
    path = kit.closer.path(matcher, MOST, START.after(begun.encode()))
    assert path is not None
    assert kit.allowed(matcher) == before
    text = kit.closer.decode(path).decode()
    assert expected in (None, text)
    jsonschema_rs.validator_for(schema).validate(json.loads(begun + text))
    assert matcher.consume_tokens(path)
    assert matcher.is_accepting()
    assert kit.closer.path(matcher, MOST, START.after((begun + text).encode())) == []


def test_a_long_filler_takes_few_tokens(kit: Kit) -> None:
    path = kit.closer.path(kit.grammars.matcher({"type": "string", "minLength": 1000}), MOST)
    assert path is not None
    assert len(path) < 30


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 100_000},
        {"type": "string", "pattern": "z.*\\.alfredworkflow"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 5000},
        {"type": "integer", "minimum": 3, "multipleOf": 99_991},
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": record(next={"$ref": "#/$defs/b"}),
                "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"const": "x" * 3000}]},
            },
        },
        {
            "anyOf": [
                record(**{f"f{n}": {"type": "string", "pattern": f"^{n}*b"} for n in range(m, 12)}) for m in range(12)
            ]
        },
    ],
)
def test_a_search_is_bounded(schema: Schema, kit: Kit) -> None:
    """Found or not, it does not take long."""
    if (matcher := matcher_of(kit, schema)) is None:
        return
    began = time.process_time()
    kit.closer.path(matcher, MOST)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("name", EXAMPLE_SCHEMAS)
@pytest.mark.parametrize("extra", [0, 5, 60, 250])
def test_an_example_closes_within_any_budget(name: str, extra: int, kit: Kit) -> None:
    schema = EXAMPLE_SCHEMAS[name]
    matcher = kit.grammars.matcher(schema)
    path = kit.closer.path(matcher, MOST)
    assert path is not None
    for seed in range(3):
        row = matcher.deep_copy()
        output, _ = answer(kit, row, path, len(path) + extra, random.Random(seed))
        assert_whole(kit, schema, row, output, len(path) + extra)


def test_an_example_closes_in_the_tokens_of_mixtral(mixtral_tokenizer: PreTrainedTokenizerFast) -> None:
    mixtral = kit_of(mixtral_tokenizer, len(mixtral_tokenizer), {mixtral_tokenizer.eos_token_id})
    assert sweep(mixtral, range(5000, 5060), 2) >= 50


def test_a_recursive_answer_closes_however_deep_it_goes(kit: Kit) -> None:
    schema = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}
    matcher = kit.grammars.matcher(schema)
    guard = Guard(kit.closer, matcher, kit.closer.path(matcher, MOST))
    output: list[int] = []
    while not matcher.is_stopped():
        choices = kit.allowed(matcher)
        opening = [token for token in kit.ids("[") + kit.ids(",") if token in choices]
        output.append(guard.admit((opening or choices)[0], 500 - len(output)))
        assert matcher.consume_token(output[-1])
    assert guard.closing
    assert len(output) <= 500
    json.loads(kit.closer.decode(output))


@pytest.mark.parametrize("fields", [6, 15, 25])
def test_items_that_are_dear_each_close_within_large_budgets(fields: int, kit: Kit) -> None:
    """Strings end soon and items follow on items, so that the last one begins when little is left."""
    item = record(**{f"line_field_{number}": {"type": "string"} for number in range(fields)})
    schema = record(items={"type": "array", "items": item})
    rng = random.Random(fields)
    eager = [kit.ids(text)[0] for text in ('"', '",', "},{", "},", ",")]
    for budget in range(300, 900, 40):
        matcher = kit.grammars.matcher(schema)
        path = kit.closer.path(matcher, MOST)
        assert path is not None
        guard, output = Guard(kit.closer, matcher, path), list[int]()
        while not matcher.is_stopped():
            left = budget - len(output)
            assert left > 0 and not guard.lost
            if forced := guard.force(matcher.compute_ff_tokens()[:left], left):
                token, taken = -1, forced
            else:
                choices = kit.allowed(matcher)
                token = rng.choice([each for each in eager if each in choices] or choices)
                taken = [guard.admit(token, left)]
            for each in taken:
                assert matcher.consume_token(each)
            output += [each for each in taken if each not in kit.closer.stops]
        assert_whole(kit, schema, matcher, output, budget)


def test_a_plan_of_ten_thousand_tokens_costs_a_choice_little(kit: Kit) -> None:
    """Counted in the ids that are looked at, not timed."""
    text = b'{"a":"' + b"qz xv jw kp " * 1200 + b'"}'
    plan = kit.closer.cover(text)
    assert plan.size > 5000
    tails = kit.closer.tails(plan, 8)
    assert [start for start, _ in tails] == sorted(start for start, _ in tails)
    assert len(tails) == 8
    assert all(kit.closer.decode(ids[:-1]) == text[start:] for start, ids in tails)


def test_llguidance_prints_nothing_of_an_answer(kit: Kit, capfd: pytest.CaptureFixture[str]) -> None:
    matcher = kit.grammars.matcher(record(a={"enum": ["x", "y"]}))
    assert not matcher.consume_token(kit.ids(" secret")[0])
    assert "".join(capfd.readouterr()) == ""


def test_a_guard_with_room_changes_nothing(kit: Kit) -> None:
    schema = record(a={"type": "string"}, b={"type": "integer"})
    matcher = kit.grammars.matcher(schema)
    guard = Guard(kit.closer, matcher, kit.closer.path(matcher, MOST))
    for left, token in zip(range(100, 0, -1), kit.ids('{"a":"some text","b":12}'), strict=False):
        assert guard.admit(token, left) == token
        assert matcher.consume_token(token)
    assert matcher.is_stopped()
    assert not guard.closing
    assert not guard.lost


def test_a_choice_that_costs_too_much_is_replaced_by_the_plan(kit: Kit) -> None:
    matcher = kit.grammars.matcher(record(["r"], o={"type": "array", "minItems": 20}, r={"type": "integer"}))
    path = kit.closer.path(matcher, MOST)
    assert path is not None
    guard = Guard(kit.closer, matcher, path)
    assert guard.force(path[:1], 10) == path[:1]
    assert matcher.consume_token(path[0])
    assert guard.admit(kit.ids("o")[0], 9) == path[1]
    assert guard.closing
    assert guard.plan == path[2:]


def test_forced_tokens_that_cost_too_much_are_left(kit: Kit) -> None:
    matcher = kit.grammars.matcher(record(abc={"type": "integer"}))
    path = kit.closer.path(matcher, MOST)
    assert path is not None
    guard = Guard(kit.closer, matcher, path)
    letters = [kit.ids(letter)[0] for letter in '{"abc']
    assert guard.force(letters, len(path)) == []
    assert guard.force(letters, len(path) + len(letters)) == letters


def test_a_whole_answer_may_end_or_go_on_while_there_is_room(kit: Kit) -> None:
    matcher = kit.grammars.matcher({"type": "number"})
    guard = Guard(kit.closer, matcher, [])
    one, point = kit.ids("1")[0], kit.ids(".")[0]
    guard = Guard(kit.closer, matcher, kit.closer.path(matcher, MOST))
    assert guard.admit(one, 2) == one
    assert matcher.consume_token(one)
    assert guard.admit(kit.closer.stops[0], 1) == kit.closer.stops[0]
    assert guard.admit(point, 1) == kit.closer.stops[0]
    assert guard.closing


def test_a_guard_without_a_plan_says_so_and_finds_one_later(kit: Kit) -> None:
    matcher = kit.grammars.matcher({"type": "array", "items": {"type": "integer"}, "minItems": 3})
    guard = Guard(kit.closer, matcher, None)
    assert guard.lost
    assert guard.plan is None
    token = kit.ids("[")[0]
    assert guard.admit(token, 2) == token
    assert guard.lost
    assert matcher.consume_token(token)
    for left, text in [(2, "1"), (1, "1")]:
        assert guard.admit(kit.ids(text)[0], left) == kit.ids(text)[0]


def test_an_answer_with_much_to_spare_is_looked_at_seldom(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = kit.grammars.matcher({"type": "object"})
    path = kit.closer.path(matcher, MOST)
    searches, plan = count(), Closer.plan

    def counted(closer: Closer, matcher: LLMatcher, place: Place, *known: Any) -> Plan | None:
        next(searches)
        return plan(closer, matcher, place, *known)

    monkeypatch.setattr(Closer, "plan", counted)
    guard, left, rng = Guard(kit.closer, matcher, path), 4000, random.Random(0)
    while left > 1000 and not matcher.is_stopped():
        choices = kit.allowed(matcher)
        token = guard.admit(rng.choice(sorted(kit.openers.intersection(choices)) or choices), left)
        assert matcher.consume_token(token)
        left -= 1
    assert next(searches) < 40
