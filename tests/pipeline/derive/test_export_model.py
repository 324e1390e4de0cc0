"""Exported models: the bits of our evaluation, for every normalisation, without our code and without pickle."""

import os
import subprocess
import sys
from dataclasses import replace

import mlflow.pytorch
import pytest
import torch
import yaml
from torch import nn

from lightning_modules.errors import wrong_in_top
from pipeline.data.batches import BatchBuilder, evaluation_batches
from pipeline.data.images import LabelledImages
from pipeline.data.manifest import manifest_of
from pipeline.data.normalise import NORMALISERS, Normaliser, fit_normaliser, normalise_crops
from pipeline.data.views import ViewGroup
from pipeline.declare.data_settings import Crop
from pipeline.derive import export_model as module
from pipeline.derive.context import load_network
from pipeline.derive.export_model import (
    CropModel,
    SmallImageModel,
    central_part,
    central_views,
    export_finished,
    export_model,
)
from pipeline.track.mlflow_models import quietly
from pipeline.track.run_folder import RunFolder
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from tests.support.smoke_runs import images_of, smoke_run, task_at

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """Task and folder of a finished run with its exported model."""
    path = tmp_path_factory.mktemp("export") / "run"
    path.mkdir()
    for file in finished_run(0).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    run = smoke_run()
    images = images_of(run.recipe.data.name)
    task = task_at(path, run, images)
    export_model(task, images)
    return task, RunFolder(path)


@pytest.fixture(scope="module")
def loaded(exported):
    return mlflow.pytorch.load_model(str(exported[1].model_folder))


def test_the_loaded_model_gives_the_bits_of_our_evaluation_and_its_error(exported, loaded):
    task, folder = exported
    images, data = images_of("noise"), task.run.recipe.data
    training = load_training_data(images, data, CPU, sha256="x", options=ReadOptions())
    network = load_network(task.run, folder, manifest_of(images)).eval()
    wrong = 0
    for size in (1, 7, len(images.test)):
        batches = evaluation_batches(training.batch_builder(images.test), images.test.labels, batch_size=size)
        _, batch, labels = next(iter(batches))
        pixels = images.test.pixels[:size].permute(0, 3, 1, 2)
        with torch.no_grad():
            expected, found = network(batch), loaded(pixels)
            assert torch.equal(found, expected)
            assert torch.equal(loaded(pixels.contiguous()), expected)
        wrong = int(wrong_in_top(found, labels, 1))
    assert 100 * wrong / len(images.test) == folder.result().metrics["test/top1_error_pct"]


def test_pixels_of_another_type_are_refused(loaded):
    """Pixels from 0 to 1 would give wrong classes without a word."""
    with pytest.raises(RuntimeError, match="Expected: Byte, Got: float"):
        loaded(torch.rand(2, 3, 16, 16))


def test_the_description_has_signature_example_and_what_a_user_must_know(exported):
    task, folder = exported
    about = yaml.safe_load((folder.model_folder / "MLmodel").read_text())
    assert '"dtype": "uint8", "shape": [-1, 3, 16, 16]' in about["signature"]["inputs"].replace("\n", "")
    assert '"dtype": "float32", "shape": [-1, 10]' in about["signature"]["outputs"].replace("\n", "")
    assert (folder.model_folder / about["saved_input_example_info"]["artifact_path"]).is_file()
    told = about["metadata"]
    assert (told["experiment"], told["variant"], told["scale"], told["seed"]) == (
        "resnet/cifar10_depth",
        "resnet-20",
        "smoke",
        0,
    )
    assert told["normalisation"] == "per-pixel-mean, part of the model"
    assert told["classes"] == list(images_of("noise").classes)
    assert told["identity"] == task.identity
    requirements = (folder.model_folder / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == ["mlflow", "torch"]
    assert not any("pkl" in file.name for file in folder.model_folder.rglob("*"))


@pytest.mark.slow
def test_the_model_loads_in_a_fresh_process_without_our_code_and_without_pickle(exported, tmp_path):
    code = (
        "import sys, mlflow.pytorch, torch\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('pipeline', 'lightning_modules'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "model = mlflow.pytorch.load_model(sys.argv[1])\n"
        "print(model(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)).shape)\n"
    )
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    plain |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported[1].model_folder)],
        capture_output=True, text=True, cwd=tmp_path, env=plain, check=False,
    )  # fmt: skip
    assert "torch.Size([3, 10])" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "pad_to"), [*((name, None) for name in NORMALISERS), ("lecun98", 12), ("gcn-zca", 12), ("scale", 12)]
)
def test_every_normalisation_is_part_of_the_program(name, pad_to):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8, generator=generator)
    images = LabelledImages(pixels, torch.zeros(40, dtype=torch.int64))
    normaliser = fit_normaliser(name, images)
    model = SmallImageModel(nn.Flatten(), normaliser, pad_to).eval()
    batch = pixels.permute(0, 3, 1, 2)
    with quietly():
        batches = torch.export.Dim("batch", min=1)
        program = torch.export.export(model, (batch[:2],), dynamic_shapes=({0: batches},)).module()
    expected = BatchBuilder(images, normalise=normaliser, pad_to=pad_to)(torch.arange(5))
    assert torch.equal(program(batch[:5]), expected.flatten(1))


@pytest.mark.parametrize(("corners", "frame"), [(None, None), ([[2, 2]], 12), ([[2, 2]], 10)])
def test_the_window_of_a_mean_image_is_that_of_the_protocol(corners, frame):
    """In the square frame of the mean image the window is subtracted, elsewhere the mean colour."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8, generator=generator)
    mean = torch.rand(12, 12, 3, generator=generator)
    normaliser = Normaliser("raw-mean-image", torch.ones(3), mean, 0.0)
    places = None if corners is None else torch.tensor(corners)
    model = CropModel(nn.Flatten(), normaliser, ViewGroup(pixels[:1], places, frame, mirror=False, dense=False))
    everywhere = None if places is None else places.expand(4, -1)
    expected = normalise_crops(normaliser, pixels, everywhere, frame)
    assert torch.equal(model(pixels.permute(0, 3, 1, 2)), expected.flatten(1))


@pytest.mark.slow
def test_a_run_on_shards_gives_the_error_of_its_protocol(sharded_members):
    shards, [run, *_], [folder, *_] = sharded_members
    task = task_at(folder.path, run, shards)
    export_model(task, shards)
    loaded = mlflow.pytorch.load_model(str(folder.model_folder))
    samples = shards.test
    views = central_views(samples, run.recipe.data)
    assert [tuple(view.pixels.shape) for view in views] == [(1, 64, 64, 3)] * 2
    module.EXAMPLE_IMAGES, before = len(samples), module.EXAMPLE_IMAGES
    try:
        pixels = torch.cat([view.pixels for view in central_views(samples, run.recipe.data)])
    finally:
        module.EXAMPLE_IMAGES = before
    with torch.no_grad():
        wrong = int(wrong_in_top(loaded(pixels.permute(0, 3, 1, 2)), samples.labels, 1))
    assert 100 * wrong / len(samples) == folder.result().metrics["test/top1_error_pct"]
    told = yaml.safe_load((folder.model_folder / "MLmodel").read_text())["metadata"]
    assert told["view"] == "central 64 x 64 of an image resized to short side 72, bilinear"


def test_the_central_view_of_a_dense_protocol_has_the_size_of_the_training_crops():
    data = smoke_run().recipe.data.model_copy(
        update={"crop": Crop(side=224, short=256), "test": ("dense-of-384-512", "1-crop-224-of-256")}
    )
    part = central_part(data)
    assert (part.kind, part.side, part.shorts) == ("centre", 224, (384,))
    boxes = central_part(data.model_copy(update={"test": ()}))
    assert (boxes.kind, boxes.side, boxes.shorts, boxes.interpolation) == ("centre", 224, (256,), "bilinear")


def test_an_export_that_fails_is_reported_and_the_run_stays_finished(exported, monkeypatch, tmp_path):
    task, folder = exported
    record = folder.result()
    monkeypatch.setenv("REPRO_LOG_MODELS", "1")
    said: list[str] = []
    elsewhere = replace(task, folder=tmp_path / "none")  # has no network
    export_finished(elsewhere, record, images_of("noise"), said.append)
    assert said[0].startswith("the model is not exported for MLflow: the model of resnet-20 seed 0 is not at")


def test_no_model_is_exported_where_it_is_switched_off_or_the_run_diverged(exported, monkeypatch):
    task, folder = exported
    made: list[object] = []
    monkeypatch.setattr(module, "export_model", lambda *given: made.append(given))
    monkeypatch.setenv("REPRO_LOG_MODELS", "0")
    export_finished(task, folder.result(), None, print)
    monkeypatch.setenv("REPRO_LOG_MODELS", "1")
    export_finished(task, replace(folder.result(), status="not converged"), None, print)
    assert made == []
    export_finished(task, folder.result(), None, print)
    assert len(made) == 1
