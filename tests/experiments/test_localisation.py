"""vgg/localisation: the networks it starts from, Tables 8 and 9, and a step of networks that predict boxes."""

import shutil
from dataclasses import replace

import pytest
import torch

from lightning_modules.networks import build
from pipeline.declare.claims import MetricClaim
from pipeline.declare.load import load_experiment
from pipeline.plan.expand import DerivedRun, make_runs, plan_runs
from pipeline.schedule.tasks import check_run
from pipeline.train.train import train
from tests.support.box_sets import open_boxed_set, prepare_boxed_set
from tests.support.smoke_runs import task_at

LOADED = load_experiment("vgg/localisation")
BOXED_IMAGES = 523_966  # training images with boxes: Russakovsky et al. 2015, arXiv:1409.0575, Table 3
BOXES = ("scr-fc-384", "pcr-fc-384", "pcr-all-384", "pcr-all-256", "pcr-11")
TABLES = {  # Tables 8 and 9 of arXiv:1409.1556, localisation errors on the validation set in percent
    "scr-fc-384": 36.4,
    "pcr-fc-384": 34.3,
    "pcr-all-384": 33.1,
    "localised-256": 29.5,
    "localised-384": 28.2,
    "localised-352-384": 27.5,
    "localised-fusion": 26.9,
}
SIDES = {  # Table 9: training scale -> test scales
    "localised-256": {"pcr-all-256": (256,)},
    "localised-384": {"pcr-all-384": (384,)},
    "localised-352-384": {"pcr-all-384": (352, 384)},
    "localised-fusion": {"pcr-all-256": (256,), "pcr-all-384": (352, 384)},
}


def test_only_the_trial_has_a_network_that_predicts_classes():
    assert {name for name in LOADED.variants if LOADED.predicts_boxes(name)} == set(BOXES)
    assert set(LOADED.variants) - set(BOXES) == {"vgg-11"}
    assert set(LOADED.variants_at("paper")) == set(LOADED.variants) - {"vgg-11", "pcr-11"}


def test_epochs_are_those_of_the_images_with_boxes():
    """Section 3.1 trains for 74 epochs; the rate may fall at the end of any of them."""
    train_ = LOADED.train
    assert train_.steps * train_.batch_size / BOXED_IMAGES == pytest.approx(74, abs=1)
    assert train_.eval_every == pytest.approx(BOXED_IMAGES / train_.batch_size, abs=1)


def test_errors_are_those_of_tables_8_and_9():
    claims = [claim for claim in LOADED.claims if isinstance(claim, MetricClaim)]
    assert {claim.of: claim.claimed for claim in claims} == TABLES
    for claim in claims:
        derived = claim.of in LOADED.derived
        metric = "test/top5_localisation_error_pct" if derived else "test/1-crop-224-of-384/localisation_error_pct"
        assert claim.metric == metric


@pytest.mark.parametrize("name", SIDES)
def test_scales_are_those_of_table_9(name):
    spec = LOADED.derived_spec(name, "paper")
    assert spec.boxes == SIDES[name]
    assert spec.classes == ("vgg/imagenet/vgg-16-jitter", "vgg/imagenet/vgg-19-jitter")  # section 4.5
    assert spec.labels == "dense-of-256-384-512-and-150-crop-224-of-256-384-512"


@pytest.mark.parametrize("variant", BOXES)
def test_all_layers_but_the_last_start_from_a_classification_network_of_the_same_scale(variant):
    [run] = make_runs(LOADED, "paper", variant, [0])
    assert run.start.recipe.data.crop == run.recipe.data.crop
    with torch.device("meta"):
        network = build(run.recipe.model.name, run.recipe.model.args, num_classes=1000, in_channels=3)
    layers = {name.partition(".")[0] for name, _ in network.named_parameters()}
    assert layers - set(run.recipe.train.start.layers) == {"fc8"}


def test_the_stand_in_scale_runs_all_three_kinds():
    planned = plan_runs(LOADED, scale="stand-in", seeds=1)
    assert [run.variant for run in planned] == ["vgg-11", "pcr-11", "localised-11"]
    assert isinstance(planned[-1], DerivedRun)
    assert sum(run.recipe.train.steps * run.recipe.train.batch_size for run in planned[:-1]) <= 100


@pytest.fixture(scope="module")
def boxed_images(tmp_path_factory):
    """Four images of two classes for training and two for testing, with their boxes."""
    return open_boxed_set(prepare_boxed_set(tmp_path_factory.mktemp("boxed"), classes=2, train=2, test=1, side=64))


@pytest.mark.parametrize("variant", BOXES)
def test_networks_images_and_starts_fit(variant, boxed_images):
    [run] = make_runs(LOADED, "paper", variant, [0])
    check_run(run, boxed_images)


@pytest.mark.slow
@pytest.mark.parametrize("variant", BOXES)
def test_it_trains_one_step(variant, boxed_images, tmp_path):
    changes = {"train.steps": 1, "train.batch_size": 2, "train.lr": 1e-6, "train.eval_every": 1}
    [run] = make_runs(LOADED, "paper", variant, [0], changes)
    settings = run.recipe.train.model_copy(update={"start": None})
    run = replace(run, recipe=run.recipe.model_copy(update={"train": settings}), start=None)
    record = train(task_at(tmp_path, run, boxed_images), boxed_images)
    assert record.status == "finished", record.ended
    assert record.metrics["test/localisation_error_pct"] in (0.0, 50.0, 100.0)
    assert record.metrics["test/images"] == 2
    shutil.rmtree(tmp_path)  # weights of up to half a gigabyte
