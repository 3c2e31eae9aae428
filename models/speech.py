"""What rows say, as it comes: text, the tokens that it is made of, calls of functions, and how it ended.

What is told at once is told in pieces as well, by the same way. Knows no messages and no HTTP.
"""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Literal

from models import audit, tools
from models.engine.grammar import Grammar
from models.engine.sequence import Completion, Sequence
from models.engine.stream import Stream
from models.failure import Failure
from models.schema.dialect import Schema
from models.text import Stops, Text
from models.tools import Call

EndReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Token:
    """A token as bytes, where in the answer's text it begins, its log-probability among all that might have come, and
    the likeliest of these."""

    piece: bytes
    start: int
    logprob: float
    tops: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Delta:
    """What row `index` says next; `tokens` only where they are asked for. The last one has a `finish_reason`."""

    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    calls: tuple[Call, ...] = ()
    finish_reason: EndReason | None = None


@dataclass(frozen=True)
class Form:
    """What an answer must be: JSON that fits `schema`; with `calls` as tools.py has it."""

    schema: Schema
    grammar: Grammar
    calls: bool = False


class Voice:
    """One row, heard token by token."""

    def __init__(
        self,
        at: int,
        row: Sequence,
        text: Text,
        stops: Stops,
        form: Form | None = None,
        spell: Callable[[list[int]], bytes] | None = None,
    ) -> None:
        """`spell`: the bytes of tokens, where these are to be told."""
        self._at = at
        self._row = row
        self._text = text
        self._stops = stops
        self._form = form
        self._spell = spell
        self._read = 0  # characters that are settled
        self._sent = 0
        self._starts: list[int] = []  # where in them each token begins
        self._told = 0  # tokens that have gone out
        self._whole = ""  # of a form
        self._upto = 0  # characters of it whose words are told
        self.made = 0
        self.ended = False

    def hear(self, token: int) -> Delta | None:
        """What can be told now; where it has come to a stop, that is the end of it."""
        self.made += 1
        self._starts.append(self._read)
        said = self._text.take(token)
        self._read += len(said)
        said, stopped = self._stops.take(said)
        if stopped:
            return self._stop(said)
        if self._form is not None:
            said = self._hear_form(self._form, said)
        return self._tell(said) if said else None

    def close(self, completion: Completion) -> Delta:
        """The rest; Failure where it is not what was asked for."""
        said = self._text.end()
        self._read += len(said)
        said, stopped = self._stops.take(said)
        if stopped:
            return self._stop(said)
        said += self._stops.end()
        self.ended = True
        if self._form is not None:
            return self._close_form(self._form, said, completion)
        return self._tell(said, "stop" if completion.finish_reason == "stop" else "length")

    def _stop(self, said: str) -> Delta:
        self.ended = True
        self._row.future.cancel()
        return self._tell(said, "stop")

    def _hear_form(self, form: Form, said: str) -> str:
        """JSON begins with no blank, whatever the tokenizer thinks; of what may be calls only words can be told yet."""
        if not self._whole:
            self._sent += len(said) - len(said.lstrip())
            said = said.lstrip()
        self._whole += said
        if not form.calls:
            return said
        words, self._upto = tools.spoken(self._whole, self._upto)
        return words

    def _close_form(self, form: Form, said: str, completion: Completion) -> Delta:
        said = self._hear_form(form, said)
        if completion.finish_reason == "length":
            told = f"it was ended at {len(completion.tokens)} tokens (prompt: {completion.prompt_tokens})"
            raise Failure("answer_truncated", f"the answer is cut: {told}; allow more tokens, or bound the schema")
        value = audit.parse(self._whole, form.schema)
        whole = completion.finish_reason == "stop" and not form.grammar.reaches(value)
        calls = tools.read(self._whole)[1] if form.calls else ()
        return self._tell(said, "length" if not whole else "tool_calls" if calls else "stop", calls)

    def _tell(self, said: str, reason: EndReason | None = None, calls: tuple[Call, ...] = ()) -> Delta:
        """With the tokens in which its characters begin; at an end that is no stop with all."""
        self._sent += len(said)
        whole = reason is not None and self._sent == self._read
        first, last = self._told, len(self._starts) if whole else bisect_left(self._starts, self._sent)
        self._told = last
        tokens = tuple(map(self._token, range(first, last))) if self._spell else ()
        return Delta(self._at, said, tokens, calls, reason)

    def _token(self, at: int) -> Token:
        assert self._spell
        token, logprob = self._row.ids[len(self._row.prompt) + at], self._row.logprobs[at]
        # What was forced has no other.
        tops = self._row.alternatives[at] or [(token, logprob)]
        told = tuple((self._spell([top]), other) for top, other in tops[: self._row.tops])
        return Token(self._spell([token]), self._starts[at], logprob, told)


@dataclass(eq=False)
class Speech:
    """Rows on their way. Cancelling it frees them all before the engine's next step."""

    model: str
    fingerprint: str
    prompt_tokens: int
    rows: list[Sequence]
    voices: list[Voice]
    stream: Stream

    @property
    def completion_tokens(self) -> int:
        return sum(voice.made for voice in self.voices)

    @property
    def progress(self) -> float:
        return sum(row.progress for row in self.rows) / len(self.rows)

    def cancel(self) -> None:
        self.stream.cancel()

    async def deltas(self) -> AsyncIterator[Delta]:
        """All that is said, until every row has ended; Failure where one fails, and then no other goes on."""
        try:
            async for at, token in self.stream:
                voice = self.voices[at]
                if voice.ended:
                    continue
                if token is None:  # the answer is checked, which may take a while
                    yield await asyncio.to_thread(voice.close, outcome(self.rows[at]))
                elif delta := voice.hear(token):
                    yield delta
        finally:
            self.cancel()

    async def answer(self) -> list[Delta]:
        """What each row has said, at once; raises Failure."""
        said: list[list[Delta]] = [[] for _ in self.rows]
        async for delta in self.deltas():
            said[delta.index].append(delta)
        return [join(deltas) for deltas in said]


def outcome(row: Sequence) -> Completion:
    """Of a row that has ended; raises the Failure that it has ended with."""
    try:
        return row.future.result()
    except CancelledError:
        raise Failure("client_closed_request", "the client left") from None


def join(deltas: list[Delta]) -> Delta:
    """All that one row has said as one."""
    *_, last = deltas
    text = "".join(delta.text for delta in deltas)
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    return Delta(last.index, text, tokens, last.calls, last.finish_reason)
