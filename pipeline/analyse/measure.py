"""Exact metrics of claims: names such as model/parameters to the values of the network built."""

import json
from typing import Any

from lightning_modules.names import nearest
from lightning_modules.networks import NETWORKS
from pipeline.analyse.network import NetworkAnalysis, _analysis
from pipeline.analyse.tracing import SHAPE_OPERATIONS
from pipeline.common.errors import UserError
from pipeline.declare.experiment import Experiment
from pipeline.declare.protocol import parse_protocol
from pipeline.declare.recipe import Data, Recipe

IMAGENET_SHAPE = "imagenet"  # 1000 classes; the image is as large as the network's paper has it

IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "fashion-mnist": 60_000}


def measure_claim(metric: str, experiment: Experiment, variant: str | None) -> Any:
    """An exact claim's measured value, as published, before any scale.

    `model/…` of the network as built, `recipe/…` of what is declared, `printed/…` of what the paper says itself.
    `recipe/test_views/PROTOCOL`: how many images of a picture a declared test protocol shows the network;
    `recipe/test_scales/PROTOCOL`: at how many sizes of the picture;
    `recipe/distinct_crops`: squares of the declared side in the declared centre, twice as many if mirrored too.
    UserError for a metric that does not exist.
    """
    kind, _, rest = metric.partition("/")
    if kind == "printed":
        if rest not in experiment.printed:
            raise UserError(
                f"{experiment.name}: nothing printed is called {rest!r}{nearest(rest, experiment.printed)}"
            )
        value = experiment.printed[rest].value
        return list(value) if isinstance(value, tuple) else value
    if kind not in ("model", "recipe") or variant is None:
        raise UserError(
            f"{experiment.name}: {metric!r} is not exact; exact metrics start with model/, recipe/ or printed/"
        )
    published = experiment.published(variant)
    if kind == "model":
        try:
            return analysis_of(published).measure(rest)
        except UserError as error:
            raise UserError(f"{experiment.name}, {variant}: {error}") from None
    if published.train and rest in ("epochs", "drop_epochs"):
        return epochs_metric(Recipe(**dict(published)), rest)
    asked, _, protocol = rest.partition("/")
    if asked in ("test_views", "test_scales"):
        return protocol_metric(published.data, protocol, asked, experiment.name)
    if rest == "distinct_crops" and published.data.crop and published.data.crop.centre:
        places = (published.data.crop.centre - published.data.crop.side + 1) ** 2
        places = 5 if published.data.crop.at == "five" else places
        return places * (2 if "flip" in published.data.augment else 1)
    value = published.model_dump(mode="json")
    for part in rest.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{experiment.name}: the recipe has no setting {rest!r}")
        value = value[part]
    return value


def protocol_metric(data: Data, name: str, what: str, experiment: str) -> int:
    """The `test_views` or `test_scales` of the protocol `name`; UserError unless `data` declares it."""
    if name not in data.test:
        raise UserError(f"{experiment}: the recipe has no test protocol {name!r}{nearest(name, data.test)}")
    protocol = parse_protocol(name)
    if what == "test_views":
        return protocol.views
    return len({short for part in protocol.parts for short in part.shorts})


def epochs_metric(recipe: Recipe, what: str) -> Any:
    """`epochs` trained, or the `drop_epochs` at which the rate falls (every so many: one number), to 0.01."""
    if recipe.data.name not in IMAGES:
        raise UserError(f"how many images data set {recipe.data.name!r} has is not known without reading it")
    images = recipe.data.train or IMAGES[recipe.data.name] - recipe.data.val

    def epochs(updates: int) -> float:
        return round(updates * recipe.train.batch_size / images, 2)

    if what == "epochs":
        return epochs(recipe.train.steps)
    drops = recipe.train.lr_drops
    if drops is None:
        return []
    return [epochs(at) for at in drops.at] if drops.at else epochs(drops.every or 0)


def analysis_of(variant: Any) -> NetworkAnalysis:
    """The analysis of a variant's network (anything with `model` and `data`) on its data's images."""
    model, classes = variant.model, class_count(variant.data)
    image = published_image_shape(variant)
    try:
        return _analysis(model.name, json.dumps(model.args, sort_keys=True), classes, image)
    except ValueError as error:  # an unknown network, an argument it does not take, an image it cannot read
        raise UserError(str(error)) from None


def class_count(data: Data) -> int:
    """How many classes a known data set has."""
    if data.name == IMAGENET_SHAPE:
        return 1000
    if data.name not in SHAPE_OPERATIONS:
        raise UserError(f"the image size of data set {data.name!r} is not known without reading it")
    return SHAPE_OPERATIONS[data.name][0]


def published_image_shape(variant: Any) -> tuple[int, int, int]:
    """(C, H, W) of a known data set's images, padded as the recipe says; for imagenet, as the network has them."""
    data = variant.data
    if data.name == IMAGENET_SHAPE:
        if variant.model.name not in NETWORKS:
            raise UserError(f"network {variant.model.name!r} is unknown{nearest(variant.model.name, NETWORKS)}")
        return NETWORKS[variant.model.name].image
    class_count(data)  # or a UserError
    _, channels, side = SHAPE_OPERATIONS[data.name]
    side = data.pad_to or side
    return channels, side, side
