"""Test the list of unfinished runs: which folders, their reasons, and what is left out."""

import pytest

from pipeline.common.locks import file_lock
from pipeline.common.paths import runs_folder
from pipeline.plan.expand import plan_runs
from pipeline.report.document.unfinished import find_unfinished
from pipeline.track.run_folder import RunFolder


@pytest.fixture
def begin(experiment, monkeypatch, tmp_path):
    """Function that creates the folder of a run of the experiment."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))

    def create(seed=0, **other):
        run = next(run for run in plan_runs(experiment, scale="smoke") if run.seed == seed)
        described = {"experiment": run.experiment, "scale": run.scale, "variant": run.variant, "seed": seed}
        folder = RunFolder(runs_folder() / f"run-{seed}")
        folder.create(described | {"changes": {}, "declaration": run.declaration} | other)
        return folder

    return create


def test_a_stopped_run_has_its_last_step_and_the_command_that_resumes_it(experiment, begin):
    folder = begin()
    folder.append_journal({"step": 6, "time": 0.0, "metrics": {}})
    (run,) = find_unfinished([experiment])
    assert (run.title, run.state, run.why, run.step) == ("plain-20 seed 0", "stopped", "", 6)
    assert run.command == "repro run toy/depth --scale smoke"


def test_a_failed_run_has_its_reason(experiment, begin):
    begin().mark_unfinished("failed", "no space left on device")
    (run,) = find_unfinished([experiment])
    assert (run.state, run.why, run.step) == ("failed", "no space left on device", -1)


def test_other_folders_are_left_out(experiment, begin):
    begin(0, declaration="of an earlier recipe")
    begin(1, changes={"train.lr": 1.0})
    begin(2).result_file.write_text("{}")  # ended
    (runs_folder() / "damaged").mkdir()
    (runs_folder() / "damaged" / "run.json").write_text("{")
    assert find_unfinished([experiment]) == []
    assert find_unfinished([]) == []


def test_a_run_whose_lock_is_held_is_in_training(experiment, begin):
    folder = begin()
    with file_lock(folder.lock_file):
        [run] = find_unfinished([experiment])
    assert run.state == "training"
