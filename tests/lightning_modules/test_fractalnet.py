"""FractalNet against sections 3 and 4 of arXiv:1605.07648: fractal, columns, drop-path."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.fractalnet import (
    Block,
    ConvLayer,
    DropPath,
    FractalNet,
    GlobalDropPath,
    LocalDropPath,
    PlainNet,
    extract_column,
    fractalnet,
    fractalnet_plain,
)
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

WIDTHS = (64, 128, 256, 512, 512)
TABLE_3 = (16, 32, 64, 128, 128)
OUTPUTS = {
    "block1": (64, 16, 16),
    "block2": (128, 8, 8),
    "block3": (256, 4, 4),
    "block4": (512, 2, 2),
    "block5": (512, 1, 1),
    "prediction": (10,),
}
NO_DROPPING = {"drop_path": 0.0, "global_share": 0.0, "dropout": ()}  # Table 1 without drop-path and dropout


def small(columns: int = 3, **args) -> FractalNet:
    """Build a FractalNet with two blocks of 3 and 4 maps, for 4 x 4 images, with random batch-norm statistics."""
    network = fractalnet(columns=columns, widths=(3, 4), num_classes=5, **NO_DROPPING | args)
    return randomize_batchnorm(network)


def randomize_batchnorm(network: nn.Module) -> nn.Module:
    for bn in network.modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.running_mean.normal_(std=0.1)
            bn.running_var.uniform_(0.5, 2)
            nn.init.normal_(bn.weight, 1, 0.2)
            nn.init.normal_(bn.bias, 0, 0.2)
    return network


def by_hand(columns: int, widths: tuple[int, ...], classes: int) -> int:
    """Count parameters: 2^C - 1 convolutions per block, C of which read its input, batch norm, the last layer."""
    total, channels = 0, 3
    for width in widths:
        inner = 2**columns - 1 - columns
        total += 9 * width * (columns * channels + inner * width) + 2 * width * (columns + inner)
        channels = width
    return total + channels * classes + classes


# --- structure ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "count"), [(10, 33_724_618), (100, 33_770_788)])
def test_parameters_of_the_net_of_20_layers(classes, count):
    assert by_hand(3, WIDTHS, classes) == count
    assert count_parameters(on_meta(fractalnet, num_classes=classes)) == count


@pytest.mark.parametrize(("columns", "millions"), [(1, 0.3), (2, 0.8), (3, 2.1), (4, 4.8), (5, 10.2), (6, 21.1)])
def test_parameters_equal_table_3(columns, millions):
    network = on_meta(fractalnet, columns=columns, widths=TABLE_3, num_classes=100)
    assert count_parameters(network) == by_hand(columns, TABLE_3, 100)
    assert count_parameters(network) / 1e6 == pytest.approx(millions, abs=0.05)


def test_outputs_equal_the_table():
    shapes = output_shapes(on_meta(fractalnet), (3, 32, 32))
    assert {name: shapes[name] for name in OUTPUTS} == OUTPUTS


@pytest.mark.parametrize(("columns", "depth"), [(1, 5), (3, 20), (4, 40), (6, 160)])
def test_the_longest_path_has_b_times_2_to_the_c_minus_1_convolutions(columns, depth, monkeypatch):
    """Measured by a forward pass in which a layer adds one and a join takes the maximum."""
    network = on_meta(fractalnet, columns=columns, widths=(1,) * 5)
    monkeypatch.setattr(ConvLayer, "forward", lambda self, x: x + 1)
    monkeypatch.setattr("lightning_modules.fractalnet.Join.forward", lambda self, *maps: torch.stack(maps).amax(0))
    length = torch.zeros(1, 1, 32, 32)
    for block in network.blocks():
        length = block(length, DropPath())
    assert length.item() == depth == 5 * 2 ** (columns - 1)
    assert network.depth == depth
    assert network.column_depths == tuple(5 * 2**i for i in range(columns))


def test_children_have_the_names_of_the_table():
    names = ["block1", "block2", "block3", "block4", "block5", "prediction"]
    assert [name for name, _ in on_meta(fractalnet).named_children()] == names
    plain = on_meta(fractalnet_plain, depth=10)
    assert [name for name, _ in plain.named_children()] == names
    assert [name for name, _ in plain.block1.named_children()] == ["conv1", "conv2", "pool"]


def reference(network: FractalNet, x: Tensor) -> Tensor:
    """Reference implementation: compute the net row by row, as in Figure 1.

    Column c of C (1 is the shallowest) has a convolution that ends in every 2^(C-c)-th of a block's 2^(C-1) rows.
    All columns with a convolution that ends in a row are joined there.
    """
    for block in network.blocks():
        columns = block.columns
        layers = [iter(block.fractal.column(c)) for c in range(columns)]
        current = [x] * columns
        rows = 2 ** (columns - 1)
        for row in range(1, rows + 1):
            ends = [c for c in range(columns) if row % 2 ** (columns - 1 - c) == 0]
            for c in ends:
                layer = next(layers[c])
                y = F.conv2d(current[c], layer.conv.weight, padding=1)
                bn = layer.bn
                y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)
                current[c] = F.max_pool2d(y.relu(), 2) if row == rows else y.relu()
            mean = torch.stack([current[c] for c in ends]).mean(0)
            for c in ends:
                current[c] = mean
        assert all(next(rest, None) is None for rest in layers)
        x = current[0]
    return network.prediction(x.flatten(1))


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5])
def test_scores_equal_the_reference_row_by_row(columns):
    torch.manual_seed(columns)
    network = small(columns).eval()
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(network(x), reference(network, x), atol=1e-5, rtol=1e-5)


def test_reference_detects_pooling_after_the_join(monkeypatch):
    torch.manual_seed(0)
    network = small().eval()
    x = torch.randn(3, 3, 4, 4)
    monkeypatch.setattr(
        Block,
        "forward",
        lambda self, z, paths: self.pool(self.join(*self.fractal.column_outputs(z, [True] * 3, paths))),
    )
    assert not torch.allclose(network(x), reference(network, x), atol=1e-3)


def test_expansion_rule():
    """f_3(z) = f_2(f_2(z)) join conv(z), with f_2(z) = conv(conv(z)) join conv(z)."""
    torch.manual_seed(0)
    fractal = small().eval().block1.fractal
    f, s = fractal.first, fractal.second
    z = torch.randn(2, 3, 4, 4)
    middle = (f.conv(z) + f.second.conv(f.first.conv(z))) / 2
    maps = fractal.column_outputs(z, [True] * 3, DropPath())
    for ours, expected in zip(
        maps, [fractal.conv(z), s.conv(middle), s.second.conv(s.first.conv(middle))], strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_no_path_passes_its_input_through_unchanged():
    """If all layers return zeros, the output does not depend on the input."""
    network = small().eval()
    x = torch.randn(2, 3, 4, 4)
    for layer in network.modules():
        if isinstance(layer, ConvLayer):
            nn.init.zeros_(layer.bn.weight)
            nn.init.zeros_(layer.bn.bias)
    assert torch.equal(network(x), network.prediction.bias.expand(2, 5))


def test_initial_weights_are_uniform_with_variance_1_over_fan_in_and_biases_zero():
    torch.manual_seed(0)
    network = fractalnet(widths=TABLE_3)
    scaled = torch.cat(
        [m.weight.flatten() * m.weight[0].numel() ** 0.5 for m in network.modules() if has_weights(m)]
    )
    assert scaled.var().item() == pytest.approx(1, abs=0.01)
    assert scaled.abs().max().item() <= math.sqrt(3) + 1e-6
    # The kurtosis of a uniform distribution; a normal one has 3.
    assert ((scaled / scaled.std()) ** 4).mean().item() == pytest.approx(1.8, abs=0.02)
    assert not network.prediction.bias.any()


def has_weights(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def test_dropout_is_one_rate_for_each_block():
    network = on_meta(fractalnet)
    for block, rate in zip(network.blocks(), (0, 0.1, 0.2, 0.3, 0.4), strict=True):
        assert [m.p for m in block.modules() if isinstance(m, nn.Dropout)] == [rate] * 7


# --- single columns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3, 4])
def test_extracted_column_gives_the_scores_of_the_net_with_all_others_dropped(columns):
    torch.manual_seed(0)
    network = small(columns).eval()
    x = torch.randn(3, 3, 4, 4)
    for index in range(columns):
        network.draw_drop_path = lambda depth=columns - 1 - index: GlobalDropPath(depth)
        alone = extract_column(network, index)
        assert alone.depth == network.column_depths[index] == 2 * 2**index
        assert torch.equal(alone(x), network(x))


def test_deepest_column_is_a_copy_with_the_layers_of_a_plain_net():
    network = small().eval()
    deepest = extract_column(network)
    assert not deepest.training
    assert deepest.depth == 8
    plain = fractalnet_plain(depth=8, widths=(3, 4), num_classes=5).eval()
    plain.load_state_dict(deepest.state_dict())  # the same names and shapes
    x = torch.randn(3, 3, 4, 4)
    assert torch.equal(plain(x), deepest(x))
    before = deepest(x)
    nn.init.zeros_(network.block1.fractal.second.second.conv.conv.weight)  # last convolution of the deepest column
    assert torch.equal(deepest(x), before)


def test_column_out_of_range_raises():
    with pytest.raises(ValueError, match="column must be 0 to 2, or -1 for the deepest, not 3"):
        extract_column(small(), 3)


@pytest.mark.parametrize(("depth", "layers"), [(5, 1), (10, 2), (20, 4), (40, 8)])
def test_parameters_of_the_plain_nets_of_table_4(depth, layers):
    network = on_meta(fractalnet_plain, depth=depth, widths=TABLE_3, num_classes=100)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == network.depth == depth
    assert [m.out_channels for m in convolutions] == [width for width in TABLE_3 for _ in range(layers)]
    total, channels = 128 * 100 + 100, 3
    for width in TABLE_3:
        total += 9 * width * (channels + (layers - 1) * width) + 2 * width * layers
        channels = width
    assert count_parameters(network) == total


def test_fractalnet_of_one_column_equals_the_plain_net():
    torch.manual_seed(0)
    network = small(columns=1).eval()
    plain = fractalnet_plain(depth=2, widths=(3, 4), num_classes=5).eval()
    plain.load_state_dict(extract_column(network).state_dict())
    x = torch.randn(3, 3, 4, 4)
    assert torch.equal(plain(x), network(x))


# --- drop-path ---------------------------------------------------------------------------------------------


def test_local_drop_path_drops_at_its_rate_and_never_all():
    torch.manual_seed(0)
    n, rate = 20_000, 0.15
    counts = Counter(tuple(LocalDropPath(rate).keep_mask(3)) for _ in range(n))
    assert (False, False, False) not in counts
    for kept in ((True, True, True), (False, True, True), (True, False, True), (True, False, False)):
        dropped = kept.count(False)
        expected = rate**dropped * (1 - rate) ** (3 - dropped)
        if dropped == 2:
            expected += rate**3 / 3  # if all are dropped, each is kept equally often
        assert abs(counts[kept] / n - expected) < 5 * math.sqrt(expected / n)


def test_local_drop_path_keeps_one_input_drawn_uniformly():
    torch.manual_seed(0)
    counts = Counter(tuple(LocalDropPath(0.9999).keep_mask(2)) for _ in range(4000))
    assert set(counts) <= {(True, False), (False, True), (True, True)}
    assert abs(counts[True, False] - 2000) < 5 * math.sqrt(1000)


def test_join_of_one_input_keeps_it():
    assert LocalDropPath(0.99).keep_mask(1) == [True]


class JoinInputs:
    """Record the number of inputs of each join of a net, by the name of the join."""

    def __init__(self, network: FractalNet) -> None:
        self.counts: dict[str, int] = {}
        for name, module in network.named_modules():
            if name.endswith("join"):
                module.register_forward_hook(self._watch(name))

    def _watch(self, name: str):
        return lambda _module, inputs, _output: self.counts.update({name: len(inputs)})


def computed_layers(network: FractalNet, x: Tensor) -> set[str]:
    """Return the names of the conv layers computed in one pass."""
    computed: set[str] = set()
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, ConvLayer)]
    hooks = [layer.register_forward_hook(lambda *_, name=name: computed.add(name)) for name, layer in layers]
    network(x)
    for hook in hooks:
        hook.remove()
    return computed


def test_local_drop_path_keeps_an_input_of_every_join():
    torch.manual_seed(0)
    network = small(columns=4, drop_path=0.15)
    inputs, x = JoinInputs(network), torch.randn(2, 3, 4, 4)
    sizes: Counter[int] = Counter()
    for _ in range(200):
        inputs.counts.clear()
        assert network(x).shape == (2, 5)
        assert all(1 <= count <= 4 for count in inputs.counts.values())
        sizes[inputs.counts["block1.join"]] += 1
    assert set(sizes) <= {1, 2, 3, 4}
    assert sizes[4] / 200 == pytest.approx(0.85**4, abs=0.18)  # five standard errors
    assert sizes[3] / 200 == pytest.approx(4 * 0.15 * 0.85**3, abs=0.18)


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_global_drop_path_keeps_one_column_in_all_blocks(columns):
    torch.manual_seed(0)
    network = small(columns, global_share=1.0)
    names = {id(module): name for name, module in network.named_modules()}
    every = [
        {names[id(layer)] for block in network.blocks() for layer in block.fractal.column(c)}
        for c in range(columns)
    ]
    inputs, x = JoinInputs(network), torch.randn(2, 3, 4, 4)
    counts = Counter(every.index(computed_layers(network, x)) for _ in range(120))
    assert set(inputs.counts.values()) == {1}
    for c in range(columns):  # columns are drawn uniformly
        assert abs(counts[c] - 120 / columns) < 5 * math.sqrt(120 / columns)


def test_half_of_the_mini_batches_are_global_and_half_local():
    torch.manual_seed(0)
    network = fractalnet(widths=(3, 4), dropout=())
    draws = [network.draw_drop_path() for _ in range(2000)]
    local = [paths for paths in draws if isinstance(paths, LocalDropPath)]
    assert abs(len(local) - 1000) < 5 * math.sqrt(500)
    assert {paths.rate for paths in local} == {0.15}
    assert all(isinstance(paths, GlobalDropPath) for paths in draws if paths not in local)


def test_join_is_the_mean_of_the_kept_inputs():
    torch.manual_seed(0)
    block = small().eval().block1
    x = torch.randn(2, 3, 4, 4)
    every = [block.pool(y) for y in block.fractal.column_outputs(x, [True] * 3, DropPath())]

    class Two(DropPath):
        def keep_mask(self, columns):
            return [True, False, True] if columns == 3 else [True] * columns

    torch.testing.assert_close(block(x, Two()), (every[0] + every[2]) / 2)
    torch.testing.assert_close(block(x, DropPath()), (every[0] + every[1] + every[2]) / 3)


def test_dropping_equal_inputs_does_not_change_the_join():
    """Outputs are not rescaled: with equal inputs, dropping does not change the mean."""
    block = Block(3, 2, 2, 0.0)
    block.fractal.column_outputs = lambda x, kept, paths: [x for keep in kept if keep]
    x = torch.randn(2, 2, 4, 4)
    for _ in range(20):
        torch.testing.assert_close(block(x, LocalDropPath(0.5)), block.pool(x))


def test_dropped_paths_are_not_computed_and_get_gradients_of_zero():
    torch.manual_seed(0)
    network = small()
    network.draw_drop_path = lambda: GlobalDropPath(2)  # the shallowest of three
    x = torch.randn(4, 3, 4, 4)
    assert computed_layers(network, x) == {"block1.fractal.conv", "block2.fractal.conv"}
    F.cross_entropy(network(x), torch.arange(4)).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.any()) == name.startswith(
            ("block1.fractal.conv.", "block2.fractal.conv.", "prediction")
        )


def test_momentum_still_changes_a_dropped_path():
    """As in Caffe, where its gradient is zero. PyTorch's SGD skips parameters without a gradient."""
    torch.manual_seed(0)
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    x, deep = torch.randn(4, 3, 4, 4), network.block1.fractal.first.conv.conv.weight
    moves = []
    for paths in (DropPath, lambda: GlobalDropPath(2)):
        network.draw_drop_path = paths
        optimizer.zero_grad()
        F.cross_entropy(network(x), torch.arange(4)).backward()
        before = deep.detach().clone()
        optimizer.step()
        moves.append(deep.detach() - before)
    assert moves[0].any()
    torch.testing.assert_close(moves[1], 0.9 * moves[0], atol=1e-7, rtol=1e-3)


def test_seed_determines_the_dropped_paths():
    network, x = small(drop_path=0.5, global_share=0.5), torch.randn(2, 3, 4, 4)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([computed_layers(network, x) for _ in range(10)])
    assert runs[0] == runs[1] != runs[2]


def test_evaluation_uses_all_paths():
    torch.manual_seed(0)
    network = small(drop_path=0.9, global_share=0.5, dropout=(0.4, 0.4)).eval()
    x = torch.randn(2, 3, 4, 4)
    every = {name for name, module in network.named_modules() if isinstance(module, ConvLayer)}
    assert computed_layers(network, x) == every
    assert len(every) == 14
    torch.testing.assert_close(network(x), reference(network, x), atol=1e-5, rtol=1e-5)


def test_without_drop_path_every_parameter_gets_a_gradient():
    network = small()
    F.cross_entropy(network(torch.randn(8, 3, 4, 4)), torch.arange(8) % 5).backward()
    assert all(p.grad.any() for p in network.parameters())


def test_net_and_its_deepest_column_overfit_one_batch_with_drop_path():
    torch.manual_seed(0)
    network = fractalnet(columns=3, widths=(16, 16), dropout=(), num_classes=5)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    x, y = torch.randn(10, 3, 4, 4), torch.arange(10) % 5
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    for net in (network, extract_column(network)):
        assert (net(x).argmax(1) == y).all()


# --- image sizes and invalid arguments ---------------------------------------------------------------------


@pytest.mark.parametrize("build", [fractalnet, fractalnet_plain])
def test_other_image_sizes_raise(build):
    with pytest.raises(ValueError, match=rf"{build.__name__} reads images of 32 x 32 pixels, not 64 x 64"):
        on_meta(build)(torch.zeros(1, 3, 64, 64, device="meta"))


@pytest.mark.parametrize("plain", [False, True])
def test_dense_is_the_mean_over_places(plain):
    torch.manual_seed(0)
    network = randomize_batchnorm(
        fractalnet_plain(depth=4, widths=(3, 4), num_classes=5) if plain else small()
    ).eval()
    own, larger = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 13)
    maps = []
    network.block2.register_forward_hook(lambda *args: maps.append(args[2]))
    with torch.no_grad():
        torch.testing.assert_close(network.dense(own), network(own), atol=1e-6, rtol=1e-5)
        actual = network.dense(larger)
        assert maps[-1].shape == (2, 4, 2, 3)
        at_each = torch.stack([network.prediction(maps[-1][:, :, i, j]) for i in range(2) for j in range(3)])
        torch.testing.assert_close(actual, at_each.mean(0), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=r"fractalnet\w*, applied densely, reads images of 4 x 4 pixels or more"):
        network.dense(torch.zeros(1, 3, 3, 8))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"columns": 0}, "fractalnet needs at least one column and one block, not 0 and 5"),
        ({"widths": []}, "fractalnet needs at least one column and one block, not 3 and 0"),
        ({"widths": [8, 8]}, "dropout must have one rate for each of 2 blocks, or none, not 5 rates"),
        ({"drop_path": 1.0}, r"drop_path 1.0 must be in \[0, 1\)"),
        ({"global_share": -0.1}, r"global_share -0.1 in \[0, 1\]"),
    ],
)
def test_invalid_arguments_name_the_valid_values(args, message):
    with pytest.raises(ValueError, match=message):
        fractalnet(**args)


@pytest.mark.parametrize(
    ("depth", "nearest"), [(12, "10 and 15"), (3, "5 and 10"), (0, "5 and 10"), (-5, "5 and 10")]
)
def test_depth_that_is_not_a_multiple_of_the_blocks_names_the_nearest(depth, nearest):
    with pytest.raises(
        ValueError, match=rf"depth {depth} is not a multiple of 5, .* the nearest valid depths are {nearest}"
    ):
        fractalnet_plain(depth=depth)


def test_plain_net_checks_its_rates_and_blocks():
    with pytest.raises(ValueError, match="dropout must have one rate for each of 5 blocks"):
        fractalnet_plain(dropout=[0.1, 0.2])
    with pytest.raises(ValueError, match="fractalnet_plain needs at least one block"):
        fractalnet_plain(widths=[])


def test_extracted_column_is_a_plain_net():
    assert isinstance(extract_column(small()), PlainNet)
