"""What arithmetic says of a network, against arithmetic done here from the paper's table."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.layers import PadShortcut
from lightning_modules.resnet import resnet_cifar
from pipeline.analyse.measure import measure_claim, published_image_shape
from pipeline.analyse.network import NetworkAnalysis
from pipeline.common.errors import UserError
from pipeline.declare.load import load_experiment
from pipeline.declare.recipe import LrDrops

# arXiv:1512.03385, Table 6 prints 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4 million; exact from section 4.2:
# convolutions without bias, batch-norm's scale and shift, fc with bias.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


@pytest.fixture(scope="module")
def depth():
    return load_experiment("resnet/cifar10_depth")


@pytest.fixture(scope="module")
def small():
    return NetworkAnalysis(resnet_cifar(depth=20), (3, 32, 32))


@pytest.mark.parametrize(("layers", "count"), PARAMETERS.items())
def test_parameters(depth, layers, count):
    assert measure_claim("model/parameters", depth, f"resnet-{layers}") == count


@pytest.mark.parametrize("layers", [20, 56])
def test_plain_nets_have_the_same(depth, layers):
    assert measure_claim("model/parameters", depth, f"plain-{layers}") == PARAMETERS[layers]


def multiply_adds_by_hand(layers):
    """Section 4.2's table: inputs x outputs x 9 for every place of the output; subsampling first in a stack."""
    n = (layers - 2) // 6
    total = 3 * 16 * 9 * 32 * 32
    channels = 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        total += channels * width * 9 * side * side + (2 * n - 1) * width * width * 9 * side * side
        channels = width
    return total + 64 * 10


@pytest.mark.parametrize("layers", [20, 56, 110])
def test_multiply_adds(depth, layers):
    assert measure_claim("model/multiply_adds", depth, f"resnet-{layers}") == multiply_adds_by_hand(layers)


def test_multiply_adds_of_resnet_20_are_40_million():
    assert multiply_adds_by_hand(20) == 442_368 + 14_155_776 + 2 * (1_179_648 + 11_796_480) + 640 == 40_551_040


@pytest.mark.parametrize("layers", [20, 56, 110])
def test_depth_is_6n_plus_2(depth, layers):
    assert measure_claim("model/depth", depth, f"resnet-{layers}") == layers


def test_projection_shortcuts_are_no_depth():
    assert NetworkAnalysis(resnet_cifar(depth=20, shortcut="C"), (3, 32, 32)).measure("depth") == 20


def test_every_convolution_is_batch_normalised(small):
    assert small.measure("batchnorms_per_convolution") == 1
    assert small.measure("count/Conv2d") == 19
    assert small.measure("count/Linear") == 1
    assert small.measure("count/Dropout") == 0


def test_init_gain_is_he_initialisations_2(depth):
    # the variance of n normal draws has a relative standard error of sqrt(2 / n), n the convolutions' weights
    weights = PARAMETERS[56] - 650 - 2 * (16 * 19 + 32 * 18 + 64 * 18)
    assert measure_claim("model/init_gain", depth, "resnet-56") == pytest.approx(
        2, abs=4 * 2 * (2 / weights) ** 0.5
    )


def test_init_gain_sees_another_initialisation():
    network = resnet_cifar(depth=20)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    assert NetworkAnalysis(network, (3, 32, 32)).measure("init_gain") == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("conv1", [16, 32, 32]),
        ("map32", [16, 32, 32]),
        ("map16", [32, 16, 16]),
        ("map16.0", [32, 16, 16]),
        ("map8", [64, 8, 8]),
        ("fc", [10]),
    ],
)
def test_layer_outputs(small, layer, shape):
    assert small.measure(f"layer/{layer}/output") == shape


def test_layer_counts(small):
    assert small.measure("layer/conv1/parameters") == 3 * 16 * 9
    assert small.measure("layer/map32/convolutions") == 6
    assert small.measure("layer/map32.0/convolutions") == 2
    assert small.measure("layer/fc/connections") == 650
    assert small.measure("layer/conv1/connections") == 3 * 16 * 9 * 1024
    assert small.measure("layer/pool/connections") == 0


def test_connections_are_multiply_adds_and_the_biases(small):
    assert small.measure("connections") == multiply_adds_by_hand(20) + 10


def test_recipe_settings(depth):
    assert measure_claim("recipe/train.lr_drops.at", depth, "resnet-20") == [32000, 48000]
    assert measure_claim("recipe/train.warmup.lr", depth, "resnet-110") == 0.01
    assert measure_claim("recipe/train.warmup", depth, "resnet-20") is None


def test_measuring_draws_nothing_from_the_callers_random_numbers(declare):
    declared = declare("depth: 20}}", "depth: 26}}")  # a network that no test has measured yet
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = measure_claim("model/init_gain", declared, "plain-20")
    assert torch.equal(torch.rand(3), expected)
    assert measure_claim("model/init_gain", declared, "plain-20") == first


# --- fields, paths, sums: against a small network by hand -------------------------------------------------


class Branches(nn.Module):
    """Stem 5x5/2, pool 3x3/2, then a 3x3 beside a 1x1 and a dilated 3x3, summed and joined; global mean; fc."""

    side, name, rates = 32, "branches", (1, 2)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2))
        self.every_second = PadShortcut(0, 2)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.pool(self.stem(x))  # (4, 8, 8)
        x = torch.cat([self.left(x) + x, self.deep(x)], dim=1)
        return self.fc(self.mean(self.last(self.every_second(x))).flatten(1))


@pytest.fixture(scope="module")
def branches():
    with torch.device("meta"):
        network = Branches()
    return NetworkAnalysis(network, (3, 32, 32), Branches)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("layer/stem/receptive_field", 5),
        ("layer/pool/receptive_field", 5 + 2 * 2),
        ("layer/left/receptive_field", 9 + 2 * 4),
        ("layer/deep.0/receptive_field", 9),
        ("layer/deep/receptive_field", 9 + 4 * 4),  # dilated: as wide as 5
        ("layer/last/receptive_field", 25 + 2 * 8),  # steps of 4 became steps of 8
        ("layer/mean/receptive_field", 41 + 3 * 8),  # over all 4 x 4
        ("longest_path", 5),  # stem, two of deep, last, fc
        ("additions", 1),
        ("parameters", 304 + 144 + 20 + 148 + 584 + 90 + 6),
        ("weights", 300 + 144 + 16 + 144 + 576 + 80 + 4),
        ("layer/deep/weights", 16 + 144),
        ("multiply_adds", 300 * 256 + 144 * 64 + 16 * 64 + 144 * 64 + 576 * 16 + 80),
        ("layer/deep/multiply_adds", 160 * 64),
        ("layer/left+deep/multiply_adds", 304 * 64),
        ("layer/left+deep+fc/parameters", 144 + 168 + 90),
        ("layer/unused/multiply_adds", 0),
        ("layer/unused/activations", 0),
        ("activations", 4 * 256 + 3 * 4 * 64 + 8 * 16 + 10),
        ("memory_values", 3 * 1024 + 4 * 256 + 4 * 64 + 3 * 4 * 64 + 8 * 16 + 8 + 10),
        ("input", [3, 32, 32]),
        ("layer/stem/kernel_size", [5, 5]),
        ("layer/deep.1/dilation", [2, 2]),
        ("layer/fc/out_features", 10),
        ("own/side", 32),
        ("own/name", "branches"),
        ("own/rates", [1, 2]),
        ("count/Linear", 2),
    ],
)
def test_a_network_small_enough_to_count_by_hand(branches, metric, value):
    assert branches.measure(metric) == value


def test_each_layers_multiply_adds_are_the_whole_of_torchs_own_count(branches):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Branches().eval()(torch.zeros(1, 3, 32, 32))
    parts = sum(branches.count(name, "multiply_adds") for name, _ in branches.network.named_children())
    assert parts == branches.multiply_adds == counter.get_total_flops() / 2


@pytest.mark.parametrize(("layer", "field"), [("conv1", 3), ("map32", 15), ("map32.0", 7)])
def test_a_unit_sees_what_its_field_says(small, layer, field):
    """With positive weights throughout, the gradient of the middle unit reaches just the pixels of its field."""
    network = resnet_cifar(depth=20).eval()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    seen = {}
    network.get_submodule(layer).register_forward_hook(lambda *args: seen.update(out=args[2]))
    image = torch.ones(1, 3, 32, 32, requires_grad=True)
    network(image)
    seen["out"][0, 0, 16, 16].backward()
    touched = image.grad[0, 0].abs().sum(0).nonzero()
    assert int(touched.max() - touched.min()) + 1 == field == small.measure(f"layer/{layer}/receptive_field")


def test_initial_weights_are_those_of_the_seed(branches):
    torch.manual_seed(0)
    bound = (3 * 25) ** -0.5  # torch's own initialisation: uniform in +-1/sqrt(fan-in)
    assert branches.measure("layer/stem/init_std") == pytest.approx(bound / 3**0.5, rel=0.1)
    assert abs(branches.measure("layer/stem/init_mean")) < 0.02
    assert abs(branches.measure("layer/stem/init_bias")) < bound


def test_epochs_are_updates_of_so_many_images(declare):
    declared = declare()
    assert measure_claim("recipe/epochs", declared, "plain-20") == 163.84  # 64,000 x 128 / 50,000
    assert measure_claim("recipe/drop_epochs", declared, "plain-20") == [81.92, 122.88]
    train = declared.train.model_copy(update={"lr_drops": LrDrops(every=15625, factor=0.1)})
    every = declared.model_copy(update={"train": train})
    assert measure_claim("recipe/drop_epochs", every, "plain-20") == 40.0


def test_what_is_printed_is_read_from_the_declaration(declare):
    declared = declare("claims:", "printed: {error: {value: 14.8, where: Table 3}}\nclaims:")
    assert measure_claim("printed/error", declared, None) == 14.8


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("model/parameter", "no metric model/parameter; known: parameters, weights, multiply_adds, activations,"),
        ("model/parameters/x", "no metric model/parameters/x; known: parameters"),
        (
            "model/layer/conv9/output",
            "the network has no layer 'conv9'; its layers: conv1, bn1, map32, map16, map8, pool, fc",
        ),
        ("model/layer/output", "the network has no layer ''; its layers: conv1"),
        (
            "model/layer/conv1+fc/output",
            "'output' is of one layer; over conv1+fc only parameters, weights,",
        ),
        ("model/layer/pool/init_std", "layer 'pool' has no weights of its own"),
        ("model/layer/conv1/init_bias", "layer 'conv1' has no biases of its own"),
        ("model/layer/conv1/_parameters", "no metric '_parameters' of a layer"),
        ("model/own/conv1", "no metric 'conv1' of the network"),
        ("printed/error", "resnet/cifar10_depth: nothing printed is called 'error'; known: none"),
        (
            "model/layer/conv1/colour",
            "no metric 'colour' of a layer; known: output, parameters, weights, multiply_adds, ",
        ),
        ("recipe/train.momentum", "resnet/cifar10_depth: the recipe has no setting 'train.momentum'"),
        ("recipe/train.warmup.lr", "resnet/cifar10_depth: the recipe has no setting 'train.warmup.lr'"),
        (
            "test/top1_error_pct",
            "'test/top1_error_pct' is not exact; exact metrics start with model/, recipe/ or printed/",
        ),
    ],
)
def test_an_unknown_metric_or_layer_names_the_known_ones(depth, metric, words):
    with pytest.raises(UserError) as caught:
        measure_claim(metric, depth, "resnet-20")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
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
            "name: my-pictures,",
            "the image size of data set 'my-pictures' is not known without reading it",
        ),
    ],
)
def test_a_network_that_cannot_be_built_is_the_authors_mistake(declare, old, new, words):
    with pytest.raises(UserError) as caught:
        measure_claim("model/parameters", declare(old, new), "plain-20")
    assert words in str(caught.value)


def test_padding_decides_the_image(declare):
    padded = declare("name: cifar10,", "name: mnist, pad_to: 32,")
    assert published_image_shape(padded.recipe("plain-20", "paper")) == (1, 32, 32)
