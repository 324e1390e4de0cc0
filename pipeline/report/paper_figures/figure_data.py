"""What the figures are drawn from: declarations, finished runs with their curves and weights, and verdicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.counting import ByVariant, counted_records
from pipeline.judge.ledger import LedgerEntry, Measure
from pipeline.track.record import FINISHED, Record

Curve = Sequence[tuple[int, float]]  # (step, value)
CurveReader = Callable[[Record, str], Curve]  # record and metric -> the curve of the run; empty if it has none
WeightReader = Callable[[Record], Mapping[str, Any] | None]  # record -> its network's tensors; None if not here
TRIAL_SCALES = ("smoke", "stand-in")  # scales that only show that everything runs


@dataclass(frozen=True)
class ScaleRuns:
    """The finished runs of an experiment at one scale that count, by variant and derived run."""

    experiment: Experiment
    scale: str
    records: ByVariant

    @property
    def data(self) -> str:
        """Name of the data set; several are joined by a comma."""
        return ", ".join(dict.fromkeys(row.data for rows in self.records.values() for row in rows))

    def seeds(self, names: Sequence[str]) -> str:
        """Return the number of seeds of these variants: "5 seeds", "3 to 5 seeds"."""
        counts = sorted({len(self.records[name]) for name in names if name in self.records})
        if not counts:
            return "no seeds"
        number = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        return f"{number} seed{'' if number == '1' else 's'}"

    def values(self, name: str, metric: str) -> list[float]:
        """Return a metric of the seeds that converged, in the order of the seeds."""
        rows = self.records.get(name, [])
        return [row.measured[metric] for row in rows if row.status == FINISHED and metric in row.measured]

    def mean(self, name: str, metric: str) -> tuple[float, float] | None:
        """Return mean and standard deviation over the seeds, 0 for one seed; None without a value."""
        values = self.values(name, metric)
        return (fmean(values), stdev(values) if len(values) > 1 else 0.0) if values else None


@dataclass(frozen=True)
class FigureData:
    """Input of all figures."""

    experiments: Sequence[Experiment]
    records: Sequence[Record]
    entries: Sequence[LedgerEntry]  # of all claims of the experiments
    curves: CurveReader
    weights: WeightReader
    measure: Measure  # exact values of networks
    scales: Sequence[str] = ()  # only these; empty: all but TRIAL_SCALES
    _found: dict[tuple[str, str], ScaleRuns | None] = field(default_factory=dict, repr=False, compare=False)

    def experiment(self, name: str) -> Experiment | None:
        """Return the experiment of this name; None if it is not among the chosen ones."""
        return next((one for one in self.experiments if one.name == name), None)

    def scales_of(self, experiment: Experiment) -> list[str]:
        """Return the scales to draw, paper scale first, the others as declared."""
        chosen = [s for s in experiment.scales if (s in self.scales if self.scales else s not in TRIAL_SCALES)]
        return sorted(chosen, key=lambda scale: scale != PAPER_SCALE)

    def runs(self, experiment: Experiment, scale: str) -> ScaleRuns | None:
        """Return the runs of an experiment at a scale; None without any."""
        key = experiment.name, scale
        if key not in self._found:
            found = counted_records(experiment, scale, self.records, experiment.consumed_elsewhere(scale))
            self._found[key] = ScaleRuns(experiment, scale, found) if found else None
        return self._found[key]

    def best_runs(self, experiment: Experiment, names: Sequence[str] = (), *, least: int = 1) -> ScaleRuns | None:
        """Return the runs at the first scale, paper scale first, with `least` of these variants; None without."""
        for scale in self.scales_of(experiment):
            runs = self.runs(experiment, scale)
            if runs and sum(name in runs.records for name in names or runs.records) >= least:
                return runs
        return None
