"""Networks of other libraries that compute the function of one of ours, and state dicts that fit them."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.networks import NETWORKS, build
from lightning_modules.published.catalogue import PUBLISHED_NETWORKS
from lightning_modules.published.weights import PublishedNetwork, rename_state_dict, state_dict_mismatch
from pipeline.analyse.catalogue import NamedNetwork, catalogue
from pipeline.common.errors import UserError
from pipeline.derive.published_files import TORCHVISION
from pipeline.derive.state_dicts import Naming, StateDict, namings


@dataclass(frozen=True)
class Fit:
    """A state dict in a file that fits a network."""

    state: StateDict
    naming: Naming
    tensors: Mapping[str, Tensor]  # with our names
    entries: tuple[PublishedNetwork, ...]  # networks of other libraries with these names; empty: our names


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


def names_of(*entries: PublishedNetwork) -> list[str]:
    """Return the names of the declared networks that compute the same function as one of a library's networks."""
    from pipeline.declare.load import load_all

    networks = catalogue(load_all()).values()
    return [named.name for named in networks if any(entry in entries for entry in library_counterparts(named))]


def full_args(network: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network's builder, defaults included, without classes and input channels."""
    parameters = inspect.signature(NETWORKS[network].build).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    full = {
        key: value for key, value in (defaults | dict(args)).items() if key not in ("num_classes", "in_channels")
    }
    return {key: list(value) if isinstance(value, tuple) else value for key, value in full.items()}


def build_for_import(named: NamedNetwork, args: Mapping[str, Any]) -> nn.Module:
    """Return the network with `args` and random weights, in evaluation mode. UserError for wrong `args`."""
    try:
        return build(named.variant.model.name, args, num_classes=named.classes, in_channels=named.image[0]).eval()
    except ValueError as error:
        raise UserError(str(error)) from None


def build_on_meta(named: NamedNetwork, args: Mapping[str, Any]) -> nn.Module:
    """Return the network with `args` without values, to compare names and shapes. UserError for wrong `args`."""
    with torch.device("meta"):
        return build_for_import(named, args)


def find_fit(named: NamedNetwork, states: list[StateDict]) -> Fit | None:
    """Return the first state dict that fits `named` with our names or those of a library; None if none does."""
    counterparts = library_counterparts(named)
    own = build_on_meta(named, named.variant.model.args)
    theirs = [(entry, build_on_meta(named, entry.args)) for entry in counterparts]
    for state in states:
        for naming in namings(state.tensors):
            if not state_dict_mismatch(own, naming.tensors):
                return Fit(state, naming, naming.tensors, ())
            fitting = [
                (entry, renamed)
                for entry, network in theirs
                if (renamed := renamed_or_none(entry, naming.tensors))
                and not state_dict_mismatch(network, renamed)
            ]
            if fitting:
                return Fit(state, naming, fitting[0][1], tuple(entry for entry, _ in fitting))
    return None


def renamed_or_none(entry: PublishedNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors with our names; None if the entry's rules give two of them the same name."""
    try:
        return rename_state_dict(tensors, entry.rename)
    except ValueError:
        return None
