"""All figures of the papers, from declarations and finished runs. Pure: what it reads is handed in."""

from collections.abc import Sequence

from pipeline.declare.experiment import Experiment
from pipeline.judge.counting import Records, unchanged_records
from pipeline.judge.ledger import LedgerEntry, Measure
from pipeline.report.paper_figures.alexnet import alexnet_figures
from pipeline.report.paper_figures.complexity_charts import complexity_figures
from pipeline.report.paper_figures.densenet import densenet_figures
from pipeline.report.paper_figures.ensembles import ensemble_figures
from pipeline.report.paper_figures.figure_data import CurveReader, FigureData, WeightReader
from pipeline.report.paper_figures.fractalnet import fractalnet_figures
from pipeline.report.paper_figures.ilsvrc import ilsvrc_figures
from pipeline.report.paper_figures.lecture import lecture_figures
from pipeline.report.paper_figures.paper_figure import PaperFigure
from pipeline.report.paper_figures.project import project_figures
from pipeline.report.paper_figures.resnet import resnet_figures
from pipeline.report.paper_figures.resnext import resnext_figures
from pipeline.report.paper_figures.squeezenet import squeezenet_figures
from pipeline.report.paper_figures.stochastic_depth import stochastic_depth_figures
from pipeline.report.paper_figures.training import training_figures
from pipeline.report.paper_figures.wide_resnet import wide_resnet_figures

COLLECTORS = (  # the whole project, then in the order of the lecture, then the curves of every experiment
    project_figures,
    ilsvrc_figures,
    complexity_figures,
    alexnet_figures,
    resnet_figures,
    stochastic_depth_figures,
    wide_resnet_figures,
    resnext_figures,
    fractalnet_figures,
    densenet_figures,
    squeezenet_figures,
    lecture_figures,
    ensemble_figures,
    training_figures,
)


def paper_figures(
    experiments: Sequence[Experiment],
    records: Records,
    entries: Sequence[LedgerEntry],
    *,
    curves: CurveReader,
    weights: WeightReader,
    measure: Measure,
    scales: Sequence[str] = (),
) -> list[PaperFigure]:
    """Return the figures of the papers of these experiments, those without evidence included.

    Each is drawn from the runs at paper scale, or else at the next declared scale that has runs; `scales`
    restricts the choice. `curves` and `weights` read a run's curves and tensors (`pipeline.report.run_files`).
    `measure`: exact values of networks, as of `pipeline.analyse.measure.measure_claim`.
    """
    data = FigureData(experiments, unchanged_records(records), entries, curves, weights, measure, scales)
    return [figure for draw in COLLECTORS for figure in draw(data)]
