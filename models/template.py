"""Turns of a conversation as ids and back. Text from outside can never become a control token or forge a turn.

Two walls. Special tokens: text of a turn is tokenised with `split_special_tokens`, so `</s>` in it is four characters.
Turn markers that are plain text to the tokenizer (Mixtral's [INST]) are broken by models/markers.py.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerFast

from models.failure import Failure
from models.markers import beginning, guard, unguard
from models.picture import BLIND, Picture

SLOT = "\ue000"  # stands for a turn's text while the chat template is rendered
Form = str | tuple[str, ...]  # of a turn: its role, and behind it where it holds pictures of what it is made


class Placed(NamedTuple):
    """A picture, and how many characters of a turn's text come before it."""

    at: int
    picture: Picture


class Turn(NamedTuple):
    """Who says what; `pictures` in the order in which they are shown."""

    role: Literal["system", "user", "assistant"]
    text: str
    pictures: Sequence[Placed] = ()


class Template:
    """A model's chat template and tokenizer; `alternates`: it has no system turn, user and assistant speak by turns;
    `pad`: the token that the template puts where a picture is to be, None where the model sees none."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, markers: tuple[str, ...], alternates: bool, pad: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._pad = pad
        self._markers = markers
        self._alternates = alternates
        self._special = re.compile("|".join(re.escape(token) for token in tokenizer.all_special_tokens))
        self._shown = lru_cache(64)(self._show)
        self._skeleton = lru_cache(64)(self._render)
        self._skeleton(("user" if pad is None else ("user", "text", "image", "text"),))
        self.letter = self._ids("a")  # read as one letter, and as nothing else beside other ids
        self._longest = max(map(len, tokenizer.get_vocab()))  # characters of a token; of bytes it has as many at least

    def encode(self, turns: Sequence[Turn], most: int | None = None) -> list[int]:
        """Ids of the whole prompt, up to where the assistant is to speak; Failure if this is no conversation, and where
        it has so many characters that it must have more than `most` tokens: that takes no look at them.

        One loss is the tokenizer's: SentencePiece writes a blank as U+2581, so it cannot tell that one from a blank.
        """
        self._check_length(sum(len(turn.text) for turn in turns), most)
        if self._pad is None and any(turn.pictures for turn in turns):
            raise Failure("invalid_value", BLIND)
        turns = fold(turns) if self._alternates else turns
        ids: list[int] = []
        plain = ""  # between two control tokens all text is tokenised as one, as the tokenizer itself would do
        texts = iter([guard(text, self._markers) for turn in turns for text in texts_of(turn)])
        pictures = iter([placed.picture for turn in turns for placed in turn.pictures])
        for piece in self._skeleton(tuple(form_of(turn) for turn in turns)):
            if isinstance(piece, int):
                ids += self._ids(plain)
                ids += next(pictures).ids if piece == self._pad else [piece]
                plain = ""
            else:
                plain += next(texts) if piece == SLOT else piece
        return ids + self._ids(plain)

    def _check_length(self, length: int, most: int | None) -> None:
        if most is not None and length > most * self._longest:
            told = f"the prompt has {length} characters; the context is {most} tokens of at most {self._longest}"
            raise Failure("context_length_exceeded", told)

    def reply(self, text: str) -> list[int]:
        """Ids of `text` as the assistant says it behind a prompt whose last turn is a user's, its end not included."""
        tail = self._special.split(self._shown(("user",)).split(SLOT)[1])[-1]
        between = self._shown(("user", "assistant"), speaks=False).split(SLOT)[1]
        said = between[between.rindex(tail) + len(tail) :] + guard(text, self._markers)
        before, ids = self._ids(tail), self._ids(tail + said)
        # Where the tokenizer joins both, there is no such place; then the answer is cut for itself.
        return ids[len(before) :] if ids[: len(before)] == before else self._ids(said)

    def continued(self, text: str, most: int | None = None) -> list[int]:
        """Ids of `text` that is no conversation and is to be gone on with, behind what begins any prompt. `most` as in
        `encode`."""
        self._check_length(len(text), most)
        shown = self._skeleton(("user", "assistant", "user"))
        begins = shown[:1] if isinstance(shown[0], int) and shown.count(shown[0]) == 1 else []  # else it marks a turn
        return [*(id for id in begins if isinstance(id, int)), *self._ids(text)]

    def decode(self, ids: list[int]) -> str:
        """What the model has said, with markers that it has copied as they were in the caller's text."""
        return unguard(self.spell(ids), self._markers)

    def spell(self, ids: list[int]) -> str:
        """The text of ids as they stand, control tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def settle(self, text: str) -> int:
        """How much of `text` reads the same whatever follows it: `unguard` cannot yet tell of the rest."""
        found = beginning(self._markers).search(text) if self._markers else None
        return len(text) if found is None else found.start()

    def unguard(self, text: str) -> str:
        return unguard(text, self._markers)

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _render(self, forms: tuple[Form, ...]) -> list[str | int]:
        """The template around turns of these forms: text, ids of control tokens, and SLOT for the text of a turn."""
        shown = self._shown(forms)
        if shown.count(SLOT) != sum(1 if isinstance(form, str) else form.count("text") for form in forms):
            raise ValueError("the chat template does not show the text of each turn exactly once")
        pieces: list[str | int] = []
        for part in re.split(f"({self._special.pattern}|{SLOT})", shown):
            if self._special.fullmatch(part):
                pieces.append(self._tokenizer.added_tokens_encoder[part])
            elif part:
                pieces.append(part)
        if self._pad is not None and pieces.count(self._pad) != sum(form.count("image") for form in forms):
            raise ValueError("the chat template does not show each picture exactly once")
        return pieces

    def _show(self, forms: tuple[Form, ...], speaks: bool = True) -> str:
        """The rendered template; `speaks`: up to where the assistant is to."""
        parts = {"image": {"type": "image"}, "text": {"type": "text", "text": SLOT}}
        turns: list[Any] = [
            {"role": form, "content": SLOT}
            if isinstance(form, str)
            else {"role": form[0], "content": [parts[kind] for kind in form[1:]]}
            for form in forms
        ]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=speaks))


def lead(pictures: Sequence[Picture]) -> list[Placed]:
    """Pictures that come before all of a turn's text."""
    return [Placed(0, picture) for picture in pictures]


def form_of(turn: Turn) -> Form:
    """A turn's role, and where it holds pictures of what it is made: these, and texts around them, maybe empty."""
    return (turn.role, "text", *("image", "text") * len(turn.pictures)) if turn.pictures else turn.role


def texts_of(turn: Turn) -> list[str]:
    """The texts around a turn's pictures."""
    ends = [0, *(placed.at for placed in turn.pictures), len(turn.text)]
    return [turn.text[start:end] for start, end in pairwise(ends)]


def fold(turns: Sequence[Turn]) -> list[Turn]:
    """The same conversation as user and assistant by turns: system text goes in front of the first user turn, turns
    of one role that follow each other become one. Failure unless a user speaks first and last."""
    folded: list[Turn] = []
    system = [turn.text for turn in turns if turn.role == "system"]
    for role, text, _ in turns:
        if role == "system":
            continue
        if folded and folded[-1].role == role:
            folded[-1] = Turn(role, f"{folded[-1].text}\n\n{text}")
        else:
            folded.append(Turn(role, text))
    if not folded or folded[0].role != "user" or folded[-1].role != "user":
        raise Failure("invalid_value", "a conversation begins and ends with a user's turn")
    return [Turn("user", "\n\n".join([*system, folded[0].text])), *folded[1:]]
