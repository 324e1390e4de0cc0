"""Test reading curves and weights of finished runs."""

import pytest
import torch
from safetensors.torch import save_file

from pipeline.common.paths import runs_folder
from pipeline.report.run_files import RunFiles, unread_sentences
from pipeline.track.mlflow_errors import RefusedError, TrackingError
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
    read = RunFiles(OneCurve()).curve
    assert read(record, TEST) == [(10, 80.0), (20, 40.0), (30, 9.0)]
    assert read(record, "train/loss") == [(30, 1.0)]


def test_tracking_server_has_the_curves_of_other_machines(run):
    record, _ = run
    assert RunFiles(OneCurve()).curve(record, TEST) == [(100, 50.0), (200, 10.0)]
    assert RunFiles(None).curve(record, TEST) == []


def test_weights_are_those_of_the_folder(run):
    record, folder = run
    assert RunFiles(None).weights(record) is None
    save_file({"conv1.weight": torch.ones(2, 3)}, folder.network_file)
    assert RunFiles(None).weights(record)["conv1.weight"].tolist() == [[1, 1, 1], [1, 1, 1]]


def journal_of(folder, *lines):
    folder.journal_file.write_text("".join(f"{line}\n" for line in lines))


ENTRY = '{"step": 10, "time": 0.0, "metrics": {"test/top1_error_pct": 80.0}}'


@pytest.mark.parametrize(
    "line",
    ['{"step": 20, "time"', "", "[]", '{"step": 20}', '{"step": 20, "metrics": {"test/top1_error_pct": null}}'],
)
def test_a_damaged_journal_is_named_with_its_line_and_left_out(run, line):
    record, folder = run
    journal_of(folder, ENTRY, line, ENTRY)
    files = RunFiles(None)
    assert files.curve(record, TEST) == []
    assert files.unread == {record.identity: f"{folder.journal_file} is damaged: line 2 is not a journal entry"}
    assert unread_sentences([record], files.unread) == [
        f"plain-20 seed 0 of {record.experiment} at paper scale: {files.unread[record.identity]}"
    ]


def test_a_half_written_last_line_is_no_damage(run):
    record, folder = run
    folder.journal_file.write_text(f'{ENTRY}\n{{"step": 20, "ti')
    files = RunFiles(None)
    assert (files.curve(record, TEST), files.unread) == ([(10, 80.0)], {})


def test_the_tracking_server_replaces_a_damaged_journal(run):
    record, folder = run
    journal_of(folder, ENTRY[:20])
    files = RunFiles(OneCurve())
    assert files.curve(record, TEST) == [(100, 50.0), (200, 10.0)]
    assert files.unread == {}


class Refusing:
    """Tracker that raises an error and counts how often it is asked."""

    def __init__(self, error):
        self.error, self.asked = error, 0

    def curves(self, run_id, metric):
        self.asked += 1
        raise self.error


def test_a_server_that_does_not_answer_is_asked_once(run, experiment):
    first, _ = run
    second = fake_record(experiment, "plain-20", 1, 9.0)
    tracker = Refusing(TrackingError("the tracking server cannot be used: refused"))
    files = RunFiles(tracker)
    assert [files.curve(record, TEST) for record in (first, second, first)] == [[], [], []]
    assert tracker.asked == 1
    reason = "its journal is not on this machine; the tracking server cannot be used: refused"
    assert files.unread == {first.identity: reason, second.identity: reason}


def test_a_refused_request_concerns_one_run(run):
    record, _ = run
    tracker = Refusing(RefusedError("the tracking server refuses: no run"))
    files = RunFiles(tracker)
    assert [files.curve(record, TEST) for _ in range(2)] == [[], []]
    assert (tracker.asked, files.unread) == (1, {record.identity: "the tracking server refuses: no run"})


def test_a_journal_without_a_metric_is_complete(run):
    record, folder = run
    journal_of(folder, ENTRY)
    tracker = Refusing(AssertionError("asked"))
    assert RunFiles(tracker).curve(record, "train/loss") == []


def test_damaged_weights_are_left_out(run):
    record, folder = run
    folder.network_file.write_bytes(b"no tensors")
    files = RunFiles(None)
    assert files.weights(record) is None
    assert files.unread[record.identity].startswith(f"{folder.network_file} cannot be read (")


def test_a_run_may_have_a_damaged_journal_and_damaged_weights(run):
    record, folder = run
    folder.network_file.write_bytes(b"no tensors")
    folder.journal_file.write_text("no entry\n", encoding="utf-8")
    files = RunFiles(None)
    files.curve(record, TEST)
    files.weights(record)
    damaged, unreadable = files.unread[record.identity].split("; ")
    assert damaged == f"{folder.journal_file} is damaged: line 1 is not a journal entry"
    assert unreadable.startswith(f"{folder.network_file} cannot be read (")
