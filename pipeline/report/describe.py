"""Text of `repro show`: one experiment with its recipe, variants, scales and claims."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.common.words import plural
from pipeline.declare.claims import Claim, ExactClaim, GainClaim, OrderingClaim, RatioClaim
from pipeline.declare.experiment import Experiment
from pipeline.declare.overrides import merge_layers
from pipeline.declare.recipe import PAPER_SCALE, REDUCED_PRECISION
from pipeline.judge.counting import variants_of
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.report.derived_text import derived_text
from pipeline.report.deviations import deviation_groups
from pipeline.report.order import order_lines
from pipeline.report.recipe_text import (
    crop_text,
    override_text,
    protocols_text,
    schedule_text,
    settings_text,
    weights_texts,
)
from pipeline.report.text import claim_counts
from pipeline.track.record import FINISHED, Record

PASSES = 3  # a training step costs a forward pass, and a backward pass of twice that


@dataclass(frozen=True)
class ShownPart:
    """The part of an experiment that `repro show` prints: all of it, or one scale, or some variants.

    A named derived run is shown with the variants whose runs it is made from.
    """

    experiment: Experiment
    scale: str | None = None
    names: tuple[str, ...] = ()  # variants and derived runs; none: all of them

    def __post_init__(self) -> None:
        """Raise UserError for an unknown name."""
        declared = self.experiment
        if self.scale is not None and self.scale not in declared.scales:
            near = nearest(self.scale, declared.scales)
            raise UserError(f"{declared.name} has no scale {self.scale!r}{near}")
        for name in self.names:
            if name not in (known := [*declared.variants, *declared.derived]):
                raise UserError(f"{declared.name} has no variant {name!r}{nearest(name, known)}")

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that are shown; of a scale, those that run at it by default."""
        declared = self.experiment
        if self.names:
            return tuple(variant for variant in declared.variants if variant in self.needed)
        return declared.variants_at(self.scale) if self.scale else tuple(declared.variants)

    @property
    def derived(self) -> list[str]:
        """The derived runs that are shown; with names, the named ones and those made from named variants alone."""
        declared = self.experiment
        if not self.names:
            return declared.derived_at(self.scale) if self.scale else list(declared.derived)
        specs = {
            name: declared.derived_spec(name, self.scale) if self.scale else spec
            for name, spec in declared.derived.items()
        }
        named = set(self.names)
        return [
            name
            for name, spec in specs.items()
            if name in named or 0 < len(spec.consumes.keys() & named) == len(spec.consumes)
        ]

    @property
    def needed(self) -> tuple[str, ...]:
        """The named variants, and those that named derived runs consume, of other experiments too."""
        return tuple(dict.fromkeys(variant for name in self.names for variant in self.experiment.consumed(name)))

    def planned(self, scale: str) -> tuple[str, ...]:
        """Return those of `needed` that can run at a scale; none: all of the scale."""
        declared = self.experiment
        known = {*declared.variants, *declared.consumed_elsewhere(scale)}
        return tuple(variant for variant in self.needed if variant in known)

    @property
    def scales(self) -> list[str]:
        """The scales that are shown."""
        return [self.scale] if self.scale else list(self.experiment.scales)

    @property
    def claims(self) -> list[Claim]:
        """The claims that are shown; with names, those about these and about runs derived from them."""
        shown = {*self.names, *self.derived}
        return [claim for claim in self.experiment.claims if not self.names or shown & {*variants_of(claim)}]

    def settings(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a variant changes in `data` and `train`; of a scale, with the settings of that scale."""
        own = self.experiment.variants[name]
        if not self.scale:
            return dict(own.data), dict(own.train)
        size = self.experiment.scales[self.scale]
        reduced = precision_settings(self.experiment, self.scale)
        return merge_layers(own.data, size.data), merge_layers(own.train, reduced, size.train)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: the declaration; of a scale, the resolved recipe and the seeds of each variant."""
        declared = self.experiment
        raw = declared.model_dump(mode="json")
        raw["variants"] = {name: raw["variants"][name] for name in self.variants}
        raw["derived"] = {name: raw["derived"][name] for name in self.derived}
        raw["claims"] = [claim.model_dump(mode="json") for claim in self.claims]
        if self.scale:
            raw["scales"] = {self.scale: raw["scales"][self.scale]}
        if self.scale and declared.trains:
            raw["derived"] = {
                n: declared.derived_spec(n, self.scale).model_dump(mode="json") for n in self.derived
            }
            recipes = {name: declared.recipe(name, self.scale) for name in self.variants}
            raw["recipes"] = {name: recipe.model_dump(mode="json") for name, recipe in recipes.items()}
            raw["seeds_of"] = {name: list(declared.seeds_of(name, self.scale)) for name in self.variants}
        return raw


def print_experiment(part: ShownPart, records: Sequence[Record], out: Console, say: Callable[..., None]) -> None:
    """Print recipe, variants, scales with their work, claims, choices, departures; `say` prints folded prose."""
    experiment = part.experiment
    paper, train, data = experiment.paper, experiment.train, experiment.data

    def head(title: str) -> None:
        out.print(f"\n[bold]{title}[/]")

    out.print(f"[bold]{escape(experiment.question)}[/]", soft_wrap=True)
    arxiv = f", arXiv:{paper.arxiv}" if paper.arxiv else ""
    say(f"{paper.authors} {paper.year}, {paper.title}{arxiv}, section {paper.section}")
    if train:
        head("recipe" if experiment.scales else "recipe as published, not trained here")
        steps = f"{train.steps:,} steps of {plural(train.batch_size, 'image')}"
        say(f"{steps}, learning rate {train.lr:g}{schedule_text(train)}", indent=2)
        settings = train.optimizer.model_dump(exclude={"name"}) | {"loss": train.loss.name}
        settings |= {
            f"loss.{key}": value for key, value in train.loss.model_dump(exclude={"name"}).items() if value
        }
        settings = {key: value for key, value in settings.items() if value is not False}
        say(f"{train.optimizer.name}: {settings_text(settings)}", indent=2)
        for text in weights_texts(train):
            say(text, indent=2)
    if experiment.scales and not experiment.measures:
        jitter = [f"jitter ({settings_text(data.jitter.model_dump())})"] if data.jitter else []
        augment = ", ".join([*data.augment, *jitter]) or "none"
        say(f"data {data.name}; normalisation: {data.normalise}; augmentation: {augment}", indent=2)
    if train and data.crop:
        say(f"training images: {crop_text(data.crop)}", indent=2)
        say(protocols_text(data.test, first=" (also during training)"), indent=2)
    at = f" at {part.scale} scale" if part.scale else ""
    if part.variants:
        head(f"variants{at}")
        width = max(map(len, part.variants))
    for name in part.variants:
        variant = experiment.variants[name]
        network = f"{variant.model.name} {settings_text(variant.model.args)}".rstrip()
        own = override_text(*part.settings(name))
        own += f"{'; ' * bool(own)}{plural(len(variant.seeds), 'seed')}" if variant.seeds else ""
        say(f"{name:<{width}}  {network}" + (f"; {own}" if own else ""), indent=2)
    if part.derived:
        head("measurements" if experiment.measures else "derived runs, made from finished runs")
        width = max(map(len, part.derived))
    for name in part.derived:
        spec = experiment.derived_spec(name, part.scale) if part.scale else experiment.derived[name]
        say(f"{name:<{width}}  {derived_text(spec)}", indent=2)
    if part.scales:
        head("scale" if part.scale else "scales")
    for name in part.scales:
        scale = experiment.scales[name]
        say(f"{name}: {scale.why}", indent=2)
        changes = override_text(scale.data, precision_settings(experiment, name) | scale.train)
        if changes and not part.scale:  # those of a scale are in the lines of its variants
            say(f"changes: {changes}", indent=6)
        say(work_text(experiment, name, records, part.planned(name)), indent=6)
        for text in execution_texts(experiment, name, records):
            say(text, indent=6)
    ordered = part.scale or PAPER_SCALE
    runs: list[Run | DerivedRun] = []
    if experiment.scales:
        runs = plan_runs(experiment, scale=ordered, variants=part.planned(ordered), seeds=1)
    if lines := order_lines(runs):
        head("order of runs")
        for line in lines:
            out.print(f"  {escape(line)}")
    head(f"claims ({claim_counts(part.claims)})")
    for claim in part.claims:
        where = f"lecture; {claim.source}" if claim.by == "lecture" else claim.source
        say(f"{claim.id}: {claim.says} ({claim_formula(claim)}{where})", indent=2)
    shown = [*part.variants, *part.derived] if part.names else []
    for title, groups in deviation_groups(experiment, shown).items():
        head(title)
        for effect, texts in groups:
            say(effect, indent=2)
            for text in texts:
                say(f"- {text}", indent=4)


def claim_formula(claim: Claim) -> str:
    """Return what a claim compares, before its source: "claimed 270000; ", "plain-56 > plain-20; ".

    "" for a number that its sentence contains.
    """
    if isinstance(claim, OrderingClaim):
        if claim.rhs_metric and claim.lhs == claim.rhs:
            return f"{claim.metric} {claim.op} {claim.rhs_metric}; "
        return f"{claim.lhs} {claim.op} {claim.rhs}; "
    if isinstance(claim, GainClaim):
        return f"{claim.rhs} - {claim.lhs} = {claim.claimed:g} ± {claim.margin:g}; "
    if isinstance(claim, RatioClaim):
        margin = f" ± {claim.margin:g}" if claim.op == "=" else ""
        return f"{claim.lhs} / {claim.rhs} {claim.op} {claim.claimed:g}{margin}; "
    number = getattr(claim, "claimed", None)
    op = f"{claim.op} " if isinstance(claim, ExactClaim) and claim.op != "=" else ""
    texts = [str(number), f"{number:,}"] if isinstance(number, int | float) else [str(number)]
    says_it = not op and any(text in claim.says.split() for text in texts)
    return "" if number is None or says_it else f"claimed {op}{number}; "


def precision_settings(experiment: Experiment, scale: str) -> dict[str, Any]:
    """Return the settings of reduced precision, bf16 and channels-last, if all runs of a scale have them."""
    if not experiment.train:
        return {}
    recipes = [experiment.recipe(variant, scale).train for variant in experiment.variants_at(scale)]
    return {
        key: value
        for key, value in REDUCED_PRECISION.items()
        if recipes and getattr(experiment.train, key) != value and all(getattr(t, key) == value for t in recipes)
    }


def execution_texts(experiment: Experiment, scale: str, records: Sequence[Record]) -> list[str]:
    """Return a line for each variant and machine whose execution settings were chosen by timing."""
    found: dict[tuple[str, str], str] = {}
    for row in records:
        if (row.experiment, row.scale) == (experiment.name, scale) and row.step_seconds:
            times = sorted(row.step_seconds.items(), key=lambda item: item[1])
            texts = [f"{float(f'{1000 * seconds:.3g}'):,g} ms ({text})" for text, seconds in times]
            found[row.variant, row.hardware] = (
                f"{row.variant} on {row.hardware} was computed in {row.execution}; time of an optimizer step:"
                f" {', '.join(texts)}"
            )
    return list(found.values())


def work_text(experiment: Experiment, scale: str, records: Sequence[Record], chosen: Sequence[str] = ()) -> str:
    """Return the runs, optimizer steps and multiply-adds of a scale, and the duration of tracked runs.

    `chosen`: only these variants, by default those of the scale.
    """
    planned = plan_runs(experiment, scale=scale, variants=chosen)
    if experiment.measures:
        return f"{plural(len(planned), 'measurement')}, no training"
    every = [run for run in planned if isinstance(run, Run)]
    runs = [run for run in every if run.experiment == experiment.name]
    own = [variant for variant in chosen if variant in experiment.variants]
    variants, seeds = own or experiment.variants_at(scale), len(experiment.seeds_at(scale))
    steps = sum(run.recipe.train.steps for run in runs)
    differ = any(len(experiment.seeds_of(variant, scale)) != seeds for variant in variants)
    per_variant = "declared seeds" if differ else plural(seeds, "seed")
    text = (
        f"{plural(len(runs), 'run')} ({plural(len(variants), 'variant')} x {per_variant}), {plural(steps, 'step')}"
        if runs
        else "no training of its own"
    )
    if len(every) > len(runs):
        names = sorted({run.experiment for run in every} - {experiment.name})
        text += f", {plural(len(every) - len(runs), 'run')} of {', '.join(names)}"
    derived = sum(isinstance(run, DerivedRun) for run in planned)
    text += f", {plural(derived, 'derived run')}" if derived else ""
    operations = [training_multiply_adds(run) for run in runs]
    known = [value for value in operations if value is not None]
    if runs and len(known) == len(runs):
        text += f", {sum(known):.2g} multiply-adds"
    finished = {record.declaration: record for record in records if record.status == FINISHED}
    measured = [finished[run.declaration] for run in runs if run.declaration in finished]
    if measured:
        seconds = median(record.seconds for record in measured)
        count = plural(len(measured), "run")
        text += f"; measured: {seconds:,.0f} s per run (median of {count} on {measured[0].hardware})"
    return text


def training_multiply_adds(run: Run) -> float | None:
    """Return the multiply-adds of a training, forward and backward; None if the image size is not known."""
    from pipeline.analyse.measure import DATA_SHAPES, IMAGENET_SHAPE, measure_network

    train = run.recipe.train
    if run.recipe.data.name not in (*DATA_SHAPES, IMAGENET_SHAPE):
        return None
    try:
        multiply_adds: int = measure_network(run.recipe, "multiply_adds")
        return float(PASSES * multiply_adds * train.batch_size * train.steps)
    except UserError as error:
        raise UserError(f"{run.experiment}.yaml: variants.{run.variant}.model: {error}") from None
