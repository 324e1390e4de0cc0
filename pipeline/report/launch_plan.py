"""Tables and sentences that show a launch before it starts."""

from collections.abc import Sequence

from pipeline.cluster.launch import LaunchPlan, VariantPlan
from pipeline.common.words import duration, plural

COLUMNS = ("variant", "runs", "devices", "images", "device time", "cost")


def plan_rows(groups: Sequence[VariantPlan], price: float | None) -> list[dict[str, str]]:
    """A row for each variant, ready to show."""
    rows = []
    for group in groups:
        left = group.runs - group.finished
        time = "not measured" if group.hours is None else duration(group.hours * 3600)
        cost = "" if price is None or group.hours is None else f"{price * group.hours:,.2f}"
        row = (group.variant, group.words, f"{group.devices}", f"{group.images:,}", time, cost)
        row = row if left else (group.variant, group.words, "", "", "", "")
        rows.append(
            {head: cell for head, cell in zip(COLUMNS, row, strict=True) if head != "cost" or price is not None}
        )
    return rows


def plan_summary(made: LaunchPlan) -> list[str]:
    """Sentences after the tables: the totals, what they rest on, and the budget."""
    runs, finished = sum(g.runs for g in made.groups), sum(g.finished for g in made.groups)
    kinds = {kind: sum(g.runs for g in made.groups if g.kind == kind) for kind in ("run", "step")}
    all_of_it = " and ".join(plural(number, kind) for kind, number in kinds.items() if number)
    said = [f"{all_of_it}, {finished:,} finished, {runs - finished:,} to do"]
    if runs > finished:
        images = sum(group.images for group in made.groups)
        time = (
            f"{'at least ' if made.unmeasured and made.hours else ''}{duration(made.hours * 3600)} of device time"
        )
        unknown = bool(made.unmeasured) and not made.hours
        time = "how long is not measured yet" if unknown else time
        cost = ""
        if made.asked.price is not None:
            cost = f", which at {made.asked.price:g} an hour cost {made.asked.price * made.hours:,.2f}"
            cost = ", and what it costs follows from that" if unknown else cost
        said[0] += f": {images:,} images to train on, {time}{cost}"
    said[0] += "."
    if made.shared:
        said.append(f"{made.shared:,} of them are asked for by an earlier launch too; each is done once.")
    said += estimate_sources(made.groups)
    if made.unmeasured and made.hours:
        said.append(f"Not measured yet: {', '.join(f'{g.experiment} {g.variant}' for g in made.unmeasured)}.")
    said += [f"Left out: {task.title}, as it {why}." for task, why in made.left_out]
    if made.lacking:
        said.append(f"Left out, since they have no scale {made.asked.scale!r}: {', '.join(made.lacking)}.")
    budget = made.asked.max_device_hours
    if budget is not None and runs > finished:
        said.append(budget_text(made, budget))
    return said


def estimate_sources(groups: Sequence[VariantPlan]) -> list[str]:
    """On which runs the estimates rest, a sentence for each kind of them."""
    kinds: dict[tuple[int, str], list[str]] = {}
    for group in groups:
        if group.hours is not None and group.shown_by[0]:
            kinds.setdefault(group.shown_by, []).append(group.variant)
    return [
        f"Estimated from {plural(runs, 'run')}{' each' * (len(variants) > 1)} {where}: {', '.join(variants)}."
        for (runs, where), variants in kinds.items()
    ]


def budget_text(made: LaunchPlan, budget: float) -> str:
    """The estimate against --max-gpu-hours."""
    said = f"--max-gpu-hours {budget:g}: "
    if made.unmeasured and not made.hours:
        return f"{said}nobody knows yet whether that is enough; at its end runs stop, resumable."
    share = made.hours / budget
    if share > 1:
        return f"{said}enough for {100 / share:.0f} % of it by this estimate; at its end runs stop, resumable."
    return (
        f"{said}{'at least ' if made.unmeasured else ''}{100 * share:.0f} % of it will be used by this estimate."
    )
