"""Test ResNeXt against Tables 1, 2 and 7 and Figure 3 of arXiv:1611.05431, ResNet, torchvision and timm."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.layers import Projection
from lightning_modules.published.resnext import PUBLISHED
from lightning_modules.published.weights import rename_state_dict, state_dict_mismatch
from lightning_modules.resnet_imagenet import resnet_imagenet
from lightning_modules.resnext import Block, convert_state_dict, resnext_cifar, resnext_imagenet
from tests.support.network_inspection import count_parameters, on_meta, output_shapes, randomize_batchnorm

TABLE_2 = {1: 64, 2: 40, 4: 24, 8: 14, 32: 4}  # cardinality: width of a path in conv2
IMAGENET = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
SMALL = {"cardinality": 4, "width": 2}
FORMS = ("a", "b", "c")


def hand_counts(blocks: tuple[int, ...], cardinality: int, width: int, classes: int) -> tuple[int, int, int]:
    """Count weights, parameters and multiply-adds; three stages are for CIFAR, four for ImageNet."""
    imagenet = len(blocks) == 4
    stem, side = (3 * 64 * 49, 112) if imagenet else (3 * 64 * 9, 32)
    weights, bn_channels, products = stem, 64, stem * side**2
    channels, side = 64, 56 if imagenet else 32
    for stage, n in enumerate(blocks):
        d, out = width * 2**stage, 256 * 2**stage
        for block in range(n):
            before, side = side, side // 2 if block == 0 and stage > 0 else side
            convolutions = [
                (cardinality * channels * d, before),
                (cardinality * d * d * 9, side),
                (cardinality * d * out, side),
            ]
            if channels != out:
                convolutions.append((channels * out, side))
                bn_channels += out
            bn_channels += 2 * cardinality * d + out
            weights += sum(count for count, _ in convolutions)
            products += sum(count * pixels**2 for count, pixels in convolutions)
            channels = out
    fc = channels * classes
    return weights + fc, weights + fc + 2 * bn_channels + classes, products + fc


def counts_of(network: nn.Module, side: int) -> tuple[int, int, int]:
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side))
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return weights, count_parameters(network), counter.get_total_flops() // 2


# --- the tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", IMAGENET)
def test_layer_outputs_match_table_1(depth):
    network = on_meta(resnext_imagenet, depth=depth, cardinality=32, width=4)
    shapes = output_shapes(network, (3, 224, 224))
    assert {name: shape for name, shape in shapes.items() if "." not in name} == {
        "conv1": (64, 112, 112),
        "bn1": (64, 112, 112),
        "pool1": (64, 56, 56),
        "conv2": (256, 56, 56),
        "conv3": (512, 28, 28),
        "conv4": (1024, 14, 14),
        "conv5": (2048, 7, 7),
        "pool": (2048, 1, 1),
        "fc": (1000,),
    }
    assert tuple(len(getattr(network, name)) for name in ("conv2", "conv3", "conv4", "conv5")) == IMAGENET[depth]


def test_inner_widths_match_table_1():
    network = on_meta(resnext_imagenet, depth=50, cardinality=32, width=4)
    for name, inner in {"conv2": 128, "conv3": 256, "conv4": 512, "conv5": 1024}.items():
        for block in getattr(network, name):
            assert (block.conv1.out_channels, block.conv2.out_channels, block.conv2.groups) == (inner, inner, 32)


def test_cifar_layer_outputs_match_section_5_3():
    network = on_meta(resnext_cifar, cardinality=8)
    shapes = output_shapes(network, (3, 32, 32))
    assert {name: shape for name, shape in shapes.items() if "." not in name} == {
        "conv1": (64, 32, 32),
        "bn1": (64, 32, 32),
        "stage1": (256, 32, 32),
        "stage2": (512, 16, 16),
        "stage3": (1024, 8, 8),
        "pool": (1024, 1, 1),
        "fc": (10,),
    }


def test_children_follow_the_tables():
    names = [name for name, _ in on_meta(resnext_imagenet, depth=50, **SMALL).named_children()]
    assert names == ["conv1", "bn1", "pool1", "conv2", "conv3", "conv4", "conv5", "pool", "fc"]
    for form in FORMS:
        names = [name for name, _ in on_meta(resnext_cifar, form=form, **SMALL).named_children()]
        assert names == ["conv1", "bn1", "stage1", "stage2", "stage3", "pool", "fc"]


@pytest.mark.parametrize("depth", [29, 50, 101])
def test_weighted_layers_outside_projections_equal_the_depth(depth):
    build, args = (resnext_cifar, {}) if depth == 29 else (resnext_imagenet, {"depth": depth})
    network = on_meta(build, **args, **SMALL)
    projections = sum(isinstance(m, Projection) for m in network.modules())
    assert projections == (3 if depth == 29 else 4)  # one per stage; the first widens 64 to 256
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) - projections == depth


@pytest.mark.parametrize(
    ("depth", "cardinality", "width"),
    [*((50, *size) for size in TABLE_2.items()), (101, 32, 4), (101, 64, 4), (101, 2, 64), (101, 1, 100)],
)
def test_counts_match_hand_counts(depth, cardinality, width):
    network = on_meta(resnext_imagenet, depth=depth, cardinality=cardinality, width=width)
    assert counts_of(network, 224) == hand_counts(IMAGENET[depth], cardinality, width, 1000)


def test_hand_counts_match_the_printed_counts_of_table_1():
    resnet, resnext = hand_counts(IMAGENET[50], 1, 64, 1000), hand_counts(IMAGENET[50], 32, 4, 1000)
    assert resnet[0] == pytest.approx(25.5e6, abs=0.05e6)
    assert resnext[0] == pytest.approx(25.0e6, abs=0.05e6)
    assert resnet[2] == pytest.approx(4.1e9, abs=0.05e9)
    assert resnext[2] == pytest.approx(4.2e9, abs=0.05e9)
    assert (resnet[1], resnext[1]) == (25_557_032, 25_028_904)


@pytest.mark.parametrize(("cardinality", "millions"), [(8, 34.4), (16, 68.1)])
def test_printed_parameters_of_table_7_are_millions_of_weights(cardinality, millions):
    network = on_meta(resnext_cifar, cardinality=cardinality, width=64)
    counts = counts_of(network, 32)
    assert counts == hand_counts((3, 3, 3), cardinality, 64, 10)
    assert counts[0] / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("cardinality", "width"), TABLE_2.items())
def test_block_of_conv2_has_the_weights_of_equation_4(cardinality, width):
    block = on_meta(resnext_imagenet, depth=50, cardinality=cardinality, width=width).conv2[1]
    weights = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
    assert weights == cardinality * (256 * width + 9 * width * width + width * 256)
    assert weights == pytest.approx(70_000, rel=0.05)  # "about 70k" (section 3.4)


# --- blocks ------------------------------------------------------------------------------------------------


def test_stride_is_in_the_3x3_of_the_first_block_of_a_stage():
    network = on_meta(resnext_imagenet, depth=50, **SMALL)
    strided = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    stages = ("conv3", "conv4", "conv5")
    assert strided == ["conv1", *(f"{s}.0.{c}" for s in stages for c in ("conv2", "shortcut.conv"))]


def test_cardinality_1_equals_a_resnet_with_its_stride_in_the_3x3():
    torch.manual_seed(0)
    resnet = resnet_imagenet(depth=50, stride_in_3x3=True, num_classes=5).eval()
    resnext = on_meta(resnext_imagenet, depth=50, cardinality=1, width=64, num_classes=5).to_empty(device="cpu")
    resnext.load_state_dict({key.replace("_x.", "."): value for key, value in resnet.state_dict().items()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(resnext(x), resnet(x))


def test_block_of_form_a_matches_equation_2():
    torch.manual_seed(0)
    block = Block("a", 8, 2, 3, 8, 1, nn.Identity()).eval()
    x = torch.randn(2, 8, 5, 5)
    total = torch.zeros(2, 8, 5, 5)
    for path in block.paths:
        y = F.relu(path.bn1(F.conv2d(x, path.conv1.weight)))
        total += F.conv2d(F.relu(path.bn2(F.conv2d(y, path.conv2.weight, padding=1))), path.conv3.weight)
    torch.testing.assert_close(block(x), F.relu(x + block.bn3(total)))


def test_residual_false_removes_all_shortcuts():
    args = {"depth": 50, **SMALL}
    plain, residual = on_meta(resnext_imagenet, **args, residual=False), on_meta(resnext_imagenet, **args)
    assert not any("shortcut" in name for name in plain.state_dict())
    projections = sum(count_parameters(m) for m in residual.modules() if isinstance(m, Projection))
    assert count_parameters(residual) - count_parameters(plain) == projections > 0
    block = Block("c", 8, 2, 2, 8, 1, None).eval()
    x = torch.randn(1, 8, 4, 4)
    y = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
    torch.testing.assert_close(block(x), F.relu(block.bn3(block.conv3(y))))


# --- the three forms of Figure 3 ---------------------------------------------------------------------------


def small_cifar_network(form: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return resnext_cifar(form=form, **SMALL).eval()


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("source", FORMS)
def test_converted_weights_give_the_same_output(source, target):
    one, other = randomize_batchnorm(small_cifar_network(source)), small_cifar_network(target, seed=1)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert (one(x) - other(x)).norm() > 0.1 * one(x).norm()  # other weights before
        other.load_state_dict(convert_state_dict(one.state_dict(), target, cardinality=4))
        torch.testing.assert_close(other(x), one(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_converting_to_another_form_and_back_keeps_the_weights(form):
    state = randomize_batchnorm(small_cifar_network(form)).state_dict()
    for other in FORMS:
        back = convert_state_dict(convert_state_dict(state, other, cardinality=4), form, cardinality=4)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], value) for key, value in state.items())


def test_swapped_paths_change_the_output_in_form_b_only():
    """In form a each path has its own last convolution, so the order of paths does not matter."""
    network, x = randomize_batchnorm(small_cifar_network("c")), torch.randn(2, 3, 16, 16)
    differences = {}
    for form in ("a", "b"):
        state = convert_state_dict(network.state_dict(), form, cardinality=4)
        first = [key for key in state if key.startswith("stage1.0.paths.0.")]
        for key in first:
            second = key.replace("paths.0", "paths.1")
            state[key], state[second] = state[second], state[key]
        other = small_cifar_network(form)
        other.load_state_dict(state)
        with torch.no_grad():
            differences[form] = ((other(x) - network(x)).norm() / network(x).norm()).item()
    assert differences["a"] < 1e-5
    assert differences["b"] > 1e-2


def test_the_same_seed_gives_the_same_function_in_every_form():
    x = torch.randn(4, 3, 16, 16)
    for train in (False, True):
        outputs = [small_cifar_network(form).train(train)(x) for form in FORMS]
        torch.testing.assert_close(outputs[0], outputs[2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(outputs[1], outputs[2], atol=1e-4, rtol=1e-4)


def test_gradients_are_equal_in_every_form():
    x, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    grads = []
    for form in FORMS:
        network = small_cifar_network(form).double()
        F.cross_entropy(network(x.double()), labels).backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        grads.append(convert_state_dict(gradients, "c", cardinality=4))
    for other in grads[:2]:
        for name, grad in grads[2].items():
            torch.testing.assert_close(other[name], grad)


def test_every_form_has_the_same_counts():
    counts = [counts_of(on_meta(resnext_cifar, form=form, **SMALL), 32) for form in FORMS]
    assert counts[0] == counts[1] == counts[2]


def test_initial_weights_have_variance_2_over_the_fan_in_of_a_group():
    torch.manual_seed(0)
    network = resnext_cifar(cardinality=8, width=16)
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        fan_in = conv.in_channels // conv.groups * conv.kernel_size[0] ** 2
        tolerance = 6 * 2 * (2 / conv.weight.numel()) ** 0.5  # six standard errors of a variance
        assert conv.weight.var().item() * fan_in == pytest.approx(2, abs=tolerance)
    assert not network.fc.bias.any()


# --- invalid arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "args", "message"),
    [
        (resnext_imagenet, {"depth": 152, **SMALL}, "depth 152 is not one of Table 3: 50, 101"),
        (resnext_imagenet, {"depth": 29, **SMALL}, "depth 29 is not one of Table 3: 50, 101"),
        (resnext_imagenet, {"depth": 50, "cardinality": 0, "width": 4}, "must be integers >= 1, not 0 and 4"),
        (resnext_cifar, {"cardinality": 8, "width": -1}, "must be integers >= 1, not 8 and -1"),
        (resnext_cifar, {"cardinality": 8, "form": "d"}, r"form 'd' is not one of Figure 3: a, b, c"),
    ],
)
def test_invalid_arguments_raise_value_error(build, args, message):
    with pytest.raises(ValueError, match=message):
        build(**args)


def test_too_small_image_raises():
    with pytest.raises(
        ValueError, match="a ResNeXt for ImageNet reads images of 32 x 32 pixels or more, not 28 x 28"
    ):
        output_shapes(on_meta(resnext_imagenet, depth=50, **SMALL), (3, 28, 28))
    with pytest.raises(ValueError, match="a ResNeXt for CIFAR reads images of 4 x 4 pixels or more, not 4 x 3"):
        output_shapes(on_meta(resnext_cifar, **SMALL), (3, 4, 3))


# --- other libraries ---------------------------------------------------------------------------------------


def library_network(source: str, model: str) -> nn.Module:
    if source == "timm":
        return timm.create_model(model, pretrained=False).eval()
    return torchvision.models.get_model(model, weights=None).eval()


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_output_matches_other_libraries_with_their_weights(source):
    torch.manual_seed(0)
    entry = next(entry for entry in PUBLISHED if (entry.source, entry.model) == (source, "resnext50_32x4d"))
    theirs = randomize_batchnorm(library_network(source, entry.model))
    ours = on_meta(resnext_imagenet, **entry.args).to_empty(device="cpu")
    ours.load_state_dict(rename_state_dict(theirs.state_dict(), entry.rename))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: f"{entry.source}-{entry.model}")
def test_published_state_dict_fits(entry):
    with torch.device("meta"):
        state = library_network(entry.source, entry.model).state_dict()
    renamed = rename_state_dict(state, entry.rename)
    assert len(renamed) == len(state)
    assert state_dict_mismatch(on_meta(resnext_imagenet, **entry.args), renamed) == ""


def test_state_dict_of_another_width_does_not_fit():
    with torch.device("meta"):
        state = library_network("torchvision", "resnext50_32x4d").state_dict()
    wrong = on_meta(resnext_imagenet, depth=50, cardinality=2, width=40)
    assert "conv2.0.conv1.weight has shape 128 x 64 x 1 x 1, expected 80 x 64 x 1 x 1" in state_dict_mismatch(
        wrong, rename_state_dict(state, PUBLISHED[0].rename)
    )
