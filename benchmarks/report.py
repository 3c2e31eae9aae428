"""A benchmark as markdown for the README: no figure without its ratio to ours, no row left out."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks import figures
from benchmarks.figures import Compared, Figures
from benchmarks.load import Load
from benchmarks.record import OURS, Contestant, Record

DASH = "-"


class Column(NamedTuple):
    """A figure of the table; `best` says whether more or less of it is better."""

    title: str
    read: Callable[[Figures], float | None]
    best: Callable[[float, float], float]
    form: str


COLUMNS = (
    Column("documents/s", lambda found: found.documents, max, ".3f"),
    Column("valid documents/s", lambda found: found.usable, max, ".3f"),
    Column("tokens/s out", lambda found: found.tokens, max, ".1f"),
    Column("p50 s", lambda found: found.p50, min, ".1f"),
    Column("p95 s", lambda found: found.p95, min, ".1f"),
    Column("p99 s", lambda found: found.p99, min, ".1f"),
    Column("first token s", lambda found: found.first, min, ".1f"),
    Column("JSON", lambda found: found.json, max, ".0%"),
    Column("fits the schema", lambda found: found.schema, max, ".0%"),
)
LEGEND = (
    "Median over the rounds, then its ratio to ours in the same round (least-most over the rounds); bold where it is "
    "better than ours. Our own row shows its spread around its median. Documents/s counts every answer, valid "
    "documents/s those that fit the schema; a refused or failed one is not done, has no latency, and counts against "
    f"the last two rates. Where we do not stream ({DASH}), a peer's first token is compared with our whole answer "
    "(p50), for that is when ours comes."
)


def markdown(record: Record) -> str:
    """The whole report."""
    loads = list(dict.fromkeys(item.load for item in record.rounds))
    parts = [_pairs(record.host), _pairs(record.plan)]
    parts += [f"**{load.title}**\n\n{table(record, load)}" for load in loads]
    parts += [LEGEND, "\n".join(_note(contestant) for contestant in record.contestants)]
    return "\n\n".join(parts)


def table(record: Record, load: Load) -> str:
    """One load: a row a contestant, those that are missing with the reason."""
    titles = ["", "schema", *(column.title for column in COLUMNS), "not done"]
    rows = [titles, ["---"] * len(titles)]
    rows += [_row(contestant, record, load) for contestant in record.contestants]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rounds_of(record: Record, name: str, load: Load) -> dict[int, Figures]:
    """The figures of one server under one load, by round."""
    wanted = [item for item in record.rounds if item.server == name and item.load == load]
    return {item.number: figures.measure(item.run) for item in wanted}


def compared(record: Record, name: str, load: Load, column: Column) -> Compared | None:
    """One cell, unwritten: rounds in which both have run."""
    ours, theirs = rounds_of(record, OURS, load), rounds_of(record, name, load)
    if name == OURS:
        return figures.spread([column.read(found) for found in ours.values()])
    both = sorted(ours.keys() & theirs.keys())
    base = [_base(ours[number], column) for number in both]
    return figures.compare([column.read(theirs[number]) for number in both], base)


def _base(ours: Figures, column: Column) -> float | None:
    value = column.read(ours)
    return ours.p50 if value is None and column.title == "first token s" else value


def _row(contestant: Contestant, record: Record, load: Load) -> list[str]:
    name = contestant.name
    found = list(rounds_of(record, name, load).values())
    if contestant.absent or not found:
        reason = contestant.absent or "it has not run under this load"
        return [name, f"missing: {reason}".replace("|", "/"), *[DASH] * (len(COLUMNS) + 1)]
    cells = [_cell(compared(record, name, load, column), column, name == OURS) for column in COLUMNS]
    refused, failed = sum(item.refused for item in found), sum(item.failed for item in found)
    return [name, contestant.schema, *cells, f"{refused} refused, {failed} failed" if refused or failed else "0"]


def _cell(value: Compared | None, column: Column, own: bool) -> str:
    if value is None:
        return DASH
    if value.ratio is None or value.low is None or value.high is None:
        return f"{value.value:{column.form}} ({DASH})"
    ratio = f"{value.ratio:.2f}x"
    if not own and value.ratio != 1 and column.best(value.ratio, 1.0) == value.ratio:
        ratio = f"**{ratio}**"
    return f"{value.value:{column.form}} {ratio} ({value.low:.2f}-{value.high:.2f})"


def _pairs(facts: dict[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in facts.items()) + "."


def _note(contestant: Contestant) -> str:
    parts = [f"- {contestant.name}: {contestant.about}"]
    if contestant.versions:
        parts.append(", ".join(f"{name} {version}" for name, version in contestant.versions.items()))
    if contestant.installed:
        parts.append(contestant.installed)
    if contestant.belief:
        parts.append(f"we believe: {contestant.belief}")
    return "; ".join(parts) + "."
