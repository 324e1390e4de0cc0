"""ResNeXt against Tables 1, 2 and 7 and Figure 3 of arXiv:1611.05431, ResNet, and other libraries."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from looking import on_meta, output_shapes, parameters, shaken
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.layers import Projection
from lightning_modules.published.resnext import PUBLISHED
from lightning_modules.published.weights import translated, unfit
from lightning_modules.resnet_imagenet import resnet_imagenet
from lightning_modules.resnext import Block, in_form, resnext_cifar, resnext_imagenet

TABLE_2 = {1: 64, 2: 40, 4: 24, 8: 14, 32: 4}  # cardinality: width of a path in conv2
IMAGENET = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
SMALL = {"cardinality": 4, "width": 2}
FORMS = ("a", "b", "c")


def by_hand(blocks: tuple[int, ...], cardinality: int, width: int, classes: int) -> tuple[int, int, int]:
    """Weights, parameters and multiply-adds: of CIFAR's three stages or of ImageNet's four."""
    imagenet = len(blocks) == 4
    stem, side = (3 * 64 * 49, 112) if imagenet else (3 * 64 * 9, 32)
    weights, norms, products = stem, 64, stem * side**2
    channels, side = 64, 56 if imagenet else 32
    for stage, n in enumerate(blocks):
        d, out = width * 2**stage, 256 * 2**stage
        for block in range(n):
            before, side = side, side // 2 if block == 0 and stage > 0 else side
            ways = [
                (cardinality * channels * d, before),
                (cardinality * d * d * 9, side),
                (cardinality * d * out, side),
            ]
            if channels != out:
                ways.append((channels * out, side))
                norms += out
            norms += 2 * cardinality * d + out
            weights += sum(count for count, _ in ways)
            products += sum(count * pixels**2 for count, pixels in ways)
            channels = out
    fc = channels * classes
    return weights + fc, weights + fc + 2 * norms + classes, products + fc


def counted(network: nn.Module, side: int) -> tuple[int, int, int]:
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side))
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return weights, parameters(network), counter.get_total_flops() // 2


# --- the tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", IMAGENET)
def test_outputs_are_table_1s(depth):
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


def test_inner_widths_are_table_1s():
    network = on_meta(resnext_imagenet, depth=50, cardinality=32, width=4)
    for name, inner in {"conv2": 128, "conv3": 256, "conv4": 512, "conv5": 1024}.items():
        for block in getattr(network, name):
            assert (block.conv1.out_channels, block.conv2.out_channels, block.conv2.groups) == (inner, inner, 32)


def test_outputs_are_section_5_3s():
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


def test_children_read_like_the_tables():
    names = [name for name, _ in on_meta(resnext_imagenet, depth=50, **SMALL).named_children()]
    assert names == ["conv1", "bn1", "pool1", "conv2", "conv3", "conv4", "conv5", "pool", "fc"]
    for form in FORMS:
        names = [name for name, _ in on_meta(resnext_cifar, form=form, **SMALL).named_children()]
        assert names == ["conv1", "bn1", "stage1", "stage2", "stage3", "pool", "fc"]


@pytest.mark.parametrize("depth", [29, 50, 101])
def test_weighted_layers_are_the_depth(depth):
    build, args = (resnext_cifar, {}) if depth == 29 else (resnext_imagenet, {"depth": depth})
    network = on_meta(build, **args, **SMALL)
    projections = sum(isinstance(m, Projection) for m in network.modules())
    assert projections == (3 if depth == 29 else 4)  # one for each stage: the first widens 64 to 256
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) - projections == depth


@pytest.mark.parametrize(
    ("depth", "cardinality", "width"),
    [*((50, *size) for size in TABLE_2.items()), (101, 32, 4), (101, 64, 4), (101, 2, 64), (101, 1, 100)],
)
def test_counts_are_those_by_hand(depth, cardinality, width):
    network = on_meta(resnext_imagenet, depth=depth, cardinality=cardinality, width=width)
    assert counted(network, 224) == by_hand(IMAGENET[depth], cardinality, width, 1000)


def test_table_1s_counts_are_printed():
    resnet, resnext = by_hand(IMAGENET[50], 1, 64, 1000), by_hand(IMAGENET[50], 32, 4, 1000)
    assert resnet[0] == pytest.approx(25.5e6, abs=0.05e6)
    assert resnext[0] == pytest.approx(25.0e6, abs=0.05e6)
    assert resnet[2] == pytest.approx(4.1e9, abs=0.05e9)
    assert resnext[2] == pytest.approx(4.2e9, abs=0.05e9)
    assert (resnet[1], resnext[1]) == (25_557_032, 25_028_904)


@pytest.mark.parametrize(("cardinality", "millions"), [(8, 34.4), (16, 68.1)])
def test_table_7s_parameters_are_weights_in_millions(cardinality, millions):
    network = on_meta(resnext_cifar, cardinality=cardinality, width=64)
    counts = counted(network, 32)
    assert counts == by_hand((3, 3, 3), cardinality, 64, 10)
    assert counts[0] / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("cardinality", "width"), TABLE_2.items())
def test_a_block_of_conv2_has_equation_4s_weights(cardinality, width):
    block = on_meta(resnext_imagenet, depth=50, cardinality=cardinality, width=width).conv2[1]
    weights = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
    assert weights == cardinality * (256 * width + 9 * width * width + width * 256)
    assert weights == pytest.approx(70_000, rel=0.05)  # "about 70k" (section 3.4)


# --- blocks ------------------------------------------------------------------------------------------------


def test_downsampling_is_in_the_3x3_of_a_stages_first_block():
    network = on_meta(resnext_imagenet, depth=50, **SMALL)
    strided = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    stages = ("conv3", "conv4", "conv5")
    assert strided == ["conv1", *(f"{s}.0.{c}" for s in stages for c in ("conv2", "shortcut.conv"))]


def test_one_path_is_a_resnet_with_its_stride_in_the_3x3():
    torch.manual_seed(0)
    resnet = resnet_imagenet(depth=50, stride_in_3x3=True, num_classes=5).eval()
    resnext = on_meta(resnext_imagenet, depth=50, cardinality=1, width=64, num_classes=5).to_empty(device="cpu")
    resnext.load_state_dict({key.replace("_x.", "."): value for key, value in resnet.state_dict().items()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(resnext(x), resnet(x))


def test_a_block_of_form_a_is_equation_2():
    torch.manual_seed(0)
    block = Block("a", 8, 2, 3, 8, 1, nn.Identity()).eval()
    x = torch.randn(2, 8, 5, 5)
    total = torch.zeros(2, 8, 5, 5)
    for each in block.paths:
        y = F.relu(each.bn1(F.conv2d(x, each.conv1.weight)))
        total += F.conv2d(F.relu(each.bn2(F.conv2d(y, each.conv2.weight, padding=1))), each.conv3.weight)
    torch.testing.assert_close(block(x), F.relu(x + block.bn3(total)))


def test_without_shortcuts_nothing_is_added():
    args = {"depth": 50, **SMALL}
    plain, residual = on_meta(resnext_imagenet, **args, residual=False), on_meta(resnext_imagenet, **args)
    assert not any("shortcut" in name for name in plain.state_dict())
    projections = sum(parameters(m) for m in residual.modules() if isinstance(m, Projection))
    assert parameters(residual) - parameters(plain) == projections > 0
    block = Block("c", 8, 2, 2, 8, 1, None).eval()
    x = torch.randn(1, 8, 4, 4)
    y = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
    torch.testing.assert_close(block(x), F.relu(block.bn3(block.conv3(y))))


# --- the three forms of Figure 3 ---------------------------------------------------------------------------


def cifar(form: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return resnext_cifar(form=form, **SMALL).eval()


@pytest.mark.parametrize("there", FORMS)
@pytest.mark.parametrize("here", FORMS)
def test_weights_carried_from_form_to_form_give_the_same_output(here, there):
    one, other = shaken(cifar(here)), cifar(there, seed=1)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert (one(x) - other(x)).norm() > 0.1 * one(x).norm()  # different, before
        other.load_state_dict(in_form(one.state_dict(), there, cardinality=4))
        torch.testing.assert_close(other(x), one(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_the_weights_are_unchanged(form):
    state = shaken(cifar(form)).state_dict()
    for there in FORMS:
        back = in_form(in_form(state, there, cardinality=4), form, cardinality=4)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], value) for key, value in state.items())


def test_paths_exchanged_without_their_share_of_conv3_are_noticed():
    """In form b the paths' order counts; in form a, where each brings its own last convolution, it does not."""
    network, x = shaken(cifar("c")), torch.randn(2, 3, 16, 16)
    differences = {}
    for form in ("a", "b"):
        state = in_form(network.state_dict(), form, cardinality=4)
        first = [key for key in state if key.startswith("stage1.0.paths.0.")]
        for key in first:
            second = key.replace("paths.0", "paths.1")
            state[key], state[second] = state[second], state[key]
        other = cifar(form)
        other.load_state_dict(state)
        with torch.no_grad():
            differences[form] = ((other(x) - network(x)).norm() / network(x).norm()).item()
    assert differences["a"] < 1e-5
    assert differences["b"] > 1e-2


def test_the_same_seed_gives_the_same_function_in_every_form():
    x = torch.randn(4, 3, 16, 16)
    for train in (False, True):
        outputs = [cifar(form).train(train)(x) for form in FORMS]
        torch.testing.assert_close(outputs[0], outputs[2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(outputs[1], outputs[2], atol=1e-4, rtol=1e-4)


def test_gradients_are_the_same_in_every_form():
    x, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    grads = []
    for form in FORMS:
        network = cifar(form).double()
        F.cross_entropy(network(x.double()), labels).backward()
        found = {name: p.grad for name, p in network.named_parameters()}
        grads.append(in_form(found, "c", cardinality=4))
    for other in grads[:2]:
        for name, grad in grads[2].items():
            torch.testing.assert_close(other[name], grad)


def test_every_form_has_the_same_count_of_weights():
    counts = [counted(on_meta(resnext_cifar, form=form, **SMALL), 32) for form in FORMS]
    assert counts[0] == counts[1] == counts[2]


def test_weights_start_normal_with_variance_2_over_the_fan_in_of_a_group():
    torch.manual_seed(0)
    network = resnext_cifar(cardinality=8, width=16)
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        fan_in = conv.in_channels // conv.groups * conv.kernel_size[0] ** 2
        spread = 6 * 2 * (2 / conv.weight.numel()) ** 0.5  # six standard errors of a variance
        assert conv.weight.var().item() * fan_in == pytest.approx(2, abs=spread)
    assert not network.fc.bias.any()


# --- wrong arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "args", "words"),
    [
        (resnext_imagenet, {"depth": 152, **SMALL}, "depth 152 is not one of Table 3: 50, 101"),
        (resnext_imagenet, {"depth": 29, **SMALL}, "depth 29 is not one of Table 3: 50, 101"),
        (resnext_imagenet, {"depth": 50, "cardinality": 0, "width": 4}, "must be 1 or more, not 0 and 4"),
        (resnext_cifar, {"cardinality": 8, "width": -1}, "must be 1 or more, not 8 and -1"),
        (resnext_cifar, {"cardinality": 8, "form": "d"}, r"form 'd' is not one of Figure 3: a, b, c"),
    ],
)
def test_a_wrong_argument_is_told_what_would_fit(build, args, words):
    with pytest.raises(ValueError, match=words):
        build(**args)


def test_a_small_image_is_told_what_would_fit():
    with pytest.raises(
        ValueError, match="a ResNeXt for ImageNet reads images of 32 x 32 pixels or more, not 28 x 28"
    ):
        output_shapes(on_meta(resnext_imagenet, depth=50, **SMALL), (3, 28, 28))
    with pytest.raises(ValueError, match="a ResNeXt for CIFAR reads images of 4 x 4 pixels or more, not 4 x 3"):
        output_shapes(on_meta(resnext_cifar, **SMALL), (3, 4, 3))


# --- second opinion ----------------------------------------------------------------------------------------


def theirs(source: str, model: str) -> nn.Module:
    if source == "timm":
        return timm.create_model(model, pretrained=False).eval()
    return torchvision.models.get_model(model, weights=None).eval()


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_with_other_libraries_weights_the_output_is_theirs(source):
    torch.manual_seed(0)
    published = next(p for p in PUBLISHED if (p.source, p.model) == (source, "resnext50_32x4d"))
    other = shaken(theirs(source, published.model))
    ours = on_meta(resnext_imagenet, **published.args).to_empty(device="cpu")
    ours.load_state_dict(translated(other.state_dict(), published.rename))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.source}-{p.model}")
def test_every_published_size_fits(published):
    with torch.device("meta"):
        state = theirs(published.source, published.model).state_dict()
    ours = translated(state, published.rename)
    assert len(ours) == len(state)
    assert unfit(on_meta(resnext_imagenet, **published.args), ours) == ""


def test_a_wrong_width_is_seen_by_its_shapes():
    with torch.device("meta"):
        state = theirs("torchvision", "resnext50_32x4d").state_dict()
    wrong = on_meta(resnext_imagenet, depth=50, cardinality=2, width=40)
    assert "conv2.0.conv1.weight is 128 x 64 x 1 x 1 where 80 x 64 x 1 x 1 is needed" in unfit(
        wrong, translated(state, PUBLISHED[0].rename)
    )
