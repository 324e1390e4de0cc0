"""Test networks whose output is the features of a layer, against the layer's output in the network itself."""

import pytest
import torch
from torch import nn

from lightning_modules.alexnet import alexnet
from lightning_modules.googlenet import googlenet
from lightning_modules.resnet import resnet_cifar
from lightning_modules.resnet_imagenet import resnet_imagenet
from lightning_modules.squeezenet import squeezenet
from lightning_modules.vgg import vgg
from lightning_modules.zfnet import zfnet
from pipeline.common.errors import UserError
from pipeline.derive.feature_network import feature_network

IMAGE = (3, 224, 224)


@pytest.fixture(scope="module")
def image():
    """One image of 260 x 256 pixels."""
    return torch.randn(1, 3, 260, 256, generator=torch.Generator().manual_seed(0))


def small_zfnet():
    """Return a ZFNet with 8 units in layers 6 and 7 and 3 classes, the same each time."""
    torch.manual_seed(1)
    return zfnet(units=8, num_classes=3).eval()


def outputs_of(network, layer, run):
    """Return what `layer` gives while `run()` applies the network."""
    found = []
    hook = network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: found.append(output.clone()))
    with torch.inference_mode():
        run()
    hook.remove()
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("layer", [None, "layer7", "layer7.fc"])
def test_features_are_those_of_layer_7_after_its_activation(image, layer):
    network, crop = small_zfnet(), image[:, :, :224, :224]
    expected = outputs_of(network, "layer7.relu", lambda: network(crop))
    assert (expected == 0).any()  # the activation cuts off
    assert (expected > 0).any()
    with torch.inference_mode():
        assert torch.equal(feature_network(network, layer, IMAGE)(crop), expected)


def test_features_of_a_dense_network_are_averaged_over_positions(image):
    network = small_zfnet()
    wide = torch.cat([image, image.flip(2)], 2)  # 520 x 256: several positions
    maps = outputs_of(network, "layer7.dropout", lambda: network.dense(wide))
    assert maps.shape[2] > 1
    with torch.inference_mode():
        found = feature_network(network, "layer7", IMAGE).dense(wide)
    torch.testing.assert_close(found, maps.mean((2, 3)), rtol=1e-5, atol=1e-7)


def test_features_of_a_convolutional_layer_are_averaged_over_positions(image):
    torch.manual_seed(2)
    network = squeezenet(num_classes=4).eval()
    crop = image[:, :, :227, :227]
    expected = outputs_of(network, "fire9", lambda: network(crop)).mean((2, 3))
    with torch.inference_mode():
        torch.testing.assert_close(feature_network(network, "fire9", (3, 227, 227))(crop), expected)


@pytest.mark.parametrize(
    ("network", "layer", "size"),
    [
        (lambda: zfnet(units=8, num_classes=3), "layer5.conv", (3, 224, 224)),
        (lambda: resnet_cifar(depth=20, shortcut="A"), "map8.0.bn1", (3, 32, 32)),
    ],
    ids=["zfnet", "resnet"],
)
def test_an_activation_in_place_does_not_change_the_output_of_the_layer_before_it(network, layer, size):
    torch.manual_seed(2)
    built = network().eval()
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(3))
    expected = outputs_of(built, layer, lambda: built(image))
    assert (expected < 0).any()  # as before the activation
    with torch.inference_mode():
        assert torch.equal(feature_network(built, layer, size)(image), expected.flatten(2).mean(2))


def test_a_layer_with_several_outputs_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.two, self.fc = Two(), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.two(x)[0].mean((2, 3)))

    with pytest.raises(UserError, match="layer 'two' has several outputs; name a layer with one"):
        feature_network(Network(), "two", (3, 8, 8))(torch.zeros(1, 3, 8, 8))


def test_a_layer_with_pooling_gives_its_output_densely_only_if_it_runs_as_a_module(image):
    network = small_zfnet()
    expected = outputs_of(network, "layer5.pool", lambda: network.dense(image)).mean((2, 3))
    with torch.inference_mode():
        torch.testing.assert_close(feature_network(network, "layer5.pool", IMAGE).dense(image), expected)
        with pytest.raises(UserError, match="layer 'layer5' does not run as a module when the network is applied"):
            feature_network(small_zfnet(), "layer5", IMAGE).dense(image)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer8", "ZFNet has no layer 'layer8'; did you mean 'layer"),
        ("layer6.fc", "layer 'layer6.fc' is fully connected and not the one before the last"),
        ("output", "layer 'output' is fully connected and not the one before the last"),
    ],
)
def test_layers_without_features_are_refused(layer, message):
    with pytest.raises(UserError, match=message):
        feature_network(small_zfnet(), layer, IMAGE)


def test_a_network_without_a_fully_connected_layer_needs_a_layer():
    with pytest.raises(UserError, match="SqueezeNet has no fully connected layer; name a layer"):
        feature_network(squeezenet(num_classes=4), None, (3, 227, 227))


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: alexnet(), (3, 227, 227)),
        (lambda: vgg(configuration="E"), (3, 224, 224)),
        (lambda: googlenet(aux=True), (3, 224, 224)),
        (lambda: resnet_imagenet(depth=50), (3, 224, 224)),
    ],
    ids=["alexnet", "vgg", "googlenet", "resnet"],
)
def test_the_layer_that_becomes_the_identity_is_the_one_that_runs_last(build, size):
    with torch.device("meta"):
        network = build().eval()
    ran = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _m, inputs, _o, name=name: ran.append((name, inputs[0].shape)))
    with torch.device("meta"), torch.inference_mode():
        network(torch.zeros(1, *size))
    name, shape = ran[-1]
    features = feature_network(network, None, size)
    assert features.get_submodule(name).weight.shape == (shape[-1], shape[-1])
