"""Recipes and claims on ImageNet against the code and the tables that their papers refer to."""

import math
from fractions import Fraction

import pytest
import torch

from lightning_modules.networks import build
from pipeline.declare.claims import GainClaim, MetricClaim, OrderingClaim
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.derive.quantise import compressible_layers, layer_name, layer_settings
from pipeline.plan.declaration import declaration_hashes

IMAGES = 1_281_167
LOADED = {name: load_experiment(name) for name in experiment_names()}
PHOTOGRAPHS = [name for name, declared in LOADED.items() if declared.scales and declared.data.crop]

# fb.resnet.torch: datasets/transforms.lua and datasets/imagenet.lua, train.lua, opts.lua.
TORCH = ("wide_resnet", "resnext", "stochastic_depth", "densenet")
TORCH_SIDES = (Fraction(3, 4), Fraction(4, 3))  # of the factor that multiplies one side and divides the other
TORCH_JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "lighting": 0.1}
TORCH_VARIANTS = [
    *((f"{paper}/imagenet", variant) for paper in TORCH for variant in LOADED[f"{paper}/imagenet"].variants),
    ("preact_resnet/imagenet", "preact-resnet-200-aspect"),
]

# arXiv:1602.07360, Table 1: parameters after pruning.
PRUNED = {
    "conv1": 14_208,
    "fire2": 5_746,
    "fire3": 6_258,
    "fire4": 20_646,
    "fire5": 24_742,
    "fire6": 44_700,
    "fire7": 46_236,
    "fire8": 77_581,
    "fire9": 77_581,
    "conv10": 103_400,
}


@pytest.mark.parametrize(("name", "variant"), TORCH_VARIANTS)
def test_images_are_cropped_and_coloured_as_in_fb_resnet_torch(name, variant):
    data = LOADED[name].published(variant).data
    low, high = (float(side**2) for side in TORCH_SIDES)  # of width / height
    assert data.crop.area == (0.08, 1.0)
    assert data.crop.aspect == pytest.approx((low, high), rel=1e-12)
    assert data.crop.interpolation == "bicubic"
    assert (data.augment, data.jitter.model_dump()) == (("flip",), TORCH_JITTER)
    assert all(protocol.endswith("-bicubic") for protocol in data.test)


@pytest.mark.parametrize(("name", "variant"), TORCH_VARIANTS)
def test_the_rate_falls_every_30_epochs_as_in_fb_resnet_torch(name, variant):
    train = LOADED[name].published(variant).train
    assert (train.optimizer.momentum, train.optimizer.nesterov, train.optimizer.weight_decay) == (0.9, True, 1e-4)
    if train.start:  # the last 30 of 120 epochs
        assert (train.lr, train.lr_drops, round(train.steps * train.batch_size / IMAGES)) == (1e-4, None, 30)
        return
    epochs = math.ceil(train.steps * train.batch_size / IMAGES - 1e-3)
    assert train.lr == 0.1
    assert train.lr_drops.factor == 0.1
    assert train.lr_drops.at == tuple(
        round(epoch * IMAGES / train.batch_size) for epoch in (30, 60, 90) if epoch < epochs
    )


def test_densenet_161_has_the_length_of_the_earlier_version():
    train = LOADED["densenet/imagenet"].published("densenet-161").train
    assert (train.batch_size, train.steps) == (128, round(100 * IMAGES / 128))


@pytest.mark.parametrize(
    ("first", "second", "variant"),
    [
        ("squeezenet/imagenet", "squeezenet/compression", "squeezenet"),
        ("squeezenet/imagenet", "squeezenet/design_space", "squeezenet"),
        ("squeezenet/imagenet", "deep_compression/imagenet", "alexnet"),
    ],
)
def test_a_network_of_two_experiments_is_trained_once(first, second, variant):
    hashes = [declaration_hashes(LOADED[name].recipe(variant, "paper"), [0, 1, 2]) for name in (first, second)]
    assert hashes[0] == hashes[1]


def test_the_compressed_vgg_16_is_that_of_vgg():
    here = LOADED["deep_compression/imagenet"].published("vgg-16")
    there = LOADED["vgg/imagenet"].published("vgg-16-jitter")
    changes = {"test": there.data.test}
    assert here.data.model_copy(update=changes) == there.data
    start = there.train.start.model_copy(update={"experiment": "vgg/imagenet"})
    assert here.train == there.train.model_copy(update={"start": start})
    assert here.model == there.model


def kept_parameters(name, derived, changes=None):
    """Layer -> its parameters after pruning, where a part of one counts as one; and the number of all."""
    spec = LOADED[name].derived[derived]
    spec = spec.model_copy(update={"density": spec.density | (changes or {})})
    model = LOADED[name].variants[spec.of].model
    with torch.device("meta"):
        network = build(model.name, model.args, num_classes=1000, in_channels=3)
    settings = layer_settings(spec, compressible_layers(network))
    kept, weights = {}, 0
    for parameter, value in network.named_parameters():
        density = Fraction(str(settings[parameter].density)) if parameter in settings else 1
        layer = layer_name(parameter).partition(".")[0]
        kept[layer] = kept.get(layer, 0) + math.ceil(density * value.numel())
        weights += value.numel()
    return kept, weights


@pytest.mark.parametrize("derived", ["squeezenet-8-bit", "squeezenet-6-bit"])
def test_densities_of_squeezenet_leave_the_printed_parameters(derived):
    kept, _ = kept_parameters("squeezenet/compression", derived)
    assert kept == PRUNED
    assert sum(kept.values()) == 421_098  # Table 1


def test_another_density_is_noticed():
    kept, _ = kept_parameters("squeezenet/compression", "squeezenet-6-bit", {"fire8.expand3x3": 0.33})
    assert [layer for layer in PRUNED if kept[layer] != PRUNED[layer]] == ["fire8"]


@pytest.mark.parametrize(
    ("derived", "millions", "times"),  # arXiv:1506.02626, abstract
    [("alexnet-compressed", 6.7, 9), ("vgg-16-compressed", 10.3, 13)],
)
def test_densities_of_deep_compression_leave_about_the_printed_parameters(derived, millions, times):
    """The densities are printed as whole percents, which is half a percent of a layer."""
    kept, weights = kept_parameters("deep_compression/imagenet", derived)
    assert sum(kept.values()) / 1e6 == pytest.approx(millions, rel=0.03)
    assert round(weights / sum(kept.values())) == times


@pytest.mark.parametrize("name", ["squeezenet/compression", "deep_compression/imagenet"])
def test_the_stand_in_does_not_judge_what_a_compression_loses(name):
    """A network that has learned nothing cannot get worse: the claims' protocol is not used there."""
    declared = LOADED[name]
    claims = [claim for claim in declared.claims if isinstance(claim, OrderingClaim)]
    assert claims
    for claim in claims:
        for side in (claim.lhs, claim.rhs):
            assert claim.metric.split("/")[1] in declared.protocols(side, "paper")
            assert claim.metric.split("/")[1] not in declared.protocols(side, "stand-in")


# --- printed sizes and directions agree with the printed errors ----------------------------------------------


def printed_error(declared, side, metric):
    """The error that the paper prints for a variant, or None. A short name means the first protocol."""
    names = {metric}
    if metric.count("/") == 1 and (protocols := declared.protocols(side, "paper")):
        names.add(metric.replace("/", f"/{protocols[0]}/"))
    claims = [claim for claim in declared.claims if isinstance(claim, MetricClaim) and claim.of == side]
    return next((claim.claimed for claim in claims if claim.metric in names), None)


def both_errors(declared, claim):
    """The printed errors of the two sides of a comparison, None where one is not printed."""
    sides = ((claim.lhs, claim.metric), (claim.rhs, claim.rhs_metric or claim.metric))
    return [printed_error(declared, side, metric) for side, metric in sides]


def compared(kind):
    """The comparisons of a kind for which the paper prints both errors."""
    return [
        pytest.param(*both_errors(LOADED[name], claim), claim, id=f"{name}:{claim.id}")
        for name in PHOTOGRAPHS
        for claim in LOADED[name].claims
        if isinstance(claim, kind) and None not in both_errors(LOADED[name], claim)
    ]


@pytest.mark.parametrize(("lhs", "rhs", "claim"), compared(GainClaim))
def test_a_printed_gain_is_the_difference_of_the_printed_errors(lhs, rhs, claim):
    assert claim.claimed == pytest.approx(rhs - lhs, abs=0.051)


def holds(lhs, op, rhs, margin):
    """Does a comparison hold for these errors?"""
    return {
        "<": lhs < rhs - margin,
        ">": lhs > rhs + margin,
        "<=": lhs <= rhs + margin,
        "~": abs(lhs - rhs) <= margin,
    }[op]


@pytest.mark.parametrize(("lhs", "rhs", "claim"), compared(OrderingClaim))
def test_an_ordering_has_the_direction_of_the_printed_errors(lhs, rhs, claim):
    assert holds(lhs, claim.op, rhs, claim.margin), claim.says


@pytest.mark.parametrize(
    ("lhs", "op", "rhs", "margin"),
    [
        (2.0, "<", 1.0, 0.0),
        (1.0, ">", 2.0, 0.0),
        (1.0, "<", 1.5, 1.0),
        (2.7, "<=", 2.0, 0.6),
        (1.0, "~", 2.0, 0.5),
    ],
)
def test_an_ordering_of_the_wrong_direction_is_noticed(lhs, op, rhs, margin):
    assert not holds(lhs, op, rhs, margin)
