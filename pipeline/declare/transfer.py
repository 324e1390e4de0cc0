"""Transfer: a linear classifier on the features of networks that were trained on other data."""

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.declare.data_settings import ProtocolName
from pipeline.declare.fields import FrozenModel, PositiveFloat, PositiveInt, require_unique
from pipeline.declare.protocol import Protocol, parse_protocol

STAND_IN_SUFFIX = "-standin"  # of the names of generated sets, which imitate a published set

# Published sets of images of many sizes, which are read from their archives and used by transfers only.
SINGLE_LABEL_SETS = ("caltech101", "caltech256")
MULTI_LABEL_SETS = ("voc2007", "voc2012")  # an image may show objects of several classes
TRANSFER_SETS = (*SINGLE_LABEL_SETS, *MULTI_LABEL_SETS)

MEAN_AP, MEAN_CLASS_RECALL = "mean_ap_pct", "mean_class_recall_pct"  # percent; higher is better
SCORES = (MEAN_AP, MEAN_CLASS_RECALL)

SPLIT_SPREAD = "_std"  # ends the name of a metric's standard deviation over random splits

Share = Annotated[float, Field(strict=True, gt=0, lt=1)]


def published_name(data: str) -> str:
    """Return the published set that a set is, or that it imitates: "caltech101" of "caltech101-standin"."""
    return data.removesuffix(STAND_IN_SUFFIX)


def is_transfer_set(data: str) -> bool:
    """Return True for a set of TRANSFER_SETS, and for its stand-in."""
    return published_name(data) in TRANSFER_SETS


def is_score(metric: str) -> bool:
    """Return True for a metric in percent of which a higher value is better."""
    return metric.rpartition("/")[2] in SCORES


def as_tuple(value: object) -> object:
    """Return a single value as a tuple of one, and a list as it is."""
    return value if isinstance(value, list | tuple) else (value,)


class TransferSpec(FrozenModel):
    """A linear classifier on features of other data; the networks stay as they are.

    Zeiler and Fergus 2013 (arXiv:1311.2901, section 5.2) train a softmax classifier, Simonyan and Zisserman 2014
    (arXiv:1409.1556, appendix B) linear SVMs. Each seed of the variants gives one derived run.
    """

    kind: Literal["transfer"]
    # Variant, or several variants, whose features are stacked; each with its own L2 norm of 1.
    of: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1), AfterValidator(require_unique)]
    data: str  # the data set that the classifier is trained and tested on
    # Layer whose output, averaged over positions, is the feature; None: the input of the last fully connected
    # layer. The name of the fully connected layer before it stands for the same, since its activation is included.
    layer: str | None = None
    view: ProtocolName | None = None  # test protocol; features are averaged over its views at each scale
    scales: Literal["average", "stack"] = "average"  # how the features of several scales are joined
    # standardise: by the mean and deviation of each feature over the training images; l2: to an L2 norm of 1
    normalise: Literal["standardise", "l2", "none"] = "standardise"
    classifier: Literal["softmax", "svm"] = "softmax"  # svm: one against all others
    # scikit-learn's C, the inverse of the regularisation strength; several: chosen on `validation`
    c: PositiveFloat | Annotated[tuple[PositiveFloat, ...], Field(min_length=2), AfterValidator(require_unique)]
    # Training images on which C is chosen: a share of each class, drawn at random, or a part of the set. The
    # classifier is then trained on all training images.
    validation: Share | str | None = None
    train_parts: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(require_unique)] = ("train",)
    test_part: str = "test"
    # Random splits into training and test images, of a set without parts; None: the set's own parts. Metrics are
    # means over the splits, and <metric>_std is their standard deviation.
    splits: PositiveInt | None = None
    # Training images of each class and split; several numbers: metrics are test/<number>-per-class/...
    train_per_class: (
        PositiveInt
        | Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(require_unique)]
        | None
    ) = None
    test_per_class: PositiveInt | None = None  # at most so many test images of each class; None: all others

    @property
    def consumes(self) -> dict[str, int]:
        """Return variant -> number of its runs that are consumed."""
        return dict.fromkeys(self.of, 1)

    @property
    def candidates(self) -> tuple[float, ...]:
        """Return the values of C, one or several, ascending."""
        return tuple(sorted(self.c)) if isinstance(self.c, tuple) else (self.c,)

    @property
    def has_several_labels(self) -> bool:
        """Return True if an image of `data` may be of several classes."""
        return published_name(self.data) in MULTI_LABEL_SETS

    @property
    def sizes(self) -> dict[str, int | None]:
        """Return place of metrics -> training images of each class; None for all: {"test": None}."""
        if isinstance(self.train_per_class, tuple):
            return {f"test/{number}-per-class": number for number in self.train_per_class}
        return {"test": self.train_per_class}

    @property
    def measures(self) -> tuple[str, ...]:
        """Return the names of the metrics at each of `sizes`, without the number of images."""
        if self.has_several_labels:
            return (MEAN_AP,)
        loss = ("loss",) if self.classifier == "softmax" else ()
        return ("top1_error_pct", "top5_error_pct", *loss, "mean_class_error_pct", MEAN_CLASS_RECALL)

    def metrics(self) -> list[str]:
        """Return the names of its metrics."""
        ends = ("", SPLIT_SPREAD) if (self.splits or 1) > 1 else ("",)
        found = [f"{place}/{measure}{end}" for place in self.sizes for measure in self.measures for end in ends]
        found += [f"{place}/images" for place in self.sizes]
        return [*found, "features", *(("iterations",) if self.classifier == "softmax" else ())]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if isinstance(self.c, tuple) and self.validation is None:
            raise ValueError("several values of 'c' need 'validation', the training images on which one is chosen")
        if self.validation is not None and not isinstance(self.c, tuple):
            raise ValueError("'validation' chooses among several values of 'c', but there is only one")
        if isinstance(self.validation, str) and self.validation not in self.train_parts:
            raise ValueError(
                f"'validation' {self.validation!r} should be one of 'train_parts', or a share of them"
            )
        if self.test_part in self.train_parts:
            raise ValueError(f"'test_part' {self.test_part!r} is one of 'train_parts'")
        if self.scales == "stack" and (not self.view or len(single_scales(parse_protocol(self.view))) < 2):
            raise ValueError("'scales: stack' needs a 'view' at several short sides, such as dense-of-256-384")
        if len(self.of) > 1 and self.normalise != "l2":
            raise ValueError("stacked features of several variants need 'normalise: l2'")
        if self.layer and not self.view:
            raise ValueError(
                "'layer' needs a 'view'; without one, features are those of the last fully connected layer"
            )
        self._fits_splits()
        self._fits_data()
        return self

    def _fits_splits(self) -> None:
        """Raise ValueError for settings of random splits that do not fit each other."""
        if bool(self.splits) != (self.train_per_class is not None):
            raise ValueError("'splits' and 'train_per_class' must be used together")
        if self.test_per_class and not self.splits:
            raise ValueError("'test_per_class' needs 'splits'")
        if self.splits and isinstance(self.validation, str):
            raise ValueError("with 'splits', 'validation' should be a share of the training images, not a part")
        if self.splits and {"train_parts", "test_part"} & self.model_fields_set:
            raise ValueError("'splits' draws training and test images; remove 'train_parts' and 'test_part'")

    def _fits_data(self) -> None:
        """Raise ValueError for settings that do not fit a published set."""
        if is_transfer_set(self.data) and not self.view:
            raise ValueError(f"{self.data} has images of many sizes, so it needs a 'view', such as dense-of-256")
        if self.has_several_labels and self.splits:
            raise ValueError(f"{self.data} has parts of its own; remove 'splits' and 'train_per_class'")
        if published_name(self.data) in SINGLE_LABEL_SETS and not self.splits:
            raise ValueError(f"{self.data} has no parts; give 'splits' and 'train_per_class'")
        if self.data == "voc2012" and self.test_part == "test":
            raise ValueError("voc2012: the labels of its test part are not published; use 'test_part: val'")


def single_scales(protocol: Protocol) -> list[Protocol]:
    """Return one protocol for each part and short side of a protocol."""
    return [
        Protocol(protocol.name, (replace(part, shorts=(short,)),))
        for part in protocol.parts
        for short in part.shorts
    ]
