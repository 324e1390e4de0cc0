"""Test making tasks: identities, needs and data of runs and derived runs."""

import shutil
from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.common.paths import runs_folder
from pipeline.data import sources
from pipeline.data.prepare.transfer_stand_in import make_transfer_stand_in
from pipeline.declare.derived import ColumnSpec, CompressionSpec, EnsembleSpec
from pipeline.declare.load import load_experiment
from pipeline.declare.recipe import Model
from pipeline.declare.transfer import TransferSpec
from pipeline.plan.expand import DerivedRun, plan_runs
from pipeline.schedule.task_cache import TaskCache
from pipeline.schedule.tasks import finished_tasks, make_tasks
from pipeline.track.run_folder import RunFolder
from tests.support.box_sets import BOX_EXPERIMENT, prepare_boxed_set, small_networks
from tests.support.smoke_runs import smoke_run, with_network


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Set REPRO_HOME to a folder of the test."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REPRO_DATA", raising=False)


RUNS = [smoke_run(seed=seed) for seed in range(3)]


ENSEMBLE = EnsembleSpec(kind="ensemble", members={"resnet-20": 2})


def derived_run(spec=ENSEMBLE, runs=tuple(RUNS[:2])):
    """Return a derived run of these runs."""
    return DerivedRun("resnet/cifar10_depth", "smoke", "it", 0, spec, runs)


def test_needs_are_the_identities_of_the_members():
    first, second, derived = make_tasks([*RUNS[:2], derived_run()])
    assert derived.needs == (first.identity, second.identity)
    assert (first.needs, derived.manifest) == ((), first.manifest)
    assert derived.folder == runs_folder() / derived.identity
    assert derived.code not in (first.code, "")


def test_identity_does_not_depend_on_the_other_tasks():
    *_, derived = make_tasks([*RUNS[:2], derived_run()])
    assert make_tasks([derived_run()]) == [derived]


def test_other_members_or_settings_give_another_identity():
    derived_runs = [
        derived_run(),
        derived_run(runs=tuple(RUNS[1:3])),
        derived_run(
            CompressionSpec(kind="compression", of="resnet-20", density=0.5, conv_bits=8, fc_bits=8), (RUNS[0],)
        ),
        derived_run(
            CompressionSpec(kind="compression", of="resnet-20", density=0.4, conv_bits=8, fc_bits=8), (RUNS[0],)
        ),
    ]
    assert len({task.identity for task in make_tasks(derived_runs)}) == 4


def test_manifest_of_a_transfer_is_that_of_the_other_set():
    derived = derived_run(TransferSpec(kind="transfer", of="resnet-20", data="digits", c=1.0), (RUNS[0],))
    [task] = make_tasks([derived])
    assert task.manifest["name"] == "digits"


def voc_transfer(**changes):
    """Return a transfer of ResNet-20 to VOC-2007's stand-in; its recipe is not one for images of many sizes."""
    spec = {"kind": "transfer", "of": "resnet-20", "data": "voc2007-standin", "c": 1.0, "view": "1-crop-32-of-40"}
    return derived_run(TransferSpec.model_validate(spec | changes), (RUNS[0],))


def test_manifest_of_a_transfer_to_a_published_set_is_that_of_its_archives(tmp_path):
    folder = tmp_path / "home" / "data" / "voc2007-standin"
    folder.parent.mkdir(parents=True)
    with pytest.raises(UserError, match="make the set with: repro data stand-in voc2007"):
        make_tasks([voc_transfer()])
    make_transfer_stand_in("voc2007", folder, images=2, side=32)
    cache = TaskCache()
    [task] = make_tasks([voc_transfer()], cache)
    assert (task.manifest["name"], task.manifest["train"], task.manifest["test"]) == ("voc2007-standin", 40, 20)
    assert cache.manifest("voc2007-standin", is_sharded=True) == task.manifest
    make_transfer_stand_in("voc2007", folder.with_name("other"), images=2, side=32, seed=1)
    shutil.copy(folder.with_name("other") / "VOCtest_06-Nov-2007.tar", folder)
    with pytest.raises(KeyError):
        cache.manifest("voc2007-standin", is_sharded=True)
    [changed] = make_tasks([voc_transfer()])
    assert changed.identity != task.identity


def test_layer_of_a_transfer_that_the_network_does_not_have_is_a_user_error(tmp_path):
    folder = tmp_path / "home" / "data" / "voc2007-standin"
    folder.parent.mkdir(parents=True)
    make_transfer_stand_in("voc2007", folder, images=2, side=32)
    with pytest.raises(UserError, match="ResNetCifar has no layer 'map9'; did you mean 'map8'"):
        make_tasks([voc_transfer(layer="map9")])
    assert make_tasks([voc_transfer(layer="map8")])


def test_column_that_the_network_does_not_have_is_a_user_error_before_any_worker_starts():
    none = derived_run(ColumnSpec(kind="column", of="resnet-20", column=1), (RUNS[0],))
    with pytest.raises(UserError) as caught:
        make_tasks([none])
    assert str(caught.value) == (
        "resnet/cifar10_depth, it: resnet-20 has no columns: its network is ResNetCifar, not FractalNet"
    )
    run = with_network("fractalnet", columns=2, widths=[4, 4, 4, 4], dropout=[])
    few = derived_run(ColumnSpec(kind="column", of="resnet-20", column=3), (run,))
    with pytest.raises(UserError, match="it: resnet-20 has no column 3: its network has 2 columns"):
        make_tasks([few])
    assert make_tasks([derived_run(ColumnSpec(kind="column", of="resnet-20", column=2), (run,))])


def test_layer_that_the_network_does_not_have_is_a_user_error_before_any_worker_starts():
    def compression(**density):
        spec = CompressionSpec(kind="compression", of="resnet-20", density=density, conv_bits=8, fc_bits=5)
        return derived_run(spec, (RUNS[0],))

    with pytest.raises(UserError) as caught:
        make_tasks([compression(conv1=0.5, fcc=0.5)])
    message = "resnet/cifar10_depth, it: density: no layer with weights has the name 'fcc'; did you mean 'fc'?"
    assert str(caught.value) == message
    with pytest.raises(UserError, match="it: density should name every layer with weights; missing: conv1, "):
        make_tasks([compression(fc=0.5)])
    assert make_tasks([compression(conv1=0.5, map32=0.5, map16=0.4, map8=0.3, fc=0.2)])


def test_missing_data_set_is_a_user_error():
    derived = derived_run(TransferSpec(kind="transfer", of="resnet-20", data="digts", c=1.0), (RUNS[0],))
    with pytest.raises(UserError, match=r"no data set 'digts'.*did you mean 'digits'"):
        make_tasks([derived])


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        (  # 1 x 1 is left of 16 x 16 where the kernel of c5 is 5 x 5
            "resnet-20",
            {"model.name": "lenet5_modern"},
            "lenet5_modern cannot read images of 3 x 16 x 16: ",
        ),
        ("resnet-20", {"model.name": "alexnet"}, "alexnet reads images of 227 x 227 pixels, not 16 x 16"),
        ("resnet-20", {"data.name": "digits", "data.train": 60000}, "digits"),
        ("resnet-20", {"train.gradient_norms": ["map33"]}, "no layer 'map33' with weights; did you mean 'map32'?"),
    ],
)
def test_network_that_cannot_read_the_images_or_lacks_a_layer_is_a_user_error(variant, changes, message):
    run = smoke_run(variant, changes=changes)
    if "model.name" in changes:
        model = type(run.recipe.model)(name=changes["model.name"])
        run = replace(run, recipe=run.recipe.model_copy(update={"model": model}))
    with pytest.raises(UserError) as caught:
        make_tasks([run])
    assert str(caught.value).startswith(f"resnet/cifar10_depth, {variant} on ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_data_set_gives_its_classes_and_channels():
    [task] = make_tasks([smoke_run(changes={"data.name": "digits"})])
    assert task.manifest["name"] == "digits"
    assert task.manifest["image"] == [1, 8, 8]
    assert task.run.changes == {"data.name": "digits"}


def test_each_data_set_is_read_once(monkeypatch):
    names = []
    load = sources.load_images
    monkeypatch.setattr(
        sources, "load_images", lambda name, *args, **kwargs: names.append(name) or load(name, *args, **kwargs)
    )
    make_tasks([*RUNS, derived_run()])
    assert names == ["noise"]


# --- bounding boxes ------------------------------------------------------------------------------------------


@pytest.fixture
def box_runs(tmp_path, monkeypatch):
    """The runs of BOX_EXPERIMENT, by variant, with a set in the data folder."""
    monkeypatch.setenv("REPRO_DATA", str(prepare_boxed_set(tmp_path / "data", classes=2, train=4, test=1)))
    file = tmp_path / "boxes.yaml"
    file.write_text(BOX_EXPERIMENT, encoding="utf-8")
    with small_networks():
        yield {run.variant: run for run in plan_runs(load_experiment(str(file)), scale="paper")}


def test_runs_that_learn_boxes_have_other_data_than_those_that_learn_classes(box_runs):
    classes, boxes, derived = make_tasks([box_runs[name] for name in ("classes", "boxes", "localised")])
    assert derived.manifest == boxes.manifest
    assert boxes.manifest["sha256"] != classes.manifest["sha256"]
    assert derived.needs == (boxes.identity, classes.identity)
    assert boxes.needs == (classes.identity,)
    assert derived.code not in (classes.code, boxes.code)


def test_tasks_that_ended_are_found_without_reading_the_boxes(box_runs):
    cache = TaskCache()
    tasks = make_tasks(box_runs.values(), cache)
    assert finished_tasks(box_runs.values(), cache) is None
    for task in tasks:
        task.folder.mkdir(parents=True)
        RunFolder(task.folder).result_file.write_text("{}")
    assert finished_tasks(box_runs.values(), cache) == tasks


@pytest.mark.parametrize(
    ("variant", "network", "changes", "message"),
    [
        ("boxes", "tiny_scores", {}, "tiny_scores predicts no boxes, but data.boxes is true"),
        ("classes", "tiny_boxes", {}, "tiny_boxes predicts bounding boxes, but data.boxes is false"),
        ("frozen", "tiny_boxes", {"trainable": ("fc9",)}, "the network has no layer 'fc9' with weights"),
    ],
)
def test_networks_and_boxes_that_do_not_fit_are_a_user_error(box_runs, variant, network, changes, message):
    run = box_runs[variant]
    update = {
        "model": Model(name=network),
        "train": run.recipe.train.model_copy(update={**changes, "start": None}),
    }
    run = replace(run, recipe=run.recipe.model_copy(update=update), start=None)
    with pytest.raises(UserError, match=message):
        make_tasks([run])


def test_a_set_without_boxes_is_a_user_error(box_runs, tmp_path):
    (tmp_path / "data" / "imagenet-standin" / "boxes.json").unlink()
    with pytest.raises(UserError, match="imagenet-standin has no bounding boxes"):
        make_tasks([box_runs["boxes"]])
    assert make_tasks([box_runs["classes"]])
