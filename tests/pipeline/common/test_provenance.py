"""Provenance: commit, lock, libraries and hardware of a result."""

import hashlib
import os
import re
import subprocess

import pytest
import torch

from pipeline.common import provenance
from pipeline.common.provenance import COMMIT_FILE, commit, git, hardware_name, library_versions, lock_hash


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout in place of the project's folder."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "lightning_modules").mkdir()
    for file in ("pyproject.toml", "requirements.lock", "RESULTS.md", "lightning_modules/resnet.py"):
        (tmp_path / file).write_text("one\n", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("__pycache__\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    git("add", ".")
    git(
        "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false", "commit", "-qm", "one"
    )
    return tmp_path


def test_the_commit_of_a_clean_checkout_is_that_of_its_head(checkout):
    assert commit.__wrapped__() == git("rev-parse", "HEAD")
    assert len(commit.__wrapped__()) == 40


@pytest.mark.parametrize("file", ["lightning_modules/resnet.py", "lightning_modules/new.py", "requirements.lock"])
def test_uncommitted_code_makes_the_commit_dirty(checkout, file):
    (checkout / file).write_text("two\n", encoding="utf-8")
    assert commit.__wrapped__() == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize("file", ["RESULTS.md", "notes.txt", "lightning_modules/__pycache__/resnet.pyc"])
def test_reports_and_ignored_files_do_not_make_the_commit_dirty(checkout, file):
    (checkout / file).parent.mkdir(exist_ok=True)
    (checkout / file).write_text("two\n", encoding="utf-8")
    assert commit.__wrapped__() == git("rev-parse", "HEAD")


def test_a_code_copy_has_the_commit_in_a_file(checkout):
    (checkout / COMMIT_FILE).write_text("0123abcd-dirty\n", encoding="utf-8")
    assert commit.__wrapped__() == "0123abcd-dirty"


def test_a_git_command_that_fails_is_an_error(checkout):
    with pytest.raises(subprocess.CalledProcessError):
        git("rev-parse", "no-such-branch")


def test_without_git_the_commit_is_unknown(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit.__wrapped__() == "unknown"


def test_outside_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "pyproject.toml").touch()
    assert commit.__wrapped__() == "unknown"


def test_the_commit_of_a_package_installed_inside_another_checkout_is_unknown(checkout, monkeypatch):
    inside = checkout / "venv" / "site-packages"
    inside.mkdir(parents=True)
    monkeypatch.setattr(provenance, "ROOT", inside)
    assert commit.__wrapped__() == "unknown"


def test_the_lock_hash_is_that_of_the_file_or_of_the_installed_distributions(checkout):
    assert lock_hash.__wrapped__() == hashlib.sha256(b"one\n").hexdigest()[:16]
    (checkout / "requirements.lock").unlink()
    installed = lock_hash.__wrapped__()
    assert re.fullmatch("installed-[0-9a-f]{16}", installed)
    assert lock_hash.__wrapped__() == installed


def test_library_versions_name_every_library():
    assert {"python", "torch", "torchvision", "pytorch-lightning", "numpy"} == set(library_versions())
    assert all(version[0].isdigit() for version in library_versions().values())


def test_the_hardware_has_a_name():
    assert hardware_name().strip(" ,")


def test_the_hardware_of_a_gpu_machine_is_the_name_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert hardware_name.__wrapped__() == "a GPU"


def test_the_hardware_of_a_cpu_machine_names_its_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.fullmatch(rf".+, {os.cpu_count()} cores", hardware_name.__wrapped__())


def test_the_hardware_of_runs_that_share_a_device_says_so(monkeypatch):
    alone = hardware_name.__wrapped__()
    monkeypatch.setenv("REPRO_RUNS_PER_DEVICE", "4")
    assert hardware_name.__wrapped__() == f"{alone}, shared by 4 runs"
