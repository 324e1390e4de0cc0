"""The request of a launch on a cluster: its experiments, devices and limits, and the runs that it selects."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster.launches import LaunchTerms
from pipeline.common.errors import UserError
from pipeline.common.words import plural
from pipeline.declare.load import EXPERIMENTS, load_experiment
from pipeline.declare.overrides import yaml_flow
from pipeline.declare.suites import check_suite, suite_at
from pipeline.plan.expand import DerivedRun, Run, plan_runs, title_of


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
