"""What was found, as text for a terminal. No figure without the number of rows behind it."""

from collections.abc import Sequence

from models.calibration import Fit
from verification.client import Reply
from verification.fit import FieldFit, LabelFit, Plan
from verification.measures import BINS
from verification.replay import Verdict
from verification.run import Run

LABELS_SHOWN = 8


def tell_labels(found: LabelFit, plan: Plan) -> str:
    """One label calibration."""
    calibration = found.calibration
    best, *others = found.candidates
    told = ", ".join(f"{other.name} {other.nll:.4f}" for other in others)
    lines = [
        f"labels: {len(calibration.labels)} ({_name(calibration.labels)}), prior: {calibration.prior}",
        f"chosen: {best.name}, {best.nll:.4f} nats a row when left out in turn"
        + (f"; others: {told}" if told else f"; no bias tried, as not every label has {plan.floor} rows to fit"),
        f"temperature {calibration.temperature:.4g}"
        + (f", bias {min(calibration.bias):+.3f} to {max(calibration.bias):+.3f}" if best.ridge is not None else "")
        + f", noise {calibration.noise:.4f}",
        *_tell_fit(calibration.fit, found.honest_ece, "rows"),
        _tell_threshold(found, plan),
    ]
    return "\n".join(lines)


def _tell_threshold(found: LabelFit, plan: Plan) -> str:
    if not found.reached:
        return f"abstain_below: none; no probability from which on {plan.target:g} of the answers are right was found"
    kept = "none of it" if found.kept is None else f"{found.kept:.3f} of that is right"
    return (
        f"abstain_below: {found.calibration.abstain_below:.4f}, for {plan.target:g} of the answers to be right; "
        f"of the rest {found.answered:.3f} is answered, {kept}"
    )


def tell_fields(found: FieldFit) -> str:
    """One field calibration."""
    calibration = found.calibration
    lines = [
        f"values of schema {calibration.schema[:12]}: slope {calibration.slope:.4g}, offset {calibration.offset:+.4g}",
        *_tell_fit(calibration.fit, found.honest_ece, "values"),
    ]
    return "\n".join(lines)


def _tell_fit(fit: Fit, honest: float, what: str) -> list[str]:
    table = [
        f"  {name:<10} {item.accuracy:8.4f} {item.ece:8.4f} {item.brier:8.4f} {item.nll:8.4f}"
        for name, item in (("as scored", fit.before), ("calibrated", fit.after))
    ]
    return [
        f"fitted on {fit.fitted} {what}; measured on {fit.measured} others:",
        f"  {'':<10} {'accuracy':>8} {'ECE':>8} {'Brier':>8} {'NLL':>8}",
        *table,
        f"  ECE over {BINS} equally wide bins; perfect honesty would show {honest:.4f} on as many {what}, by chance",
    ]


def tell_run(found: Run, rows: int, concurrency: int) -> str:
    """All figures of a run."""
    lines = [f"{rows} rows, {concurrency} at once; times in seconds from first sending to the answer"]
    for name, figure in found.figures.items():
        lines.append(f"  {name:<18} " + ("-" if figure is None else f"{figure:.4g}"))
    lines += [f"  {pointer:<18} {share:.4f}" for pointer, share in sorted(found.fields.items())]
    lines += [f"  error {name}: {count}" for name, count in found.errors.items()]
    return "\n".join(lines)


def tell_replay(verdicts: Sequence[Verdict]) -> str:
    """Every line that is not proven, and how many are."""
    proven = sum(verdict.proven for verdict in verdicts)
    lines = [str(verdict) for verdict in verdicts if not verdict.proven]
    near = [verdict.distance for verdict in verdicts if verdict.proven and verdict.distance]
    but = f", {len(near)} of them but for probabilities that differ by up to {max(near):.2g}" if near else ""
    return "\n".join([*lines, f"{proven} of {len(verdicts)} proven{but}"])


def tell_unanswered(replies: Sequence[Reply]) -> str:
    """How many rows were left out of a fit, by type."""
    errors = [reply.error for reply in replies if reply.error]
    kinds = ", ".join(f"{errors.count(name)} {name}" for name in dict.fromkeys(errors))
    return f"{len(errors)} of {len(replies)} rows were not answered and are left out: {kinds}" if errors else ""


def _name(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:LABELS_SHOWN])
    return shown + (", …" if len(labels) > LABELS_SHOWN else "")
