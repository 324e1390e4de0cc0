"""`repro show`: one experiment on a page of text."""

from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape

from pipeline.experiment import Experiment, OrderingClaim, RatioClaim
from pipeline.plan import Run, plan
from pipeline.record import FINISHED, Record

PASSES = 3  # forward, and backward at twice its cost


def describe(experiment: Experiment, records: Sequence[Record], out: Console) -> None:
    """Print recipe, variants, scales with their work, claims and departures."""
    paper = experiment.paper
    arxiv = f", arXiv:{paper.arxiv}" if paper.arxiv else ""
    out.print(f"[bold]{experiment.question}[/]")
    out.print(f"{paper.authors} {paper.year}, {paper.title}{arxiv}, section {paper.section}\n")
    train, data = experiment.train, experiment.data
    drops = f", times {train.lr_drops.factor} at {list(train.lr_drops.at)}" if train.lr_drops else ""
    augment = ", ".join(data.augment) or "none"
    out.print(f"[bold]recipe[/]   {train.steps:,} updates of {train.batch_size} images, rate {train.lr:g}{drops}")
    settings = ", ".join(f"{key} {value}" for key, value in train.optimizer.model_dump().items() if key != "name")
    out.print(f"         {train.optimizer.name} ({settings}), loss {train.loss.name}")
    out.print(f"[bold]data[/]     {data.name}, {data.normalise}, augmentation: {augment}\n")
    out.print("[bold]variants[/]")
    for name, variant in experiment.variants.items():
        args = ", ".join(f"{key} {value}" for key, value in variant.model.args.items())
        own = {**variant.data, **variant.train}
        out.print(f"  {name:<20} {variant.model.name} {args} {escape(str(own)) if own else ''}")
    out.print("\n[bold]scales[/]")
    for name, scale in experiment.scales.items():
        out.print(f"  {name:<12} {scale.why}")
        out.print(f"  {'':<12} {work(experiment, name, records)}")
    out.print(f"\n[bold]claims[/] ({len(experiment.claims)})")
    for claim in experiment.claims:
        where = f"lecture; {claim.source}" if claim.by == "lecture" else claim.source
        number = getattr(claim, "claimed", None)
        said = f" [dim](claimed: {escape(str(number))})[/]" if number is not None else ""
        if isinstance(claim, OrderingClaim | RatioClaim):
            said = f" [dim]({claim.lhs} {getattr(claim, 'op', '/')} {claim.rhs})[/]"
        out.print(f"  {claim.id:<34} {escape(claim.says)}{said} [dim]{escape(where)}[/]")
    if experiment.departures:
        out.print("\n[bold]departures from the paper[/]")
        for departure in experiment.departures:
            out.print(f"  {departure.what} {departure.why}")


def work(experiment: Experiment, scale: str, records: Sequence[Record]) -> str:
    """Runs, updates and multiply-adds of a scale; hours where tracked runs have shown them."""
    runs = plan(experiment, scale=scale)
    variants, seeds = len(experiment.variants_at(scale)), len(experiment.seeds_at(scale))
    updates = sum(run.recipe.train.steps for run in runs)
    text = f"{len(runs)} runs ({variants} variants x {seeds} seeds), {updates:,} updates"
    operations = [multiply_adds(run) for run in runs]
    known = [value for value in operations if value is not None]
    if len(known) == len(runs):
        text += f", {sum(known):.2g} multiply-adds"
    measured = {record.declaration: record for record in records if record.status == FINISHED}
    same = [measured[run.declaration] for run in runs if run.declaration in measured]
    if same:
        typical = median(record.seconds for record in same)
        text += f"; measured: {typical:,.0f} s a run in the median of {len(same)} on {same[0].hardware}"
    return text


def multiply_adds(run: Run) -> float | None:
    """Multiply-adds of a whole training, forward and backward; None where the image size is not known."""
    from pipeline.analyse import SHAPES, analysis

    if run.recipe.data.name not in SHAPES:
        return None
    train = run.recipe.train
    return float(PASSES * analysis(run.recipe).multiply_adds * train.batch_size * train.steps)
