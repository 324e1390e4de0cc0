"""From an experiment to runs, and what makes a run another run."""

import pytest

from pipeline.common.errors import UserError
from pipeline.common.hashing import digest
from pipeline.plan.declaration import declaration_hashes, without_later_defaults
from pipeline.plan.expand import DerivedRun, plan_runs, seed_index, seeds_for
from pipeline.plan.identity import identity


def titles(runs):
    return [run.title for run in runs]


def run_of(experiment, variant="plain-20", scale="paper", **other):
    return plan_runs(experiment, scale=scale, variants=[variant], seeds=1, **other)[0]


def name_of(run, manifest="m", code="c"):
    return identity(run, manifest=manifest, code=code)


# --- the plan ----------------------------------------------------------------------------------------------


def test_an_interrupted_plan_has_whole_comparisons(experiment):
    assert titles(plan_runs(experiment, scale="smoke")) == [
        "plain-20 seed 0", "resnet-20 seed 0",
        "plain-20 seed 1", "resnet-20 seed 1",
        "plain-20 seed 2", "resnet-20 seed 2",
    ]  # fmt: skip


def test_all_variants_and_declared_seeds_without_words_to_the_contrary(experiment):
    assert len(plan_runs(experiment, scale="paper")) == 3 * 5


def test_named_variants_run_once_each_also_where_the_scale_leaves_them_out(experiment):
    assert titles(plan_runs(experiment, scale="smoke", variants=["plain-32", "plain-32"], seeds=1)) == [
        "plain-32 seed 0"
    ]


@pytest.mark.parametrize(
    ("declared", "asked", "seeds"),
    [
        ("[0, 1, 2, 3, 4]", 2, [0, 1]),
        ("[0, 1, 2, 3, 4]", 7, [0, 1, 2, 3, 4, 5, 6]),
        ("[7, 1, 0]", 5, [7, 1, 0, 2, 3]),  # those declared come first, in their order
        ("[1000]", 3, [1000, 0, 1]),
    ],
)
def test_more_seeds_than_declared_continue_the_row(declare, declared, asked, seeds):
    runs = plan_runs(declare("[0, 1, 2, 3, 4]", declared), scale="paper", variants=["plain-20"], seeds=asked)
    assert [run.seed for run in runs] == seeds


@pytest.mark.parametrize("declared", [(), (0, 1, 2), (7, 1, 0), (1000,), (2**70, 3)])
def test_a_seed_s_place_in_the_row_needs_no_row(declared):
    row = seeds_for(declared, 20)
    assert len({*row}) == 20
    assert [seed_index(declared, seed) for seed in row] == list(range(20))
    assert seed_index(declared, 10**12) == 10**12 + sum(seed > 10**12 for seed in declared)


def test_a_thousand_seeds_are_the_most(experiment):
    assert (
        len({run.seed for run in plan_runs(experiment, scale="paper", variants=["plain-20"], seeds=1000)}) == 1000
    )


@pytest.mark.parametrize("seeds", [0, -1, 1001])
def test_an_impossible_number_of_seeds_is_refused(experiment, seeds):
    with pytest.raises(UserError, match=f"--seeds {seeds}: a number from 1 to 1000 is needed"):
        plan_runs(experiment, scale="paper", seeds=seeds)


def test_unknown_names_name_the_nearest(experiment):
    with pytest.raises(UserError, match=r"toy/depth has no scale 'laptp'; did you mean 'laptop'\?"):
        plan_runs(experiment, scale="laptp")
    with pytest.raises(UserError, match=r"toy/depth has no variant 'resnet20'; did you mean 'resnet-20'\?"):
        plan_runs(experiment, scale="paper", variants=["plain-20", "resnet20"])


def test_a_change_by_set_is_kept_with_the_run(experiment):
    run = run_of(experiment, changes={"train.lr": 0.05})
    assert (run.recipe.train.lr, dict(run.changes)) == (0.05, {"train.lr": 0.05})


def test_setting_what_is_declared_changes_nothing(experiment):
    run = run_of(experiment, changes={"train.lr": 0.1})
    assert dict(run.changes) == {}
    assert name_of(run) == name_of(run_of(experiment))


# --- identity ----------------------------------------------------------------------------------------------


def test_the_same_run_is_the_same_identity(declare):
    assert name_of(run_of(declare())) == name_of(run_of(declare()))


def test_identity_is_that_of_recipe_seed_data_and_code(experiment):
    first, second = plan_runs(experiment, scale="paper", variants=["plain-20"], seeds=2)
    changed = run_of(experiment, changes={"train.lr": 0.05})
    names = [
        name_of(first),
        name_of(second),
        name_of(changed),
        name_of(first, manifest="other"),
        name_of(first, code="other"),
        name_of(run_of(experiment, variant="plain-32")),
        name_of(run_of(experiment, scale="laptop")),
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("momentum: 0.9", "momentum: 0.8"),
        ("[pad4-crop, flip]", "[flip]"),
        ("steps: 64000", "steps: 64001"),
        ("depth: 20}}", "depth: 26}}"),
    ],
)
def test_any_setting_of_the_recipe_makes_another_run(declare, old, new):
    before = name_of(run_of(declare()))
    assert name_of(run_of(declare(old, new))) != before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  paper: {why: As published.}", "  paper: {why: As printed.}"),
        ("Do deep", "Do very deep"),
        ("margin: 0.5", "margin: 0.7"),
        ("[0, 1, 2, 3, 4]", "[0, 9]"),
        ("cifar10, augment", "cifar10, val: 0, augment"),  # the default, written out
        ("lr: 0.1\n", "lr: 1.0e-1\n"),
        ("steps: 12", "steps: 13"),  # another scale
    ],
)
def test_words_and_spellings_make_no_other_run(declare, old, new):
    before = name_of(run_of(declare()))
    assert name_of(run_of(declare(old, new))) == before


def test_the_name_of_a_scale_is_no_part_of_a_run(declare):
    declared = declare("  smoke:", "  again: {why: The same recipe.}\n  smoke:")
    assert name_of(run_of(declared, scale="again")) == name_of(run_of(declared, scale="paper"))


def test_a_changed_run_never_stands_for_a_declared_one_of_the_same_recipe(declare):
    declared = declare("depth: 32}}", "depth: 20}, train: {lr: 0.05}}")  # plain-32 is plain-20 with another rate
    changed = run_of(declared, changes={"train.lr": 0.05})
    same = run_of(declared, variant="plain-32")
    assert changed.declaration == same.declaration
    assert name_of(changed) != name_of(same)


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_a_younger_setting_at_its_default_changes_no_hash():
    """Runs made before a setting existed are still runs of the same recipe; hashes as tracked then."""
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


def test_what_trains_nothing_cannot_be_planned(declare):
    declared = declare().model_copy(update={"scales": {}})
    with pytest.raises(UserError, match="toy/depth trains nothing: its claims are judged by arithmetic"):
        plan_runs(declared, scale="paper")


# --- steps -------------------------------------------------------------------------------------------------

ENSEMBLES = """derived:
  pair: {kind: ensemble, members: {plain-20: 2}}
  mixed: {kind: ensemble, members: {plain-20: 2, plain-32: 1}}
  small: {kind: compression, of: plain-20, density: 0.5, conv_bits: 8, fc_bits: 5}
scales:
"""


@pytest.fixture
def with_steps(declare):
    return declare("scales:\n", ENSEMBLES)


def test_a_step_comes_once_the_runs_it_consumes_are_there(with_steps):
    assert titles(plan_runs(with_steps, scale="paper", variants=["plain-20", "plain-32"], seeds=3)) == [
        "plain-20 seed 0", "plain-32 seed 0", "small seed 0",
        "plain-20 seed 1", "plain-32 seed 1", "pair seed 0", "mixed seed 0", "small seed 1",
        "plain-20 seed 2", "plain-32 seed 2", "small seed 2",
    ]  # fmt: skip


def test_each_ensemble_consumes_runs_of_its_own(with_steps):
    steps = [
        one
        for one in plan_runs(with_steps, scale="paper")
        if isinstance(one, DerivedRun) and one.variant == "mixed"
    ]
    assert [titles(step.members) for step in steps] == [
        ["plain-20 seed 0", "plain-20 seed 1", "plain-32 seed 0"],
        ["plain-20 seed 2", "plain-20 seed 3", "plain-32 seed 1"],
    ]  # of five seeds; the fifth is alone
    assert [step.seed for step in steps] == [0, 2]


def test_the_order_in_which_members_are_written_makes_no_other_step(declare):
    orders = "plain-20: 2, plain-32: 1", "plain-32: 1, plain-20: 2"
    first, second = (
        [one for one in plan_runs(declare("scales:\n", ENSEMBLES.replace(orders[0], order)), scale="paper")
         if isinstance(one, DerivedRun) and one.variant == "mixed"]
        for order in orders
    )  # fmt: skip
    assert [one.seed for one in second] == [one.seed for one in first] == [0, 2]
    assert [one.declaration for one in second] == [one.declaration for one in first]


def test_a_step_is_left_out_where_its_runs_are(with_steps):
    found = [
        plan_runs(with_steps, scale="paper", variants=[variant], seeds=5) for variant in ("plain-20", "plain-32")
    ]
    assert [{one.variant for one in some if isinstance(one, DerivedRun)} for some in found] == [
        {"pair", "small"},
        set(),
    ]


def a_step(experiment, name="pair", **other):
    return next(one for one in plan_runs(experiment, scale="paper", **other) if one.variant == name)


def test_a_changed_recipe_changes_the_step_and_counts_for_nothing(with_steps):
    changed = a_step(with_steps, changes={"train.lr": 0.05})
    assert changed.changes == {"train.lr": 0.05}
    assert changed.declaration != a_step(with_steps).declaration
    assert a_step(with_steps).changes == {}


def test_what_a_step_and_its_runs_are_called_is_no_part_of_it(declare, with_steps):
    renamed = declare(
        "scales:\n", ENSEMBLES.replace("plain-20", "first").replace("pair", "two"),
        "plain-20: {model", "first: {model", "[plain-20, resnet-20]", "[first, resnet-20]",
        "of: plain-20, metric: model", "of: first, metric: model", "of: plain-20, metric: recipe",
        "of: first, metric: recipe", "of: plain-20", "of: first", "rhs: plain-20", "rhs: first",
        "rhs: plain-20", "rhs: first",
    )  # fmt: skip
    assert a_step(renamed, "two").declaration == a_step(with_steps).declaration
    assert a_step(with_steps, "small").declaration != a_step(with_steps, "pair").declaration


@pytest.mark.parametrize(("old", "new"), [("density: 0.5", "density: 0.4"), ("conv_bits: 8", "conv_bits: 7")])
def test_any_setting_of_a_step_makes_another(declare, with_steps, old, new):
    before = a_step(with_steps, "small").declaration
    assert a_step(declare("scales:\n", ENSEMBLES.replace(old, new)), "small").declaration != before


def test_a_steps_identity_is_that_of_its_runs_its_data_and_its_code(with_steps):
    step = a_step(with_steps)
    known = {"manifest": "m", "code": "c", "members": ["a", "b"]}
    names = [identity(step, **known)] + [
        identity(step, **known | other)
        for other in ({"manifest": "n"}, {"code": "d"}, {"members": ["a", "x"]}, {"members": ["a"]})
    ]
    assert len(set(names)) == len(names)


def test_the_declaration_of_a_run_is_the_digest_of_its_recipe_and_its_seed(experiment):
    run = run_of(experiment)
    recipe = without_later_defaults(run.recipe.model_dump(mode="json"))
    assert declaration_hashes(run.recipe, [0, 7]) == {
        seed: digest({"recipe": recipe, "seed": seed}) for seed in (0, 7)
    }
    assert run.declaration == declaration_hashes(run.recipe, [0])[0]
