"""Logged and registered models: one for each run and variant, aliases, models of others, servers without them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from torch import nn

from pipeline.declare.load import load_experiment
from pipeline.track.mlflow_models import save_model
from pipeline.track.mlflow_registry import (
    JUDGED_ALIAS,
    JudgedModel,
    register_models,
    registered_name,
    scale_alias,
)
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.run_folder import RunFolder
from tests.support.fake_records import fake_record

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own
NAME = "resnet-cifar10_depth-resnet-20"
EXPERIMENT = "resnet/cifar10_depth"
SCALES = ("paper", "gpu", "laptop", "smoke")


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Folder of a model with one weight per pixel."""

    class Sum(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.float().flatten(1).cumsum(1)

    path = tmp_path_factory.mktemp("model") / "model"
    example = torch.ones(2, 1, 2, 2, dtype=torch.uint8)
    save_model(path, Sum(), example, Sum()(example), {"variant": "sum"})
    return path


@pytest.fixture
def sent(home, linear):
    """Function that writes the folder of a finished run with a model and sends it; returns its record."""
    declared = load_experiment(EXPERIMENT)

    def send(scale="laptop", seed=0, error=8.5, variant="resnet-20"):
        identity = f"{variant}-{seed}-{scale}"
        record = fake_record(declared, variant, seed, error, scale=scale, identity=identity, run_id="")
        folder = RunFolder(home / "runs" / identity)
        folder.create(
            {
                **{key: getattr(record, key) for key in ("identity", "experiment", "scale", "variant", "seed")},
                "declaration": record.declaration,
                "changes": {},
                "recipe": {"train": {"steps": 10}},
                "manifest": {"name": record.data, "sha256": "ab" * 32, "train": 1, "test": 1, "source": "x"},
            }
        )
        folder.finish(record)
        if not folder.model_folder.exists():
            folder.model_folder.symlink_to(linear)
        tracker = Tracker()
        tracker.sync(folder)
        return replace(record, run_id=tracker.state(folder)["run_id"])

    return send


def judged(record, **other):
    fields = {"description": f"seed {record.seed}", "verdict": ""}
    return JudgedModel(EXPERIMENT, record.variant, record.scale, record, **(fields | other))


def register(*models):
    return register_models(Tracker(), models, SCALES)


def aliases(client, name=NAME):
    """Return alias -> scale of its version."""
    found = client.get_registered_model(name).aliases
    return {alias: client.get_model_version(name, number).tags["repro.scale"] for alias, number in found.items()}


# The logged model of a run


def test_a_run_has_one_logged_model_also_if_it_is_sent_twice(home, client, sent):
    record = sent()
    folder = RunFolder(home / "runs" / record.identity)
    (folder.path / "tracked.json").unlink()
    client.delete_tag(record.run_id, "repro.sent")
    sent()
    run = client.get_run(record.run_id)
    [model] = client.search_logged_models([run.info.experiment_id])
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert (str(model.status), model.source_run_id, model.name) == ("READY", record.run_id, "resnet-20-seed-0")
    assert model.tags["repro.variant"] == "resnet-20"
    assert model.tags["repro.seed"] == "0"


def test_a_model_whose_upload_broke_off_is_completed(home, client, sent, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(Exception, match="full"):
            sent()
    record = sent()
    [model] = client.search_logged_models([client.get_run(record.run_id).info.experiment_id])
    assert str(model.status) == "READY"


def test_a_run_is_not_complete_while_its_model_is_exported(home, client, sent, monkeypatch):
    monkeypatch.setattr(RunFolder, "is_training", lambda _: True)
    record = sent()
    assert "repro.sent" not in client.get_run(record.run_id).data.tags
    monkeypatch.setattr(RunFolder, "is_training", lambda _: False)
    sent()
    assert client.get_run(record.run_id).data.tags["repro.sent"] == "all"


def test_a_server_without_logged_models_gets_the_model_as_an_artifact(home, client, sent, monkeypatch):
    def missing(*_, **__):
        raise MlflowException("API request to endpoint /logged-models failed with error code 404 != 200")

    monkeypatch.setattr(MlflowClient, "search_logged_models", missing)
    record = sent()
    [program] = (home / "mlartifacts").rglob("model.pt2")
    assert program.parts[-5:-2] == (record.run_id, "artifacts", "model")
    assert client.get_run(record.run_id).data.tags["repro.sent"] == "all"
    assert register(judged(record)) == ""
    assert client.get_model_version_by_alias(NAME, JUDGED_ALIAS).source.endswith("/artifacts/model")


# The registry


@pytest.mark.slow
def test_the_alias_loads_the_model(home, sent, monkeypatch):
    import mlflow

    assert register(judged(sent())) == ""
    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
    try:
        model = mlflow.pytorch.load_model(f"models:/{NAME}@{JUDGED_ALIAS}")
    finally:
        mlflow.set_tracking_uri(None)
    pixels = torch.tensor([[[[1, 2], [3, 4]]]] * 3, dtype=torch.uint8)
    assert model(pixels).tolist() == [[1, 3, 6, 10]] * 3


def test_a_version_says_scale_seed_commit_and_verdict(client, sent):
    record = sent("paper")
    register(judged(record, description="paper scale, seed 0", verdict="reproduced"))
    version = client.get_model_version_by_alias(NAME, JUDGED_ALIAS)
    assert (version.description, version.run_id) == ("paper scale, seed 0", record.run_id)
    assert version.tags == {
        "repro.scale": "paper",
        "repro.seed": "0",
        "repro.commit": record.commit,
        "repro.data": record.data,
        "repro.identity": record.identity,
        "repro.verdict": "reproduced",
    }
    assert "normalisation" in client.get_registered_model(NAME).description


def test_the_judged_alias_goes_to_paper_scale_whatever_is_published_last(client, sent):
    laptop, paper = sent("laptop"), sent("paper")
    register(judged(laptop))
    assert aliases(client) == {"laptop": "laptop", JUDGED_ALIAS: "laptop"}
    register(judged(paper))
    assert aliases(client) == {"laptop": "laptop", "paper": "paper", JUDGED_ALIAS: "paper"}
    register(judged(laptop))
    assert aliases(client)[JUDGED_ALIAS] == "paper"


def test_registering_again_creates_no_version_and_updates_the_description(client, sent):
    record = sent()
    register(judged(record, description="before", verdict="reproduced"))
    register(judged(record, description="after"))
    [version] = client.search_model_versions(f"name = '{NAME}'")
    assert (version.description, "repro.verdict" in version.tags) == ("after", False)


def test_another_run_that_counts_now_moves_the_alias(client, sent):
    register(judged(sent(seed=1)))
    register(judged(sent(seed=0)))
    assert client.get_model_version_by_alias(NAME, JUDGED_ALIAS).tags["repro.seed"] == "0"
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2


def test_a_registered_model_of_someone_else_is_left_as_it_is(client, sent):
    client.create_registered_model(NAME, description="mine")
    other = sent(variant="plain-20")
    trouble = register(judged(sent()), judged(other))
    assert trouble.startswith(f"the registered model {NAME} belongs to someone else and is left as it is")
    theirs = client.get_registered_model(NAME)
    assert (theirs.description, theirs.aliases, client.search_model_versions(f"name = '{NAME}'")) == (
        "mine",
        {},
        [],
    )
    assert aliases(client, "resnet-cifar10_depth-plain-20")[JUDGED_ALIAS] == "laptop"


def test_aliases_and_versions_of_users_are_kept(client, sent):
    first = sent(seed=1)
    register(judged(first))
    client.set_registered_model_alias(NAME, "champion", "1")
    register(judged(sent(seed=0)))
    assert client.get_registered_model(NAME).aliases["champion"] == 1


def test_a_run_without_a_model_is_left_out(client, sent, home):
    record = sent()
    folder = home / "runs" / "plain-20-0-laptop" / "model"
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    bare = sent(variant="plain-20")
    assert register(judged(bare), judged(record)) == ""
    assert [found.name for found in client.search_registered_models()] == [NAME]


def test_a_server_without_a_registry_is_one_sentence(client, sent, monkeypatch):
    def missing(*_):
        raise MlflowException("API request to endpoint /registered-models/get failed with error code 404 != 200")

    monkeypatch.setattr(MlflowClient, "get_registered_model", missing)
    trouble = register(judged(sent()))
    assert trouble.startswith("no models are registered at sqlite:///")
    assert trouble.endswith("mlflow.db: it has no model registry; the runs have them")


def test_a_server_that_is_away_is_one_sentence_without_the_password(sent, monkeypatch):
    record = sent()
    tracker = Tracker("http://me:secret@127.0.0.1:9")  # nothing listens there
    trouble = register_models(tracker, [judged(record)], SCALES)
    assert trouble.startswith("no models are registered at http://127.0.0.1:9: nothing answers there")
    assert "secret" not in trouble


def test_names_and_aliases_are_ones_that_mlflow_accepts():
    assert registered_name("resnet/cifar10_depth", "resnet-56") == "resnet-cifar10_depth-resnet-56"
    assert registered_name("mine/a b", "k=2:x/y") == "mine-a-b-k-2-x-y"
    names = ("paper", "stand-in", "latest", "v2", "judged", "a.b")
    assert [scale_alias(name) for name in names] == [
        "paper",
        "stand-in",
        "scale-latest",
        "scale-v2",
        "scale-judged",
        "a-b",
    ]


def test_the_saved_model_has_description_and_input_example(linear):
    assert "sum" in Path(linear, "MLmodel").read_text()
    assert json.loads((linear / "input_example.json").read_text()) == [[[[1, 1], [1, 1]]]] * 2
