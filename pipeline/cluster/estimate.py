"""Estimate the device time of runs from finished runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from statistics import median

from pipeline.cluster.sharing import Devices, devices_text
from pipeline.common.provenance import hardware_name, sharing_text
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.track.record import FINISHED, Record


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run or derived run and its record."""

    run: Run | DerivedRun
    record: Record

    @property
    def seconds(self) -> float:
        """Device seconds per work unit, including data preparation and evaluation.

        A record knows only the devices of its last session; all sessions count as if they used as many.
        """
        record = self.record
        return record.world * record.seconds / record.runs_per_device / work_units(self.run)

    @property
    def hardware(self) -> str:
        """Name of its device, without the note that runs shared it."""
        return self.record.hardware.removesuffix(sharing_text(self.record.runs_per_device))

    @property
    def devices(self) -> Devices:
        """Number of its devices, a fraction if runs shared one."""
        shared = self.record.runs_per_device
        return self.record.world if shared == 1 else Fraction(1, shared)


def work_units(run: Run | DerivedRun) -> int:
    """Return the number of training images of a run, with repetitions; 1 for a derived run."""
    return run.recipe.train.steps * run.recipe.train.batch_size if isinstance(run, Run) else 1


def cost_key(run: Run | DerivedRun) -> tuple[str, ...]:
    """Return a key shared by runs whose work units cost the same: network, data set and image size."""
    if isinstance(run, DerivedRun):
        return run.experiment, run.scale, run.variant
    data = run.recipe.data
    return run.recipe.model.model_dump_json(), data.name, str(data.crop)


def measured_runs(records: Iterable[Record]) -> Iterator[MeasuredRun]:
    """Yield the finished runs whose declaration has not changed, so that their number of work units is known."""
    declared: dict[tuple[str, str], dict[str, Run | DerivedRun]] = {}
    known = set(experiment_names())
    for record in records:
        if record.status != FINISHED or record.experiment not in known:
            continue
        key = (record.experiment, record.scale)
        if key not in declared:
            experiment = load_experiment(record.experiment)
            runs = plan_runs(experiment, scale=record.scale) if record.scale in experiment.scales else []
            declared[key] = {run.declaration: run for run in runs}
        run = declared[key].get(record.declaration)
        if run and record.seconds > 0:
            yield MeasuredRun(run, record)


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a work unit, and the finished runs that it is based on."""

    seconds: float  # device seconds per work unit
    runs: int  # number of finished runs
    where: str  # 'at paper scale on NVIDIA H100, on 4 devices each'


class Estimator:
    """Estimates the cost of runs and derived runs from finished ones."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.measured: dict[tuple[str, ...], list[MeasuredRun]] = {}
        for measured in measured_runs(records):
            self.measured.setdefault(cost_key(measured.run), []).append(measured)

    def estimate(self, run: Run | DerivedRun, devices: Devices) -> Estimate | None:
        """Return an estimate from the finished runs most similar to `run`, None if no comparable run has finished.

        Preferred in this order: the same variant, scale, hardware and number of devices. A run on another number
        of devices counts as if all its devices were equally busy, and a run alone on its device as if sharing
        gained nothing.
        """

        def similarity(measured: MeasuredRun) -> tuple[bool, ...]:
            variant = (measured.run.experiment, measured.run.variant) == (run.experiment, run.variant)
            scale = variant and measured.run.scale == run.scale
            return variant, scale, measured.hardware == hardware_name(), measured.devices == devices

        def group(measured: MeasuredRun) -> tuple[str | Devices, ...]:
            of = measured.run
            return measured.hardware, measured.devices, of.experiment, of.scale, of.variant

        candidates = self.measured.get(cost_key(run), [])
        if not candidates:
            return None
        variant, scale, _, as_many = best = max(map(similarity, candidates))
        similar = [measured for measured in candidates if similarity(measured) == best]
        newest = max(similar, key=lambda measured: measured.record.finished)
        pooled = [measured for measured in similar if group(measured) == group(newest)]
        of = "" if variant else f"of the same network ({newest.run.experiment}, {newest.run.variant}) "
        at = "" if scale else f"at {newest.run.scale} scale "
        each = "" if as_many else f", on {devices_text(newest.devices)} each"
        where = f"{of}{at}on {newest.hardware}{each}"
        return Estimate(median(measured.seconds for measured in pooled), len(pooled), where)
