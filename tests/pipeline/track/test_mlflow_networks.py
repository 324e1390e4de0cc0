"""Runs of networks in MLflow: parents of their seeds, one for each row, also if published twice or deleted."""

import threading
from dataclasses import replace

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from pipeline.common.environment import user_name
from pipeline.track.mlflow_errors import TrackingError
from pipeline.track.mlflow_networks import NetworkRun, network_prefix, publish_networks
from pipeline.track.mlflow_views import KIND_TAG, VIEW_TAG, VIEWS, changed_tags
from pipeline.track.mlflow_writer import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own
NAME, SCALE = "resnet/cifar10_depth", "laptop"
PARENT = "mlflow.parentRunId"


@pytest.fixture
def seed(client):
    """Function that creates the run of a seed below its experiment's parent run, as `Tracker.sync` does."""

    def create(variant: str, number: int) -> str:
        tracker = Tracker()
        tags = {"repro.experiment": NAME, "repro.scale": SCALE, "repro.seed": str(number)}
        tags |= {PARENT: tracker.parent_run(NAME, SCALE)}
        run = tracker.find_run("resnet", f"run:{variant}-{number}", f"{variant} seed {number}", tags)
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    return create


def network(name, error, *run_ids, **other) -> NetworkRun:
    fields = {
        "key": f"{network_prefix(NAME, SCALE)}{name}|digits||",
        "name": name,
        "tags": {"repro.experiment": NAME, "repro.scale": SCALE, "repro.data": "digits"},
        "metrics": {"test/top1_error_pct": error, "seeds": float(len(run_ids))},
        "run_ids": run_ids,
        "is_parent": True,
    }
    return NetworkRun(**fields | other)


def publish(*networks, known=()):
    own = {run_id for one in networks for run_id in one.run_ids}
    publish_networks(Tracker(), NAME, SCALE, networks, known={*own, *known})


def rows(client, experiment, view=ViewType.ACTIVE_ONLY):
    """Return the runs of networks in an MLflow experiment by name."""
    place = client.get_experiment_by_name(experiment).experiment_id
    found = client.search_runs([place], "tags.`repro.level` = 'network'", view)
    assert len({row.info.run_name for row in found}) == len(found)
    return {row.info.run_name: row for row in found}


def parent_of(client, run_id):
    """Return the name of the run above this one."""
    return client.get_run(client.get_run(run_id).data.tags[PARENT]).info.run_name


def test_a_network_is_the_parent_of_its_seeds_and_below_its_experiment(client, seed):
    seeds = [seed("resnet-20", number) for number in range(2)]
    other = seed("plain-20", 0)
    publish(network("resnet-20", 8.5, *seeds), network("plain-20", 9.5, other))
    found = rows(client, "resnet")
    assert [parent_of(client, one) for one in (*seeds, other)] == ["resnet-20", "resnet-20", "plain-20"]
    assert parent_of(client, found["resnet-20"].info.run_id) == "cifar10_depth @ laptop"
    assert found["resnet-20"].data.metrics == {"test/top1_error_pct": 8.5, "seeds": 2.0}
    assert found["resnet-20"].data.tags["repro.data"] == "digits"
    assert found["resnet-20"].info.status == "FINISHED"


def test_the_experiment_of_all_papers_has_the_same_rows_with_links_to_the_seeds(client, seed):
    run_id = seed("resnet-20", 0)
    publish(network("resnet-20", 8.5, run_id))
    [row] = rows(client, "leaderboard").values()
    assert row.data.metrics == {"test/top1_error_pct": 8.5, "seeds": 1.0}
    assert PARENT not in row.data.tags
    place = client.get_run(run_id).info.experiment_id
    link = f"[resnet-20 seed 0](#/experiments/{place}/runs/{run_id}?workflowType=machine_learning)"
    assert link in row.data.tags["mlflow.note.content"]
    assert link in rows(client, "resnet")["resnet-20"].data.tags["mlflow.note.content"]


def test_publishing_again_updates_the_same_runs_and_sends_only_changes(client, seed, monkeypatch):
    first = seed("resnet-20", 0)
    publish(network("resnet-20", 8.5, first))
    before = {place: rows(client, place)["resnet-20"].info.run_id for place in ("resnet", "leaderboard")}
    sent = []

    def listen(name):
        real = getattr(MlflowClient, name)
        monkeypatch.setattr(MlflowClient, name, lambda *args, **more: (sent.append(name), real(*args, **more))[1])

    for name in ("log_batch", "set_tag", "set_experiment_tag", "delete_run", "create_run", "set_terminated"):
        listen(name)
    publish(network("resnet-20", 8.5, first))
    assert sent == []
    publish(network("resnet-20", 8.25, first, seed("resnet-20", 1)))
    for place, run_id in before.items():
        row = rows(client, place)["resnet-20"]
        assert (row.info.run_id, row.data.metrics) == (run_id, {"test/top1_error_pct": 8.25, "seeds": 2.0})


def test_a_number_that_a_row_no_longer_has_is_not_kept(client, seed):
    run_id = seed("resnet-20", 0)
    publish(network("resnet-20", 8.5, run_id))
    publish(network("resnet-20", 8.5, run_id, metrics={"diverged": 1.0}))
    for place in ("resnet", "leaderboard"):
        assert rows(client, place)["resnet-20"].data.metrics == {"diverged": 1.0}
    assert parent_of(client, run_id) == "resnet-20"


def test_a_text_that_a_row_no_longer_has_is_deleted_and_a_user_s_is_kept(client, seed):
    one = network("resnet-20", 8.5, seed("resnet-20", 0))
    publish(one.with_tags({"repro.verdict": "reproduced"}))
    client.set_tag(rows(client, "resnet")["resnet-20"].info.run_id, "mine", "x")
    publish(one)
    tags = rows(client, "resnet")["resnet-20"].data.tags
    assert "repro.verdict" not in tags
    assert tags["mine"] == "x"


def test_a_row_that_no_longer_exists_is_deleted_and_its_seeds_stay(client, seed):
    kept, left = seed("resnet-20", 0), seed("plain-20", 0)
    publish(network("resnet-20", 8.5, kept), network("plain-20", 9.5, left))
    publish(network("resnet-20", 8.5, kept), known={left})
    for place in ("resnet", "leaderboard"):
        assert list(rows(client, place)) == ["resnet-20"]
    assert parent_of(client, left) == "cifar10_depth @ laptop"
    assert client.get_run(left).info.lifecycle_stage == "active"


def test_a_row_that_another_process_has_just_published_is_kept(client, seed):
    """This process has read the records before the run of the other one ended."""
    mine, theirs = seed("resnet-20", 0), seed("plain-20", 0)
    publish(network("plain-20", 9.5, theirs))
    publish(network("resnet-20", 8.5, mine))
    for place in ("resnet", "leaderboard"):
        assert sorted(rows(client, place)) == ["plain-20", "resnet-20"]
    assert parent_of(client, theirs) == "plain-20"


def test_rows_of_other_scales_and_experiments_are_kept(client, seed):
    publish(network("resnet-20", 8.5, seed("resnet-20", 0)))
    tags = {"repro.experiment": NAME, "repro.scale": "smoke"}
    other = network("plain-20", 9.5, key=f"{network_prefix(NAME, 'smoke')}plain-20", tags=tags)
    publish_networks(Tracker(), NAME, "smoke", [other], known=())
    assert sorted(rows(client, "leaderboard")) == ["plain-20", "resnet-20"]


def test_runs_that_two_experiments_share_are_in_the_leaderboard_once_with_the_paper_s_number(client, seed):
    run_id, other = seed("resnet-20", 0), "lecture/shortcuts"
    tags = {"repro.experiment": other, "repro.scale": SCALE, "repro.data": "digits"}
    shared = network("resnet-20", 8.5, run_id, key=f"{network_prefix(other, SCALE)}x", tags=tags)
    publish_networks(Tracker(), other, SCALE, [shared], known={run_id})
    assert rows(client, "leaderboard")["resnet-20"].data.tags["repro.experiment"] == other
    own = network("resnet-20", 8.5, run_id, metrics={"test/top1_error_pct": 8.5, "paper": 8.75})
    publish(own)
    publish_networks(Tracker(), other, SCALE, [shared], known={run_id})
    assert rows(client, "leaderboard")["resnet-20"].data.tags["repro.experiment"] == NAME
    assert [*rows(client, "resnet"), *rows(client, "lecture")] == ["resnet-20"] * 2
    assert parent_of(client, run_id) == "resnet-20"


def test_a_seed_that_no_longer_counts_moves_back_to_its_experiment(client, seed):
    old, new = seed("resnet-20", 0), seed("resnet-20", 1)
    publish(network("resnet-20", 8.5, old))
    publish(network("resnet-20", 8.0, new), known={old})
    assert [parent_of(client, one) for one in (old, new)] == ["cifar10_depth @ laptop", "resnet-20"]


def test_a_further_row_of_the_same_runs_has_no_children(client, seed):
    run_id = seed("resnet-20", 0)
    one = network("resnet-20", 8.5, run_id)
    publish(one, replace(one, key=f"{one.key}10-crop", name="resnet-20 10-crop", is_parent=False))
    assert parent_of(client, run_id) == "resnet-20"
    assert sorted(rows(client, "resnet")) == ["resnet-20", "resnet-20 10-crop"]


def test_a_deleted_network_is_created_again_with_its_seeds(client, seed):
    run_id = seed("resnet-20", 0)
    publish(network("resnet-20", 8.5, run_id))
    deleted = rows(client, "resnet")["resnet-20"].info.run_id
    client.delete_run(deleted)
    publish(network("resnet-20", 8.5, run_id))
    again = rows(client, "resnet")["resnet-20"].info.run_id
    assert again != deleted
    assert client.get_run(run_id).data.tags[PARENT] == again


def test_seeds_carry_the_verdict_of_their_network(client, seed):
    one = network("resnet-20", 8.5, run_id := seed("resnet-20", 0))
    publish(one.with_tags({"repro.verdict": "reproduced"}))
    assert client.get_run(run_id).data.tags["repro.verdict"] == "reproduced"
    publish(one)
    assert "repro.verdict" not in client.get_run(run_id).data.tags


def test_a_row_has_the_data_set_of_its_runs_and_the_user_who_made_it(client, seed):
    one = network("resnet-20", 8.5, seed("resnet-20", 0), data=("cifar10", "ab" * 8))
    for _ in range(2):  # MLflow refuses the same input twice
        publish(one)
    for place in ("resnet", "leaderboard"):
        row = rows(client, place)["resnet-20"]
        [given] = row.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("cifar10", "ab" * 8)
        assert row.data.tags["mlflow.user"] == user_name()


def test_a_deleted_seed_run_is_no_error(client, seed):
    gone, kept = seed("resnet-20", 0), seed("resnet-20", 1)
    client.delete_run(gone)
    publish(network("resnet-20", 8.5, gone, kept))
    assert parent_of(client, kept) == "resnet-20"


@pytest.mark.slow
def test_two_processes_that_publish_at_the_same_time_keep_one_row(client, seed, monkeypatch):
    """Neither finds the row before the other creates it."""
    run_id = seed("resnet-20", 0)
    Tracker().experiment_id("leaderboard")
    barrier, create = threading.Barrier(2), Tracker.create_run

    def wait(tracker, *words):
        barrier.wait(20)
        return create(tracker, *words)

    monkeypatch.setattr(Tracker, "create_run", wait)
    threads = [threading.Thread(target=publish, args=[network("resnet-20", 8.5, run_id)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    monkeypatch.undo()
    publish(network("resnet-20", 8.5, run_id))
    for place in ("resnet", "leaderboard"):
        assert list(rows(client, place)) == ["resnet-20"]
    assert client.get_run(run_id).data.tags[PARENT] == rows(client, "resnet")["resnet-20"].info.run_id


def test_an_existing_tracking_gets_kind_and_views_and_keeps_those_of_users(client, seed):
    """Its experiment was created by an earlier version."""
    place = client.create_experiment("resnet", tags={f"{VIEW_TAG}mine": "{}", "mlflow.note.content": "a note"})
    publish(network("resnet-20", 8.5, seed("resnet-20", 0)))
    tags = client.get_experiment(place).tags
    assert (tags[f"{VIEW_TAG}mine"], tags["mlflow.note.content"]) == ("{}", "a note")
    assert tags[KIND_TAG] == "custom_model_development"
    assert {f"{VIEW_TAG}{view.key}" for view in VIEWS} <= tags.keys()


def test_a_view_that_the_leaderboard_no_longer_has_is_removed(client, seed):
    theirs = {f"{VIEW_TAG}mine": "{}", f"{VIEW_TAG}repro-theirs": "{}"}
    place = client.create_experiment("leaderboard", tags=changed_tags({}) | theirs)
    publish(network("resnet-20", 8.5, seed("resnet-20", 0)))
    tags = client.get_experiment(place).tags
    assert f"{VIEW_TAG}repro-training" not in tags
    assert {key: tags.get(key) for key in theirs} == theirs
    assert f"{VIEW_TAG}repro-leaderboard" in tags


def test_a_new_experiment_has_kind_and_views_before_a_run_has_finished(client):
    place = Tracker().experiment_id("resnet")
    assert client.get_experiment(place).tags.keys() >= changed_tags({}).keys()


def test_the_training_view_finds_unfinished_runs_of_seeds_only(client, seed):
    tracker = Tracker()
    finished = seed("resnet-20", 0)
    publish(network("resnet-20", 8.5, finished))
    for number, status in enumerate(("RUNNING", "KILLED", "FAILED"), 1):
        client.update_run(seed("resnet-20", number), status=status)
    tracker.parent_run(NAME, "paper")  # RUNNING until it is published
    [training] = [view for view in VIEWS if view.name == "training"]
    names = sorted(run.info.run_name for run in tracker.search("resnet", training.filter))
    assert names == ["resnet-20 seed 1", "resnet-20 seed 2"]


def test_an_unreachable_server_is_a_tracking_error(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(TrackingError, match="nothing answers there"):
        publish(network("resnet-20", 8.5))
