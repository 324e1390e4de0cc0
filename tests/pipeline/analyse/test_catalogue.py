"""Test networks by name, and their costs."""

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
    """Return all experiments."""
    return load_all()


def test_name_of_a_variant_finds_its_network(experiments):
    named = find_network("resnet-20", experiments)
    assert (named.variant.model.name, named.variant.model.args) == ("resnet_cifar", {"depth": 20, "shortcut": "A"})
    assert (named.paper, named.image, named.classes) == ("resnet", (3, 32, 32), 10)


def test_mnist_images_are_padded_by_the_recipe(experiments):
    assert find_network("lenet5", experiments).image == (1, 32, 32)


def test_name_of_a_builder_finds_its_default_network(experiments):
    named = find_network("lenet5_modern", experiments)
    assert (named.paper, named.image, named.classes) == ("", (1, 32, 32), 10)
    assert find_network("alexnet", experiments).image == (3, 227, 227)


def test_arguments_can_be_changed(experiments):
    named = find_network("resnet-20", experiments, {"depth": 38})
    assert named.name == "resnet-20 (depth 38)"
    assert network_cost(named, {}).layers == 38


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt-20", "network 'resnt-20' not found; did you mean 'resnet-20'?"),
        ("qqqq", "network 'qqqq' not found; list all networks with: repro analyse"),
    ],
)
def test_unknown_name_raises_user_error(experiments, name, message):
    with pytest.raises(UserError) as caught:
        find_network(name, experiments)
    assert str(caught.value) == message


def test_variants_that_differ_in_training_are_one_network(experiments):
    named = catalogue(experiments)
    distinct = distinct_networks(named)
    assert "resnet-20-wd-1e-5" in named  # another weight decay
    assert "resnet-20-wd-1e-5" not in {network.name for network in distinct}
    keys = {(n.variant.model.model_dump_json(), n.classes, n.image) for n in distinct}
    assert len(keys) == len(distinct)


def test_cost_of_resnet_20(experiments):
    cost = network_cost(find_network("resnet-20", experiments), {"resnet-20": 91.25})
    maps = 16 * 1024 + 6 * 16 * 1024 + 6 * 32 * 256 + 6 * 64 * 64  # conv1 and three stacks
    assert cost.activations == maps + 10
    assert cost.parameters == 269_722
    assert cost.memory_mb == 4 * (269_722 + 3 * 1024 + maps + 64 + 10) / 1e6
    assert (cost.top1_pct, cost.layers) == (91.25, 20)


def test_accuracies_come_from_the_complexity_experiment(experiment):
    other = experiment.model_copy(update={"printed": {"top1_resnet-50": Printed(value=1, where="x")}})
    chart = other.model_copy(
        update={
            "name": "complexity/architecture",
            "printed": {"top1_resnet-50": Printed(value=76, where="x"), "other": Printed(value=2, where="x")},
        }
    )
    assert published_accuracies([other, chart]) == {"resnet-50": 76.0}
