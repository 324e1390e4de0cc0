"""Table and summary of a launch plan."""

from collections.abc import Sequence

from pipeline.cluster.launch import LaunchPlan, VariantPlan
from pipeline.common.words import duration, plural

COLUMNS = ("variant", "runs", "devices", "images", "device time", "cost")


def plan_rows(variants: Sequence[VariantPlan], price: float | None) -> list[dict[str, str]]:
    """Return a row of formatted cells for each variant; the column "cost" only with a price per device hour."""
    rows = []
    for variant in variants:
        unfinished = variant.runs - variant.finished
        time = "no estimate" if variant.hours is None else duration(variant.hours * 3600)
        cost = "" if price is None or variant.hours is None else f"{price * variant.hours:,.2f}"
        work = (str(variant.devices), f"{variant.images:,}", time, cost) if unfinished else ("", "", "", "")
        row = (variant.variant, variant.progress_text, *work)
        rows.append(
            {name: cell for name, cell in zip(COLUMNS, row, strict=True) if name != "cost" or price is not None}
        )
    return rows


def plan_summary(plan: LaunchPlan) -> list[str]:
    """Return the sentences after the tables: totals, the source of the estimates, and the budget."""
    runs = sum(variant.runs for variant in plan.variants)
    finished = sum(variant.finished for variant in plan.variants)
    counts = {
        kind: sum(variant.runs for variant in plan.variants if variant.kind == kind)
        for kind in ("run", "derived run")
    }
    total = " and ".join(plural(count, kind) for kind, count in counts.items() if count)
    sentences = [
        f"{total}: {finished:,} finished, {runs - finished:,} to do{remaining_work(plan, runs > finished)}."
    ]
    if any(task.run.changes for task in plan.tasks):
        sentences.append(f"Runs changed by --set {plan.request.changes_text} count for no claim.")
    if plan.shared:
        sentences.append(f"{plan.shared:,} of them are also part of an earlier launch; each is done once.")
    sentences += estimate_sources(plan.variants)
    if plan.request.runs_per_device > 1 and runs > finished:
        sentences.append(sharing_advice(plan.request.runs_per_device))
    if plan.without_estimate and plan.hours:
        names = ", ".join(f"{variant.experiment} {variant.variant}" for variant in plan.without_estimate)
        sentences.append(f"No estimate yet: {names}.")
    sentences += [f"Skipped: {task.title} {why}." for task, why in plan.left_out]
    if plan.without_scale:
        sentences.append(f"Skipped, no scale {plan.request.scale!r}: {', '.join(plan.without_scale)}.")
    budget = plan.request.max_device_hours
    if budget is not None and runs > finished:
        sentences.append(budget_text(plan, budget))
    return sentences


def remaining_work(plan: LaunchPlan, unfinished: bool) -> str:
    """'; 9,216 images to train on, 25.6 h of device time, cost 64.00 at 2.5 per hour'; '' without work to do."""
    if not unfinished:
        return ""
    images = sum(variant.images for variant in plan.variants)
    price = plan.request.price
    if plan.without_estimate and not plan.hours:
        time, cost = "no estimate of the device time yet", ""
    else:
        at_least = "at least " if plan.without_estimate else ""
        time = f"{at_least}{duration(plan.hours * 3600)} of device time"
        cost = "" if price is None else f", cost {price * plan.hours:,.2f} at {price:g} per device hour"
    return f"; {images:,} images to train on, {time}{cost}"


def sharing_advice(runs: int) -> str:
    """Return a sentence on the memory of runs that share a device."""
    return (
        f"{runs} runs share each device; on a GPU each gets 1/{runs} of its memory. Where that is too little, use"
        " a larger fraction or --device-batch. Times measured on a shared device compare only with each other."
    )


def estimate_sources(variants: Sequence[VariantPlan]) -> list[str]:
    """Return a sentence for each group of finished runs that estimates are based on."""
    sources: dict[tuple[int, str], list[str]] = {}
    for variant in variants:
        if variant.hours is not None and variant.estimated_from[0]:
            sources.setdefault(variant.estimated_from, []).append(variant.variant)
    return [
        f"Estimated from {plural(runs, 'run')}{' each' * (len(names) > 1)} {where}: {', '.join(names)}."
        for (runs, where), names in sources.items()
    ]


def budget_text(plan: LaunchPlan, budget: float) -> str:
    """Return a sentence that compares the estimate with --max-gpu-hours."""
    option = f"--max-gpu-hours {budget:g}"
    if plan.without_estimate and not plan.hours:
        return f"{option}: no estimate yet; runs stop resumable when the budget is used up."
    share = plan.hours / budget
    if share > 1:
        return f"{option}: {100 / share:.0f} % of the estimate; runs stop resumable when the budget is used up."
    return f"{option}: the estimate uses {'at least ' if plan.without_estimate else ''}{100 * share:.0f} % of it."
