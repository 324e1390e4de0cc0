"""Records: they are read back as written, also those of other versions."""

import json

import pytest

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
