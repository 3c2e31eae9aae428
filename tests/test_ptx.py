"""models/nf4/ptx.py: the instructions run here, one by one, on every byte in every place."""

import random
import re
from collections.abc import Callable

import pytest

from models.nf4 import ptx

MASK = 0xFFFFFFFF


def prmt(a: int, b: int, chosen: int) -> int:
    """As in the PTX ISA, 9.7.9.7: four bits choose a byte of eight, or its sign eight times."""
    source = (a | b << 32).to_bytes(8, "little")
    picked = [(chosen >> 4 * at) & 15 for at in range(4)]
    return int.from_bytes(
        bytes(0xFF * (source[each & 7] >> 7) if each & 8 else source[each & 7] for each in picked), "little"
    )


def lop3(a: int, b: int, c: int, table: int) -> int:
    return sum((table >> ((a >> at & 1) << 2 | (b >> at & 1) << 1 | c >> at & 1) & 1) << at for at in range(32))


OPERATIONS: dict[str, Callable[..., int]] = {
    "xor": lambda a, b: a ^ b,
    "and": lambda a, b: a & b,
    "shr": lambda a, b: a >> b,
    "shl": lambda a, b: a << b & MASK,
    "prmt": prmt,
    "lop3": lop3,
}


def run(text: str, packed: int) -> list[int]:
    """Execute `text` with $4 = `packed`; the values of $0 to $3."""
    registers = {"$4": packed}

    def value(name: str) -> int:
        return int(name, 16) if name.startswith("0x") else int(name) if name.isdigit() else registers[name]

    for line in text.strip("{}\n").splitlines():
        if line.startswith(".reg"):
            continue
        found = re.fullmatch(r"(\w+)\.b32 (\S+), (.+);", line)
        assert found, line
        operation, target, rest = found.groups()
        registers[target] = OPERATIONS[operation](*(value(each) for each in rest.split(", ")))
    return [registers[f"${at}"] for at in range(4)]


def expected(values: list[int], packed: int) -> list[int]:
    found = packed.to_bytes(4, "little")
    even = [values[byte >> 4] for byte in found]
    odd = [values[byte & 15] for byte in found]
    return [pair[0] | pair[1] << 16 for half in (even, odd) for pair in (half[:2], half[2:])]


@pytest.mark.parametrize("seed", range(4))
def test_any_sixteen_values_are_found_for_every_byte(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.randrange(1 << 16) for _ in range(16)]
    text = ptx.decoder(values)
    for byte in range(256):
        for place in range(4):
            packed = rng.randrange(1 << 32) & ~(0xFF << 8 * place) | byte << 8 * place
            assert run(text, packed) == expected(values, packed)


def test_three_instructions_a_weight() -> None:
    lines = [line for line in ptx.decoder([0] * 16).splitlines() if line[0] not in ".{}"]
    assert len(lines) == 24  # for eight weights
