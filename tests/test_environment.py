"""The environment of the machine changes neither what a test finds nor what a run computes and prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import clean_environment as environment
from tests.support.file_order import LONGEST_FIRST

ROOT = Path(__file__).parents[1]


def test_the_tests_run_without_the_machines_variables():
    assert not {name for name, value in environment.HOSTILE.items() if os.environ.get(name) == value}
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_hostile_variables_are_removed_before_the_tests_start():
    test = f"{__file__}::{test_the_tests_run_without_the_machines_variables.__name__}"
    words = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", test]
    hostile = os.environ | environment.HOSTILE
    done = subprocess.run(words, env=hostile, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("prefix", environment.PREFIXES)
def test_every_prefix_has_a_hostile_value(prefix):
    assert any(name.startswith(prefix) for name in environment.HOSTILE)


def test_files_that_start_first_exist():
    assert [name for name in LONGEST_FIRST if not (ROOT / "tests" / name).is_file()] == []


def test_other_variables_are_kept():
    found = {"PATH": "/bin", "HOME": "/root", "PYTHONPATH": "x", "LANG": "C", "SLURM_NTASKS": "2", "no_proxy": "*"}
    environment.clean_environment(found)
    assert set(found) == {"PATH", "HOME", "PYTHONPATH", "LANG", "OMP_NUM_THREADS"}


def test_a_run_in_a_hostile_environment_has_the_same_bits_and_prints_no_more(tmp_path):
    """A shell in a Slurm or MPI job, with a fake `srun` on PATH and a checkpoint that Lightning would take up."""
    from tests.support.smoke_runs import RESNET, journal_metrics, weights

    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text("#!/bin/sh\nexit 1\n")
    srun.chmod(0o755)
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("not a checkpoint")
    words = ("run", RESNET, "--scale", "smoke", "--variant", "resnet-20", "--seeds", "1")
    results = []
    for name, extra in (
        ("plain", {}),
        ("hostile", environment.IGNORED | {"PATH": f"{srun.parent}:{os.environ['PATH']}"}),
    ):
        home = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words],
            env=os.environ | {"PYTHONPATH": str(ROOT), "REPRO_HOME": str(home)} | extra,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        [folder] = [path.parent for path in home.rglob("result.json")]
        printed = (done.stdout + done.stderr).replace(str(home), "")
        lines = re.sub(r"trained in \d+ s|\d+ % of all steps", "", printed).split("\n")
        results.append(
            (done.returncode, [line for line in lines if line], weights(folder), journal_metrics(folder))
        )
    (code, lines, *trained), (hostile_code, hostile_lines, *hostile_trained) = results
    assert (code, hostile_code) == (0, 0)
    assert hostile_lines == lines
    assert hostile_trained == trained
