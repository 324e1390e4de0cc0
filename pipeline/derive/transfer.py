"""Transfer: a linear classifier on the features of networks that stay as they are.

Zeiler and Fergus 2013 (arXiv:1311.2901, section 5.2) train a softmax classifier on the features of their ImageNet
network, Simonyan and Zisserman 2014 (arXiv:1409.1556, appendix B) linear SVMs. Stanford CS231n, lecture 9, "CNN
architectures", has it as the use of a trained network for other data.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.data.images import ImageSet
from pipeline.data.samples import Samples
from pipeline.data.transfer_sets.images import AveragePrecision, TransferSet
from pipeline.data.transfer_sets.splits import held_out_share, own_split, random_split
from pipeline.declare.protocol import parse_protocol
from pipeline.declare.transfer import MEAN_AP, MEAN_CLASS_RECALL, SPLIT_SPREAD, TransferSpec
from pipeline.derive.context import DerivedContext, DerivedResult
from pipeline.derive.descriptors import image_descriptors, join_scales, unit_length
from pipeline.derive.feature_network import feature_network
from pipeline.derive.linear_classifier import Examples, NotConvergedError, fit_scores, score_metrics
from pipeline.train.evaluate import EnsembleMember
from pipeline.train.inputs import Metrics, input_shape


@dataclass(frozen=True, eq=False)
class TransferData:
    """Features of all images of a set, with its parts."""

    name: str
    classes: tuple[str, ...]
    examples: Examples
    parts: Mapping[str, Tensor]  # name -> indices, int64; empty: the set has no parts
    kind: AveragePrecision | None = None


def run_transfer(context: DerivedContext) -> DerivedResult:
    """Return the metrics of a linear classifier on the other set's test images."""
    spec = context.derived.spec
    assert isinstance(spec, TransferSpec)
    data = transfer_data(context, spec)
    width = data.examples.features.shape[1]
    found: Metrics = {"features": float(width)}
    chosen: Counter[float] = Counter()
    iterations = 0.0
    try:
        for place, per_class in spec.sizes.items():
            splits = []
            for number in range(spec.splits or 1):

                def measure(number: int = number, per_class: int | None = per_class) -> Metrics:
                    return split_metrics(context, spec, data, number, per_class)

                splits.append(context.cached_values(f"{place}/{number}", measure))
            chosen.update(split.pop("c") for split in splits)
            iterations = max(iterations, *(split.pop("iterations") for split in splits))
            found |= over_splits(splits, place)
    except NotConvergedError as error:
        reason = f"the classifier on {width} features did not converge: {error}"
        return DerivedResult({}, reason, status="not converged")
    if spec.classifier == "softmax":
        found["iterations"] = iterations
    return DerivedResult(found, describe_end(spec, chosen, int(iterations), width))


def describe_end(spec: TransferSpec, chosen: Mapping[float, int], iterations: int, width: int) -> str:
    """Return how the fits ended: "15 iterations on 64 features", "C 1 (2 of 3 splits), 10 (1), ..."."""
    text = f"{iterations} iterations on {width} features"
    if len(spec.candidates) == 1:
        return text
    fits = sum(chosen.values())
    values = ", ".join(
        f"{c:g}" + (f" ({count} of {fits} fits)" if fits > 1 else "") for c, count in sorted(chosen.items())
    )
    return f"C {values}, at most {text}"


def over_splits(splits: list[Metrics], place: str) -> Metrics:
    """Return the mean of each metric over the splits and, of several, the standard deviation of percentages."""
    found: Metrics = {}
    for name in splits[0]:
        values = [split[name] for split in splits]
        found[f"{place}/{name}"] = fmean(values)
        if len(values) > 1 and name != "images":
            found[f"{place}/{name}{SPLIT_SPREAD}"] = stdev(values)
    return found


def split_metrics(
    context: DerivedContext, spec: TransferSpec, data: TransferData, number: int, per_class: int | None
) -> Metrics:
    """Return the metrics of one split, the C that was chosen, and the iterations of the last fit."""
    stop, labels = context.options.stop, data.examples.labels
    if per_class is None:
        train, test = own_split(data.name, data.parts, spec.train_parts, spec.test_part)
    else:
        if data.parts:
            raise UserError(
                f"{data.name} has parts for training and testing; remove 'splits' and 'train_per_class'"
            )
        train, test = random_split(
            data.name, labels, data.classes, number=number, train=per_class, test=spec.test_per_class
        )
    training, testing = data.examples.chosen(train), data.examples.chosen(test)
    c = choose_c(context, spec, data, train, training)
    fitted = fit_scores(spec, c, training, testing.features, len(data.classes), stop=stop)
    metrics = score_metrics(
        fitted.scores, testing.labels, classifier=spec.classifier, kind=data.kind, classes=data.classes
    )
    return metrics | {"c": c, "iterations": float(fitted.iterations)}


def choose_c(
    context: DerivedContext, spec: TransferSpec, data: TransferData, train: Tensor, training: Examples
) -> float:
    """Return the C with the best score on the images held out of `training`; of equal ones the smallest.

    `train` holds the training images' indices in the set. A C whose fit does not converge is not chosen. Raises
    NotConvergedError if none converges.
    """
    if len(spec.candidates) == 1:
        return spec.candidates[0]
    if isinstance(spec.validation, str):
        held = torch.isin(train, data.parts[spec.validation])
    else:
        assert spec.validation is not None
        held = held_out_share(training.labels, spec.validation)
    rest, judged = training.chosen(~held), training.chosen(held)
    score = MEAN_AP if training.labels.ndim == 2 else MEAN_CLASS_RECALL
    best: tuple[float, float] | None = None  # score, C
    for c in spec.candidates:
        context.options.report(f"choosing C: fitting {len(rest):,} images with C {c:g}")
        try:
            fitted = fit_scores(spec, c, rest, judged.features, len(data.classes), stop=context.options.stop)
        except NotConvergedError:
            context.options.report(f"the fit with C {c:g} did not converge, so it is not chosen")
            continue
        metrics = score_metrics(
            fitted.scores, judged.labels, classifier=spec.classifier, kind=data.kind, classes=data.classes
        )
        if best is None or metrics[score] > best[0]:
            best = metrics[score], c
    if best is None:
        raise NotConvergedError("no fit with one of the values of C did")
    return best[1]


def transfer_data(context: DerivedContext, spec: TransferSpec) -> TransferData:
    """Return the features of the other set: those of all networks side by side, each of unit length for `l2`."""
    other, found = context.other_images, []
    assert other is not None
    for member in range(len(context.networks)):
        image = input_shape(context.images, context.derived.members[member].recipe.data)
        context.networks[member] = feature_network(context.networks[member], spec.layer, image)
        features = member_features(context, spec, member)
        found.append(unit_length(features) if spec.normalise == "l2" else features)
    features = torch.cat(found, 1)
    if isinstance(other, TransferSet):
        examples = Examples(features, other.images.labels)
        return TransferData(other.name, other.classes, examples, other.parts, other.average_precision)
    count = len(other.train)
    parts = {"train": torch.arange(count), "test": torch.arange(count, count + len(other.test))}
    labels = torch.cat([other.train.labels, other.test.labels])
    return TransferData(other.name, other.classes, Examples(features, labels), parts)


def member_features(context: DerivedContext, spec: TransferSpec, member: int) -> Tensor:
    """Return the features of all images of the other set by one network, float32 (N, D); training images first."""
    other, network, data = context.other_images, context.networks[member], context.datasets[member]
    assert other is not None
    view = parse_protocol(spec.view) if spec.view else None
    whole = view is None or (view.views == 1 and spec.layer is None)  # nothing to average
    if not isinstance(other, TransferSet) and (whole or isinstance(other, ImageSet)):
        context.options.report(f"computing features of {spec.data}")
        return torch.cat([data.features(network, other, part, spec.view)[0] for part in ("train", "test")])
    assert view is not None  # `TransferSpec` has checked it
    found = []
    named: dict[str, Samples]
    if isinstance(other, TransferSet):
        named = {"images": other.images}
    else:
        named = {"train": other.train, "test": other.test}
    for name, samples in named.items():
        scales = image_descriptors(
            EnsembleMember(network, data.normaliser),
            samples,
            view,
            folder=context.folder.checkpoints,
            name=f"features-{member}-{name}",
            device=context.device,
            options=context.options,
        )
        found.append(join_scales(scales, stack=spec.scales == "stack"))
    return torch.cat(found)
