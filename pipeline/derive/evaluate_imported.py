"""Evaluate imported weights on a data set.

A result is a row of the leaderboard labelled "published weights". It is no evidence for a claim, because nothing
was trained here.
"""

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
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
from pipeline.data import sources
from pipeline.data.batches import BatchBuilder, evaluation_batches
from pipeline.data.class_folders import ClassFolders, class_numbers
from pipeline.data.images import DataError
from pipeline.data.manifest import manifest_of
from pipeline.data.normalise import Normaliser
from pipeline.data.samples import Samples
from pipeline.data.shard_manifest import MANIFEST_NAME
from pipeline.data.shards import open_shards
from pipeline.declare.protocol import parse_protocol
from pipeline.derive.import_weights import ImportedNetwork
from pipeline.track.published_results import PublishedResult
from pipeline.train.evaluate import EVAL_BATCH, EnsembleMember, ErrorCounts, evaluate_batches, evaluate_samples
from pipeline.train.process import allow_tf32

SMALL = 64  # largest input side in pixels of networks that are evaluated on whole images of a known set

# Stored in results; a result with another text here would not replace an older one.
WHOLE_IMAGE = "single view of the whole image, mean {} and standard deviation {} taken out"


def evaluate_imported(
    members: Sequence[tuple[NamedNetwork, ImportedNetwork]],
    data: str,
    *,
    protocol: str | None = None,
    threads: int,
) -> PublishedResult:
    """Return the errors of a network with imported weights, or of several as an ensemble, on `data`.

    `data` is a set of small images, a set in shards, or a folder with one folder per class. `protocol` is for the
    latter two; None means the publisher's protocol.

    Raises UserError for networks, data and protocol that do not fit each other.
    """
    allow_tf32(False)
    named, imported = members[0]
    ignored = 0
    if (
        len({network.classes for network, _ in members}) > 1
        or len({is_small(network) for network, _ in members}) > 1
    ):
        names = " and ".join(network.name for network, _ in members)
        raise UserError(
            f"cannot average {names}: the networks of an ensemble must have the same classes and the same kind of"
            " images"
        )
    used_protocol = protocol or imported.protocol
    if not is_small(named):
        parse_protocol(used_protocol)
        data_name, manifest, samples = labelled_samples(data, named.classes)
        ignored = len(samples.ignored) if isinstance(samples, ClassFolders) else 0
        errors = sample_errors(members, samples, used_protocol, threads)
    elif protocol:
        raise UserError(f"{named.name} is evaluated on whole images; leave out --protocol")
    elif len(members) > 1:
        raise UserError(
            "ensembles are evaluated on sets in shards or in class folders; give one network for a set of small"
            " images"
        )
    else:
        data_name = data
        errors, used_protocol, manifest = small_set_errors(named, imported, data)
    metrics = errors.metrics("test")
    is_as_stated = len(members) == 1 and used_protocol == imported.protocol
    return PublishedResult(
        network=join_names(network.name for network, _ in members),
        weights=join_names(member.weights for _, member in members),
        sha256=imported.sha256 if len(members) == 1 else digest([member.sha256 for _, member in members]),
        differs="; ".join(dict.fromkeys(member.differs for _, member in members if member.differs)),
        data=data_name,
        protocol=used_protocol,
        images=errors.images,
        top1=metrics["test/top1_error_pct"],
        top5=metrics["test/top5_error_pct"],
        stated_top1=imported.stated_top1_error_pct if is_as_stated else None,
        ignored=ignored,
        hardware=hardware_name(),
        commit=commit(),
        evaluated=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        manifest=manifest,
    )


def is_small(named: NamedNetwork) -> bool:
    """Return True for a network that is evaluated on whole images of a known set."""
    return named.image[1] <= SMALL


def join_names(names: Iterable[str]) -> str:
    """Return the names as 'vgg-16 + vgg-19', or '2 x vgg-16'."""
    counts = Counter(names)
    return " + ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def labelled_samples(data: str, classes: int) -> tuple[str, str, Samples]:
    """Return the name of a data set, the hash of its content, and its test images, labelled for `classes` classes.

    The set is in shards, then its name is the one in its manifest, or in class folders.

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
        samples = shards.test
        samples.labels = torch.tensor(class_numbers(str(store), shards.classes, classes))[samples.labels]
        return shards.name, shards.manifest.sha256[:16], samples
    if not store.local:
        raise DataError(f"no shards at {store}; prepare them with: repro data prepare")
    folder = Path(data) if Path(data).is_dir() else data_folder() / data
    images = ClassFolders(folder, classes)
    return f"class folders {folder.name}", images.fingerprint(), images


def sample_errors(
    members: Sequence[tuple[NamedNetwork, ImportedNetwork]], samples: Samples, protocol: str, threads: int
) -> ErrorCounts:
    """Return the errors of the members' averaged predictions by `protocol`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return evaluate_samples(
        [EnsembleMember(imported.network.to(device), normaliser_of(imported)) for _, imported in members],
        samples,
        parse_protocol(protocol),
        expected=len(samples),
        threads=threads,
        bf16=False,
        device=device,
    )


def normaliser_of(imported: ImportedNetwork, channels: int = 3) -> Normaliser:
    """Return the normalisation that the weights were trained with: (pixels / 255 - mean) / std."""
    mean, std = torch.tensor(imported.mean[:channels]), torch.tensor(imported.std[:channels])
    return Normaliser("published", scale=1 / (255 * std), shift=mean / std, pad_value=0.0)


def small_set_errors(named: NamedNetwork, imported: ImportedNetwork, data: str) -> tuple[ErrorCounts, str, str]:
    """Return the errors on the test images of a set of small images, the protocol, and the manifest's hash."""
    images = sources.load_images(data, data_folder())
    channels = images.test.pixels.shape[-1]
    if len(images.classes) != named.classes or channels != named.image[0]:
        raise UserError(
            f"{named.name} has {named.classes} classes and reads images of {named.image[0]} channels, but {data}"
            f" has {len(images.classes)} classes and {channels} channels"
        )
    pad_to = named.image[1] if named.image[1] > images.test.pixels.shape[1] else None
    builder = BatchBuilder(images.test, normalise=normaliser_of(imported, channels), pad_to=pad_to)
    batches = evaluation_batches(builder, images.test.labels, batch_size=EVAL_BATCH)
    mean, std = (
        ", ".join(f"{value:g}" for value in values[:channels]) for values in (imported.mean, imported.std)
    )
    errors = count_errors(imported.network, batches, len(images.test))
    return errors, WHOLE_IMAGE.format(mean, std), manifest_of(images).sha256[:16]


def count_errors(network: nn.Module, batches: Iterable[Batch], expected: int) -> ErrorCounts:
    """Return the errors over `batches`. Raises UserError for a network that cannot read the images."""
    try:
        return evaluate_batches(network, batches, F.cross_entropy, expected=expected, bf16=False)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
