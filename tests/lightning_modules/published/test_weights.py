"""Names of others into ours: what fits is carried over, what does not is named."""

import pytest
import torch
from torch import nn

from lightning_modules.published.catalogue import PUBLISHED
from lightning_modules.published.weights import carry_over, renamer, translated, unfit

RENAME = renamer((r"features\.(\d+)\.(.+)", r"conv\1.\2"), (r"aux\..+", None), (r"fc\..+", r"\g<0>"))


def network() -> nn.Module:
    net = nn.Sequential()
    net.add_module("conv0", nn.Conv2d(3, 4, 3))
    net.add_module("fc", nn.Linear(4, 2))
    return net


def theirs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "features.0.weight": torch.randn(4, 3, 3, 3),
        "features.0.bias": torch.randn(4),
        "fc.weight": torch.randn(2, 4),
        "fc.bias": torch.randn(2),
        "aux.weight": torch.randn(9),
    }


def test_the_first_rule_that_matches_the_whole_name_is_used():
    assert RENAME("features.3.bn.weight") == "conv3.bn.weight"
    assert RENAME("fc.bias") == "fc.bias"
    assert RENAME("aux.weight") is None
    assert RENAME("other.features.3.weight") == "other.features.3.weight"  # and so fits nothing


def test_weights_are_carried_over_by_their_names():
    net, state = network(), theirs()
    carry_over(net, state, [RENAME])
    assert torch.equal(net.conv0.weight, state["features.0.weight"])
    assert torch.equal(net.fc.bias, state["fc.bias"])


def test_our_own_names_come_first():
    net, other = network(), network()
    carry_over(net, other.state_dict(), [RENAME])
    assert torch.equal(net.conv0.weight, other.conv0.weight)


def test_two_weights_of_one_name_are_refused():
    both = renamer((r".+", "conv0.weight"))
    with pytest.raises(ValueError, match=r"two weights would be called 'conv0.weight', one of them 'features.0.b"):
        translated(theirs(), both)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("fc.bias"), "1 of 4 weights are missing, 'fc.bias' first"),
        (lambda s: s.update({"features.7.weight": torch.zeros(1)}), "1 of its weights are unknown, 'conv7.w"),
        (lambda s: s.update({"fc.weight": torch.zeros(3, 4)}), "fc.weight is 3 x 4 where 2 x 4 is needed"),
        (lambda s: s.update({"fc.bias": torch.tensor(1.0)}), "fc.bias is a single number where 2 is needed"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, words):
    net, state = network(), theirs()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=words):
        carry_over(net, state, [RENAME])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_batch_counters_may_be_missing():
    net = nn.BatchNorm2d(3)
    state = {name: value for name, value in net.state_dict().items() if not name.endswith("tracked")}
    assert unfit(net, state) == ""


def test_a_convolution_over_all_of_its_input_is_the_full_connection_it_is():
    net, state = network(), theirs()
    state["fc.weight"] = state["fc.weight"].view(2, 1, 2, 2)
    carry_over(net, state, [RENAME])
    assert torch.equal(net.fc.weight, state["fc.weight"].flatten(1))


def test_every_known_difference_is_said_and_switched():
    for one in PUBLISHED:
        assert set(one.switches) <= set(one.args), one
        assert bool(one.differs) == bool(one.switches), one
        assert not one.differs.endswith("."), one


def test_no_network_of_another_library_is_listed_twice():
    listed = [(one.source, one.model) for one in PUBLISHED]
    assert len(set(listed)) == len(listed)
