"""Import published weights: from torchvision's server, or from a weights file, into our networks."""

import hashlib
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.published.catalogue import PUBLISHED_NETWORKS
from lightning_modules.published.different import DIFFERENT_NETWORKS
from lightning_modules.published.weights import PublishedNetwork, load_published_state_dict
from pipeline.analyse.catalogue import NamedNetwork
from pipeline.common.errors import UserError
from pipeline.common.files import file_sha256
from pipeline.common.paths import runs_folder
from pipeline.common.words import plural, some_of
from pipeline.derive.counterparts import Fit, build_for_import, find_fit, library_counterparts, names_of
from pipeline.derive.input_normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.derive.misfit import describe_difference, misfit_message
from pipeline.derive.published_files import (
    TORCHVISION,
    PublisherSettings,
    check_cached_download,
    find_settings,
    name_contradiction,
    single_crop_protocol,
    torchvision_settings,
)
from pipeline.derive.state_dicts import check_tensors, find_state_dicts, select_state_dict
from pipeline.derive.weights_file import read_weights

CENTRE = 0.875  # side of the centre crop / short side of the image: 224 of 256


@dataclass(frozen=True)
class ImportedNetwork:
    """A network of ours with published weights."""

    network: nn.Module
    weights: str  # "torchvision ResNet50_Weights.IMAGENET1K_V1", or the name of the file
    sha256: str  # `state_hash` of the published state dict
    differs: str  # difference between the network and its paper that the weights require; "" if none
    protocol: str  # test protocol: the publisher's if it is known, else the usual one
    mean: tuple[float, ...]  # of each channel of the input, pixels in [0, 1]
    std: tuple[float, ...]  # of each channel of the input, pixels in [0, 1]
    stated_top1_error_pct: float | None  # the publisher's measurement
    is_known: bool = True  # protocol, mean and std are the publisher's; False: they are assumed
    note: str = ""  # what else is in the file: other sets of weights, tensors that were left out


def import_torchvision(named: NamedNetwork) -> ImportedNetwork:
    """Import torchvision's IMAGENET1K_V1 weights of `named`, downloaded once and checked against their hash.

    Raises UserError if torchvision publishes no such weights, if they cannot be downloaded, and if torch's cache
    holds another file under their name.
    """
    import torchvision

    entry = next((entry for entry in library_counterparts(named) if entry.source == TORCHVISION), None)
    if entry is None:
        other = next((one for one in DIFFERENT_NETWORKS if one.network == named.variant.model.name), None)
        if other and named.name.partition(" ")[0] == other.model:
            raise UserError(f"torchvision publishes no weights for {named.name}: {describe_difference(other)}")
        known = [entry for entry in PUBLISHED_NETWORKS if entry.source == TORCHVISION]
        related = [entry for entry in known if entry.network == named.variant.model.name]
        if related and (names := names_of(*related)):
            raise UserError(
                f"torchvision publishes no weights for {named.name}, but it does for {', '.join(names)}"
            )
        models = sorted({entry.model for entry in known})
        raise UserError(f"torchvision publishes no weights for {named.name}, only for its {', '.join(models)}")
    weights = torchvision.models.get_model_weights(entry.model).IMAGENET1K_V1
    check_cached_download(weights.url)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError, EOFError) as error:
        raise UserError(f"cannot download the weights at {weights.url}: {error}") from None
    network = build_for_import(named, entry.args)
    try:
        load_published_state_dict(network, state, [entry.rename])
    except ValueError as error:
        raise UserError(f"torchvision's {entry.model} does not fit {named.name}: {error}") from None
    settings = torchvision_settings(entry, weights)
    return ImportedNetwork(
        network,
        weights=settings.weights,
        sha256=state_hash(state),
        differs=entry.differs,
        protocol=settings.protocol,
        mean=settings.mean,
        std=settings.std,
        stated_top1_error_pct=settings.stated_top1_error_pct,
    )


def import_file(named: NamedNetwork, file: Path, key: str | None = None) -> ImportedNetwork:
    """Import a .safetensors file or a torch checkpoint whose names are ours or those of a known library.

    `key`: of the set of weights in a checkpoint that holds several; None: the usual one.

    Raises UserError for a file of one of our runs, a file that cannot be read, weights that do not fit, and
    weights with NaN.
    """
    content = read_weights(file)
    sha256 = file_sha256(file)
    refuse_own_run(file, sha256)
    found = find_state_dicts(content)
    if not found:
        raise UserError(f"{file} contains no tensors; its keys are {some_of(list(content), 8) or 'missing'}")
    fit = find_fit(named, [select_state_dict(found, key, file)] if key else found)
    if fit is None:
        raise UserError(misfit_message(named, file, found))
    check_tensors(fit.tensors, file)
    entry = fit.entries[0] if fit.entries else None
    network = build_for_import(named, entry.args if entry else named.variant.model.args)
    load_published_state_dict(network, fit.tensors, [])
    others = [one.where for one in found if one.key != fit.state.key]
    label = f"{file.name} ({fit.state.key})" if fit.state.key and (key or others) else file.name
    known = find_settings(file, sha256, fit.entries)
    settings = known or usual_settings(named, entry, label)
    return ImportedNetwork(
        network,
        weights=settings.weights if settings.weights.endswith(label) else f"{settings.weights} ({label})",
        sha256=state_hash(fit.naming.tensors),
        differs=entry.differs if entry else "",
        protocol=settings.protocol,
        mean=settings.mean,
        std=settings.std,
        stated_top1_error_pct=settings.stated_top1_error_pct,
        is_known=known is not None,
        note=file_note(file, fit, others, name_contradiction(file, sha256)),
    )


def usual_settings(named: NamedNetwork, entry: PublishedNetwork | None, weights: str) -> PublisherSettings:
    """Return how weights of an unknown publisher are evaluated: as the library's usually are, else on the
    central 7/8 of the image, in the size that the network's paper has.
    """
    if entry:
        return PublisherSettings(weights, entry.protocol, entry.mean, entry.std, None)
    side = named.image[1]
    return PublisherSettings(
        weights, single_crop_protocol(side, round(side / CENTRE)), IMAGENET_MEAN, IMAGENET_STD, None
    )


def refuse_own_run(file: Path, sha256: str) -> None:
    """Raise UserError for the network of a run of repro, or a copy of it: its errors are recorded already.

    `sha256`: of the file.
    """
    known = "and is not published; its errors are in the leaderboard already"
    if any((folder / "run.json").is_file() for folder in file.resolve().parents[:2]):
        raise UserError(f"{file} belongs to a run of repro, {known}")
    size = file.stat().st_size
    same_size = [path for path in runs_folder().glob("*/*.safetensors") if path.stat().st_size == size]
    original = next((path for path in same_size if file_sha256(path) == sha256), None)
    if original:
        raise UserError(f"{file} is a copy of {original}, which belongs to a run of repro, {known}")


def file_note(file: Path, fit: Fit, others: list[str], contradiction: str) -> str:
    """Return what of a weights file was not evaluated, other sets and tensors, and what contradicts its name."""
    notes = [f"{file.name}: {contradiction}"] if contradiction else []
    if others:
        notes.append(
            f"{file.name}: evaluated {fit.state.where}; it also holds {some_of(others)}, which --key selects"
        )
    if fit.naming.left_out:
        count = plural(len(fit.naming.left_out), "tensor")
        notes.append(f"{file.name}: left out {count}: {some_of(fit.naming.left_out)}")
    return "; ".join(notes)


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes, types and values, in order of name."""
    hashed = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        hashed.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return hashed.hexdigest()
