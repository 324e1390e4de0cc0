"""Derived runs: results made from finished runs (ensemble, protocol, transfer, compression)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.declare.protocol import read_protocol
from pipeline.declare.recipe import Bits, Count, Data, Frozen, Positive, ProtocolName, different

# What is measured of images judged, of batches trained on, and of a compression's file, under these names.
ERRORS = ("top1_error_pct", "top5_error_pct", "loss", "images")

TRANSFERRED = ("test/mean_class_error_pct", "features", "iterations")

PARTS = ("codebook_", "table_", "indices_", "positions_", "other_", "header_", "original_", "")

COMPRESSED = (*(f"compressed/{part}bytes" for part in PARTS), "compressed/stored_weights", "compressed/ratio")


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
