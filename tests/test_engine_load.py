"""The engine under everything at once: thousands of requests that come, share, wait, are cancelled, preempted and late.

In fp64, so that rounding never turns a tie: an answer is the one-request answer to the last token, or it is wrong.
"""

import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models import catalog, store
from models.engine.cache import BLOCK
from models.engine.engine import Engine
from models.engine.sequence import Completion, Sampling, Sequence
from models.failure import Failure
from models.prompt import Asked, Prompts
from models.receipt import Receipts
from models.runtime import stop_ids
from models.schema.dialect import Schema
from models.ticket import Ticket
from serving.protocol import Prompt
from tests.test_closing import schema_of

STOPS = {3, 50, 77}
VOCABULARY = 256
LONGEST = 24  # tokens of an answer


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    network: LlamaForCausalLM = LlamaForCausalLM(config).double().eval()
    return network


@pytest.fixture(scope="module")
def answers(network: LlamaForCausalLM) -> dict[tuple[int, ...], list[int]]:
    """200 prompts, many with a beginning in common, and what transformers says to each, with the end of turn."""
    rng = random.Random(0)
    beginnings = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(5, 90))] for _ in range(8)]
    prompts = []
    for _ in range(200):
        prompt = list(rng.choice([[], *beginnings]))
        prompt += [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40))]
        if rng.random() < 0.2:
            prompt += prompt[: rng.randint(1, 30)]
        prompts.append(prompt)
    found: dict[tuple[int, ...], list[int]] = {}
    network.config._attn_implementation = "sdpa"
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = network.generate(  # type: ignore[misc]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LONGEST,
            do_sample=False,
            eos_token_id=sorted(STOPS),
            pad_token_id=3,
        )
        found[tuple(prompt)] = made[0, len(prompt) :].tolist()
    return found


def expected(answer: list[int], most: int) -> tuple[list[int], str]:
    """Tokens and finish reason of an answer of at most `most` tokens."""
    for at, token in enumerate(answer[:most]):
        if token in STOPS:
            return answer[:at], "stop"
    return answer[:most], "length"


class Load:
    """Requests to one engine that is stepped by hand, and the count of their outcomes."""

    def __init__(self, engine: Engine, answers: dict[tuple[int, ...], list[int]], seed: int) -> None:
        self.engine = engine
        self.answers = answers
        self.rng = random.Random(seed)
        self.prompts = list(answers)
        self.open: dict[int, Sequence] = {}
        self.outcomes: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()

    def arrive(self) -> None:
        prompt = list(self.rng.choice(self.prompts))
        sampling = Sampling(self.rng.randint(1, LONGEST))
        row = Sequence(prompt, sampling, lane=self.rng.choice(["interactive", "interactive", "bulk"]))
        row.future.add_done_callback(lambda _: self.outcomes.update([row.number]))
        try:
            self.engine.submit(row)
        except Failure as refused:
            assert refused.code == "queue_full" and (refused.retry_after or 0) > 0
            self.kinds["refused"] += 1
            self.outcomes[row.number] += 1
        else:
            self.open[row.number] = row

    def disturb(self) -> None:
        """Someone leaves, or runs out of time."""
        if self.open and self.rng.random() < 0.1:
            row = self.rng.choice(list(self.open.values()))
            if self.rng.random() < 0.5:
                row.future.cancel()
            else:
                row.deadline = 0.0

    def settle(self) -> None:
        """Judge those that are done."""
        for number, row in list(self.open.items()):
            if not row.future.done():
                continue
            del self.open[number]
            if row.future.cancelled():
                self.kinds["cancelled"] += 1
            elif isinstance(error := row.future.exception(), Failure):
                assert error.code == "deadline_exceeded" and row.deadline == 0.0
                self.kinds["late"] += 1
            else:
                done = row.future.result()
                right = expected(self.answers[tuple(row.prompt)], row.sampling.max_new_tokens)
                assert (done.tokens, done.finish_reason) == right
                self.kinds["answered"] += 1

    def check(self) -> None:
        """What must hold between any two steps."""
        tokens = self.engine.cache.tokens()
        running = self.engine.scheduler.running
        assert tokens["used"] + tokens["pinned"] + tokens["evictable"] + tokens["free"] == self.engine.cache.budget
        assert min(tokens.values()) >= 0
        held = {block for row in running for block in self.engine.cache.table(row.number)}
        assert tokens["used"] == len(held) * BLOCK


@pytest.mark.parametrize("share", [0.2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("count", "kv_tokens", "step_tokens", "speculate", "queue_tokens"),
    [
        (4000, 320, 48, True, 1 << 30),  # little room: evictions and preemptions
        (3000, 4096, 512, True, 1_000),  # some are refused
        (2500, 2048, 33, False, 1 << 30),
        (500, 176, 7, True, 1 << 30),  # hardly one at a time
    ],
)
def test_requests_of_every_kind_get_one_right_answer_each(
    share: float,
    count: int,
    kv_tokens: int,
    step_tokens: int,
    speculate: bool,
    queue_tokens: int,
    network: LlamaForCausalLM,
    answers: dict[tuple[int, ...], list[int]],
) -> None:
    engine = Engine(
        network,
        STOPS,
        kv_tokens=kv_tokens,
        step_tokens=step_tokens,
        queue_tokens=queue_tokens,
        speculate=speculate,
    )
    load = Load(engine, answers, seed=count)
    count, arrived = int(count * share), 0
    with torch.inference_mode():
        while arrived < count or load.open:
            for _ in range(load.rng.choice([0, 0, 1, 1, 2, 12]) if len(load.open) < 60 else 0):
                if arrived < count:
                    load.arrive()
                    arrived += 1
            load.disturb()
            engine.step()
            load.settle()
            load.check()
    assert load.outcomes.total() == len(load.outcomes) == count
    assert load.kinds["answered"] > 0.2 * count
    assert load.kinds["cancelled"] and load.kinds["late"]
    assert bool(load.kinds["refused"]) == (queue_tokens == 1_000)
    assert (engine.running, engine.waiting, engine.cache.used) == (0, 0, 0)
    assert (engine.admission.queued, engine.admission.running) == (0, 0)
    assert engine.cache.tokens()["shared"] == 0
    assert engine.scheduler.preempted or kv_tokens != 320
    assert bool(engine.tokens["accepted"]) == speculate


def test_a_common_beginning_is_computed_once_for_64_documents(
    network: LlamaForCausalLM, answers: dict[tuple[int, ...], list[int]]
) -> None:
    """Counted in tokens through the model: 600 tokens of system prompt and schema before 100 of a document."""
    rng = random.Random(5)
    common = [rng.randrange(VOCABULARY) for _ in range(600)]
    rows = [Sequence([*common, *(rng.randrange(VOCABULARY) for _ in range(100))], Sampling(1)) for _ in range(64)]
    engine = Engine(network, STOPS, kv_tokens=16_384, step_tokens=512, queue_tokens=1 << 30)
    computed = 0

    def count(_: Any, __: Any, named: dict[str, torch.Tensor]) -> None:
        nonlocal computed
        computed += named["input_ids"].numel()

    for row in rows:
        engine.submit(row)
    with network.model.register_forward_pre_hook(count, with_kwargs=True), torch.inference_mode():
        while not all(row.future.done() for row in rows):
            engine.step()
    known = 600 // BLOCK * BLOCK
    assert computed == 64 * 700 - 63 * known
    assert engine.cache.tokens()["pinned"] == known


class NoModel(torch.nn.Module):
    """Takes what a network takes and gives back tensors of the right shapes, without computing anything."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            num_hidden_layers=1,
            num_key_value_heads=1,
            num_attention_heads=1,
            head_dim=8,
            hidden_size=hidden,
            vocab_size=vocabulary,
        )
        self.config.get_text_config = lambda: self.config
        self.lm_head = torch.nn.Linear(1, vocabulary, bias=False)
        self.hidden = torch.zeros(1, 4096, 1)

    def model(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.hidden[:, : input_ids.shape[1]])


def ask_for(
    prompts: Prompts, engine: Engine, schema: Schema, budgets: range
) -> Iterator[tuple[int, Ticket[Asked] | Failure]]:
    """A ticket or a refusal for each budget, computed."""
    made: list[tuple[int, Ticket[Asked] | Failure]] = []
    for most in budgets:
        try:
            fields = {"prompt": "x", "schema": schema, "max_new_tokens": most, "allow_partial": True}
            ticket = prompts.ask(Prompt.model_validate(fields), float("inf"))
            assert isinstance(ticket, Ticket)
            made.append((most, ticket))
        except Failure as refused:
            made.append((most, refused))
    while engine.waiting or engine.running:
        engine.step()
    yield from made


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 600), marks=[pytest.mark.slow])], ids=len)
def test_every_budget_gives_a_whole_answer_or_a_typed_refusal(
    seeds: range, smollm2: store.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through prompts and engine, with a model that says anything: JSON is never cut, from 1 token up."""
    stops = stop_ids(smollm2)
    vocabulary = smollm2.network.config.vocab_size
    engine = Engine(
        NoModel(vocabulary, 8),  # type: ignore[arg-type]
        stops,
        kv_tokens=1 << 17,
        step_tokens=4096,
        queue_tokens=1 << 40,
    )
    prompts = Prompts(catalog.SMOLLM2, smollm2.tokenizer, engine, stops, Receipts(b"key", {}))
    said = torch.randn(97, vocabulary)
    rng = random.Random(0)
    monkeypatch.setattr("models.engine.reference.dense", lambda hidden, _: said[rng.choices(range(97), k=len(hidden))])
    kinds: Counter[str] = Counter()
    with torch.inference_mode():
        for seed in seeds:
            schema = schema_of(seed)
            try:
                shortest = prompts.grammars.compile(schema).shortest
            except Failure:
                kinds["unsupported"] += 1
                continue
            for most, outcome in ask_for(prompts, engine, schema, range(1, shortest + 9)):
                if isinstance(outcome, Failure):
                    assert outcome.code == "invalid_value" and most < shortest
                    assert str(shortest) in outcome.message
                    kinds["too little"] += 1
                    continue
                completion = outcome.sequence.future.result()
                assert completion.finish_reason != "length"
                assert shortest <= most >= len(completion.tokens)
                kinds[completion.finish_reason] += 1
                judge(outcome, completion, kinds)
    assert kinds["unsupported"] < len(seeds) / 4
    assert kinds["answer_invalid"] < 0.01 * kinds["closed"]
    assert min(kinds["too little"], kinds["closed"], kinds["stop"]) > len(seeds)


def judge(ticket: Ticket[Asked], completion: Completion, kinds: Counter[str]) -> None:
    """Closed by its budget it is an error unless it was allowed; in any case it is whole and fits."""
    try:
        ticket.close(completion, ticket.asked)
    except Failure as failure:
        # llguidance lets numbers grow beyond what a double holds; the second look refuses them.
        assert failure.code == "answer_invalid"
        kinds["answer_invalid"] += 1
        return
    if completion.finish_reason == "closed":
        ticket.asked.question.allow_partial = False
        with pytest.raises(Failure, match="answer_truncated"):
            ticket.close(completion, ticket.asked)


def overhead(rows: int, steps: int) -> list[float]:
    """Seconds of each step of `rows` decoding rows at Mixtral's vocabulary, without the model."""
    engine = Engine(
        NoModel(32_000, 4096),  # type: ignore[arg-type]
        set(),
        kv_tokens=rows * 4096,
        step_tokens=4096,
        queue_tokens=1 << 30,
    )
    logits = torch.randn(rows, 32_000)
    seconds = []
    for number in range(rows):
        engine.submit(Sequence([number % 256] * 1500, Sampling(steps + 10)))
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr("models.engine.reference.dense", lambda hidden, _: logits[: hidden.shape[0]])
        while engine.waiting or not all(row.made for row in engine.scheduler.running):
            engine.step()
        for _ in range(steps):
            began = time.perf_counter()
            engine.step()
            seconds.append(time.perf_counter() - began)
    return seconds


@pytest.mark.slow
def test_a_step_of_32_rows_without_the_model_takes_a_few_milliseconds() -> None:
    """The bound is three times what a quiet core takes: it tells of a blow-up, not of a busy machine."""
    median = statistics.median(overhead(32, 1000)) * 1000
    print(f"\nscheduling overhead of 32 rows: {median:.2f} ms a step")
    assert median < 9
