"""A run on a card as a picture: its steps under its own roofline, and decode beside its limit. Matplotlib only here."""

from pathlib import Path
from typing import Any

BELOW = 10.0  # of the first step's operations a byte, how far to the left the roof begins


def draw(found: dict[str, Any], path: Path) -> None:
    """The roofline model (Williams et al. 2009, doi 10.1145/1498765.1498785) with what was measured under it."""
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    figure, (roof, rates) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    decode = found.get("decode", {}).get("rows", [])
    _roof(roof, found, decode)
    _rates(rates, decode)
    figure.suptitle(f"{found['card']['name']}, {found['layers']} layers, {found['host']['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _roof(axis: Any, found: dict[str, Any], decode: list[dict[str, Any]]) -> None:
    bandwidth, matmul = found["limits"]["bandwidth"], found["limits"]["matmul"]
    ridge = matmul / bandwidth
    points = [(row["flop"] / row["bytes"], row["flop"] / row["seconds"], str(row["batch"])) for row in decode]
    weights = found.get("bytes", {}).get("planned_bytes")
    for row in found.get("prefill", {}).get("rows", []):
        if row["way"] == "as served" and weights:
            points.append((row["flop"] / weights, row["flop"] / row["seconds"], f"{row['tokens']} read"))
    ends = [min([ridge, *(x for x, _, _ in points)]) / BELOW, ridge, max([ridge, *(x for x, _, _ in points)]) * BELOW]
    axis.loglog(ends, [min(matmul, x * bandwidth) / 1e12 for x in ends], color="tab:gray")
    for x, y, name in points:
        axis.plot(x, y / 1e12, "o", color="tab:blue", markersize=4)
        axis.annotate(name, (x, y / 1e12), fontsize=7, xytext=(3, -8), textcoords="offset points")
    axis.set_xlabel("operations a byte", fontsize=8)
    axis.set_ylabel("TFLOP/s", fontsize=8)
    axis.set_title("steps by rows or tokens, under the measured limits", fontsize=9)


def _rates(axis: Any, decode: list[dict[str, Any]]) -> None:
    places = range(len(decode))
    limit = [row["batch"] / row["limit_seconds"] for row in decode]
    axis.bar(places, limit, color="lightgray", label="limit")
    axis.bar(places, [row["tokens_per_second"] for row in decode], 0.6, color="tab:cyan", label="step alone")
    axis.bar(places, [row.get("engine_tokens_per_second", 0) for row in decode], 0.3, color="tab:blue", label="engine")
    for place, row in enumerate(decode):
        axis.text(place, limit[place], f"{row['fraction']:.0%}", ha="center", va="bottom", fontsize=7)
    axis.set_xticks(places, [str(row["batch"]) for row in decode], fontsize=8)
    axis.set_xlabel("rows", fontsize=8)
    axis.set_title("decode, tokens a second", fontsize=9)
    axis.legend(fontsize=7)
