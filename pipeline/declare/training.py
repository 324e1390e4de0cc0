"""The settings `train` of a recipe: optimizers, losses, schedules, and what a run measures beside errors."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.declare.fields import (
    ErrorPct,
    FrozenModel,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    StrictBool,
    require_unique,
)

# What a run costs. These differ between machines, so they are kept apart from its metrics.
COST_METRICS = ("train/seconds", "train/images_per_second", "train/peak_memory_mib")

STEPS_TO = "train/steps_to_"  # and an error: see `steps_to_metric`

GRADIENT_NORM = "train/gradient_norm/"  # and the name of a layer: the mean magnitude of its gradient

# Of optimizer sdlm: the smallest and the largest step size of a parameter in the first pass over the training set.
FIRST_PASS_STEPS = ("train/first_pass_smallest_step", "train/first_pass_largest_step")


def column_metric(column: int) -> str:
    """Return "train/column-4/loss", the training loss of a FractalNet's column 4 when it is trained alone."""
    return f"train/column-{column}/loss"


def steps_to_metric(error_pct: float) -> str:
    """Return "train/steps_to_25_pct_error", the steps until the training error is below `error_pct` 25."""
    return f"{STEPS_TO}{error_pct:.15g}_pct_error"


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
    divided_by: PositiveFloat  # divisor of the loss, which scales it relative to mu; 1: eq. 9 as printed


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
    # Columns of a FractalNet, from 1, the shallowest. The mean loss of the mini-batches that train one of them
    # alone is reported with the training error, as train/column-<column>/loss.
    column_losses: Annotated[tuple[PositiveInt, ...], AfterValidator(require_unique)] = ()

    @property
    def measurements(self) -> tuple[str, ...]:
        """Metrics that the recipe declares beside errors. That of steps is missing if the error stays above."""
        steps = map(steps_to_metric, self.steps_to_error_pct)
        norms = (GRADIENT_NORM + layer for layer in self.gradient_norms)
        sizes = FIRST_PASS_STEPS if self.optimizer.name == "sdlm" else ()
        return (*steps, *norms, *map(column_metric, self.column_losses), *sizes)

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
            "column_losses": self.column_losses,
            "trainable": self.trainable,
        }
        found = [key for key, value in unsupported.items() if value]
        if found:
            raise ValueError(f"optimizer 'sdlm' does not support {' and '.join(found)}")
        if self.lr_drops and self.lr_drops.every:
            raise ValueError("optimizer 'sdlm' needs lr_drops with 'at', not 'every'")
