"""`repro show`: one experiment on a page of text."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape

from lightning_modules.recipe import factors
from pipeline.experiment import Drops, ExactClaim, Experiment, OrderingClaim, RatioClaim
from pipeline.plan import Run, plan
from pipeline.record import FINISHED, Record

PASSES = 3  # forward, and backward at twice its cost


def describe(experiment: Experiment, records: Sequence[Record], out: Console, say: Callable[..., None]) -> None:
    """Print recipe, variants, scales with their work, claims and departures; `say` prints prose, folded."""
    paper, train, data = experiment.paper, experiment.train, experiment.data

    def head(title: str) -> None:
        out.print(f"\n[bold]{title}[/]")

    out.print(f"[bold]{escape(experiment.question)}[/]", soft_wrap=True)
    arxiv = f", arXiv:{paper.arxiv}" if paper.arxiv else ""
    say(f"{paper.authors} {paper.year}, {paper.title}{arxiv}, section {paper.section}")
    if train:
        head("recipe" if experiment.scales else "recipe as published, not trained here")
        drops = f"; {drop_words(train.lr_drops)}" if train.lr_drops else ""
        drops += "" if train.lr_end is None else f", falling in a line to {train.lr_end:g}"
        updates = f"{train.steps:,} updates of {counted(train.batch_size, 'image')}"
        say(f"{updates}, learning rate {train.lr:g}{drops}", indent=2)
        settings = train.optimizer.model_dump(exclude={"name"}) | {"loss": train.loss.name}
        settings = {key: value for key, value in settings.items() if value is not False}
        say(f"{train.optimizer.name}: {words(settings)}", indent=2)
    if experiment.scales:
        said = f"data {data.name}, normalised {data.normalise}, augmented: {', '.join(data.augment) or 'no'}"
        say(said, indent=2)
    head("variants")
    width = max(map(len, experiment.variants))
    for name, variant in experiment.variants.items():
        own = words(dict(variant.model.args)) + words({**variant.data, **variant.train}, start="; ")
        say(f"{name:<{width}}  {variant.model.name} {own}".rstrip(), indent=2)
    if experiment.scales:
        head("scales")
    for name, scale in experiment.scales.items():
        say(f"{name}: {scale.why}", indent=2)
        say(work(experiment, name, records), indent=6)
    head(f"claims ({len(experiment.claims)})")
    for claim in experiment.claims:
        where = f"lecture; {claim.source}" if claim.by == "lecture" else claim.source
        number = getattr(claim, "claimed", None)
        said = "" if number is None else f"claimed {number}; "
        if isinstance(claim, ExactClaim) and claim.op != "=":
            said = f"claimed {claim.op} {number}; "
        if isinstance(claim, OrderingClaim | RatioClaim):
            said = f"{claim.lhs} {getattr(claim, 'op', '/')} {claim.rhs}; "
        say(f"{claim.id}: {claim.says} ({said}{where})", indent=2)
    if experiment.departures:
        head("departures from the paper")
        for departure in experiment.departures:
            say(f"{departure.what} {departure.why}", indent=2)


def words(settings: Mapping[str, Any], *, start: str = "") -> str:
    """{"depth": 20, "warmup": {"lr": 0.01}} -> "depth 20, warmup.lr 0.01", `start` before it if there is any."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts += [f"{key}.{part}" for part in words(value).split(", ")]
        elif isinstance(value, list | tuple):
            parts.append(f"{key} {'/'.join(map(str, value))}")
        else:
            parts.append(f"{key} {value}")
    return start + ", ".join(parts) if parts else ""


def drop_words(drops: Drops) -> str:
    """ "times 0.1 from update 32,000 and 48,000"."""
    if drops.at is None:
        return f"times {drops.factor:g} every {drops.every:,} updates"
    return ", ".join(
        f"times {f:g} from update {at:,}" for at, f in zip(drops.at, factors(drops.model_dump()), strict=True)
    )


def counted(number: int, noun: str) -> str:
    """ "1 run", "20 runs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def work(experiment: Experiment, scale: str, records: Sequence[Record]) -> str:
    """Runs, updates and multiply-adds of a scale; hours where tracked runs have shown them."""
    runs = plan(experiment, scale=scale)
    variants, seeds = len(experiment.variants_at(scale)), len(experiment.seeds_at(scale))
    updates = sum(run.recipe.train.steps for run in runs)
    text = f"{counted(len(runs), 'run')} ({counted(variants, 'variant')} x {counted(seeds, 'seed')}), "
    text += counted(updates, "update")
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

    train = run.recipe.train
    if run.recipe.data.name not in SHAPES:
        return None
    return float(PASSES * analysis(run.recipe).multiply_adds * train.batch_size * train.steps)
