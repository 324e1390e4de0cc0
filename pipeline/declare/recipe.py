"""Recipes: model, data and training settings of one run, as frozen, validated types."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lightning_modules.names import nearest
from pipeline.declare.protocol import parse_protocol

PAPER_SCALE = "paper"

REDUCED_PRECISION_SCALES = ("laptop", "gpu")  # bf16 and channels-last unless declared otherwise

REDUCED_PRECISION = {"precision": "bf16", "channels_last": True}

AUGMENTATIONS = ("pad4-crop", "reflect4-crop", "flip", "distort", "pca-colour", "photometric")  # 4: any number

StrictInt = Annotated[int, Field(strict=True)]

PositiveInt = Annotated[int, Field(strict=True, gt=0)]

StrictFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]

PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

NonNegativeFloat = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]

StrictBool = Annotated[bool, Field(strict=True)]

BitWidth = Annotated[int, Field(strict=True, ge=1, le=8)]


def require_finite(value: Any) -> Any:
    """`value`, unless it is a number that nothing can be equal to."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"should be a finite number, not {value}")
    return value


def check_augmentation(word: str) -> str:
    """`word`, if it is the name of an augmentation."""
    if not re.fullmatch(r"(pad|reflect)[1-9]\d*-crop|flip|distort|pca-colour|photometric", word):
        raise ValueError(f"unknown augmentation {word!r}{nearest(word, AUGMENTATIONS)}")
    return word


def check_protocol_name(name: str) -> str:
    """`name`, if it is that of a test protocol."""
    parse_protocol(name)
    return name


def check_statistic(words: str) -> str:
    """`words`, if they name a statistic over the seeds."""
    if not re.fullmatch(r"mean|best of [1-9]\d{0,2}", words):
        raise ValueError(f"unknown statistic {words!r}; use 'mean' or 'best of N'")
    return words


def require_unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`values`, if none of them is there twice."""
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return values


Normalisation = Literal[
    "per-pixel-mean", "per-channel", "lecun98", "scale", "raw-mean-image", "raw-mean-colour", "gcn-zca"
]

ProtocolName = Annotated[str, AfterValidator(check_protocol_name)]

Value = Annotated[Any, AfterValidator(require_finite)]  # a number, a text, a list of them

Augmentation = Annotated[str, AfterValidator(check_augmentation)]

Statistic = Annotated[str, AfterValidator(check_statistic)]

Seeds = Annotated[
    tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1), AfterValidator(require_unique)
]


class FrozenModel(BaseModel):
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


class Crop(FrozenModel):
    """How photographs of many sizes become the square images a network learns from: one draw for each use.

    Either the picture is resized to a short side and a square is cut out (AlexNet, VGG, ResNet), or a part of some
    area and aspect is cut out and resized to the square (GoogLeNet).
    """

    side: PositiveInt  # of the square that the network sees, in pixels
    short: PositiveInt | tuple[PositiveInt, PositiveInt] | None = (
        None  # short side resized to; of a range, any whole number
    )
    centre: PositiveInt | None = None  # this central square is cut out first, and mean images are of it
    at: Literal["random", "five"] = "random"  # anywhere; or in one of the four corners or the centre
    area: tuple[PositiveFloat, PositiveFloat] | None = None  # share of the picture's area, uniform in this range
    aspect: tuple[PositiveFloat, PositiveFloat] | None = None  # width over height, log-uniform in this range
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


class Data(FrozenModel):
    """The images that a run learns from and is judged on."""

    name: str  # a known set (digits, mnist, fashion-mnist, cifar10, cifar100) or a folder of class folders
    train: PositiveInt | None = None  # images trained on; None: all that `val` leaves
    val: Annotated[int, Field(strict=True, ge=0)] = 0  # images of the training set held out for validation
    pad_to: PositiveInt | None = None  # side in pixels to which smaller images are padded with background
    normalise: Normalisation = "per-pixel-mean"
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


class Sgd(FrozenModel):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: NonNegativeFloat = 0.0
    nesterov: StrictBool = False
    weight_decay: NonNegativeFloat = 0.0  # times the weight, added to its gradient
    decay: Literal["all", "weights"] = "all"  # "weights" spares biases and batch-norm

    @model_validator(mode="after")
    def _fits(self) -> "Sgd":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class RmsProp(FrozenModel):
    """Gradients divided by a running root of their mean square (Inception-v4)."""

    name: Literal["rmsprop"]
    alpha: NonNegativeFloat  # decay of the running mean of squares
    eps: PositiveFloat  # added to the root
    momentum: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0
    decay: Literal["all", "weights"] = "all"


class Sdlm(FrozenModel):
    """One pattern at a time with second-order step sizes lr / (mu + h) (LeCun et al. 1998, Appendix C)."""

    name: Literal["sdlm"]
    mu: PositiveFloat  # keeps steps bounded where the curvature h is small
    samples: PositiveInt  # patterns from which h is estimated before every pass


class CrossEntropy(FrozenModel):
    """Softmax and negative log-likelihood, the mean over the batch."""

    name: Literal["cross-entropy"] = "cross-entropy"


class MapLoss(FrozenModel):
    """LeCun et al. 1998, equation 9: the right class's penalty, and competition with the others."""

    name: Literal["map"]
    j: PositiveFloat  # the constant that keeps classes already far away from being pushed further
    divided_by: (
        PositiveFloat  # the loss's unit, which decides how it compares with mu: 84 for a mean over the code
    )


class LrDrops(FrozenModel):
    """Step-wise learning-rate drops: at certain updates, or every so many."""

    # updates, counted from 0, from which each factor holds
    at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    every: PositiveInt | None = None
    factor: PositiveFloat | tuple[PositiveFloat, ...]  # one for all, or one each

    @model_validator(mode="after")
    def _fits(self) -> "LrDrops":
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


class Warmup(FrozenModel):
    """A lower rate until the training error over 100 updates falls below a mark (ResNet-110)."""

    lr: PositiveFloat
    train_error_below_pct: PositiveFloat


class Train(FrozenModel):
    """How the network learns. `steps` are updates; `batch_size` is global, whatever the number of devices."""

    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat  # learning rate at the first update
    lr_drops: LrDrops | None = None
    lr_end: NonNegativeFloat | None = (
        None  # the rate falls in a straight line from `lr` to this after the last update
    )
    warmup: Warmup | None = None
    optimizer: Annotated[Sgd | RmsProp | Sdlm, Field(discriminator="name")]
    loss: Annotated[CrossEntropy | MapLoss, Field(discriminator="name")] = CrossEntropy()
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, where the processor has it
    channels_last: StrictBool = False
    compile: StrictBool = False  # torch.compile: tens of seconds once, then faster steps
    eval_every: PositiveInt | None = None  # updates between evaluations on test and validation; None: 40 in a run
    log_every: PositiveInt | None = None  # updates over which a training error is averaged; None: 200 in a run

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


class Recipe(FrozenModel):
    """Everything that decides a run's numbers but its seed."""

    model: Model
    data: Data
    train: Train
