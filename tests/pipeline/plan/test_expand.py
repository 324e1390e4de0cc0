"""Plans: which runs and derived runs an experiment has at a scale, and in which order."""

from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.load import load_experiment
from pipeline.plan.expand import (
    DerivedRun,
    derived_declarations,
    member_title,
    plan_runs,
    run_declarations,
    run_title,
    seed_at,
    seed_index,
    seeds_for,
)
from tests.support.elsewhere import ONLY_DERIVED, OTHER
from tests.support.plans import DERIVED_OF_PLAIN_20, first_derived, first_run


def titles(runs):
    return [run.title for run in runs]


def test_a_plan_is_ordered_by_seed_first(experiment):
    assert titles(plan_runs(experiment, scale="smoke")) == [
        "plain-20 seed 0", "resnet-20 seed 0",
        "plain-20 seed 1", "resnet-20 seed 1",
        "plain-20 seed 2", "resnet-20 seed 2",
    ]  # fmt: skip


def test_a_plan_has_all_variants_and_declared_seeds_by_default(experiment):
    assert len(plan_runs(experiment, scale="paper")) == 3 * 5


def test_a_plan_of_named_variants_has_each_once_even_if_the_scale_excludes_it(experiment):
    assert titles(plan_runs(experiment, scale="smoke", variants=["plain-32", "plain-32"], seeds=1)) == [
        "plain-32 seed 0"
    ]


@pytest.mark.parametrize(
    ("declared", "count", "seeds"),
    [
        ("[0, 1, 2, 3, 4]", 2, [0, 1]),
        ("[0, 1, 2, 3, 4]", 7, [0, 1, 2, 3, 4, 5, 6]),
        ("[7, 1, 0]", 5, [7, 1, 0, 2, 3]),  # the declared seeds come first, in their order
        ("[1000]", 3, [1000, 0, 1]),
    ],
)
def test_more_seeds_than_declared_are_0_1_2_without_the_declared_ones(declare, declared, count, seeds):
    runs = plan_runs(declare("[0, 1, 2, 3, 4]", declared), scale="paper", variants=["plain-20"], seeds=count)
    assert [run.seed for run in runs] == seeds


@pytest.mark.parametrize("declared", [(), (0, 1, 2), (7, 1, 0), (1000,), (2**70, 3)])
def test_the_index_of_a_seed_is_computed_without_the_sequence(declared):
    seeds = seeds_for(declared, 20)
    assert len({*seeds}) == 20
    assert [seed_index(declared, seed) for seed in seeds] == list(range(20))
    assert [seed_at(declared, index) for index in range(20)] == seeds
    assert seed_index(declared, 10**12) == 10**12 + sum(seed > 10**12 for seed in declared)


def test_a_plan_has_up_to_1000_different_seeds(experiment):
    runs = plan_runs(experiment, scale="paper", variants=["plain-20"], seeds=1000)
    assert len({run.seed for run in runs}) == 1000


@pytest.mark.parametrize("seeds", [0, -1, 1001])
def test_an_invalid_number_of_seeds_is_an_error(experiment, seeds):
    with pytest.raises(UserError, match=f"--seeds {seeds}: must be an integer from 1 to 1000"):
        plan_runs(experiment, scale="paper", seeds=seeds)


def test_an_unknown_name_suggests_the_closest_one(experiment):
    with pytest.raises(UserError, match=r"toy/depth has no scale 'laptp'; did you mean 'laptop'\?"):
        plan_runs(experiment, scale="laptp")
    with pytest.raises(UserError, match=r"toy/depth has no variant 'resnet20'; did you mean 'resnet-20'\?"):
        plan_runs(experiment, scale="paper", variants=["plain-20", "resnet20"])


def test_a_change_by_set_is_kept_with_the_run(experiment):
    run = first_run(experiment, changes={"train.lr": 0.05})
    assert (run.recipe.train.lr, dict(run.changes)) == (0.05, {"train.lr": 0.05})


def test_a_change_to_the_declared_value_is_no_change(experiment):
    run = first_run(experiment, changes={"train.lr": 0.1})
    assert dict(run.changes) == {}
    assert run == first_run(experiment)


def test_an_experiment_without_scales_cannot_be_planned(declare):
    declared = declare().model_copy(update={"scales": {}})
    with pytest.raises(UserError, match="toy/depth trains nothing: its claims are judged by arithmetic"):
        plan_runs(declared, scale="paper")


def test_a_title_names_variant_and_seed(experiment):
    assert run_title("resnet-20", 3) == "resnet-20 seed 3"
    assert first_run(experiment).title == "plain-20 seed 0"


# --- derived runs ------------------------------------------------------------------------------------------


@pytest.fixture
def with_derived_runs(declare):
    """The declaration with two ensembles and a compression."""
    return declare("scales:\n", DERIVED_OF_PLAIN_20)


def test_a_derived_run_follows_the_last_run_it_consumes(with_derived_runs):
    assert titles(plan_runs(with_derived_runs, scale="paper", variants=["plain-20", "plain-32"], seeds=3)) == [
        "plain-20 seed 0", "plain-32 seed 0", "small seed 0",
        "plain-20 seed 1", "plain-32 seed 1", "pair seed 0", "mixed seed 0", "small seed 1",
        "plain-20 seed 2", "plain-32 seed 2", "small seed 2",
    ]  # fmt: skip


def test_two_ensembles_share_no_member(with_derived_runs):
    ensembles = [run for run in plan_runs(with_derived_runs, scale="paper") if run.variant == "mixed"]
    assert [titles(ensemble.members) for ensemble in ensembles] == [
        ["plain-20 seed 0", "plain-20 seed 1", "plain-32 seed 0"],
        ["plain-20 seed 2", "plain-20 seed 3", "plain-32 seed 1"],
    ]  # of five seeds; the fifth is left over
    assert [ensemble.seed for ensemble in ensembles] == [0, 2]


def test_the_order_of_members_in_the_file_does_not_change_a_derived_run(declare):
    orders = "plain-20: 2, plain-32: 1", "plain-32: 1, plain-20: 2"
    first, second = (
        [
            run
            for run in plan_runs(
                declare("scales:\n", DERIVED_OF_PLAIN_20.replace(orders[0], order)), scale="paper"
            )
            if run.variant == "mixed"
        ]
        for order in orders
    )
    assert [run.seed for run in second] == [run.seed for run in first] == [0, 2]
    assert [run.declaration for run in second] == [run.declaration for run in first]


def test_a_derived_run_without_its_members_is_left_out(with_derived_runs):
    plans = [
        plan_runs(with_derived_runs, scale="paper", variants=[variant], seeds=5)
        for variant in ("plain-20", "plain-32")
    ]
    derived = [{run.variant for run in plan if isinstance(run, DerivedRun)} for plan in plans]
    assert derived == [{"pair", "small"}, set()]


def test_a_derived_run_has_the_changes_of_its_members(with_derived_runs):
    changed = first_derived(with_derived_runs, changes={"train.lr": 0.05})
    assert changed.changes == {"train.lr": 0.05}
    assert changed.declaration != first_derived(with_derived_runs).declaration
    assert first_derived(with_derived_runs).changes == {}


def test_names_are_not_part_of_the_declaration_of_a_derived_run(declare, with_derived_runs):
    renamed = declare(
        "scales:\n", DERIVED_OF_PLAIN_20.replace("plain-20", "first").replace("pair", "two"),
        "plain-20: {model", "first: {model", "[plain-20, resnet-20]", "[first, resnet-20]",
        "of: plain-20, metric: model", "of: first, metric: model", "of: plain-20, metric: recipe",
        "of: first, metric: recipe", "of: plain-20", "of: first", "rhs: plain-20", "rhs: first",
        "rhs: plain-20", "rhs: first",
    )  # fmt: skip
    assert first_derived(renamed, "two").declaration == first_derived(with_derived_runs).declaration
    assert (
        first_derived(with_derived_runs, "small").declaration
        != first_derived(with_derived_runs, "pair").declaration
    )


@pytest.mark.parametrize(("old", "new"), [("density: 0.5", "density: 0.4"), ("conv_bits: 8", "conv_bits: 7")])
def test_every_setting_is_part_of_the_declaration_of_a_derived_run(declare, with_derived_runs, old, new):
    before = first_derived(with_derived_runs, "small").declaration
    assert (
        first_derived(declare("scales:\n", DERIVED_OF_PLAIN_20.replace(old, new)), "small").declaration != before
    )


# --- members of other experiments ----------------------------------------------------------------------------


def placed(runs):
    """Experiment, variant and seed of each run."""
    return [(run.experiment, run.variant, run.seed) for run in runs]


def test_runs_of_another_experiment_come_before_the_derived_run_that_consumes_them(declare_other):
    depth = "toy/depth"
    assert placed(plan_runs(declare_other(), scale="paper")) == [
        *[("toy/wide", "wide", 0), ("toy/wide", "other", 0)],
        *[("toy/wide", "wide", 1), ("toy/wide", "other", 1)],
        *[(depth, "plain-20", 0), (depth, "plain-20", 1), ("toy/wide", "mixed", 0)],
        *[("toy/wide", "wide", 2), ("toy/wide", "other", 2)],
        *[(depth, "plain-20", 2), (depth, "plain-20", 3), ("toy/wide", "mixed", 2)],
    ]  # its fifth seed serves no ensemble, so it is not trained here


def test_a_scale_takes_the_same_scale_of_the_other_experiment(declare, declare_other):
    planned = plan_runs(declare_other(), scale="smoke")
    own = plan_runs(declare(), scale="smoke", variants=["plain-20"])
    consumed = [run for run in planned if run.experiment == "toy/depth"]
    assert consumed == own[:2]
    assert [run.declaration for run in consumed] == [run.declaration for run in own[:2]]


def test_chosen_variants_may_include_one_of_another_experiment(declare_other):
    declared = declare_other()
    without = plan_runs(declared, scale="smoke", variants=["wide"])
    both = plan_runs(declared, scale="smoke", variants=["wide", "toy/depth/plain-20"])
    assert {run.variant for run in without} == {"wide"}
    assert {run.variant for run in both} == {"wide", "plain-20", "mixed"}
    with pytest.raises(UserError, match="toy/wide has no variant 'toy/depth/plain-32'"):
        plan_runs(declared, scale="smoke", variants=["toy/depth/plain-32"])


def test_a_derived_run_among_the_variants_is_an_error_that_names_what_it_uses(declare_other):
    with pytest.raises(UserError, match="name these: --variant wide --variant toy/depth/plain-20"):
        plan_runs(declare_other(), scale="smoke", variants=["mixed"])


def test_members_of_one_name_from_two_experiments_are_told_apart(declare_other):
    """Both are called plain-20; the one here is of depth 8."""
    pairs = [
        ("  wide: {", "  plain-20: {"),
        ("{wide: 1", "{plain-20: 1"),
        ("depth: 20}, train", "depth: 8}, train"),
    ]
    declared = declare_other(*(text for pair in pairs for text in pair))
    mixed = next(run for run in plan_runs(declared, scale="paper") if run.variant == "mixed")
    assert [run.recipe.model.args["depth"] for run in mixed.members] == [8, 20, 20]
    assert len(set(run_declarations(mixed.members))) == 3
    assert run_declarations(mixed.members) == [run.declaration for run in mixed.members]


def test_declarations_of_several_derived_runs_are_those_of_each(with_derived_runs):
    runs = [run for run in plan_runs(with_derived_runs, scale="paper") if isinstance(run, DerivedRun)]
    assert len({run.variant for run in runs}) == 3
    assert len(runs) > 3
    assert derived_declarations(runs) == [run.declaration for run in runs]
    assert len({*derived_declarations(runs)}) == len(runs)


def test_the_other_experiment_is_part_of_the_declaration_by_its_recipe(declare, declare_other):
    def mixed():
        return next(run for run in plan_runs(declare_other(), scale="paper") if run.variant == "mixed")

    before = mixed()
    declare("steps: 64000", "steps: 64001")
    assert mixed().declaration != before.declaration


def test_an_experiment_of_derived_runs_alone_is_planned(declare_other):
    planned = plan_runs(declare_other(OTHER, ONLY_DERIVED), scale="smoke")
    assert placed(planned) == [("toy/depth", "plain-20", 0), ("toy/depth", "plain-20", 1), ("toy/wide", "pair", 0)]


def test_a_title_names_the_experiment_of_a_member_elsewhere(declare_other):
    mixed = next(run for run in plan_runs(declare_other(), scale="smoke") if isinstance(run, DerivedRun))
    titles = [member_title(mixed, member) for member in mixed.members]
    assert titles == ["toy/depth plain-20 seed 0", "toy/depth plain-20 seed 1", "wide seed 0"]


@pytest.mark.parametrize(
    ("name", "scale", "changes", "tunable"),
    [
        ("resnet/cifar10_depth", "laptop", {}, True),
        ("resnet/cifar10_depth", "laptop", {"train.lr": 0.05}, True),
        ("resnet/cifar10_depth", "laptop", {"train.precision": "fp32"}, False),
        ("resnet/cifar10_depth", "laptop", {"train.precision": "bf16"}, False),  # as declared, but by hand
        ("resnet/cifar10_depth", "laptop", {"train.channels_last": False}, False),
        ("resnet/cifar10_depth", "laptop", {"train.compile": True}, False),
        ("resnet/cifar10_depth", "paper", {}, False),
        ("resnet/cifar10_depth", "smoke", {}, False),
        ("lenet5/mnist", "laptop", {}, False),  # optimizer sdlm
        ("stochastic_depth/cifar", "laptop", {}, False),  # claims training times
        ("wide_resnet/speed", "laptop", {}, False),
    ],
)
def test_execution_settings_are_chosen_unless_declared_given_or_compared_by_time(name, scale, changes, tunable):
    runs = plan_runs(load_experiment(name), scale=scale, seeds=1, changes=changes)
    assert {run.tunable for run in runs if not isinstance(run, DerivedRun)} == {tunable}


def test_chosen_execution_settings_are_no_part_of_a_declaration(experiment):
    run = first_run(experiment)
    assert replace(run, tunable=True).declaration == run.declaration
