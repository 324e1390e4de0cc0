"""Overrides: how settings are merged, and which --set option an error message names."""

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.overrides import describe_changes, merge_layers, set_dotted, yaml_flow
from tests.support.declarations import WITH_CROP


def test_a_map_with_another_name_replaces_the_one_below():
    below = {"optimizer": {"name": "sgd", "momentum": 0.9}, "lr": 1}
    assert merge_layers(below, {"optimizer": {"name": "sdlm", "mu": 0.02}})["optimizer"] == {
        "name": "sdlm",
        "mu": 0.02,
    }
    assert merge_layers(below, {"optimizer": {"name": "sgd", "decay": "all"}})["optimizer"]["momentum"] == 0.9
    assert merge_layers(below, {"optimizer": {"decay": "all"}})["optimizer"] == {
        "name": "sgd",
        "momentum": 0.9,
        "decay": "all",
    }
    assert merge_layers(below, {"optimizer": None, "lr": 2}) == {"optimizer": None, "lr": 2}


def test_merging_does_not_change_its_arguments():
    below, above = {"a": {"x": 1}}, {"b": {"y": {"z": 2}}}
    result = merge_layers(below, above)
    result["a"]["x"] = result["b"]["y"]["z"] = 99
    assert (below, above) == ({"a": {"x": 1}}, {"b": {"y": {"z": 2}}})


def test_a_dotted_key_is_set_and_missing_maps_are_created():
    raw = {"train": {"lr": 0.1}}
    set_dotted(raw, "train.lr", 0.2)
    set_dotted(raw, "data.crop.side", 8)
    assert raw == {"train": {"lr": 0.2}, "data": {"crop": {"side": 8}}}


@pytest.mark.parametrize(
    ("value", "text"), [([0.08, 1], "[0.08, 1]"), (None, "null"), ("1", "'1'"), ({"a": "é"}, "{a: é}")]
)
def test_a_value_is_one_line_of_yaml(value, text):
    assert yaml_flow(value) == text


# --- errors of --set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 1}, "--set lr: a setting starts with model., data. or train., as in train.lr=0.05"),
        ({"train": 1}, "--set train: a setting starts with model., data. or train., as in train.lr=0.05"),
        ({"trian.lr": 1}, "--set trian.lr: a setting starts with model., data. or train., as in train.lr=0.05"),
        ({"train.lr.x": 1}, "--set train.lr.x: 'lr' is a value, not a map of settings"),
        ({"train.momentum": 1}, "--set train.momentum (for plain-20 at laptop): unknown key; known: "),
        ({"train.stepz": 1}, "--set train.stepz (for plain-20 at laptop): unknown key; did you mean 'steps'?"),
        ({"train.lr": "x"}, "--set train.lr (for plain-20 at laptop): should be a valid number, not 'x'"),
        (
            {"train.optimizer": "sgd"},
            "--set train.optimizer (for plain-20 at laptop): should be a map of keys, not",
        ),
        (
            {"train.steps": 100},
            "--set train.steps=100: train (for plain-20 at laptop): the drop at step 200 must be before step 100",
        ),
    ],
)
def test_an_error_in_a_change_names_the_set_option(experiment, change, words):
    with pytest.raises(UserError) as caught:
        experiment.recipe("plain-20", "laptop", change)
    assert words in str(caught.value)


PLACE = "(for plain-20 at laptop)"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"data.crop.area": [0.08, 1]},
            f"--set data.crop.area=[0.08, 1]: data.crop {PLACE}: give either 'short' (resize, then crop) or "
            "'area' with 'aspect' (crop, then resize)",
        ),
        (
            {"data.crop": None},
            f"--set data.crop=null: data {PLACE}: 'test' needs 'crop': test protocols are for",
        ),
        (
            {"data.test": []},
            f"--set data.test=[]: data {PLACE}: 'crop' needs a 'test' protocol, such as 1-crop-224-of-256",
        ),
        (
            {"data.augment": ["pad4-crop"], "train.lr": 0.2},  # train.lr is valid
            f"--set data.augment=[pad4-crop]: data {PLACE}: 'pad4-crop' cannot be combined with 'crop': it is for "
            "small images",
        ),
        (
            {"data.crop.side": 200, "data.val": 5, "data.crop.short": [300, 100]},  # all of the map
            f"--set data.crop.side=200, --set data.crop.short=[300, 100]: data.crop {PLACE}: 'short' must be "
            "increasing, not [300, 100]",
        ),
        (
            {"train.optimizer.name": "sdlm", "train.lr": 0.2},  # an unknown key in the map where another was set
            f"--set train.optimizer.name=sdlm: train.optimizer.momentum {PLACE}: unknown key; known: mu, name, "
            "samples",
        ),
        ({"data.crop": {"side": 8}}, f"--set data.crop {PLACE}: give either 'short'"),
    ],
)
def test_an_error_between_keys_names_the_changes_within_their_map(declare, changes, sentence):
    declared = declare(*WITH_CROP)
    with pytest.raises(UserError) as caught:
        declared.recipe("plain-20", "laptop", changes)
    assert str(caught.value).startswith(sentence)


def test_an_error_of_the_declaration_itself_comes_before_the_changes(experiment):
    scale = experiment.scales["laptop"].model_copy(update={"train": {"steps": 100}})
    wrong = experiment.model_copy(update={"scales": {"laptop": scale}})  # loading it would raise
    with pytest.raises(
        DeclarationError, match=r"^toy/depth.yaml: scales.laptop.train: the drop at step 48000 must be"
    ):
        wrong.recipe("plain-20", "laptop", {"train.lr": 0.2})


@pytest.mark.parametrize(
    ("key", "changes", "text"),
    [
        ("train.lr", {"train.lr": 1}, "--set train.lr"),
        ("train.lrr", {"train.lr": 1, "data.val": 2}, "--set train.lr=1: train.lrr"),  # no prefix of a word
        (
            "train.optimizer.mu",
            {"train.optimizer.name": "sdlm", "train.lr": 1},
            "--set train.optimizer.name=sdlm: train.optimizer.mu",
        ),
        ("model.depth", {"train.lr": 1, "data.name": "a b"}, "--set train.lr=1, --set data.name=a b: model.depth"),
        ("", {"data.name": "1"}, "--set data.name='1'"),
    ],
)
def test_the_changes_closest_to_the_key_are_named(key, changes, text):
    assert describe_changes(key, changes) == text
