"""Say why weights do not fit a network, and which network they are for."""

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.networks import NETWORKS, build
from lightning_modules.published.catalogue import PUBLISHED_NETWORKS
from lightning_modules.published.different import DIFFERENT_NETWORKS, DifferentNetwork
from lightning_modules.published.weights import PublishedNetwork, load_published_state_dict, state_dict_mismatch
from pipeline.analyse.catalogue import NamedNetwork
from pipeline.derive.counterparts import build_on_meta, library_counterparts, names_of, renamed_or_none
from pipeline.derive.state_dicts import StateDict, list_keys, namings

MAX_LEFT_OUT = 0.1  # share of a file's tensors; a reading that leaves out more does not explain the misfit


def misfit_message(named: NamedNetwork, file: Path, found: list[StateDict]) -> str:
    """Return why no state dict in a file fits `named`, by the closest of them, and what else it fits."""
    for state in found:
        for naming in namings(state.tensors):
            if other := recognise_different(naming.tensors):
                return f"the weights in {file} do not fit {named.name}: {describe_difference(other)}"
    renames = [entry.rename for entry in library_counterparts(named)]
    own = build_on_meta(named, named.variant.model.args)
    names = set(own.state_dict())

    def distance(tensors: Mapping[str, Tensor]) -> int:
        return min(len(names ^ {rename(name) for name in tensors}) for rename in (lambda name: name, *renames))

    closest = min(
        (
            one.tensors
            for state in found
            for one in namings(state.tensors)
            if len(one.left_out) <= MAX_LEFT_OUT * len(one.tensors)
        ),
        key=distance,
    )
    try:
        load_published_state_dict(own, closest, renames)
        reason = "their shapes are those of another network"
    except ValueError as error:
        reason = str(error)
    libraries = ["our", *dict.fromkeys(f"{entry.source}'s" for entry in library_counterparts(named))]
    recognised = recognise_library(closest)
    hint = ""
    if recognised:
        known = names_of(recognised)
        here = f", which is {known[0]} here" if known else ""
        hint = f"; they fit {recognised.source}'s {recognised.model}{here}"
    keys = f"; the file holds tensors in {list_keys(found)}" if len(found) > 1 or found[0].key else ""
    return (
        f"the weights in {file} do not fit {named.name} with {' or '.join(libraries)} names: {reason}{hint}{keys}"
    )


def recognise_library(state: Mapping[str, Tensor]) -> PublishedNetwork | None:
    """Return the published network with these names and shapes; None if none is known."""
    for entry, network in zip(PUBLISHED_NETWORKS, published_on_meta(), strict=True):
        renamed = renamed_or_none(entry, state)
        if renamed is not None and not state_dict_mismatch(network, renamed):
            return entry
    return None


@functools.cache
def published_on_meta() -> list[nn.Module]:
    """Return our network of each entry of PUBLISHED_NETWORKS, without values."""
    with torch.device("meta"):
        return [
            build(entry.network, entry.args, num_classes=NETWORKS[entry.network].classes, in_channels=3)
            for entry in PUBLISHED_NETWORKS
        ]


def recognise_different(state: Mapping[str, Tensor]) -> DifferentNetwork | None:
    """Return the network of torchvision with these names that computes another function than ours; else None."""
    names = {name for name in state if not name.startswith("aux")}
    for one in DIFFERENT_NETWORKS:
        known = torchvision_names(one.model)
        if {name for name in known if not name.endswith("num_batches_tracked")} <= names <= known:
            return one
    return None


@functools.cache
def torchvision_names(model: str) -> frozenset[str]:
    """Return the names in the state dict of a network of torchvision, without those of auxiliary classifiers."""
    from torchvision.models import get_model

    options = {} if model == "alexnet" else {"init_weights": False}  # its builder has no such argument
    with torch.device("meta"):
        names = get_model(model, weights=None, **options).state_dict()
    return frozenset(name for name in names if not name.startswith("aux"))


def describe_difference(other: DifferentNetwork) -> str:
    """Return the difference between a network of torchvision and ours for a message."""
    return f"torchvision's {other.model} is another function, it {other.reason}"
