"""Text of `repro show`: one experiment with its recipe, variants, scales and claims."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape

from lightning_modules.recipe import factors
from pipeline.common.errors import UserError
from pipeline.common.words import plural
from pipeline.declare.claims import Claim, ExactClaim, GainClaim, OrderingClaim, RatioClaim
from pipeline.declare.derived import (
    ColumnSpec,
    CompressionSpec,
    DerivedSpec,
    EnsembleSizesSpec,
    EnsembleSpec,
    ProtocolSpec,
    Retraining,
    TimingSpec,
)
from pipeline.declare.experiment import Experiment
from pipeline.declare.localisation import LocalisationSpec
from pipeline.declare.recipe import PAPER_SCALE, REDUCED_PRECISION, Crop, LrDrops, Train
from pipeline.declare.transfer import TransferSpec
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.report.deviations import deviation_groups
from pipeline.report.order import order_lines
from pipeline.report.text import claim_counts
from pipeline.track.record import FINISHED, Record

PASSES = 3  # a training step costs a forward pass, and a backward pass of twice that


def print_experiment(
    experiment: Experiment, records: Sequence[Record], out: Console, say: Callable[..., None]
) -> None:
    """Print recipe, variants, scales with their work, claims, choices, departures; `say` prints folded prose."""
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
    if experiment.variants:
        head("variants")
        width = max(map(len, experiment.variants))
    for name, variant in experiment.variants.items():
        network = f"{variant.model.name} {settings_text(variant.model.args)}".rstrip()
        own = override_text(variant.data, variant.train)
        own += f"{'; ' * bool(own)}{plural(len(variant.seeds), 'seed')}" if variant.seeds else ""
        say(f"{name:<{width}}  {network}" + (f"; {own}" if own else ""), indent=2)
    if experiment.derived:
        head("measurements" if experiment.measures else "derived runs, made from finished runs")
        width = max(map(len, experiment.derived))
    for name, spec in experiment.derived.items():
        say(f"{name:<{width}}  {derived_text(spec)}", indent=2)
    if experiment.scales:
        head("scales")
    for name, scale in experiment.scales.items():
        say(f"{name}: {scale.why}", indent=2)
        changes = override_text(scale.data, precision_settings(experiment, name) | scale.train)
        if changes:
            say(f"changes: {changes}", indent=6)
        say(work_text(experiment, name, records), indent=6)
    if lines := order_lines(plan_runs(experiment, scale=PAPER_SCALE, seeds=1) if experiment.scales else []):
        head("order of runs")
        for line in lines:
            out.print(f"  {escape(line)}")
    head(f"claims ({claim_counts(experiment.claims)})")
    for claim in experiment.claims:
        where = f"lecture; {claim.source}" if claim.by == "lecture" else claim.source
        say(f"{claim.id}: {claim.says} ({claim_formula(claim)}{where})", indent=2)
    for title, groups in deviation_groups(experiment).items():
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
        op = f" {claim.op} {claim.claimed:g}" if claim.op != "=" else ""
        return f"{claim.lhs} / {claim.rhs}{op}; "
    number = getattr(claim, "claimed", None)
    op = f"{claim.op} " if isinstance(claim, ExactClaim) and claim.op != "=" else ""
    texts = [str(number), f"{number:,}"] if isinstance(number, int | float) else [str(number)]
    says_it = not op and any(text in claim.says.split() for text in texts)
    return "" if number is None or says_it else f"claimed {op}{number}; "


def settings_text(settings: Mapping[str, Any], *, start: str = "") -> str:
    """Return settings as text, after `start` if there are any.

    {"depth": 20, "warmup": {"lr": 0.01}} -> "depth 20, warmup.lr 0.01".
    """
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
    """Return the settings that a variant or scale changes.

    For example "data noise, tested with dense-of-256; 60 steps of 32 images, lr 0.1". The intervals of evaluation
    and logging are left out, as they do not change the training.
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
        of_train.append(plural(steps, "step") + (f" of {plural(size, 'image')}" if size else ""))
    elif size:
        of_train.append(f"batches of {plural(size, 'image')}")
    start = train.pop("start", None)
    of_train += [settings_text(train), start_text(start) if start else ""]
    return "; ".join(filter(None, (", ".join(filter(None, part)) for part in (of_data, of_train))))


def start_text(start: Mapping[str, Any]) -> str:
    """Return the run that a run starts from: "starts from vgg-11 (conv1_1, fc8)"."""
    layers = f" ({', '.join(start['layers'])})" if start.get("layers") else ""
    experiment = f" of {start['experiment']}" if start.get("experiment") else ""
    return f"starts from {start['variant']}{experiment}{layers}"


def crop_override_text(crop: Mapping[str, Any]) -> str:
    """Return the settings of a crop that a variant or scale changes: "crops of 64 x 64, short side 72 to 96"."""
    rest, parts = dict(crop), []
    if "side" in rest:
        parts.append("crops of {0} x {0}".format(rest.pop("side")))
    if rest.get("short"):
        parts.append(f"short side {range_text(rest.pop('short'))}")
    return ", ".join(filter(None, (*parts, settings_text({f"crop.{key}": value for key, value in rest.items()}))))


def derived_text(spec: DerivedSpec) -> str:
    """Return a derived run as text: "average of 5 zfnet + zfnet-wide", "vgg-16 tested with dense-of-256"."""
    if isinstance(spec, EnsembleSpec | EnsembleSizesSpec):
        members = " + ".join(name if count == 1 else f"{count} {name}" for name, count in spec.members.items())
        protocols = f", {protocols_text(spec.test)}" if spec.test else ""
        if isinstance(spec, EnsembleSpec):
            own = [f"{name} {protocols_text([protocol])}" for name, protocol in spec.member_test.items()]
            return f"average of {members}{protocols}" + (f"; {', '.join(own)}" if own else "")
        greedy = ", and the greedy one" if spec.greedy else ""
        sizes = ", ".join(map(str, spec.measured_sizes))
        return f"ensembles of {sizes} networks of {members}{greedy}{protocols}"
    if isinstance(spec, ColumnSpec):
        column = "the deepest column" if spec.column == "deepest" else f"column {spec.column}"
        return f"{column} of {spec.of} alone" + (f", {protocols_text(spec.test)}" if spec.test else "")
    if isinstance(spec, ProtocolSpec):
        return f"{spec.of} {protocols_text(spec.test)}"
    if isinstance(spec, CompressionSpec):
        return compression_text(spec)
    if isinstance(spec, LocalisationSpec):
        boxes = " + ".join(f"{name} at {', '.join(map(str, sides))}" for name, sides in spec.boxes.items())
        classes = f"classes and ratings of {' + '.join(spec.classes)}, {protocols_text((spec.labels,))}"
        return f"merged boxes of {boxes}; {classes}"
    if isinstance(spec, TimingSpec):
        sizes = ", ".join(map(str, spec.batch_sizes))
        return f"forward passes of {', '.join(spec.networks)} with batches of {sizes}"
    return transfer_text(spec)


def transfer_text(spec: TransferSpec) -> str:
    """Return a transfer as text: "features of a on b by view c, softmax classifier with C 0.5"."""
    view = f" by view {spec.view}" if spec.view else ""
    layer = f" ({spec.layer})" if spec.layer else ""
    classifier = {"softmax": "softmax classifier", "svm": "linear SVMs"}[spec.classifier]
    values = ", ".join(f"{c:g}" for c in spec.candidates)
    how = {"standardise": "", "l2": "L2-normalised", "none": "not normalised"}[spec.normalise]
    parts = [
        f"features of {' and '.join(spec.of)}{layer} on {spec.data}{view}",
        "scales side by side" if spec.scales == "stack" else "",
        how,
        f"{classifier} with C {values if len(spec.candidates) == 1 else f'chosen from {values}'}",
    ]
    if isinstance(spec.validation, float):
        parts.append(f"on {100 * spec.validation:g} % of the training images")
    elif spec.validation:
        parts.append(f"on the part {spec.validation}")
    if spec.splits:
        sizes = " or ".join(str(number) for number in spec.sizes.values())
        tested = f", at most {spec.test_per_class} for testing" if spec.test_per_class else ""
        parts.append(f"{plural(spec.splits, 'random split')} with {sizes} training images per class{tested}")
    elif spec.train_parts != ("train",) or spec.test_part != "test":
        parts.append(f"trained on {' and '.join(spec.train_parts)}, tested on {spec.test_part}")
    return ", ".join(filter(None, parts))


def compression_text(spec: CompressionSpec) -> str:
    """Return a compression as text: "a compressed to 33 % of the weights, 8 bits in convolutional and 5 ..."."""
    if isinstance(spec.density, float):
        density = f"{100 * spec.density:g} % of the weights"
    else:
        layers = ", ".join(f"{layer} {100 * value:g} %" for layer, value in spec.density.items())
        density = f"a part of the weights ({layers})"
    bits = f"{spec.conv_bits} bits in convolutional and {spec.fc_bits} bits in fully connected layers"
    own_bits = ", ".join(f"{layer} {value} bits" for layer, value in spec.bits.items())
    index_bits = f"distances of {spec.conv_index_bits} and {spec.fc_index_bits} bits"
    when = f"after each of {spec.prunings} prunings" if spec.prunings > 1 else "after pruning"
    parts = [
        f"{spec.of} compressed to {density}",
        f"{bits} ({own_bits})" if own_bits else bits,
        "" if (spec.conv_index_bits, spec.fc_index_bits) == (8, 5) else index_bits,
        retraining_text(spec.retrain, when) if spec.retrain else "",
        retraining_text(spec.tune, "of shared values") if spec.tune else "",
    ]
    return ", ".join(filter(None, parts))


def retraining_text(training: Retraining, when: str) -> str:
    """Return a training within a compression as text: "1,000 steps after pruning at rate 0.001"."""
    decay = "" if training.lr_end is None else f" to {training.lr_end:g}"
    batch = f" with {plural(training.batch_size, 'image')} each" if training.batch_size else ""
    return f"{plural(training.steps, 'step')} {when} at rate {training.lr:g}{decay}{batch}"


def crop_text(crop: Crop) -> str:
    """Return the training crop: "random 224 x 224 crop of the image, resized to a short side of 256 to 480"."""
    square = f"{crop.side} x {crop.side}"
    method = "" if crop.interpolation == "bilinear" else f", {crop.interpolation} interpolation"
    if crop.area and crop.aspect:
        share = range_text([f"{100 * end:g}" for end in crop.area])
        aspect = range_text([f"{end:.3g}" for end in crop.aspect])
        return f"random crop of {share} % of the image's area, aspect ratio {aspect}, resized to {square}{method}"
    where = "random" if crop.at == "random" else "centre or corner"
    centre = f"the central {crop.centre} x {crop.centre} of " if crop.centre else ""
    return (
        f"{where} {square} crop of {centre}the image, resized to a short side of {range_text(crop.short)}{method}"
    )


def protocols_text(protocols: Sequence[str], *, first: str = "") -> str:
    """Return "tested with 10-crop-224-of-256, dense-of-256", with the remark `first` after the first protocol."""
    return f"tested with {', '.join([protocols[0] + first, *protocols[1:]])}"


def range_text(value: Any) -> str:
    """Return a number, or a pair as "256 to 480"."""
    return " to ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


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


def schedule_text(train: Train) -> str:
    """Return how the learning rate falls, after "learning rate 0.1": "; times 0.1 at step 32,000"."""
    if train.lr_drops:
        return f"; {lr_drops_text(train.lr_drops)}"
    if train.lr_end is not None:
        how = "linearly" if train.lr_power == 1 else f"as a polynomial of degree {train.lr_power:g}"
        return f", falling {how} to {train.lr_end:g}"
    if plateau := train.plateau:
        count = "report" if plateau.watch == "train" else "evaluation"
        waited = f"{plural(plateau.patience, count)} without a lower {plateau.watch} error"
        return f"; times {plateau.factor:g} after {waited}, at most {plural(plateau.max_drops, 'time')}"
    return ""


def weights_texts(train: Train) -> list[str]:
    """Return what happens to gradients and weights beside optimizer steps, and what is measured, one text each."""
    texts = []
    if train.clip_norm:
        texts.append(f"gradients are scaled to a norm of at most {train.clip_norm:g}")
    if train.filter_rms_limit:
        texts.append(f"filters are scaled to a root mean square of at most {train.filter_rms_limit:g}")
    if average := train.average:
        kind = "plain" if average.decay is None else f"exponential, decay {average.decay:g}"
        since = f" since step {average.since:,}" if average.since else ""
        statistics = ", with batch-norm statistics" if average.batch_norm else ""
        texts.append(f"average of the weights{since}: {kind}{statistics}; evaluated beside the last weights")
    if train.select == "val":
        texts.append("the network with the lowest validation error is judged")
    texts += [
        f"measured: optimizer steps until the training error is below {error:g} %"
        for error in train.steps_to_error_pct
    ]
    if train.gradient_norms:
        texts.append(f"measured: mean magnitude of the gradient in {', '.join(train.gradient_norms)}")
    return texts


def lr_drops_text(drops: LrDrops) -> str:
    """Return the drops of the learning rate: "times 0.1 at step 32,000, times 0.1 at step 48,000"."""
    if drops.at is None:
        return f"times {drops.factor:g} every {drops.every:,} steps"
    return ", ".join(
        f"times {f:g} at step {at:,}" for at, f in zip(drops.at, factors(drops.model_dump()), strict=True)
    )


def work_text(experiment: Experiment, scale: str, records: Sequence[Record]) -> str:
    """Return the runs, optimizer steps and multiply-adds of a scale, and the duration of tracked runs."""
    planned = plan_runs(experiment, scale=scale)
    if experiment.measures:
        return f"{plural(len(planned), 'measurement')}, no training"
    every = [run for run in planned if isinstance(run, Run)]
    runs = [run for run in every if run.experiment == experiment.name]
    variants, seeds = experiment.variants_at(scale), len(experiment.seeds_at(scale))
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
