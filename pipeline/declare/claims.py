"""Claims: statements of a paper or of the lecture, with source, protocol and margin."""

from typing import Literal

from pydantic import model_validator

from pipeline.declare.recipe import (
    FrozenModel,
    NonNegativeFloat,
    PositiveFloat,
    Statistic,
    StrictBool,
    StrictFloat,
    StrictInt,
    Value,
)


class Departure(FrozenModel):
    """Something done otherwise than the paper says."""

    what: str
    why: str
    material: StrictBool = (
        False  # true: trained numbers are no longer the paper's, and are judged as a trend at most
    )


class BaseClaim(FrozenModel):
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
    margin: NonNegativeFloat = 0.0
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
    claimed: StrictFloat
    margin: PositiveFloat
    statistic: Statistic = "mean"  # or "best of N"
    protocol: str = "single view, last model"


class BoundClaim(BaseClaim):
    """A trained network's number lies below or above a bound."""

    kind: Literal["bound"]
    of: str
    metric: str
    op: Literal["<", ">"]
    claimed: StrictFloat
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
    margin: NonNegativeFloat = 0.0

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
    claimed: PositiveFloat
    margin: PositiveFloat

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


class Paper(FrozenModel):
    """The publication an experiment belongs to."""

    title: str
    authors: str
    year: StrictInt
    arxiv: str | None = None
    section: str


class Printed(FrozenModel):
    """Something that the paper itself prints, for claims (the lecture's, usually) that are compared with it."""

    value: Value
    where: str  # table, figure or section
    confidence: Literal["checked", "memory", "figure"] = "checked"
