"""Recipes: model, data and training settings of one run, as frozen, validated types."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lightning_modules.names import nearest
from pipeline.declare.protocol import parse_protocol

PAPER_SCALE = "paper"

PARTED_SET = "svhn-extra"  # the set whose training images come from two published parts

REDUCED_PRECISION_SCALE = "laptop"  # where REDUCED_PRECISION is the default

REDUCED_PRECISION = {"precision": "bf16", "channels_last": True}

# What a run costs. These differ between machines, so they are kept apart from its metrics.
COST_METRICS = ("train/seconds", "train/images_per_second", "train/peak_memory_mib")

STEPS_TO = "train/steps_to_"  # and an error: see `steps_to_metric`

GRADIENT_NORM = "train/gradient_norm/"  # and the name of a layer: the mean magnitude of its gradient

# The 4 of pad4-crop and reflect4-crop, in pixels, may be another number.
AUGMENTATIONS = ("pad4-crop", "reflect4-crop", "flip", "distort", "pca-colour", "photometric")

StrictInt = Annotated[int, Field(strict=True)]

PositiveInt = Annotated[int, Field(strict=True, gt=0)]

StrictFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]

PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

NonNegativeFloat = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]

ErrorPct = Annotated[float, Field(strict=True, gt=0, lt=100)]

StrictBool = Annotated[bool, Field(strict=True)]

Strength = Annotated[float, Field(strict=True, ge=0, le=1)]  # 0.4: factors from 0.6 to 1.4

BitWidth = Annotated[int, Field(strict=True, ge=1, le=8)]


def steps_to_metric(error_pct: float) -> str:
    """Return "train/steps_to_25_pct_error", the steps until the training error is below `error_pct` 25."""
    return f"{STEPS_TO}{error_pct:.15g}_pct_error"


def require_finite(value: Any) -> Any:
    """Return `value`. Raises ValueError if it is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"should be a finite number, not {value}")
    return value


def check_augmentation(word: str) -> str:
    """Return `word`. Raises ValueError if it is not the name of an augmentation."""
    if not re.fullmatch(r"(pad|reflect)[1-9]\d*-crop|flip|distort|pca-colour|photometric", word):
        raise ValueError(f"unknown augmentation {word!r}{nearest(word, AUGMENTATIONS)}")
    return word


def check_protocol_name(name: str) -> str:
    """Return `name`. Raises ValueError if it is not the name of a test protocol."""
    parse_protocol(name)
    return name


def check_statistic(text: str) -> str:
    """Return `text`. Raises ValueError if it is not the name of a statistic over seeds."""
    if not re.fullmatch(r"mean|(best|median) of [1-9]\d{0,2}", text):
        raise ValueError(f"unknown statistic {text!r}; use 'mean', 'median of N' or 'best of N'")
    return text


def require_unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `values`. Raises ValueError if one of them occurs twice."""
    repeated = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is listed twice")
    return values


Normalisation = Literal[
    "per-pixel-mean",
    "per-channel",
    "lecun98",
    "scale",
    "raw-mean-image",
    "raw-mean-colour",
    "gcn-zca",
    "local-contrast",
]

ProtocolName = Annotated[str, AfterValidator(check_protocol_name)]

Value = Annotated[Any, AfterValidator(require_finite)]  # a number, a text, or a list of these

Augmentation = Annotated[str, AfterValidator(check_augmentation)]

Statistic = Annotated[str, AfterValidator(check_statistic)]

Seeds = Annotated[
    tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1), AfterValidator(require_unique)
]


class FrozenModel(BaseModel):
    """Base of the declared types: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(BaseModel):
    """A network: the name of its builder, and the builder's arguments as further keys."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def args(self) -> dict[str, Any]:
        """Return the builder's arguments, such as depth."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _fits(self) -> "Model":
        for key, value in self.args.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key!r} should be a finite number, not {value}")
        return self


class Crop(FrozenModel):
    """Random crop of a training image of any size to a square, drawn anew each time the image is used.

    Either the image is resized to a short side and a square is cropped (AlexNet, VGG, ResNet), or a region of
    random area and aspect ratio is cropped and resized to the square (GoogLeNet).
    """

    side: PositiveInt  # of the network's input, in pixels
    # Short side of the resized image, in pixels; [low, high]: an integer drawn uniformly.
    short: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    centre: PositiveInt | None = None  # side of a central square cropped first; mean images have this size
    at: Literal["random", "five"] = "random"  # any position; five: one of the four corners or the centre
    area: tuple[PositiveFloat, PositiveFloat] | None = None  # fraction of the image's area, uniform in this range
    aspect: tuple[PositiveFloat, PositiveFloat] | None = None  # width / height, log-uniform in this range
    # bilinear and bicubic with anti-aliasing; random: drawn for each image among these, nearest and area.
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"

    @model_validator(mode="after")
    def _fits(self) -> "Crop":
        if (self.short is None) == (self.area is None):
            raise ValueError("give either 'short' (resize, then crop) or 'area' with 'aspect' (crop, then resize)")
        if (self.area is None) != (self.aspect is None):
            raise ValueError("'area' and 'aspect' must be given together")
        for key, pair in (("short", self.short), ("area", self.area), ("aspect", self.aspect)):
            if isinstance(pair, tuple) and pair[0] > pair[1]:
                raise ValueError(f"{key!r} must be increasing, not {list(pair)}")
        if self.area and (self.area[1] > 1 or self.centre or self.at != "random"):
            raise ValueError("'area' must be <= 1 and cannot be combined with 'centre' or 'at'")
        least = self.short[0] if isinstance(self.short, tuple) else self.short
        if least and not self.side <= (self.centre or least) <= least:
            raise ValueError("'side' must be <= 'centre', and 'centre' must be <= 'short'")
        return self


class PartCounts(FrozenModel):
    """Numbers of images of each class held out for validation from each published part of svhn-extra."""

    train: Annotated[int, Field(strict=True, ge=0)]
    extra: Annotated[int, Field(strict=True, ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> "PartCounts":
        if not self.train + self.extra:
            raise ValueError("one of the parts must give images")
        return self


class Jitter(FrozenModel):
    """Random colour changes of an image, as in fb.resnet.torch, which uses 0.4, 0.4, 0.4 and 0.1.

    Brightness, contrast and saturation are multiplied, in random order, by factors from 1 - strength to
    1 + strength. Then lighting noise is added along the principal components of ImageNet's colours.
    """

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    lighting: NonNegativeFloat = 0.0  # standard deviation of the factor of each eigenvalue

    @model_validator(mode="after")
    def _fits(self) -> "Jitter":
        if not (self.brightness or self.contrast or self.saturation or self.lighting):
            raise ValueError("give at least one strength > 0: brightness, contrast, saturation or lighting")
        return self


class Data(FrozenModel):
    """The images that a run trains on and is evaluated on."""

    # A known set (digits, mnist, fashion-mnist, cifar10, cifar100, svhn, svhn-extra), or a folder of class folders
    # or of shards.
    name: str
    train: PositiveInt | None = None  # number of training images; None: all that are not in `val`
    val: Annotated[int, Field(strict=True, ge=0)] = 0  # number of training images held out for validation
    # Number of training images of each class held out for validation; {train: 400, extra: 200}: of each of
    # svhn-extra's parts.
    val_per_class: PositiveInt | PartCounts | None = None
    pad_to: PositiveInt | None = None  # side in pixels to which smaller images are padded with background
    normalise: Normalisation = "per-pixel-mean"
    # pad4-crop, reflect4-crop, flip, distort; with `crop`: flip, pca-colour, photometric.
    augment: tuple[Augmentation, ...] = ()
    jitter: Jitter | None = None  # random colour changes, with `crop` only
    crop: Crop | None = None  # for images of varying size, read from shards; None: small images of one size
    test: tuple[ProtocolName, ...] = ()  # test protocols, with `crop` only; the first is also used during training
    boxes: StrictBool = False  # learn the bounding boxes of the objects, from the images that have some

    @property
    def holds_out(self) -> bool:
        """True if training images are held out for validation."""
        return self.val > 0 or self.val_per_class is not None

    def held_out(self, classes: int) -> int:
        """Return the number of validation images of a set of so many classes."""
        counts = self.val_per_class
        if isinstance(counts, PartCounts):
            return classes * (counts.train + counts.extra)
        return classes * (counts or 0) + self.val

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if self.boxes:
            self._fits_boxes()
        if self.val and self.val_per_class:
            raise ValueError("give either 'val' or 'val_per_class', not both")
        if isinstance(self.val_per_class, PartCounts) and self.name != PARTED_SET:
            raise ValueError(f"only {PARTED_SET} has parts; give val_per_class one number for {self.name}")
        if self.jitter and "photometric" in self.augment:
            raise ValueError("'jitter' and 'photometric' change the same colours; remove one of them")
        if self.jitter and self.jitter.lighting and "pca-colour" in self.augment:
            raise ValueError("'jitter.lighting' and 'pca-colour' add the same noise; remove one of them")
        with_crop_only = {"pca-colour", "photometric"} & set(self.augment)
        if self.crop is None:
            if self.test:
                raise ValueError("'test' needs 'crop': test protocols are for images of varying size")
            if self.jitter:
                raise ValueError("'jitter' needs 'crop': it is for images of varying size")
            if with_crop_only:
                raise ValueError(f"{min(with_crop_only)!r} needs 'crop': it is for images of varying size")
            return self
        without_crop_only = [word for word in self.augment if word != "flip" and word not in with_crop_only]
        if without_crop_only or self.pad_to:
            setting = without_crop_only[0] if without_crop_only else "pad_to"
            raise ValueError(f"{setting!r} cannot be combined with 'crop': it is for small images")
        if not self.test:
            raise ValueError("'crop' needs a 'test' protocol, such as 1-crop-224-of-256")
        return self

    def _fits_boxes(self) -> None:
        """Raise ValueError for settings under which an image has no bounding box, or no single one."""
        if self.crop is None:
            raise ValueError("'boxes' needs 'crop': only sets in shards have bounding boxes")
        for name in self.test:
            parts = parse_protocol(name).parts
            centre = len(parts) == len(parts[0].shorts) == 1 and parts[0].kind == "centre" and not parts[0].square
            if not centre or parts[0].side != self.crop.side:
                raise ValueError(
                    f"test protocol {name!r} gives several boxes, or crops of another size than in training;"
                    " networks that predict boxes are tested on the centre crop, such as"
                    f" 1-crop-{self.crop.side}-of-256, or by a derived run of kind localisation"
                )


class Sgd(FrozenModel):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: NonNegativeFloat = 0.0
    nesterov: StrictBool = False
    weight_decay: NonNegativeFloat = 0.0  # times the weight, added to its gradient
    decay: Literal["all", "weights"] = "all"  # parameters with weight decay; weights: not biases and batch norm
    # True: the velocity is momentum * velocity - lr * gradient (Krizhevsky et al. 2012). False: lr multiplies the
    # velocity. The two differ when the rate changes.
    rate_in_velocity: StrictBool = False

    @model_validator(mode="after")
    def _fits(self) -> "Sgd":
        for key in ("nesterov", "rate_in_velocity"):
            if getattr(self, key) and not self.momentum:
                raise ValueError(f"{key} needs momentum > 0")
        return self


class RmsProp(FrozenModel):
    """RMSProp: gradients divided by the root of a running mean of their squares (Inception-v4)."""

    name: Literal["rmsprop"]
    alpha: NonNegativeFloat  # decay of the running mean of squares
    eps: PositiveFloat  # added to the root, against division by zero; tensorflow: to the mean square
    momentum: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0
    decay: Literal["all", "weights"] = "all"
    # tensorflow: the mean square starts at 1 instead of 0, eps is inside the root, and the velocity contains the
    # learning rate, as in papers whose networks were trained with TensorFlow.
    form: Literal["pytorch", "tensorflow"] = "pytorch"


class Sdlm(FrozenModel):
    """Stochastic diagonal Levenberg-Marquardt, with step size lr / (mu + h) (LeCun et al. 1998, Appendix C)."""

    name: Literal["sdlm"]
    mu: PositiveFloat  # bounds the step size where the curvature h is small
    samples: PositiveInt  # number of images from which h is estimated before each epoch


class CrossEntropy(FrozenModel):
    """Cross-entropy of the softmax, averaged over the batch."""

    name: Literal["cross-entropy"] = "cross-entropy"
    # Label smoothing in training: this share of the label is spread evenly over all classes (Inception-v3).
    smoothing: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0


class MapLoss(FrozenModel):
    """Maximum a posteriori loss (LeCun et al. 1998, eq. 9): penalty of the true class, and a competitive term."""

    name: Literal["map"]
    j: PositiveFloat  # constant of eq. 9, which limits the penalty of classes that are already far away
    divided_by: PositiveFloat  # divisor of the loss, which scales it relative to mu; 84: mean over the 84 units


class Euclidean(FrozenModel):
    """Half the squared distance of the predicted from the true box, averaged over the batch (VGG, appendix A)."""

    name: Literal["euclidean"]


class LrDrops(FrozenModel):
    """Step decay of the learning rate: at given steps, or every given number of steps."""

    # Steps, counted from 0, from which the factors apply.
    at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    every: PositiveInt | None = None
    factor: PositiveFloat | tuple[PositiveFloat, ...]  # one for all drops, or one per drop

    @model_validator(mode="after")
    def _fits(self) -> "LrDrops":
        if (self.at is None) == (self.every is None):
            raise ValueError("give either 'at' or 'every'")
        if self.at is None:
            if isinstance(self.factor, tuple):
                raise ValueError("'every' needs one factor, not a list")
            return self
        if list(self.at) != sorted(set(self.at)):
            raise ValueError("'at' must be increasing")
        if isinstance(self.factor, tuple) and len(self.factor) != len(self.at):
            raise ValueError(f"{len(self.at)} drops need 1 factor or {len(self.at)}, not {len(self.factor)}")
        return self


class Warmup(FrozenModel):
    """A lower learning rate until the training error over 100 steps falls below a threshold (ResNet-110)."""

    lr: PositiveFloat
    train_error_below_pct: PositiveFloat


class Start(FrozenModel):
    """Initial weights from the finished run of another variant, with the same seed at the same scale."""

    variant: str
    experiment: str | None = None  # None: this experiment
    # Layers that are copied, by name, with all layers inside them; empty: all. Others keep their initial weights.
    layers: Annotated[tuple[str, ...], AfterValidator(require_unique)] = ()


class Plateau(FrozenModel):
    """The learning rate falls when the error has stopped improving: "divided by 10 when the error plateaus"."""

    # Part whose top-1 error is watched: held-out training images, the test part, which on ImageNet is the ILSVRC
    # validation set that the papers watch, or the augmented training images of the last `log_every` steps.
    watch: Literal["val", "test", "train"]
    factor: Annotated[float, Field(strict=True, gt=0, lt=1)]  # multiplies the rate at each drop
    patience: PositiveInt  # number of evaluations (train: of reports) in a row without a lower error
    max_drops: PositiveInt  # after which the rate stays


class Average(FrozenModel):
    """An average of the weights over training, evaluated beside the last weights."""

    # Of an exponential moving average; None: the plain mean (Polyak averaging).
    decay: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    since: Annotated[int, Field(strict=True, ge=0)] = 0  # the weights before this step do not count
    batch_norm: StrictBool = False  # average the statistics of batch norm too; otherwise the last ones are used


class Train(FrozenModel):
    """Training settings: optimizer, schedule, loss and precision."""

    steps: PositiveInt  # optimizer steps
    batch_size: PositiveInt  # global: over all devices
    lr: PositiveFloat  # learning rate of the first step
    lr_drops: LrDrops | None = None
    lr_end: NonNegativeFloat | None = None  # decay from `lr` to this rate, reached after the last step
    lr_power: PositiveFloat = 1.0  # of the decay to lr_end: (1 - step / steps)^lr_power; 1: linear
    plateau: Plateau | None = None
    start: Start | None = None
    warmup: Warmup | None = None
    clip_norm: PositiveFloat | None = None  # largest norm of the gradient of all parameters together
    filter_rms_limit: PositiveFloat | None = None  # largest root mean square of a convolution's filter (ZFNet)
    average: Average | None = None
    select: Literal["last", "val"] = "last"  # network judged: the last, or that of the lowest validation error
    optimizer: Annotated[Sgd | RmsProp | Sdlm, Field(discriminator="name")]
    loss: Annotated[CrossEntropy | MapLoss | Euclidean, Field(discriminator="name")] = CrossEntropy()
    # Layers that are trained, with all layers inside them; the others keep their initial weights. Empty: all.
    trainable: Annotated[tuple[str, ...], AfterValidator(require_unique)] = ()
    # bf16: autocast, fp32 on hardware without it. tf32: matrix products and convolutions of NVIDIA GPUs only.
    precision: Literal["fp32", "bf16", "tf32"] = "fp32"
    channels_last: StrictBool = False
    compile: StrictBool = False  # torch.compile: tens of seconds at the start, then faster steps
    eval_every: PositiveInt | None = None  # steps between evaluations on test and validation; None: 40 per run
    log_every: PositiveInt | None = None  # steps over which the training error is averaged; None: 200 per run
    # Training errors in percent: the first report with a lower one gives the metric train/steps_to_<x>_pct_error.
    steps_to_error_pct: Annotated[tuple[ErrorPct, ...], AfterValidator(require_unique)] = ()
    # Layers, with all layers inside them. The mean magnitude of their gradients, the L1 norm divided by the number
    # of parameters, is reported with the training error; train/gradient_norm/<layer> is the mean over all steps.
    gradient_norms: Annotated[tuple[str, ...], AfterValidator(require_unique)] = ()

    @property
    def measurements(self) -> tuple[str, ...]:
        """Metrics that the recipe declares beside errors. That of steps is missing if the error stays above."""
        steps = map(steps_to_metric, self.steps_to_error_pct)
        return (*steps, *(GRADIENT_NORM + layer for layer in self.gradient_norms))

    @model_validator(mode="after")
    def _fits(self) -> "Train":
        if self.trainable and self.filter_rms_limit:
            raise ValueError(
                "filter_rms_limit would change layers that are not in 'trainable'; remove one of them"
            )
        last = self.lr_drops and (self.lr_drops.at or (self.lr_drops.every,))[-1]
        if last and last >= self.steps:
            raise ValueError(f"the drop at step {last} must be before step {self.steps}, the end of training")
        schedules = [key for key in ("lr_drops", "lr_end", "plateau") if getattr(self, key) is not None]
        if len(schedules) > 1:
            raise ValueError(f"give either {schedules[0]!r} or {schedules[1]!r}, not both")
        if self.lr_power != 1.0 and self.lr_end is None:
            raise ValueError("lr_power needs lr_end")
        if self.average and self.average.since >= self.steps:
            raise ValueError(f"average.since must be before step {self.steps}, the end of training")
        if self.optimizer.name == "sgd" and self.optimizer.rate_in_velocity and self.lr_end == 0:
            raise ValueError("rate_in_velocity needs a learning rate > 0 at every step, but lr_end is 0")
        if self.optimizer.name == "sdlm":
            self._fits_sdlm()
        if (self.loss.name == "map") != (self.optimizer.name == "sdlm"):
            raise ValueError("loss 'map' and optimizer 'sdlm' must be used together (LeNet-5)")
        return self

    def _fits_sdlm(self) -> None:
        """Raise ValueError for settings that LeNet-5's optimizer does not support."""
        if self.batch_size != 1:
            raise ValueError("optimizer 'sdlm' needs batch_size 1")
        unsupported = {
            f"precision {self.precision}": self.precision != "fp32",
            "warmup": self.warmup,
            "lr_end": self.lr_end is not None,
            "plateau": self.plateau,
            "start": self.start,
            "clip_norm": self.clip_norm,
            "filter_rms_limit": self.filter_rms_limit,
            "average": self.average,
            "select: val": self.select == "val",
            "gradient_norms": self.gradient_norms,
            "trainable": self.trainable,
        }
        found = [key for key, value in unsupported.items() if value]
        if found:
            raise ValueError(f"optimizer 'sdlm' does not support {' and '.join(found)}")
        if self.lr_drops and self.lr_drops.every:
            raise ValueError("optimizer 'sdlm' needs lr_drops with 'at', not 'every'")


class Recipe(FrozenModel):
    """Resolved settings of a run: everything that determines its numbers, except the seed and the code."""

    model: Model
    data: Data
    train: Train

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if self.data.boxes != (self.train.loss.name == "euclidean"):
            raise ValueError("data.boxes: true and train.loss 'euclidean' must be used together (VGG, appendix A)")
        if self.data.boxes and self.train.warmup:
            raise ValueError("train.warmup waits for a class error, which data.boxes: true does not have")
        watches = self.train.plateau is not None and self.train.plateau.watch == "val"
        if (watches or self.train.select == "val") and not self.data.holds_out:
            key = "train.plateau.watch" if watches else "train.select"
            raise ValueError(f"{key} 'val' needs held-out training images; declare their number as data.val")
        return self
