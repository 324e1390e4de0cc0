"""From an experiment to runs, and what makes a run another run."""

import ast
import shutil

import pytest

from pipeline.common.errors import UserError
from pipeline.common.hashing import bare_source, digest
from pipeline.common.paths import ROOT
from pipeline.plan.declaration import declared, settled
from pipeline.plan.expand import Step, place_of, plan, seed_row
from pipeline.plan.identity import code_hash, identity, imported_modules, step_code


def titles(runs):
    return [run.title for run in runs]


def run_of(experiment, variant="plain-20", scale="paper", **other):
    return plan(experiment, scale=scale, variants=[variant], seeds=1, **other)[0]


def name_of(run, manifest="m", code="c"):
    return identity(run, manifest=manifest, code=code)


# --- the plan ----------------------------------------------------------------------------------------------


def test_an_interrupted_plan_has_whole_comparisons(experiment):
    assert titles(plan(experiment, scale="smoke")) == [
        "plain-20 seed 0", "resnet-20 seed 0",
        "plain-20 seed 1", "resnet-20 seed 1",
        "plain-20 seed 2", "resnet-20 seed 2",
    ]  # fmt: skip


def test_all_variants_and_declared_seeds_without_words_to_the_contrary(experiment):
    assert len(plan(experiment, scale="paper")) == 3 * 5


def test_named_variants_run_once_each_also_where_the_scale_leaves_them_out(experiment):
    assert titles(plan(experiment, scale="smoke", variants=["plain-32", "plain-32"], seeds=1)) == [
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
    runs = plan(declare("[0, 1, 2, 3, 4]", declared), scale="paper", variants=["plain-20"], seeds=asked)
    assert [run.seed for run in runs] == seeds


@pytest.mark.parametrize("declared", [(), (0, 1, 2), (7, 1, 0), (1000,), (2**70, 3)])
def test_a_seed_s_place_in_the_row_needs_no_row(declared):
    row = seed_row(declared, 20)
    assert len({*row}) == 20
    assert [place_of(declared, seed) for seed in row] == list(range(20))
    assert place_of(declared, 10**12) == 10**12 + sum(seed > 10**12 for seed in declared)


def test_a_thousand_seeds_are_the_most(experiment):
    assert len({run.seed for run in plan(experiment, scale="paper", variants=["plain-20"], seeds=1000)}) == 1000


@pytest.mark.parametrize("seeds", [0, -1, 1001])
def test_an_impossible_number_of_seeds_is_refused(experiment, seeds):
    with pytest.raises(UserError, match=f"--seeds {seeds}: a number from 1 to 1000 is needed"):
        plan(experiment, scale="paper", seeds=seeds)


def test_unknown_names_name_the_nearest(experiment):
    with pytest.raises(UserError, match=r"toy/depth has no scale 'laptp'; did you mean 'laptop'\?"):
        plan(experiment, scale="laptp")
    with pytest.raises(UserError, match=r"toy/depth has no variant 'resnet20'; did you mean 'resnet-20'\?"):
        plan(experiment, scale="paper", variants=["plain-20", "resnet20"])


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
    first, second = plan(experiment, scale="paper", variants=["plain-20"], seeds=2)
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


# --- the code that can change a run's numbers --------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A copy of the project's code, to be changed."""
    for package in ("pipeline", "lightning_modules"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def changed_by(tree):
    """Whether adding text to a file, or replacing some, changes the hash of a network's code."""

    def change(file, text, *, network="resnet", old=None):
        network_file, path = tree / f"lightning_modules/{network}.py", tree / file
        before, source = code_hash(network_file, tree), path.read_text(encoding="utf-8")
        assert old is None or old in source
        path.write_text(source + text if old is None else source.replace(old, text, 1), encoding="utf-8")
        return code_hash(network_file, tree) != before

    return change


SHARED = [
    "pipeline/train.py", "pipeline/evaluate.py", "pipeline/data/batches.py", "pipeline/data/sources.py",
    "lightning_modules/classifier.py", "lightning_modules/recipe.py",
]  # fmt: skip


@pytest.mark.parametrize("file", [*SHARED, "lightning_modules/resnet.py"])
def test_a_constant_of_what_trains_changes_the_code(changed_by, file):
    assert changed_by(file, "\nMADE_UP = 1\n")


@pytest.mark.parametrize("file", ["lightning_modules/resnet.py", "pipeline/train.py"])
@pytest.mark.parametrize("text", ["\n# why not\n", "\n\n\n", "  # end\n"])
def test_comments_and_layout_do_not(changed_by, file, text):
    assert not changed_by(file, text)


def test_docstrings_do_not(changed_by):
    assert not changed_by("lightning_modules/layers.py", "Zero padding, no weights.", old="No parameters.")


def test_one_changed_number_does(changed_by):
    assert changed_by("lightning_modules/resnet.py", '"map8": 65', old='"map8": 64')


@pytest.mark.parametrize(
    "file",
    [
        "lightning_modules/lenet5.py",
        "lightning_modules/sdlm.py",
        "lightning_modules/networks.py",
        "pipeline/ledger.py",
    ],
)
def test_another_papers_file_and_what_only_reports_do_not_matter(changed_by, file):
    assert not changed_by(file, "\nMADE_UP = 1\n")


def test_a_papers_own_way_to_learn_belongs_to_it(changed_by):
    assert changed_by("lightning_modules/sdlm.py", "\nMADE_UP = 1\n", network="lenet5")


@pytest.mark.parametrize(
    "line",
    [
        "from lightning_modules.helper import X",
        "from lightning_modules import helper",
        "import lightning_modules.helper",
        "def late():\n    import lightning_modules.helper as h, math",
    ],
)
def test_whatever_the_network_imports_belongs_to_it(tree, changed_by, line):
    (tree / "lightning_modules/helper.py").write_text("X = 1\n", encoding="utf-8")
    with (tree / "lightning_modules/resnet.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    assert changed_by("lightning_modules/helper.py", "X = 2\n")


def test_the_map_of_networks_and_what_is_said_of_names_change_no_number():
    assert imported_modules(ROOT / "lightning_modules/classifier.py") == {"errors", "recipe"}


def test_the_code_is_the_same_wherever_it_lies(tree):
    assert code_hash(tree / "lightning_modules/resnet.py", tree) == code_hash(ROOT / "lightning_modules/resnet.py")


def test_a_link_to_the_project_is_the_project(tree, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "project"
    link.symlink_to(tree)
    assert code_hash(link / "lightning_modules/resnet.py", tree) == code_hash(
        tree / "lightning_modules/resnet.py", link
    )


def test_bare_source_is_still_python(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        '"""D."""\nclass A:\n    """Only words."""\ndef f():\n    "w"\n    return "kept"  # c\n', encoding="utf-8"
    )
    bare = bare_source(path)
    ast.parse(bare)
    assert "kept" in bare
    assert not any(word in bare for word in ("D.", "Only", "'w'", "# c"))


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
    assert settled(new) == old
    new["train"]["optimizer"]["nesterov"] = True
    assert settled(new) != old


def test_what_trains_nothing_cannot_be_planned(declare):
    declared = declare().model_copy(update={"scales": {}})
    with pytest.raises(UserError, match="toy/depth trains nothing: its claims are judged by arithmetic"):
        plan(declared, scale="paper")


# --- steps -------------------------------------------------------------------------------------------------

ENSEMBLES = """steps:
  pair: {kind: ensemble, members: {plain-20: 2}}
  mixed: {kind: ensemble, members: {plain-20: 2, plain-32: 1}}
  small: {kind: compression, of: plain-20, density: 0.5, conv_bits: 8, fc_bits: 5}
scales:
"""


@pytest.fixture
def with_steps(declare):
    return declare("scales:\n", ENSEMBLES)


def test_a_step_comes_once_the_runs_it_consumes_are_there(with_steps):
    assert titles(plan(with_steps, scale="paper", variants=["plain-20", "plain-32"], seeds=3)) == [
        "plain-20 seed 0", "plain-32 seed 0", "small seed 0",
        "plain-20 seed 1", "plain-32 seed 1", "pair seed 0", "mixed seed 0", "small seed 1",
        "plain-20 seed 2", "plain-32 seed 2", "small seed 2",
    ]  # fmt: skip


def test_each_ensemble_consumes_runs_of_its_own(with_steps):
    steps = [one for one in plan(with_steps, scale="paper") if isinstance(one, Step) and one.variant == "mixed"]
    assert [titles(step.members) for step in steps] == [
        ["plain-20 seed 0", "plain-20 seed 1", "plain-32 seed 0"],
        ["plain-20 seed 2", "plain-20 seed 3", "plain-32 seed 1"],
    ]  # of five seeds; the fifth is alone
    assert [step.seed for step in steps] == [0, 2]


def test_the_order_in_which_members_are_written_makes_no_other_step(declare):
    orders = "plain-20: 2, plain-32: 1", "plain-32: 1, plain-20: 2"
    first, second = (
        [one for one in plan(declare("scales:\n", ENSEMBLES.replace(orders[0], order)), scale="paper")
         if isinstance(one, Step) and one.variant == "mixed"]
        for order in orders
    )  # fmt: skip
    assert [one.seed for one in second] == [one.seed for one in first] == [0, 2]
    assert [one.declaration for one in second] == [one.declaration for one in first]


def test_a_step_is_left_out_where_its_runs_are(with_steps):
    found = [plan(with_steps, scale="paper", variants=[variant], seeds=5) for variant in ("plain-20", "plain-32")]
    assert [{one.variant for one in some if isinstance(one, Step)} for some in found] == [{"pair", "small"}, set()]


def a_step(experiment, name="pair", **other):
    return next(one for one in plan(experiment, scale="paper", **other) if one.variant == name)


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


@pytest.mark.parametrize(
    ("file", "kind", "matters"),
    [
        ("pipeline/steps.py", "pair", True),
        ("pipeline/steps.py", "small", True),
        ("pipeline/steps_compression.py", "small", True),
        ("pipeline/steps_compression.py", "pair", False),
        ("pipeline/steps_transfer.py", "small", False),
        ("pipeline/ledger.py", "small", False),
    ],
)
def test_the_code_of_a_step_is_that_of_its_kind(with_steps, tree, file, kind, matters):
    step = a_step(with_steps, kind)
    before = step_code(step, ["code"], tree)
    assert step_code(step, ["other"], tree) != before
    path = tree / file
    path.write_text(path.read_text(encoding="utf-8") + "\nMADE_UP = 1\n", encoding="utf-8")
    assert (step_code(step, ["code"], tree) != before) is matters


def test_the_declaration_of_a_run_is_the_digest_of_its_recipe_and_its_seed(experiment):
    run = run_of(experiment)
    recipe = settled(run.recipe.model_dump(mode="json"))
    assert declared(run.recipe, [0, 7]) == {seed: digest({"recipe": recipe, "seed": seed}) for seed in (0, 7)}
    assert run.declaration == declared(run.recipe, [0])[0]
