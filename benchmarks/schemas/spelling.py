"""Whether a matcher lets an instance through, however it must be spelled: compact, its properties in the order that the
grammar wants."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from math import inf
from typing import Any

from llguidance import LLMatcher

FUEL = 4000  # texts put to the matcher where other orders are tried


class Speller:
    """Feeds values byte by byte; `ids` are the tokens of single bytes, `text` is the schema as it is enforced."""

    def __init__(self, ids: list[int], text: str) -> None:
        self._ids = ids
        names = re.findall(r'"((?:\\.|[^"\\])*)":', text)
        self._order = {json.loads(f'"{name}"'): number for number, name in reversed(list(enumerate(names)))}
        self._fuel: float = 0
        self._first = True

    def lets_through(self, matcher: LLMatcher, value: Any) -> bool:
        """Tried in the schema's order, each property as soon as it may come; then in some others."""
        for self._first, self._fuel in ((True, inf), (False, FUEL)):
            if any(after.is_accepting() for after in self._value(matcher, value)):
                return True
        return False

    def _put(self, matcher: LLMatcher, text: str) -> LLMatcher | None:
        self._fuel -= 1
        ids = [self._ids[byte] for byte in text.encode("utf-8", "surrogatepass")]
        if self._fuel < 0 or matcher.validate_tokens(ids) < len(ids):
            return None
        after = matcher.deep_copy()
        after.consume_tokens(ids)
        return after

    def _value(self, matcher: LLMatcher, value: Any) -> Iterator[LLMatcher]:
        """The states behind a value, for each order of its properties that is possible."""
        if isinstance(value, dict):
            left = sorted(value, key=lambda name: self._order.get(name, len(self._order)))
            if opened := self._put(matcher, "{"):
                yield from self._members(opened, value, left, "")
        elif isinstance(value, list):
            if opened := self._put(matcher, "["):
                yield from self._items(opened, value, "")
        else:
            yield from (after for text in spellings(value) if (after := self._put(matcher, text)))

    def _members(self, matcher: LLMatcher, value: Any, left: list[str], comma: str) -> Iterator[LLMatcher]:
        if not left:
            yield from filter(None, [self._put(matcher, "}")])
            return
        ways = [(name, named) for name in left if (named := self._put(matcher, comma + _named(name)))]
        for name, named in ways:
            others = [other for other in left if other != name]
            for after in self._value(named, value[name]):
                # The one to begin with is that after which all may come that may come now.
                last = (name, named) == ways[-1]
                if (
                    self._first
                    and not last
                    and not all(self._put(after, f",{_named(other)}") for other, _ in ways if other != name)
                ):
                    break
                yield from self._members(after, value, others, ",")
                if self._first:
                    return

    def _items(self, matcher: LLMatcher, left: list[Any], comma: str) -> Iterator[LLMatcher]:
        if not left:
            yield from filter(None, [self._put(matcher, "]")])
        elif separated := self._put(matcher, comma) if comma else matcher:
            for after in self._value(separated, left[0]):
                yield from self._items(after, left[1:], ",")


def _named(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) + ":"


def spellings(value: Any) -> list[str]:
    """How a scalar may be written: numbers without exponent, whole ones with and without a point."""
    if isinstance(value, float):
        plain = format(Decimal(repr(value)), "f")
        return [str(int(value)), plain] if value.is_integer() and abs(value) < 1e300 else [plain]
    return [json.dumps(value, ensure_ascii=False)]
