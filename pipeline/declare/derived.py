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

# What is measured of images judged, of batches trained on, and of a compression's file, under these names.
ERROR_METRICS = ("top1_error_pct", "top5_error_pct", "loss", "images")

TRANSFER_METRICS = ("test/mean_class_error_pct", "features", "iterations")

COMPRESSED_PARTS = ("codebook_", "table_", "indices_", "positions_", "other_", "header_", "original_", "")

COMPRESSION_METRICS = (
    *(f"compressed/{part}bytes" for part in COMPRESSED_PARTS),
    "compressed/stored_weights",
    "compressed/ratio",
)


class EnsembleSpec(FrozenModel):
    """Several networks as one: the mean of their soft-max answers."""

    kind: Literal["ensemble"]
    members: Annotated[
        dict[str, PositiveInt], Field(min_length=1)
    ]  # variant -> networks of it, each with its own seed
    test: Annotated[
        tuple[ProtocolName, ...], AfterValidator(require_unique)
    ] = ()  # none: as its members are judged

    @property
    def consumes(self) -> dict[str, int]:
        """Variant -> how many runs of it."""
        return dict(self.members)

    @model_validator(mode="after")
    def _fits(self) -> "EnsembleSpec":
        if sum(self.members.values()) < 2:
            raise ValueError("an ensemble has at least two networks")
        return self


class SingleRunSpec(FrozenModel):
    """A step that looks at one run; there is one for each seed."""

    of: str  # variant

    @property
    def consumes(self) -> dict[str, int]:
        """Variant -> how many runs of it."""
        return {self.of: 1}


class ProtocolSpec(SingleRunSpec):
    """A run judged by other test protocols than it was when it ended; of photographs."""

    kind: Literal["protocol"]
    test: Annotated[tuple[ProtocolName, ...], Field(min_length=1), AfterValidator(require_unique)]


class TransferSpec(SingleRunSpec):
    """A linear classifier, learnt on another set, of the features below a run's last full connection."""

    kind: Literal["transfer"]
    data: str  # the other set: its training part is learnt from, its test part judges
    c: PositiveFloat  # scikit-learn's C: the smaller, the smaller the weights
    view: ProtocolName | None = None  # the one view of a photograph that features are taken from

    @model_validator(mode="after")
    def _fits(self) -> "TransferSpec":
        if self.view and (parse_protocol(self.view).views > 1 or self.view.startswith("dense")):
            raise ValueError(f"'view' should be a single crop, such as 1-crop-224-of-256, not {self.view}")
        return self


class CompressionSpec(SingleRunSpec):
    """Deep Compression of a run's network without retraining (Han et al. 2016, arXiv:1510.00149)."""

    kind: Literal["compression"]
    density: Annotated[PositiveFloat, Field(le=1)]  # share of each layer's weights that is kept, the largest ones
    conv_bits: BitWidth  # of a shared weight's number, in convolutions
    fc_bits: BitWidth  # and in full connections


DerivedSpec = EnsembleSpec | ProtocolSpec | TransferSpec | CompressionSpec


def incompatibility(step: DerivedSpec, datas: Sequence[Data]) -> str:
    """Why a step cannot look at runs of these data; "" if it can."""
    first, photographs = datas[0], datas[0].crop is not None
    protocols = (step.view,) if isinstance(step, TransferSpec) else getattr(step, "test", ())
    if any(protocols) and not photographs:
        return "test protocols are for photographs, and its runs learn from small images, shown whole"
    if isinstance(step, ProtocolSpec) and not photographs:
        return "other test protocols are for photographs"
    if isinstance(step, TransferSpec) and photographs and not step.view:
        return "features of photographs need a 'view', such as 1-crop-224-of-256"
    if len({(data.name, data.crop is not None) for data in datas}) > 1:
        return "its runs learn from different data"
    if photographs and not any(protocols) and len({data.test for data in datas}) > 1:
        return "its runs are judged by different protocols; say in 'test' which are meant"
    seen = {(data.normalise, data.pad_to, data.train, data.val) for data in datas}
    if not photographs and len(seen) > 1:
        return f"its runs are shown {first.name} in different ways"
    return ""
