"""A run on a card as markdown for the README: every figure with its share of the limit, what failed with its reason."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
DASH = "-"


def table(found: Row) -> str:
    """The whole report of what a run has found, or of as much of it as there is."""
    parts = [_head(found)]
    parts += [_section(teller, found[name]) for name, teller in TELLERS.items() if name in found]
    if found.get("projected"):
        parts.append(_projected(found["projected"]))
    return "\n\n".join(parts)


def tabled(rows: Iterable[Row], columns: Columns) -> str:
    """A markdown table; a dash where a row does not know what a column asks for."""
    made = [[_cell(read, row) for read in columns.values()] for row in rows]
    lines = [list(columns), ["---"] * len(columns), *made]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(read: Callable[[Row], str], row: Row) -> str:
    try:
        return read(row)
    except KeyError:
        return DASH


def _section(teller: "Teller", section: Row) -> str:
    told = [f"**{teller.title}**"]
    if isinstance(section.get("left_out"), str):
        told.append(f"Not measured: {section['left_out']}.")
    for key, words in (("error", "Failed"), ("first_failed_step", "A step failed")):
        if key in section:
            told.append(f"{words}: {section[key].strip().splitlines()[-1]}.")
    if "unfinished" in section:
        told.append("Unfinished; as far as it went:")
    try:
        told += teller.tell(section)
    except KeyError:  # of one that has failed or was stopped
        told.append("No figures.")
    return "\n\n".join(told)


def _head(found: Row) -> str:
    card, host, limits = found["card"], found["host"], found["limits"]
    capability = ".".join(map(str, card["capability"]))
    parts = [
        f"{card['name']} ({capability}, {card['total'] / 2**30:.0f} GiB, driver {card['driver']})",
        f"{host['CPU']}, {host['cores']} cores",
        ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        f"{found['layers']} layers, random NF4 weights, commit {host['commit']}, {host['date']}",
        f"limits measured: a copy {limits['bandwidth'] / 1e12:.2f} TB/s, "
        f"a bf16 product {limits['matmul'] / 1e12:.0f} TFLOP/s",
    ]
    if "bytes" in found:
        sizes = found["bytes"]
        verdict = "as planned" if sizes["holds"] else "NOT AS PLANNED"
        parts.append(f"weights: {sizes['planned_bytes']:,} bytes planned, {sizes['taken_bytes']:,} taken ({verdict})")
    return "; ".join(parts) + "."


def _check(section: Row) -> list[str]:
    near = sum(run["near_ties"] for run in section["greedy"])
    return [
        f"Engine and reference {'agree' if section['holds'] else 'DO NOT AGREE'}: of {section['tokens']:,} greedy "
        f"tokens {section['same']:,} are the same and {near:,} near ties; the worst of all lies "
        f"{section['worst_behind']:.2f} standard deviations behind the best.",
        tabled(
            section["steps"],
            {
                "rows in a step": lambda row: str(row["batch"]),
                "by": lambda row: row["by"],
                "a row's logits are off by": lambda row: f"{row['error']:.4f}",
                "at most": lambda row: f"{row['worst']:.4f}",
                "the reference is off from itself by": lambda row: f"{row['noise']:.4f}",
            },
        ),
    ]


def _decode(section: Row) -> list[str]:
    columns: Columns = {
        "rows": lambda row: str(row["batch"]),
        "experts": lambda row: f"{row['experts']:.1f}",
        "limit ms": lambda row: _ms(row["limit_seconds"]),
        "step ms": lambda row: _ms(row["seconds"]),
        "of the limit": lambda row: f"{row['fraction']:.0%}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "engine ms": lambda row: _ms(row["engine_seconds"]),
        "engine of the limit": lambda row: f"{row['engine_fraction']:.0%}",
        "engine tokens/s": lambda row: f"{row['engine_tokens_per_second']:,.0f}",
        "reference ms": lambda row: _ms(row["reference_seconds"]),
    }
    told = [tabled(section["rows"], columns)]
    if section["left_out"]:
        room = section["room_tokens"]
        told.append(f"{', '.join(map(str, section['left_out']))} rows do not fit {room:,} tokens of KV cache.")
    return told


def _documents(section: Row) -> list[str]:
    columns: Columns = {
        "tokens a step": lambda row: f"{row['step_tokens']:,}",
        "shared tokens": lambda row: str(row["shared"]),
        "in flight": lambda row: str(row["clients"]),
        "documents/s": lambda row: f"{row['documents_per_second']:.2f}",
        "ceiling": lambda row: f"{row['ceiling']:.1f}",
        "of the ceiling": lambda row: f"{row['fraction']:.0%}",
    }
    return [tabled(section["rows"], columns)]


def _crossed(rows: list[Row], names: tuple[str, ...], tell: Callable[[Row], str]) -> str:
    """A line for each of `names` together, a column for each number of tokens."""
    sizes = list(dict.fromkeys(row["tokens"] for row in rows))
    lines: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        lines.setdefault(key, dict(zip(names, key, strict=True)))[str(row["tokens"])] = tell(row)
    columns = {name: (lambda row, name=name: row[name]) for name in (*names, *map(str, sizes))}
    return tabled(lines.values(), columns)


def _prefill(section: Row) -> list[str]:
    def tell(row: Row) -> str:
        return f"{row['tokens_per_second']:,.0f} ({row['mfu']:.0%})"

    title = "Tokens a second (share of the product's rate), by tokens in the step."
    return [title, _crossed(section["rows"], ("way",), tell)]


def _operations(section: Row) -> list[str]:
    def tell(row: Row) -> str:
        return f"{row['bytes_per_second'] / 1e9:,.0f} ({row['fraction']:.0%})"

    title = "GB of 4-bit weights a second (share of the copy's rate), by tokens in the step."
    return [title, _crossed(section["rows"], ("operation", "way"), tell)]


def _labels(section: Row) -> list[str]:
    columns: Columns = {
        "documents together": lambda row: str(row["documents"]),
        "documents/s": lambda row: f"{row['documents_per_second']:.1f}",
        "labels/s": lambda row: f"{row['labels_per_second']:.0f}",
        "label step ms": lambda row: _ms(row["step_seconds"]),
        "ceiling documents/s": lambda row: f"{row['ceiling']:.1f}",
        "of the ceiling": lambda row: f"{row['fraction']:.0%}",
    }
    return [tabled(section["rows"], columns)]


def _kernels(section: Row) -> list[str]:
    def tell(kernels: list[Row]) -> str:
        whole = sum(kernel["milliseconds"] for kernel in kernels) or 1.0
        most = [f"{kernel['kernel'][:28]} {kernel['milliseconds'] / whole:.0%}" for kernel in kernels[:5]]
        return ", ".join(most).replace("|", "/")

    rows = [{"step": step, "told": tell(kernels)} for step, kernels in section.items() if isinstance(kernels, list)]
    return [tabled(rows, {"step": lambda row: row["step"], "most of its time": lambda row: row["told"]})]


def _load(section: Row) -> list[str]:
    rows = [{"name": name, **section[name]} for name in ("warm", "cold") if name in section]
    columns: Columns = {
        "": lambda row: row["name"],
        "GB": lambda row: f"{row['bytes'] / 1e9:.1f}",
        "seconds": lambda row: f"{row['seconds']:.1f}",
        "GB/s": lambda row: f"{row['bytes_per_second'] / 1e9:.2f}",
        "of a pinned copy's rate": lambda row: f"{row['bytes_per_second'] / section['copy']:.0%}",
        "GB fetched from a disk": lambda row: DASH if row["fetched"] is None else f"{row['fetched'] / 1e9:.1f}",
    }
    return [f"{section['layers']} of {section['of_layers']} layers.", tabled(rows, columns)]


def _tune(section: Row) -> list[str]:
    tiles: Columns = {
        "tokens up to": lambda row: str(row["path"]),
        "product": lambda row: row["operation"],
        "the table's": lambda row: _tile(row["current"]),
        "the best found": lambda row: _tile(row["best"]),
        "gain": lambda row: f"{row['gain']:+.0%}",
    }
    parts: Columns = {
        "tokens up to": lambda row: str(row["path"]),
        "the table's parts of keys": lambda row: str(row["current"]),
        "the best": lambda row: str(row["best"]),
    }
    return [tabled(section["cells"], tiles), tabled(section["parts"], parts)]


def _tile(row: Row) -> str:
    tile = ", ".join(str(value) for value in row["tile"].values())
    return f"{tile}: {row['seconds'] * 1e6:.1f} us, {row['fraction']:.0%}"


def _projected(projected: Row) -> str:
    """No figure here was measured, and each says so."""
    limits = projected["limits"]
    columns: Columns = {
        "rows": lambda row: str(row["batch"]),
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f} projected",
        "engine tokens/s": lambda row: f"{row['engine_tokens_per_second']:,.0f} projected",
    }
    documents: Columns = {
        "tokens a step": lambda row: f"{row['step_tokens']:,}",
        "shared tokens": lambda row: str(row["shared"]),
        "documents/s": lambda row: f"{row['documents_per_second']:.1f} projected",
    }
    told = [
        f"**{projected['card']}: projected, not measured**",
        f"From the fractions of {projected['from']}, as if {limits['bandwidth'] / 1e12:.2f} TB/s and "
        f"{limits['matmul'] / 1e12:.0f} TFLOP/s were measured there.",
        tabled(projected["decode"], columns),
    ]
    return "\n\n".join([*told, tabled(projected["documents"], documents)] if projected["documents"] else told)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


class Teller(NamedTuple):
    title: str
    tell: Callable[[Row], list[str]]


TELLERS = {
    "check": Teller("Tokens beside the reference", _check),
    "decode": Teller("Decode, some 1,560 tokens of context", _decode),
    "documents": Teller("Documents through the engine, 1,500 tokens in and 120 out", _documents),
    "prefill": Teller("Prompts in one step", _prefill),
    "operations": Teller("Products by themselves", _operations),
    "labels": Teller("16 labels behind a document of 1,504 tokens", _labels),
    "kernels": Teller("Where a step's time goes", _kernels),
    "load": Teller("Load", _load),
    "tune": Teller("Tiles: tokens, rows, splits, unroll, warps, stages", _tune),
}
