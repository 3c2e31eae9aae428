"""What a run has found, in words. Knows nothing of how it was found."""

from collections import Counter

from benchmarks.schemas.run import Found

SHOWN = 20  # of a list


def show(name: str, found: Found) -> str:
    """Markdown."""
    served, refused = found.served.total(), sum(each.total() for each in found.refused.values())
    seconds = sorted(found.seconds)
    lines = [
        f"## {name}",
        f"served {served} of {served + refused} schemas, {served / max(served + refused, 1):.1%};"
        f" first mask p50 {_at(seconds, 0.5):.1f} ms, p99 {_at(seconds, 0.99):.1f} ms, most {_at(seconds, 1):.1f} ms",
        "",
        "| group | served | refused | by keyword |",
        "| --- | --- | --- | --- |",
    ]
    for group in sorted(found.served.keys() | found.refused.keys()):
        why = found.refused.get(group, Counter())
        told = ", ".join(f"`{keyword}` {count}" for keyword, count in why.most_common(6))
        lines.append(f"| {group} | {found.served[group]} | {why.total()} | {told} |")
    lines += ["", f"refusals that name no keyword: {len(found.unnamed)}", *found.unnamed[:SHOWN], ""]
    lines += ["| instances | |", "| --- | --- |"]
    lines += [f"| {outcome} | {count} |" for outcome, count in found.instances.most_common()]
    lines += ["", "| budget | answers |", "| --- | --- |"]
    for budget, outcomes in found.answers.items():
        lines.append(f"| {budget} | {', '.join(f'{outcome} {count}' for outcome, count in outcomes.most_common())} |")
    lines += ["", f"answers that came to nothing, budgets apart: {len(found.failed)}"]
    lines += [f"{case} at {budget}: {outcome}" for case, budget, outcome in found.failed[:SHOWN]]
    lines += ["", f"successes by jsonschema: {dict(found.judged)}; that do not fit: {len(found.unfit)}"]
    lines += [f"{case} at {budget}: {text[:300]}" for case, budget, text in found.unfit[:SHOWN]]
    return "\n".join(lines)


def _at(seconds: list[float], share: float) -> float:
    return 1000 * seconds[min(int(len(seconds) * share), len(seconds) - 1)] if seconds else 0.0
