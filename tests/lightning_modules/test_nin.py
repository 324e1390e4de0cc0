"""Test NIN against section 4 of arXiv:1312.4400 and the configurations that its authors released."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.nin import nin, nin_imagenet
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

# Image size, channels, then kernel size and filters of each convolution, from the four configuration files.
CONFIGURATIONS = {
    "cifar10": (32, 3, (5, 192), (1, 160), (1, 96), (5, 192), (1, 192), (1, 192), (3, 192), (1, 192), (1, 10)),
    "cifar100": (32, 3, (5, 192), (1, 160), (1, 96), (5, 192), (1, 192), (1, 192), (3, 192), (1, 192), (1, 100)),
    "svhn": (32, 3, (5, 128), (1, 96), (1, 64), (5, 320), (1, 256), (1, 128), (5, 384), (1, 256), (1, 10)),
    "mnist": (28, 1, (5, 96), (1, 64), (1, 48), (5, 128), (1, 96), (1, 48), (5, 128), (1, 96), (1, 10)),
}
PARAMETERS = {"cifar10": 966_986, "cifar100": 984_356, "svhn": 1_986_026, "mnist": 349_674}
TABLE = {  # layer outputs for CIFAR-10
    "mlpconv1.conv": (192, 32, 32),
    "mlpconv1.cccp1": (160, 32, 32),
    "mlpconv1": (96, 32, 32),
    "pool1": (96, 16, 16),
    "dropout1": (96, 16, 16),
    "mlpconv2.conv": (192, 16, 16),
    "mlpconv2.cccp1": (192, 16, 16),
    "mlpconv2": (192, 16, 16),
    "pool2": (192, 8, 8),
    "dropout2": (192, 8, 8),
    "mlpconv3.conv": (192, 8, 8),
    "mlpconv3.cccp1": (192, 8, 8),
    "mlpconv3": (10, 8, 8),
    "pool": (10, 1, 1),
}


def meta_nin(form: str, **args) -> nn.Module:
    """Return the network for one data set, meta_nin on the meta device."""
    channels, num_classes = CONFIGURATIONS[form][1], CONFIGURATIONS[form][-1][1]
    return on_meta(nin, form=form, num_classes=num_classes, in_channels=channels, **args)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("form", CONFIGURATIONS)
def test_convolutions_match_the_released_configuration(form):
    found = [(conv.kernel_size[0], conv.out_channels) for conv in convolutions(meta_nin(form))]
    assert found == list(CONFIGURATIONS[form][2:])


@pytest.mark.parametrize("form", CONFIGURATIONS)
def test_parameter_count_matches_hand_count(form):
    _, channels, *layers = CONFIGURATIONS[form]
    total = 0
    for kernel, filters in layers:
        total += channels * kernel**2 * filters + filters
        channels = filters
    assert total == PARAMETERS[form]
    assert count_parameters(meta_nin(form)) == total


@pytest.mark.parametrize("head", ["fc", "fc-dropout"])
def test_fully_connected_head_adds_640_weights_and_a_bias_per_class(head):
    head_parameters = 10 * 8 * 8 * 10 + 10
    assert head_parameters == 6_410
    assert count_parameters(meta_nin("cifar10", head=head)) == PARAMETERS["cifar10"] + head_parameters


def test_layer_outputs_match_the_table():
    shapes = output_shapes(meta_nin("cifar10"), (3, 32, 32))
    assert {name: shapes[name] for name in TABLE} == TABLE


@pytest.mark.parametrize("form", CONFIGURATIONS)
def test_map_before_the_head_has_a_quarter_of_the_image_size(form):
    size, channels = CONFIGURATIONS[form][:2]
    shapes = output_shapes(meta_nin(form), (channels, size, size))
    assert shapes["mlpconv3"] == (CONFIGURATIONS[form][-1][1], size // 4, size // 4)  # 8 x 8; MNIST: 7 x 7


@pytest.mark.parametrize(
    ("head", "head_layers"), [("average", ["pool"]), ("fc", ["fc"]), ("fc-dropout", ["dropout3", "fc"])]
)
def test_children_follow_the_table(head, head_layers):
    names = [name for name, _ in meta_nin("cifar10", head=head).named_children()]
    assert names == ["mlpconv1", "pool1", "dropout1", "mlpconv2", "pool2", "dropout2", "mlpconv3", *head_layers]


def test_forward_matches_a_functional_reimplementation():
    """Recompute the released configuration from the network's weights with torch's functions."""
    torch.manual_seed(0)
    network = nin().eval()
    x = torch.randn(2, 3, 32, 32)
    w = list(network.parameters())
    y = x
    for i, padding in enumerate((2, 0, 0, 2, 0, 0, 1, 0, 0)):
        y = F.conv2d(y, w[2 * i], w[2 * i + 1], padding=padding).clamp(min=0)
        if i in (2, 5):  # 3x3 max pool, stride 2; the last window has only two rows and columns
            y = F.pad(y, (0, 1, 0, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
    assert y.shape == (2, 10, 8, 8)
    torch.testing.assert_close(network(x), y.sum((2, 3)) / 64, atol=1e-6, rtol=1e-5)


def test_global_average_equals_a_fully_connected_layer_with_fixed_weights():
    """Section 4.6: the weight matrix is block-diagonal and constant within each block."""
    torch.manual_seed(0)
    average, full = nin().eval(), nin(head="fc").eval()
    full.load_state_dict(average.state_dict(), strict=False)
    with torch.no_grad():
        full.fc.weight.copy_(torch.eye(10).repeat_interleave(64, dim=1) / 64)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(full(x), average(x), atol=1e-6, rtol=1e-5)


def test_mlpconv_layer_applies_one_perceptron_at_every_position():
    """Section 3.1: the same three-layer perceptron reads each patch of the image."""
    torch.manual_seed(0)
    layer = nin(form="mnist", in_channels=1).mlpconv1
    x = torch.randn(1, 1, 9, 9)
    patch = x[0, :, 2:7, 3:8].flatten()
    for conv in (layer.conv, layer.cccp1, layer.cccp2):
        patch = F.relu(F.linear(patch, conv.weight.flatten(1), conv.bias))
    torch.testing.assert_close(layer(x)[0, :, 4, 5], patch, atol=1e-6, rtol=1e-5)


def test_scores_are_never_negative():
    torch.manual_seed(0)
    assert nin()(5 * torch.randn(2, 3, 32, 32)).min() >= 0  # ReLU also follows the last convolution


@pytest.mark.parametrize(
    ("form", "mlpconv1_std"),
    [("cifar10", (0.05, 0.05, 0.05)), ("cifar100", (0.001, 0.01, 0.01)), ("mnist", (0.05,) * 3)],
)
def test_initial_weights_are_normal_with_the_released_std_and_biases_zero(form, mlpconv1_std):
    torch.manual_seed(0)
    network = nin(form=form)
    for conv, std in zip(convolutions(network), (*mlpconv1_std, *(0.05,) * 6), strict=True):
        standard = conv.weight.detach().flatten() / std
        error = len(standard) ** -0.5
        assert abs(standard.mean()) < 5 * error
        assert abs(standard.var() - 1) < 5 * 2**0.5 * error
        assert not conv.bias.any()
    large = network.mlpconv2.conv.weight.detach()
    assert ((large / large.std()) ** 4).mean().item() == pytest.approx(3, abs=0.05)  # kurtosis; 1.8 if uniform


def test_dropout_is_active_only_in_training():
    network = nin()
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_network_without_dropout_has_the_same_scores_at_test_and_none_dropped_in_training():
    with_dropout, without = nin().eval(), nin(dropout=False).train()
    without.load_state_dict(with_dropout.state_dict())  # the same layers with weights
    x = torch.randn(2, 3, 32, 32)
    assert not [m for m in without.modules() if isinstance(m, nn.Dropout)]
    torch.testing.assert_close(without(x), with_dropout(x))
    assert not torch.equal(with_dropout.train()(x), without(x))


def test_only_the_fc_dropout_head_has_dropout_before_it():
    for head, rates in (("fc", [0.5] * 2), ("fc-dropout", [0.5] * 3)):
        assert [m.p for m in meta_nin("cifar10", head=head).modules() if isinstance(m, nn.Dropout)] == rates


@pytest.mark.parametrize("size", [6, 7, 32, 33])
def test_global_average_head_accepts_any_image_size_from_6(size):
    assert nin().eval()(torch.zeros(1, 3, size, size)).shape == (1, 10)


def test_image_smaller_than_6_x_6_raises():
    with pytest.raises(ValueError, match="nin reads images of 6 x 6 pixels or more, not 5 x 8"):
        nin()(torch.zeros(1, 3, 5, 8))


def test_fully_connected_head_accepts_only_its_own_image_size():
    with pytest.raises(ValueError, match="nin reads images of 28 x 28 pixels, not 32 x 32"):
        nin(form="mnist", head="fc", in_channels=1)(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("head", ["average", "fc", "fc-dropout"])
def test_dense_equals_forward_on_the_own_size_and_averages_over_positions_on_larger_images(head):
    torch.manual_seed(0)
    network = nin(form="mnist", head=head, in_channels=1).eval()
    own, larger = torch.randn(2, 1, 28, 28), torch.randn(1, 1, 32, 36)
    with torch.no_grad():
        torch.testing.assert_close(network.dense(own), network(own), atol=1e-6, rtol=1e-5)
        maps = network.mlpconv3(network.pool2(network.mlpconv2(network.pool1(network.mlpconv1(larger)))))
        assert maps.shape == (1, 10, 8, 9)
        expected = maps.mean((2, 3))
        if head != "average":  # the head reads 7 x 7
            windows = [maps[:, :, i : i + 7, j : j + 7].flatten(1) for i in range(2) for j in range(3)]
            expected = torch.stack([network.fc(window) for window in windows]).mean(0)
        torch.testing.assert_close(network.dense(larger), expected, atol=1e-6, rtol=1e-5)


def test_dense_with_a_fully_connected_head_rejects_images_below_the_own_size():
    with pytest.raises(
        ValueError, match="nin, applied densely, reads images of 32 x 32 pixels or more, not 31 x 40"
    ):
        nin(head="fc").dense(torch.zeros(1, 3, 31, 40))


def test_unknown_form_error_lists_the_data_sets():
    with pytest.raises(ValueError, match=r"form 'imagenet' is not one of .*: cifar10, cifar100, svhn, mnist"):
        nin(form="imagenet")


def test_unknown_head_error_lists_the_heads():
    with pytest.raises(ValueError, match=r"head 'gap' is not one of section 4\.6: average, fc, fc-dropout"):
        nin(head="gap")


# --- nin_imagenet --------------------------------------------------------------------------------------------
# The released train_val.prototxt: kernel, stride, padding, kernels and standard deviation of each convolution.
IMAGENET = [
    *((11, 4, 0, 96, 0.01), (1, 1, 0, 96, 0.05), (1, 1, 0, 96, 0.05)),
    *((5, 1, 2, 256, 0.05), (1, 1, 0, 256, 0.05), (1, 1, 0, 256, 0.05)),
    *((3, 1, 1, 384, 0.01), (1, 1, 0, 384, 0.05), (1, 1, 0, 384, 0.05)),
    *((3, 1, 1, 1024, 0.05), (1, 1, 0, 1024, 0.05), (1, 1, 0, 1000, 0.01)),
]


def test_convolutions_for_imagenet_match_the_released_file():
    found = [
        (conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.out_channels)
        for conv in convolutions(on_meta(nin_imagenet))
    ]
    assert found == [row[:4] for row in IMAGENET]


def test_network_for_imagenet_has_7_6_million_parameters():
    total, channels = 0, 3
    for kernel, _, _, filters, _ in IMAGENET:
        total += channels * kernel**2 * filters + filters
        channels = filters
    assert total == 7_595_176  # 29 MB of four bytes each, the size of the released file
    assert total * 4 / 2**20 == pytest.approx(29, abs=0.05)
    assert count_parameters(on_meta(nin_imagenet)) == total


def test_layer_outputs_for_imagenet_match_the_table():
    shapes = output_shapes(on_meta(nin_imagenet), (3, 224, 224))
    outputs = {"mlpconv1": (96, 54, 54), "pool1": (96, 27, 27), "mlpconv2": (256, 27, 27), "pool2": (256, 13, 13)}
    outputs |= {"mlpconv3": (384, 13, 13), "pool3": (384, 6, 6), "dropout3": (384, 6, 6), "mlpconv4": (1000, 6, 6)}
    assert {name: shapes[name] for name in outputs} == outputs  # pool4 of the file averages 6 x 6
    assert shapes["flatten"] == (1000,)


def test_forward_for_imagenet_matches_a_functional_reimplementation():
    torch.manual_seed(0)
    network, x = nin_imagenet(num_classes=10).eval(), torch.randn(1, 3, 224, 224)
    w, y = list(network.parameters()), x
    for i, (_, stride, padding, _, _) in enumerate(IMAGENET):
        y = F.conv2d(y, w[2 * i], w[2 * i + 1], stride=stride, padding=padding).clamp(min=0)
        if i in (2, 5, 8):  # 54 -> 27 and 13 -> 6 pixels; the last window of 54 has only two rows and columns
            pad = y.shape[-1] % 2 == 0
            y = F.pad(y, (0, pad, 0, pad), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
    torch.testing.assert_close(network(x), F.avg_pool2d(y, 6).flatten(1), atol=1e-6, rtol=1e-5)


def test_initial_weights_for_imagenet_have_the_released_standard_deviations():
    torch.manual_seed(0)
    for conv, (*_, std) in zip(convolutions(nin_imagenet()), IMAGENET, strict=True):
        assert conv.weight.std().item() == pytest.approx(std, rel=0.04)
        assert not conv.bias.any()


def test_smallest_image_for_imagenet_is_55_x_55():
    assert output_shapes(on_meta(nin_imagenet), (3, 55, 55))["pool3"] == (384, 1, 1)
    with pytest.raises(ValueError, match="nin_imagenet reads images of 55 x 55 pixels or more, not 54 x 60"):
        on_meta(nin_imagenet)(torch.zeros(1, 3, 54, 60, device="meta"))
