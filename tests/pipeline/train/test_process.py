"""The process that trains depends neither on a batch system nor on Lightning's own environment variables."""

import os
import warnings

import pytest

from pipeline.train.process import prepare_process
from tests.support.clean_environment import IGNORED
from tests.support.smoke_runs import journal_metrics, smoke_run, stop_after, train_in, weights


@pytest.fixture
def plain_run(finished_run):
    """Folder of a run trained without any of these variables."""
    return finished_run(0)


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """A Slurm installation: an `srun` on PATH."""
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("srun")
def test_slurm_on_this_machine_prints_no_warning(tmp_path, capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_in(tmp_path / "run", smoke_run(), stop=stop_after(1))
    assert not [warning for warning in caught if "srun" in str(warning.message)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("srun")
@pytest.mark.parametrize("prefix", ["SLURM_", "OMPI_", "PL_", ""])
def test_variables_of_launchers_and_lightning_change_no_bit(plain_run, tmp_path, monkeypatch, prefix):
    for name, value in IGNORED.items():
        if name.startswith(prefix):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("not a checkpoint", encoding="utf-8")  # Slurm jobs resume from it
    train_in(tmp_path / "run", smoke_run())
    assert weights(tmp_path / "run") == weights(plain_run)
    assert journal_metrics(tmp_path / "run") == journal_metrics(plain_run)


def test_trainer_arguments_are_removed_from_the_environment(monkeypatch):
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "1")
    monkeypatch.setenv("PL_OTHER", "1")
    prepare_process(1)
    assert "PL_TRAINER_MAX_STEPS" not in os.environ
    assert os.environ["PL_OTHER"] == "1"
