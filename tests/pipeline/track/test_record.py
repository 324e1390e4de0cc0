"""A record comes back as it was written, and says truly which commit, lock and machine it was made with."""

import hashlib
import json
import subprocess

import pytest

from pipeline.common import provenance
from pipeline.common.provenance import commit, git, hardware_name, library_versions, lock_hash
from pipeline.track.record import Record


def test_a_record_survives_json(experiment, record):
    made = record(experiment, "plain-20", 3, 9.5, changes={"train.lr": 0.05, "train.lr_drops.at": [1, 2]})
    assert Record.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_keys_of_a_later_version_are_left_aside(experiment, record):
    made = record(experiment, "plain-20", 0, 9.5)
    assert Record.from_dict(made.to_dict() | {"watts": 300}) == made


def test_a_record_older_than_training_on_several_devices_was_made_on_one(experiment, record):
    raw = record(experiment, "plain-20", 0, 9.5).to_dict()
    del raw["world"], raw["device_batch"]
    old = Record.from_dict(raw)
    assert (old.world, old.device_batch) == (1, 0)  # 0: what batch normalisation saw at a time is not known


def test_a_missing_key_is_no_record(experiment, record):
    raw = record(experiment, "plain-20", 0, 9.5).to_dict()
    del raw["declaration"]
    with pytest.raises(TypeError, match="declaration"):
        Record.from_dict(raw)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout in the project's place."""
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


def test_a_clean_checkout_is_its_commit(checkout):
    assert commit.__wrapped__() == git("rev-parse", "HEAD")
    assert len(commit.__wrapped__()) == 40


@pytest.mark.parametrize("file", ["lightning_modules/resnet.py", "lightning_modules/new.py", "requirements.lock"])
def test_what_computes_and_is_not_committed_makes_it_dirty(checkout, file):
    (checkout / file).write_text("two\n", encoding="utf-8")
    assert commit.__wrapped__() == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize("file", ["RESULTS.md", "notes.txt", "lightning_modules/__pycache__/resnet.pyc"])
def test_a_written_report_or_an_ignored_file_does_not(checkout, file):
    (checkout / file).parent.mkdir(exist_ok=True)
    (checkout / file).write_text("two\n", encoding="utf-8")
    assert commit.__wrapped__() == git("rev-parse", "HEAD")


def test_outside_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "pyproject.toml").touch()
    assert commit.__wrapped__() == "unknown"


def test_installed_inside_somebody_elses_checkout_it_is_unknown_too(checkout, monkeypatch):
    inside = checkout / "venv" / "site-packages"
    inside.mkdir(parents=True)
    monkeypatch.setattr(provenance, "ROOT", inside)
    assert commit.__wrapped__() == "unknown"


def test_the_lock_is_the_files_hash_or_that_of_what_is_installed(checkout):
    assert lock_hash.__wrapped__() == hashlib.sha256(b"one\n").hexdigest()[:16]
    (checkout / "requirements.lock").unlink()
    assert lock_hash.__wrapped__().startswith("installed-")


def test_the_libraries_that_compute_are_named_with_their_versions():
    assert {"python", "torch", "torchvision", "pytorch-lightning", "numpy"} == set(library_versions())
    assert all(version[0].isdigit() for version in library_versions().values())


def test_the_hardware_has_a_name():
    assert hardware_name().strip(" ,")
