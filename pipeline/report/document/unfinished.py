"""Runs of this machine that have begun and not ended, for the list of what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.common.paths import runs_folder
from pipeline.declare.experiment import Experiment
from pipeline.judge.collect import is_declared
from pipeline.plan.expand import run_title
from pipeline.track.run_folder import RunFolder


@dataclass(frozen=True)
class UnfinishedRun:
    """A run with a folder and without a result."""

    title: str  # "resnet-20 seed 0"
    experiment: str
    scale: str
    state: str  # "failed", "cancelled", "over-budget"; "stopped" if no reason is recorded
    why: str  # "" if no reason is recorded
    step: int  # the last one in the journal; -1 for none

    @property
    def command(self) -> str:
        """Command that resumes the run."""
        return f"repro run {self.experiment} --scale {self.scale}"


def find_unfinished(experiments: Sequence[Experiment]) -> list[UnfinishedRun]:
    """Return the unfinished runs of these experiments, as declared now and without changes by --set.

    Folders that cannot be read are left out; they are reported when they are sent to MLflow.
    """
    declared = {experiment.name: experiment for experiment in experiments}
    found = []
    for path in sorted(runs_folder().glob("*/run.json")):
        folder = RunFolder(path.parent)
        if folder.result_file.is_file():
            continue
        try:
            run = folder.description()
            experiment = declared.get(run["experiment"])
            if experiment is None or run["changes"] or not is_declared(experiment, run):
                continue
            left = folder.unfinished()
            step = max((entry["step"] for entry, _ in folder.journal()), default=-1)
            found.append(
                UnfinishedRun(
                    title=run_title(run["variant"], run["seed"]),
                    experiment=experiment.name,
                    scale=run["scale"],
                    state="training" if folder.is_training() else str(left.get("why", "stopped")),
                    why=str(left.get("text", "")),
                    step=step,
                )
            )
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sorted(found, key=lambda run: (run.experiment, run.scale, run.title))
