"""What is asked: receipts, invoices and letters made from a seed, one instruction, one schema. Knows no server.

A length is stated in tokens of SmolLM2; `estimate` counts them without a tokenizer, and a test pins it to the real one.
"""

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

SHORTEST, LONGEST = 200, 3000
MAX_TOKENS = 200
# Bounded, as our README tells callers to: whoever enforces it ends by itself within MAX_TOKENS.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "kind": {"type": "string", "enum": ["receipt", "invoice", "letter"]},
        "sender": {"type": "string", "maxLength": 32},
        "number": {"type": "string", "maxLength": 12},
        "date": {"type": "string", "maxLength": 10},
        "currency": {"type": "string", "enum": ["EUR", "USD", "GBP", "CHF", "other"]},
        "total": {"type": "string", "maxLength": 12},
        "paid": {"type": "boolean"},
    },
    "required": ["kind", "sender", "number", "date", "currency", "total", "paid"],
}
INSTRUCTION = (
    "You read business documents for an accounting department. Say what kind of document this is, which company "
    "issued it, its number, its date as YYYY-MM-DD, its currency, the total amount as it is printed, and whether it "
    "has been paid. Take every value from the document. Where the document does not say, use an empty text, and for "
    "the currency other. Amounts may use a comma or a point. A reminder is a letter; a till slip is a receipt; a "
    "credit note is an invoice. Answer with the JSON object alone, without comment."
)
TRADES = ("Joinery", "Catering", "Printing", "Stationers", "Heating", "Gardens", "Textiles", "Bakery", "Logistics")
PLACES = ("Eastmere", "Hollow Ford", "Saltcombe", "Greenholt", "Tarn Bridge", "Quay End", "Mill Cross", "Stone Acre")
GOODS = ("oak shelf", "paper roll", "steel bracket", "cotton towel", "rye loaf", "garden hose", "ink cartridge")
NOTES = ("fitted on site", "second delivery", "as agreed by telephone", "with a guarantee of two years", "by the metre")
SENTENCES = (
    "Our records show that the amounts below are still open, although the goods were delivered in good order.",
    "If your payment has crossed with this letter, please disregard it.",
    "We have checked the delivery note against your order and found no difference in quantity or in price.",
    "The work was carried out at the address above and accepted by your office on the same day.",
    "Please quote the number of this letter with your payment, so that we can book it to the right account.",
    "Should there be a query about one of the items, our office can be reached on every working day until five.",
    "The goods remain the property of the seller until they have been paid for in full.",
)
Kind = Literal["receipt", "invoice", "letter"]


@dataclass(frozen=True)
class Question:
    """One document; `tokens` is its stated length."""

    kind: Kind
    document: str
    tokens: int


def make(seed: str, count: int) -> list[Question]:
    """`count` questions, the same for the same seed. Every seed has the same lengths, in another order."""
    chance = random.Random(seed)
    lengths = spread(count)
    chance.shuffle(lengths)
    return [write(chance, length) for length in lengths]


def spread(count: int) -> list[int]:
    """Lengths from the shortest to the longest in equal ratios: many short documents, few long ones."""
    if count == 1:
        return [round(math.sqrt(SHORTEST * LONGEST))]
    return [round(SHORTEST * (LONGEST / SHORTEST) ** (place / (count - 1))) for place in range(count)]


def write(chance: random.Random, tokens: int) -> Question:
    """One document of about `tokens` tokens: a head, as many lines as it takes, a foot."""
    kind: Kind = chance.choice(("receipt", "invoice", "letter") if tokens < 800 else ("invoice", "letter"))
    currency = chance.choice(("EUR", "USD", "GBP", "CHF"))
    head = opening(chance, kind)
    total = 0
    lines: list[str] = []
    foot = closing(currency, 999_999)
    left = tokens - estimate(f"{head}\n{foot}")
    for line, cents in body(chance, kind):
        cost = estimate(f"{line}\n")
        if cost // 2 > left:
            break
        lines.append(line)
        left -= cost
        total += cents
    return Question(kind, "\n".join([head, *lines, closing(currency, total)]), tokens)


def opening(chance: random.Random, kind: Kind) -> str:
    """Who, to whom, number and date."""
    sender, receiver = (f"{chance.choice(PLACES)} {chance.choice(TRADES)} Ltd" for _ in range(2))
    number = (
        f"{chance.choice('ABCDEFGHKLMNPRST')}{chance.choice('ABCDEFGHKLMNPRST')}-{chance.randrange(10_000, 99_999)}"
    )
    date = f"{chance.randrange(2024, 2027)}-{chance.randrange(1, 13):02}-{chance.randrange(1, 29):02}"
    if kind == "receipt":
        return f"{sender.upper()}\nTill {chance.randrange(1, 9)}  Receipt {number}\n{date}"
    title = "INVOICE" if kind == "invoice" else "PAYMENT REMINDER"
    return f"{sender}\n{chance.randrange(1, 99)} Station Road\n\n{receiver}\n\n{title} {number}\nDate: {date}\n"


def body(chance: random.Random, kind: Kind) -> Iterator[tuple[str, int]]:
    """Lines without end, each with the cents that it adds to the total."""
    while True:
        if kind == "letter" and chance.random() < 0.8:
            yield chance.choice(SENTENCES), 0
            continue
        count, cents = chance.randrange(1, 20), chance.randrange(50, 20_000)
        note = f", {chance.choice(NOTES)}" if kind != "receipt" else ""
        yield f"{count}  {chance.choice(GOODS)}{note}  {amount(count * cents)}", count * cents


def closing(currency: str, cents: int) -> str:
    """What is to be paid."""
    return f"\nTOTAL {currency} {amount(cents)}\nThank you for your custom."


def amount(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def estimate(text: str) -> int:
    """About how many tokens `text` is to SmolLM2: a digit is one, and so is a common word behind a blank."""
    pieces = re.findall(r" ?[A-Za-z]+|\d|[^\sA-Za-z\d]|\n+| {2,}", text)
    return sum(map(_cost, pieces))


def _cost(piece: str) -> int:
    if piece.isupper():
        return math.ceil(len(piece) / 3)
    return 1 if not piece.isalpha() or len(piece) < 4 else 2  # without its blank a word is seldom one token


def render(question: Question) -> str:
    """The user's turn, letter for letter what our service makes of `body_of_prompt`, so that all read the same."""
    schema = json.dumps(SCHEMA, ensure_ascii=False, separators=(",", ":"))
    head = f"Answer with one JSON object that fits this JSON Schema:\n\n{schema}\n\n{INSTRUCTION}"
    return f'{head}\n\n"document":\n```\n{question.document}\n```'
