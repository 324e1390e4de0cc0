"""Networks by name, and what they cost."""

import pytest

from pipeline.analyse.catalogue import (
    catalogue,
    distinct_networks,
    find_network,
    network_cost,
    published_accuracies,
)
from pipeline.common.errors import UserError
from pipeline.declare.claims import Printed
from pipeline.declare.load import load_all


@pytest.fixture(scope="module")
def experiments():
    return load_all()


def test_a_variants_name_is_its_networks(experiments):
    named = find_network("resnet-20", experiments)
    assert (named.variant.model.name, named.variant.model.args) == ("resnet_cifar", {"depth": 20, "shortcut": "A"})
    assert (named.paper, named.image, named.classes) == ("resnet", (3, 32, 32), 10)


def test_mnist_is_padded_as_its_recipe_says(experiments):
    assert find_network("lenet5", experiments).image == (1, 32, 32)


def test_a_networks_own_name_means_its_builder(experiments):
    named = find_network("lenet5_modern", experiments)
    assert (named.paper, named.image, named.classes) == ("", (1, 32, 32), 10)
    assert find_network("alexnet", experiments).image == (3, 227, 227)


def test_arguments_can_be_changed(experiments):
    named = find_network("resnet-20", experiments, {"depth": 38})
    assert named.name == "resnet-20 (depth 38)"
    assert network_cost(named, {}).layers == 38


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt-20", "there is no network 'resnt-20'; did you mean 'resnet-20'?"),
        ("qqqq", "there is no network 'qqqq'; repro analyse lists them all"),
    ],
)
def test_an_unknown_name_is_a_mistake(experiments, name, words):
    with pytest.raises(UserError) as caught:
        find_network(name, experiments)
    assert str(caught.value) == words


def test_what_is_shown_once_is_one_network(experiments):
    named = catalogue(experiments)
    shown = distinct_networks(named)
    assert "resnet-20-wd-1e-5" in named  # learns otherwise
    assert "resnet-20-wd-1e-5" not in {one.name for one in shown}
    assert len({(one.variant.model.model_dump_json(), one.classes, one.image) for one in shown}) == len(shown)


def test_the_costs_of_resnet_20_by_hand(experiments):
    cost = network_cost(find_network("resnet-20", experiments), {"resnet-20": 91.25})
    maps = 16 * 1024 + 6 * 16 * 1024 + 6 * 32 * 256 + 6 * 64 * 64  # conv1 and the three stacks
    assert cost.activations == maps + 10
    assert cost.parameters == 269_722
    assert cost.memory_mb == 4 * (269_722 + 3 * 1024 + maps + 64 + 10) / 1e6
    assert (cost.top1_pct, cost.layers) == (91.25, 20)


def test_accuracies_are_those_of_the_comparison_alone(experiment):
    other = experiment.model_copy(update={"printed": {"top1_resnet-50": Printed(value=1, where="x")}})
    chart = other.model_copy(
        update={
            "name": "complexity/architecture",
            "printed": {"top1_resnet-50": Printed(value=76, where="x"), "other": Printed(value=2, where="x")},
        }
    )
    assert published_accuracies([other, chart]) == {"resnet-50": 76.0}
