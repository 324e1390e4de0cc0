"""The environment of the machine does not reach the tests, and long files start first."""

import os
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
    assert set(found) == {"PATH", "HOME", "PYTHONPATH", "LANG", *environment.SETTINGS}
