"""Eight NF4 codes of four bytes become sixteen-bit numbers in 24 PTX instructions. Text only; knows no torch.

`prmt` looks a byte up in a table of eight and takes four bits a byte: three say which, the fourth asks for the byte's
sign bit in place of the byte, eight times. So a table of sixteen is two lookups, the second with the fourth bit turned
round, and each lookup answers 00 or FF where the other one holds the answer. Which of the two is known beforehand, and
the tables are written so that one `lop3` joins them: exclusive or, and in the top bit a choice by the nibble's own.
"""

A, B, Q = 0xF0, 0xCC, 0xAA  # the three inputs of a lop3, as its table names them
CHOOSE = Q & B | ~Q & 0xFF & (A ^ B)


def tables(values: list[int]) -> tuple[bytes, bytes]:
    """Two tables of eight bytes for sixteen values of a byte, such that the joined lookups give `values`."""
    low, high = [], []
    for one, other in zip(values[:8], values[8:], strict=True):
        top = other >> 7
        turn = top ^ (one >> 7)  # the top bit of the low table's byte: what the high lookup is xored with
        low.append((one ^ (0xFF * top)) & 0x7F | turn << 7)
        high.append((other ^ (0xFF * turn)) & 0x7F | top << 7)
    return bytes(low), bytes(high)


def decoder(values: list[int]) -> str:
    """PTX from one register of four packed bytes, $4, to four registers of two 16-bit `values` each.

    $0 and $1: of the high nibbles, $2 and $3: of the low ones; in the order of the bytes.
    """
    planes = [tables([value >> shift & 0xFF for value in values]) for shift in (0, 8)]
    lines = [
        ".reg .b32 turned, half, turnedhalf, even, odd, q, a, b, low, high;",
        "xor.b32 turned, $4, 0x88888888;",
        "shr.b32 half, $4, 16;",
        "shr.b32 turnedhalf, turned, 16;",
        "and.b32 even, $4, 0x80808080;",
        "shl.b32 odd, $4, 4;",
        "and.b32 odd, odd, 0x80808080;",
    ]
    for first, flipped, spread, evens, odds in (
        ("$4", "turned", 0x5140, "$0", "$2"),
        ("half", "turnedhalf", 0x7362, "$1", "$3"),
    ):
        lines.append(f"prmt.b32 q, odd, even, {spread:#x};")
        for plane, (low, high) in zip(("low", "high"), planes, strict=True):
            for name, table, chosen in (("a", low, first), ("b", high, flipped)):
                words = [int.from_bytes(table[at : at + 4], "little") for at in (0, 4)]
                lines.append(f"prmt.b32 {name}, {words[0]:#010x}, {words[1]:#010x}, {chosen};")
            lines.append(f"lop3.b32 {plane}, a, b, q, {CHOOSE:#x};")
        lines.append(f"prmt.b32 {evens}, low, high, 0x7351;")
        lines.append(f"prmt.b32 {odds}, low, high, 0x6240;")
    return "{\n" + "\n".join(lines) + "\n}"
