"""JSON Schemas as masks over the next token, by llguidance. Knows nothing of the model or of what is asked."""

import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import (
    allocate_token_bitmask,
    fill_next_token_bitmask_par,
    fill_next_token_bitmask_par_with_draft_tokens,
)
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from models.engine.closing import Closer, Guard
from models.engine.scheduler import Piece
from models.engine.schema import Schema, admit
from models.failure import Failure

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Compact JSON: with free white space a model may write blanks until its budget is gone.
LONGEST_PATH = 32_768  # tokens
THREADS = 2  # enough: a mask takes some 50 us
LAYOUT: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


@dataclass(frozen=True)
class Grammar:
    """A compiled schema. `path` is a shortest answer; None where none was found, and then none may be there in time."""

    template: LLMatcher
    closer: Closer
    path: list[int] | None

    @property
    def shortest(self) -> int:
        """Tokens that any answer takes, as far as that is known."""
        return len(self.path or ())

    def start(self) -> tuple[LLMatcher, Guard]:
        """For one row: what it may say next, and what keeps it able to close."""
        matcher = self.template.deep_copy()
        return matcher, Guard(self.closer, matcher, self.path)


class Grammars:
    """Compiles schemas for one tokenizer; 1-30 ms each, the last 256 are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, stops: set[int]) -> None:
        self._tokenizer: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(stops))
        self._closer = Closer(self._tokenizer, vocabulary)
        self._compiled = lru_cache(maxsize=256)(self._compile)

    def matcher(self, schema: Schema) -> LLMatcher:
        """A fresh matcher for `schema`, without a guard."""
        return self.compile(schema).start()[0]

    def compile(self, schema: Schema) -> Grammar:
        """Failure names what it cannot enforce, nothing is ignored."""
        text = admit(schema)
        if "x-guidance" in schema:
            # llguidance would let the caller switch enforcement off with it.
            raise Failure("schema_unsupported", "the schema uses keywords that cannot be enforced: x-guidance")
        return self._compiled(text)

    def _compile(self, schema: str) -> Grammar:
        try:
            matcher = LLMatcher(
                self._tokenizer,
                LLMatcher.grammar_from_json_schema(schema, overrides=LAYOUT),
                log_level=0,  # it would print the answer where it says what is wrong with it
            )
        except ValueError as error:
            raise Failure("schema_unsupported", _reason(str(error))) from None
        matcher.compute_bitmask()  # some faults show only when the first token is due
        if matcher.is_error():
            raise Failure("schema_unsupported", _reason(matcher.get_error()))
        return Grammar(matcher, self._closer, self._closer.path(matcher, LONGEST_PATH))


def _reason(error: str) -> str:
    """llguidance's own sentence where it names keywords, else a fixed one: no library text passes unseen."""
    if named := re.search(r"Unimplemented keys: \[([^\]]*)\]", error):
        return f"the schema uses keywords that cannot be enforced: {named[1]}"
    if "nsatisfiable" in error:
        return "no JSON value satisfies the schema"
    return "the schema cannot be enforced"


class Masks:
    """The tokens that each row may take next, found while the model computes; llguidance does not hold the GIL."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._worker = ThreadPoolExecutor(1, "masks")
        self._executor = LLExecutor(THREADS)
        self._first: dict[int, int] = {}
        self._ready: Future[NDArray[np.uint8]] | None = None

    def begin(self, pieces: list[Piece]) -> None:
        """Start on the masks of these rows: one for the next token, one behind each token of the draft."""
        wanted: list[tuple[LLMatcher, int, list[int]]] = []
        self._first = {}
        count = 0
        for piece in pieces:
            self._first[piece.sequence.number] = count
            if piece.sequence.matcher is not None:
                wanted.append((piece.sequence.matcher, count, piece.draft))
            count += 1 + len(piece.draft)
        self._ready = self._worker.submit(self._compute, wanted, count) if wanted else None

    def _compute(self, wanted: list[tuple[LLMatcher, int, list[int]]], count: int) -> NDArray[np.uint8]:
        masks = allocate_token_bitmask(count, self._vocabulary)
        masks.fill(-1)  # who has no grammar may say anything
        try:
            self._fill(wanted, masks)
        except BaseException:  # a panic over there is no Exception here
            for each in wanted:
                try:
                    self._fill([each], masks)
                except BaseException:
                    masks[each[1] : each[1] + 1 + len(each[2])] = 0  # it may say nothing, which fails its row
        return masks.view(np.uint8)

    def _fill(self, wanted: list[tuple[LLMatcher, int, list[int]]], masks: NDArray[np.int32]) -> None:
        # Neither function takes an empty list, nor the second an empty draft.
        if plain := [(matcher, at) for matcher, at, draft in wanted if not draft]:
            fill_next_token_bitmask_par(self._executor, plain, masks)
        if drafting := [each for each in wanted if each[2]]:
            fill_next_token_bitmask_par_with_draft_tokens(self._executor, drafting, masks)

    def allowed(self, pieces: list[Piece]) -> NDArray[np.uint8] | None:
        """The masks of some of these rows, one bit a token; None where no row has a grammar."""
        if self._ready is None:
            return None
        rows = [self._first[piece.sequence.number] + at for piece in pieces for at in range(1 + len(piece.draft))]
        found: NDArray[np.uint8] = self._ready.result()[rows]
        return found
