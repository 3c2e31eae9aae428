"""Text out of ids as they come, and where it is to stop. What comes in pieces is, joined, what comes at once.

Knows tokenizers and strings; nothing of rows, forms or HTTP.
"""

from collections.abc import Sequence as Listing
from typing import Protocol

LOST = "\ufffd"  # what stands for bytes that are no character, or not yet


class Speller(Protocol):
    """How ids read (models/template.py)."""

    letter: list[int]

    def spell(self, ids: list[int]) -> str: ...
    def settle(self, text: str) -> int: ...
    def unguard(self, text: str) -> str: ...


class Text:
    """The text of one answer, or where it `continues` another text, more of that.

    Bytes make up characters, a text's first blank is dropped, joiners are taken out of markers: what may still change
    is held back. Where bytes are no characters each is LOST, but what was a character stays one.
    """

    def __init__(self, speller: Speller, continues: bool = False) -> None:
        self._speller = speller
        self._guarded = not continues
        self._before = speller.letter if continues else []  # so that a blank is not the first one
        self._ids: list[int] = []
        self._held = ""

    def take(self, token: int) -> str:
        """What can be told now that `token` has come."""
        self._ids.append(token)
        said = self._spell()
        if not said or said.endswith(LOST):
            return ""
        self._before, self._ids = self._speller.letter, []
        said = self._held + said
        upto = self._speller.settle(said) if self._guarded else len(said)
        self._held = said[upto:]
        return self._told(said[:upto])

    def end(self) -> str:
        """The rest."""
        return self._told(self._held + self._spell())

    def _spell(self) -> str:
        return self._speller.spell(self._before + self._ids)[bool(self._before) :]

    def _told(self, said: str) -> str:
        return self._speller.unguard(said) if self._guarded else said


class Stops:
    """Ends a text before the first of some strings."""

    def __init__(self, stops: Listing[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def take(self, text: str) -> tuple[str, bool]:
        """What can be told now that `text` has come, and whether it ends there."""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        places = range(max(len(text) - self._longest + 1, 0), len(text))
        upto = next((at for at in places if self._begins(text[at:])), len(text))
        self._held = text[upto:]
        return text[:upto], False

    def end(self) -> str:
        """The rest, which has come to no stop."""
        held, self._held = self._held, ""
        return held

    def _begins(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
