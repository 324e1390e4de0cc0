"""Recipes: values out of range, wrong types and impossible combinations are errors that name the key."""

import pytest

from pipeline.declare.data_settings import Data
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.training import Train

# ruff: noqa: E501 - one error per line reads as a table
ERRORS = {  # replaced text, new text, message
    "data": ("cifar10, augment:", "cifar10, augmnt:", "data.augmnt: unknown key; did you mean 'augment'?"),
    "train": ("  batch_size: 128", "  batchsize: 128", "train.batchsize: unknown key; did you mean 'batch_size'?"),
    "drops": ("at: [32000, 48000]", "att: [32000, 48000]", "train.lr_drops.att: unknown key; did you mean 'at'?"),
    "optimizer": ("momentum: 0.9", "momentm: 0.9", "train.optimizer.momentm: unknown key; did you mean 'momentum'?"),
    "no lr": ("  lr: 0.1\n", "", "train.lr: this key is required"),
    "no model's name": ("{name: plain_cifar, depth: 20}", "{depth: 20}", "variants.plain-20.model.name: this key is required"),
    "text for a number": ("  lr: 0.1\n", "  lr: fast\n", "train.lr: should be a valid number, not 'fast'"),
    "quoted number": ("  lr: 0.1\n", "  lr: \"0.1\"\n", "train.lr: should be a valid number, not '0.1'"),
    "true for a number": ("  lr: 0.1\n", "  lr: true\n", "train.lr: should be a valid number, not True"),
    "fraction of a step": ("steps: 64000", "steps: 64000.5", "train.steps: should be a valid integer, not 64000.5"),
    "no steps": ("steps: 64000", "steps: 0", "train.steps: should be greater than 0, not 0"),
    "negative rate": ("  lr: 0.1\n", "  lr: -0.1\n", "train.lr: should be greater than 0, not -0.1"),
    "not a number": ("  lr: 0.1\n", "  lr: .nan\n", "train.lr: should be a finite number, not nan"),
    "infinite decay": ("weight_decay: 1e-4", "weight_decay: .inf", "train.optimizer.weight_decay: should be a finite number, not inf"),
    "not a number, of a model": ("depth: 20}", "depth: .nan}", "variants.plain-20.model: 'depth' should be a finite number, not nan"),
    "text for one of many factors": ("factor: 0.1", "factor: [0.1, much]", "train.lr_drops.factor.1: should be a valid number, not 'much'"),
    "normalise": ("name: cifar10,", "name: cifar10, normalise: per_channel,", "data.normalise: unknown value 'per_channel'; did you mean 'per-channel'?"),
    "kind of optimizer": ("name: sgd", "name: sdg", "train.optimizer: unknown name 'sdg'; did you mean 'sgd'?"),
    "augmentation": ("[pad4-crop, flip]", "[pad4crop, flip]", "data.augment.0: unknown augmentation 'pad4crop'; did you mean 'pad4-crop'?"),
    "drop after the end": ("48000]", "64000]", "train: the drop at step 64000 must be before step 64000, the end of training"),
    "falling drops": ("[32000, 48000]", "[48000, 32000]", "train.lr_drops: 'at' must be increasing"),
    "no drops": ("[32000, 48000]", "[]", "train.lr_drops.at: should not be empty"),
    "too many factors": ("factor: 0.1", "factor: [0.1, 0.1, 0.1]", "train.lr_drops: 2 drops need 1 factor or 2, not 3"),
    "sdlm in batches": ("{name: sgd, momentum: 0.9, weight_decay: 1e-4}", "{name: sdlm, mu: 0.02, samples: 500}", "train: optimizer 'sdlm' needs batch_size 1"),
    "drops at and every": ("{at: [32000, 48000],", "{at: [32000], every: 9,", "train.lr_drops: give either 'at' or 'every'"),
    "drops never": ("{at: [32000, 48000], factor", "{factor", "train.lr_drops: give either 'at' or 'every'"),
    "every with a list": ("{at: [32000, 48000], factor: 0.1}", "{every: 9, factor: [0.1]}", "train.lr_drops: 'every' needs one factor, not a list"),
    "every after the end": ("{at: [32000, 48000],", "{every: 64000,", "train: the drop at step 64000 must be before step 64000, the end of training"),
    "drops and a line": ("  lr: 0.1\n", "  lr: 0.1\n  lr_end: 0.0\n", "train: give either 'lr_drops' or 'lr_end', not both"),
    "nesterov alone": ("momentum: 0.9,", "nesterov: true,", "train.optimizer: nesterov needs momentum > 0"),
    "drops and a plateau": ("  lr: 0.1\n", "  lr: 0.1\n  plateau: {watch: test, factor: 0.1, patience: 3, max_drops: 3}\n", "train: give either 'lr_drops' or 'plateau', not both"),
    "plateau of no images": ("  lr_drops: {at: [32000, 48000], factor: 0.1}\n", "  plateau: {watch: val, factor: 0.1, patience: 3, max_drops: 3}\n", "plain-20 at paper scale: train.plateau.watch 'val' needs held-out training images; declare their number as data.val"),
    "rising rate": ("  lr_drops: {at: [32000, 48000], factor: 0.1}\n", "  plateau: {watch: test, factor: 10.0, patience: 3, max_drops: 3}\n", "train.plateau.factor: should be less than 1, not 10.0"),
    "no patience": ("  lr_drops: {at: [32000, 48000], factor: 0.1}\n", "  plateau: {watch: test, factor: 0.1, patience: 0, max_drops: 3}\n", "train.plateau.patience: should be greater than 0, not 0"),
    "selection without images": ("  lr: 0.1\n", "  lr: 0.1\n  select: val\n", "plain-20 at paper scale: train.select 'val' needs held-out training images; declare their number as data.val"),
    "selection by test": ("  lr: 0.1\n", "  lr: 0.1\n  select: test\n", "train.select: unknown value 'test'; known: last, val"),
    "power alone": ("  lr: 0.1\n", "  lr: 0.1\n  lr_power: 2.0\n", "train: lr_power needs lr_end"),
    "average after the end": ("  lr: 0.1\n", "  lr: 0.1\n  average: {since: 64000}\n", "train: average.since must be before step 64000, the end of training"),
    "decay of one": ("  lr: 0.1\n", "  lr: 0.1\n  average: {decay: 1.0}\n", "train.average.decay: should be less than 1, not 1.0"),
    "no gradient": ("  lr: 0.1\n", "  lr: 0.1\n  clip_norm: 0.0\n", "train.clip_norm: should be greater than 0, not 0.0"),
    "rate in no velocity": ("momentum: 0.9,", "rate_in_velocity: true,", "train.optimizer: rate_in_velocity needs momentum > 0"),
    "classes of no number": ("name: cifar10,", "name: cifar10, val_per_class: many,", "data.val_per_class: should be a valid integer, not 'many'"),
    "no image of a class": ("name: cifar10,", "name: cifar10, val_per_class: 0,", "data.val_per_class: should be greater than 0, not 0"),
    "parts of an unknown name": ("name: cifar10,", "name: svhn-extra, val_per_class: {train: 400, extre: 200},", "data.val_per_class.extre: unknown key; did you mean 'extra'?"),
    "parts without images": ("name: cifar10,", "name: svhn-extra, val_per_class: {train: 0, extra: 0},", "data.val_per_class: one of the parts must give images"),
    "parts of another set": ("name: cifar10,", "name: svhn, val_per_class: {train: 400, extra: 200},", "data: only svhn-extra has parts; give val_per_class one number for svhn"),
    "both kinds of validation": ("name: cifar10,", "name: cifar10, val: 50, val_per_class: 5,", "data: give either 'val' or 'val_per_class', not both"),
    "jitter without a strength": ("name: cifar10,", "name: cifar10, jitter: {brightness: 0.0},", "data.jitter: give at least one strength > 0: brightness, contrast, saturation or lighting"),
    "jitter by more than the image": ("name: cifar10,", "name: cifar10, jitter: {contrast: 1.5},", "data.jitter.contrast: should be less than or equal to 1, not 1.5"),
    "steps to no error": ("  lr: 0.1\n", "  lr: 0.1\n  steps_to_error_pct: [100.0]\n", "train.steps_to_error_pct.0: should be less than 100, not 100.0"),
    "steps to an error twice": ("  lr: 0.1\n", "  lr: 0.1\n  steps_to_error_pct: [25.0, 25.0]\n", "train.steps_to_error_pct: 25.0 is listed twice"),
    "gradients of a layer twice": ("  lr: 0.1\n", "  lr: 0.1\n  gradient_norms: [conv1, conv1]\n", "train.gradient_norms: 'conv1' is listed twice"),
    "unknown precision": ("  lr: 0.1\n", "  lr: 0.1\n  precision: fp16\n", "train.precision: unknown value 'fp16'; did you mean 'bf16'?"),
    "seed twice": ("[0, 1, 2, 3, 4]", "[0, 1, 2, 1]", "seeds: 1 is listed twice"),
    "negative seed": ("[0, 1, 2, 3, 4]", "[-1]", "seeds.0: should be greater than or equal to 0, not -1"),
    "no seeds": ("[0, 1, 2, 3, 4]", "[]", "seeds: should not be empty"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_invalid_recipe_is_an_error_with_file_key_and_reason(declare, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        declare(old, new)
    assert str(caught.value) == f"toy/depth.yaml: {message}"


def test_a_float_may_be_written_with_an_exponent(experiment):
    assert experiment.train.optimizer.weight_decay == 0.0001


def test_further_keys_of_a_model_are_arguments_of_its_builder(experiment):
    assert experiment.variants["resnet-20"].model.args == {"depth": 20, "shortcut": "A"}


CROP = {"crop": {"side": 32, "short": 36}, "test": ["1-crop-32-of-36"]}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"crop": {"side": 32, "short": 36}}, "'crop' needs a 'test' protocol, such as 1-crop-224-of-256"),
        ({"test": ["1-crop-32-of-36"]}, "'test' needs 'crop': test protocols are for images of varying size"),
        (CROP | {"augment": ["pad4-crop"]}, "'pad4-crop' cannot be combined with 'crop': it is for small images"),
        (CROP | {"pad_to": 64}, "'pad_to' cannot be combined with 'crop': it is for small images"),
        ({"augment": ["pca-colour"]}, "'pca-colour' needs 'crop': it is for images of varying size"),
        ({"jitter": {"contrast": 0.4}}, "'jitter' needs 'crop': it is for images of varying size"),
        (
            CROP | {"jitter": {"contrast": 0.4}, "augment": ["photometric"]},
            "'jitter' and 'photometric' change the same colours; remove one of them",
        ),
        (
            CROP | {"jitter": {"lighting": 0.1}, "augment": ["pca-colour"]},
            "'jitter.lighting' and 'pca-colour' add the same noise; remove one of them",
        ),
        (CROP | {"test": ["7-crop-32-of-36"]}, "the crops for 1 short side must"),
        (CROP | {"crop": {"side": 32}}, "give either 'short' (resize, then crop) or 'area' with 'aspect'"),
        (CROP | {"crop": {"side": 32, "area": [0.1, 1.0]}}, "'area' and 'aspect' must be given together"),
        (CROP | {"crop": {"side": 32, "short": [44, 36]}}, "'short' must be increasing, not [44, 36]"),
        (
            CROP | {"crop": {"side": 32, "short": 30}},
            "'side' must be <= 'centre', and 'centre' must be <= 'short'",
        ),
        (
            CROP | {"crop": {"side": 32, "short": 40, "centre": 44}},
            "'side' must be <= 'centre', and 'centre' must be <= 'short'",
        ),
        (
            CROP | {"crop": {"side": 32, "area": [0.1, 1.5], "aspect": [0.75, 1.3]}},
            "'area' must be <= 1 and cannot be combined with 'centre' or 'at'",
        ),
    ],
)
def test_data_settings_that_do_not_fit_are_an_error(declared, message):
    with pytest.raises(ValueError, match=r".") as caught:
        Data(name="x", **declared)
    assert message in str(caught.value)


def test_number_of_validation_images_by_class_and_part():
    assert [Data(name="x", **kw).held_out(10) for kw in ({}, {"val": 50}, {"val_per_class": 5})] == [0, 50, 50]
    counted = Data(name="svhn-extra", val_per_class={"train": 400, "extra": 200})
    assert counted.held_out(10) == 6000  # "400 samples per class from training and 200 from extra": 6,000
    assert [Data(name="x", **kw).holds_out for kw in ({}, {"val": 50}, {"val_per_class": 5})] == [
        False,
        True,
        True,
    ]


SDLM = {
    "steps": 10,
    "batch_size": 1,
    "lr": 0.1,
    "optimizer": {"name": "sdlm", "mu": 0.02, "samples": 500},
    "loss": {"name": "map", "j": 1.0, "divided_by": 84.0},
}


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"average": {}}, "average"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"filter_rms_limit": 0.1}, "filter_rms_limit"),
        ({"select": "val"}, "select: val"),
        ({"plateau": {"watch": "test", "factor": 0.1, "patience": 1, "max_drops": 1}}, "plateau"),
        ({"lr_end": 0.0}, "lr_end"),
        ({"precision": "bf16"}, "precision bf16"),
    ],
)
def test_the_optimizer_of_lenet5_refuses_settings_that_it_would_ignore(setting, name):
    Train.model_validate(SDLM)
    with pytest.raises(ValueError, match=f"optimizer 'sdlm' does not support {name}"):
        Train.model_validate(SDLM | setting)


def test_a_velocity_cannot_hold_a_rate_of_zero():
    sgd = {"name": "sgd", "momentum": 0.9, "rate_in_velocity": True}
    with pytest.raises(ValueError, match="needs a learning rate > 0 at every step, but lr_end is 0"):
        Train.model_validate({"steps": 9, "batch_size": 1, "lr": 0.1, "lr_end": 0.0, "optimizer": sgd})
