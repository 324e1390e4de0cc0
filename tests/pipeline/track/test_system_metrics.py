"""System metrics: lines in the run's folder where they are switched on, else nothing."""

import json
import threading
import time

import pytest

from pipeline.track import system_metrics as module
from pipeline.track.run_folder import RunFolder
from pipeline.track.system_metrics import is_switched_on, system_metrics


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def samples(folder):
    return [entry for entry, _ in folder.system_metrics()]


def record_three(folder):
    """Record system metrics until the file has three samples; return them."""
    with system_metrics(folder):
        end = time.monotonic() + 60
        while len(samples(folder)) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    return samples(folder)


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_the_switch_is_that_of_mlflow(monkeypatch, text, expected):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", text)
    assert is_switched_on() is expected


def test_nothing_is_written_unless_they_are_switched_on(folder):
    before = threading.active_count()
    with system_metrics(folder):
        assert threading.active_count() == before
    assert not folder.system_file.exists()


def test_samples_of_the_processor_and_the_memory_are_appended_and_numbered_on(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    folder.system_file.write_text('{"step": 0, "time": 1.0, "metrics": {}}\n')  # of an interrupted attempt
    found = record_three(folder)
    assert [entry["step"] for entry in found] == list(range(len(found)))
    assert found[1]["metrics"].keys() >= {"cpu_utilization_percentage", "system_memory_usage_megabytes"}
    assert abs(found[1]["time"] - time.time()) < 120
    assert folder.system_file.read_text()[-1] == "\n"


def test_a_line_that_was_cut_is_removed_and_a_damaged_one_is_skipped(folder, monkeypatch):
    """A kill or a full disk in the middle of a line; the run is tracked all the same."""
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setattr(module, "make_monitors", list)
    line = '{"step": 0, "time": 1.0, "metrics": {}}\n'
    folder.system_file.write_text(line + line[:20] + line + line[:20])
    found = record_three(folder)
    assert [entry["step"] for entry in found] == list(range(len(found)))
    assert folder.system_file.read_text().startswith(line + line[:20] + line + '{"step": 1,')


def test_a_full_disk_does_not_stop_the_training(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    folder.system_file.mkdir()  # cannot be written
    monkeypatch.setattr(module, "make_monitors", list)
    with system_metrics(folder):
        time.sleep(0.05)


def test_a_sample_is_plain_json(folder, monkeypatch):
    class Monitor:
        def collect_metrics(self):
            pass

        def aggregate_metrics(self):
            return {"x": 1.5}

        def clear_metrics(self):
            pass

    monkeypatch.setattr(module, "make_monitors", lambda: [Monitor()])
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    over = threading.Event()
    monkeypatch.setattr(over, "wait", lambda _: over.set())
    module.record_samples(folder, over)
    [line] = folder.system_file.read_text().splitlines()
    assert json.loads(line)["metrics"] == {"x": 1.5}
