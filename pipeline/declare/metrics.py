"""Metrics that the runs of an experiment record: the names that claims may use."""

from pipeline.declare.derived import (
    COMPRESSION_METRICS,
    ERROR_METRICS,
    ColumnSpec,
    CompressionSpec,
    EnsembleSizesSpec,
    TimingSpec,
)
from pipeline.declare.experiment import Experiment
from pipeline.declare.localisation import BOX_METRICS, LOCALISATION_METRICS, LocalisationSpec
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.declare.transfer import TransferSpec

TRAIN_METRICS = ("top1_error_pct", "top5_error_pct", "loss")

BOX_TRAIN_METRICS = ("localisation_error_pct", "loss")


def metric_names(experiment: Experiment, name: str, *, named: bool) -> list[str]:
    """Return the names of the metrics that a variant or derived run has at paper scale, without COST_METRICS.

    With test protocols, each error is measured by each protocol: "test/dense-of-256/top1_error_pct". Unless
    `named`, the list also has the first protocol's errors under their short names: "test/top1_error_pct".
    """
    spec = experiment.derived.get(name)
    if isinstance(spec, LocalisationSpec):
        return list(LOCALISATION_METRICS)
    if isinstance(spec, TimingSpec):
        return spec.metrics()
    recipe = experiment.recipe(name if spec is None else next(iter(spec.consumes)), PAPER_SCALE)
    data = recipe.data
    protocols = [f"/{protocol}" for protocol in experiment.protocols(name, PAPER_SCALE)] if data.crop else []
    protocols += [] if named and protocols else [""]
    more: tuple[str, ...] = ()
    measured = BOX_METRICS if data.boxes else ERROR_METRICS
    if spec is None:
        parts = ["test", "val"] if data.holds_out else ["test"]
        in_training = BOX_TRAIN_METRICS if data.boxes else TRAIN_METRICS
        more = (*(f"train/{error}" for error in in_training), *recipe.train.measurements)
        if not data.crop:
            more += ("test/response_std", *(f"trainset/{error}" for error in ERROR_METRICS))
        if recipe.train.average:
            averaged = [f"average/{part}{by}/{e}" for part in parts for by in protocols for e in measured]
            more += tuple(averaged)
    elif isinstance(spec, TransferSpec):
        at_paper = experiment.derived_spec(name, PAPER_SCALE)
        assert isinstance(at_paper, TransferSpec)
        return at_paper.metrics()
    elif isinstance(spec, CompressionSpec):
        parts, more = ["test", "original", "pruned", "shared"], COMPRESSION_METRICS
    else:
        parts = ["test"]
        at_paper = experiment.derived_spec(name, PAPER_SCALE)
        if isinstance(at_paper, EnsembleSizesSpec):
            more = tuple(at_paper.metrics(protocols))
        elif isinstance(at_paper, ColumnSpec) and not data.crop:
            more = tuple(f"trainset/{error}" for error in ERROR_METRICS)
    errors = [f"{part}{by}/{error}" for part in parts for by in protocols for error in measured]
    return [*errors, *more]
