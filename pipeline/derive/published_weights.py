"""Weights that others published, in our networks: carried over, evaluated, kept apart from reproductions.

A result is a row of the leaderboard labelled "published weights". It never is evidence for a claim: nothing was
trained here.
"""

import datetime
import hashlib
import inspect
import pickle
import re
import struct
import urllib.error
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_modules.networks import NETWORKS, build
from lightning_modules.published.catalogue import PUBLISHED
from lightning_modules.published.weights import Published, carry_over, translated, unfit
from lightning_modules.recipe import Batch
from pipeline.analyse.catalogue import NamedNetwork
from pipeline.common.errors import UserError
from pipeline.common.hashing import digest
from pipeline.common.paths import data_folder
from pipeline.common.provenance import commit, hardware_name
from pipeline.data import sources
from pipeline.data.batches import BatchBuilder
from pipeline.data.class_folders import ClassFolders, class_numbers
from pipeline.data.images import DataError
from pipeline.data.manifest import manifest_of
from pipeline.data.normalise import Normaliser
from pipeline.data.samples import Samples
from pipeline.data.shard_manifest import MANIFEST_NAME
from pipeline.data.shards import open_shards
from pipeline.declare.protocol import parse_protocol
from pipeline.track.published_results import PublishedResult
from pipeline.train.evaluate import EVAL_BATCH, EnsembleMember, ErrorCounts, evaluate_batches, evaluate_samples

TORCHVISION = "torchvision"

CENTRE = 0.875  # of the short side is cut out: 224 of 256

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what most publishers take out, of pixels / 255

SMALL = 64  # pixels: networks for images up to this size read known sets, whole

PICKLED = (b"PK\x03\x04", b"\x80")  # how torch's files begin: a zip archive, or a pickle; no text does

# How torch names the class or function in a pickle that it refuses: "global: GLOBAL os.system was ...".
REFUSED_PICKLE = re.compile(r"GLOBAL ([\w.]+) ")

# What safetensors and torch raise for a file that is none of theirs, or no longer whole.
DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    RuntimeError,
    ValueError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
)

WRAPPERS = ("state_dict", "model", "network")  # keys under which a checkpoint may keep the weights

PREFIXES = ("module.", "network.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class ImportedNetwork:
    """A network of ours with weights of others."""

    network: nn.Module
    weights: str  # "torchvision ResNet50_Weights.IMAGENET1K_V1", or the file's name
    sha256: str  # of the weights' names, shapes and numbers
    differs: str  # where the network departs from its paper, so that the weights fit; "" nowhere
    protocol: str  # what the publisher evaluates them with
    mean: tuple[float, ...]  # taken out of pixels / 255, channel by channel
    std: tuple[float, ...]  # which is then divided by
    stated_top1_error_pct: float | None  # what the publisher measured


def library_counterparts(named: NamedNetwork) -> list[Published]:
    """The networks of other libraries that compute what `named` does, but for differences that can be switched."""
    wanted = full_args(named.variant.model.name, named.variant.model.args)
    found = []
    for one in PUBLISHED:
        if one.network == named.variant.model.name:
            theirs = full_args(one.network, one.args)
            apart = {key for key, value in wanted.items() if theirs[key] != value}
            if apart <= set(one.switches):
                found.append(one)
    return sorted(found, key=lambda one: (one.source != TORCHVISION, bool(one.differs)))


def full_args(network: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """A builder's arguments with its defaults."""
    known = inspect.signature(NETWORKS[network].build).parameters
    defaults = {key: p.default for key, p in known.items() if p.default is not p.empty}
    own = {
        key: value for key, value in (defaults | dict(args)).items() if key not in ("num_classes", "in_channels")
    }
    return {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}


def import_torchvision(named: NamedNetwork) -> ImportedNetwork:
    """The weights that torchvision publishes for `named` (IMAGENET1K_V1, downloaded once, checksum compared)."""
    import torchvision

    theirs = next((one for one in library_counterparts(named) if one.source == TORCHVISION), None)
    if theirs is None:
        fit = sorted({one.model for one in PUBLISHED if one.source == TORCHVISION})
        raise UserError(f"torchvision publishes no weights for {named.name}; it does for its {', '.join(fit)}")
    weights = torchvision.models.get_model_weights(theirs.model).IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(f"the weights at {weights.url} could not be downloaded: {error}") from None
    network = build_imported(named, theirs.args)
    try:
        carry_over(network, state, [theirs.rename])
    except ValueError as error:
        raise UserError(f"torchvision's {theirs.model} does not fit {named.name}: {error}") from None
    shown = weights.transforms()
    protocol = single_crop_protocol(shown.crop_size[0], shown.resize_size[0], shown.interpolation.value)
    stated = 100 - weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    named_so = f"{TORCHVISION} {weights}"
    mean, std = tuple(shown.mean), tuple(shown.std)
    return ImportedNetwork(network, named_so, state_hash(state), theirs.differs, protocol, mean, std, stated)


def single_crop_protocol(crop: int, resize: int, interpolation: str = "bilinear") -> str:
    """The name of the protocol of a single crop."""
    return f"1-crop-{crop}-of-{resize}" + ("" if interpolation == "bilinear" else f"-{interpolation}")


def import_file(named: NamedNetwork, file: Path) -> ImportedNetwork:
    """Weights from a .safetensors file or a torch checkpoint, under our names, torchvision's or timm's."""
    if any((folder / "run.json").is_file() for folder in file.resolve().parents[:2]):
        raise UserError(f"{file} is of a run of repro, not of others; its errors are on the leaderboard already")
    state = unwrap_checkpoint(read_weights(file))
    network = build_imported(named, named.variant.model.args)
    side = named.image[1]
    protocol = single_crop_protocol(side, round(side / CENTRE))
    if not unfit(network, state):
        carry_over(network, state, [])
        return ImportedNetwork(network, file.name, state_hash(state), "", protocol, MEAN, STD, None)
    for theirs in library_counterparts(named):
        other = build_imported(named, theirs.args)
        try:
            carry_over(other, state, [theirs.rename])
        except ValueError:
            continue
        stated, differs = theirs.stated_top1_error_pct, theirs.differs
        return ImportedNetwork(
            other, file.name, state_hash(state), differs, protocol, theirs.mean, theirs.std, stated
        )
    sources = list(dict.fromkeys(f"{one.source}'s" for one in library_counterparts(named)))
    names = " or ".join(["our names", *sources])
    whose = guess_library(state)
    hint = f"; they are those of {whose}" if whose else ""
    raise UserError(
        f"the weights in {file} do not fit {named.name} under {names}: {mismatch_reason(named, state)}{hint}"
    )


def mismatch_reason(named: NamedNetwork, state: Mapping[str, Tensor]) -> str:
    """Why weights do not fit, under the naming that comes nearest."""
    try:
        carry_over(
            build_imported(named, named.variant.model.args),
            state,
            [one.rename for one in library_counterparts(named)],
        )
    except ValueError as error:
        return str(error)
    return "their shapes are another network's"


def guess_library(state: Mapping[str, Tensor]) -> str:
    """The network of others whose names and shapes these weights have: "torchvision's vgg19"; "" if none."""
    for one in PUBLISHED:
        try:
            ours = translated(state, one.rename)
        except ValueError:
            continue
        with torch.device("meta"):
            network = build(one.network, one.args, num_classes=NETWORKS[one.network].classes, in_channels=3)
        if not unfit(network, ours):
            return f"{one.source}'s {one.model}"
    return ""


def build_imported(named: NamedNetwork, args: Mapping[str, Any]) -> nn.Module:
    """The network with `args`, in evaluation mode; its own weights are about to be replaced."""
    try:
        return build(named.variant.model.name, args, num_classes=named.classes, in_channels=named.image[0]).eval()
    except ValueError as error:
        raise UserError(str(error)) from None


def read_weights(file: Path) -> dict[str, Any]:
    """What a weights file holds; nothing in it is ever run."""
    if not file.is_file():
        raise UserError(f"there is no weights file {file}; give a .safetensors or .pth file, or 'torchvision'")
    try:
        with file.open("rb") as opened:
            first = opened.read(4)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{file} cannot be read: {reason}; mend that and start again") from None
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of what is refused in the next moment
            state = torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGED as error:  # torch's own words advise to load it all the same, so they are not repeated
        refused = REFUSED_PICKLE.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused and first.startswith(PICKLED):
            raise UserError(
                f"{file} holds more than weights, which is never loaded: {refused[1]}; save its state_dict alone"
            ) from None
        raise UserError(
            f"{file} is no readable weights file; give a .safetensors file or a checkpoint of torch, whole"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        kind = "map with keys that are no text" if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{file} holds a {kind}, not a map from names to weights")
    return state


def unwrap_checkpoint(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint that keeps them under one key, or under names that all begin alike."""
    for key in WRAPPERS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        begun = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if begun and len(begun) >= len(weights) - 2:  # our own checkpoints keep two counters beside the network
            weights = begun
    return weights


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and numbers, in order of name."""
    found = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return found.hexdigest()


def evaluate_imported(
    members: Sequence[tuple[NamedNetwork, ImportedNetwork]],
    data: str,
    *,
    protocol: str | None = None,
    threads: int,
) -> PublishedResult:
    """Errors of imported weights, of several as an ensemble, on `data`: small test images, or photographs.

    `protocol`: how photographs are shown; None: as the publisher does.
    """
    named, imported = members[0]
    ignored = 0
    if len({one.classes for one, _ in members}) > 1 or len({one.image[1] <= SMALL for one, _ in members}) > 1:
        names = " and ".join(one.name for one, _ in members)
        raise UserError(
            f"{names} do not answer the same question: an ensemble's networks tell the same classes apart in"
            " images of one kind"
        )
    shown = protocol or imported.protocol
    if named.image[1] > SMALL:
        parse_protocol(shown)
        called, manifest, samples = labelled_samples(data, named.classes)
        ignored = len(samples.ignored) if isinstance(samples, ClassFolders) else 0
        errors = sample_errors(members, samples, shown, threads)
    elif protocol:
        raise UserError(f"{named.name} is shown whole images: --protocol is for photographs")
    elif len(members) > 1:
        raise UserError("ensembles are evaluated on photographs; give one network for a set of small images")
    else:
        errors, shown, manifest = small_set_errors(named, imported, data)
        called = data
    found = errors.metrics("test")
    as_stated = len(members) == 1 and shown == imported.protocol
    return PublishedResult(
        network=join_names(one.name for one, _ in members),
        weights=join_names(one.weights for _, one in members),
        sha256=imported.sha256 if len(members) == 1 else digest([one.sha256 for _, one in members]),
        differs="; ".join(dict.fromkeys(one.differs for _, one in members if one.differs)),
        data=called,
        protocol=shown,
        images=errors.images,
        top1=found["test/top1_error_pct"],
        top5=found["test/top5_error_pct"],
        stated_top1=imported.stated_top1_error_pct if as_stated else None,
        ignored=ignored,
        hardware=hardware_name(),
        commit=commit(),
        evaluated=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        manifest=manifest,
    )


def join_names(words: Iterable[str]) -> str:
    """'vgg-16 + vgg-19', '2 x vgg-16'."""
    counts = Counter(words)
    return " + ".join(word if count == 1 else f"{count} x {word}" for word, count in counts.items())


def labelled_samples(data: str, classes: int) -> tuple[str, str, Samples]:
    """The test part of a set in shards, or pictures in class folders, labelled as a network of `classes` is.

    With what it is called (a set by its manifest's name, never by its folder's), and what identifies it.
    """
    if data in sources.NAMES:
        raise UserError(
            f"{data} is a set of small images, and such a network reads photographs; give --data those"
        )
    here = sources.find_shards(data, data_folder())
    if here.exists(MANIFEST_NAME):
        shards = sources.check_published_name(open_shards(here, cache=data_folder() / ".cache" / "shards"))
        part = shards.test
        part.labels = torch.tensor(class_numbers(str(here), shards.classes, classes))[part.labels]
        return shards.name, shards.manifest.sha256[:16], part
    if not here.local:
        raise DataError(f"there are no shards at {here}; repro data prepare makes them")
    folder = Path(data) if Path(data).is_dir() else data_folder() / data
    pictures = ClassFolders(folder, classes)
    return f"class folders {folder.name}", pictures.fingerprint(), pictures


def sample_errors(
    members: Sequence[tuple[NamedNetwork, ImportedNetwork]], samples: Samples, protocol: str, threads: int
) -> ErrorCounts:
    """Errors of the members' averaged answers by `protocol`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return evaluate_samples(
        [EnsembleMember(one.network.to(device), normaliser_of(one)) for _, one in members],
        samples,
        parse_protocol(protocol),
        expected=len(samples),
        threads=threads,
        bf16=False,
        device=device,
    )


def normaliser_of(imported: ImportedNetwork, channels: int = 3) -> Normaliser:
    """As the weights were trained: pixels / 255, minus the mean, over the standard deviation."""
    mean, std = torch.tensor(imported.mean[:channels]), torch.tensor(imported.std[:channels])
    return Normaliser("published", scale=1 / (255 * std), shift=mean / std, pad_value=0.0)


def small_set_errors(named: NamedNetwork, imported: ImportedNetwork, data: str) -> tuple[ErrorCounts, str, str]:
    """Errors on a small set's test images, whole, normalised as the weights were trained; protocol, manifest."""
    images = sources.load_images(data, data_folder())
    channels = images.test.pixels.shape[-1]
    if len(images.classes) != named.classes or channels != named.image[0]:
        raise UserError(
            f"{named.name} tells {named.classes} classes apart in images of {named.image[0]} channels, and {data}"
            f" has {len(images.classes)} and {channels}"
        )
    pad_to = named.image[1] if named.image[1] > images.test.pixels.shape[1] else None
    maker = BatchBuilder(images.test, normalise=normaliser_of(imported, channels), pad_to=pad_to)

    def batches() -> Iterable[Batch]:
        for step, chosen in enumerate(torch.arange(len(images.test)).split(EVAL_BATCH)):
            yield Batch(step, maker(chosen), images.test.labels[chosen])

    said = "single view of the whole image, mean {} and standard deviation {} taken out".format(
        *(", ".join(f"{value:g}" for value in values[:channels]) for values in (imported.mean, imported.std))
    )
    return count_errors(imported.network, batches(), len(images.test)), said, manifest_of(images).sha256[:16]


def count_errors(network: nn.Module, batches: Iterable[Any], expected: int) -> ErrorCounts:
    """The errors; a network that cannot read the images says so."""
    try:
        return evaluate_batches(network, batches, F.cross_entropy, expected=expected, bf16=False)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(error)) from None
