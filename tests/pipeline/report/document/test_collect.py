"""Test what a report is collected from: addresses of runs, and when coverage is known."""

from dataclasses import replace

from pipeline.report.document import collect
from pipeline.report.document.collect import printed_of, run_addresses


def test_a_run_s_page_needs_a_server_with_its_experiment(experiment, record, monkeypatch):
    monkeypatch.setattr(collect, "find_experiment", lambda uri, name: "7" if name == "toy" else None)
    run = record(experiment, "plain-20", 0, 9.5)
    address = run_addresses("http://user:secret@server:5000/")
    assert address(run) == "http://server:5000/#/experiments/7/runs/mlflow-plain-20-0"
    assert address(record(experiment, "plain-20", 0, 9.5, run_id="")) == ""
    assert address(replace(run, experiment="other/file")) == ""
    assert run_addresses("sqlite:////tmp/mlflow.db")(run) == ""
    assert run_addresses("")(run) == ""


def test_coverage_is_known_only_with_all_experiments(experiment):
    assert printed_of([experiment]) == []
