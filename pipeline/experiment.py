"""Experiments: one YAML file each, turned once into frozen, typed values; mistakes named by file and key.

`load("resnet/cifar10_depth")` reads `experiments/resnet/cifar10_depth.yaml`. An experiment declares data, recipe,
variants, steps, seeds, scales, claims and departures; `Experiment.recipe(variant, scale)` is the resolved recipe
of one training. Nothing here imports torch: listing and checking declarations is instant.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lightning_modules.names import nearest
from pipeline.mistakes import UserError, explained, sentence
from pipeline.protocol import read_protocol

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
PAPER_SCALE = "paper"
FAST_SCALES = ("laptop", "gpu")  # bf16 and channels-last unless declared otherwise
FAST = {"precision": "bf16", "channels_last": True}
AUGMENTATIONS = ("pad4-crop", "reflect4-crop", "flip", "distort", "pca-colour", "photometric")  # 4: any number
# What is measured of images judged, of batches trained on, and of a compression's file, under these names.
ERRORS = ("top1_error_pct", "top5_error_pct", "loss", "images")
WINDOW = ("top1_error_pct", "top5_error_pct", "loss")
TRANSFERRED = ("test/mean_class_error_pct", "features", "iterations")
PARTS = ("codebook_", "table_", "indices_", "positions_", "other_", "header_", "original_", "")
COMPRESSED = (*(f"compressed/{part}bytes" for part in PARTS), "compressed/stored_weights", "compressed/ratio")

Int = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, gt=0)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Bits = Annotated[int, Field(strict=True, ge=1, le=8)]


def finite(value: Any) -> Any:
    """`value`, unless it is a number that nothing can be equal to."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"should be a finite number, not {value}")
    return value


def augmentation(word: str) -> str:
    """`word`, if it is the name of an augmentation."""
    if not re.fullmatch(r"(pad|reflect)[1-9]\d*-crop|flip|distort|pca-colour|photometric", word):
        raise ValueError(f"unknown augmentation {word!r}{nearest(word, AUGMENTATIONS)}")
    return word


def protocol_name(name: str) -> str:
    """`name`, if it is that of a test protocol."""
    read_protocol(name)
    return name


def statistic(words: str) -> str:
    """`words`, if they name a statistic over the seeds."""
    if not re.fullmatch(r"mean|best of [1-9]\d{0,2}", words):
        raise ValueError(f"unknown statistic {words!r}; use 'mean' or 'best of N'")
    return words


def different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`values`, if none of them is there twice."""
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return values


Normalise = Literal[
    "per-pixel-mean", "per-channel", "lecun98", "scale", "raw-mean-image", "raw-mean-colour", "gcn-zca"
]
ProtocolName = Annotated[str, AfterValidator(protocol_name)]
Value = Annotated[Any, AfterValidator(finite)]  # a number, a text, a list of them
Augmentation = Annotated[str, AfterValidator(augmentation)]
Statistic = Annotated[str, AfterValidator(statistic)]
Seeds = Annotated[
    tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1), AfterValidator(different)
]


class DeclarationError(UserError):
    """An experiment file that does not say something possible: file, key, reason."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(BaseModel):
    """A network by the name of its builder; all other keys are that builder's arguments."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def args(self) -> dict[str, Any]:
        """The builder's own arguments: the paper's variants, such as depth."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _fits(self) -> "Model":
        for key, value in self.args.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key!r} should be a finite number, not {value}")
        return self


class Crop(Frozen):
    """How photographs of many sizes become the square images a network learns from: one draw for each use.

    Either the picture is resized to a short side and a square is cut out (AlexNet, VGG, ResNet), or a part of some
    area and aspect is cut out and resized to the square (GoogLeNet).
    """

    side: Count  # of the square that the network sees, in pixels
    short: Count | tuple[Count, Count] | None = None  # short side resized to; of a range, any whole number
    centre: Count | None = None  # this central square is cut out first, and mean images are of it
    at: Literal["random", "five"] = "random"  # anywhere; or in one of the four corners or the centre
    area: tuple[Positive, Positive] | None = None  # share of the picture's area, uniform in this range
    aspect: tuple[Positive, Positive] | None = None  # width over height, log-uniform in this range
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # with anti-aliasing

    @model_validator(mode="after")
    def _fits(self) -> "Crop":
        if (self.short is None) == (self.area is None):
            raise ValueError("give either 'short' (then cut) or 'area' with 'aspect' (then resize)")
        if (self.area is None) != (self.aspect is None):
            raise ValueError("'area' and 'aspect' belong together")
        for key, pair in (("short", self.short), ("area", self.area), ("aspect", self.aspect)):
            if isinstance(pair, tuple) and pair[0] > pair[1]:
                raise ValueError(f"{key!r} should rise: {list(pair)} does not")
        if self.area and (self.area[1] > 1 or self.centre or self.at != "random"):
            raise ValueError("'area' is at most 1, and takes neither 'centre' nor 'at'")
        least = self.short[0] if isinstance(self.short, tuple) else self.short
        if least and not self.side <= (self.centre or least) <= least:
            raise ValueError("'side' must fit into 'centre', and that into 'short'")
        return self


class Data(Frozen):
    """The images that a run learns from and is judged on."""

    name: str  # a known set (digits, mnist, fashion-mnist, cifar10, cifar100) or a folder of class folders
    train: Count | None = None  # images trained on; None: all that `val` leaves
    val: Annotated[int, Field(strict=True, ge=0)] = 0  # images of the training set held out for validation
    pad_to: Count | None = None  # side in pixels to which smaller images are padded with background
    normalise: Normalise = "per-pixel-mean"
    augment: tuple[
        Augmentation, ...
    ] = ()  # pad4-crop or reflect4-crop, flip, distort; of photographs flip, pca-colour, photometric
    crop: Crop | None = None  # for photographs of many sizes, read from shards
    test: tuple[ProtocolName, ...] = ()  # how photographs are judged; the first also while training

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        photographs = {"pca-colour", "photometric"}
        if self.crop is None:
            if self.test:
                raise ValueError("test protocols are for photographs: they need 'crop'")
            if photographs & set(self.augment):
                raise ValueError(f"{min(photographs & set(self.augment))!r} is for photographs: it needs 'crop'")
            return self
        strange = [word for word in self.augment if word != "flip" and word not in photographs]
        if strange or self.pad_to:
            raise ValueError(
                f"{strange[0] if strange else 'pad_to'!r} is for small images: 'crop' goes without it"
            )
        if not self.test:
            raise ValueError("photographs need a 'test' protocol, such as 1-crop-224-of-256")
        return self


class Sgd(Frozen):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: NotNegative = 0.0
    nesterov: Flag = False
    weight_decay: NotNegative = 0.0  # times the weight, added to its gradient
    decay: Literal["all", "weights"] = "all"  # "weights" spares biases and batch-norm

    @model_validator(mode="after")
    def _fits(self) -> "Sgd":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class RmsProp(Frozen):
    """Gradients divided by a running root of their mean square (Inception-v4)."""

    name: Literal["rmsprop"]
    alpha: NotNegative  # decay of the running mean of squares
    eps: Positive  # added to the root
    momentum: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    decay: Literal["all", "weights"] = "all"


class Sdlm(Frozen):
    """One pattern at a time with second-order step sizes lr / (mu + h) (LeCun et al. 1998, Appendix C)."""

    name: Literal["sdlm"]
    mu: Positive  # keeps steps bounded where the curvature h is small
    samples: Count  # patterns from which h is estimated before every pass


class CrossEntropy(Frozen):
    """Softmax and negative log-likelihood, the mean over the batch."""

    name: Literal["cross-entropy"] = "cross-entropy"


class MapLoss(Frozen):
    """LeCun et al. 1998, equation 9: the right class's penalty, and competition with the others."""

    name: Literal["map"]
    j: Positive  # the constant that keeps classes already far away from being pushed further
    divided_by: Positive  # the loss's unit, which decides how it compares with mu: 84 for a mean over the code


class Drops(Frozen):
    """Step-wise learning-rate drops: at certain updates, or every so many."""

    # updates, counted from 0, from which each factor holds
    at: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    every: Count | None = None
    factor: Positive | tuple[Positive, ...]  # one for all, or one each

    @model_validator(mode="after")
    def _fits(self) -> "Drops":
        if (self.at is None) == (self.every is None):
            raise ValueError("give either 'at' or 'every'")
        if self.at is None:
            if isinstance(self.factor, tuple):
                raise ValueError("'every' needs one factor, not a list")
            return self
        if list(self.at) != sorted(set(self.at)):
            raise ValueError("'at' must rise from drop to drop")
        if isinstance(self.factor, tuple) and len(self.factor) != len(self.at):
            raise ValueError(f"{len(self.at)} drops need one factor or {len(self.at)}, not {len(self.factor)}")
        return self


class Warmup(Frozen):
    """A lower rate until the training error over 100 updates falls below a mark (ResNet-110)."""

    lr: Positive
    train_error_below_pct: Positive


class Train(Frozen):
    """How the network learns. `steps` are updates; `batch_size` is global, whatever the number of devices."""

    steps: Count
    batch_size: Count
    lr: Positive  # learning rate at the first update
    lr_drops: Drops | None = None
    lr_end: NotNegative | None = None  # the rate falls in a straight line from `lr` to this after the last update
    warmup: Warmup | None = None
    optimizer: Annotated[Sgd | RmsProp | Sdlm, Field(discriminator="name")]
    loss: Annotated[CrossEntropy | MapLoss, Field(discriminator="name")] = CrossEntropy()
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, where the processor has it
    channels_last: Flag = False
    compile: Flag = False  # torch.compile: tens of seconds once, then faster steps
    eval_every: Count | None = None  # updates between evaluations on test and validation; None: 40 in a run
    log_every: Count | None = None  # updates over which a training error is averaged; None: 200 in a run

    @model_validator(mode="after")
    def _fits(self) -> "Train":
        last = self.lr_drops and (self.lr_drops.at or (self.lr_drops.every,))[-1]
        if last and last >= self.steps:
            raise ValueError(f"the drop at {last} comes after the last of {self.steps} steps")
        if self.lr_drops and self.lr_end is not None:
            raise ValueError("a rate falls by 'lr_drops' or in a line to 'lr_end', not both")
        if self.optimizer.name == "sdlm" and self.batch_size != 1:
            raise ValueError("optimizer 'sdlm' learns one pattern at a time: batch_size must be 1")
        if self.optimizer.name == "sdlm" and (self.precision != "fp32" or self.warmup or self.lr_end is not None):
            raise ValueError("optimizer 'sdlm' knows neither bf16 nor a warmup nor lr_end")
        if self.optimizer.name == "sdlm" and self.lr_drops and self.lr_drops.every:
            raise ValueError("optimizer 'sdlm' needs lr_drops 'at' certain updates")
        if (self.loss.name == "map") != (self.optimizer.name == "sdlm"):
            raise ValueError("loss 'map' and optimizer 'sdlm' belong together (LeNet-5)")
        return self


class Recipe(Frozen):
    """Everything that decides a run's numbers but its seed."""

    model: Model
    data: Data
    train: Train


class Published(Frozen):
    """A variant as published, before any scale."""

    model: Model
    data: Data
    train: Train | None


class Variant(Frozen):
    """One network and what is its own in the recipe; `data` and `train` override the experiment's."""

    model: Model
    data: dict[str, Any] = {}
    train: dict[str, Any] = {}
    seeds: Seeds | None = None  # None: the experiment's; more of them where steps need so many networks


class EnsembleStep(Frozen):
    """Several networks as one: the mean of their soft-max answers."""

    kind: Literal["ensemble"]
    members: Annotated[dict[str, Count], Field(min_length=1)]  # variant -> networks of it, each with its own seed
    test: Annotated[tuple[ProtocolName, ...], AfterValidator(different)] = ()  # none: as its members are judged

    @property
    def consumes(self) -> dict[str, int]:
        """Variant -> how many runs of it."""
        return dict(self.members)

    @model_validator(mode="after")
    def _fits(self) -> "EnsembleStep":
        if sum(self.members.values()) < 2:
            raise ValueError("an ensemble has at least two networks")
        return self


class OfOneRun(Frozen):
    """A step that looks at one run; there is one for each seed."""

    of: str  # variant

    @property
    def consumes(self) -> dict[str, int]:
        """Variant -> how many runs of it."""
        return {self.of: 1}


class ProtocolStep(OfOneRun):
    """A run judged by other test protocols than it was when it ended; of photographs."""

    kind: Literal["protocol"]
    test: Annotated[tuple[ProtocolName, ...], Field(min_length=1), AfterValidator(different)]


class TransferStep(OfOneRun):
    """A linear classifier, learnt on another set, of the features below a run's last full connection."""

    kind: Literal["transfer"]
    data: str  # the other set: its training part is learnt from, its test part judges
    c: Positive  # scikit-learn's C: the smaller, the smaller the weights
    view: ProtocolName | None = None  # the one view of a photograph that features are taken from

    @model_validator(mode="after")
    def _fits(self) -> "TransferStep":
        if self.view and (read_protocol(self.view).views > 1 or self.view.startswith("dense")):
            raise ValueError(f"'view' should be a single crop, such as 1-crop-224-of-256, not {self.view}")
        return self


class CompressionStep(OfOneRun):
    """Deep Compression of a run's network without retraining (Han et al. 2016, arXiv:1510.00149)."""

    kind: Literal["compression"]
    density: Annotated[Positive, Field(le=1)]  # share of each layer's weights that is kept, the largest ones
    conv_bits: Bits  # of a shared weight's number, in convolutions
    fc_bits: Bits  # and in full connections


AnyStep = EnsembleStep | ProtocolStep | TransferStep | CompressionStep


class Scale(Frozen):
    """A size at which the experiment can run; `data` and `train` override the experiment's and the variant's."""

    why: str = ""  # what this scale is for
    data: dict[str, Any] = {}
    train: dict[str, Any] = {}
    steps: dict[str, dict[str, Any]] = {}  # by their names: what is otherwise in them
    variants: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(different)] | None = None  # None: all
    seeds: Seeds | None = None  # None: the experiment's, or a variant's own


class Departure(Frozen):
    """Something done otherwise than the paper says."""

    what: str
    why: str
    material: Flag = False  # true: trained numbers are no longer the paper's, and are judged as a trend at most


class BaseClaim(Frozen):
    """One statement of a paper or of the lecture."""

    id: str
    says: str  # the statement, in a sentence
    source: str  # table, figure or section
    by: Literal["paper", "lecture"] = "paper"
    confidence: Literal["checked", "memory", "figure"] = "checked"  # how the number was read


class ExactClaim(BaseClaim):
    """A shape, count or setting: judged by arithmetic on the network built or the recipe declared.

    With `over` or `over_metric` what is judged is a ratio: metric of `of`, divided by over_metric (the same if
    left out) of `over` (the same if left out).
    """

    kind: Literal["exact"]
    of: str | None = None  # variant; None with printed/… metrics only
    metric: (
        str  # model/… of the network built, recipe/… of the declared recipe, printed/… of the paper's own words
    )
    over: str | None = None  # variant
    over_metric: str | None = None
    op: Literal["=", "<", ">", "<=", ">="] = "="  # "=": equal up to the margin
    claimed: Value
    margin: NotNegative = 0.0
    corrected: Value = None  # what is right, where the source is wrong
    rule: str = ""  # how it is counted

    @model_validator(mode="after")
    def _fits(self) -> "ExactClaim":
        for metric, variant in ((self.metric, self.of), (self.over_metric or self.metric, self.over or self.of)):
            if variant is None and not metric.startswith("printed/"):
                raise ValueError(f"{metric!r} needs the variant it is measured 'of'")
        if self.op != "=" and self.margin:
            raise ValueError(f"op {self.op!r} takes no margin")
        if self.op != "=" and not isinstance(self.claimed, int | float):
            raise ValueError(f"op {self.op!r} compares numbers, and {self.claimed!r} is none")
        if self.corrected is not None and self.corrected == self.claimed and self.op == "=":
            raise ValueError("'corrected' is the claimed value itself; leave it out")
        return self


class MetricClaim(BaseClaim):
    """A trained network's number: equivalence test of the seeds' mean (or expected best) within a margin."""

    kind: Literal["metric"]
    of: str
    metric: str
    claimed: Float
    margin: Positive
    statistic: Statistic = "mean"  # or "best of N"
    protocol: str = "single view, last model"


class BoundClaim(BaseClaim):
    """A trained network's number lies below or above a bound."""

    kind: Literal["bound"]
    of: str
    metric: str
    op: Literal["<", ">"]
    claimed: Float
    protocol: str = "single view, last model"


class OrderingClaim(BaseClaim):
    """`lhs` is larger (>), smaller (<), not larger by the margin (<=) or equal within it (~); paired by seed.

    With `rhs_metric` both may be one variant, seen by two protocols.
    """

    kind: Literal["ordering"]
    lhs: str
    op: Literal["<", ">", "<=", "~"]
    rhs: str
    metric: str
    rhs_metric: str | None = None  # what `rhs` is measured by; None: as `lhs`
    margin: NotNegative = 0.0

    @model_validator(mode="after")
    def _fits(self) -> "OrderingClaim":
        if (self.lhs, self.metric) == (self.rhs, self.rhs_metric or self.metric):
            raise ValueError(f"{self.lhs!r} is compared with itself; give another variant or 'rhs_metric'")
        if self.op in ("<=", "~") and not self.margin:
            raise ValueError(f"op {self.op!r} needs a margin above 0")
        return self


class RatioClaim(BaseClaim):
    """lhs / rhs, paired by seed."""

    kind: Literal["ratio"]
    lhs: str
    rhs: str
    metric: str
    claimed: Positive
    margin: Positive

    @model_validator(mode="after")
    def _fits(self) -> "RatioClaim":
        if self.margin >= self.claimed:
            raise ValueError(f"a ratio is positive: the margin must be below the claimed {self.claimed:g}")
        return self


class OpenClaim(BaseClaim):
    """A statement that no run can settle, with the reason."""

    kind: Literal["open"]
    reason: Literal["no-data", "no-labels", "protocol-unspecified", "over-budget"]
    why: str


Claim = ExactClaim | MetricClaim | BoundClaim | OrderingClaim | RatioClaim | OpenClaim


class Paper(Frozen):
    """The publication an experiment belongs to."""

    title: str
    authors: str
    year: Int
    arxiv: str | None = None
    section: str


class Printed(Frozen):
    """Something that the paper itself prints, for claims (the lecture's, usually) that are compared with it."""

    value: Value
    where: str  # table, figure or section
    confidence: Literal["checked", "memory", "figure"] = "checked"


class Experiment(Frozen):
    """One question, its recipe, variants, scales and claims.

    Without scales nothing is trained: its claims are judged by arithmetic.
    """

    name: str  # from the file: "resnet/cifar10_depth"
    paper: Paper
    question: str
    data: Data
    train: Train | None = None  # only where nothing is trained
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    seeds: Seeds = (0, 1, 2, 3, 4)
    steps: dict[str, Annotated[AnyStep, Field(discriminator="kind")]] = {}  # named apart from the variants
    scales: dict[str, Scale]
    printed: dict[str, Printed] = {}
    claims: tuple[Annotated[Claim, Field(discriminator="kind")], ...] = ()
    departures: tuple[Departure, ...] = ()

    @property
    def file(self) -> str:
        """Where it is declared, for a message."""
        return f"{self.name}.yaml"

    @property
    def folder(self) -> str:
        """The paper's short name: the folder of the file."""
        return self.name.partition("/")[0]

    def seeds_at(self, scale: str) -> tuple[int, ...]:
        """The seeds fixed beforehand for `scale`."""
        declared = self.scales[scale].seeds
        return self.seeds if declared is None else declared

    def seeds_of(self, variant: str, scale: str) -> tuple[int, ...]:
        """The seeds fixed beforehand for a variant: the scale's, else its own, else the experiment's."""
        own = self.variants[variant].seeds
        return self.seeds_at(scale) if own is None or self.scales[scale].seeds else own

    def steps_at(self, scale: str, variants: Collection[str] = ()) -> list[str]:
        """The steps whose members are all among `variants`; of none, among those run at `scale`."""
        chosen = set(variants or self.variants_at(scale))
        return [name for name, step in self.steps.items() if chosen.issuperset(step.consumes)]

    def step(self, name: str, scale: str) -> AnyStep:
        """A step at a scale: as declared, with what the scale says is otherwise."""
        own, other = self.steps[name], self.scales[scale].steps.get(name, {})
        raw = merged(own.model_dump(mode="json", exclude_unset=True), other)
        try:
            return type(own).model_validate(raw)
        except ValidationError as error:
            reason = sentence(error, type(own), raw)
            raise DeclarationError(f"{self.file}: scales.{scale}.steps.{name}.{reason}") from None

    def protocols(self, name: str, scale: str, changes: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """The test protocols that a variant, or a step, is judged by at a scale; none: by whole images."""
        if name in self.variants:
            return self.recipe(name, scale, changes).data.test
        step = self.step(name, scale)
        if isinstance(step, TransferStep):
            return (step.view,) if step.view else ()
        own = () if isinstance(step, CompressionStep) else step.test
        return own or self.recipe(next(iter(step.consumes)), scale, changes).data.test

    def measured(self, name: str, *, named: bool) -> list[str]:
        """The metrics that a variant's runs, or a step, have at paper scale.

        Errors on photographs are there by each protocol and, unless `named`, by the first also without its name.
        """
        step = self.steps.get(name)
        data = self.recipe(name if step is None else next(iter(step.consumes)), PAPER_SCALE).data
        protocols = [f"/{protocol}" for protocol in self.protocols(name, PAPER_SCALE)] if data.crop else []
        protocols += [] if named and protocols else [""]
        more: tuple[str, ...] = ()
        if step is None:
            parts = ["test", "val"] if data.val else ["test"]
            more = tuple(f"train/{error}" for error in WINDOW)
            if not data.crop:
                more += ("test/response_std", *(f"trainset/{error}" for error in ERRORS))
        elif isinstance(step, TransferStep):
            parts, protocols, more = ["test"], [""], TRANSFERRED
        elif isinstance(step, CompressionStep):
            parts, more = ["test", "original", "pruned"], COMPRESSED
        else:
            parts = ["test"]
        return [f"{part}{shown}/{error}" for part in parts for shown in protocols for error in ERRORS] + [*more]

    def variants_at(self, scale: str) -> tuple[str, ...]:
        """The variants run at `scale` when none is asked for."""
        return self.scales[scale].variants or tuple(self.variants)

    def paper_data(self, variant: str) -> str:
        """The data set on which the paper judges a variant, or a step: what is declared before any scale."""
        if variant in self.steps:
            step = self.steps[variant]
            return step.data if isinstance(step, TransferStep) else self.paper_data(next(iter(step.consumes)))
        return str(self.variants[variant].data.get("name", self.data.name))

    def published(self, variant: str) -> Published:
        """Network, data and recipe of a variant as published: the experiment's, then its own."""
        own = self.variants[variant]
        raw: dict[str, Any] = {
            "model": {"name": own.model.name, **own.model.args},
            "data": merged(self.data.model_dump(mode="json", exclude_unset=True), own.data),
            "train": None,
        }
        if self.train:
            raw["train"] = merged(self.train.model_dump(mode="json", exclude_unset=True), own.train)
        elif own.train:
            raw["train"] = dict(own.train)
        try:
            return Published.model_validate(raw)
        except ValidationError as error:
            key, reason = explained(error, Published, raw)
            raise DeclarationError(f"{self.file}: variants.{variant}.{key}: {reason}") from None

    def recipe(self, variant: str, scale: str, changes: Mapping[str, Any] | None = None) -> Recipe:
        """The resolved recipe: experiment, then variant, then scale, then `changes` ({"train.lr": 0.05})."""
        if scale not in self.scales:
            raise UserError(f"{self.name}: unknown scale {scale!r}{nearest(scale, self.scales)}")
        if variant not in self.variants:
            raise UserError(f"{self.name}: unknown variant {variant!r}{nearest(variant, self.variants)}")
        own, size = self.variants[variant], self.scales[scale]
        assert self.train is not None  # `check` has seen to it
        raw = {
            "model": {"name": own.model.name, **own.model.args},
            "data": merged(self.data.model_dump(mode="json", exclude_unset=True), own.data, size.data),
            "train": merged(self.train.model_dump(mode="json", exclude_unset=True), own.train, size.train),
        }
        for key, value in (changes or {}).items():
            put(raw, key, value)
        if scale in FAST_SCALES and isinstance(raw["train"], dict):
            optimizer = raw["train"].get("optimizer")
            if not (isinstance(optimizer, dict) and optimizer.get("name") == "sdlm"):  # knows neither
                raw["train"] = FAST | raw["train"]
        try:
            return Recipe.model_validate(raw)
        except ValidationError as error:
            key, reason = explained(error, Recipe, raw)
            if changes:
                self.recipe(variant, scale)  # what is wrong without them comes first
                raise DeclarationError(f"{changed(key, changes)} (for {variant} at {scale}): {reason}") from None
            raise DeclarationError(f"{self._origin(key, variant, scale)}: {reason}") from None

    def _origin(self, key: str, variant: str, scale: str) -> str:
        """Where the setting at `key` of a resolved recipe was made: by the scale or the variant."""
        layers: dict[str, Scale | Variant]
        layers = {f"scales.{scale}": self.scales[scale], f"variants.{variant}": self.variants[variant]}
        path = key.split(".")
        for end in range(len(path), 0, -1):
            for place, layer in layers.items():
                here: Any = {"data": layer.data, "train": layer.train}
                for part in path[:end]:
                    here = here.get(part) if isinstance(here, Mapping) else None
                if here not in (None, {}):
                    return f"{self.file}: {place}.{key}"
        return f"{self.file}: {variant} at {scale} scale: {key}"


def merged(*maps: Mapping[str, Any]) -> dict[str, Any]:
    """The maps laid over each other, later ones on top, nested maps likewise.

    A nested map that names another thing (its "name" differs) replaces the one below instead of mixing with it.
    """
    result: dict[str, Any] = {}
    for layer in maps:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(below, Mapping) and isinstance(value, Mapping):
                same = below.get("name") in (None, value.get("name", below.get("name")))
                result[key] = merged(below, value) if same else merged(value)
            else:
                result[key] = merged(value) if isinstance(value, Mapping) else value
    return result


def changed(key: str, changes: Mapping[str, Any]) -> str:
    """'--set train.steps=100' for a mistake at `key` of a recipe that was right before `changes`.

    A change of the setting itself is named by its key; else the changes are that lie in the same map, or in the
    nearest map around it that has any.
    """
    if any(f"{key}.".startswith(f"{one}.") for one in changes):
        return f"--set {key}"
    around, inside = key, list(changes)
    while around:
        if found := [one for one in changes if one.startswith(f"{around}.")]:
            inside = found
            break
        around = around.rpartition(".")[0]
    said = ", ".join(f"--set {one}={flow(changes[one])}" for one in inside)
    return f"{said}: {key}" if key else said


def flow(value: Any) -> str:
    """A value as it is written in one line of YAML: [0.08, 1]."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key` ("train.lr") of a raw recipe; the first part must be model, data or train."""
    *path, last = key.split(".")
    if not path or path[0] not in Recipe.model_fields:
        raise UserError(f"--set {key}: a setting starts with model., data. or train., as in train.lr=0.05")
    for part in path:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise UserError(f"--set {key}: {part!r} is a value, not a map of settings")
    raw[last] = value


def names(folder: Path = EXPERIMENTS) -> list[str]:
    """All experiments: "paper/file" for every experiments/paper/file.yaml."""
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.yaml"))


def load(name: str, folder: Path = EXPERIMENTS) -> Experiment:
    """The experiment `name` ("paper/file"), or a path to a .yaml file; DeclarationError says what is wrong."""
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        if name.endswith(".yaml"):
            raise UserError(f"there is no file {name}")
        of_paper = [one for one in names(folder) if one.startswith(f"{name.rstrip('/')}/")]
        raise UserError(f"there is no experiment {name!r}{nearest(name, of_paper or names(folder))}")
    named = f"{path.resolve().parent.name}/{path.stem}"
    file = f"{named}.yaml"
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise DeclarationError(f"{file}: not readable as YAML: {reason}") from None
    if not isinstance(raw, dict):
        raise DeclarationError(f"{file}: an experiment is a map of keys (paper, data, train, variants, …)")
    if "name" in raw:
        raise DeclarationError(f"{file}: name: unknown key; an experiment is called as its file is")
    raw["name"] = named
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise DeclarationError(f"{file}: {sentence(error, Experiment, raw)}") from None
    check(experiment)
    return experiment


def check(experiment: Experiment) -> None:
    """What types alone cannot say: names that point at each other, and every variant at every scale."""
    file, known = experiment.file, experiment.variants
    if experiment.scales and PAPER_SCALE not in experiment.scales:
        raise DeclarationError(f"{file}: scales: there is no 'paper' scale (the recipe as published)")
    if experiment.scales and experiment.train is None:
        raise DeclarationError(f"{file}: train: required where there are scales to train at")
    for name, scale in experiment.scales.items():
        for variant in scale.variants or ():
            if variant not in known:
                raise DeclarationError(
                    f"{file}: scales.{name}.variants: unknown variant {variant!r}{nearest(variant, known)}"
                )
        for variant in known:
            experiment.recipe(variant, name)
    for variant in known:
        experiment.published(variant)
    check_steps(experiment)
    seen: set[str] = set()
    for claim in experiment.claims:
        if claim.id in seen:
            raise DeclarationError(f"{file}: claims: the id {claim.id!r} is used twice")
        seen.add(claim.id)
        for key in ("of", "over", "lhs", "rhs"):
            named = getattr(claim, key, None)
            callable_so = known if isinstance(claim, ExactClaim) else {**known, **experiment.steps}
            if named is not None and named not in callable_so:
                raise DeclarationError(
                    f"{file}: claims.{claim.id}.{key}: unknown variant {named!r}{nearest(named, callable_so)}"
                )
        if not experiment.scales and not isinstance(claim, ExactClaim | OpenClaim):
            raise DeclarationError(
                f"{file}: claims.{claim.id}: a claim of kind {claim.kind!r} needs runs, and there are no scales"
            )
        check_metrics(experiment, claim)


def check_metrics(experiment: Experiment, claim: Claim) -> None:
    """What a trained claim is about is measured of each of its sides at paper scale.

    A number of photographs is one by a certain protocol; a comparison may be of what each side is judged by first.
    """
    if isinstance(claim, ExactClaim | OpenClaim):
        return
    for side in ("of", "lhs", "rhs"):
        if (name := getattr(claim, side, None)) is None:
            continue
        key = "rhs_metric" if side == "rhs" and getattr(claim, "rhs_metric", None) else "metric"
        metric = getattr(claim, key)
        known = experiment.measured(name, named=isinstance(claim, MetricClaim | BoundClaim))
        if metric not in known:
            place = f"{experiment.file}: claims.{claim.id}.{key}"
            raise DeclarationError(f"{place}: {name} measures no {metric!r}, only {', '.join(known)}")


def check_steps(experiment: Experiment) -> None:
    """Steps have names of their own, consume variants, have seeds enough, and see images that all members know."""
    file, known = experiment.file, experiment.variants
    for name, step in experiment.steps.items():
        if name in known:
            raise DeclarationError(f"{file}: steps.{name}: a variant is called so; give the step another name")
        for variant in step.consumes:
            if variant not in known:
                raise DeclarationError(
                    f"{file}: steps.{name}: unknown variant {variant!r}{nearest(variant, known)}"
                )
    if experiment.steps and not experiment.scales:
        raise DeclarationError(f"{file}: steps: they need runs, and there are no scales")
    for scale, declared in experiment.scales.items():
        for name in declared.steps:
            if name not in experiment.steps:
                near = nearest(name, experiment.steps)
                raise DeclarationError(f"{file}: scales.{scale}.steps: unknown step {name!r}{near}")
        for name in experiment.steps:
            step = experiment.step(name, scale)
            if strangers := set(step.consumes) - set(known):
                near = nearest(min(strangers), known)
                raise DeclarationError(
                    f"{file}: scales.{scale}.steps.{name}: unknown variant {min(strangers)!r}{near}"
                )
            if reason := misfit(step, [experiment.recipe(variant, scale).data for variant in step.consumes]):
                raise DeclarationError(f"{file}: steps.{name} (at {scale} scale): {reason}")
        for name in experiment.steps_at(scale):
            for variant, needed in experiment.step(name, scale).consumes.items():
                there = len(experiment.seeds_of(variant, scale))
                if there < needed:
                    raise DeclarationError(
                        f"{file}: steps.{name}: {needed} networks of {variant} need {needed} seeds, and at {scale}"
                        f" scale there are {there}; give variants.{variant}.seeds, or fewer networks in"
                        f" scales.{scale}.steps.{name}"
                    )


def misfit(step: AnyStep, datas: Sequence[Data]) -> str:
    """Why a step cannot look at runs of these data; "" if it can."""
    first, photographs = datas[0], datas[0].crop is not None
    protocols = (step.view,) if isinstance(step, TransferStep) else getattr(step, "test", ())
    if any(protocols) and not photographs:
        return "test protocols are for photographs, and its runs learn from small images, shown whole"
    if isinstance(step, ProtocolStep) and not photographs:
        return "other test protocols are for photographs"
    if isinstance(step, TransferStep) and photographs and not step.view:
        return "features of photographs need a 'view', such as 1-crop-224-of-256"
    if len({(data.name, data.crop is not None) for data in datas}) > 1:
        return "its runs learn from different data"
    if photographs and not any(protocols) and len({data.test for data in datas}) > 1:
        return "its runs are judged by different protocols; say in 'test' which are meant"
    seen = {(data.normalise, data.pad_to, data.train, data.val) for data in datas}
    if not photographs and len(seen) > 1:
        return f"its runs are shown {first.name} in different ways"
    return ""


def read_yaml(text: str) -> Any:
    """What a YAML text holds: by libyaml, in a sixth of the time, where PyYAML was built with it."""
    if Fast is Loader:
        return yaml.load(text, Loader=Loader)
    try:
        return yaml.load(text, Loader=Fast)
    except yaml.YAMLError:
        return yaml.load(text, Loader=Loader)  # says it with the line itself


def unlike_twice(self: Any, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
    """A loader's `compose_mapping_node`, refusing duplicate keys."""
    node = yaml.composer.Composer.compose_mapping_node(self, anchor)
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
    return node


class Loader(yaml.SafeLoader):
    """YAML with 1e-4 read as the number it is, and a key given twice refused."""

    compose_mapping_node = unlike_twice


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)

Fast: Any = Loader
if yaml.__with_libyaml__:
    from yaml.cyaml import CParser  # type: ignore[attr-defined]
    from yaml.resolver import Resolver

    class Fast(yaml.composer.Composer, CParser, yaml.constructor.SafeConstructor, Resolver):  # type: ignore[no-redef]
        """The same, from libyaml's events."""

        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            yaml.composer.Composer.__init__(self)
            yaml.constructor.SafeConstructor.__init__(self)
            Resolver.__init__(self)

        compose_mapping_node = unlike_twice
        yaml_implicit_resolvers = Loader.yaml_implicit_resolvers
