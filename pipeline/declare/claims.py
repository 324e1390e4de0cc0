"""Claims: statements of a paper or of the lecture (Stanford CS231n, lecture 9); choices and departures."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.declare.fields import (
    FrozenModel,
    NonNegativeFloat,
    PositiveFloat,
    Statistic,
    StrictBool,
    StrictFloat,
    StrictInt,
    Value,
)


class Deviation(FrozenModel):
    """A setting that is not the paper's, with the reason."""

    what: str
    why: str
    material: StrictBool = False  # it could change the measured numbers
    of: tuple[str, ...] = ()  # variants and derived runs that it concerns; empty: all


class Choice(Deviation):
    """A setting that the source leaves open, and what we chose."""


class Departure(Deviation):
    """A setting that differs from what the source says."""


class NotClaimed(FrozenModel):
    """Printed rows (see `pipeline.declare.printed`) that have no claim, with the reason."""

    rows: Annotated[tuple[str, ...], Field(min_length=1)]  # "Table 3: NETWORK", "Table 3", or an id
    why: str


class BaseClaim(FrozenModel):
    """Fields of every claim."""

    id: str
    says: str  # the statement, in one sentence
    source: str  # table, figure or section
    by: Literal["paper", "lecture"] = "paper"
    confidence: Literal["checked", "memory", "figure"] = "checked"  # how the claimed number was read


class ExactClaim(BaseClaim):
    """A shape, count or setting: judged by arithmetic on the network or the recipe, without training.

    With `over` or `over_metric` the claim is about a ratio: `metric` of `of`, divided by `over_metric` of `over`.
    Of the two, the one left out defaults to `metric` or `of`.
    """

    kind: Literal["exact"]
    of: str | None = None  # variant; None only with printed/… metrics
    metric: str  # model/… of the network, recipe/… of the recipe, printed/… of the values in `printed`
    over: str | None = None  # variant
    over_metric: str | None = None
    op: Literal["=", "<", ">", "<=", ">="] = "="  # "=": equal within the margin
    claimed: Value
    margin: NonNegativeFloat = 0.0
    corrected: Value = None  # the correct value, where the source is wrong
    rule: str = ""  # counting rule, such as "without biases"

    @model_validator(mode="after")
    def _fits(self) -> "ExactClaim":
        for metric, variant in ((self.metric, self.of), (self.over_metric or self.metric, self.over or self.of)):
            if variant is None and not metric.startswith("printed/"):
                raise ValueError(f"{metric!r} needs 'of', the variant it is measured on")
        if self.op != "=" and self.margin:
            raise ValueError(f"op {self.op!r} takes no margin")
        if self.op != "=" and not isinstance(self.claimed, int | float):
            raise ValueError(f"op {self.op!r} needs a number as 'claimed', not {self.claimed!r}")
        if self.corrected is not None and self.corrected == self.claimed and self.op == "=":
            raise ValueError("'corrected' is equal to 'claimed'; remove it")
        return self


class MetricClaim(BaseClaim):
    """A metric of trained networks: equivalence test of the mean over seeds (or expected best) within a margin."""

    kind: Literal["metric"]
    of: str
    metric: str
    claimed: StrictFloat
    margin: PositiveFloat
    statistic: Statistic = "mean"  # or "median of N", "best of N"
    protocol: str = "single view, last model"


class BoundClaim(BaseClaim):
    """A metric of trained networks is below or above a bound."""

    kind: Literal["bound"]
    of: str
    metric: str
    op: Literal["<", ">"]
    claimed: StrictFloat
    protocol: str = "single view, last model"


class OrderingClaim(BaseClaim):
    """`lhs` is larger than `rhs` (>), smaller (<), not larger by the margin (<=) or equal within it (~).

    Runs are paired by seed. With `rhs_metric`, both sides may be the same variant under two test protocols.
    """

    kind: Literal["ordering"]
    lhs: str
    op: Literal["<", ">", "<=", "~"]
    rhs: str
    metric: str
    rhs_metric: str | None = None  # metric of `rhs`; None: the same as of `lhs`
    margin: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _fits(self) -> "OrderingClaim":
        if (self.lhs, self.metric) == (self.rhs, self.rhs_metric or self.metric):
            raise ValueError(f"{self.lhs!r} is compared with itself; give another variant or 'rhs_metric'")
        if self.op in ("<=", "~") and not self.margin:
            raise ValueError(f"op {self.op!r} needs a margin > 0")
        return self


class RatioClaim(BaseClaim):
    """The ratio lhs / rhs of a metric of trained networks, paired by seed: a number, or below or above it."""

    kind: Literal["ratio"]
    lhs: str
    rhs: str
    metric: str
    op: Literal["=", "<", ">"] = "="  # "=": equal within the margin
    claimed: PositiveFloat
    margin: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _fits(self) -> "RatioClaim":
        if self.op != "=":
            if self.margin:
                raise ValueError(f"op {self.op!r} takes no margin")
        elif not 0 < self.margin < self.claimed:
            raise ValueError(f"the margin of a ratio must be > 0 and less than the claimed {self.claimed:g}")
        return self


class GainClaim(BaseClaim):
    """The metric of `lhs` is lower than that of `rhs` by `claimed`, in the metric's unit, paired by seed."""

    kind: Literal["gain"]
    lhs: str
    rhs: str
    metric: str
    rhs_metric: str | None = None  # metric of `rhs`; None: the same as of `lhs`
    claimed: PositiveFloat
    margin: PositiveFloat

    @model_validator(mode="after")
    def _fits(self) -> "GainClaim":
        if (self.lhs, self.metric) == (self.rhs, self.rhs_metric or self.metric):
            raise ValueError(f"{self.lhs!r} is compared with itself; give another variant or 'rhs_metric'")
        return self


class OpenClaim(BaseClaim):
    """A statement that no run can decide, with the reason."""

    kind: Literal["open"]
    reason: Literal["no-data", "no-labels", "protocol-unspecified", "over-budget"]
    why: str


Claim = ExactClaim | MetricClaim | BoundClaim | OrderingClaim | GainClaim | RatioClaim | OpenClaim


class Paper(FrozenModel):
    """The publication that an experiment reproduces."""

    title: str
    authors: str
    year: StrictInt
    arxiv: str | None = None
    section: str


class Printed(FrozenModel):
    """A value that the paper prints. Claims of the lecture are compared with it."""

    value: Value
    where: str  # table, figure or section
    confidence: Literal["checked", "memory", "figure"] = "checked"
