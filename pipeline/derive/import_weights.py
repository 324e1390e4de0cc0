"""Import published weights: from torchvision's server, or from a weights file, into our networks."""

import hashlib
import inspect
import pickle
import re
import struct
import urllib.error
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_modules.networks import NETWORKS, build
from lightning_modules.published.catalogue import PUBLISHED_NETWORKS
from lightning_modules.published.weights import (
    PublishedNetwork,
    load_published_state_dict,
    rename_state_dict,
    state_dict_mismatch,
)
from pipeline.analyse.catalogue import NamedNetwork
from pipeline.common.errors import UserError

TORCHVISION = "torchvision"

CENTRE = 0.875  # side of the centre crop / short side of the image: 224 of 256

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of most publishers' inputs, pixels in [0, 1]

FILE_MAGIC_NUMBERS = (b"PK\x03\x04", b"\x80")  # first bytes of torch's files: a zip archive, or a pickle

# Class or function that torch refuses to unpickle, in its message: "global: GLOBAL os.system was ...".
REFUSED_PICKLE = re.compile(r"GLOBAL ([\w.]+) ")

# Errors of safetensors and torch for a damaged file or a file of another format.
READ_ERRORS = (
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

STATE_DICT_KEYS = ("state_dict", "model", "network")  # keys of a checkpoint that may hold the state dict

PREFIXES = ("module.", "network.", "model.", "_orig_mod.")  # of all names in the state dict of a wrapped network


@dataclass(frozen=True)
class ImportedNetwork:
    """A network of ours with published weights."""

    network: nn.Module
    weights: str  # "torchvision ResNet50_Weights.IMAGENET1K_V1", or the name of the file
    sha256: str  # `state_hash` of the published state dict
    differs: str  # difference between the network and its paper that the weights require; "" if none
    protocol: str  # the publisher's test protocol
    mean: tuple[float, ...]  # of each channel of the input, pixels in [0, 1]
    std: tuple[float, ...]  # of each channel of the input, pixels in [0, 1]
    stated_top1_error_pct: float | None  # the publisher's measurement


def library_counterparts(named: NamedNetwork) -> list[PublishedNetwork]:
    """Return the networks of other libraries that compute the same function as `named`.

    They may differ in the arguments `departure_args`. torchvision's networks come first; within a library, those
    that follow the paper come first.
    """
    expected = full_args(named.variant.model.name, named.variant.model.args)
    found = []
    for entry in PUBLISHED_NETWORKS:
        if entry.network == named.variant.model.name:
            args = full_args(entry.network, entry.args)
            different = {key for key, value in expected.items() if args[key] != value}
            if different <= set(entry.departure_args):
                found.append(entry)
    return sorted(found, key=lambda entry: (entry.source != TORCHVISION, bool(entry.differs)))


def full_args(network: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network's builder, defaults included, without classes and input channels."""
    parameters = inspect.signature(NETWORKS[network].build).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    full = {
        key: value for key, value in (defaults | dict(args)).items() if key not in ("num_classes", "in_channels")
    }
    return {key: list(value) if isinstance(value, tuple) else value for key, value in full.items()}


def import_torchvision(named: NamedNetwork) -> ImportedNetwork:
    """Import torchvision's IMAGENET1K_V1 weights of `named`, downloaded once and checked against their hash.

    Raises UserError if torchvision publishes no such weights, or if they cannot be downloaded.
    """
    import torchvision

    entry = next((entry for entry in library_counterparts(named) if entry.source == TORCHVISION), None)
    if entry is None:
        models = sorted({entry.model for entry in PUBLISHED_NETWORKS if entry.source == TORCHVISION})
        raise UserError(f"torchvision publishes no weights for {named.name}, only for its {', '.join(models)}")
    weights = torchvision.models.get_model_weights(entry.model).IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(f"cannot download the weights at {weights.url}: {error}") from None
    network = build_for_import(named, entry.args)
    try:
        load_published_state_dict(network, state, [entry.rename])
    except ValueError as error:
        raise UserError(f"torchvision's {entry.model} does not fit {named.name}: {error}") from None
    transforms = weights.transforms()
    return ImportedNetwork(
        network,
        weights=f"{TORCHVISION} {weights}",
        sha256=state_hash(state),
        differs=entry.differs,
        protocol=single_crop_protocol(
            transforms.crop_size[0], transforms.resize_size[0], transforms.interpolation.value
        ),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        stated_top1_error_pct=100 - weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
    )


def single_crop_protocol(crop: int, resize: int, interpolation: str = "bilinear") -> str:
    """Return the name of the single-crop protocol of these sizes in pixels: "1-crop-224-of-256"."""
    return f"1-crop-{crop}-of-{resize}" + ("" if interpolation == "bilinear" else f"-{interpolation}")


def import_file(named: NamedNetwork, file: Path) -> ImportedNetwork:
    """Import a .safetensors file or a torch checkpoint whose names are ours or those of a known library.

    Raises UserError for a file of one of our runs, a file that cannot be read, and weights that do not fit.
    """
    if any((folder / "run.json").is_file() for folder in file.resolve().parents[:2]):
        raise UserError(
            f"{file} belongs to a run of repro, and is not published; its errors are in the leaderboard already"
        )
    state = unwrap_checkpoint(read_weights(file))
    network = build_for_import(named, named.variant.model.args)
    side = named.image[1]
    protocol = single_crop_protocol(side, round(side / CENTRE))
    if not state_dict_mismatch(network, state):
        load_published_state_dict(network, state, [])
        return ImportedNetwork(network, file.name, state_hash(state), "", protocol, MEAN, STD, None)
    counterparts = library_counterparts(named)
    for entry in counterparts:
        network = build_for_import(named, entry.args)
        try:
            load_published_state_dict(network, state, [entry.rename])
        except ValueError:
            continue
        return ImportedNetwork(
            network,
            file.name,
            state_hash(state),
            entry.differs,
            protocol,
            entry.mean,
            entry.std,
            entry.stated_top1_error_pct,
        )
    namings = ["our", *dict.fromkeys(f"{entry.source}'s" for entry in counterparts)]
    recognised = recognise_library(state)
    hint = f"; they fit {recognised}" if recognised else ""
    raise UserError(
        f"the weights in {file} do not fit {named.name} with {' or '.join(namings)} names:"
        f" {mismatch_reason(named, state)}{hint}"
    )


def mismatch_reason(named: NamedNetwork, state: Mapping[str, Tensor]) -> str:
    """Return the mismatch between `named` and a state dict that does not fit it, by the closest naming."""
    renames = [entry.rename for entry in library_counterparts(named)]
    try:
        load_published_state_dict(build_for_import(named, named.variant.model.args), state, renames)
    except ValueError as error:
        return str(error)
    return "their shapes are those of another network"


def recognise_library(state: Mapping[str, Tensor]) -> str:
    """Return the published network with these names and shapes: "torchvision's vgg19"; "" if none is known."""
    for entry in PUBLISHED_NETWORKS:
        try:
            renamed = rename_state_dict(state, entry.rename)
        except ValueError:
            continue
        with torch.device("meta"):
            network = build(entry.network, entry.args, num_classes=NETWORKS[entry.network].classes, in_channels=3)
        if not state_dict_mismatch(network, renamed):
            return f"{entry.source}'s {entry.model}"
    return ""


def build_for_import(named: NamedNetwork, args: Mapping[str, Any]) -> nn.Module:
    """Return the network with `args` and random weights, in evaluation mode. UserError for wrong `args`."""
    try:
        return build(named.variant.model.name, args, num_classes=named.classes, in_channels=named.image[0]).eval()
    except ValueError as error:
        raise UserError(str(error)) from None


def read_weights(file: Path) -> dict[str, Any]:
    """Return the content of a weights file. Runs no code from the file.

    Raises UserError for a file that is missing, damaged, of another format, or that contains more than weights.
    """
    if not file.is_file():
        raise UserError(f"weights file {file} not found; give a .safetensors or .pth file, or 'torchvision'")
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"cannot read {file}: {reason}; fix this and run again") from None
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it then refuses
            state = torch.load(file, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:  # torch's message advises to load the file anyway, so it is not repeated
        refused = REFUSED_PICKLE.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused and start.startswith(FILE_MAGIC_NUMBERS):
            raise UserError(
                f"{file} contains {refused[1]}, and repro loads nothing but weights; save the state_dict alone"
            ) from None
        raise UserError(
            f"{file} is damaged or not a weights file; give a complete .safetensors file or torch checkpoint"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{file} contains a {type(state).__name__}, expected a dict of names and weights")
    if not all(isinstance(name, str) for name in state):
        raise UserError(f"{file} contains a dict whose keys are not strings, expected a dict of names and weights")
    return state


def unwrap_checkpoint(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, without the name prefix of a module that wraps the network."""
    for key in STATE_DICT_KEYS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        stripped = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if stripped and len(stripped) >= len(weights) - 2:  # our own checkpoints hold two more buffers
            weights = stripped
    return weights


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes, types and values, in order of name."""
    hashed = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        hashed.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return hashed.hexdigest()
