"""Evaluate imported weights on a data set.

A result is a row of the leaderboard labelled "published weights". It is no evidence for a claim, because nothing
was trained here. What neither the publisher nor the user has said (normalisation, test protocol, order of the
classes) stands in the row as assumed.
"""

import datetime
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.recipe import Batch
from pipeline.analyse.catalogue import NamedNetwork
from pipeline.common.errors import UserError
from pipeline.common.hashing import digest
from pipeline.common.paths import data_folder
from pipeline.common.provenance import commit, hardware_name
from pipeline.common.words import printable, some_of
from pipeline.data import sources
from pipeline.data.batches import BatchBuilder, evaluation_batches
from pipeline.data.class_names import class_order
from pipeline.data.images import DataError
from pipeline.data.manifest import manifest_of
from pipeline.data.samples import Samples
from pipeline.data.shard_manifest import MANIFEST_NAME
from pipeline.data.shards import open_shards
from pipeline.declare.protocol import parse_protocol
from pipeline.derive.class_folders import ClassFolders, list_test_folder
from pipeline.derive.class_labels import ClassLabels, class_labels
from pipeline.derive.import_weights import ImportedNetwork
from pipeline.derive.input_normalisation import InputNormalisation, parse_normalisation
from pipeline.track.published_results import PublishedResult
from pipeline.train.evaluate import EVAL_BATCH, EnsembleMember, ErrorCounts, evaluate_batches, evaluate_samples
from pipeline.train.process import allow_tf32

SMALL = 64  # largest input side in pixels of networks that are evaluated on whole images of a known set

# Stored in results; a result with another text here would not replace an older one.
WHOLE_IMAGE = "single view of the whole image, {} taken out"
WHOLE_IMAGE_BY_RECIPE = "single view of the whole image, normalised by {}"


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """The test images of a data set of any size, labelled for a network."""

    name: str  # of the set's manifest, or "class folders val"
    manifest: str  # hash of the content; "" for class folders, whose check finds it
    samples: Samples
    labels: ClassLabels
    skipped: tuple[str, ...] = ()  # paths of files in class folders that are not images


def evaluate_imported(
    members: Sequence[tuple[NamedNetwork, ImportedNetwork]],
    data: str,
    *,
    protocol: str | None = None,
    normalise: str | None = None,
    classes: Path | None = None,
    threads: int,
) -> PublishedResult:
    """Return the errors of a network with imported weights, or of several as an ensemble, on `data`.

    `data` is a set of small images, a set in shards, or a folder with one folder per class. `protocol` is for the
    latter two; None means the publisher's protocol. `normalise`: see `parse_normalisation`; None means the
    publisher's. `classes`: a file with the network's classes in the order of its outputs.

    Raises UserError for networks, data and options that do not fit each other, for broken images, and for networks
    that give NaN.
    """
    allow_tf32(False)
    named, imported = members[0]
    if (
        len({network.classes for network, _ in members}) > 1
        or len({is_small(network) for network, _ in members}) > 1
    ):
        names = " and ".join(network.name for network, _ in members)
        raise UserError(
            f"cannot average {names}: the networks of an ensemble must have the same classes and the same kind of"
            " images"
        )
    given = parse_normalisation(normalise) if normalise else None
    used_protocol = protocol or imported.protocol
    skipped: tuple[str, ...] = ()
    if not is_small(named):
        parse_protocol(used_protocol)
        test = open_test_set(data, named.classes, own_data=named.variant.data.name, order_file=classes)
        data_name, manifest, labels, skipped = test.name, test.manifest, test.labels, test.skipped
        if isinstance(test.samples, ClassFolders):
            manifest = test.samples.check(threads)
        errors = sample_errors(members, test.samples, used_protocol, threads, given)
    elif protocol:
        raise UserError(f"{named.name} is evaluated on whole images; leave out --protocol")
    elif len(members) > 1:
        raise UserError(
            "ensembles are evaluated on sets in shards or in class folders; give one network for a set of small"
            " images"
        )
    else:
        data_name, root = small_set(data)
        errors, used_protocol, manifest, labels = small_set_errors(
            named, imported, data_name, root, given, classes
        )
    network = join_names(network.name for network, _ in members)
    if math.isnan(errors.loss):
        raise UserError(
            f"{network} gives NaN for images of {data}: no result; the weights are damaged, or overflow with this"
            " normalisation"
        )
    metrics = errors.metrics("test")
    is_as_stated = len(members) == 1 and used_protocol == imported.protocol and given is None
    return PublishedResult(
        network=network,
        weights=join_names(member.weights for _, member in members),
        sha256=imported.sha256 if len(members) == 1 else digest([member.sha256 for _, member in members]),
        differs="; ".join(dict.fromkeys(member.differs for _, member in members if member.differs)),
        data=data_name,
        protocol=used_protocol,
        images=errors.images,
        top1=metrics["test/top1_error_pct"],
        top5=metrics["test/top5_error_pct"],
        stated_top1=imported.stated_top1_error_pct if is_as_stated else None,
        ignored=len(skipped),
        hardware=hardware_name(),
        commit=commit(),
        evaluated=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        manifest=manifest,
        normalisation="; ".join(
            dict.fromkeys(normalisation_of(member, given).describe(named.image[0]) for _, member in members)
        ),
        class_order=labels.order,
        assumed=", ".join(assumptions(members, labels, protocol, given)),
        given=", ".join(given_options(normalise, labels if classes else None)),
        note="; ".join(dict.fromkeys(member.note for _, member in members if member.note)),
        skipped=some_of([printable(path) for path in skipped]),
    )


def assumptions(
    members: Sequence[tuple[NamedNetwork, ImportedNetwork]],
    labels: ClassLabels,
    protocol: str | None,
    given: InputNormalisation | None,
) -> list[str]:
    """Return what neither the publisher nor the user has said."""
    unknown = any(not imported.is_known for _, imported in members)
    protocols = {imported.protocol for _, imported in members}
    has_choice = protocol is None and not is_small(members[0][0])
    found = {
        "normalisation": unknown and given is None,
        "test protocol": has_choice and (unknown or len(protocols) > 1),
        "class order": labels.is_assumed,
    }
    return [name for name, is_assumed in found.items() if is_assumed]


def given_options(normalise: str | None, labels: ClassLabels | None) -> list[str]:
    """Return the options that make another result of the same weights, data and protocol."""
    return [f"--normalise {normalise}"] * bool(normalise) + ([f"--classes {labels.order}"] if labels else [])


def is_small(named: NamedNetwork) -> bool:
    """Return True for a network that is evaluated on whole images of a known set."""
    return named.image[1] <= SMALL


def join_names(names: Iterable[str]) -> str:
    """Return the names as 'vgg-16 + vgg-19', or '2 x vgg-16'."""
    counts = Counter(names)
    return " + ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def open_test_set(data: str, classes: int, *, own_data: str = "", order_file: Path | None = None) -> EvaluationSet:
    """Return the test images of a data set in shards or in class folders, labelled for `classes` classes.

    The name of a set in shards is the one in its manifest. `own_data`: the set that the network is for.
    `order_file`: the network's classes in the order of its outputs.

    Raises UserError for a set of small images, DataError for data that is missing or has other classes.
    """
    if data in sources.NAMES:
        raise UserError(
            f"{data} is a set of small images, and the network is evaluated on crops of larger ones; give --data a"
            " set in shards or in class folders"
        )
    store = sources.find_shards(data, data_folder())
    if store.exists(MANIFEST_NAME):
        shards = sources.check_published_name(open_shards(store, cache=data_folder() / ".cache" / "shards"))
        labels = class_labels(str(store), shards.classes, classes, order_file, known=shards.name == own_data)
        samples = shards.test
        samples.labels = torch.tensor(labels.numbers)[samples.labels]
        return EvaluationSet(shards.name, shards.manifest.sha256[:16], samples, labels)
    if not store.local:
        raise DataError(f"no shards at {store}; prepare them with: repro data prepare")
    folder = Path(data) if Path(data).is_dir() else data_folder() / data
    listing = list_test_folder(folder)
    labels = class_labels(str(folder), class_order(listing.names), classes, order_file)
    images = ClassFolders(listing, labels)
    return EvaluationSet(f"class folders {folder.name}", "", images, labels, tuple(images.skipped))


def sample_errors(
    members: Sequence[tuple[NamedNetwork, ImportedNetwork]],
    samples: Samples,
    protocol: str,
    threads: int,
    given: InputNormalisation | None,
) -> ErrorCounts:
    """Return the errors of the members' averaged predictions by `protocol`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [imported.network.to(device).to(memory_format=torch.channels_last) for _, imported in members]
    normalisers = [normalisation_of(imported, given).normaliser(3) for _, imported in members]
    return evaluate_samples(
        [EnsembleMember(network, own) for network, own in zip(networks, normalisers, strict=True)],
        samples,
        parse_protocol(protocol),
        expected=len(samples),
        threads=threads,
        bf16=False,
        device=device,
    )


def normalisation_of(imported: ImportedNetwork, given: InputNormalisation | None) -> InputNormalisation:
    """Return the given normalisation, else that of the weights."""
    return given or InputNormalisation(imported.mean, imported.std)


def small_set(data: str) -> tuple[str, Path]:
    """Return name and root of a set of small images: a name, or the path of a folder with train/ and test/."""
    folder = Path(data).absolute()
    return (folder.name, folder.parent) if "/" in data and folder.is_dir() else (data, data_folder())


def small_set_errors(
    named: NamedNetwork,
    imported: ImportedNetwork,
    data: str,
    root: Path,
    given: InputNormalisation | None,
    order_file: Path | None,
) -> tuple[ErrorCounts, str, str, ClassLabels]:
    """Return the errors on the test images of a set of small images, protocol, manifest's hash, and labels."""
    images = sources.load_images(data, root)
    channels = images.test.pixels.shape[-1]
    if len(images.classes) != named.classes or channels != named.image[0]:
        raise UserError(
            f"{named.name} has {named.classes} classes and reads images of {named.image[0]} channels, but {data}"
            f" has {len(images.classes)} classes and {channels} channels"
        )
    is_own = data == named.variant.data.name
    labels = class_labels(data, images.classes, named.classes, order_file, known=is_own)
    normalisation = normalisation_of(imported, given)
    pad_to = named.image[1] if named.image[1] > images.test.pixels.shape[1] else None
    normaliser = normalisation.normaliser(channels, images.train)
    builder = BatchBuilder(images.test, normalise=normaliser, pad_to=pad_to)
    numbers = torch.tensor(labels.numbers)[images.test.labels]
    batches = evaluation_batches(builder, numbers, batch_size=EVAL_BATCH)
    errors = count_errors(imported.network, batches, len(images.test))
    protocol = (WHOLE_IMAGE_BY_RECIPE if normalisation.recipe else WHOLE_IMAGE).format(
        normalisation.describe(channels)
    )
    return errors, protocol, manifest_of(images).sha256[:16], labels


def count_errors(network: nn.Module, batches: Iterable[Batch], expected: int) -> ErrorCounts:
    """Return the errors over `batches`. Raises UserError for a network that cannot read the images."""
    try:
        return evaluate_batches(network, batches, F.cross_entropy, expected=expected, bf16=False)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
