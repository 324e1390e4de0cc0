"""Test reading curves and weights of finished runs."""

import pytest
import torch
from safetensors.torch import save_file

from pipeline.common.paths import runs_folder
from pipeline.report.run_files import curve_reader, read_run_weights
from pipeline.track.run_folder import RunFolder
from tests.support.fake_records import fake_record

TEST = "test/top1_error_pct"


class OneCurve:
    """Tracker whose runs have the same curve."""

    def curves(self, run_id, metric):
        return [(100, 50.0), (200, 10.0)]


@pytest.fixture
def run(experiment, tmp_path, monkeypatch):
    """The record of a run and its empty folder."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    record = fake_record(experiment, "plain-20", 0, 9.0)
    folder = RunFolder(runs_folder() / record.identity)
    folder.path.mkdir(parents=True)
    return record, folder


def test_journal_is_read_and_ends_with_the_last_model(run):
    record, folder = run
    for step, metrics in ((10, {TEST: 80.0}), (20, {TEST: 40.0}), (30, {"train/loss": 1.0})):
        folder.append_journal({"step": step, "time": 0.0, "metrics": metrics})
    read = curve_reader(OneCurve())
    assert read(record, TEST) == [(10, 80.0), (20, 40.0), (30, 9.0)]
    assert read(record, "train/loss") == [(30, 1.0)]


def test_tracking_server_has_the_curves_of_other_machines(run):
    record, _ = run
    assert curve_reader(OneCurve())(record, TEST) == [(100, 50.0), (200, 10.0)]
    assert curve_reader(None)(record, TEST) == []


def test_weights_are_those_of_the_folder(run):
    record, folder = run
    assert read_run_weights(record) is None
    save_file({"conv1.weight": torch.ones(2, 3)}, folder.network_file)
    assert read_run_weights(record)["conv1.weight"].tolist() == [[1, 1, 1], [1, 1, 1]]
