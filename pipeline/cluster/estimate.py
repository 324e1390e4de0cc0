"""Estimate the device time of runs from finished runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from pipeline.common.provenance import hardware_name
from pipeline.common.words import plural
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.track.record import FINISHED, Record


@dataclass(frozen=True)
class MeasuredRun:
    """A run or step that ended, with what it cost."""

    run: Run | DerivedRun
    record: Record

    @property
    def seconds(self) -> float:
        """Of one device, for each image trained on, with all that is done beside; of a step, for all of it.

        Taken as if all its sessions had been on as many devices as the last, which is all that a record knows.
        """
        return self.record.world * self.record.seconds / work_units(self.run)


def work_units(run: Run | DerivedRun) -> int:
    """How much there is to do: images to train on, each as often as it is used; a step is one piece of work."""
    return run.recipe.train.steps * run.recipe.train.batch_size if isinstance(run, Run) else 1


def cost_key(run: Run | DerivedRun) -> tuple[str, ...]:
    """What costs alike: a network trained on images of one set and size; the same step."""
    if isinstance(run, DerivedRun):
        return run.experiment, run.scale, run.variant
    data = run.recipe.data
    return run.recipe.model.model_dump_json(), data.name, str(data.crop)


def measured_runs(records: Iterable[Record]) -> Iterator[MeasuredRun]:
    """The finished ones that are declared still as they were, so that it is known how much there was to do."""
    declared: dict[tuple[str, str], dict[str, Run | DerivedRun]] = {}
    known = set(experiment_names())
    for record in records:
        if record.status != FINISHED or record.experiment not in known:
            continue
        place = (record.experiment, record.scale)
        if place not in declared:
            experiment = load_experiment(record.experiment)
            runs = plan_runs(experiment, scale=record.scale) if record.scale in experiment.scales else []
            declared[place] = {run.declaration: run for run in runs}
        run = declared[place].get(record.declaration)
        if run and record.seconds > 0:
            yield MeasuredRun(run, record)


@dataclass(frozen=True)
class Estimate:
    """What an image (or a step) will cost, and how that is known."""

    seconds: float
    runs: int  # so many have shown it
    where: str  # 'at paper scale on NVIDIA H100, on 4 devices each'


class Estimator:
    """Estimates for runs and steps, from those that have ended."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.of: dict[tuple[str, ...], list[MeasuredRun]] = {}
        for one in measured_runs(records):
            self.of.setdefault(cost_key(one.run), []).append(one)

    def estimate(self, run: Run | DerivedRun, devices: int) -> Estimate | None:
        """From the same variant, scale, hardware and number of devices as far as there are such runs.

        None: not measured yet. Runs on other numbers of devices are taken as if all devices were equally busy.
        """

        def nearness(one: MeasuredRun) -> tuple[bool, ...]:
            variant = (one.run.experiment, one.run.variant) == (run.experiment, run.variant)
            scale = variant and one.run.scale == run.scale
            return variant, scale, one.record.hardware == hardware_name(), one.record.world == devices

        def place(one: MeasuredRun) -> tuple[str | int, ...]:
            return one.record.hardware, one.record.world, one.run.experiment, one.run.scale, one.run.variant

        alike = self.of.get(cost_key(run), [])
        if not alike:
            return None
        variant, scale, _, world = nearest = max(map(nearness, alike))
        near = [one for one in alike if nearness(one) == nearest]
        newest = max(near, key=lambda one: one.record.finished)
        same = [one for one in near if place(one) == place(newest)]
        of = "" if variant else f"of the same network ({newest.run.experiment}, {newest.run.variant}) "
        at = "" if scale else f"at {newest.run.scale} scale "
        each = "" if world else f", on {plural(newest.record.world, 'device')} each"
        where = f"{of}{at}on {newest.record.hardware}{each}"
        return Estimate(median(one.seconds for one in same), len(same), where)
