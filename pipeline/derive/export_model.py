"""Export the network of a finished run as a model that needs none of our code: pixels in, scores out.

The model contains the normalisation of its input, so that its scores have the same bits as those of our evaluation
of the same batch in fp32. It is a program of torch.export, which loads without pickle.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.environment import env_integer
from pipeline.common.words import first_line
from pipeline.data.batches import BatchBuilder
from pipeline.data.images import ImageSet, LabelledImages
from pipeline.data.jpeg import decode
from pipeline.data.manifest import Manifest, manifest_from_dict
from pipeline.data.normalise import Normaliser, normalise_crops
from pipeline.data.samples import Samples
from pipeline.data.shards import ShardSet
from pipeline.data.statistics import statistics_frame
from pipeline.data.views import ViewGroup, protocol_views
from pipeline.declare.data_settings import Data
from pipeline.declare.protocol import ProtocolPart, parse_protocol
from pipeline.derive.context import load_network
from pipeline.plan.expand import Run
from pipeline.plan.task import Task
from pipeline.track.mlflow_models import save_model
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import RunFolder
from pipeline.train.inputs import AnyImageSet, ReadOptions, images_for
from pipeline.train.load import load_training_data

EXAMPLE_IMAGES = 2  # test images in the model's input example; with one, torch.export would fix the batch size

LOG_MODELS = "REPRO_LOG_MODELS"  # environment variable: 0 exports no models


class SmallImageModel(nn.Module):
    """A network of small images with its normalisation: uint8 (N, C, H, W) -> scores (N, classes)."""

    def __init__(self, network: nn.Module, normaliser: Normaliser, pad_to: int | None) -> None:
        super().__init__()
        self.network, self.normaliser, self.pad_to = network, normaliser, pad_to

    def forward(self, pixels: Tensor) -> Tensor:
        images = LabelledImages(pixels.permute(0, 2, 3, 1).contiguous(), torch.empty(0, dtype=torch.int64))
        builder = BatchBuilder(images, normalise=self.normaliser, pad_to=self.pad_to)
        scores: Tensor = self.network(builder(torch.arange(pixels.shape[0])))
        return scores.float()


class CropModel(nn.Module):
    """A network of crops with its normalisation: uint8 (N, 3, side, side) -> scores (N, classes).

    `view` is a central view of an image: its place in a mean image decides what is subtracted.
    """

    def __init__(self, network: nn.Module, normaliser: Normaliser, view: ViewGroup) -> None:
        super().__init__()
        shift, side = normaliser.shift, view.pixels.shape[1]
        if shift.dim() == 3 and view.corners is not None and view.frame == len(shift):
            row, column = view.corners[0].tolist()
            shift = shift[row : row + side, column : column + side].contiguous()
        self.network, self.normaliser = network, replace(normaliser, shift=shift)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.network(normalise_crops(self.normaliser, pixels.permute(0, 2, 3, 1)))
        return scores.float()


def log_models() -> bool:
    """Return True unless REPRO_LOG_MODELS is 0."""
    return env_integer(LOG_MODELS, 1) > 0


def export_finished(task: Task, record: Record, images: AnyImageSet, report: Callable[[str], None]) -> None:
    """Export the model of a run that has just finished. An error is reported; the run is finished without it."""
    if record.status != FINISHED or not log_models():
        return
    try:
        export_model(task, images)
    except Exception as error:  # noqa: BLE001 - the result of a training is worth more than its export
        report(f"the model is not exported for MLflow: {first_line(error, 200)}")


def export_model(task: Task, images: AnyImageSet) -> None:
    """Write the model of a finished run to the folder `model` of its run folder, in MLflow's format."""
    run, folder = task.run, RunFolder(task.folder)
    assert isinstance(run, Run)
    manifest, data = manifest_from_dict(task.manifest), run.recipe.data
    images, cpu = images_for(images, data), torch.device("cpu")
    options = ReadOptions(cache=task.data_root / ".cache")
    normaliser = load_training_data(images, data, cpu, sha256=manifest.sha256, options=options).normaliser
    network = load_network(run, folder, manifest).eval()
    model: nn.Module
    if isinstance(images, ShardSet):
        views = central_views(images.test, data)
        model = CropModel(network, normaliser, views[0])
        example = torch.cat([view.pixels for view in views])
    else:
        assert isinstance(images, ImageSet)
        model, example = SmallImageModel(network, normaliser, data.pad_to), images.test.pixels[:EXAMPLE_IMAGES]
    copies = -(-EXAMPLE_IMAGES // len(example))  # a test set may have one image
    example = example.repeat(copies, 1, 1, 1)[:EXAMPLE_IMAGES].permute(0, 3, 1, 2).contiguous()
    model = model.eval().requires_grad_(False)
    with torch.no_grad():
        scores = model(example)
    shutil.rmtree(folder.model_folder, ignore_errors=True)
    save_model(folder.model_folder, model, example, scores, model_metadata(task, manifest))


def central_views(samples: Samples, data: Data) -> list[ViewGroup]:
    """Return the central views of the first test images, each uint8 (1, side, side, 3)."""
    part, numbers = central_part(data), range(min(len(samples), EXAMPLE_IMAGES))
    contents = zip(numbers, samples.read(numbers), strict=True)
    return [protocol_views(decode(content, samples.where(number)), part)[0] for number, content in contents]


def central_part(data: Data) -> ProtocolPart:
    """Return the protocol of one central crop, with the size and scale of the recipe's first protocol.

    Networks that predict boxes have no protocol; theirs are those of the training crops.
    """
    assert data.crop is not None
    if not data.test:
        frame = statistics_frame(data.crop)
        return ProtocolPart(
            "centre",
            data.crop.side,
            (frame.short,),
            square=False,
            interpolation="bicubic" if frame.interpolation == "bicubic" else "bilinear",
        )
    first = parse_protocol(data.test[0]).parts[0]
    return replace(first, kind="centre", side=first.side or data.crop.side, shorts=first.shorts[:1])


def model_metadata(task: Task, manifest: Manifest) -> dict[str, Any]:
    """Return what a user of the model has to know: its input, its output, and the run that it comes from."""
    run = task.run
    assert isinstance(run, Run)
    data, recipe = run.recipe.data, run.recipe.train
    view: dict[str, Any] = {"pad_to": data.pad_to}
    if data.crop is not None:
        part = central_part(data)
        of = f"{'the central square of ' if part.square else ''}an image resized to short side {part.shorts[0]}"
        view = {"view": f"central {part.side} x {part.side} of {of}, {part.interpolation}"}
    return {
        "experiment": run.experiment,
        "variant": run.variant,
        "scale": run.scale,
        "seed": run.seed,
        "identity": task.identity,
        "commit": task.description()["commit"],
        "data": manifest.name,
        "network": run.recipe.model.model_dump(mode="json"),
        "input": "pixels 0..255 as uint8 (N, channels, height, width); colours in the order RGB",
        "output": "coordinates of boxes" if data.boxes else "scores (N, classes); the largest is the prediction",
        "normalisation": f"{data.normalise}, part of the model",
        **view,
        "protocols": list(data.test),
        "weights": "lowest validation error" if recipe.select == "val" else "last",
        "evaluated_in": recipe.precision,
        "classes": list(manifest.classes),
    }
