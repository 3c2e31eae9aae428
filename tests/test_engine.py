"""models/engine/engine.py: the right tokens whoever else is there, and one outcome for every sequence."""

import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from models import catalog, manifest, network, store
from models.engine.engine import Engine
from models.engine.grammar import Grammars
from models.engine.sampler import forbid
from models.engine.sequence import Completion, Sampling, Sequence
from models.engine.speculation import Utility
from models.failure import Failure
from models.nf4.matrix import dense
from models.runtime import stop_ids
from models.schema.dialect import Schema
from models.template import Template, Turn
from tests.conftest import EXAMPLES, started

PROMPTS = [
    "What is the capital of France?",
    "List three colours.",
    "Explain how a bicycle stays upright to a child.",
]
RECEIPT = json.loads((EXAMPLES / "schemas" / "receipt.json").read_text())


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return Template(tokenizer, (), alternates=False).encode([Turn("user", text)])


@pytest.fixture(scope="module")
def small(tiny_home: Path) -> store.Loaded:
    """The tiny model, shared by engines that follow each other."""
    return store.load(manifest.locate(catalog.SMOLLM2, tiny_home / "models"), torch.device("cpu"))


def make(
    loaded: store.Loaded,
    kv_tokens: int = 8192,
    step_tokens: int = 512,
    queue_tokens: int = 1_000_000,
    speculate: bool = False,
) -> Engine:
    """Without drafts unless asked for: how many steps an answer takes can be told only then."""
    return Engine(
        loaded.network,
        stop_ids(loaded),
        kv_tokens=kv_tokens,
        step_tokens=step_tokens,
        queue_tokens=queue_tokens,
        speculate=speculate,
    )


def prompt_ids(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed * 1000 + length)
    return [rng.randrange(100, 49_000) for _ in range(length)]


def sequence(length: int, answer: int, seed: int = 0, **more: Any) -> Sequence:
    return Sequence(prompt_ids(length, seed), Sampling(answer), **more)


def result(sequence: Sequence) -> Completion:
    return sequence.future.result(timeout=60)


def failure(sequence: Sequence) -> Failure:
    error = sequence.future.exception(timeout=60)
    assert isinstance(error, Failure)
    return error


def refusal(engine: Engine, sequence: Sequence) -> Failure:
    with pytest.raises(Failure) as caught:
        engine.submit(sequence)
    return caught.value


def run_all(engine: Engine, sequences: list[Sequence]) -> None:
    """Submit all at once to an engine that is not started, and step it until all are done."""
    for row in sequences:
        engine.submit(row)
    step(engine, until=lambda: all(row.future.done() for row in sequences))


def run(engine: Engine, sequences: list[Sequence]) -> list[list[int]]:
    run_all(engine, sequences)
    return [result(row).tokens for row in sequences]


def step(engine: Engine, times: int = 1000, until: Callable[[], bool] = lambda: False) -> int:
    """Step by hand; how many steps it took."""
    with torch.inference_mode():
        for taken in range(times):
            if until():
                return taken
            engine.step()
    return times


@contextmanager
def plain(loaded: store.Loaded) -> Iterator[Any]:
    """The network as transformers itself computes it."""
    config = loaded.network.config
    before, config._attn_implementation = config._attn_implementation, "sdpa"
    with torch.inference_mode():
        yield loaded.network
    config._attn_implementation = before


def by_transformers(loaded: store.Loaded, prompt: list[int], answer: int) -> list[int]:
    """Greedy tokens by transformers' own loop, cache and attention, without the end of turn."""
    stops = sorted(stop_ids(loaded))
    ids = torch.tensor([prompt])
    with plain(loaded) as network:
        made = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=answer,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )
    return [token for token in made[0, len(prompt) :].tolist() if token not in stops]


def whole(loaded: store.Loaded, ids: list[int], last: int) -> torch.Tensor:
    """Logits [last, vocabulary] behind the last ids of one row that is computed whole, by transformers."""
    with plain(loaded) as network:
        logits: torch.Tensor = network(torch.tensor([ids]), use_cache=False, logits_to_keep=last).logits[0]
    return logits.clone()


@pytest.mark.parametrize("step_tokens", [5, 512])
def test_greedy_tokens_are_those_of_transformers(step_tokens: int, small: store.Loaded) -> None:
    prompts = [prompt_ids(length) for length in (1, 2, 17, 64, 200)]
    expected = [by_transformers(small, prompt, 30) for prompt in prompts]
    engine = make(small, step_tokens=step_tokens)
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert run(engine, [Sequence(prompt, Sampling(30))]) == [tokens]
    assert run(engine, [Sequence(prompt, Sampling(30)) for prompt in prompts]) == expected


# ---- the real model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(home: Path) -> store.Loaded:
    """SmolLM2 once more, since an engine changes the configuration of its network."""
    return store.load(manifest.locate(catalog.SMOLLM2, home / "models"), torch.device("cpu"))


@pytest.fixture(scope="module")
def alone(real: store.Loaded) -> list[list[int]]:
    """Greedy answers to PROMPTS, one at a time."""
    engine = make(real)
    return [run(engine, [Sequence(encode(real.tokenizer, prompt), Sampling(40))])[0] for prompt in PROMPTS]


def test_real_answers_are_those_of_transformers(real: store.Loaded, alone: list[list[int]]) -> None:
    assert [by_transformers(real, encode(real.tokenizer, prompt), 40) for prompt in PROMPTS[:2]] == alone[:2]
    assert "Paris" in str(real.tokenizer.decode(alone[0]))


@pytest.mark.parametrize("step_tokens", [48, 512])
def test_an_answer_does_not_depend_on_its_neighbours(
    step_tokens: int, real: store.Loaded, alone: list[list[int]]
) -> None:
    """Fifteen others of other lengths, their prompts in pieces between our tokens."""
    ours = [Sequence(encode(real.tokenizer, prompt), Sampling(40)) for prompt in PROMPTS]
    others = [Sequence(encode(real.tokenizer, "word " * 9 * number), Sampling(4 + 3 * number)) for number in range(13)]
    mixed = [*others[:5], ours[0], *others[5:8], ours[1], ours[2], *others[8:]]
    run(make(real, step_tokens=step_tokens), mixed)
    assert [result(row).tokens for row in ours] == alone


def test_products_in_bf16_answer_nearly_the_same(home: Path, alone: list[list[int]]) -> None:
    """Each matrix rounds its factors and its result; the model's own numbers, of NF4, are far coarser."""
    loaded = store.load(manifest.locate(catalog.SMOLLM2, home / "models"), torch.device("cpu"))
    network.multiply_in(loaded.network, torch.bfloat16)
    engine = make(loaded)
    answers = [run(engine, [Sequence(encode(loaded.tokenizer, prompt), Sampling(40))])[0] for prompt in PROMPTS]
    assert "Paris" in str(loaded.tokenizer.decode(answers[0]))
    same = [
        sum(1 for left, right in zip(answer, exact, strict=False) if left == right)
        for answer, exact in zip(answers, alone, strict=True)
    ]
    assert all(answer[0] == exact[0] for answer, exact in zip(answers, alone, strict=True)) and sum(same) > 20


def test_a_real_answer_stops_by_itself_and_leaves_the_end_of_turn_out(real: store.Loaded) -> None:
    row = Sequence(encode(real.tokenizer, PROMPTS[0]), Sampling(60))
    run(make(real), [row])
    assert result(row).finish_reason == "stop"
    assert not stop_ids(real) & set(result(row).tokens)
    assert 0 < len(result(row).tokens) < 60


# ---- joining and leaving -------------------------------------------------------------------------------------------


def test_a_late_row_joins_between_steps_and_leaves_first(small: store.Loaded) -> None:
    engine = make(small)
    long, short = sequence(50, 100), sequence(20, 3)
    engine.submit(long)
    step(engine, 10)
    assert len(long.output) == 10
    engine.submit(short)
    assert step(engine, until=short.future.done) == 3
    assert len(long.output) == 13
    assert not long.future.done()
    assert (engine.running, engine.waiting) == (1, 0)
    step(engine, until=long.future.done)
    assert len(result(long).tokens) == 100
    assert engine.cache.used == 0


def test_a_started_engine_answers_many_threads_at_once(small: store.Loaded) -> None:
    expected = {length: by_transformers(small, prompt_ids(length), 12) for length in range(1, 25)}
    with started(make(small)) as engine, ThreadPoolExecutor(8) as pool:

        def ask(length: int) -> list[int]:
            row = sequence(length, 12)
            engine.submit(row)
            return result(row).tokens

        assert dict(zip(expected, pool.map(ask, expected), strict=True)) == expected


def test_who_waits_for_room_is_served_later(small: store.Loaded) -> None:
    engine = make(small, kv_tokens=40)
    rows = [sequence(20, 10, seed) for seed in range(5)]
    expected = [run(make(small), [sequence(20, 10, seed)])[0] for seed in range(5)]
    for row in rows:
        engine.submit(row)
    step(engine, 1)
    assert (engine.running, engine.waiting) == (1, 4)
    step(engine, until=lambda: all(row.future.done() for row in rows))
    assert [result(row).tokens for row in rows] == expected


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_answer_alone_and_in_company(small: store.Loaded) -> None:
    def sampled(seed: int) -> Sequence:
        return Sequence(prompt_ids(30), Sampling(20, temperature=0.9, top_p=0.95, seed=seed))

    engine = make(small)
    (alone,) = run(engine, [sampled(5)])
    others = [sequence(length, 30) for length in range(1, 60, 7)]
    company = run(engine, [*others[:4], sampled(5), sampled(6), *others[4:], sampled(5)])
    assert company[4] == company[-1] == alone
    assert company[5] != alone


def test_without_a_seed_answers_differ(small: store.Loaded) -> None:
    rows = [Sequence(prompt_ids(30), Sampling(20, temperature=1.0)) for _ in range(2)]
    first, second = run(make(small), rows)
    assert first != second


# ---- grammars ------------------------------------------------------------------------------------------------------


def test_a_grammar_ends_the_answer_and_leaves_the_neighbour_alone(small: store.Loaded) -> None:
    grammars = Grammars(small.tokenizer, small.network.config.vocab_size, stop_ids(small))
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["invoice", "letter"]},
            "pages": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["kind", "pages"],
        "additionalProperties": False,
    }
    engine = make(small)
    (expected,) = run(engine, [sequence(40, 30)])
    bound, free = sequence(25, 100, matcher=grammars.matcher(schema)), sequence(40, 30)
    run(engine, [bound, free])
    assert result(bound).finish_reason == "stop"
    answer = json.loads(str(small.tokenizer.decode(result(bound).tokens)))
    assert answer["kind"] in ("invoice", "letter") and 1 <= answer["pages"] <= 99
    assert result(free).tokens == expected


def test_a_real_answer_with_a_grammar(real: store.Loaded) -> None:
    grammars = Grammars(real.tokenizer, real.network.config.vocab_size, stop_ids(real))
    document = (EXAMPLES / "documents" / "receipt-restaurant.txt").read_text()
    ids = encode(real.tokenizer, f"Extract the receipt as JSON.\n\n{document}")
    row = Sequence(ids, Sampling(200), grammars.matcher(RECEIPT))
    run(make(real), [row])
    assert result(row).finish_reason == "stop"
    assert set(json.loads(str(real.tokenizer.decode(result(row).tokens)))) == set(RECEIPT["properties"])


INVOICE = json.loads((EXAMPLES / "schemas" / "invoice.json").read_text())


def passes(loaded: store.Loaded) -> tuple[int, int, list[int]]:
    """Forward passes and forced tokens of an invoice, and its answer."""
    grammars = Grammars(loaded.tokenizer, loaded.network.config.vocab_size, stop_ids(loaded))
    engine = make(loaded)
    document = (EXAMPLES / "documents" / "invoice-de.txt").read_text()
    ids = encode(loaded.tokenizer, f"Extract the invoice as JSON.\n\n{document}")
    row = Sequence(ids, Sampling(250), grammars.matcher(INVOICE))
    engine.submit(row)
    return step(engine, until=row.future.done), engine.tokens["forced"], result(row).tokens


def test_what_the_grammar_forces_takes_no_pass_of_its_own(real: store.Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: the same answer, a fifth of the passes less."""
    count, forced, answer = passes(real)
    monkeypatch.setattr(Sequence, "force", lambda *_: 0)
    without, none, expected = passes(real)
    assert answer == expected
    assert none == 0
    assert count == without - forced
    assert count <= 0.85 * without


def test_forced_tokens_are_told_and_counted_like_others(small: store.Loaded) -> None:
    grammars = Grammars(small.tokenizer, small.network.config.vocab_size, stop_ids(small))
    schema: Schema = {"type": "object", "properties": {"a": {"const": "long " * 9}, "b": {"type": "boolean"}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    heard: list[int] = []
    row = sequence(20, 100, matcher=grammars.matcher(schema), on_token=heard.append)
    engine = make(small)
    engine.submit(row)
    assert 10 < len(heard) == engine.tokens["forced"]
    run(engine, [])
    step(engine, until=row.future.done)
    assert result(row).tokens == heard
    assert result(row).finish_reason == "stop"
    assert json.loads(str(small.tokenizer.decode(heard))).keys() == {"a", "b"}


@pytest.mark.parametrize("most", [1, 2, 5, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25])
def test_forcing_never_makes_more_tokens_than_asked_for(most: int, small: store.Loaded) -> None:
    grammars = Grammars(small.tokenizer, small.network.config.vocab_size, stop_ids(small))
    schema: Schema = {"type": "object", "properties": {"a": {"const": "long " * 9}, "b": {"const": "and again"}}}
    row = sequence(20, most, matcher=grammars.matcher(schema | {"required": ["a", "b"], "additionalProperties": False}))
    (tokens,) = run(make(small), [row])
    text = str(small.tokenizer.decode(tokens))
    if result(row).finish_reason == "stop":
        assert json.loads(text) == {"a": "long " * 9, "b": "and again"}
    else:
        assert len(tokens) == most


def test_a_grammar_that_outgrows_its_limits_fails_its_row_only(small: store.Loaded) -> None:
    grammars = Grammars(small.tokenizer, small.network.config.vocab_size, stop_ids(small))
    properties = {f"p{number}": {"type": "string"} for number in range(1500)}
    # One required name, the last, so that the answer cannot be {}.
    schema = {"type": "object", "properties": properties, "required": ["p1499"], "additionalProperties": False}
    engine = make(small)
    with pytest.raises(Failure, match="schema_unsupported"):  # at once, where it shows before a token is chosen
        engine.submit(sequence(25, 100, matcher=grammars.matcher(schema)))
    later = {"properties": {"a": {"enum": ["x", "y"]}, "b": schema}, "required": ["a", "b"], "type": "object"}
    bound, free = sequence(25, 100, matcher=grammars.matcher(later)), sequence(40, 30)
    engine.submit(bound)
    (tokens,) = run(engine, [free])
    assert failure(bound).code == "schema_unsupported"
    assert len(tokens) == 30
    assert engine.cache.used == 0


# ---- probes --------------------------------------------------------------------------------------------------------


def probe(stem: list[int], path: list[int], rng: random.Random, **more: Any) -> Sequence:
    """Asks behind the stem and behind each id of the path about up to five ids."""
    asked = [[rng.randrange(49_152) for _ in range(rng.randrange(6))] for _ in range(len(path) + 1)]
    return Sequence([*stem, *path], Sampling(1), probes=asked, **more)


def group(stem: list[int], rng: random.Random, paths: int = 5) -> list[Sequence]:
    """Several paths behind one stem, some of which begin alike."""
    known: list[list[int]] = []
    for _ in range(paths):
        begun = rng.choice(known)[: rng.randrange(8)] if known and rng.random() < 0.5 else []
        known.append(begun + [rng.randrange(100, 49_000) for _ in range(rng.randrange(20))])
    return [probe(stem, path, rng, follows=(len(stem) - 1) * (at > 0)) for at, path in enumerate(known)]


def assert_probed(loaded: store.Loaded, row: Sequence) -> None:
    """What it was told is what a plain forward pass of the whole row says."""
    told, ids = result(row), row.prompt
    assert (told.tokens, told.finish_reason, told.prompt_tokens) == ([], "stop", len(ids))
    assert list(map(len, told.probed)) == list(map(len, row.probes))
    logprobs = whole(loaded, ids, len(row.probes)).log_softmax(-1)
    for at, (asked, found) in enumerate(zip(row.probes, told.probed, strict=True)):
        assert found == pytest.approx(logprobs[at, asked].tolist(), abs=1e-5)


@pytest.mark.parametrize("step_tokens", [3, 16, 512])
def test_what_is_probed_is_what_a_plain_forward_pass_says(step_tokens: int, small: store.Loaded) -> None:
    """In pieces, behind stems that were read before, and beside rows that answer, which never notice."""
    rng = random.Random(step_tokens)
    engine = make(small, step_tokens=step_tokens)
    grammar = Grammars(small.tokenizer, small.network.config.vocab_size, stop_ids(small)).compile({"type": "object"})
    stems = [prompt_ids(length) for length in (1, 15, 16, 17, 130)]
    expected = [run(make(small), [sequence(30, 60, number)])[0] for number in range(3)]
    asked = 0
    for number in range(3):
        groups = [group(stem, rng) for stem in rng.sample(stems, 3)]
        groups.append([probe(stem[:1], stem[1:40], rng) for stem in stems])  # asks behind every token
        matcher, guard = grammar.start()
        answering = sequence(30, 60, number)
        rows = [
            answering,
            sequence(40, 50, number, matcher=matcher, guard=guard),
            *(row for each in groups for row in each),
        ]
        run_all(engine, rows)
        for row in rows[2:]:
            assert_probed(small, row)
        assert result(answering).tokens == expected[number]
        asked += sum(len(row.prompt) for row in rows)
    assert engine.tokens["prompt"] < asked - 500
    assert (engine.admission.queued, engine.admission.running, engine.cache.used) == (0, 0, 0)


def test_probes_that_are_put_back_are_asked_anew(small: store.Loaded) -> None:
    """Answers that grow longer than expected take the room of rows that are still being read, at every place."""
    rng = random.Random(6)
    back = set[int]()  # how much was known of those put back
    for kv_tokens in range(192, 288, 16):
        engine = make(small, step_tokens=8, kv_tokens=kv_tokens)
        engine.admission.answer_share = 0.01
        answers = [sequence(20, 60, seed) for seed in range(4)]
        rows = [probe(prompt_ids(90), prompt_ids(30, 1), rng), probe(prompt_ids(5), prompt_ids(70, 2), rng)]
        for row in [*answers, *rows]:
            engine.submit(row)
        while not all(row.future.done() for row in rows):
            step(engine, 1)
            back |= {len(row.probed) for row in rows if row.started and row in engine.scheduler.waiting}
        for row in rows:
            assert_probed(small, row)
        step(engine, 400)
        assert all(row.future.done() for row in answers)
        assert (engine.admission.queued, engine.admission.running, engine.cache.used) == (0, 0, 0)
    assert min(back) == 0 < max(back)


def test_who_asks_about_nothing_anew_still_computes_the_places(small: store.Loaded) -> None:
    """The same row thrice: its beginning is not computed again, what it asks about is."""
    engine, rng = make(small), random.Random(0)
    rows = [probe(prompt_ids(100), [7] * 30, rng) for _ in range(3)]
    for row in rows:
        run_all(engine, [row])
        assert_probed(small, row)
    assert engine.tokens["prompt"] == 130 + 2 * (130 - 96)
    empty = Sequence(prompt_ids(100), Sampling(1), probes=[[], []])
    run_all(engine, [empty])
    assert result(empty).probed == [[], []]


def test_a_follower_costs_what_its_path_does(small: store.Loaded) -> None:
    engine = make(small)
    rng = random.Random(1)
    stem = prompt_ids(1000)
    first, *others = [probe(stem, prompt_ids(5, seed), rng, follows=999 * (seed > 0)) for seed in range(20)]
    stranger = sequence(1005, 1)
    for row in (first, *others, stranger):
        engine.submit(row)
    assert first.cost == stranger.cost == 1005 + 8
    assert {row.cost for row in others} == {1005 - 999 // 16 * 16 + 8}
    assert engine.admission.queued == sum(row.cost for row in (first, *others, stranger)) < 3 * first.cost
    step(engine, until=lambda: all(row.future.done() for row in (first, *others, stranger)))
    assert engine.tokens["prompt"] == 1005 + 19 * (1005 - 992) + 1005
    assert (engine.admission.queued, engine.admission.running, engine.cache.used) == (0, 0, 0)


def test_what_is_probed_tells_nothing_of_how_long_answers_are(small: store.Loaded) -> None:
    engine = make(small)
    engine.admission.answer_share = 0.5
    run_all(engine, group(prompt_ids(50), random.Random(2)))
    assert engine.admission.answer_share == 0.5
    run(engine, [sequence(5, 5)])
    assert engine.admission.answer_share > 0.5


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_cancelled_group_frees_its_rows(steps: int, small: store.Loaded) -> None:
    engine = make(small, step_tokens=32)
    rng = random.Random(3)
    ours, theirs = group(prompt_ids(200), rng, 8), group(prompt_ids(200), rng, 4)
    for row in [*ours, *theirs]:
        engine.submit(row)
    step(engine, steps)
    assert not any(row.future.done() for row in ours)
    for row in ours:
        assert row.future.cancel()
    step(engine, until=lambda: all(row.future.done() for row in theirs))
    for row in theirs:
        assert_probed(small, row)
    step(engine, 1)
    assert (engine.running, engine.waiting, engine.admission.queued, engine.cache.used) == (0, 0, 0, 0)


@pytest.mark.parametrize("place", range(4))
def test_a_probe_that_is_not_finite_fails_its_row_alone(
    place: int, small: store.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the places it asks about; an answer in the same step is what it was."""
    engine, rng = make(small), random.Random(4)
    (expected,) = run(engine, [sequence(30, 10)])
    rows = [probe(prompt_ids(20, seed), [5, 6, 7], rng) for seed in range(3)]
    answering = sequence(30, 10)
    calls = 0

    def spoil(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        logits = dense(hidden, weight)
        if calls == 1:
            logits[4 + place, 77] = torch.nan  # behind the first row's four
        return logits

    monkeypatch.setattr("models.engine.reference.dense", spoil)
    run_all(engine, [answering, *rows])
    assert failure(rows[1]).code == "model_error"
    assert result(answering).tokens == expected
    for row in (rows[0], rows[2]):
        assert_probed(small, row)
    assert (engine.admission.queued, engine.admission.running, engine.cache.used) == (0, 0, 0)


def test_a_probe_that_can_never_fit_is_refused(small: store.Loaded) -> None:
    engine = make(small, kv_tokens=96)
    assert refusal(engine, probe(prompt_ids(90), [1] * 6, random.Random(5))).code == "context_length_exceeded"
    row = probe(prompt_ids(90), [1] * 5, random.Random(5))
    run_all(engine, [row])
    assert_probed(small, row)


# ---- log-probabilities -----------------------------------------------------------------------------------------------


class Watched(Sequence):
    """Remembers which of its tokens were forced."""

    def force(self, most: int, stops: frozenset[int]) -> int:
        count = super().force(most, stops)
        self.__dict__.setdefault("forced", set()).update(range(self.made - count, self.made))
        return count


def assert_sure(loaded: store.Loaded, row: Watched, matcher: Any) -> int:
    """One figure a token, and its likeliest alternatives: 0 and none where it was forced, else by a plain forward pass
    and a fresh matcher; how many forced."""
    done = result(row)
    assert len(done.logprobs) == len(done.tokens) > 0
    logits = whole(loaded, row.prompt + done.tokens, len(done.tokens) + 1)[:-1]
    forced: set[int] = row.__dict__["forced"]
    for at, (token, logprob) in enumerate(zip(done.tokens, done.logprobs, strict=True)):
        if matcher is not None:
            mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)[None]
            forbid(logits[at : at + 1], mask)
            assert matcher.consume_token(token)
        told = row.alternatives[at]
        if at in forced:
            assert (logprob, told) == (0.0, [])
        else:
            expected = logits[at].log_softmax(-1)
            assert logprob == pytest.approx(float(expected[token]), abs=1e-5)
            best = [each for each in expected.topk(row.tops).values.tolist() if each > -math.inf]
            assert [each for _, each in told] == pytest.approx(best, abs=1e-5)
            assert [each for _, each in told] == pytest.approx([float(expected[id]) for id, _ in told], abs=1e-5)
    return len(forced)


RECORD: Schema = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["invoice", "letter", "invoice of a letter"]},
        "pages": {"type": "integer", "minimum": 1, "maximum": 99},
        "names": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["kind", "pages", "names"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("speculate", [False, True])
def test_the_log_probability_of_each_token_is_that_among_those_allowed(
    speculate: bool, small: store.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At temperature 1 whatever it was drawn at; alone, with drafts, in pieces, put back, and closed by its guard."""
    monkeypatch.setattr(Utility, "length", lambda *_: 8)
    grammars = Grammars(small.tokenizer, small.network.config.vocab_size, stop_ids(small))
    engine = make(small, kv_tokens=256, step_tokens=40, speculate=speculate)
    samplings = [Sampling(60), Sampling(60, temperature=0.7, top_p=0.9, seed=1), Sampling(35, temperature=2.0, seed=2)]
    free = [Watched(prompt_ids(9, seed) * 3, sampling, tops=3) for seed, sampling in enumerate(samplings)]
    bound = []
    for seed, sampling in enumerate(samplings):
        matcher, guard = grammars.compile(RECORD).start()
        bound.append(Watched(prompt_ids(9, seed) * 4, sampling, matcher=matcher, guard=guard, tops=5))
    engine.admission.answer_share = 0.01
    run_all(engine, [*free, *bound])
    for row in free:
        assert assert_sure(small, row, None) == 0
    for row in bound:
        assert assert_sure(small, row, grammars.matcher(RECORD)) > 10
    assert "closed" in {result(row).finish_reason for row in bound}
    assert engine.scheduler.preempted > 0
    assert (engine.tokens["accepted"] > 20) == speculate
    chosen = engine.tokens["answer"] + engine.tokens["forced"]
    assert sum(len(result(row).logprobs) for row in [*free, *bound]) == chosen


# ---- drafts --------------------------------------------------------------------------------------------------------


def test_drafts_change_no_token_of_real_answers_and_save_passes(
    real: store.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and sampled, with a schema and without, long drafts at every step; counted, not timed."""
    grammars = Grammars(real.tokenizer, real.network.config.vocab_size, stop_ids(real))

    def rows() -> list[Sequence]:
        made = []
        for name in ("invoice-de", "receipt-restaurant", "letter-reminder"):
            ids = encode(real.tokenizer, "Copy it.\n\n" + (EXAMPLES / "documents" / f"{name}.txt").read_text()[:600])
            made += [Sequence(ids, Sampling(60)), Sequence(ids, Sampling(120), grammars.matcher(RECEIPT))]
            made.append(Sequence(ids, Sampling(40, temperature=0.4, seed=3), grammars.matcher(RECEIPT)))
        return made

    monkeypatch.setattr(Utility, "length", lambda *_: 8)
    plain, drafting = make(real), make(real, speculate=True)
    without = rows()
    run_all(plain, without)
    with_drafts = rows()
    run_all(drafting, with_drafts)
    assert [result(row).tokens for row in with_drafts] == [result(row).tokens for row in without]
    assert drafting.tokens["accepted"] > 20
    assert drafting.tokens["drafted"] >= drafting.tokens["accepted"]
    assert drafting.cache.used == 0


def test_drafts_stop_where_the_answer_does(small: store.Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the budget: not one token more, and the same ones."""
    monkeypatch.setattr(Utility, "length", lambda *_: 8)
    prompt = prompt_ids(9) * 5
    (expected,) = run(make(small), [Sequence(prompt, Sampling(40))])
    for most in range(1, 40):
        engine = make(small, speculate=True)
        row = Sequence(prompt, Sampling(most))
        assert run(engine, [row]) == [expected[:most]]


# ---- how an answer ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [1, 2, 25])
def test_the_answer_is_cut_at_exactly_max_new_tokens(answer: int, small: store.Loaded) -> None:
    row = sequence(20, answer)
    run(make(small), [row])
    done = result(row)
    assert (len(done.tokens), done.finish_reason, done.prompt_tokens) == (answer, "length", 20)
    assert done.waited >= 0 and done.generated > 0


def test_an_end_of_turn_ends_the_answer_and_is_not_part_of_it(small: store.Loaded) -> None:
    (tokens,) = run(make(small), [sequence(20, 30)])
    stop = tokens[7]
    engine = Engine(small.network, {stop, 2}, kv_tokens=500, step_tokens=64, queue_tokens=1000)
    heard: list[int] = []
    row = sequence(20, 30, on_token=heard.append)
    run(engine, [row])
    assert result(row).finish_reason == "stop"
    assert result(row).tokens == heard == tokens[: tokens.index(stop)]


def test_an_end_of_turn_as_the_last_token_allowed_counts_as_a_stop(small: store.Loaded) -> None:
    (tokens,) = run(make(small), [sequence(20, 1)])
    engine = Engine(small.network, {tokens[0]}, kv_tokens=500, step_tokens=64, queue_tokens=1000)
    row = sequence(20, 1)
    run(engine, [row])
    assert (result(row).tokens, result(row).finish_reason) == ([], "stop")


def test_tokens_are_told_as_they_are_chosen(small: store.Loaded) -> None:
    heard: list[int] = []
    row = sequence(20, 15, on_token=heard.append)
    engine = make(small)
    engine.submit(row)
    for count in range(1, 16):
        step(engine, 1)
        assert len(heard) == count
    assert heard == result(row).tokens


# ---- leaving early -------------------------------------------------------------------------------------------------


def test_cancelled_while_it_waits(small: store.Loaded) -> None:
    engine = make(small, kv_tokens=112)
    running, waiting = sequence(50, 50), sequence(50, 50)
    engine.submit(running)
    engine.submit(waiting)
    step(engine, 2)
    assert engine.waiting == 1
    assert waiting.future.cancel()
    step(engine, 1)
    assert (engine.running, engine.waiting, engine.cache.used) == (1, 0, 64)


@pytest.mark.parametrize("steps", [1, 5])
def test_cancelled_while_it_runs(steps: int, small: store.Loaded) -> None:
    """After one step of 16 it is within its prompt, after five it decodes."""
    engine = make(small, step_tokens=16)
    row = sequence(50, 50)
    engine.submit(row)
    step(engine, steps)
    assert row.future.cancel()
    step(engine, 2)
    assert (engine.running, engine.cache.used) == (0, 0)
    with pytest.raises(CancelledError):
        row.future.result(timeout=0)


def test_cancelling_wakes_nobody_and_a_started_engine_still_lets_go(small: store.Loaded) -> None:
    with started(make(small)) as engine:
        first = threading.Event()
        row = sequence(20, 5000, on_token=lambda _: first.set())
        engine.submit(row)
        assert first.wait(30)
        assert row.future.cancel()
        follower = sequence(20, 2)
        engine.submit(follower)
        assert len(result(follower).tokens) == 2
        assert engine.cache.used == 0


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_deadline_ends_it_wherever_it_is(steps: int, small: store.Loaded) -> None:
    engine = make(small, step_tokens=16)
    row, neighbour = sequence(50, 50), sequence(5, 20)
    engine.submit(row)
    engine.submit(neighbour)
    step(engine, steps)
    row.deadline = time.monotonic()
    step(engine, until=neighbour.future.done)
    assert failure(row).code == "deadline_exceeded"
    assert len(result(neighbour).tokens) == 20
    assert engine.cache.used == 0


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back(small: store.Loaded) -> None:
    engine = make(small, queue_tokens=160)
    for seed in range(3):  # each costs its 5 tokens and 8 times 5 for those of its answer
        engine.submit(sequence(5, 5, seed))
    refused = refusal(engine, sequence(5, 5, 3))
    assert refused.code == "queue_full"
    assert "135" in refused.message
    assert refused.retry_after is not None and 1 <= refused.retry_after <= 120
    assert (engine.waiting, engine.admission.queued) == (3, 135)
    step(engine, 1)
    engine.submit(sequence(5, 5, 4))


def test_what_would_be_late_is_refused_at_once(small: store.Loaded) -> None:
    engine = make(small)
    for seed in range(20):
        engine.submit(sequence(5, 500, seed))
    assert refusal(engine, sequence(5, 5, deadline=time.monotonic() + 0.01)).code == "queue_full"
    engine.submit(sequence(5, 5, deadline=time.monotonic() + 1000))


@pytest.mark.parametrize("leave", ["finish", "cancel", "deadline", "fault"])
def test_the_books_are_even_when_all_have_left(leave: str, small: store.Loaded) -> None:
    engine = make(small, kv_tokens=160)
    rows = [sequence(20, 10, seed) for seed in range(6)]
    for row in rows:
        engine.submit(row)
    step(engine, 2)
    assert engine.admission.running > 0 < engine.admission.queued
    if leave == "cancel":
        assert all(row.future.cancel() for row in rows)
    if leave == "deadline":
        for row in rows:
            row.deadline = 0
    if leave == "fault":
        engine.forward = None  # type: ignore[assignment]
    step(engine, 100)
    assert all(row.future.done() for row in rows)
    assert (engine.admission.queued, engine.admission.running, engine.cache.used) == (0, 0, 0)


def test_what_can_never_fit_is_refused_with_its_numbers(small: store.Loaded) -> None:
    engine = make(small, kv_tokens=100)  # whole blocks are 96
    refused = refusal(engine, sequence(57, 40))
    assert refused.code == "context_length_exceeded"
    assert all(number in refused.message for number in ("97", "57", "40", "96"))
    assert engine.waiting == 0
    (tokens,) = run(engine, [sequence(56, 40)])
    assert len(tokens) == 40


@pytest.mark.parametrize("prompt", [[], [-1], [5, 49_152], [5, -3, 7], [2**40]])
def test_ids_the_model_does_not_know_never_reach_it(prompt: list[int], small: store.Loaded) -> None:
    engine = make(small)
    with pytest.raises(ValueError, match="vocabulary"):
        engine.submit(Sequence(prompt, Sampling(5)))
    assert engine.waiting == 0


def test_the_first_and_the_last_id_are_known(small: store.Loaded) -> None:
    (tokens,) = run(make(small), [Sequence([0, 49_151], Sampling(5))])
    assert len(tokens) == 5


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_row_whose_logits_are_not_finite_fails_alone(
    poison: float, small: store.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(small)
    expected = run(engine, [sequence(20, 10, seed) for seed in range(3)])
    rows = [sequence(20, 10, seed) for seed in range(3)]
    calls = 0

    def spoil(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        logits = dense(hidden, weight)
        if calls == 4:
            logits[1, 77] = poison
        return logits

    monkeypatch.setattr("models.engine.reference.dense", spoil)
    run_all(engine, rows)
    assert failure(rows[1]).code == "model_error"
    assert len(rows[1].output) == 3
    assert [result(rows[0]).tokens, result(rows[2]).tokens] == [expected[0], expected[2]]
    assert engine.cache.used == 0


def test_a_spoilt_beginning_fails_one_row_and_is_computed_anew_for_the_next(small: store.Loaded) -> None:
    """What several share must not carry a fault from one to all that come later."""
    engine = make(small)
    common = prompt_ids(100)
    (expected,) = run(engine, [Sequence([*common, 5], Sampling(10))])
    for block in engine.cache.pool.unbind(2)[:32]:
        block.fill_(torch.nan)
    row = Sequence([*common, 5], Sampling(10))
    run_all(engine, [row])
    assert failure(row).code == "model_error"
    assert run(engine, [Sequence([*common, 5], Sampling(10))]) == [expected]
    assert engine.cache.used == 0


@pytest.mark.parametrize("guilty", [[], [0], [4], [1, 2], [0, 3, 4], [0, 1, 2, 3, 4]])
def test_out_of_memory_hurts_only_the_rows_that_cause_it(guilty: list[int], small: store.Loaded) -> None:
    """They come while the others are answering; whatever rows share their steps."""
    poison = 41_234
    engine = make(small)
    expected = run(engine, [sequence(20, 10, seed) for seed in range(5)])
    rows = [sequence(20, 10, seed) for seed in range(5)]
    for number, row in enumerate(rows):
        assert poison not in row.prompt + expected[number]
        if number in guilty:
            row.ids[7] = poison
    late = [row for number, row in enumerate(rows) if number in guilty or number == 3]

    def fail(_: Any, __: Any, named: dict[str, torch.Tensor]) -> None:
        if poison in named["input_ids"]:
            raise torch.OutOfMemoryError("secret words of a document")

    with small.network.model.register_forward_pre_hook(fail, with_kwargs=True):
        for row in rows:
            if row not in late:
                engine.submit(row)
        step(engine, 4)
        for row in late:
            engine.submit(row)
        step(engine, until=lambda: all(row.future.done() for row in rows))
    for number, row in enumerate(rows):
        if number in guilty:
            assert failure(row).code == "model_error"
        else:
            assert result(row).tokens == expected[number]
    assert engine.cache.used == 0


def test_whether_the_engine_was_told_to_stop_is_known(small: store.Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    told, fallen = make(small), make(small)
    told.start()
    told.stop()
    assert told.wait()

    def fail() -> None:
        raise RuntimeError

    monkeypatch.setattr(fallen.scheduler, "plan", fail)
    fallen.submit(sequence(5, 5))
    fallen.start()
    assert not fallen.wait()


def test_when_the_thread_itself_ends_nobody_is_left_waiting(
    small: store.Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make(small, kv_tokens=60)
    rows = [sequence(20, 10, seed) for seed in range(3)]
    for row in rows:
        engine.submit(row)

    def fail() -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(engine.scheduler, "plan", fail)
    engine.start()
    assert [failure(row).code for row in rows] == ["draining"] * 3
    engine._thread.join(10)
    assert not engine.alive
    with pytest.raises(Failure, match="draining"):
        engine.submit(sequence(20, 10, 9))
    assert "the engine has stopped: RuntimeError" in caplog.text


def test_a_fault_in_the_model_fails_the_rows_of_that_step_and_no_others(
    small: store.Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret words of a document")

    engine = make(small, kv_tokens=64)
    rows = [sequence(20, 10, seed) for seed in range(3)]
    for row in rows:
        engine.submit(row)
    with small.network.model.register_forward_pre_hook(fail):
        step(engine, 1)
    assert (engine.running, engine.waiting, engine.cache.used) == (0, 1, 0)
    for row in rows[:2]:
        assert failure(row).code == "model_error"
        assert "secret" not in failure(row).message
    step(engine, until=rows[2].future.done)
    assert len(result(rows[2]).tokens) == 10
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


def test_a_step_that_hangs_is_noticed_and_nobody_is_left_waiting(small: store.Loaded) -> None:
    """It ends the wait of whoever watches the engine, which then ends the process."""
    go_on = threading.Event()

    def hang(*_: Any) -> None:
        go_on.wait(30)

    engine = make(small)
    engine.start()
    engine.submit(row := sequence(5, 5))
    assert len(result(row).tokens) == 5
    engine.hang_seconds = 0.2
    time.sleep(0.5)
    assert engine.alive  # nothing to do is no hang
    with small.network.model.register_forward_pre_hook(hang):
        rows = [sequence(5, 5, seed) for seed in range(3)]
        for row in rows:
            engine.submit(row)
        assert not engine.wait()
        assert not engine.alive
        assert [failure(row).code for row in rows] == ["draining"] * 3
        assert refusal(engine, sequence(5, 5)).code == "draining"
        go_on.set()
        engine._thread.join(10)
    assert not engine._thread.is_alive()


def test_stopping_does_not_wait_for_a_step_that_hangs(small: store.Loaded) -> None:
    go_on = threading.Event()
    engine = make(small)
    engine.hang_seconds = 0.3
    engine.start()
    with small.network.model.register_forward_pre_hook(lambda *_: bool(go_on.wait(30)) and None):
        engine.submit(row := sequence(5, 5))
        time.sleep(0.1)
        engine.stop()
        assert failure(row).code == "draining"
        go_on.set()
        engine._thread.join(10)


def test_a_mask_that_cannot_be_computed_fails_its_row_only(
    small: store.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even by what is no Exception: that is how a panic of llguidance's comes over."""
    grammars = Grammars(small.tokenizer, small.network.config.vocab_size, stop_ids(small))
    engine = make(small)
    rows = [sequence(5, 40, seed, matcher=grammars.matcher({"enum": ["one", "two"]})) for seed in range(3)]
    fill = engine._masks._fill

    def panic(wanted: list[Any], masks: Any) -> None:
        if any(each[0] is rows[1].matcher for each in wanted):
            raise BaseException("secret words of an answer")
        fill(wanted, masks)

    monkeypatch.setattr(engine._masks, "_fill", panic)
    run_all(engine, rows)
    assert failure(rows[1]).code == "schema_unsupported"
    for row in (rows[0], rows[2]):
        assert json.loads(str(small.tokenizer.decode(result(row).tokens))) in ("one", "two")


def test_a_started_engine_outlives_a_fault(small: store.Loaded) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    with started(make(small)) as engine:
        with small.network.model.register_forward_pre_hook(fail):
            engine.submit(row := sequence(20, 10))
            assert failure(row).code == "model_error"
        engine.submit(row := sequence(20, 10))
        assert len(result(row).tokens) == 10
        assert engine.alive


def test_a_fault_of_a_listener_fails_its_row_only(small: store.Loaded, caplog: pytest.LogCaptureFixture) -> None:
    def listener(_: int) -> None:
        raise KeyError("secret")

    with started(make(small)) as engine:
        deaf, other = sequence(20, 10, on_token=listener), sequence(20, 10)
        engine.submit(deaf)
        engine.submit(other)
        assert failure(deaf).code == "model_error"
        assert len(result(other).tokens) == 10
        assert engine.alive
    assert "secret" not in caplog.text


# ---- the end -------------------------------------------------------------------------------------------------------


def test_stop_fails_what_is_not_finished_and_what_comes_later(small: store.Loaded) -> None:
    engine = make(small, kv_tokens=2100)
    first = threading.Event()
    running, waiting = sequence(20, 2000, on_token=lambda _: first.set()), sequence(20, 2000)
    with started(engine):
        assert engine.alive
        engine.submit(running)
        engine.submit(waiting)
        assert first.wait(30)
    assert not engine.alive
    assert failure(running).code == failure(waiting).code == "draining"
    assert refusal(engine, sequence(5, 5)).code == "draining"


def test_stop_fails_what_came_during_the_last_step(small: store.Loaded) -> None:
    within, go_on = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        within.set()
        assert go_on.wait(30)

    engine = make(small)
    engine.start()
    engine.submit(held := sequence(20, 10, on_token=hold))
    assert within.wait(30)
    engine.submit(late := sequence(20, 10))
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    while not engine._stopping:
        time.sleep(0.001)
    go_on.set()
    stopping.join()
    assert failure(held).code == failure(late).code == "draining"
    assert late.computed == 0


def test_an_idle_engine_stops_at_once(small: store.Loaded) -> None:
    with started(make(small)) as engine:
        assert engine.alive
    assert not engine.alive


@pytest.mark.parametrize("stopped_after", [None, 200])
def test_a_thousand_submits_get_one_outcome_each(stopped_after: int | None, small: store.Loaded) -> None:
    """From eight threads; once left in peace, once with the engine stopped in their midst."""
    outcomes: Counter[int] = Counter()
    codes: Counter[str] = Counter()
    lock = threading.Lock()
    enough = threading.Event()

    def note(number: int, code: str) -> None:
        with lock:
            outcomes[number] += 1
            codes[code] += 1
            if outcomes.total() == (stopped_after or 1000):
                enough.set()

    def note_future(number: int, future: Future[Completion]) -> None:
        error = future.exception()
        note(number, error.code if isinstance(error, Failure) else "done")

    def submit(engine: Engine, numbers: range) -> None:
        for number in numbers:
            row = sequence(1 + number % 7, 1 + number % 3)
            row.future.add_done_callback(partial(note_future, number))
            try:
                engine.submit(row)
            except Failure as refused:
                note(number, refused.code)

    with started(make(small, kv_tokens=100, step_tokens=64)) as engine:
        threads = [threading.Thread(target=submit, args=(engine, range(at, 1000, 8))) for at in range(8)]
        for thread in threads:
            thread.start()
        assert enough.wait(100)
        if stopped_after:
            engine.stop()
        for thread in threads:
            thread.join()
    assert outcomes == Counter(range(1000))
    assert set(codes) <= {"done", "draining"}
    assert codes["done"] >= (stopped_after or 1000)
    assert engine.cache.used == 0 or stopped_after
