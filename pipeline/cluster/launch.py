"""Plan a launch on a cluster, start it, and cancel its runs."""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.cluster import launches
from pipeline.cluster.estimate import Estimate, Estimator, work_units
from pipeline.cluster.launch_request import LaunchRequest, LaunchSelection, check_global_batch
from pipeline.cluster.launches import Launch, LaunchTerms, task_devices
from pipeline.cluster.sharing import Devices
from pipeline.common.errors import explain_write_errors
from pipeline.common.paths import home, runs_folder
from pipeline.common.words import plural
from pipeline.declare.derived import RANDOM_PIXELS
from pipeline.plan.expand import DerivedRun, Run, member_title
from pipeline.plan.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder


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
    """Return the unfinished tasks that need a network trained on another machine, and the reason.

    Those that need one of these follow. `tasks` are in the order of their needs.
    """
    left_out: set[str] = set()

    def is_elsewhere(identity: str) -> bool:
        return identity in left_out or (
            identity in ended and not RunFolder(runs_folder() / identity).result_file.is_file()
        )

    found = []
    for task in tasks:
        if task.identity in ended or has_result(task):
            continue
        members = zip(task.run.members, task.needs, strict=True)
        missing = [member_title(task.run, member) for member, need in members if is_elsewhere(need)]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            found.append((task, f"needs {missing[0]}, which has not been trained on this machine{more}"))
            left_out.add(task.identity)
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
