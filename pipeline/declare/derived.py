"""Derived runs: results made from finished runs, such as ensembles, test protocols and localisation.

A timing is made from untrained networks instead.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.declare.data_settings import Data, ProtocolName
from pipeline.declare.fields import (
    BitWidth,
    FrozenModel,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    StrictBool,
    require_unique,
)
from pipeline.declare.localisation import LocalisationSpec, localisation_incompatibility
from pipeline.declare.training import Train
from pipeline.declare.transfer import TransferSpec, is_transfer_set

# Names of the metrics that each kind of evaluation records.
ERROR_METRICS = ("top1_error_pct", "top5_error_pct", "loss", "images")

COMPRESSED_PARTS = ("codebook_", "table_", "indices_", "positions_", "other_", "header_", "original_", "")

# Size of the network divided by that after pruning, after weight sharing, and of the file; higher is better.
COMPRESSION_RATIOS = ("compressed/pruned_ratio", "compressed/quantised_ratio", "compressed/ratio")

COMPRESSION_METRICS = (
    *(f"compressed/{part}bytes" for part in COMPRESSED_PARTS),
    "compressed/stored_weights",
    "compressed/density",
    *COMPRESSION_RATIOS,
)


# Weights of the members: the last, or their average over training. A recipe that selects a network by its
# validation error has the selected weights in place of the last.
Weights = Literal["last", "average"]

Density = Annotated[PositiveFloat, Field(le=1)]

# Metrics of ensembles of one size: the mean over the ensembles, and their standard deviation, whose name ends in
# SPREAD. Their number of images is that of all members' ensemble.
SIZE_METRICS = ("top1_error_pct", "top5_error_pct", "loss")

SPREAD = "_std"

GREEDY = "greedy"  # in names of metrics: the ensemble chosen on the validation images

GREEDY_NETWORKS = f"{GREEDY}/networks"  # the number of its networks


BY_MEMBER = "by-member"  # in names of metrics, in place of a test protocol: each network by its own


def size_name(size: int) -> str:
    """Return an ensemble size in names of metrics: "of-3"."""
    return f"of-{size}"


def check_column(column: object) -> object:
    """Return `column`. Raises ValueError if it is not the number of a column, or "deepest"."""
    if column != "deepest" and (not isinstance(column, int) or isinstance(column, bool) or column < 1):
        raise ValueError(f"should be a column's number, from 1 for the shallowest, or 'deepest', not {column!r}")
    return column


ColumnNumber = Annotated[int | Literal["deepest"], BeforeValidator(check_column)]


class AveragedRunsSpec(FrozenModel):
    """Fields of derived runs that average the softmax outputs of several networks."""

    # Variant -> number of its networks, each with its own seed.
    members: Annotated[dict[str, PositiveInt], Field(min_length=1)]
    # Test protocols; empty: those of the members.
    test: Annotated[tuple[ProtocolName, ...], AfterValidator(require_unique)] = ()
    weights: Weights = "last"

    @property
    def consumes(self) -> dict[str, int]:
        """Return variant -> number of its runs that are consumed."""
        return dict(self.members)

    @model_validator(mode="after")
    def _has_several(self) -> Self:
        if sum(self.members.values()) < 2:
            raise ValueError("an ensemble needs at least 2 networks")
        return self


class EnsembleSpec(AveragedRunsSpec):
    """An ensemble: the mean of the softmax outputs of several networks."""

    kind: Literal["ensemble"]
    # Member -> its own test protocol, in place of `test`: for networks that were trained at different scales.
    member_test: dict[str, ProtocolName] = Field(default_factory=dict)

    @property
    def protocol_of_each(self) -> tuple[str, ...]:
        """Return the test protocol of each network, in the order of the derived run's members; () without any."""
        if not self.member_test:
            return ()
        return tuple(self.member_test[name] for name in sorted(self.members) for _ in range(self.members[name]))

    @model_validator(mode="after")
    def _tests_each(self) -> Self:
        if self.member_test and self.test:
            raise ValueError("give either 'test', for all members, or 'member_test', for each its own")
        if self.member_test and (wrong := set(self.member_test) ^ set(self.members)):
            raise ValueError(
                f"'member_test' and 'members' should have the same names; {min(wrong)} is only in one"
            )
        return self


class EnsembleSizesSpec(AveragedRunsSpec):
    """Error against the number of networks: mean and spread over the ensembles of each size among the members."""

    kind: Literal["ensemble-sizes"]
    # Numbers of networks; empty: each from 1 to that of all members.
    sizes: Annotated[tuple[PositiveInt, ...], AfterValidator(require_unique)] = ()
    # Number of ensembles of a size: all that exist, if these are no more, else as many random ones, all different.
    choices: PositiveInt = 100
    # Also an ensemble of any size, put together one network at a time by its error on the validation images.
    greedy: StrictBool = False

    @property
    def measured_sizes(self) -> tuple[int, ...]:
        """Return the numbers of networks, ascending."""
        return tuple(sorted(self.sizes)) or tuple(range(1, sum(self.members.values()) + 1))

    @model_validator(mode="after")
    def _has_enough(self) -> Self:
        largest, count = max(self.sizes, default=1), sum(self.members.values())
        if largest > count:
            raise ValueError(f"'sizes' has an ensemble of {largest} networks, but 'members' has {count}")
        return self

    def metrics(self, protocols: Sequence[str]) -> list[str]:
        """Return the names of its metrics beside those of all members' ensemble.

        `protocols` are parts of names: "/dense-of-256", or "" for the first protocol's short names.
        """
        found = [
            f"test{by}/{size_name(size)}/{error}{end}"
            for by in protocols
            for size in self.measured_sizes
            for error in SIZE_METRICS
            for end in ("", SPREAD)
        ]
        if self.greedy:
            of_val = [by for by in protocols if by in ("", protocols[0])]
            places = [*(f"test{by}" for by in protocols), *(f"val{by}" for by in of_val)]
            found += [f"{place}/{GREEDY}/{error}" for place in places for error in ERROR_METRICS]
            found.append(GREEDY_NETWORKS)
        return found


class SingleRunSpec(FrozenModel):
    """Fields of derived runs that consume a single run. Each seed of the variant gives one derived run."""

    of: str  # variant

    @property
    def consumes(self) -> dict[str, int]:
        """Return variant -> number of its runs that are consumed."""
        return {self.of: 1}


class ProtocolSpec(SingleRunSpec):
    """Evaluation of a finished run by other test protocols; for data with a crop."""

    kind: Literal["protocol"]
    test: Annotated[tuple[ProtocolName, ...], Field(min_length=1), AfterValidator(require_unique)]
    weights: Weights = "last"


class ColumnSpec(SingleRunSpec):
    """One column of a FractalNet, evaluated as a network of its own (Larsson et al. 2016, arXiv:1605.07648).

    It keeps the run's weights and batch-norm statistics.
    """

    kind: Literal["column"]
    column: ColumnNumber  # from 1, the shallowest, as in the paper's Table 4
    # Test protocols; empty: those of the run.
    test: Annotated[tuple[ProtocolName, ...], AfterValidator(require_unique)] = ()
    weights: Weights = "last"


class Retraining(FrozenModel):
    """Training of a pruned or quantised network, with the data, the loss and the optimizer of the run."""

    steps: PositiveInt  # optimizer steps
    lr: PositiveFloat  # learning rate of the first step
    lr_end: NonNegativeFloat | None = None  # linear decay to this rate; None: constant
    batch_size: PositiveInt | None = None  # None: the run's


class CompressionSpec(SingleRunSpec):
    """Deep Compression of a run's network (Han et al. 2016, arXiv:1510.00149)."""

    kind: Literal["compression"]
    # Fraction of each layer's weights to keep, the largest ones; or layer -> fraction. The name of a module stands
    # for all layers inside it.
    density: Density | Annotated[dict[str, Density], Field(min_length=1)]
    conv_bits: BitWidth  # bits of a codebook index in convolutions
    fc_bits: BitWidth  # bits of a codebook index in fully connected layers
    bits: dict[str, BitWidth] = Field(default_factory=dict)  # layer -> bits of a codebook index in it
    conv_index_bits: BitWidth = 8  # bits of the distance between two stored weights in convolutions
    fc_index_bits: BitWidth = 5  # and in fully connected layers
    prunings: PositiveInt = 1  # number of prunings, each with its training; densities fall by a constant factor
    retrain: Retraining | None = None  # training of the remaining weights after each pruning
    tune: Retraining | None = None  # training of the shared values

    @model_validator(mode="after")
    def _fits(self) -> "CompressionSpec":
        if self.prunings > 1 and not self.retrain:
            raise ValueError("'prunings' > 1 needs 'retrain', the training after each pruning")
        return self


RANDOM_PIXELS = "random pixels"  # the data of a timing

# Ends of the names of metrics that GPUs alone measure.
DEVICE_METRICS = ("memory_mib", "watts", "joules_per_image", "rank_correlation", "relative_spread")

PASS_METRICS = ("seconds_per_image", "memory_mib", "watts", "joules_per_image")  # of a network at a batch size


class TimingSpec(FrozenModel):
    """Forward passes of untrained networks on random pixels: times, and on GPUs memory and power.

    It consumes no runs. Each seed is a measurement of all networks, with other weights and pixels.
    """

    kind: Literal["timing"]
    networks: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(require_unique)]  # variants
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(require_unique)]
    repeats: PositiveInt = (
        7  # passes of a network at a batch size, after one that does not count; the median counts
    )
    # Network -> published accuracy in percent, for the fits of accuracy against time; empty: no such fits.
    accuracies: dict[str, PositiveFloat] = Field(default_factory=dict)

    @property
    def consumes(self) -> dict[str, int]:
        """Return an empty map: no runs are consumed."""
        return {}

    @property
    def test(self) -> tuple[ProtocolName, ...]:
        """Return no test protocols: no image is classified."""
        return ()

    @property
    def rated(self) -> list[str]:
        """Return the networks with a published accuracy."""
        return [name for name in self.networks if name in self.accuracies]

    def metrics(self) -> list[str]:
        """Return the names of its metrics, with those that only some devices measure."""
        found = [f"{name}/batch-{size}/{metric}" for name in self.networks for size in self.batch_sizes
                 for metric in PASS_METRICS]  # fmt: skip
        if len(self.batch_sizes) > 1:
            found += [f"{name}/batch_gain" for name in self.networks]
        fits = ("operations", "hyperbola", "line") if self.accuracies else ("operations",)
        found += [f"fit/batch-{size}/{fit}/r_squared" for size in self.batch_sizes for fit in fits]
        if self.accuracies:
            found += [f"energy/batch-{size}/rank_correlation" for size in self.batch_sizes]
        return [*found, "power/relative_spread"]


DerivedSpec = (
    EnsembleSpec
    | EnsembleSizesSpec
    | ProtocolSpec
    | ColumnSpec
    | TransferSpec
    | CompressionSpec
    | LocalisationSpec
    | TimingSpec
)


def untrainable(spec: DerivedSpec, train: Train) -> str:
    """Return the reason why a compression cannot train the network of a run further; "" if it can."""
    if not isinstance(spec, CompressionSpec) or not (spec.retrain or spec.tune):
        return ""
    if train.optimizer.name == "sdlm":
        return "'retrain' and 'tune' do not support optimizer 'sdlm'"
    if train.loss.name == "cross-entropy" and train.loss.smoothing:
        return "'retrain' and 'tune' do not support train.loss.smoothing"
    if train.filter_rms_limit:
        return "'retrain' and 'tune' do not support train.filter_rms_limit"
    in_velocity = train.optimizer.name == "sgd" and train.optimizer.rate_in_velocity
    if in_velocity and any(stage and stage.lr_end == 0 for stage in (spec.retrain, spec.tune)):
        return "rate_in_velocity needs a learning rate > 0 at every step, but lr_end is 0"
    return ""


def incompatibility(spec: DerivedSpec, datas: Sequence[Data]) -> str:
    """Return the reason why a derived run cannot consume runs with these data; "" if it can."""
    if isinstance(spec, LocalisationSpec):
        return localisation_incompatibility(spec, datas)
    if any(data.boxes for data in datas):
        return "networks that predict bounding boxes can be consumed by a derived run of kind localisation only"
    first = datas[0]
    has_crop = first.crop is not None
    protocols = (spec.view,) if isinstance(spec, TransferSpec) else getattr(spec, "test", ())
    protocols = protocols or getattr(spec, "protocol_of_each", ())
    if isinstance(spec, TransferSpec) and is_transfer_set(spec.data) and not has_crop:
        return f"{spec.data} has images of many sizes, so it needs runs whose data has a 'crop'"
    if any(protocols) and not has_crop:
        return "test protocols need runs whose data has a 'crop'"
    if isinstance(spec, TransferSpec) and has_crop and not spec.view:
        return "a transfer from runs whose data has a 'crop' needs a 'view', such as 1-crop-224-of-256"
    if len({(data.name, data.crop is not None) for data in datas}) > 1:
        return "its runs train on different data"
    if has_crop and not any(protocols) and len({data.test for data in datas}) > 1:
        return "its runs are evaluated by different test protocols; name one of them in 'test'"
    if isinstance(spec, EnsembleSizesSpec) and spec.greedy:
        if not all(data.holds_out for data in datas):
            return "a greedy ensemble is chosen on validation images, but not all of its runs hold some out"
        if len({(data.val, data.val_per_class) for data in datas}) > 1:
            return "a greedy ensemble is chosen on validation images, but its runs hold out different ones"
    uses = {(data.normalise, data.pad_to, data.train, data.val, data.val_per_class) for data in datas}
    if not has_crop and len(uses) > 1:
        return f"its runs differ in how they use {first.name}: normalise, pad_to, train, val or val_per_class"
    return ""
