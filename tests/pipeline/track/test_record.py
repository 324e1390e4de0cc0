"""Test records: made from a task, and read back also from other versions."""

import json
from pathlib import Path

import pytest

from pipeline.common.provenance import commit, hardware_name, library_versions, lock_hash
from pipeline.plan.task import Task
from pipeline.track.record import Record, make_record
from tests.support.plans import first_run


def test_record_is_read_back_from_json(experiment, record):
    made = record(experiment, "plain-20", 3, 9.5, changes={"train.lr": 0.05, "train.lr_drops.at": [1, 2]})
    assert Record.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_unknown_keys_of_a_later_version_are_ignored(experiment, record):
    made = record(experiment, "plain-20", 0, 9.5)
    assert Record.from_dict(made.to_dict() | {"watts": 300}) == made


def test_record_without_world_was_made_on_one_device(experiment, record):
    raw = record(experiment, "plain-20", 0, 9.5).to_dict()
    del raw["world"], raw["device_batch"]
    old = Record.from_dict(raw)
    assert (old.world, old.device_batch) == (1, 0)  # 0: unknown


def test_missing_key_is_an_error_with_its_name(experiment, record):
    raw = record(experiment, "plain-20", 0, 9.5).to_dict()
    del raw["declaration"]
    with pytest.raises(TypeError, match="declaration"):
        Record.from_dict(raw)


def test_a_record_says_how_many_runs_shared_the_device(experiment, record, monkeypatch):
    task = Task(first_run(experiment), "identity", "code", {"name": "d", "sha256": "0" * 64}, Path("f"), Path("d"))
    about = {
        "ended": "1 step",
        "metrics": {},
        "precision": "fp32",
        "compiled": False,
        "threads": 1,
        "seconds": 1.0,
    }
    assert make_record(task, status="finished", **about).runs_per_device == 1
    monkeypatch.setenv("REPRO_RUNS_PER_DEVICE", "4")
    assert make_record(task, status="finished", **about).runs_per_device == 4
    raw = record(experiment, "plain-20", 0, 9.5).to_dict()
    del raw["runs_per_device"]
    assert Record.from_dict(raw).runs_per_device == 1


def test_make_record_takes_provenance_from_task_and_machine(experiment):
    run = first_run(experiment, changes={"train.lr": 0.05})
    manifest = {"name": "cifar10", "sha256": "0123456789abcdef" * 4}
    task = Task(run, "identity", "code", manifest, Path("/runs/identity"), Path("/data"))
    made = make_record(
        task,
        status="finished",
        ended="64000 steps",
        metrics={"test/top1_error_pct": 9.5},
        precision="fp32",
        compiled=False,
        threads=2,
        seconds=1.5,
        world=4,
        device_batch=32,
    )
    assert (made.identity, made.code, made.declaration) == ("identity", "code", run.declaration)
    assert (made.experiment, made.scale, made.variant, made.seed) == ("toy/depth", "paper", "plain-20", 0)
    assert (made.manifest, made.data) == ("0123456789abcdef", "cifar10")
    assert made.changes == {"train.lr": 0.05}
    assert (made.status, made.ended, made.metrics) == ("finished", "64000 steps", {"test/top1_error_pct": 9.5})
    assert (made.precision, made.compiled, made.threads, made.seconds) == ("fp32", False, 2, 1.5)
    assert (made.world, made.device_batch, made.members, made.run_id) == (4, 32, (), "")
    assert (made.lock, made.commit) == (lock_hash(), commit())
    assert (made.hardware, made.libraries) == (hardware_name(), library_versions())
    assert made.finished.endswith("+00:00")
