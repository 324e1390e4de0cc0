"""Run folders and reports in MLflow: content, no duplicates, unreachable servers."""

import contextlib
import errno
import json
import os
import sqlite3
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.ddl.sqlite import SQLiteImpl
from click.testing import CliRunner
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError
from urllib3.connection import HTTPConnection

from pipeline.cli.remote import publish_launches
from pipeline.cluster.launches import LaunchTerms, create_launch
from pipeline.common.errors import UserError
from pipeline.declare.load import load_experiment
from pipeline.judge.collect import collect_runs
from pipeline.plan.expand import plan_runs
from pipeline.report.publish import make_report, mlflow_note
from pipeline.schedule import execute, local
from pipeline.schedule.reproduce import run_tasks
from pipeline.track import mlflow_writer as tracking
from pipeline.track.folder_content import flatten
from pipeline.track.mlflow_errors import TrackingError
from pipeline.track.mlflow_pages import aggregate_metrics, publish_experiment, publish_imported
from pipeline.track.mlflow_reader import read_tracked_runs, redact
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from tests.support.mlflow_servers import Server
from tests.support.smoke_runs import (
    RESNET,
    journal_metrics,
    manifest_of,
    smoke_run,
    smoke_task,
    stop_after,
    train_in,
)

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture(scope="session")
def trained(finished_run):
    """Files of a finished run: name -> bytes."""
    return {file.name: file.read_bytes() for file in finished_run(0).iterdir()}


def placed(home, files):
    identity = json.loads(files["run.json"])["identity"]
    path = home / "runs" / identity
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return RunFolder(path)


def runs_of(client):
    """Return all runs in MLflow except those of networks: (parents, children)."""
    ids = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
    rows = [row for row in client.search_runs(ids) if row.data.tags.get("repro.level") != "network"]
    return [row for row in rows if "mlflow.parentRunId" not in row.data.tags], [
        row for row in rows if "mlflow.parentRunId" in row.data.tags
    ]


def history(client, run_id, metric):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]


# What is sent


def test_a_run_is_a_child_with_recipe_curves_final_metrics_data_and_files(home, client, trained):
    folder = placed(home, trained)
    record = folder.result()
    Tracker().sync(folder)
    [parent], [child] = runs_of(client)
    assert parent.info.run_name == "cifar10_depth @ smoke"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.run_name, child.info.status) == ("resnet-20 seed 0", "FINISHED")

    params = child.data.params
    assert params["seed"] == "0"
    assert (params["model.name"], params["model.depth"], params["model.shortcut"]) == ("resnet_cifar", "20", "A")
    assert (params["train.steps"], params["train.lr"], params["data.name"]) == ("12", "0.1", "noise")
    assert params["train.lr_drops.at"] == "[6, 9]"

    for metric in ("train/loss", "train/top1_error_pct", "test/loss"):
        expected = [(step, found[metric]) for step, found in journal_metrics(folder.path) if metric in found]
        if metric.startswith("test/"):
            expected.append((12, record.metrics[metric]))
        assert history(client, child.info.run_id, metric) == expected
    assert {key: value for key, value in child.data.metrics.items() if key != "seconds"} == record.measured
    assert child.data.metrics["test/images"] == 100

    [data] = [given.dataset for given in child.inputs.dataset_inputs]
    assert (data.name, data.digest) == ("noise", manifest_of("noise").sha256[:36])
    assert json.loads(data.profile) == {"train": 200, "test": 100}

    tags = child.data.tags
    assert (tags["repro.variant"], tags["repro.seed"], tags["repro.departs"]) == ("resnet-20", "0", "no")
    assert tags["repro.manifest"] == manifest_of("noise").sha256
    assert tags["mlflow.source.git.commit"] == record.commit
    assert tags["repro.library.torch"] == record.libraries["torch"]
    assert (tags["repro.world"], tags["repro.device_batch"]) == (str(record.world), str(record.device_batch))
    assert (record.world, record.device_batch) == (1, 20)
    files = {found.path for found in client.list_artifacts(child.info.run_id)}
    assert files == {"network.safetensors", "journal.jsonl"}
    kept = Path(client.download_artifacts(child.info.run_id, "network.safetensors", str(home)))
    assert kept.read_bytes() == trained["network.safetensors"]


def test_a_run_changed_by_set_is_labelled(home, client):
    train_in(home / "runs" / "x", smoke_run(changes={"train.lr": 0.05}))
    Tracker().sync(RunFolder(home / "runs" / "x"))
    _, [child] = runs_of(client)
    assert child.info.run_name == "resnet-20 seed 0 (departs)"
    assert child.data.tags["repro.departs"] == '{"train.lr": 0.05}'


def test_records_are_read_back_with_the_run_id(home, client, trained):
    folder = placed(home, trained)
    tracker = Tracker()
    assert tracker.records() == []
    tracker.sync(folder)
    _, [child] = runs_of(client)
    assert tracker.records() == [replace(folder.result(), run_id=child.info.run_id)]


def test_a_record_longer_than_a_tag_of_mlflow_is_read_back(home, client, trained):
    """The timings of all networks on a GPU are a record of 24,000 characters; MLflow cuts a tag at 8,000."""
    folder = placed(home, trained)
    more = {f"time/network-{number}/batch_64_ms": 0.1 * number for number in range(600)}
    record = replace(folder.result(), metrics=folder.result().metrics | more)
    (folder.path / "result.json").write_text(json.dumps(record.to_dict()))
    tracker = Tracker()
    tracker.sync(folder)
    _, [child] = runs_of(client)
    assert len(child.data.tags["repro.record"]) < 8_000 < len(json.dumps(record.to_dict()))
    assert tracker.records() == [replace(record, run_id=child.info.run_id)]
    assert tracker.search_ended() == tracker.ended()
    with contextlib.closing(Server(home / "mlflow.db", client._tracking_client.store)) as server:
        assert read_tracked_runs(server.uri) == tracker.ended()


def test_of_two_machines_that_trained_a_run_the_first_record_counts(home, client, trained):
    first = placed(home, trained)
    record = first.result()
    other = RunFolder(home / "elsewhere" / first.path.name)
    other.path.mkdir(parents=True)
    for name, content in trained.items():
        (other.path / name).write_bytes(content)
    (other.path / "result.json").unlink()
    tracker = Tracker()
    tracker.sync(other)  # still in training there
    tracker.sync(first)
    [found] = tracker.records()
    points = history(client, found.run_id, "test/top1_error_pct")
    other.finish(replace(record, hardware="another machine", finished="2099-01-01T00:00:00+00:00", metrics={}))
    assert tracker.sync(other)
    assert tracker.records() == [found] == [replace(record, run_id=found.run_id)]
    assert history(client, found.run_id, "test/top1_error_pct") == points
    assert tracker.state(other)["done"]


def test_a_cut_record_is_an_error_of_one_sentence_that_names_the_run(home, client, trained):
    tracker = Tracker()
    tracker.sync(placed(home, trained))
    _, [child] = runs_of(client)
    client.set_tag(child.info.run_id, "repro.record", child.data.tags["repro.record"][:100])
    with pytest.raises(UserError, match=f"MLflow run {child.info.run_id}: its tag repro.record is not a record"):
        tracker.records()


def test_records_of_all_pages_are_read(home, trained, monkeypatch):
    monkeypatch.setattr(tracking, "SEARCH_PAGE_SIZE", 2)
    tracker = Tracker()
    for number in range(5):
        files = dict(trained)
        for name in ("run.json", "result.json"):
            files[name] = json.dumps(json.loads(files[name]) | {"identity": f"run-{number}"}).encode()
        tracker.sync(placed(home, files))
    assert sorted(record.identity for record in tracker.records()) == [f"run-{number}" for number in range(5)]


def test_curves_are_read_back(home, client, trained):
    folder = placed(home, trained)
    tracker = Tracker()
    tracker.sync(folder)
    _, [child] = runs_of(client)
    expected = [(step, found["train/loss"]) for step, found in journal_metrics(folder.path)]
    assert tracker.curves(child.info.run_id, "train/loss") == expected


# No duplicates


def counts(client):
    parents, children = runs_of(client)
    points = {
        (child.info.run_id, metric): len(client.get_metric_history(child.info.run_id, metric))
        for child in children
        for metric in child.data.metrics
    }
    return len(parents), len(children), points


def test_a_folder_sent_twice_is_one_run(home, client, trained):
    folder = placed(home, trained)
    Tracker().sync(folder)
    before = counts(client)
    Tracker().sync(folder)
    assert counts(client) == before
    (folder.path / "tracked.json").unlink()  # as if the process had died before it could note what it sent
    Tracker().sync(folder)
    assert counts(client) == before


@pytest.mark.parametrize("request_number", range(1, 9))
def test_a_server_lost_between_any_two_requests_has_everything_once_afterwards(
    home, client, trained, monkeypatch, request_number
):
    folder = placed(home, trained)
    tracker = Tracker()
    done = []
    for name in ("create_run", "log_batch", "log_inputs", "log_artifact", "set_terminated"):

        def counted(*words, _name=name, **more):
            done.append(_name)
            if len(done) == request_number:
                raise ConnectionError("gone")
            return getattr(client, _name)(*words, **more)

        monkeypatch.setattr(tracker.client, name, counted)
    with pytest.raises(TrackingError):
        tracker.sync(folder)
    Tracker().sync(folder)
    parents, [child] = runs_of(client)
    assert len(parents) == 1
    assert child.info.status == "FINISHED"
    assert child.data.params["seed"] == "0"
    assert len(child.inputs.dataset_inputs) == 1
    assert len(history(client, child.info.run_id, "train/loss")) == 6
    assert history(client, child.info.run_id, "test/images") == [(4, 100), (8, 100), (12, 100)]


# States


def test_a_stopped_run_is_killed_then_running_then_finished_with_one_id(home, client):
    folder, tracker, run = RunFolder(home / "runs" / "x"), Tracker(), smoke_run()
    train_in(folder.path, run, stop=stop_after(5))
    tracker.sync(folder)
    _, [child] = runs_of(client)
    assert child.info.status == "KILLED"
    assert [step for step, _ in history(client, child.info.run_id, "train/loss")] == [2, 4]

    from filelock import FileLock

    with FileLock(folder.lock_file):  # as while it trains
        train_in(folder.path, run, stop=stop_after(2))
        tracker.sync(folder)
        _, [again] = runs_of(client)
        assert (again.info.run_id, again.info.status) == (child.info.run_id, "RUNNING")
    tracker.sync(folder)
    assert runs_of(client)[1][0].info.status == "KILLED"

    train_in(folder.path, run)
    Tracker().sync(folder)
    _, [ended] = runs_of(client)
    assert (ended.info.run_id, ended.info.status) == (child.info.run_id, "FINISHED")
    assert [step for step, _ in history(client, child.info.run_id, "train/loss")] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("lr", [1e30, 3e4])
def test_a_run_that_diverged_is_failed_and_keeps_its_record(home, client, lr):
    """With the higher rate the run diverges before the first report, so it has no journal."""
    folder = RunFolder(home / "runs" / "x")
    record = train_in(folder.path, smoke_run("plain-20", changes={"train.lr": lr, "train.log_every": 3}))
    if record.status == "finished":
        pytest.skip("the run converges with this processor's rounding")
    Tracker().sync(folder)
    _, [child] = runs_of(client)
    assert child.info.status == "FAILED"
    assert child.data.tags["repro.ended"] == record.ended
    [found] = Tracker().records()
    assert (found.status, found.metrics) == ("not converged", {})


# An unreachable server


@pytest.mark.parametrize("uri", [NOBODY, "http://user:secret@127.0.0.1:9", "http://user:se/c@ret@127.0.0.1:9"])
def test_an_unreachable_server_is_an_error_of_one_sentence_without_the_password_after_two_tries(
    uri, home, monkeypatch
):
    tries, connect = [], HTTPConnection.connect
    monkeypatch.setattr(HTTPConnection, "connect", lambda self: (tries.append(self.host), connect(self))[1])
    with pytest.raises(TrackingError) as caught:
        Tracker(uri).records()
    assert len(tries) <= 2
    message = str(caught.value)
    assert message.startswith("the tracking server http://")
    assert "cannot be used" in message
    assert "ret" not in message
    assert "\n" not in message


def test_the_error_of_an_unreachable_server_says_what_to_do():
    with pytest.raises(TrackingError, match="nothing answers there; start it, or unset MLFLOW_TRACKING_URI"):
        Tracker(NOBODY).records()


def test_redact_removes_the_password_of_an_address():
    assert redact("https://me:p@ss/w@host/x") == "https://***@host/x"
    assert redact("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_the_database_is_created_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "new" / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Tracker().records() == []


def run_in_this_process(tasks, *, workers, threads, on_event, tick):
    """Replacement of `run_all` without worker processes."""
    for task in tasks:
        record = execute.execute_task(
            task,
            threads=threads,
            stop=lambda: False,
            on_event=lambda kind, text="", record=None, task=task: on_event(local.Event(kind, task, text, record)),
        )
        on_event(local.Event("ended", task, "", record))
        tick()
    return "ended"


def test_runs_are_sent_once_an_unreachable_server_is_back(home, client, monkeypatch):
    monkeypatch.setattr("pipeline.schedule.reproduce.run_all", run_in_this_process)
    task = smoke_task(home / "runs", smoke_run())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    came = run_tasks([task], threads=1, on_event=lambda _: None)
    assert came.ending == "ended"
    assert "nothing answers there" in came.untracked
    assert [record.status for record in came.records] == ["finished"]
    away = collect_runs()
    assert (away.tracker, [record.identity for record in away.records]) == (None, [task.identity])

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    back = collect_runs()
    assert [bool(record.run_id) for record in back.records] == [True]
    _, [child] = runs_of(client)
    assert child.info.status == "FINISHED"
    assert len(history(client, child.info.run_id, "train/loss")) == 6


def test_a_run_tracked_by_another_machine_is_not_trained_again(home, trained, monkeypatch):
    """The run has no folder on this machine."""
    folder = placed(home, trained)
    Tracker().sync(folder)
    identity, found = folder.result().identity, folder.result()
    folder.path.rename(home / "elsewhere")
    monkeypatch.setattr("pipeline.schedule.reproduce.run_all", lambda *_, **__: pytest.fail("trained again"))
    task = replace(smoke_task(home / "runs", smoke_run()), identity=identity)
    came = run_tasks([task], threads=1, on_event=lambda _: None)
    assert [replace(record, run_id="") for record in came.records] == [found]
    assert not folder.path.exists()


def test_runs_whose_database_was_deleted_still_count(home, trained):
    placed(home, trained)
    [before] = collect_runs().records
    (home / "mlflow.db").unlink()
    [after] = collect_runs().records
    assert replace(after, run_id="") == replace(before, run_id="")


@pytest.mark.parametrize("how", ["deleted", "collected", "with its experiment"])
def test_a_run_that_was_deleted_in_mlflow_is_sent_again(home, client, trained, how, monkeypatch):
    """The leaderboard of MLflow and ours would disagree about it for ever."""
    placed(home, trained)
    collect_runs()
    _, [child] = runs_of(client)
    if how == "with its experiment":
        client.delete_experiment(child.info.experiment_id)
    else:
        client.delete_run(child.info.run_id)
    if how == "collected":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow 3.17's own, about type hints
            from mlflow.cli import gc
        uri = f"sqlite:///{home / 'mlflow.db'}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow's command sets it, and leaves it set
        done = CliRunner().invoke(gc, ["--backend-store-uri", uri, "--tracking-uri", uri])
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        assert done.exit_code == 0, done.output
        with pytest.raises(MlflowException, match="not found"):
            client.get_run(child.info.run_id)
    [record] = collect_runs().records
    _, [again] = runs_of(client)
    assert record.run_id == again.info.run_id
    assert again.data.tags["repro.sent"] == "all"
    assert again.data.metrics == child.data.metrics


@pytest.mark.parametrize("name", ["a folder", "a#b", "a&b", "Übungen", "100%"])
def test_the_database_is_in_the_home_folder_whatever_its_name(tmp_path, monkeypatch, empty_database, name):
    home = tmp_path / name
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_database)
    monkeypatch.setenv("REPRO_HOME", str(home))
    tracker = Tracker()
    place = tracker.experiment_id("resnet")
    with sqlite3.connect(home / "mlflow.db") as database:
        found = database.execute("SELECT experiment_id FROM experiments WHERE name = 'resnet'").fetchall()
    assert [str(row[0]) for row in found] == [place]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("revision", ["451aebb31d03", "0123456789ab"])
def test_a_database_of_another_version_is_one_sentence_with_the_command_that_helps(home, revision):
    """MLflow's own exception, for the first version of its schema and for one that it does not know."""
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(TrackingError) as caught:
        Tracker().find_experiment("resnet")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    older = f"an older MLflow; make a backup, then upgrade it with: mlflow db upgrade {uri}"
    newer = "a newer MLflow than the one installed; install that with: pip install --upgrade mlflow"
    assert str(caught.value).endswith(older if revision == "451aebb31d03" else newer)
    assert "\n" not in str(caught.value)


# The parent run


def test_report_puts_aggregates_tables_figure_page_and_note_on_the_parent_run(home, client, trained):
    folder = placed(home, trained)
    tracker = Tracker()
    tracker.sync(folder)
    made = make_report(load_experiment(RESNET), "smoke", tracker.records(), tracker)
    [parent], _ = runs_of(client)
    assert parent.info.status == "FINISHED"
    record = folder.result()
    key = "resnet-20/test/top1_error_pct"
    assert parent.data.metrics[f"{key}/mean"] == record.metrics["test/top1_error_pct"]
    assert parent.data.metrics[f"{key}/seeds"] == 1
    files = {found.path for found in client.list_artifacts(parent.info.run_id)}
    assert files == {"leaderboard.json", "verdicts.json", made.figure.name, made.page.name}
    board = json.loads(
        Path(client.download_artifacts(parent.info.run_id, "leaderboard.json", str(home))).read_text()
    )
    assert board["columns"][0] == "network"
    assert [row[0] for row in board["data"]] == ["resnet-20"]
    assert json.loads(parent.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "leaderboard.json", "type": "table"},
        {"path": "verdicts.json", "type": "table"},
    ]
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("# Do deeper plain networks train worse")
    assert "| resnet-20 |" in note
    paper = client.get_experiment_by_name("resnet")
    told = paper.tags["mlflow.note.content"]
    assert told.startswith("# Deep Residual Learning for Image Recognition\n")
    link = f"#/experiments/{paper.experiment_id}/runs/{parent.info.run_id}?workflowType=machine_learning"
    assert f"Tried: [smoke scale]({link}): 1 network on noise." in told
    error = f"{record.metrics['test/top1_error_pct']:.2f}"
    assert f"| resnet-20 | smoke | 8.75 (cifar10) | {error} | 1 |" in told  # Table 6: 8.75


def test_report_puts_one_run_for_each_network_above_its_seeds_and_into_the_leaderboard(home, client, trained):
    folder, tracker = placed(home, trained), Tracker()
    tracker.sync(folder)
    make_report(load_experiment(RESNET), "smoke", tracker.records(), tracker)
    [parent], [child] = runs_of(client)
    places = [client.get_experiment_by_name(name).experiment_id for name in ("resnet", "leaderboard")]
    [own], [overview] = ([*client.search_runs([place], "tags.`repro.level` = 'network'")] for place in places)
    assert own.info.run_name == overview.info.run_name == "resnet-20"
    assert own.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["mlflow.parentRunId"] == own.info.run_id
    record, metrics = folder.result(), overview.data.metrics
    assert metrics == own.data.metrics
    assert metrics["test/top1_error_pct"] == round(record.metrics["test/top1_error_pct"], 2)
    assert (metrics["seeds"], metrics["images"], metrics["paper"]) == (1, 100, 8.75)  # Table 6
    assert metrics["parameters"] == pytest.approx(0.27e6, rel=0.01)  # Table 6
    tags = overview.data.tags
    assert (tags["repro.data"], tags["repro.scale"], tags["repro.paper"]) == ("noise", "smoke", "resnet")
    assert "repro.verdict" not in tags  # claims about the error are judged at paper scale
    assert tracker.records() == [replace(record, run_id=child.info.run_id)]  # rows are no records


def test_a_run_that_ends_after_a_report_joins_its_network(home, client, trained):
    tracker = Tracker()
    tracker.sync(placed(home, trained))
    make_report(load_experiment(RESNET), "smoke", tracker.records(), tracker)
    files = dict(trained)
    for name in ("run.json", "result.json"):
        content = json.loads(files[name]) | {"identity": "second", "seed": 1}
        declared = plan_runs(load_experiment(RESNET), scale="smoke", variants=["resnet-20"], seeds=2)[1]
        files[name] = json.dumps(content | {"declaration": declared.declaration}).encode()
    tracker.sync(placed(home, files))
    make_report(load_experiment(RESNET), "smoke", tracker.records(), tracker)
    place = client.get_experiment_by_name("resnet").experiment_id
    [network] = client.search_runs([place], "tags.`repro.level` = 'network'")
    assert network.data.metrics["seeds"] == 2
    assert {child.data.tags["mlflow.parentRunId"] for child in runs_of(client)[1]} == {network.info.run_id}


def test_a_note_fits_in_an_mlflow_tag(home, client, trained):
    """MLflow truncates tags of runs after 8,000 characters and may refuse tags of experiments after 5,000."""
    tracker = Tracker()
    tracker.sync(placed(home, trained))
    made = make_report(load_experiment(RESNET), "smoke", tracker.records(), tracker)
    board = [{"network": "n" * 60, "top-1 error %": "9"}] * 20
    entries = [entry for entry in made.entries if entry.evidence] * 40
    note = mlflow_note(load_experiment(RESNET), "smoke", board, entries)
    assert 4000 < len(note) <= 5000
    assert note.endswith("\n\nEvidence: verdicts.json.")


def test_launches_that_ended_have_their_leaderboard(home, client, trained, capsys):
    """The command of a job on the cluster does it; nobody has to run `repro run` to see a leaderboard."""
    folder = placed(home, trained)
    task = smoke_task(home / "runs", smoke_run())
    launch = create_launch("a test", home, LaunchTerms(devices=1), (task,))
    publish_launches([launch.id])
    board = client.get_experiment_by_name("leaderboard")
    rows = [row.data.tags["mlflow.runName"] for row in client.search_runs([board.experiment_id])]
    assert sorted(rows) == ["resnet-20", "tables"]
    assert task.identity == folder.path.name
    assert capsys.readouterr().out == "The leaderboard in MLflow is up to date; to open it: repro ui\n"


@pytest.mark.parametrize("deleted", ["parent run", "row of the paper", "row of the leaderboard", "leaderboard"])
def test_a_report_is_published_once_unless_a_run_of_it_was_deleted(home, client, trained, monkeypatch, deleted):
    tracker, published = Tracker(), []
    tracker.sync(placed(home, trained))
    monkeypatch.setattr(
        "pipeline.report.publish.publish_experiment",
        lambda *words, **more: published.append(publish_experiment(*words, **more)) or published[-1],
    )

    def rows():
        places = [tracker.experiment_id(name) for name in ("resnet", "leaderboard")]
        return [client.search_runs([place], "tags.`repro.level` = 'network'") for place in places]

    for _ in range(2):
        make_report(load_experiment(RESNET), "smoke", tracker.records(), tracker)
    [parent], _ = runs_of(client)
    assert published == [parent.info.run_id]
    [row], [shown] = rows()
    if deleted == "leaderboard":
        client.delete_experiment(shown.info.experiment_id)
    else:
        which = {"parent run": parent, "row of the paper": row, "row of the leaderboard": shown}
        client.delete_run(which[deleted].info.run_id)
    tracker = Tracker()
    make_report(load_experiment(RESNET), "smoke", tracker.records(), tracker)
    assert len(published) == 2
    assert [len(found) for found in rows()] == [1, 1]
    assert len(runs_of(client)[0]) == 1


def test_publishing_twice_keeps_one_parent_run(home, client, trained):
    tracker = Tracker()
    tracker.sync(placed(home, trained))
    for _ in range(2):
        publish_experiment(tracker, RESNET, "smoke", tracker.records(), tables={}, files=[], note="")
    assert len(runs_of(client)[0]) == 1


def test_aggregates_are_mean_spread_and_number_of_seeds(experiment, seed_records):
    found = aggregate_metrics(seed_records(experiment, "plain-20", [9.0, 10.0, 11.0]))
    assert found["plain-20/test/top1_error_pct/mean"] == 10.0
    assert found["plain-20/test/top1_error_pct/std"] == 1.0
    assert found["plain-20/test/top1_error_pct/seeds"] == 3.0


def test_aggregates_leave_out_what_is_not_finite_and_no_spread_of_one(experiment, record):
    one: Record = record(experiment, "plain-20", 0, 9.5, metrics={"test/loss": float("inf"), "a": 1.0})
    assert aggregate_metrics([one]) == {"plain-20/a/mean": 1.0, "plain-20/a/seeds": 1.0}


def test_flatten_makes_dotted_keys():
    assert flatten({"train": {"lr": 0.1, "drops": {"at": [1]}}, "x": 2}) == {
        "train.lr": 0.1,
        "train.drops.at": [1],
        "x": 2,
    }


def test_mlflow_retries_a_request_once():
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


# --- published weights -------------------------------------------------------------------------------------

RESULT = {
    "network": "resnet-50",
    "weights": "torchvision X",
    "sha256": "ab" * 32,
    "differs": "",
    "data": "it's val",
    "protocol": "single central crop 224",
    "images": 50000,
    "top1": 23.85,
    "top5": 7.13,
    "stated_top1": 23.87,
}


def test_published_weights_are_a_run_without_a_record(home, client):
    tracker = Tracker()
    first = publish_imported(tracker, RESULT)
    assert publish_imported(tracker, RESULT) == first  # the same result is the same run
    assert publish_imported(tracker, RESULT | {"data": "other"}) != first
    run = client.get_run(first)
    assert client.get_experiment(run.info.experiment_id).name == "published weights"
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"test/top1_error_pct": 23.85, "test/top5_error_pct": 7.13, "test/images": 50000}
    assert (run.data.tags["repro.kind"], run.data.tags["repro.weights"]) == ("published weights", "torchvision X")
    assert tracker.records() == []


def test_published_weights_by_several_protocols_are_different_runs(home, client):
    names, metrics = [], set()
    for protocol in ("1-crop-224-of-256", "10-crop-224-of-256"):
        run = client.get_run(publish_imported(Tracker(), RESULT | {"protocol": protocol}))
        names.append(run.info.run_name)
        assert run.data.metrics[f"test/{protocol}/top1_error_pct"] == 23.85
        metrics |= set(run.data.metrics)
    assert names == [f"resnet-50, published weights, {count}-crop-224-of-256" for count in (1, 10)]
    assert len(metrics) == 9


def test_an_unreachable_server_is_a_tracking_error(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        publish_imported(Tracker(), RESULT)


def test_a_file_system_without_permissions_is_named(home, trained, monkeypatch):
    """As one mounted from a Windows server: MLflow changes the mode of every artifact."""

    def refuse(_, path):
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr("mlflow.store.artifact.local_artifact_repo.shutil.copystat", refuse)
    said = (
        r"file system of \S+/artifacts does not let MLflow set permissions \(chmod\); set REPRO_HOME to a folder"
    )
    with pytest.raises(TrackingError, match=said):
        Tracker().sync(placed(home, trained))


def test_a_database_is_created_completely_or_not_at_all(tmp_path, monkeypatch):
    """A process that was killed while it created the tables leaves a file that is not used."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    begun = tmp_path / ".mlflow.db-begun"
    with sqlite3.connect(begun) as base:
        base.execute("CREATE TABLE spans (trace_id VARCHAR(50) NOT NULL)")
    begun.with_name(f"{begun.name}-journal").write_bytes(b"half a journal")
    assert Tracker(uri).records() == []
    Tracker(uri).client.search_experiments()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_database_that_cannot_be_created_on_a_full_disk_is_created_later_by_the_same_process(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    uri, real = f"sqlite:///{tmp_path / 'mlflow.db'}", SQLiteImpl.drop_table

    def fill_the_disk(*_):
        """Fail in the middle of a migration; SQLite keeps the new table."""
        monkeypatch.setattr(SQLiteImpl, "drop_table", real)
        raise OperationalError("DROP TABLE", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(SQLiteImpl, "drop_table", fill_the_disk)
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be used: .*database or disk is full"):
        Tracker(uri).client  # noqa: B018
    Tracker(uri).client.search_experiments()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
