"""A benchmark as a picture. Matplotlib is imported here alone, and only when a picture is drawn."""

from pathlib import Path
from typing import Any

from benchmarks.record import OURS, Record
from benchmarks.report import COLUMNS, compared

SHOWN = ("documents/s", "valid documents/s", "p95 s")


def draw(record: Record, path: Path) -> None:
    """A row of bars a load: what is shown of each server, with its spread and its ratio to ours."""
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    if not record.rounds:
        return
    loads = list(dict.fromkeys(item.load for item in record.rounds))
    columns = [column for column in COLUMNS if column.title in SHOWN]
    names = [contestant.name for contestant in record.contestants][::-1]
    size = (5 * len(columns), (0.5 * len(names) + 1.2) * len(loads))
    figure, grid = pyplot.subplots(len(loads), len(columns), figsize=size, squeeze=False)
    for axes, load in zip(grid, loads, strict=True):
        for axis, column in zip(axes, columns, strict=True):
            axis.set_title(f"{column.title}: {load.title}", fontsize=9)
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.margins(x=0.7)  # room for what is written behind a bar
            for place, name in enumerate(names):
                _bar(axis, place, name, compared(record, name, load, column))
    figure.suptitle(f"{record.host['CPU']}, {record.host['cores']} cores, {record.host['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bar(axis: Any, place: int, name: str, value: Any) -> None:
    if value is None:
        axis.barh(place, 0)
        axis.text(0, place, " missing", va="center", fontsize=7)
        return
    axis.barh(place, value.value, color="tab:blue" if name == OURS else "tab:gray")
    ratio = "" if value.ratio is None else f"{value.ratio:.2f}x ({value.low:.2f}-{value.high:.2f})"
    axis.text(value.value, place, f" {value.value:.2f} {ratio}", va="center", fontsize=7)
