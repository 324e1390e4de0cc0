"""Hashes of declarations: recorded runs keep theirs."""

import pytest

from pipeline.common.hashing import digest
from pipeline.plan.declaration import LATER_DEFAULTS, declaration_hashes, without_later_defaults
from tests.support.plans import DERIVED_OF_PLAIN_20, first_derived, first_run


def test_the_declaration_of_a_run_is_the_digest_of_recipe_and_seed(experiment):
    run = first_run(experiment)
    recipe = without_later_defaults(run.recipe.model_dump(mode="json"))
    assert declaration_hashes(run.recipe, [0, 7]) == {
        seed: digest({"recipe": recipe, "seed": seed}) for seed in (0, 7)
    }
    assert run.declaration == declaration_hashes(run.recipe, [0])[0]


def test_a_later_setting_at_its_default_does_not_change_a_hash():
    """Runs recorded before a setting existed keep their hash."""
    old = {"train": {"lr": 0.1, "lr_drops": {"at": [5], "factor": 0.1}, "optimizer": {"momentum": 0.9}}}
    new = {
        "train": {
            "lr": 0.1,
            "lr_end": None,
            "lr_drops": {"at": [5], "every": None, "factor": 0.1},
            "optimizer": {"momentum": 0.9, "nesterov": False},
        }
    }
    assert without_later_defaults(new) == old
    new["train"]["optimizer"]["nesterov"] = True
    assert without_later_defaults(new) != old


@pytest.mark.parametrize("dotted", LATER_DEFAULTS)
def test_every_later_setting_is_left_out_at_its_default_only(dotted):
    *path, last = dotted.split(".")

    def recipe(value):
        raw = {last: value, "other": 1}
        for key in reversed(path):
            raw = {key: raw}
        return raw

    removed = without_later_defaults(recipe(LATER_DEFAULTS[dotted]))
    for key in path:
        removed = removed[key]
    assert removed == {"other": 1}
    assert without_later_defaults(recipe("another value")) == recipe("another value")


def test_the_declaration_of_a_derived_run_is_the_digest_of_its_settings_and_its_members(declare):
    run = first_derived(declare("scales:\n", DERIVED_OF_PLAIN_20), "small")
    settings = {"kind": "compression", "density": 0.5, "conv_bits": 8, "fc_bits": 5}
    members = [member.declaration for member in run.members]
    assert run.declaration == digest({"step": settings, "members": members})  # the key of the recorded runs


@pytest.mark.parametrize(
    ("declared", "settings"),
    [
        ("prunings: 1, conv_index_bits: 8, bits: {}", {}),
        ("conv_index_bits: 5", {"conv_index_bits": 5}),
        (
            "retrain: {steps: 9, lr: 0.1}",
            {"retrain": {"steps": 9, "lr": 0.1, "lr_end": None, "batch_size": None}},
        ),
    ],
)
def test_later_settings_of_a_derived_run_are_left_out_of_its_hash_at_their_defaults(declare, declared, settings):
    derived = DERIVED_OF_PLAIN_20.replace("fc_bits: 5", f"fc_bits: 5, {declared}")
    run = first_derived(declare("scales:\n", derived), "small")
    settings = {"kind": "compression", "density": 0.5, "conv_bits": 8, "fc_bits": 5} | settings
    members = [member.declaration for member in run.members]
    assert run.declaration == digest({"step": settings, "members": members})
