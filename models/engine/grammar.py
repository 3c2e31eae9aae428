"""JSON Schemas as masks over the next token, by llguidance. Knows nothing of the model or of what is asked."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import (
    allocate_token_bitmask,
    fill_next_token_bitmask_par,
    fill_next_token_bitmask_par_with_draft_tokens,
)
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from models.engine.closing import Closer, Guard
from models.engine.follower import Follower
from models.engine.matcher import Matcher
from models.engine.scheduler import Piece
from models.engine.search import Samples
from models.engine.substrings import Substrings, vocabulary_of
from models.engine.verbatim import Verbatim
from models.schema.admitted import admit, dump, judge, largest, name, refusal
from models.schema.dialect import Schema
from models.schema.fields import Fields, fields
from models.schema.samples import samples
from models.schema.writer import Bounds

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Compact JSON: with free white space a model may write blanks until its budget is gone.
LONGEST_PATH = 32_768  # tokens
DOCUMENTS = 8  # whose substrings are kept; each takes some 20 times its own size
# For one mask; some 14 a microsecond. A length and a pattern together take more than the 200,000 that are usual.
FUEL = 2_000_000
THREADS = 2  # enough: a mask takes some 50 us
LAYOUT: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
    # Without \u every name has one spelling, so that none is said twice or goes around its own schema.
    "json_allowed_escapes": 'nrbtf\\"',
}
EXAMPLE = '{"a":1}'


@dataclass(frozen=True)
class Grammar:
    """A compiled schema. `path` is a shortest answer; None where none was found, and then none may be there in time.

    `bounds`: what was supplied where the schema had no bound, by keyword; `narrowed`: where less is allowed than the
    schema says. `judge` tells whether a value fits the caller's own schema.
    """

    template: LLMatcher
    closer: Closer
    path: list[int] | None
    bounds: Bounds
    narrowed: list[str]
    judge: jsonschema_rs.Validator
    inner: jsonschema_rs.Validator | None
    copied: Fields | None  # where it has copy-only strings
    samples: Samples  # strings that may help to close
    keyword: str  # that is named where all this breaks down

    @property
    def shortest(self) -> int:
        """Tokens that any answer takes, as far as that is known."""
        return len(self.path or ())

    def reaches(self, value: Any) -> bool:
        """Whether an answer that fits has come up against a bound that was supplied, and may have been cut there."""
        return self.inner is not None and not self.inner.is_valid(value)

    def start(self, document: Substrings | None = None) -> tuple[Matcher, Guard]:
        """For one row: what it may say next, and what keeps it able to close. Copy-only strings need a `document`."""
        matcher: Matcher = self.template.deep_copy()
        if self.copied is None or document is None:
            return matcher, Guard(self.closer, matcher, self.path, self.samples)
        matcher = Verbatim(self.template.deep_copy(), Follower(self.copied, document))
        return matcher, Guard(
            self.closer, matcher, self.closer.path(matcher, LONGEST_PATH, samples=self.samples), self.samples
        )


class Grammars:
    """Compiles schemas for one tokenizer; 1-30 ms each, the last 256 are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, stops: set[int]) -> None:
        self._tokenizer: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(stops))
        self._closer = Closer(self._tokenizer, vocabulary)
        # A tokenizer that begins every text with a blank (SentencePiece) would begin an answer so.
        first = tokenizer.encode(EXAMPLE, add_special_tokens=False)[:1]
        self._blank = self._tokenizer.decode_bytes(first).startswith(b" ")
        self._compiled = lru_cache(maxsize=256)(self._compile)
        self._tokens = vocabulary_of(self._tokenizer, vocabulary)
        self.index = lru_cache(maxsize=DOCUMENTS)(self._index)

    def _index(self, pages: tuple[str, ...]) -> Substrings:
        return Substrings(pages, self._tokens)

    def decode(self, tokens: list[int]) -> bytes:
        return self._tokenizer.decode_bytes(tokens)

    def matcher(self, schema: Schema) -> LLMatcher:
        """A fresh matcher for `schema`, without a guard."""
        return self.compile(schema).template.deep_copy()

    def compile(self, schema: Schema) -> Grammar:
        """Failure names a keyword that cannot be enforced, and its pointer; nothing is ignored."""
        return self._compiled(dump(schema))

    def _compile(self, text: str) -> Grammar:
        schema = json.loads(text)
        admitted = admit(schema)
        for written in admitted.candidates():
            if (matcher := self.match(written.text)) is not None:
                found = samples(json.loads(written.text))
                path = self._closer.path(matcher, LONGEST_PATH, samples=found)
                inner = None if written.inner is None else judge(json.loads(written.inner))
                narrowed = [at for _, at in admitted.narrowed]
                return Grammar(
                    matcher,
                    self._closer,
                    path,
                    written.supplied,
                    narrowed,
                    judge(schema),
                    inner,
                    fields(schema),
                    found,
                    name(largest(schema)),
                )
        fault = admitted.blame(lambda text: self.match(text) is not None)
        raise refusal([fault], "nothing fits, or it is beyond what can be compiled")

    def match(self, schema: str) -> LLMatcher | None:
        """A matcher at the start of an answer; None where llguidance has none for the schema."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=LAYOUT)
            if self._blank:
                grammar = LLMatcher.grammar_from_lark(
                    'start: " "? json\njson: %json ' + json.dumps({"x-guidance": LAYOUT} | json.loads(schema))
                )
            # It would print the answer where it says what is wrong with it.
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(step_lexer_fuel=FUEL))
        except ValueError:
            return None
        matcher.compute_bitmask()  # some faults show only when the first token is due
        return None if matcher.is_error() else matcher


Wanted = tuple[Matcher, int, list[int]]  # the state of a row, the number of its first mask, and its draft


class Masks:
    """The tokens that each row may take next, found while the model computes; llguidance does not hold the GIL."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._worker = ThreadPoolExecutor(1, "masks")
        self._executor = LLExecutor(THREADS)
        self._first: dict[int, int] = {}
        self._ready: Future[NDArray[np.uint8]] | None = None

    def begin(self, pieces: list[Piece]) -> None:
        """Start on the masks of these rows, one a place: for the next token, and behind each token of the draft."""
        wanted: list[Wanted] = []
        self._first = {}
        count = 0
        for piece in pieces:
            self._first[piece.sequence.number] = count
            if piece.sequence.matcher is not None:
                wanted.append((piece.sequence.matcher, count, piece.draft))
            count += piece.places
        self._ready = self._worker.submit(self._compute, wanted, count) if wanted else None

    def _compute(self, wanted: list[Wanted], count: int) -> NDArray[np.uint8]:
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

    def _fill(self, wanted: list[Wanted], masks: NDArray[np.int32]) -> None:
        inner = [(_inner(matcher), at, draft) for matcher, at, draft in wanted]
        # Neither function takes an empty list, nor the second an empty draft.
        if plain := [(matcher, at) for matcher, at, draft in inner if not draft]:
            fill_next_token_bitmask_par(self._executor, plain, masks)
        if drafting := [each for each in inner if each[2]]:
            fill_next_token_bitmask_par_with_draft_tokens(self._executor, drafting, masks)
        for matcher, at, draft in wanted:
            if isinstance(matcher, Verbatim):
                matcher.restrict(masks.view(np.uint8)[at : at + 1 + len(draft)], draft)

    def allowed(self, pieces: list[Piece]) -> NDArray[np.uint8] | None:
        """The masks of some of these rows, one bit a token; None where no row has a grammar."""
        if self._ready is None:
            return None
        rows = [self._first[piece.sequence.number] + at for piece in pieces for at in range(piece.places)]
        found: NDArray[np.uint8] = self._ready.result()[rows]
        return found


def _inner(matcher: Matcher) -> LLMatcher:
    """llguidance's part of it, which it fills a mask for."""
    inner = matcher.inner if isinstance(matcher, Verbatim) else matcher
    assert isinstance(inner, LLMatcher)
    return inner
