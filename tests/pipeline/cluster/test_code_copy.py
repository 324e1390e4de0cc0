"""The copy of the code that a launch trains with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import code_copy
from pipeline.cluster.code_copy import code_files, copy_code
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.load import experiment_names


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A REPRO_HOME."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_copy_holds_every_file_of_the_packages():
    copied = {path.relative_to(ROOT) for path in code_files(ROOT)}
    for package in code_copy.PACKAGES:
        files = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if path.is_file()}
        missing = {path for path in files - copied if "__pycache__" not in path.parts}
        assert missing == set(), "add their suffix to code_copy.CODE_SUFFIXES"
    assert {Path("pyproject.toml"), Path("requirements.lock")} <= copied


def make_checkout(root: Path) -> Path:
    """Write a small checkout, with files that belong to no package."""
    files = {
        "pipeline/a.py": "a",
        "lightning_modules/b.py": "b",
        "experiments/c/d.yaml": "d",
        "pyproject.toml": "p",
    }
    extra = {"pipeline/__pycache__/a.py": "x", "tests/t.py": "t", "data/big.bin": "x", "pipeline/notes.swp": "x"}
    for name, text in (files | extra).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def names_in(folder: Path) -> set[str]:
    """Return the relative paths of all files in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_made_once_for_each_content(tmp_path, home, monkeypatch):
    monkeypatch.setattr(code_copy, "commit", lambda: "0123-dirty")
    root = make_checkout(tmp_path / "checkout")
    first = copy_code(root)
    assert names_in(first) == {
        "pipeline/a.py",
        "lightning_modules/b.py",
        "experiments/c/d.yaml",
        "pyproject.toml",
        "COMMIT",
    }
    assert (first / "COMMIT").read_text() == "0123-dirty\n"
    made_at = first.stat().st_mtime_ns
    assert copy_code(root) == first
    assert first.stat().st_mtime_ns == made_at
    (root / "pipeline" / "a.py").write_text("changed", encoding="utf-8")
    second = copy_code(root)
    assert second != first
    assert (first / "pipeline" / "a.py").read_text() == "a"
    assert copy_code(first) == first  # a command that runs from a copy makes no new one
    assert sorted(path.name for path in (home / "code").iterdir()) == sorted([first.name, second.name])


def test_a_copy_that_cannot_be_written_leaves_nothing(tmp_path, home, monkeypatch):
    root = make_checkout(tmp_path / "checkout")
    write = Path.write_bytes

    def full(self, data):
        if self.name == "d.yaml":
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write to .*home: no space left on device"):
        copy_code(root)
    assert list((home / "code").iterdir()) == []
    monkeypatch.setattr(Path, "write_bytes", write)
    assert (copy_code(root) / "experiments" / "c" / "d.yaml").read_text() == "d"


def test_concurrent_commands_make_one_copy(tmp_path, home, monkeypatch):
    root = make_checkout(tmp_path / "checkout")
    rename = Path.rename

    def late(self, target):  # another command creates the folder first
        target.mkdir(parents=True)
        (target / "whole").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    folder = copy_code(root)
    assert names_in(folder) == {"whole"}
    assert list((home / "code").iterdir()) == [folder]


def test_a_command_runs_from_the_copy_alone(home):
    folder = copy_code()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(folder)}
    code = (
        "import pipeline.cli.main; from pipeline.common.paths import ROOT;"
        "from pipeline.common.provenance import commit; from pipeline.declare.load import experiment_names;"
        "print(ROOT, commit(), len(experiment_names()))"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=home, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(folder),
        (folder / "COMMIT").read_text().strip(),
        str(len(experiment_names())),
    ]
