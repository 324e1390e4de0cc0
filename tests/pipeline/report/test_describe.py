"""`repro show`: the words and the estimate of the work."""

import copy
import dataclasses
import io

import pytest
from rich.console import Console

from pipeline.analyse.measure import analysis_of
from pipeline.declare.derived import CompressionSpec, EnsembleSpec, ProtocolSpec, TransferSpec
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.declare.recipe import Crop, LrDrops
from pipeline.plan.expand import plan_runs
from pipeline.report.describe import (
    crop_text,
    derived_text,
    lr_drops_text,
    override_text,
    print_experiment,
    settings_text,
    training_multiply_adds,
    work_text,
)


def test_settings_in_words():
    assert settings_text({"depth": 20, "warmup": {"lr": 0.01, "below": 80.0}, "augment": ["flip", "distort"]}) == (
        "depth 20, warmup.lr 0.01, warmup.below 80.0, augment flip/distort"
    )
    assert settings_text({}, start="; ") == ""
    assert settings_text({"a": 1}, start="; ") == "; a 1"


def test_an_empty_list_is_said_to_be_one():
    assert settings_text({"augment": []}) == "augment none"


@pytest.mark.parametrize(
    ("crop", "said"),
    [
        (
            {"side": 224, "short": (256, 480)},  # ResNet
            "a random 224 x 224 of the picture resized to a short side of 256 to 480",
        ),
        (
            {"side": 227, "short": 256, "centre": 256, "interpolation": "bicubic"},  # AlexNet, but for the cubic
            "a random 227 x 227 of the central 256 x 256 of the picture resized to a short side of 256,"
            " by cubic interpolation",
        ),
        (
            {"side": 224, "short": 256, "centre": 256, "at": "five"},  # ZFNet
            "the middle or a corner's 224 x 224 of the central 256 x 256 of the picture resized to a short side of"
            " 256",
        ),
        (
            {"side": 224, "area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)},  # GoogLeNet
            "a random part with 8 to 100 % of the picture's area, 0.75 to 1.33 times as wide as high, resized to"
            " 224 x 224",
        ),
    ],
)
def test_crops_in_words(crop, said):
    assert crop_text(Crop(**crop)) == said


@pytest.mark.parametrize(
    ("data", "train", "said"),
    [
        ({}, {}, ""),
        ({"name": "digits"}, {"steps": 60, "batch_size": 32}, "data digits; 60 updates of 32 images"),
        ({}, {"batch_size": 1}, "batches of 1 image"),
        ({}, {"steps": 5, "lr": 0.1, "eval_every": 3, "log_every": 1}, "5 updates, lr 0.1"),
        (
            {"crop": {"side": 64, "short": [72, 96], "at": "five"}, "test": ["dense-of-72", "1-crop-64-of-72"]},
            {},
            "crops of 64 x 64, short side 72 to 96, crop.at five, tested by dense-of-72, 1-crop-64-of-72",
        ),
        ({"crop": {"short": None, "area": [0.1, 1]}}, {}, "crop.short None, crop.area 0.1/1"),
        ({"crop": None, "test": [], "train": 4500, "val": 500}, {}, "whole images, train 4500, val 500"),
    ],
)
def test_what_a_variant_or_a_scale_sets_anew(data, train, said):
    given = copy.deepcopy((data, train))
    assert override_text(data, train) == said
    assert (data, train) == given


@pytest.fixture
def shown():
    """What `repro show` says of an experiment, line by line."""

    def lines(experiment):
        out = Console(file=io.StringIO(), width=1000)
        print_experiment(experiment, [], out, lambda text, indent=0: out.print(text, markup=False, soft_wrap=True))
        return out.file.getvalue().splitlines()

    return lines


def test_photographs_are_shown_with_crop_and_protocols_and_every_scale_with_what_differs(declare, shown):
    lines = shown(
        declare(
            "data: {name: cifar10, augment: [pad4-crop, flip]}",
            "data: {name: imagenet, crop: {side: 224, short: [256, 480]}, test: [dense-of-256, dense-of-384]}",
            "data: {name: digits, augment: [pad1-crop]}",
            "data: {name: standin, crop: {side: 64, short: 72}, test: [1-crop-64-of-72]}",
            "    data: {name: noise}\n",
            "",
            "metric: test/top1_error_pct, claimed",
            "metric: test/dense-of-256/top1_error_pct, claimed",
            'metric: test/top1_error_pct, op: ">", claimed',
            'metric: test/dense-of-256/top1_error_pct, op: ">", claimed',
        )
    )
    assert "learns from a random 224 x 224 of the picture resized to a short side of 256 to 480" in lines
    assert "tested by dense-of-256 (also while training), dense-of-384" in lines
    (laptop,) = (line for line in lines if line.startswith("otherwise: data standin"))
    assert "crops of 64 x 64, short side 72, tested by 1-crop-64-of-72; 400 updates" in laptop
    assert "precision bf16, channels_last True" in laptop  # of every laptop scale, though it declares neither
    (smoke,) = (line for line in lines if line.startswith("otherwise: 12 updates"))
    assert "bf16" not in smoke
    scales = lines[lines.index("scales") :]
    assert not scales[2].startswith("otherwise")  # "paper", which differs in nothing


def test_small_images_are_shown_without_a_crop(experiment: Experiment, shown):
    assert not [line for line in shown(experiment) if line.startswith(("learns from", "tested by"))]


def test_every_experiment_of_photographs_says_how_they_are_cropped_and_judged(shown):
    with_crops = [one for one in map(load_experiment, experiment_names()) if one.data.crop and one.train]
    assert len(with_crops) >= 5  # of AlexNet, ZFNet, GoogLeNet, VGG, ResNet
    for one in with_crops:
        lines = shown(one)
        assert f"learns from {crop_text(one.data.crop)}" in lines
        assert any(line.startswith(f"tested by {one.data.test[0]} (also while training)") for line in lines)


def test_drops_in_words():
    assert (
        lr_drops_text(LrDrops(at=(5, 32000), factor=0.1))
        == "times 0.1 from update 5, times 0.1 from update 32,000"
    )
    assert (
        lr_drops_text(LrDrops(at=(5, 6), factor=(0.4, 0.5))) == "times 0.4 from update 5, times 0.5 from update 6"
    )


@pytest.mark.parametrize(
    ("experiment", "variant", "scale"),
    [
        ("resnet/cifar10_depth", "resnet-20", "paper"),
        ("resnet/cifar10_depth", "plain-56", "laptop"),
        ("lenet5/mnist", "lenet5", "paper"),
    ],
)
def test_work_is_three_passes_of_the_analysed_network_over_every_image(experiment, variant, scale):
    run = plan_runs(load_experiment(experiment), scale=scale, variants=[variant], seeds=1)[0]
    train = run.recipe.train
    assert (
        training_multiply_adds(run) == 3 * analysis_of(run.recipe).multiply_adds * train.batch_size * train.steps
    )


def test_work_of_a_scale(experiment: Experiment):
    assert work_text(experiment, "smoke", []).startswith("6 runs (2 variants x 3 seeds), 72 updates, ")


def test_work_names_hardware_once_runs_have_shown_it(experiment: Experiment, seed_records):
    records = seed_records(experiment, "plain-20", [9.0, 9.1, 9.2], scale="smoke")
    records = [dataclasses.replace(one, seconds=float(s)) for one, s in zip(records, (1, 2000, 3000), strict=True)]
    assert work_text(experiment, "smoke", records).endswith(
        "; measured: 2,000 s a run in the median of 3 on one core"
    )


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (EnsembleSpec(kind="ensemble", members={"a": 5, "b": 1}), "5 a + b averaged"),
        (
            EnsembleSpec(kind="ensemble", members={"a": 2}, test=("dense-of-256",)),
            "2 a averaged, tested by dense-of-256",
        ),
        (ProtocolSpec(kind="protocol", of="a", test=("dense-of-256",)), "a tested by dense-of-256"),
        (
            CompressionSpec(kind="compression", of="a", density=0.33, conv_bits=8, fc_bits=5),
            "a compressed: 33 % of the weights, 8 bits in convolutions and 5 in full connections",
        ),
        (TransferSpec(kind="transfer", of="a", data="b", c=0.5), "features of a for b, soft-max with C 0.5"),
    ],
)
def test_steps_in_words(step, said):
    assert derived_text(step) == said


def test_steps_are_shown_and_counted_as_work(declare, shown):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    more = "plain-20: {seeds: [0, 1, 2, 3, 4, 5], model:"
    declared = declare("scales:\n", two, "plain-20: {model:", more)
    text = shown(declared)
    assert text[text.index("steps, when their runs have ended") + 1] == "two  2 plain-20 averaged"
    assert "plain-20   plain_cifar depth 20; 6 seeds" in text
    assert work_text(declared, "smoke", []).startswith("6 runs (2 variants x 3 seeds), 72 updates, 1 step, ")
    assert work_text(declared, "paper", []).startswith(
        "16 runs (3 variants x seeds as declared), 1,024,000 updates, 3 steps"
    )
