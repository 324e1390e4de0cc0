"""Test the small networks of the lecture: sizes by arithmetic, and what each pair differs in."""

import pytest
import torch
from torch import nn

from lightning_modules.densenet import densenet_cifar
from lightning_modules.lecture import chain_cifar, head_cnn, inception_cnn, lrn_cnn, stack_cnn
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

C = 32


def conv(inputs, filters, kernel):
    """Parameters of a convolution with biases."""
    return filters * (inputs * kernel * kernel + 1)


def of_class(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(
    ("args", "weights", "relus"),
    [
        ({"kernel": 3, "layers": 3}, 27 * C * C, 3),  # the lecture: 3 (3^2 C^2)
        ({"kernel": 7, "layers": 1}, 49 * C * C, 1),  # and 7^2 C^2
        ({"kernel": 3, "layers": 3, "relu": "last"}, 27 * C * C, 1),
    ],
)
def test_stack_has_the_lectures_weights(args, weights, relus):
    stack = stack_cnn(**args).stack
    assert sum(layer.weight.numel() for layer in of_class(stack, nn.Conv2d)) == weights
    assert len(of_class(stack, nn.ReLU)) == relus


@pytest.mark.parametrize("args", [{"kernel": 3, "layers": 3}, {"kernel": 7, "layers": 1}])
def test_stack_sees_7_by_7_pixels(args):
    stack = stack_cnn(**args).stack
    for layer in of_class(stack, nn.Conv2d):
        nn.init.constant_(layer.weight, 0.01)
    image = torch.ones(1, C, 15, 15, requires_grad=True)
    stack(image)[0, 0, 7, 7].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert rows.tolist() == list(range(4, 11))  # three pixels on each side of pixel 7


def test_linear_stack_is_linear_before_its_last_relu():
    torch.manual_seed(0)
    stack = stack_cnn(kernel=3, layers=3, relu="last").stack[:2]
    a, b = torch.randn(2, 1, C, 8, 8)
    assert torch.allclose(stack(a + b) + stack(0 * a), stack(a) + stack(b), atol=1e-4)
    every = stack_cnn(kernel=3, layers=3).stack[:2]
    assert not torch.allclose(every(a + b) + every(0 * a), every(a) + every(b), atol=1e-2)


def test_normalisation_adds_no_parameters():
    with_lrn, without = on_meta(lrn_cnn, normalise=True), on_meta(lrn_cnn, normalise=False)
    assert len(of_class(with_lrn, nn.LocalResponseNorm)) == 2
    assert len(of_class(without, nn.LocalResponseNorm)) == 0
    layers = conv(3, C, 3) + conv(C, 2 * C, 3) + conv(2 * C, 2 * C, 3) + 64 * 10 + 10
    assert count_parameters(with_lrn) == count_parameters(without) == layers


def test_full_connections_cost_parameters():
    body = conv(3, C, 3) + conv(C, 2 * C, 3) + conv(2 * C, 2 * C, 3)
    assert count_parameters(on_meta(head_cnn, head="average")) == body + 64 * 10 + 10
    assert count_parameters(on_meta(head_cnn, head="fc")) == body + (64 * 16 + 1) * 128 + 128 * 10 + 10
    assert output_shapes(on_meta(head_cnn, head="fc"), (3, 32, 32))["flatten"] == (1024,)


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        ("naive", [96, 160, 224, 288]),  # 64 filters, and all input maps of the pooling branch
        ("bottleneck", [80] * 4),  # 16 + 32 + 16, and 16 of the projection
    ],
)
def test_inception_modules_keep_or_reduce_the_depth(module, channels):
    shapes = output_shapes(on_meta(inception_cnn, module=module), (3, 16, 16))
    assert [shapes[f"inception{number}"][0] for number in range(1, 5)] == channels
    assert shapes["inception1"][1:] == (16, 16)
    assert shapes["inception4"][1:] == (8, 8)


def test_auxiliary_classifier_works_in_training_only_and_moves_the_lower_layers():
    torch.manual_seed(0)
    network, images = inception_cnn(module="bottleneck", aux=True), torch.randn(2, 3, 8, 8)
    scores, auxiliary = network.train()(images)
    assert scores.shape == auxiliary.shape == (2, 10)
    assert network.eval()(images).shape == (2, 10)
    auxiliary.sum().backward()
    assert network.conv1.conv.weight.grad.abs().sum() > 0
    assert network.inception3.conv1x1.weight.grad is None  # above the auxiliary classifier
    assert not inception_cnn(module="bottleneck").has_aux


def test_chain_has_the_layers_of_a_densenet_and_none_of_its_connections():
    chain, dense = on_meta(chain_cifar, depth=40, k=12), on_meta(densenet_cifar, depth=40, k=12)
    assert len(of_class(chain, nn.Conv2d)) == len(of_class(dense, nn.Conv2d)) == 39
    inputs = [layer.in_channels for layer in of_class(chain, nn.Conv2d)]
    assert inputs == [3, 16] + [12] * 37
    assert output_shapes(chain, (3, 32, 32))["bn"] == (12, 8, 8)


@pytest.mark.parametrize(
    ("build", "args", "message"),
    [
        (stack_cnn, {"kernel": 4, "layers": 3}, "kernel must be an odd integer >= 1 and layers >= 1, not 4 and 3"),
        (stack_cnn, {"kernel": 3, "layers": 0}, "kernel must be an odd integer >= 1 and layers >= 1, not 3 and 0"),
        (stack_cnn, {"kernel": 3, "layers": 3, "relu": "first"}, "relu 'first' is not one of every, last"),
        (head_cnn, {"head": "gap"}, "head 'gap' is not one of average, fc"),
        (inception_cnn, {"module": "wide"}, "module 'wide' is not one of naive, bottleneck"),
        (chain_cifar, {"depth": 41, "k": 12}, r"depth 41 is not 3n \+ 4"),
    ],
)
def test_impossible_arguments_are_refused(build, args, message):
    with pytest.raises(ValueError, match=message):
        build(**args)
