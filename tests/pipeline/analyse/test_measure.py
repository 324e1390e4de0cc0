"""Test exact metrics of claims: settings, values computed from the recipe, printed values, errors."""

import subprocess
import sys

import pytest
import torch

from pipeline.analyse.measure import measure_claim, published_image_shape
from pipeline.common.errors import UserError
from pipeline.declare.data_settings import Data
from pipeline.declare.load import load_experiment
from pipeline.declare.training import LrDrops


@pytest.fixture(scope="module")
def depth():
    """Return the declaration of resnet/cifar10_depth."""
    return load_experiment("resnet/cifar10_depth")


def test_recipe_settings(depth):
    assert measure_claim("recipe/train.lr_drops.at", depth, "resnet-20") == [32000, 48000]
    assert measure_claim("recipe/train.warmup.lr", depth, "resnet-110") == 0.01
    assert measure_claim("recipe/train.warmup", depth, "resnet-20") is None


def test_measuring_leaves_the_callers_random_state_unchanged(declare):
    declared = declare("depth: 20}}", "depth: 26}}")  # a network that no other test measures
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = measure_claim("model/init_gain", declared, "plain-20")
    assert torch.equal(torch.rand(3), expected)
    assert measure_claim("model/init_gain", declared, "plain-20") == first


def test_epochs_are_steps_times_batch_size_over_images(declare):
    declared = declare()
    assert measure_claim("recipe/epochs", declared, "plain-20") == 163.84  # 64,000 x 128 / 50,000
    assert measure_claim("recipe/drop_epochs", declared, "plain-20") == [81.92, 122.88]
    train = declared.train.model_copy(update={"lr_drops": LrDrops(every=15625, factor=0.1)})
    every = declared.model_copy(update={"train": train})
    assert measure_claim("recipe/drop_epochs", every, "plain-20") == 40.0


def test_epochs_of_svhn_do_not_count_the_validation_images_of_each_class(declare):
    """604,388 - 10 x (400 + 200) = 598,388 training images; 64,000 x 128 / 598,388 = 13.69."""
    data = Data(name="svhn-extra", val_per_class={"train": 400, "extra": 200})
    declared = declare().model_copy(update={"data": data})
    assert measure_claim("recipe/epochs", declared, "plain-20") == 13.69
    assert measure_claim("recipe/data.val_per_class.extra", declared, "plain-20") == 200


def test_printed_values_are_read_from_the_declaration(declare):
    declared = declare("claims:", "printed: {Table 3: {error: 14.8}}\nclaims:")
    assert measure_claim("printed/error", declared, None) == 14.8


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "model/parameter",
            "unknown metric model/parameter; known: parameters, weights, multiply_adds, activations,",
        ),
        ("model/parameters/x", "unknown metric model/parameters/x; known: parameters"),
        (
            "model/layer/conv9/output",
            "the network has no layer 'conv9'; its layers: conv1, bn1, map32, map16, map8, pool, fc",
        ),
        ("model/layer/output", "the network has no layer ''; its layers: conv1"),
        (
            "model/layer/conv1+fc/output",
            "'output' is a metric of one layer; for conv1+fc use a count: parameters, weights,",
        ),
        ("model/layer/pool/init_std", "layer 'pool' has no weights of its own"),
        ("model/layer/conv1/init_bias", "layer 'conv1' has no biases of its own"),
        ("model/layer/conv1/_parameters", "unknown metric '_parameters' of a layer"),
        ("model/own/conv1", "unknown metric 'conv1' of the network"),
        ("printed/error", "resnet/cifar10_depth: 'printed' has no value 'error'; known: none"),
        (
            "model/layer/conv1/colour",
            "unknown metric 'colour' of a layer; known: output, parameters, weights, multiply_adds, ",
        ),
        ("recipe/train.momentum", "resnet/cifar10_depth: the recipe has no setting 'train.momentum'"),
        ("recipe/train.warmup.lr", "resnet/cifar10_depth: the recipe has no setting 'train.warmup.lr'"),
        (
            "test/top1_error_pct",
            "'test/top1_error_pct' is not exact; exact metrics start with model/, recipe/ or printed/",
        ),
    ],
)
def test_unknown_metric_or_layer_names_the_known_ones(depth, metric, message):
    with pytest.raises(UserError) as caught:
        measure_claim(metric, depth, "resnet-20")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "plain_cifar, depth: 20",
            "plan_cifar, depth: 20",
            "network 'plan_cifar' is unknown; did you mean 'plain_cifar'?",
        ),
        (
            "plain_cifar, depth: 20",
            "plain_cifar, dept: 20",
            "network 'plain_cifar' has no argument 'dept'; did you mean 'depth'?",
        ),
        (
            "plain_cifar, depth: 20",
            "plain_cifar, depth: 21",
            "depth 21 is not 6n + 2 (section 4.2); the nearest valid depths are 20 and 26",
        ),
        (
            "name: cifar10,",
            "name: my-images,",
            "the image size of data set 'my-images' is not known without reading it",
        ),
    ],
)
def test_network_that_cannot_be_built_raises_user_error(declare, old, new, message):
    with pytest.raises(UserError) as caught:
        measure_claim("model/parameters", declare(old, new), "plain-20")
    assert message in str(caught.value)


def test_padding_changes_the_image_shape(declare):
    padded = declare("name: cifar10,", "name: mnist, pad_to: 32,")
    assert published_image_shape(padded.recipe("plain-20", "paper")) == (1, 32, 32)


def test_recipe_metrics_do_not_import_torch():
    code = (
        "import sys; from pipeline.analyse.measure import measure_claim;"
        "from pipeline.declare.load import load_experiment;"
        "value = measure_claim('recipe/train.lr', load_experiment('resnet/cifar10_depth'), 'resnet-20');"
        "print(value, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "0.1 False\n"
