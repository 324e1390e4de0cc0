"""Plan a launch on a cluster, write it down, cancel it."""

import json
import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.cluster import launches
from pipeline.cluster.estimate import Estimate, Estimator, work_units
from pipeline.cluster.launches import Launch, LaunchTerms
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.common.paths import home, runs_folder
from pipeline.common.words import plural
from pipeline.declare.load import EXPERIMENTS, experiment_names, load_experiment
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.schedule.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import CHECKPOINT_NAME, RunFolder

SUITES = ("cs231n",)  # every declared experiment is of this lecture


@dataclass(frozen=True)
class LaunchRequest:
    """The words of `repro launch`."""

    experiments: tuple[str, ...]
    scale: str
    suite: str | None = None
    devices: int = 1  # of each run
    device_batch: int | None = None  # images that go through a device at a time, at most
    max_device_hours: float | None = None
    max_concurrent: int | None = None
    price: float | None = None  # of an hour of one device, in whatever currency

    def __post_init__(self) -> None:
        if not self.experiments and not self.suite:
            raise UserError("name what to launch, as in: repro launch resnet/cifar10_depth, or --suite cs231n")
        if self.suite and self.suite not in SUITES:
            raise UserError(f"there is no suite {self.suite!r}; there is {', '.join(SUITES)}")
        whole = {"--gpus-per-run": self.devices, "--device-batch": self.device_batch}
        for word, value in (whole | {"--max-concurrent": self.max_concurrent}).items():
            if value is not None and value < 1:
                raise UserError(f"{word} {value}: a number from 1 on is needed")
        hours, price = self.max_device_hours, self.price
        if hours is not None and not (math.isfinite(hours) and hours > 0):
            raise UserError(f"--max-gpu-hours {hours:g}: a number above 0 is needed")
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise UserError(f"--price {price:g}: what one device costs an hour is needed, 0 or more")

    @property
    def title(self) -> str:
        """'resnet/cifar10_depth at laptop', for a person."""
        suite = [f"suite {self.suite}"] if self.suite else []
        return f"{', '.join([*suite, *self.experiments])} at {self.scale}"

    @property
    def terms(self) -> LaunchTerms:
        """What the runs are trained under."""
        return LaunchTerms(self.devices, self.max_device_hours, self.max_concurrent)

    def to_argv(self) -> list[str]:
        """The command again, for another machine."""
        words = ["launch", *map(declared_name, self.experiments), "--scale", self.scale]
        options = {
            "--suite": self.suite,
            "--gpus-per-run": self.devices,
            "--device-batch": self.device_batch,
            "--max-gpu-hours": self.max_device_hours,
            "--max-concurrent": self.max_concurrent,
            "--price": self.price,
        }
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        return words


def declared_name(experiment: str) -> str:
    """'paper/file' of a file among the declared experiments; UserError for a file that goes with no code."""
    if not experiment.endswith(".yaml"):
        return experiment
    path = Path(experiment).resolve()
    if not path.is_relative_to(EXPERIMENTS.resolve()):
        raise UserError(
            f"{experiment} is not below {EXPERIMENTS}, which alone is sent to a cluster; put it there, as"
            " PAPER/NAME.yaml"
        )
    return str(path.relative_to(EXPERIMENTS.resolve()).with_suffix(""))


@dataclass(frozen=True)
class LaunchSelection:
    """The runs asked for, before their data are looked at."""

    runs: list[Run | DerivedRun]
    lacking: list[str]  # experiments of the suite that do not train at this scale


def select_runs(asked: LaunchRequest) -> LaunchSelection:
    """All runs and steps of what is asked; UserError for a name, a scale or a split that cannot be."""
    experiments = {one.name: one for one in map(load_experiment, asked.experiments)}
    lacking = []
    for one in map(load_experiment, experiment_names()) if asked.suite else []:
        if asked.scale in one.scales:
            experiments.setdefault(one.name, one)
        elif one.scales and one.name not in experiments:
            lacking.append(one.name)
    if not experiments:
        scales = sorted({scale for name in experiment_names() for scale in load_experiment(name).scales})
        raise UserError(
            f"nothing of suite {asked.suite} has a scale {asked.scale!r}; there are {', '.join(scales)}"
        )
    runs = [run for one in experiments.values() for run in plan_runs(one, scale=asked.scale)]
    check_global_batch(runs, asked.devices, asked.device_batch)
    return LaunchSelection(runs, lacking)


def check_global_batch(work: Iterable[Run | DerivedRun], devices: int, device_batch: int | None) -> None:
    """UserError where the global batch of a run cannot be shared equally by so many devices.

    What cannot be shared at all (steps, patterns learned one by one) takes one device; but not alone.
    """
    runs = [run for run in work if isinstance(run, Run)]
    shared = [run for run in runs if run.recipe.train.optimizer.name != "sdlm"]
    if (devices > 1 or device_batch is not None) and runs and not shared:
        raise UserError(
            f"{runs[0].experiment}, {runs[0].variant}: optimizer 'sdlm' learns one pattern at a time, on one"
            " device; launch it without --gpus-per-run and --device-batch"
        )
    for size, run in {run.recipe.train.batch_size: run for run in shared}.items():
        if devices > 1 or device_batch is not None:
            from pipeline.train.ranks import micro_batches  # loads torch

            try:
                micro_batches(size, devices, device_batch)
            except UserError as error:
                raise UserError(f"{run.experiment}, {run.variant}: {error}") from None


@dataclass(frozen=True)
class VariantPlan:
    """The runs of one variant, and what is left of them to do."""

    experiment: str
    scale: str
    variant: str  # or step
    kind: str  # "run" or "step"
    data: str
    runs: int
    finished: int
    resumed: tuple[int, ...]  # updates done already, of each that goes on from a checkpoint
    devices: int  # at a time, of each run
    images: int  # to train on, in all
    hours: float | None  # of devices, in all; None: not measured yet
    shown_by: tuple[int, str] = (0, "")  # how many runs have shown that, and where

    @property
    def words(self) -> str:
        """'5 runs, 2 finished, 1 to resume at step 1,200'."""
        parts = [plural(self.runs, self.kind)]
        if self.finished:
            parts.append("all finished" if self.finished == self.runs > 1 else f"{self.finished:,} finished")
        if self.resumed:
            low, high = min(self.resumed), max(self.resumed)
            steps = f"step {low:,}" if low == high else f"steps {low:,} to {high:,}"
            parts.append(f"{len(self.resumed):,} to resume at {steps}")
        return ", ".join(parts)


@dataclass(frozen=True)
class LaunchPlan:
    """What a launch would do."""

    asked: LaunchRequest
    tasks: list[Task]  # finished ones of this machine too: work that consumes them finds them here
    groups: list[VariantPlan]
    lacking: list[str]
    shared: int = 0  # tasks that an earlier launch wants too, and has not ended
    left_out: Sequence[tuple[Task, str]] = ()  # steps that cannot be done here, and why: in no group, and no task

    @cached_property
    def todo(self) -> list[Task]:
        """The tasks that are not finished."""
        return [task for task in self.tasks if not RunFolder(task.folder).result_file.is_file()]

    @property
    def hours(self) -> float:
        """Device hours of all that was measured before."""
        return sum(group.hours or 0.0 for group in self.groups)

    @property
    def unmeasured(self) -> list[VariantPlan]:
        """Those with work to do of which nobody knows how long it takes."""
        return [group for group in self.groups if group.hours is None]


def plan_launch(
    asked: LaunchRequest,
    what: LaunchSelection,
    records: Sequence[Record],
    tell: Callable[[str], None] = launches.print_warning,
) -> LaunchPlan:
    """What is finished, what is left, what that will need. Reads the data; UserError where they cannot be read."""
    from pipeline.schedule.tasks import make_tasks

    tasks = make_tasks(what.runs)
    ended = {record.identity for record in records}
    left_out = missing_networks(tasks, ended)
    hopeless = {task.identity for task, _ in left_out}
    tasks = [task for task in tasks if task.identity not in hopeless]
    estimates = Estimator(records)
    members: dict[tuple[str, str, str], list[Task]] = {}
    for task in tasks:
        members.setdefault((task.run.experiment, task.run.scale, task.run.variant), []).append(task)
    groups = [plan_variant(some, asked.devices, ended, estimates) for some in members.values()]
    tasks = [replace(task, device_batch=asked.device_batch) if task.is_distributable else task for task in tasks]
    here = [t for t in tasks if RunFolder(t.folder).result_file.is_file() or t.identity not in ended]
    made = LaunchPlan(asked, here, groups, what.lacking, left_out=left_out)
    earlier = {task.identity for launch in launches.unfinished_launches(tell) for task in launch.tasks}
    return replace(made, shared=sum(task.identity in earlier for task in made.todo))


def missing_networks(tasks: Sequence[Task], ended: Container[str]) -> list[tuple[Task, str]]:
    """Steps that are not finished, of which a run has ended on another machine alone: its network is not here."""

    def elsewhere(identity: str) -> bool:
        return identity in ended and not RunFolder(runs_folder() / identity).result_file.is_file()

    found = []
    for task in tasks:
        if (
            not isinstance(task.run, DerivedRun)
            or task.identity in ended
            or RunFolder(task.folder).result_file.is_file()
        ):
            continue
        members = zip(task.run.members, task.needs, strict=True)
        lacking = [member.title for member, need in members if elsewhere(need)]
        if lacking:
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            found.append((task, f"needs {lacking[0]}, which has not been trained on this machine{more}"))
    return found


def plan_variant(tasks: Sequence[Task], devices: int, ended: set[str], estimates: Estimator) -> VariantPlan:
    """What is left of the runs of one variant."""
    run = tasks[0].run
    left = [t for t in tasks if t.identity not in ended and not RunFolder(t.folder).result_file.is_file()]
    resumed = tuple(step for step in (resume_step(RunFolder(task.folder)) for task in left) if step)
    work = len(left) * work_units(run)
    data = run.members[0].recipe.data.name if isinstance(run, DerivedRun) else run.recipe.data.name
    if isinstance(run, Run):
        work -= sum(resumed) * run.recipe.train.batch_size
    devices = devices if tasks[0].is_distributable else 1
    estimate = estimates.estimate(run, devices) if left else Estimate(0.0, 0, "")
    return VariantPlan(
        experiment=run.experiment,
        scale=run.scale,
        variant=run.variant,
        kind="run" if isinstance(run, Run) else "step",
        data=data,
        runs=len(tasks),
        finished=len(tasks) - len(left),
        resumed=resumed,
        devices=devices,
        images=work if isinstance(run, Run) else 0,
        hours=work * estimate.seconds / 3600 if estimate else None,
        shown_by=(estimate.runs, estimate.where) if estimate else (0, ""),
    )


def resume_step(folder: RunFolder) -> int:
    """The update that a run would go on after, 0 for none; the checkpoint itself is looked at when it is used."""
    for path in folder.checkpoint_files():
        match = CHECKPOINT_NAME.fullmatch(path.name)
        if match:
            return int(match[1])
    return 0


def start_launch(made: LaunchPlan, code: Path) -> Launch:
    """Write the launch down. What was left earlier, cancelled or at a budget's end, is wanted again."""
    mark_left_out(made)
    with explain_write_errors(home()):
        for task in made.todo:
            folder = RunFolder(task.folder)
            if folder.unfinished() or folder.stop_reason():
                folder.clear_unfinished()
        return launches.create_launch(made.asked.title, code, made.asked.terms, tuple(made.tasks))


def mark_left_out(made: LaunchPlan) -> None:
    """The folders of what cannot be done say why, as after `repro run`."""
    with explain_write_errors(home()):
        for task, why in made.left_out:
            launches.mark_unfinished(task, "failed", why)


def cancel_runs(
    asked: Iterable[Launch], only: str | None, *, supervised: bool, training: Container[str]
) -> list[Task]:
    """Ask the run `only` of these launches to stop, or all of them that have not ended; the tasks that were asked.

    A supervisor answers such requests, and so does whatever trains; where there seems to be neither, the runs are
    left as cancelled here and now, and asked all the same: a supervisor that was only silent stops them then.
    """
    found: dict[str, Task] = {}
    for launch in asked:
        tasks = [replace(task, folder=runs_folder() / task.identity) for task in launch.tasks]
        for task in tasks:
            if task.identity in found or only not in (None, task.identity) or is_task_over(task):
                continue
            found[task.identity] = task
            with explain_write_errors(home()):
                if supervised or task.identity in training:
                    RunFolder(task.folder).request_stop("cancelled")
                else:
                    launches.mark_unfinished(task, "cancelled", "cancelled by repro cancel")
                    RunFolder(task.folder).request_stop("cancelled")  # after: leaving takes the request away
        if not supervised and all(map(is_task_over, tasks)):
            launches.mark_ended(launch.id)
    return list(found.values())


def is_task_over(task: Task) -> bool:
    """Whether nothing is left to do about it: it has ended, or was left for a reason."""
    folder = RunFolder(task.folder)
    return folder.result_file.is_file() or bool(folder.unfinished())


def with_devices(launch: Launch, devices: int) -> Launch:
    """The launch, from now on with so many devices a run; UserError where that cannot be."""
    for task in launch.tasks:
        check_global_batch([task.run] if task.is_distributable else [], devices, task.device_batch)
    changed = replace(launch, terms=replace(launch.terms, devices=devices))
    with explain_write_errors(home()):
        write_atomically(launches.launches_folder() / f"{launch.id}.json", json.dumps(changed.to_dict()))
    return changed
