"""JSON Schemas as masks over the next token, by llguidance. Knows nothing of the model or of what is asked."""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from models.engine.schema import Schema, admit
from models.failure import Failure

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Compact JSON: with free white space a model may write blanks until its budget is gone.
LAYOUT: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


class Grammars:
    """Compiles schemas for one tokenizer; 1-30 ms each, the last 256 are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, stops: set[int]) -> None:
        self._tokenizer: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(stops))
        self._compiled = lru_cache(maxsize=256)(self._compile)

    def matcher(self, schema: Schema) -> LLMatcher:
        """A fresh matcher for `schema`; Failure names what it cannot enforce, nothing is ignored."""
        text = admit(schema)
        if "x-guidance" in schema:
            # llguidance would let the caller switch enforcement off with it.
            raise Failure("schema_unsupported", "the schema uses keywords that cannot be enforced: x-guidance")
        return self._compiled(text).deep_copy()

    def _compile(self, schema: str) -> LLMatcher:
        try:
            matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_json_schema(schema, overrides=LAYOUT))
        except ValueError as error:
            raise Failure("schema_unsupported", _reason(str(error))) from None
        matcher.compute_bitmask()  # some faults show only when the first token is due
        if matcher.is_error():
            raise Failure("schema_unsupported", _reason(matcher.get_error()))
        return matcher


def _reason(error: str) -> str:
    """llguidance's own sentence where it names keywords, else a fixed one: no library text passes unseen."""
    if named := re.search(r"Unimplemented keys: \[([^\]]*)\]", error):
        return f"the schema uses keywords that cannot be enforced: {named[1]}"
    if "nsatisfiable" in error:
        return "no JSON value satisfies the schema"
    return "the schema cannot be enforced"


def mask(logits: torch.Tensor, matcher: LLMatcher) -> None:
    """Set the tokens that `matcher` forbids to -inf in logits [vocabulary], in place, on the CPU.

    Not llguidance.torch: its kernel is a torch.compile function, which wants a C++ compiler at run time.
    """
    packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    allowed = np.unpackbits(packed, bitorder="little", count=logits.shape[0]).view(np.bool_)
    logits[torch.from_numpy(~allowed)] = -torch.inf
