"""What the figures are drawn from: declarations, finished runs with their curves and weights, and verdicts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from pipeline.common.words import plural
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE, TRIAL_SCALES
from pipeline.judge.counting import ByVariant, Records, counted_records
from pipeline.judge.ledger import LedgerEntry, Measure
from pipeline.report.leaderboard import TOP1, paper_claim
from pipeline.track.record import FINISHED, Record

Curve = Sequence[tuple[int, float]]  # (step, value)
CurveReader = Callable[[Record, str], Curve]  # record and metric -> the curve of the run; empty if it has none
WeightReader = Callable[[Record], Mapping[str, Any] | None]  # record -> its network's tensors; None if not here


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

    @property
    def place(self) -> str:
        """Data set and scale, for titles: "digits, laptop scale"."""
        return f"{self.data}, {self.scale} scale"

    def only(self, names: Iterable[str]) -> "ScaleRuns":
        """Return the runs of these variants and derived runs alone."""
        chosen = set(names)
        return ScaleRuns(self.experiment, self.scale, {n: r for n, r in self.records.items() if n in chosen})

    def where(self, holds: Callable[[Record], bool]) -> "ScaleRuns":
        """Return the runs for which `holds` is True."""
        found = {name: [row for row in rows if holds(row)] for name, rows in self.records.items()}
        return ScaleRuns(self.experiment, self.scale, {name: rows for name, rows in found.items() if rows})

    def is_papers_data(self) -> bool:
        """Return True if all runs are on the data set on which the paper evaluates their networks."""
        return all(
            row.data == self.experiment.paper_data(name) for name, rows in self.records.items() for row in rows
        )

    def seeds(self) -> str:
        """Return the number of seeds: "5 seeds", "3 to 5 seeds"."""
        return seeds_text(len(rows) for rows in self.records.values())

    def converged_seeds(self) -> str:
        """Return the number of seeds that a mean is over: "5 seeds", "2 to 3 seeds (1 run did not converge)"."""
        finished = {n: [row for row in rows if row.status == FINISHED] for n, rows in self.records.items()}
        lost = sum(map(len, self.records.values())) - sum(map(len, finished.values()))
        note = f" ({plural(lost, 'run')} did not converge)" if lost else ""
        return ScaleRuns(self.experiment, self.scale, finished).seeds() + note

    def values(self, name: str, metric: str) -> list[float]:
        """Return a metric of the seeds that converged, in the order of the seeds."""
        rows = self.records.get(name, [])
        return [row.measured[metric] for row in rows if row.status == FINISHED and metric in row.measured]

    def mean(self, name: str, metric: str) -> tuple[float, float] | None:
        """Return mean and standard deviation over the seeds, 0 for one seed; None without a value."""
        values = self.values(name, metric)
        return (fmean(values), stdev(values) if len(values) > 1 else 0.0) if values else None


def seeds_text(counts: Iterable[int]) -> str:
    """Return the number of seeds of several things, given those of each: "5 seeds", "3 to 5 seeds"."""
    found = sorted(set(counts)) or [0]
    return plural(found[0], "seed") if len(found) == 1 else f"{found[0]} to {found[-1]} seeds"


def over_seeds(statistic: str, seeds: str) -> str:
    """Return "mean over 5 seeds" of "mean" and "5 seeds"; "one seed" of one, which has no mean."""
    return f"one{seeds[1:]}" if seeds.startswith("1 seed") else f"{statistic} over {seeds}"


def scale_runs(experiment: Experiment, scale: str, records: Iterable[Record]) -> ScaleRuns:
    """Return the runs of an experiment at a scale from the records that count there."""
    found: ByVariant = {}
    for record in records:
        found.setdefault(record.variant, []).append(record)
    return ScaleRuns(experiment, scale, found)


@dataclass(frozen=True)
class FigureData:
    """Input of all figures."""

    experiments: Sequence[Experiment]
    records: Records
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
            found = counted_records(experiment, scale, self.records)
            self._found[key] = ScaleRuns(experiment, scale, found) if found else None
        return self._found[key]

    def best_runs(self, experiment: Experiment, names: Sequence[str], *, least: int = 1) -> ScaleRuns | None:
        """Return the runs of these variants at the first scale with `least` of them; None without any.

        Paper scale comes first, the others as declared.
        """
        for scale in self.scales_of(experiment):
            runs = self.runs(experiment, scale)
            if runs and sum(name in runs.records for name in names) >= least:
                return runs.only(names)
        return None

    def why_missing(self, experiment: Experiment, names: Sequence[str], *, least: int = 1) -> str:
        """Return why `best_runs` finds nothing, and the command of the scale that trains on the fewest images."""
        possible = [
            scale for scale in self.scales_of(experiment) if enough_variants(experiment, scale, names, least)
        ]
        what = "No finished runs" if least == 1 else f"No scale has finished runs of {least} of its networks"
        if not possible:
            chosen = ", ".join(self.scales) or "any scale"
            return f"{what}; {experiment.name} does not run them at {chosen}."
        cheapest = min(reversed(possible), key=lambda scale: training_images(experiment, scale, names))
        return f"{what}; start them with: repro run {experiment.name} --scale {cheapest}."

    def size(self, experiment: Experiment, variant: str, what: str) -> float:
        """Return an exact number of a variant's network: "parameters", "multiply_adds"."""
        return float(self.measure(f"model/{what}", *experiment.owner(variant)))


def training_images(experiment: Experiment, scale: str, names: Sequence[str]) -> int:
    """Return the number of images that one seed of these variants and derived runs is trained on at a scale."""
    run = {*experiment.variants_at(scale), *experiment.derived_at(scale)} & set(names)
    trained = {variant for name in run for variant in experiment.consumed(name)}
    recipes = [experiment.recipe(variant, scale).train for variant in trained]
    return sum(recipe.steps * recipe.batch_size for recipe in recipes)


def enough_variants(experiment: Experiment, scale: str, names: Sequence[str], least: int) -> bool:
    """Return True if `least` of these variants and derived runs run at a scale by default."""
    run = {*experiment.variants_at(scale), *experiment.derived_at(scale)}
    return len(run & set(names)) >= least


def paper_value(experiment: Experiment, name: str, metric: str = TOP1) -> float | None:
    """Return the value that the paper prints for a variant, by the first test protocol; None if it prints none."""
    protocol = next(iter(experiment.protocols(name, PAPER_SCALE)), "") if metric.startswith("test/") else ""
    claim = paper_claim(experiment.claims, name, protocol, metric) or paper_claim(
        experiment.claims, name, "", metric
    )
    return claim.claimed if claim else None
