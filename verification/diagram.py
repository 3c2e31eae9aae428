"""A reliability diagram: how often what was said with some probability was right. Matplotlib is imported here alone."""

from pathlib import Path

from verification import measures
from verification.fit import Curve


def draw(before: Curve, after: Curve, title: str, path: Path) -> None:
    """Both curves over the diagonal, and below them how many rows each bin holds. Rows that were not fitted on."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="gray", linewidth=0.8, linestyle="--")
    for name, curve, color in (("as scored", before, "tab:gray"), ("calibrated", after, "tab:blue")):
        bins = measures.bin_up(curve.chances, curve.right)
        error = measures.ece(curve.chances, curve.right)
        places = [item.confidence for item in bins]
        upper.plot(places, [item.right for item in bins], "o-", color=color, label=f"{name}, ECE {error:.3f}")
        lower.vlines(places, 0, [item.count for item in bins], color=color, linewidth=4)
    upper.set(ylabel="share that was right", ylim=(0, 1.03))
    upper.set_title(title, fontsize=9)
    upper.legend(loc="upper left")
    lower.set(xlabel="probability", ylabel="rows", xlim=(0, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
