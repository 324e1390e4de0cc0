"""Test the text of `repro show` and the estimate of the work."""

import copy
import dataclasses
import io

import pytest
from rich.console import Console

from pipeline.analyse.measure import analysis_of
from pipeline.common.errors import UserError
from pipeline.declare.data_settings import Crop
from pipeline.declare.derived import (
    ColumnSpec,
    CompressionSpec,
    EnsembleSizesSpec,
    EnsembleSpec,
    ProtocolSpec,
    Retraining,
)
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.declare.training import LrDrops, Train
from pipeline.declare.transfer import TransferSpec
from pipeline.judge.counting import variants_of
from pipeline.plan.expand import plan_runs
from pipeline.report.derived_text import derived_text
from pipeline.report.describe import (
    ShownPart,
    execution_texts,
    print_experiment,
    training_multiply_adds,
    work_text,
)
from pipeline.report.recipe_text import (
    crop_text,
    lr_drops_text,
    override_text,
    schedule_text,
    settings_text,
    weights_texts,
)
from tests.support.elsewhere import ONLY_DERIVED, OTHER
from tests.support.ledgers import AS_GAIN


def test_settings_text():
    assert settings_text({"depth": 20, "warmup": {"lr": 0.01, "below": 80.0}, "augment": ["flip", "distort"]}) == (
        "depth 20, warmup.lr 0.01, warmup.below 80.0, augment flip/distort"
    )
    assert settings_text({}, start="; ") == ""
    assert settings_text({"a": 1}, start="; ") == "; a 1"


def test_empty_list_is_none():
    assert settings_text({"augment": []}) == "augment none"


@pytest.mark.parametrize(
    ("crop", "text"),
    [
        (
            {"side": 224, "short": (256, 480)},  # ResNet
            "random 224 x 224 crop of the image, resized to a short side of 256 to 480",
        ),
        (
            {
                "side": 227,
                "short": 256,
                "centre": 256,
                "interpolation": "bicubic",
            },  # AlexNet, but bicubic
            "random 227 x 227 crop of the central 256 x 256 of the image, resized to a short side of 256,"
            " bicubic interpolation",
        ),
        (
            {"side": 224, "short": 256, "centre": 256, "at": "five"},  # ZFNet
            "centre or corner 224 x 224 crop of the central 256 x 256 of the image, resized to a short side of"
            " 256",
        ),
        (
            {"side": 224, "area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)},  # GoogLeNet
            "random crop of 8 to 100 % of the image's area, aspect ratio 0.75 to 1.33, resized to 224 x 224",
        ),
        (
            {"side": 224, "area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3), "interpolation": "random"},
            "random crop of 8 to 100 % of the image's area, aspect ratio 0.75 to 1.33, resized to 224 x 224,"
            " random interpolation",
        ),
    ],
)
def test_crop_text(crop, text):
    assert crop_text(Crop(**crop)) == text


@pytest.mark.parametrize(
    ("data", "train", "text"),
    [
        ({}, {}, ""),
        ({"name": "digits"}, {"steps": 60, "batch_size": 32}, "data digits; 60 steps of 32 images"),
        ({}, {"batch_size": 1}, "batches of 1 image"),
        ({}, {"steps": 5, "lr": 0.1, "eval_every": 3, "log_every": 1}, "5 steps, lr 0.1"),
        (
            {"crop": {"side": 64, "short": [72, 96], "at": "five"}, "test": ["dense-of-72", "1-crop-64-of-72"]},
            {},
            "crops of 64 x 64, short side 72 to 96, crop.at five, tested with dense-of-72, 1-crop-64-of-72",
        ),
        ({"crop": {"short": None, "area": [0.1, 1]}}, {}, "crop.short None, crop.area 0.1/1"),
        ({"crop": None, "test": [], "train": 4500, "val": 500}, {}, "whole images, train 4500, val 500"),
    ],
)
def test_override_text(data, train, text):
    given = copy.deepcopy((data, train))
    assert override_text(data, train) == text
    assert (data, train) == given


@pytest.mark.parametrize("scale", [None, "stand-in"])
def test_a_derived_run_is_shown_with_the_runs_that_it_consumes(scale):
    declared = load_experiment("inception_v4/imagenet")
    part = ShownPart(declared, scale, ("v4-and-3-resnet-v2",))
    assert part.variants == ("inception-v4", "inception-resnet-v2-released")
    assert part.derived == ["v4-and-3-resnet-v2"]
    assert part.claims
    assert all("v4-and-3-resnet-v2" in variants_of(claim) for claim in part.claims)
    elsewhere = ShownPart(declared, scale, ("v3-1",))
    assert (elsewhere.variants, elsewhere.derived) == ((), ["v3-1"])
    assert elsewhere.planned("stand-in") == ("inception_v3/imagenet/inception-v3-training",)
    assert "12 runs of inception_v3/imagenet, 15 derived runs" in work_text(
        declared, "paper", [], elsewhere.planned("paper")
    )


def test_a_variant_is_shown_with_the_runs_derived_from_it_alone():
    part = ShownPart(load_experiment("inception_v4/imagenet"), None, ("inception-v4",))
    assert (part.variants, part.derived) == (("inception-v4",), ["v4-1"])
    with pytest.raises(UserError, match=r"no variant 'v4-2'; did you mean 'v4-1'\?"):
        ShownPart(part.experiment, None, ("v4-2",))


@pytest.fixture
def shown():
    """Return the lines that `repro show` prints of an experiment."""

    def lines(experiment):
        out = Console(file=io.StringIO(), width=1000)
        print_experiment(
            ShownPart(experiment), [], out, lambda text, indent=0: out.print(text, markup=False, soft_wrap=True)
        )
        return out.file.getvalue().splitlines()

    return lines


def test_crop_protocols_and_changes_of_each_scale_are_shown(declare, shown):
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
    assert "training images: random 224 x 224 crop of the image, resized to a short side of 256 to 480" in lines
    assert "tested with dense-of-256 (also during training), dense-of-384" in lines
    (laptop,) = (line for line in lines if line.startswith("changes: data standin"))
    assert "crops of 64 x 64, short side 72, tested with 1-crop-64-of-72; 400 steps" in laptop
    assert "precision bf16, channels_last True" in laptop  # default of laptop scales
    (smoke,) = (line for line in lines if line.startswith("changes: 12 steps"))
    assert "bf16" not in smoke
    scales = lines[lines.index("scales") :]
    assert not scales[2].startswith("changes")  # paper


def test_choices_and_departures_are_shown_with_their_effect(declare, shown):
    lines = shown(
        declare(
            "departures:\n",
            "choices:\n  - {what: No flips., why: The paper is silent., material: true, of: [plain-20]}\n"
            "departures:\n  - {what: Fewer steps., why: Cheaper., material: true}\n",
        )
    )
    assert lines[lines.index("choices where the source is silent") :] == [
        "choices where the source is silent",
        "Material: inside the margin, reproduced with the choice listed; outside, cannot judge.",
        "- No flips. The paper is silent. Concerns only plain-20.",
        "",
        "departures from the paper",
        "Material: inside the margin, reached; outside, cannot judge.",
        "- Fewer steps. Cheaper.",
        "Not material: no effect on verdicts.",
        "- Pixels are scaled. No scale is named.",
    ]


def test_claims_are_counted_by_category_and_show_what_they_compare(declare, shown):
    lines = shown(declare(*AS_GAIN))
    assert "claims (1 arithmetic, 1 recipe, 5 trained)" in lines
    assert "deeper: By 1 point (plain-32 - plain-20 = 1 ± 0.3; Figure 6)" in lines
    assert "ratio: By a tenth (plain-32 / plain-20 = 1.1 ± 0.1; Figure 6)" in lines
    assert "error: Plain-20 reaches 9.5 % (Figure 6)" in lines  # the sentence has the number


def test_small_images_are_shown_without_a_crop(experiment: Experiment, shown):
    assert not [line for line in shown(experiment) if line.startswith(("training images", "tested with"))]


def test_crops_and_protocols_of_every_experiment_with_crops_are_shown(shown):
    with_crops = [e for e in map(load_experiment, experiment_names()) if e.data.crop and e.train]
    assert len(with_crops) >= 5  # of AlexNet, ZFNet, GoogLeNet, VGG, ResNet
    for declared in with_crops:
        lines = shown(declared)
        assert f"training images: {crop_text(declared.data.crop)}" in lines
        tested = f"tested with {declared.data.test[0]} (also during training)"
        assert any(line.startswith(tested) for line in lines)


def test_lr_drops_text():
    assert lr_drops_text(LrDrops(at=(5, 32000), factor=0.1)) == "times 0.1 at step 5, times 0.1 at step 32,000"
    assert lr_drops_text(LrDrops(at=(5, 6), factor=(0.4, 0.5))) == "times 0.4 at step 5, times 0.5 at step 6"


@pytest.mark.parametrize(
    ("experiment", "variant", "scale"),
    [
        ("resnet/cifar10_depth", "resnet-20", "paper"),
        ("resnet/cifar10_depth", "plain-56", "laptop"),
        ("lenet5/mnist", "lenet5", "paper"),
    ],
)
def test_work_is_three_passes_per_image(experiment, variant, scale):
    run = plan_runs(load_experiment(experiment), scale=scale, variants=[variant], seeds=1)[0]
    train = run.recipe.train
    assert (
        training_multiply_adds(run) == 3 * analysis_of(run.recipe).multiply_adds * train.batch_size * train.steps
    )


def test_work_of_a_scale(experiment: Experiment):
    assert work_text(experiment, "smoke", []).startswith("6 runs (2 variants x 3 seeds), 72 steps, ")


def test_work_has_the_duration_of_tracked_runs(experiment: Experiment, seed_records):
    records = seed_records(experiment, "plain-20", [9.0, 9.1, 9.2], scale="smoke")
    records = [dataclasses.replace(one, seconds=float(s)) for one, s in zip(records, (1, 2000, 3000), strict=True)]
    assert work_text(experiment, "smoke", records).endswith(
        "; measured: 2,000 s per run (median of 3 runs on one core)"
    )


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (EnsembleSpec(kind="ensemble", members={"a": 5, "b": 1}), "average of 5 a + b"),
        (
            EnsembleSpec(kind="ensemble", members={"a": 2}, test=("dense-of-256",)),
            "average of 2 a, tested with dense-of-256",
        ),
        (
            EnsembleSizesSpec(kind="ensemble-sizes", members={"a": 2, "b": 1}),
            "ensembles of 1, 2, 3 networks of 2 a + b",
        ),
        (
            EnsembleSizesSpec(
                kind="ensemble-sizes", members={"a": 7}, sizes=(7, 1), greedy=True, test=("dense-of-256",)
            ),
            "ensembles of 1, 7 networks of 7 a, and the greedy one, tested with dense-of-256",
        ),
        (ColumnSpec(kind="column", of="a", column=2), "column 2 of a alone"),
        (
            ColumnSpec(kind="column", of="a", column="deepest", test=("dense-of-256",)),
            "the deepest column of a alone, tested with dense-of-256",
        ),
        (ProtocolSpec(kind="protocol", of="a", test=("dense-of-256",)), "a tested with dense-of-256"),
        (
            CompressionSpec(kind="compression", of="a", density=0.33, conv_bits=8, fc_bits=5),
            "a compressed to 33 % of the weights, 8 bits in convolutional and 5 bits in fully connected layers",
        ),
        (
            CompressionSpec(
                kind="compression",
                of="a",
                density={"conv1": 0.66, "fc1": 0.08},
                conv_bits=8,
                fc_bits=5,
                bits={"fc1": 6},
                conv_index_bits=5,
                prunings=2,
                retrain=Retraining(steps=1000, lr=0.001),
                tune=Retraining(steps=500, lr=0.01, lr_end=0.0, batch_size=32),
            ),
            "a compressed to a part of the weights (conv1 66 %, fc1 8 %), 8 bits in convolutional and 5 bits in"
            " fully connected layers (fc1 6 bits), distances of 5 and 5 bits, 1,000 steps after each of 2 prunings"
            " at rate 0.001, 500 steps of shared values at rate 0.01 to 0 with 32 images each",
        ),
        (
            TransferSpec(kind="transfer", of="a", data="b", c=0.5),
            "features of a on b, softmax classifier with C 0.5",
        ),
        (
            TransferSpec(
                kind="transfer",
                of=["a", "b"],
                data="caltech101",
                layer="fc7",
                view="dense-of-256-384",
                scales="stack",
                normalise="l2",
                classifier="svm",
                c=[10.0, 1.0],
                validation=0.2,
                splits=3,
                train_per_class=[15, 30],
                test_per_class=50,
            ),
            "features of a and b (fc7) on caltech101 by view dense-of-256-384, scales side by side, L2-normalised,"
            " linear SVMs with C chosen from 1, 10, on 20 % of the training images, 3 random splits with 15 or 30"
            " training images per class, at most 50 for testing",
        ),
        (
            TransferSpec(
                kind="transfer",
                of="a",
                data="voc2007",
                view="1-crop-224-of-256",
                normalise="none",
                c=[0.1, 1.0],
                train_parts=["train", "val"],
                validation="val",
            ),
            "features of a on voc2007 by view 1-crop-224-of-256, not normalised, softmax classifier with C chosen"
            " from 0.1, 1, on the part val, trained on train and val, tested on test",
        ),
    ],
)
def test_derived_text(spec, text):
    assert derived_text(spec) == text


def test_derived_runs_are_shown_and_counted(declare, shown):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    more = "plain-20: {seeds: [0, 1, 2, 3, 4, 5], model:"
    declared = declare("scales:\n", two, "plain-20: {model:", more)
    text = shown(declared)
    assert text[text.index("derived runs, made from finished runs") + 1] == "two  average of 2 plain-20"
    assert "plain-20   plain_cifar depth 20; 6 seeds" in text
    assert work_text(declared, "smoke", []).startswith("6 runs (2 variants x 3 seeds), 72 steps, 1 derived run, ")
    assert work_text(declared, "paper", []).startswith(
        "16 runs (3 variants x declared seeds), 1,024,000 steps, 3 derived runs"
    )


def test_runs_of_other_experiments_are_counted_apart(declare_other, shown):
    assert work_text(declare_other(), "smoke", []).startswith(
        "6 runs (2 variants x 3 seeds), 72 steps, 2 runs of toy/depth, 1 derived run, "
    )
    alone = declare_other(OTHER, ONLY_DERIVED)
    assert work_text(alone, "smoke", []) == "no training of its own, 2 runs of toy/depth, 1 derived run"
    text = shown(alone)
    assert "variants" not in text
    assert text[text.index("derived runs, made from finished runs") + 1] == "pair  average of 2 toy/depth/plain-20"


# --- schedules and weights -----------------------------------------------------------------------------------


def train_with(**settings):
    sgd = {"name": "sgd", "momentum": 0.9}
    return Train.model_validate({"steps": 100, "batch_size": 8, "lr": 0.1, "optimizer": sgd} | settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, ""),
        ({"lr_end": 0.0}, ", falling linearly to 0"),
        ({"lr_end": 0.01, "lr_power": 2.0}, ", falling as a polynomial of degree 2 to 0.01"),
        (
            {"plateau": {"watch": "test", "factor": 0.1, "patience": 5, "max_drops": 3}},
            "; times 0.1 after 5 evaluations without a lower test error, at most 3 times",
        ),
        (
            {"plateau": {"watch": "train", "factor": 0.1, "patience": 1, "max_drops": 1}},
            "; times 0.1 after 1 report without a lower train error, at most 1 time",
        ),
    ],
)
def test_schedule_text(settings, text):
    assert schedule_text(train_with(**settings)) == text


def test_weights_texts():
    settings = {
        "clip_norm": 2.0,
        "filter_rms_limit": 0.1,
        "average": {"decay": 0.999, "since": 50, "batch_norm": True},
        "select": "val",
    }
    assert weights_texts(train_with(**settings)) == [
        "gradients are scaled to a norm of at most 2",
        "filters are scaled to a root mean square of at most 0.1",
        "average of the weights since step 50: exponential, decay 0.999, with batch-norm statistics; evaluated"
        " beside the last weights",
        "the network with the lowest validation error is judged",
    ]
    assert weights_texts(train_with(average={})) == [
        "average of the weights: plain; evaluated beside the last weights"
    ]
    measured = train_with(steps_to_error_pct=[25.0, 2.5], gradient_norms=["conv1", "fc"], column_losses=[1, 4])
    assert weights_texts(measured) == [
        "measured: optimizer steps until the training error is below 25 %",
        "measured: optimizer steps until the training error is below 2.5 %",
        "measured: mean magnitude of the gradient in conv1, fc",
        "measured: training loss of the columns 1, 4",
    ]
    assert weights_texts(train_with()) == []


def test_start_text():
    assert override_text({}, {"lr": 0.001, "start": {"variant": "vgg-16", "layers": ["conv1_1", "fc8"]}}) == (
        "lr 0.001, starts from vgg-16 (conv1_1, fc8)"
    )
    start = {"variant": "resnet-20", "experiment": "resnet/cifar10_depth"}
    assert override_text({}, {"start": start}) == "starts from resnet-20 of resnet/cifar10_depth"


def test_timed_execution_settings_are_shown_fastest_first(experiment: Experiment, seed_records):
    seconds = {"fp32, 1 thread": 0.0241, "fp32, channels-last, 1 thread": 0.0198, "bf16, 1 thread": 1.7143}
    records = seed_records(experiment, "plain-20", [8.0, 9.0], step_seconds=seconds)
    scale, hardware = records[0].scale, records[0].hardware
    assert execution_texts(experiment, scale, records) == [
        f"plain-20 on {hardware} was computed in fp32, 1 thread; time of an optimizer step:"
        " 19.8 ms (fp32, channels-last, 1 thread), 24.1 ms (fp32, 1 thread), 1,710 ms (bf16, 1 thread)"
    ]
    assert execution_texts(experiment, scale, seed_records(experiment, "plain-20", [8.0])) == []
    assert execution_texts(experiment, "another", records) == []
