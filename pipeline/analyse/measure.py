"""Exact metrics of claims: model/, recipe/ and printed/ names to values."""

import json
from typing import TYPE_CHECKING, Any

from lightning_modules.names import nearest
from pipeline.analyse.value_cache import cache_value, cached_value
from pipeline.common.errors import UserError
from pipeline.common.garbage import no_garbage_collection
from pipeline.declare.data_settings import Data
from pipeline.declare.experiment import Experiment, PublishedRecipe
from pipeline.declare.protocol import parse_protocol
from pipeline.declare.recipe import Recipe

if TYPE_CHECKING:  # torch, which model/ metrics import when they are measured
    from pipeline.analyse.network import NetworkAnalysis

IMAGENET_SHAPE = "imagenet"  # 1000 classes; the image size is the one of the network's paper

DATA_SHAPES = {  # data set: classes, channels and side in pixels, known without reading it
    "digits": (10, 1, 8),
    "mnist": (10, 1, 28),
    "fashion-mnist": (10, 1, 28),
    "cifar10": (10, 3, 32),
    "cifar100": (100, 3, 32),
    "svhn": (10, 3, 32),
    "svhn-extra": (10, 3, 32),
    "noise": (10, 3, 16),
}

IMAGES = {  # data set: training images
    "imagenet": 1_281_167,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn": 73_257,
    "svhn-extra": 604_388,
    "mnist": 60_000,
    "fashion-mnist": 60_000,
}


def measure_claim(metric: str, experiment: Experiment, variant: str | None) -> Any:
    """Return the measured value of an exact claim, with the recipe as published.

    `model/...`: of the network as built. `recipe/...`: a setting of the recipe. `printed/...`: a value the paper
    prints. Computed from the recipe:
    `recipe/epochs` and `recipe/drop_epochs`: see `epochs_metric`;
    `recipe/test_views/PROTOCOL` and `recipe/test_scales/PROTOCOL`: see `protocol_metric`;
    `recipe/distinct_crops`: see `distinct_crops`.

    Raises UserError for a metric that does not exist.
    """
    kind, _, rest = metric.partition("/")
    if kind == "printed":
        return printed_metric(rest, experiment)
    if kind not in ("model", "recipe") or variant is None:
        raise UserError(
            f"{experiment.name}: {metric!r} is not exact; exact metrics start with model/, recipe/ or printed/"
        )
    published = experiment.published(variant)
    if kind == "recipe":
        return recipe_metric(rest, published, experiment.name)
    try:
        return measure_network(published, rest)
    except UserError as error:
        raise UserError(f"{experiment.name}, {variant}: {error}") from None


def printed_metric(name: str, experiment: Experiment) -> Any:
    """Return the value that the paper prints under `name` in the declaration."""
    if name not in experiment.printed:
        raise UserError(f"{experiment.name}: 'printed' has no value {name!r}{nearest(name, experiment.printed)}")
    value = experiment.printed[name].value
    return list(value) if isinstance(value, tuple) else value


def recipe_metric(metric: str, published: PublishedRecipe, experiment: str) -> Any:
    """Return a setting of the published recipe, such as "train.lr", or a value computed from it."""
    if published.train and metric in ("epochs", "drop_epochs"):
        return epochs_metric(Recipe(**dict(published)), metric)
    what, _, protocol = metric.partition("/")
    if what in ("test_views", "test_scales"):
        return protocol_metric(published.data, protocol, what, experiment)
    if metric == "distinct_crops" and published.data.crop and published.data.crop.centre:
        return distinct_crops(published.data)
    value = published.model_dump(mode="json")
    for key in metric.split("."):
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{experiment}: the recipe has no setting {metric!r}")
        value = value[key]
    return value


def protocol_metric(data: Data, name: str, what: str, experiment: str) -> int:
    """Return the number of views of one image under test protocol `name`, or of image sizes ("test_scales").

    Raises UserError unless `data` declares the protocol.
    """
    if name not in data.test:
        raise UserError(f"{experiment}: the recipe has no test protocol {name!r}{nearest(name, data.test)}")
    protocol = parse_protocol(name)
    if what == "test_views":
        return protocol.views
    return len({short for part in protocol.parts for short in part.shorts})


def distinct_crops(data: Data) -> int:
    """Return the number of distinct crops of the declared side in the declared centre; mirrored ones count too."""
    assert data.crop
    assert data.crop.centre
    places = 5 if data.crop.at == "five" else (data.crop.centre - data.crop.side + 1) ** 2
    return places * (2 if "flip" in data.augment else 1)


def epochs_metric(recipe: Recipe, what: str) -> Any:
    """Return the `epochs` of a training, or the `drop_epochs` at which the learning rate falls, to 0.01.

    `drop_epochs` is one number if the rate falls every so many epochs.
    """
    if recipe.data.name not in IMAGES:
        raise UserError(f"the number of images in data set {recipe.data.name!r} is not known without reading it")
    images = recipe.data.train or IMAGES[recipe.data.name] - recipe.data.held_out(class_count(recipe.data))

    def epochs(steps: int) -> float:
        return round(steps * recipe.train.batch_size / images, 2)

    if what == "epochs":
        return epochs(recipe.train.steps)
    drops = recipe.train.lr_drops
    if drops is None:
        return []
    return [epochs(at) for at in drops.at] if drops.at else epochs(drops.every or 0)


def measure_network(recipe: Recipe | PublishedRecipe, metric: str) -> Any:
    """Return the value of a metric of a recipe's network on images of its data set. Known values are cached.

    Raises UserError for an unknown network, argument, metric or layer.
    """
    model, classes = recipe.model, class_count(recipe.data)
    image = IMAGENET_SHAPE if recipe.data.name == IMAGENET_SHAPE else published_image_shape(recipe)
    network = (model.name, json.dumps(model.args, sort_keys=True), classes, image)
    try:
        return cached_value(network, metric)
    except KeyError:
        with no_garbage_collection():
            value = analysis_of(recipe).measure(metric)
    cache_value(network, metric, value)
    return value


def analysis_of(recipe: Recipe | PublishedRecipe) -> "NetworkAnalysis":
    """Return the analysis of a recipe's network on images of its data set."""
    from pipeline.analyse.network import analyse_network

    model, classes = recipe.model, class_count(recipe.data)
    image = published_image_shape(recipe)
    try:
        return analyse_network(model.name, json.dumps(model.args, sort_keys=True), classes, image)
    except ValueError as error:  # an unknown network, an argument it does not take
        raise UserError(str(error)) from None


def class_count(data: Data) -> int:
    """Return the number of classes of a known data set."""
    if data.name == IMAGENET_SHAPE:
        return 1000
    if data.name not in DATA_SHAPES:
        raise UserError(f"the image size of data set {data.name!r} is not known without reading it")
    return DATA_SHAPES[data.name][0]


def published_image_shape(recipe: Recipe | PublishedRecipe) -> tuple[int, int, int]:
    """Return (C, H, W) of a known data set's images with padding; for imagenet, of the network's paper."""
    data = recipe.data
    if data.name == IMAGENET_SHAPE:
        from lightning_modules.networks import NETWORKS

        if recipe.model.name not in NETWORKS:
            raise UserError(f"network {recipe.model.name!r} is unknown{nearest(recipe.model.name, NETWORKS)}")
        return NETWORKS[recipe.model.name].image
    class_count(data)  # raises UserError for an unknown data set
    _, channels, side = DATA_SHAPES[data.name]
    side = data.pad_to or side
    return channels, side, side
