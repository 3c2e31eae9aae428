"""A Mixtral of random weights with the real tokenizer, that says whatever the masks of a schema let it say."""

import tempfile
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig

from benchmarks.card import rig
from benchmarks.tokenizer import read_tokenizer
from models import audit, catalog
from models.engine.engine import Engine
from models.engine.grammar import Grammar, Grammars
from models.engine.sequence import Completion, Sampling, Sequence
from models.failure import Failure
from models.schema.dialect import Schema
from models.template import Template, Turn

TINY = MixtralConfig(
    vocab_size=32_000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=4,
    max_position_embeddings=4096,
)
KV_TOKENS = 16_384
SEED = 20


@dataclass(frozen=True)
class Answer:
    """What came of one question: `outcome` is "stop" or "closed" where it was a success, else a failure's code."""

    budget: int
    outcome: str
    text: str = ""
    value: Any = None


class Adversary:
    """Answers at temperature 1, batched by the real engine."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = read_tokenizer(Path(folder))
        stops = {tokenizer.eos_token_id}
        network = rig.make(TINY, torch.device("cpu"), torch.float32)
        self._engine = Engine(network, stops, kv_tokens=KV_TOKENS, step_tokens=512, queue_tokens=1 << 30)
        self._engine.start()
        self._template = Template(tokenizer, catalog.MIXTRAL.markers, catalog.MIXTRAL.alternates)
        self._prompt = self._template.encode([Turn("user", "Answer.")])
        self.grammars = Grammars(tokenizer, self._engine.vocabulary, stops)

    def ask(self, grammar: Grammar, budget: int) -> Future[Completion]:
        """Failure where no answer fits the budget."""
        if grammar.shortest > budget:
            raise Failure("invalid_value", "max_new_tokens")
        sequence = Sequence(self._prompt, Sampling(budget, temperature=1.0, seed=SEED))
        sequence.matcher, sequence.guard = grammar.start()
        self._engine.submit(sequence)
        return sequence.future

    def close(self, future: Future[Completion], schema: Schema, budget: int) -> Answer:
        """As a caller who takes partial answers would get it."""
        try:
            completion = future.result(timeout=600)
            text = self._template.decode(completion.tokens).strip()
            return Answer(budget, completion.finish_reason, text, audit.parse(text, schema))
        except Failure as failure:
            return Answer(budget, failure.code)

    def stop(self) -> None:
        self._engine.stop()
