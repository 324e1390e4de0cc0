"""Derived runs: results made from finished runs (ensemble, protocol, transfer, compression)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.declare.protocol import parse_protocol
from pipeline.declare.recipe import (
    BitWidth,
    Data,
    FrozenModel,
    PositiveFloat,
    PositiveInt,
    ProtocolName,
    require_unique,
)

# Names of the metrics that each kind of evaluation records.
ERROR_METRICS = ("top1_error_pct", "top5_error_pct", "loss", "images")

TRANSFER_METRICS = ("test/mean_class_error_pct", "features", "iterations")

COMPRESSED_PARTS = ("codebook_", "table_", "indices_", "positions_", "other_", "header_", "original_", "")

COMPRESSION_METRICS = (
    *(f"compressed/{part}bytes" for part in COMPRESSED_PARTS),
    "compressed/stored_weights",
    "compressed/ratio",
)


# Weights of the members: the last, or their average over training. A recipe that selects a network by its
# validation error has the selected weights in place of the last.
Weights = Literal["last", "average"]


class EnsembleSpec(FrozenModel):
    """An ensemble: the mean of the softmax outputs of several networks."""

    kind: Literal["ensemble"]
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
    def _fits(self) -> "EnsembleSpec":
        if sum(self.members.values()) < 2:
            raise ValueError("an ensemble needs at least 2 networks")
        return self


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


class TransferSpec(SingleRunSpec):
    """A transfer probe: a linear classifier on the input features of a network's last fully connected layer."""

    kind: Literal["transfer"]
    data: str  # the data set that the classifier is trained and tested on
    c: PositiveFloat  # scikit-learn's C, the inverse of the regularisation strength
    view: ProtocolName | None = None  # test protocol of a single crop, from which features are computed

    @model_validator(mode="after")
    def _fits(self) -> "TransferSpec":
        if self.view and (parse_protocol(self.view).views > 1 or self.view.startswith("dense")):
            raise ValueError(f"'view' should be a single crop, such as 1-crop-224-of-256, not {self.view}")
        return self


class CompressionSpec(SingleRunSpec):
    """Deep Compression of a run's network without retraining (Han et al. 2016, arXiv:1510.00149)."""

    kind: Literal["compression"]
    density: Annotated[PositiveFloat, Field(le=1)]  # fraction of each layer's weights to keep, the largest ones
    conv_bits: BitWidth  # bits of a codebook index in convolutions
    fc_bits: BitWidth  # bits of a codebook index in fully connected layers


DerivedSpec = EnsembleSpec | ProtocolSpec | TransferSpec | CompressionSpec


def incompatibility(spec: DerivedSpec, datas: Sequence[Data]) -> str:
    """Return the reason why a derived run cannot consume runs with these data; "" if it can."""
    first = datas[0]
    has_crop = first.crop is not None
    protocols = (spec.view,) if isinstance(spec, TransferSpec) else getattr(spec, "test", ())
    if any(protocols) and not has_crop:
        return "test protocols need runs whose data has a 'crop'"
    if isinstance(spec, TransferSpec) and has_crop and not spec.view:
        return "a transfer from runs whose data has a 'crop' needs a 'view', such as 1-crop-224-of-256"
    if len({(data.name, data.crop is not None) for data in datas}) > 1:
        return "its runs train on different data"
    if has_crop and not any(protocols) and len({data.test for data in datas}) > 1:
        return "its runs are evaluated by different test protocols; name one of them in 'test'"
    if not has_crop and len({(data.normalise, data.pad_to, data.train, data.val) for data in datas}) > 1:
        return f"its runs differ in how they use {first.name}: normalise, pad_to, train or val"
    return ""
