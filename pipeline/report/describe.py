"""`repro show`: one experiment on a page of text."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape

from lightning_modules.recipe import factors
from pipeline.common.errors import UserError
from pipeline.common.words import plural
from pipeline.declare.claims import ExactClaim, OrderingClaim, RatioClaim
from pipeline.declare.derived import CompressionSpec, DerivedSpec, EnsembleSpec, ProtocolSpec
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import REDUCED_PRECISION, Crop, LrDrops
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.track.record import FINISHED, Record

PASSES = 3  # forward, and backward at twice its cost


def print_experiment(
    experiment: Experiment, records: Sequence[Record], out: Console, say: Callable[..., None]
) -> None:
    """Print recipe, variants, scales with their work, claims and departures; `say` prints prose, folded."""
    paper, train, data = experiment.paper, experiment.train, experiment.data

    def head(title: str) -> None:
        out.print(f"\n[bold]{title}[/]")

    out.print(f"[bold]{escape(experiment.question)}[/]", soft_wrap=True)
    arxiv = f", arXiv:{paper.arxiv}" if paper.arxiv else ""
    say(f"{paper.authors} {paper.year}, {paper.title}{arxiv}, section {paper.section}")
    if train:
        head("recipe" if experiment.scales else "recipe as published, not trained here")
        drops = f"; {lr_drops_text(train.lr_drops)}" if train.lr_drops else ""
        drops += "" if train.lr_end is None else f", falling in a line to {train.lr_end:g}"
        updates = f"{train.steps:,} updates of {plural(train.batch_size, 'image')}"
        say(f"{updates}, learning rate {train.lr:g}{drops}", indent=2)
        settings = train.optimizer.model_dump(exclude={"name"}) | {"loss": train.loss.name}
        settings = {key: value for key, value in settings.items() if value is not False}
        say(f"{train.optimizer.name}: {settings_text(settings)}", indent=2)
    if experiment.scales:
        said = f"data {data.name}, normalised {data.normalise}, augmented: {', '.join(data.augment) or 'no'}"
        say(said, indent=2)
    if train and data.crop:
        say(f"learns from {crop_text(data.crop)}", indent=2)
        say(protocols_text(data.test, first=" (also while training)"), indent=2)
    head("variants")
    width = max(map(len, experiment.variants))
    for name, variant in experiment.variants.items():
        network = f"{variant.model.name} {settings_text(variant.model.args)}".rstrip()
        own = override_text(variant.data, variant.train)
        own += f"{'; ' * bool(own)}{plural(len(variant.seeds), 'seed')}" if variant.seeds else ""
        say(f"{name:<{width}}  {network}" + (f"; {own}" if own else ""), indent=2)
    if experiment.derived:
        head("steps, when their runs have ended")
        width = max(map(len, experiment.derived))
    for name, step in experiment.derived.items():
        say(f"{name:<{width}}  {derived_text(step)}", indent=2)
    if experiment.scales:
        head("scales")
    for name, scale in experiment.scales.items():
        say(f"{name}: {scale.why}", indent=2)
        differs = override_text(scale.data, precision_text(experiment, name) | scale.train)
        if differs:
            say(f"otherwise: {differs}", indent=6)
        say(work_text(experiment, name, records), indent=6)
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


def settings_text(settings: Mapping[str, Any], *, start: str = "") -> str:
    """{"depth": 20, "warmup": {"lr": 0.01}} -> "depth 20, warmup.lr 0.01", `start` before it if there is any."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts += [f"{key}.{part}" for part in settings_text(value).split(", ")]
        elif isinstance(value, list | tuple):
            parts.append(f"{key} {'/'.join(map(str, value)) or 'none'}")
        else:
            parts.append(f"{key} {value}")
    return start + ", ".join(parts) if parts else ""


def override_text(data: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    """What a variant or a scale sets anew: "data noise, tested by dense-of-256; 60 updates of 32 images, lr 0.1".

    How often it is evaluated and logged is left out: that does not change what is learned.
    """
    data = dict(data)
    train = {key: value for key, value in train.items() if key not in ("eval_every", "log_every")}
    of_data, of_train = [], []
    if "name" in data:
        of_data.append(f"data {data.pop('name')}")
    if "crop" in data:
        crop = data.pop("crop")
        of_data.append("whole images" if crop is None else crop_override_text(crop))
    test = data.pop("test", None)
    of_data += [settings_text(data), protocols_text(test) if test else ""]
    steps, size = train.pop("steps", None), train.pop("batch_size", None)
    if steps:
        of_train.append(plural(steps, "update") + (f" of {plural(size, 'image')}" if size else ""))
    elif size:
        of_train.append(f"batches of {plural(size, 'image')}")
    of_train.append(settings_text(train))
    return "; ".join(filter(None, (", ".join(filter(None, part)) for part in (of_data, of_train))))


def crop_override_text(crop: Mapping[str, Any]) -> str:
    """What is set anew of a crop: "crops of 64 x 64, short side 72 to 96"."""
    rest, parts = dict(crop), []
    if "side" in rest:
        parts.append("crops of {0} x {0}".format(rest.pop("side")))
    if rest.get("short"):
        parts.append(f"short side {range_text(rest.pop('short'))}")
    return ", ".join(filter(None, (*parts, settings_text({f"crop.{key}": value for key, value in rest.items()}))))


def derived_text(step: DerivedSpec) -> str:
    """ "5 zfnet + zfnet-wide averaged", "vgg-16 by dense-of-256", "resnet-20 with a third of its weights, ..."."""
    if isinstance(step, EnsembleSpec):
        of = " + ".join(name if count == 1 else f"{count} {name}" for name, count in step.members.items())
        return f"{of} averaged" + (f", {protocols_text(step.test)}" if step.test else "")
    if isinstance(step, ProtocolSpec):
        return f"{step.of} {protocols_text(step.test)}"
    if isinstance(step, CompressionSpec):
        bits = f"{step.conv_bits} bits in convolutions and {step.fc_bits} in full connections"
        return f"{step.of} compressed: {100 * step.density:g} % of the weights, {bits}"
    view = f", seen by {step.view}" if step.view else ""
    return f"features of {step.of} for {step.data}{view}, soft-max with C {step.c:g}"


def crop_text(crop: Crop) -> str:
    """ "a random 224 x 224 of the picture resized to a short side of 256 to 480"."""
    square = f"{crop.side} x {crop.side}"
    cubic = ", by cubic interpolation" if crop.interpolation == "bicubic" else ""
    if crop.area and crop.aspect:
        share = range_text([f"{100 * end:g}" for end in crop.area])
        aspect = range_text([f"{end:.3g}" for end in crop.aspect])
        return (
            f"a random part with {share} % of the picture's area, {aspect} times as wide as high, resized to"
            f" {square}{cubic}"
        )
    where = "a random" if crop.at == "random" else "the middle or a corner's"
    centre = f"the central {crop.centre} x {crop.centre} of " if crop.centre else ""
    return f"{where} {square} of {centre}the picture resized to a short side of {range_text(crop.short)}{cubic}"


def protocols_text(protocols: Sequence[str], *, first: str = "") -> str:
    """ "tested by 10-crop-224-of-256, dense-of-256", `first` after the first."""
    return f"tested by {', '.join([protocols[0] + first, *protocols[1:]])}"


def range_text(value: Any) -> str:
    """ "256"; of a pair "256 to 480"."""
    return " to ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def precision_text(experiment: Experiment, scale: str) -> dict[str, Any]:
    """What a scale for fast runs brings without declaring it: bf16 and channels-last."""
    recipes = [experiment.recipe(variant, scale).train for variant in experiment.variants_at(scale)]
    return {
        key: value
        for key, value in REDUCED_PRECISION.items()
        if getattr(experiment.train, key) != value and all(getattr(train, key) == value for train in recipes)
    }


def lr_drops_text(drops: LrDrops) -> str:
    """ "times 0.1 from update 32,000 and 48,000"."""
    if drops.at is None:
        return f"times {drops.factor:g} every {drops.every:,} updates"
    return ", ".join(
        f"times {f:g} from update {at:,}" for at, f in zip(drops.at, factors(drops.model_dump()), strict=True)
    )


def work_text(experiment: Experiment, scale: str, records: Sequence[Record]) -> str:
    """Runs, updates and multiply-adds of a scale; hours where tracked runs have shown them."""
    every = plan_runs(experiment, scale=scale)
    runs = [run for run in every if isinstance(run, Run)]
    variants, seeds = experiment.variants_at(scale), len(experiment.seeds_at(scale))
    updates = sum(run.recipe.train.steps for run in runs)
    more = any(len(experiment.seeds_of(variant, scale)) != seeds for variant in variants)
    each = "seeds as declared" if more else plural(seeds, "seed")
    text = f"{plural(len(runs), 'run')} ({plural(len(variants), 'variant')} x {each}), {plural(updates, 'update')}"
    steps = sum(isinstance(run, DerivedRun) for run in every)
    text += f", {plural(steps, 'step')}" if steps else ""
    operations = [training_multiply_adds(run) for run in runs]
    known = [value for value in operations if value is not None]
    if len(known) == len(runs):
        text += f", {sum(known):.2g} multiply-adds"
    measured = {record.declaration: record for record in records if record.status == FINISHED}
    same = [measured[run.declaration] for run in runs if run.declaration in measured]
    if same:
        typical = median(record.seconds for record in same)
        text += f"; measured: {typical:,.0f} s a run in the median of {len(same)} on {same[0].hardware}"
    return text


def training_multiply_adds(run: Run) -> float | None:
    """Multiply-adds of a whole training, forward and backward; None where the image size is not known."""
    from pipeline.analyse.measure import analysis_of
    from pipeline.analyse.measure import DATA_SHAPES

    train = run.recipe.train
    if run.recipe.data.name not in DATA_SHAPES:
        return None
    try:
        return float(PASSES * analysis_of(run.recipe).multiply_adds * train.batch_size * train.steps)
    except UserError as error:
        raise UserError(f"{run.experiment}.yaml: variants.{run.variant}.model: {error}") from None
