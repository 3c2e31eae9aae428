"""Bounds for what a schema leaves open, so that no answer runs away: the usual ones, widened where it asks for more.

Knows schemas as logic.py leaves them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from models.schema.dialect import LISTS, MAPS, NUMBERS, SINGLE, Node, Schema

DECIMALS = 9
WHOLE = 10**15 - 1
LARGEST = 2**32  # of the integers that llguidance makes of divisors


@dataclass(frozen=True)
class Limits:
    """Characters of a string and of a name, items, properties, the largest integer, digits behind the point, and how
    deep arrays and objects stand in each other where anything is allowed.

    `whole`, `decimals`: None where such a bound might contradict the schema. `closed`: objects that list their
    properties have no others.
    """

    characters: int = 2000
    name: int = 100
    items: int = 200
    properties: int = 100
    whole: int | None = WHOLE
    decimals: int | None = DECIMALS
    depth: int = 6
    closed: bool = True

    def inner(self) -> "Limits":
        """Those that an answer exceeds which has come up against one of these."""
        return Limits(
            characters=self.characters - 1,
            name=self.name - 1,
            items=self.items - 1,
            properties=self.properties - 1,
            whole=None if self.whole is None else self.whole // 10,
            decimals=None,
            depth=self.depth - 1,
            closed=self.closed,
        )


def limits_for(definitions: dict[str, Node]) -> Limits:
    nodes = [node for definition in definitions.values() for node in nodes_of(definition)]
    numbers = [value for node in nodes for value in _numbers(node)]
    divisors = [node["multipleOf"] for node in nodes if "multipleOf" in node]
    usual = Limits()

    def most(key: str, bound: int) -> int:
        found: list[int] = [2 * node.get(key, 0) + len(node.get("prefixItems", ())) for node in nodes]
        return max(bound, *found, 0)

    return replace(
        usual,
        characters=most("minLength", usual.characters),
        items=most("minItems", usual.items),
        properties=most("minProperties", usual.properties),
        whole=usual.whole if all(abs(value) < WHOLE for value in numbers) else None,
        decimals=_decimals(numbers, divisors),
    )


def nodes_of(node: Node) -> Iterator[Schema]:
    """A schema and all in it; what a $ref leads to is another."""
    if not isinstance(node, dict):
        return
    yield node
    for key, value in node.items():
        if key in MAPS or key in LISTS:
            for part in value.values() if key in MAPS else value:
                yield from nodes_of(part)
        elif key == "items" or key in SINGLE:
            yield from nodes_of(value)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers that a node speaks of, or that are in a value."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "enum" or key in NUMBERS:
                yield from _numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part if not isinstance(part, dict) else list(part.values()))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _decimals(numbers: list[float], divisors: list[float]) -> int | None:
    """Digits behind the point that leave room around all these numbers, and for divisors in 32 bits."""
    least = max((places(value) for value in numbers), default=0) + 2
    room = [count for count in range(least, DECIMALS + 1) if all(each * 10**count < LARGEST for each in divisors)]
    return max(room, default=None)


def places(value: float) -> int:
    """Digits behind the point."""
    exponent = Decimal(str(value)).normalize().as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else DECIMALS
