"""Test renaming and loading of published weights."""

import pytest
import torch
from torch import nn

from lightning_modules.published.catalogue import PUBLISHED_NETWORKS
from lightning_modules.published.weights import (
    load_published_state_dict,
    rename_state_dict,
    renamer,
    state_dict_mismatch,
)

RENAME = renamer((r"features\.(\d+)\.(.+)", r"conv\1.\2"), (r"aux\..+", None), (r"fc\..+", r"\g<0>"))


def small_network() -> nn.Module:
    net = nn.Sequential()
    net.add_module("conv0", nn.Conv2d(3, 4, 3))
    net.add_module("fc", nn.Linear(4, 2))
    return net


def published_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "features.0.weight": torch.randn(4, 3, 3, 3),
        "features.0.bias": torch.randn(4),
        "fc.weight": torch.randn(2, 4),
        "fc.bias": torch.randn(2),
        "aux.weight": torch.randn(9),
    }


def test_first_rule_that_matches_the_whole_name_applies():
    assert RENAME("features.3.bn.weight") == "conv3.bn.weight"
    assert RENAME("fc.bias") == "fc.bias"
    assert RENAME("aux.weight") is None
    assert RENAME("other.features.3.weight") == "other.features.3.weight"  # unchanged


def test_renamed_weights_are_loaded():
    net, state = small_network(), published_state()
    load_published_state_dict(net, state, [RENAME])
    assert torch.equal(net.conv0.weight, state["features.0.weight"])
    assert torch.equal(net.fc.bias, state["fc.bias"])


def test_our_own_names_have_precedence():
    net, other = small_network(), small_network()
    load_published_state_dict(net, other.state_dict(), [RENAME])
    assert torch.equal(net.conv0.weight, other.conv0.weight)


def test_two_parameters_with_one_name_raise():
    rename = renamer((r".+", "conv0.weight"))
    with pytest.raises(ValueError, match=r"two parameters map to 'conv0.weight', one of them 'features.0.b"):
        rename_state_dict(published_state(), rename)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.bias"), "missing weights: 1 of 4, first 'fc.bias'"),
        (lambda s: s.update({"features.7.weight": torch.zeros(1)}), "unknown weights: 1, first 'conv7.w"),
        (lambda s: s.update({"fc.weight": torch.zeros(3, 4)}), "fc.weight has shape 3 x 4, expected 2 x 4"),
        (lambda s: s.update({"fc.bias": torch.tensor(1.0)}), "fc.bias has shape scalar, expected 2"),
    ],
)
def test_mismatch_raises_and_loads_nothing(change, message):
    net, state = small_network(), published_state()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        load_published_state_dict(net, state, [RENAME])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_batch_counters_may_be_missing():
    net = nn.BatchNorm2d(3)
    state = {name: value for name, value in net.state_dict().items() if not name.endswith("tracked")}
    assert state_dict_mismatch(net, state) == ""


def test_convolution_over_its_whole_input_is_loaded_as_a_fully_connected_layer():
    net, state = small_network(), published_state()
    state["fc.weight"] = state["fc.weight"].view(2, 1, 2, 2)
    load_published_state_dict(net, state, [RENAME])
    assert torch.equal(net.fc.weight, state["fc.weight"].flatten(1))


def test_every_difference_has_a_description_and_an_argument():
    for entry in PUBLISHED_NETWORKS:
        assert set(entry.departure_args) <= set(entry.args), entry
        assert bool(entry.differs) == bool(entry.departure_args), entry
        assert not entry.differs.endswith("."), entry


def test_no_network_of_another_library_is_listed_twice():
    models = [(entry.source, entry.model) for entry in PUBLISHED_NETWORKS]
    assert len(set(models)) == len(models)
