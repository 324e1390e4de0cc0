"""Plan a launch on a cluster, start it, and cancel its runs."""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.cluster import launches
from pipeline.cluster.estimate import Estimate, Estimator, work_units
from pipeline.cluster.launches import Launch, LaunchTerms, task_devices
from pipeline.cluster.sharing import Devices
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.paths import home, runs_folder
from pipeline.common.words import plural
from pipeline.declare.derived import RANDOM_PIXELS
from pipeline.declare.load import EXPERIMENTS, load_experiment
from pipeline.declare.overrides import yaml_flow
from pipeline.declare.suites import check_suite, suite_at
from pipeline.plan.expand import DerivedRun, Run, member_title, plan_runs, title_of
from pipeline.plan.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder


@dataclass(frozen=True)
class LaunchRequest:
    """The arguments of `repro launch`; UserError for an invalid one."""

    experiments: tuple[str, ...]
    scale: str
    suite: str | None = None
    devices: int = 1  # per run
    device_batch: int | None = None  # images in one micro-batch, at most
    max_device_hours: float | None = None
    max_concurrent: int | None = None
    price: float | None = None  # of one device hour, in any currency
    variants: tuple[str, ...] = ()  # of the one experiment; none: those of the scale
    seeds: int | None = None  # None: the declared ones
    changes: Mapping[str, Any] = field(default_factory=dict)  # settings of --set: {"train.lr": 0.05}
    runs_per_device: int = 1  # with more than one, `devices` is 1

    def __post_init__(self) -> None:
        if not self.experiments and not self.suite:
            raise UserError(
                "nothing to launch; name an experiment, as in repro launch resnet/cifar10_depth, or use"
                " --suite cs231n"
            )
        if self.suite:
            check_suite(self.suite)
        integers = {"--device-batch": self.device_batch, "--max-concurrent": self.max_concurrent}
        for option, value in integers.items():
            if value is not None and value < 1:
                raise UserError(f"{option} {value}: must be an integer >= 1")
        hours, price = self.max_device_hours, self.price
        if hours is not None and not (math.isfinite(hours) and hours > 0):
            raise UserError(f"--max-gpu-hours {hours:g}: must be a number > 0")
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise UserError(f"--price {price:g}: must be a number >= 0, the price of one device hour")

    @property
    def title(self) -> str:
        """'resnet/cifar10_depth at laptop'."""
        suite = [f"suite {self.suite}"] if self.suite else []
        variants = f", variant {', '.join(self.variants)}" if self.variants else ""
        seeds = f", {plural(self.seeds, 'seed')}" if self.seeds else ""
        changed = f", {self.changes_text}" if self.changes else ""
        return f"{', '.join([*suite, *self.experiments])} at {self.scale}{variants}{seeds}{changed}"

    @property
    def changes_text(self) -> str:
        """'train.lr=0.05, data.name=digits', as values of --set."""
        return ", ".join(f"{setting}={yaml_flow(value)}" for setting, value in self.changes.items())

    @property
    def terms(self) -> LaunchTerms:
        """Devices and limits of the launch."""
        return LaunchTerms(self.devices, self.max_device_hours, self.max_concurrent, self.runs_per_device)

    def to_argv(self) -> list[str]:
        """Return the command line that makes the same request on another machine."""
        argv = ["launch", *map(declared_name, self.experiments), "--scale", self.scale]
        options = {
            "--suite": self.suite,
            "--seeds": self.seeds,
            "--gpus-per-run": self.terms.devices_per_run,
            "--device-batch": self.device_batch,
            "--max-gpu-hours": self.max_device_hours,
            "--max-concurrent": self.max_concurrent,
            "--price": self.price,
        }
        for option, value in options.items():
            argv += [] if value is None else [option, str(value)]
        for variant in self.variants:
            argv += ["--variant", variant]
        for setting, value in self.changes.items():
            argv += ["--set", f"{setting}={yaml_flow(value)}"]
        return argv


def declared_name(experiment: str) -> str:
    """Return 'paper/name' of an experiment file; UserError for a file outside the experiments folder."""
    if not experiment.endswith(".yaml"):
        return experiment
    path = Path(experiment).resolve()
    if not path.is_relative_to(EXPERIMENTS.resolve()):
        raise UserError(
            f"{experiment} is not below {EXPERIMENTS}, and only files there are sent to a cluster; move it there,"
            " as PAPER/NAME.yaml"
        )
    return str(path.relative_to(EXPERIMENTS.resolve()).with_suffix(""))


@dataclass(frozen=True)
class LaunchSelection:
    """The runs of a request, before any data is read."""

    runs: list[Run | DerivedRun]
    without_scale: list[str]  # experiments of the suite that train, but not at this scale


def select_runs(request: LaunchRequest) -> LaunchSelection:
    """Return all runs of a request; UserError for an unknown name or scale, or an impossible device count."""
    experiments = {one.name: one for one in map(load_experiment, request.experiments)}
    without_scale = []
    if request.suite:
        selection = suite_at(request.suite, request.scale)
        experiments |= {one.name: one for one in selection.experiments if one.name not in experiments}
        without_scale = [name for name in selection.without_scale if name not in experiments]
    if request.variants and len(experiments) > 1:
        raise UserError(f"--variant names a variant of one experiment, but {len(experiments)} are selected")
    planned = {  # a run that another experiment consumes or starts from is planned by both
        title_of(run): run
        for experiment in experiments.values()
        for run in plan_runs(
            experiment,
            scale=request.scale,
            variants=request.variants,
            seeds=request.seeds,
            changes=request.changes,
        )
    }
    runs = list(planned.values())
    check_global_batch(runs, request.devices, request.device_batch)
    return LaunchSelection(runs, without_scale)


def check_global_batch(work: Iterable[Run | DerivedRun], devices: int, device_batch: int | None) -> None:
    """Raise UserError where the global batch of a run cannot be split equally among the devices.

    Derived runs and runs with the optimizer 'sdlm' use one device. UserError where the request has only the latter
    but asks for several devices or a device batch.
    """
    runs = [run for run in work if isinstance(run, Run)]
    distributable = [run for run in runs if run.recipe.train.optimizer.name != "sdlm"]
    if (devices > 1 or device_batch is not None) and runs and not distributable:
        raise UserError(
            f"{runs[0].experiment}, {runs[0].variant}: optimizer 'sdlm' learns one pattern at a time, on one"
            " device; launch it without --gpus-per-run and --device-batch"
        )
    for size, run in {run.recipe.train.batch_size: run for run in distributable}.items():
        if devices > 1 or device_batch is not None:
            from pipeline.train.ranks import micro_batches  # loads torch

            try:
                micro_batches(size, devices, device_batch)
            except UserError as error:
                raise UserError(f"{run.experiment}, {run.variant}: {error}") from None


@dataclass(frozen=True)
class VariantPlan:
    """The runs of one variant, and the work that remains."""

    experiment: str
    scale: str
    variant: str  # or the name of a derived run
    kind: str  # "run" or "derived run"
    data: str
    runs: int
    finished: int
    resumed: tuple[int, ...]  # checkpoint steps of the unfinished runs that have one
    devices: Devices  # per run
    images: int  # to train on, in all
    hours: float | None  # device hours in all; None: no estimate yet
    estimated_from: tuple[int, str] = (0, "")  # `runs` and `where` of the estimate

    @property
    def progress_text(self) -> str:
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
    """The tasks of a request, and what remains to do."""

    request: LaunchRequest
    tasks: list[Task]  # unfinished ones, and those whose results derived runs can read on this machine
    variants: list[VariantPlan]
    without_scale: list[str]
    shared: int = 0  # tasks that are also in an earlier launch that has not ended
    left_out: Sequence[tuple[Task, str]] = ()  # derived runs that cannot be made on this machine, with the reason

    @cached_property
    def todo(self) -> list[Task]:
        """The tasks without a result."""
        return [task for task in self.tasks if not has_result(task)]

    @property
    def hours(self) -> float:
        """Device hours of all variants that have an estimate."""
        return sum(variant.hours or 0.0 for variant in self.variants)

    @property
    def without_estimate(self) -> list[VariantPlan]:
        """The variants with work to do but no estimate."""
        return [variant for variant in self.variants if variant.hours is None]


def has_result(task: Task) -> bool:
    """Return whether a task has a result on this machine."""
    return RunFolder(task.folder).result_file.is_file()


def plan_launch(
    request: LaunchRequest,
    selection: LaunchSelection,
    records: Sequence[Record],
    report: Callable[[str], None] = launches.print_warning,
    *,
    is_shown_only: bool = False,
) -> LaunchPlan:
    """Return what is finished, what remains, and an estimate of its cost.

    Reads the data sets; UserError where one is not readable. `records`: all finished runs. Unreadable launch files
    are reported through `report`. `is_shown_only`: nothing will be started, so cached manifests suffice.
    """
    from pipeline.schedule.task_cache import TaskCache
    from pipeline.schedule.tasks import make_tasks, planned_tasks

    tasks = planned_tasks(selection.runs, TaskCache()) if is_shown_only else make_tasks(selection.runs)
    ended = {record.identity for record in records}
    left_out = missing_networks(tasks, ended)
    impossible = {task.identity for task, _ in left_out}
    tasks = [task for task in tasks if task.identity not in impossible]
    estimator = Estimator(records)
    members: dict[tuple[str, str, str], list[Task]] = {}
    for task in tasks:
        members.setdefault((task.run.experiment, task.run.scale, task.run.variant), []).append(task)
    variants = [plan_variant(group, request.terms, ended, estimator) for group in members.values()]
    tasks = [replace(task, device_batch=request.device_batch) if task.is_distributable else task for task in tasks]
    tasks = [task for task in tasks if has_result(task) or task.identity not in ended]
    plan = LaunchPlan(request, tasks, variants, selection.without_scale, left_out=left_out)
    earlier = {task.identity for launch in launches.unfinished_launches(report) for task in launch.tasks}
    return replace(plan, shared=sum(task.identity in earlier for task in plan.todo))


def missing_networks(tasks: Sequence[Task], ended: Container[str]) -> list[tuple[Task, str]]:
    """Return the unfinished tasks that need a network trained on another machine, and the reason."""

    def is_elsewhere(identity: str) -> bool:
        return identity in ended and not RunFolder(runs_folder() / identity).result_file.is_file()

    found = []
    for task in tasks:
        if task.identity in ended or has_result(task):
            continue
        members = zip(task.run.members, task.needs, strict=True)
        missing = [member_title(task.run, member) for member, need in members if is_elsewhere(need)]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            found.append((task, f"needs {missing[0]}, which has not been trained on this machine{more}"))
    return found


def plan_variant(tasks: Sequence[Task], terms: LaunchTerms, ended: set[str], estimator: Estimator) -> VariantPlan:
    """Return the remaining work of the runs of one variant."""
    run = tasks[0].run
    unfinished = [task for task in tasks if task.identity not in ended and not has_result(task)]
    resumed = tuple(step for step in (RunFolder(task.folder).last_step() for task in unfinished) if step)
    work = len(unfinished) * work_units(run)
    trained = run.members[0] if isinstance(run, DerivedRun) and run.members else run
    data = trained.recipe.data.name if isinstance(trained, Run) else RANDOM_PIXELS
    if isinstance(run, Run):
        work -= sum(resumed) * run.recipe.train.batch_size
    devices = task_devices(terms, tasks[0])
    estimate = estimator.estimate(run, devices) if unfinished else Estimate(0.0, 0, "")
    return VariantPlan(
        experiment=run.experiment,
        scale=run.scale,
        variant=run.variant,
        kind="run" if isinstance(run, Run) else "derived run",
        data=data,
        runs=len(tasks),
        finished=len(tasks) - len(unfinished),
        resumed=resumed,
        devices=devices,
        images=work if isinstance(run, Run) else 0,
        hours=work * estimate.seconds / 3600 if estimate else None,
        estimated_from=(estimate.runs, estimate.where) if estimate else (0, ""),
    )


def start_launch(plan: LaunchPlan, code: Path) -> Launch:
    """Write the launch file. Tasks that failed, were cancelled or ran out of budget are to be trained again."""
    mark_left_out(plan)
    with explain_write_errors(home()):
        for task in plan.todo:
            folder = RunFolder(task.folder)
            if folder.unfinished() or folder.stop_reason():
                folder.clear_unfinished()
        return launches.create_launch(plan.request.title, code, plan.request.terms, tuple(plan.tasks))


def mark_left_out(plan: LaunchPlan) -> None:
    """Mark the derived runs that cannot be made as failed, with the reason, as `repro run` does."""
    with explain_write_errors(home()):
        for task, why in plan.left_out:
            launches.mark_unfinished(task, "failed", why)


def cancel_runs(
    selected: Iterable[Launch], only: str | None, *, supervised: bool, training: Container[str]
) -> list[Task]:
    """Cancel the run with identity `only`, or all runs, of these launches; return the tasks that had not ended.

    A live supervisor, or the process that trains a run (`training`: their identities), follows the stop request.
    Without either, the run is marked as cancelled here. The stop request is written in that case too: a supervisor
    that was only unresponsive will find it.
    """
    found: dict[str, Task] = {}
    for launch in selected:
        tasks = [replace(task, folder=runs_folder() / task.identity) for task in launch.tasks]
        for task in tasks:
            if task.identity in found or only not in (None, task.identity) or is_task_over(task):
                continue
            found[task.identity] = task
            with explain_write_errors(home()):
                if not supervised and task.identity not in training:
                    launches.mark_unfinished(task, "cancelled", "cancelled by repro cancel")
                # After marking, which deletes an earlier request.
                RunFolder(task.folder).request_stop("cancelled")
        if not supervised and all(map(is_task_over, tasks)):
            launches.mark_ended(launch.id)
    return list(found.values())


def is_task_over(task: Task) -> bool:
    """Return whether a task has a result, or was left unfinished for a reason."""
    return has_result(task) or bool(RunFolder(task.folder).unfinished())


def with_devices(launch: Launch, devices: int, runs_per_device: int = 1) -> Launch:
    """Change the devices per run in a launch and its file; UserError where a run cannot use that many."""
    for task in launch.tasks:
        check_global_batch([task.run] if task.is_distributable else [], devices, task.device_batch)
    changed = replace(launch, terms=replace(launch.terms, devices=devices, runs_per_device=runs_per_device))
    with explain_write_errors(home()):
        launches.write_launch(changed)
    return changed
