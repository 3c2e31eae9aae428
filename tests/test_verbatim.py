"""models/engine/verbatim.py and follower.py: a copy-only string is in the document, whatever is chosen."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
import torch
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from models import catalog, manifest, store
from models.engine.closing import Closer, Guard
from models.engine.engine import Engine
from models.engine.follower import Follower
from models.engine.grammar import Grammars, Masks
from models.engine.matcher import Matcher
from models.engine.scheduler import Piece
from models.engine.sequence import Completion, Sampling, Sequence
from models.engine.substrings import Substrings, Vocabulary, vocabulary_of
from models.engine.verbatim import Verbatim
from models.failure import Failure
from models.runtime import stop_ids
from models.schema.dialect import Schema
from models.schema.fields import fields
from models.template import Template, Turn

RECEIPT = """ACME "Zürich" GmbH\tNo. INV-2041\\7
Date: 12/03/2024   due 2024-04-11
3 x café crème 4.50 = 13.50 €
TOTAL EUR 13.50 (VAT 7.7 %) null "n/a"
"""
DOCUMENTS = {
    "receipt": [RECEIPT],
    "symbols": ['a "quoted" \\"word\\" \\\\ C:\\new\\table', "\x01\x1f\x7f\n\r\t\b\f/", "🎉👩‍👧 e\u0301é\u2028ß"],
    "repeats": ["a" * 150, "\\" * 40, '"' * 40],
    "pages": ["one two", "two three", "", "o"],
    "empty": [""],
}
COPY: Schema = {"type": "string", "x-verbatim": True}
# In the schemas of these tests the names of copied values begin with v, of free ones with f, and no others have texts.
PART = re.compile(rb'[{}\[\],:]|"((?:[^"\\]|\\.|\\\Z)*)("?)', re.DOTALL)
UNIT = re.compile(rb"\\u[0-9a-fA-F]{4}|\\[^u]|[^\\]", re.DOTALL)


def record(**properties: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Kit:
    """A tokenizer with all that is made from it."""

    grammars: Grammars
    closer: Closer
    vocabulary: Vocabulary
    stop: int

    def row(self, schema: Schema, pages: list[str]) -> Verbatim:
        found, grammar = fields(schema), self.grammars.compile(schema)
        assert found is not None
        return Verbatim(grammar.template.deep_copy(), Follower(found, Substrings(pages, self.vocabulary)))

    def text(self, tokens: list[int]) -> bytes:
        return b"".join(self.vocabulary.tokens[token] for token in tokens)

    def ids(self, text: str) -> list[int]:
        """In single bytes."""
        return [self.vocabulary.ids[byte] for byte in text.encode()]


def kit_of(tokenizer: PreTrainedTokenizerFast, size: int) -> Kit:
    stop: int = tokenizer.eos_token_id
    grammars = Grammars(tokenizer, size, {stop})
    made = from_tokenizer(tokenizer, n_vocab=size, eos_token=[stop])
    return Kit(grammars, Closer(made, size), vocabulary_of(made, size), stop)


@pytest.fixture(scope="module")
def mixtral(mixtral_tokenizer: PreTrainedTokenizerFast) -> Kit:
    return kit_of(mixtral_tokenizer, len(mixtral_tokenizer))


@pytest.fixture(scope="module", params=["mixtral", "smollm2"])
def kit(request: pytest.FixtureRequest) -> Kit:
    if request.param == "mixtral":
        found: Kit = request.getfixturevalue("mixtral")
        return found
    smollm2: store.Loaded = request.getfixturevalue("smollm2")
    return kit_of(smollm2.tokenizer, smollm2.network.config.vocab_size)


def members(mask: bytes) -> list[int]:
    found: list[int] = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")).tolist()
    return found


def allowed(row: Verbatim) -> list[int]:
    """What the engine would let it choose from."""
    masks = np.frombuffer(row.inner.compute_bitmask(), np.uint8).copy()[None]
    row.restrict(masks, [])
    return members(masks[0].tobytes())


@lru_cache(1 << 16)
def said(raw: bytes) -> tuple[bytes, bytes]:
    """A string as far as it is written, and an escape that is not whole."""
    units, end = [], 0
    while unit := UNIT.match(raw, end):
        units.append(unit[0] if unit[0][:1] != b"\\" else str(json.loads(b'"' + unit[0] + b'"')).encode())
        end = unit.end()
    return b"".join(units), raw[end:]


def is_copied(raw: bytes, pages: tuple[bytes, ...]) -> bool:
    """Whether a string that begins like this may come to be in the document."""
    text, begun = said(raw)
    ways = [text]
    if begun:
        ways = [text + end.encode() for end in '"\\\n\r\t\b\f' if json.dumps(end)[1:-1].encode().startswith(begun)]
    return any(way in page for way in ways for page in pages)


def strings(text: bytes) -> Iterator[tuple[str, bytes]]:
    """The texts in a beginning of an answer, with the name before them."""
    name, around, last = "", b"", b""
    for found in PART.finditer(text):
        part = found[0]
        around = around + part if part in b"{[" else around[:-1] if part in b"}]" else around
        if part[:1] == b'"' and around[-1:] == b"{" and last in (b"{", b","):
            name = json.loads(part) if found[2] else ""
        elif part[:1] == b'"':
            yield name, found[1]
        last = part


def is_kept(text: bytes, pages: tuple[bytes, ...]) -> bool:
    return all(is_copied(raw, pages) for name, raw in strings(text) if name[:1] == "v")


SHAPES: dict[str, Schema] = {
    "text": record(v=COPY),
    "texts": record(v={"type": "array", "items": COPY, "maxItems": 3}, f={"type": "string", "maxLength": 9}),
    "mixed": record(f={"type": "string", "maxLength": 5}, v={"anyOf": [COPY, {"type": "null"}]}, n={"type": "integer"}),
    "nested": record(x={"type": "array", "items": record(v=COPY, f={"type": "boolean"}), "maxItems": 2}, v=COPY),
    "other": {"type": "object", "properties": {"f": {"maxLength": 3, "type": "string"}}, "additionalProperties": COPY},
    "named": record(**{'v "\\\n é/~': COPY, "f\t": {"type": "string", "maxLength": 4}}),
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {"node": record(v=COPY, n={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
    },
}


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("shape", ["text", "texts", "named"])
def test_a_mask_allows_what_the_document_has_and_nothing_else(shape: str, document: str, kit: Kit) -> None:
    """Of the grammar's tokens all that keep each copied string a part of the document."""
    pages = tuple(page.encode() for page in DOCUMENTS[document])
    rng, row, text = random.Random(f"{shape} {document}"), kit.row(SHAPES[shape], DOCUMENTS[document]), b""
    for _ in range(12):
        if row.is_stopped():
            break
        assert is_kept(text, pages)
        inner, mine = members(row.inner.compute_bitmask()), set(members(row.compute_bitmask()))
        assert mine <= set(inner)
        for token in inner:
            more = text + kit.vocabulary.tokens[token]
            assert is_kept(more, pages) == (token in mine), more
        token = rng.choice(sorted(mine))
        assert row.validate_tokens([token]) == 1
        assert row.consume_token(token)
        text += kit.vocabulary.tokens[token]
    assert not row.is_error()


def assert_copied(schema: Schema, output: bytes, pages: list[str]) -> int:
    """The answer is whole and fits, and what is to be copied is; how many words were."""
    text = output.decode()
    jsonschema_rs.validator_for(schema).validate(json.loads(text))
    copied = [json.loads(b'"' + raw + b'"') for name, raw in strings(output) if name[:1] == "v"]
    assert all(any(value in page for page in pages) for value in copied), text
    return sum(map(bool, copied))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_an_answer_closes_within_its_budget(shape: str, document: str, mixtral: Kit) -> None:
    """Whatever is chosen; with what the document has."""
    schema, pages = SHAPES[shape], DOCUMENTS[document]
    start = mixtral.row(schema, pages)
    path = mixtral.closer.path(start, 200)
    assert path is not None
    for seed in range(4):
        rng, row, output = random.Random(seed), start.deep_copy(), list[int]()
        budget = len(path) + rng.choice([0, 3, 10, 40])
        guard = Guard(mixtral.closer, row, path)
        while len(output) < budget and not row.is_stopped():
            token = guard.admit(rng.choice(allowed(row)), budget - len(output))
            assert row.consume_token(token)
            output += [token] if token != mixtral.stop else []
            left = budget - len(output)
            if not row.is_stopped() and (forced := guard.force(row.compute_ff_tokens()[:left], left)):
                assert row.consume_tokens(forced)
                output += forced
        assert row.is_accepting()
        assert_copied(schema, mixtral.text(output), pages)


DATE = COPY | {"pattern": "^[0-9]{2}/[0-9]{2}/[0-9]{4}$"}
WANTING: dict[str, Schema] = SHAPES | {
    "pattern": record(v=DATE, v2=COPY | {"pattern": "^[A-Z]{3}-[0-9]{1,9}$"}),
    "length": record(v=COPY | {"minLength": 3, "maxLength": 9}, v2=COPY | {"minLength": 20}),
    "optional": record(
        v={"anyOf": [DATE, {"type": "null"}]}, v2={"anyOf": [COPY | {"pattern": "^X{1,3}$"}, {"type": "null"}]}
    ),
    "listed": record(v=COPY | {"enum": ["EUR", "CHF", "Date: 13"]}, v2=COPY | {"format": "date"}),
    "items": record(
        v={"type": "array", "items": COPY | {"pattern": "^[0-9]{1,4}[.][0-9]{1,4}$"}, "minItems": 1, "maxItems": 3}
    ),
    "either": {"anyOf": [record(v=COPY | {"minLength": 2}), record(v=COPY, f={"type": "string", "maxLength": 4})]},
}


@dataclass(frozen=True)
class Asked:
    """A question on its way through an engine."""

    schema: Schema
    row: Sequence


@pytest.fixture(scope="module")
def tiny_mixtral_network(tiny_mixtral_home: Any) -> store.Loaded:
    return store.load(manifest.locate(catalog.MIXTRAL, tiny_mixtral_home / "models"), torch.device("cpu"))


def ask(kit: Kit, prompt: list[int], shape: str, seed: int) -> Asked:
    """One that samples, or is greedy, with a budget from just enough to plenty."""
    rng, schema = random.Random(seed), WANTING[shape]
    row, guard = kit.grammars.compile(schema).start(kit.grammars.index((RECEIPT,)))
    assert guard.plan is not None
    budget = len(guard.plan) + rng.choice([0, 2, 8, 30])
    sampling = Sampling(budget, temperature=rng.choice([0.0, 1.0, 5.0]), seed=seed)
    return Asked(schema, Sequence(prompt, sampling, row, guard=guard))


def test_whatever_an_engine_finishes_is_copied(tiny_mixtral_network: store.Loaded, mixtral: Kit) -> None:
    """With drafts, which are looked up in the document, and in batches."""
    loaded = tiny_mixtral_network
    prompt = Template(loaded.tokenizer, (), alternates=True).encode([Turn("user", RECEIPT)])
    asked = [ask(mixtral, prompt, shape, seed) for seed in range(17) for shape in WANTING]
    engine = Engine(loaded.network, stop_ids(loaded), kv_tokens=16_384, step_tokens=512, queue_tokens=1_000_000)
    engine.utility.length = lambda rows, drafting: 4  # type: ignore[method-assign]
    engine.start()
    outcomes = Counter[str]()
    for each in asked:
        engine.submit(each.row)
    for each in asked:
        done = each.row.future.result(timeout=120)
        outcomes[done.finish_reason] += 1
        outcomes["words"] += assert_copied(each.schema, mixtral.text(done.tokens), [RECEIPT])
    engine.stop()
    assert engine.tokens["accepted"] > 0
    assert outcomes["stop"] + outcomes["closed"] == len(asked) > 200
    assert outcomes["words"] > 100


def outcome(network: store.Loaded, row: Sequence) -> Failure | Completion:
    """What an engine makes of one row."""
    engine = Engine(network.network, stop_ids(network), kv_tokens=1024, step_tokens=512, queue_tokens=100_000)
    engine.start()
    try:
        engine.submit(row)
        return row.future.result(timeout=60)
    except Failure as failure:
        return failure
    finally:
        engine.stop()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "wanted", [{"pattern": "^[0-9]{9}$"}, {"const": "Zürich AG"}, {"enum": ["12/03/2025", "EURO"]}]
)
def test_a_text_that_is_not_there_fails_its_row(
    wanted: Schema, temperature: float, tiny_mixtral_network: store.Loaded, mixtral: Kit
) -> None:
    row = mixtral.row(record(f={"type": "boolean"}, **{"v/": COPY | wanted}), [RECEIPT])
    path = mixtral.closer.path(row, 100)
    sampling = Sampling(100, temperature=temperature, seed=1)
    failed = outcome(tiny_mixtral_network, Sequence([1, 2, 3], sampling, row, guard=Guard(mixtral.closer, row, path)))
    assert path is None
    assert isinstance(failed, Failure)
    assert failed.code == "verbatim_absent"
    assert failed.message == "no text of the document fits what the schema asks for at #/properties/v~1"


@pytest.mark.parametrize("pages", [[RECEIPT], [""], []])
def test_null_is_said_where_no_text_fits(pages: list[str], kit: Kit) -> None:
    """The quote that would begin one is not allowed, also in a token with what comes before it."""
    part = {"anyOf": [COPY | {"pattern": "^[0-9]{9}$"}, {"type": "null"}]}
    for seed in range(6):
        rng, row, output = random.Random(seed), kit.row(record(v=part, v2=part), pages), list[int]()
        while not row.is_stopped():
            output.append(rng.choice(allowed(row)))
            assert row.consume_token(output[-1])
        assert kit.text(output).strip() == b'{"v":null,"v2":null}'


def test_what_cannot_be_looked_through_stays_allowed(mixtral: Kit) -> None:
    """Among thousands that look like a date there is one; it may be begun."""
    text = " ".join(f"{day:02}/{month:02}.{day}" for day in range(100) for month in range(0, 100, 7))
    part = {"anyOf": [DATE, {"type": "null"}]}
    row = mixtral.row(record(v=part), [f"12/03/2024 {text}"])
    assert row.consume_tokens(mixtral.ids('{"v":'))
    assert mixtral.ids('"')[0] in allowed(row)


def test_the_failure_says_where_though_nothing_was_forced(kit: Kit) -> None:
    rng, row = random.Random(0), kit.row(record(v=COPY | {"pattern": "^[0-9]{9}$"}), [RECEIPT])
    with pytest.raises(Failure, match=r"#/properties/v$"):
        while not row.is_stopped():
            row.consume_token(rng.choice(allowed(row)))


def test_a_beginning_that_cannot_end_is_avoided(kit: Kit) -> None:
    """Of what looks like a date, only what is one."""
    for seed in range(12):
        rng, row, output = random.Random(seed), kit.row(record(v=DATE), [RECEIPT]), list[int]()
        while not row.is_stopped():
            output.append(rng.choice(allowed(row)))
            assert row.consume_token(output[-1])
        assert kit.text(output).strip() == b'{"v":"12/03/2024"}'


def test_what_the_grammar_forces_is_cut_where_the_document_ends(kit: Kit) -> None:
    row = kit.row(record(v=COPY | {"const": "EUR 13.50 (VAT)"}, f={"const": 1}), [RECEIPT])
    assert row.consume_tokens(kit.ids('{"v":"EUR'))
    assert row.compute_ff_bytes() == b" 13.50 (VAT"
    assert b" 13.50 (VAT".startswith(kit.text(row.compute_ff_tokens()))
    assert row.validate_tokens(kit.ids(' 13.50 (VAT)","f"')) == len(" 13.50 (VAT")
    copy = row.deep_copy()
    assert not copy.consume_tokens(kit.ids(" 13.50 (VAT)"))
    assert copy.is_error() and copy.is_stopped() and not copy.is_accepting()
    assert copy.validate_tokens(kit.ids(" ")) == 0
    assert not copy.consume_token(kit.ids(" ")[0])
    assert not row.is_error()
    assert row.consume_tokens(kit.ids(" 13.50 (VAT"))
    assert row.compute_ff_bytes() == b""
    assert allowed(row) == [0]
    with pytest.raises(Failure, match="verbatim_absent"):
        row.consume_token(0)


@pytest.mark.parametrize("shape", ["texts", "mixed", "optional", "items"])
def test_masks_behind_a_draft_are_those_of_each_state(shape: str, kit: Kit) -> None:
    rng = random.Random(shape)
    for _ in range(5):
        row, draft = kit.row(WANTING[shape], [RECEIPT]), list[int]()
        for _ in range(rng.randrange(12)):
            if not row.is_stopped():
                row.consume_token(rng.choice(allowed(row)))
        ahead, expected, inner = row.deep_copy(), [allowed(row)], [row.inner.compute_bitmask()]
        while len(draft) < 6 and not ahead.is_stopped():
            draft.append(rng.choice(allowed(ahead)))
            assert ahead.consume_token(draft[-1])
            if ahead.is_stopped():
                draft.pop()
                break
            expected.append(allowed(ahead))
            inner.append(ahead.inner.compute_bitmask())
        masks = np.stack([np.frombuffer(mask, np.uint8) for mask in inner]).copy()
        row.restrict(masks, draft)
        assert [members(mask.tobytes()) for mask in masks] == expected
        assert row.validate_tokens(draft) == len(draft)


def test_rows_of_each_kind_get_their_masks(mixtral: Kit) -> None:
    """With a document, with a grammar alone, with neither; with drafts and without."""
    schema = SHAPES["text"]
    pieces, expected = [], []
    for number, kind in enumerate(["copied", "plain", "free", "copied", "copied"]):
        plain, copied = mixtral.grammars.matcher(schema), mixtral.row(schema, [RECEIPT])
        matcher: Matcher | None = copied if kind == "copied" else plain if kind == "plain" else None
        draft = mixtral.ids('{"v":"Z'[: 3 * (number % 2) + 4 * (number == 4)]) if matcher else []
        pieces.append(Piece(Sequence([1], Sampling(9), matcher), 1, draft))
        for end in range(len(draft) + 1):
            ahead = matcher.deep_copy() if matcher else None
            if isinstance(ahead, Verbatim):
                assert ahead.consume_tokens(draft[:end])
                expected.append(allowed(ahead))
            elif ahead:
                assert ahead.consume_tokens(draft[:end])
                expected.append(members(ahead.compute_bitmask()))
            else:
                expected.append(list(range(32_000)))
    masks = Masks(32_000)
    masks.begin(pieces)
    found = masks.allowed(pieces)
    assert found is not None
    assert [members(mask.tobytes()) for mask in found] == expected


def test_copies_go_their_own_ways(kit: Kit) -> None:
    row = kit.row(SHAPES["text"], ["alpha beta"])
    assert row.consume_tokens(kit.ids('{"v":"a'))
    other = row.deep_copy()
    before = allowed(row)
    assert other.consume_tokens(kit.ids("lpha"))
    assert allowed(row) == before != allowed(other)
    assert row.consume_tokens(kit.ids(' beta"}'))
    assert row.is_stopped() and row.is_accepting() and not row.is_error()
    assert not other.is_stopped()


@pytest.mark.parametrize(
    ("begun", "pointer"),
    [
        ('{"v', None),
        ('{"v":', "/properties/v"),
        (' "', None),
        ('{"v":"al', "/properties/v"),
        ('{"v":"al"', None),
        ('{"v":"al","\u0066":"v', None),
        ('{"\u0076":"', "/properties/v"),
        ('{"x":[', "/properties/x/items"),
        ('{"x":["al",', "/properties/x/items"),
        ('{"x":["al",{"v":[1,"', None),
        ('{"x":["al",{}],"v":', "/properties/v"),
        ('{"x":["al"],"f":{"v":{"v":"', None),
        ('{"x":{"y":1},"v":"', "/properties/v"),
        ('{"p":["', None),
        ('{"p":["a",[2,"b"],"', "/properties/p/prefixItems/2"),
        ('{"p":["a",{"b":[1,2]},"alpha","', None),
    ],
)
def test_it_is_known_which_string_is_copied(begun: str, pointer: str | None, mixtral: Kit) -> None:
    listed = {"prefixItems": [{}, {}, COPY]}
    schema = {"properties": {"v": COPY, "x": {"items": {"x-verbatim": True}}, "p": listed}}
    found = fields(schema)
    assert found is not None
    follower = Follower(found, Substrings(["alpha"], mixtral.vocabulary))
    spot = follower.follow(follower.start, begun.encode())
    assert spot is not None
    assert follower.copied(spot) == pointer


def test_a_text_alone_may_be_copied_behind_a_blank(mixtral: Kit) -> None:
    found = fields(COPY)
    assert found is not None
    follower = Follower(found, Substrings(["alpha"], mixtral.vocabulary))
    assert follower.follow(follower.start, b' "alp') and follower.follow(follower.start, b'"alp"')
    assert follower.follow(follower.start, b' "beta') is None
    assert follower.follow(follower.start, b'"beta') is None
