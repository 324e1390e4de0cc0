"""Identities of runs, and code hashes: moving code does not change them, changing what it computes does."""

import re
import shutil

import pytest

from pipeline.common.paths import ROOT
from pipeline.declare.derived import CompressionSpec, EnsembleSpec
from pipeline.derive.run import HANDLERS
from pipeline.plan.expand import DerivedRun, plan_runs
from pipeline.plan.identity import (
    DERIVED_CODE,
    EQUIVALENT_CODE,
    TRAINING_CODE,
    code_hash,
    derived_code_hash,
    identity,
    imported_modules,
    matching_files,
)
from tests.support.plans import DERIVED_OF_PLAIN_20, first_derived, first_run

DRAFT = '"""A module."""\n'


@pytest.fixture(scope="module")
def tree_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tree")


@pytest.fixture
def tree(tree_folder):
    """A copy of the project's code that a test may change.

    Always in the same folder and with the original times: only files that a test changes are parsed again.
    """
    for package in ("pipeline", "lightning_modules"):
        shutil.copytree(ROOT / package, tree_folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    yield tree_folder
    for path in tree_folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture
def edit(tree):
    """Append text to a file of the copy, or replace its first occurrence of `old` by it."""

    def replace(file, text, *, old=None):
        path = tree / file
        source = path.read_text(encoding="utf-8")
        assert old is None or old in source
        path.write_text(source + text if old is None else source.replace(old, text, 1), encoding="utf-8")

    return replace


@pytest.fixture
def hash_changes(tree, edit):
    """Make an edit, and return whether it changes the code hash of a network."""

    def changes(file, text, *, network="resnet", old=None):
        network_file = tree / f"lightning_modules/{network}.py"
        before = code_hash(network_file, tree)
        edit(file, text, old=old)
        return code_hash(network_file, tree) != before

    return changes


def identity_of(run, manifest="m", code="c"):
    return identity(run, manifest=manifest, code=code)


# --- identities of runs ------------------------------------------------------------------------------------


def test_the_same_run_has_the_same_identity(declare):
    assert identity_of(first_run(declare())) == identity_of(first_run(declare()))


def test_recipe_seed_data_and_code_are_part_of_the_identity(experiment):
    first, second = plan_runs(experiment, scale="paper", variants=["plain-20"], seeds=2)
    changed = first_run(experiment, changes={"train.lr": 0.05})
    identities = [
        identity_of(first),
        identity_of(second),
        identity_of(changed),
        identity_of(first, manifest="other"),
        identity_of(first, code="other"),
        identity_of(first_run(experiment, variant="plain-32")),
        identity_of(first_run(experiment, scale="laptop")),
    ]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("momentum: 0.9", "momentum: 0.8"),
        ("[pad4-crop, flip]", "[flip]"),
        ("steps: 64000", "steps: 64001"),
        ("depth: 20}}", "depth: 26}}"),
    ],
)
def test_every_setting_of_the_recipe_is_part_of_the_identity(declare, old, new):
    before = identity_of(first_run(declare()))
    assert identity_of(first_run(declare(old, new))) != before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  paper: {why: As published.}", "  paper: {why: As printed.}"),
        ("Do deep", "Do very deep"),
        ("margin: 0.5", "margin: 0.7"),
        ("[0, 1, 2, 3, 4]", "[0, 9]"),
        ("cifar10, augment", "cifar10, val: 0, augment"),  # the default value, written out
        ("lr: 0.1\n", "lr: 1.0e-1\n"),
        ("steps: 12", "steps: 13"),  # another scale
    ],
)
def test_texts_claims_and_number_formats_are_not_part_of_the_identity(declare, old, new):
    before = identity_of(first_run(declare()))
    assert identity_of(first_run(declare(old, new))) == before


def test_the_name_of_a_scale_is_not_part_of_the_identity(declare):
    declared = declare("  smoke:", "  again: {why: The same recipe.}\n  smoke:")
    assert identity_of(first_run(declared, scale="again")) == identity_of(first_run(declared, scale="paper"))


def test_a_changed_run_has_another_identity_than_a_declared_one_with_the_same_recipe(declare):
    declared = declare("depth: 32}}", "depth: 20}, train: {lr: 0.05}}")  # plain-32 is plain-20 with another rate
    changed = first_run(declared, changes={"train.lr": 0.05})
    same = first_run(declared, variant="plain-32")
    assert changed.declaration == same.declaration
    assert identity_of(changed) != identity_of(same)


def test_members_data_and_code_are_part_of_the_identity_of_a_derived_run(declare):
    run = first_derived(declare("scales:\n", DERIVED_OF_PLAIN_20))
    known = {"manifest": "m", "code": "c", "members": ["a", "b"]}
    identities = [identity(run, **known)] + [
        identity(run, **known | other)
        for other in ({"manifest": "n"}, {"code": "d"}, {"members": ["a", "x"]}, {"members": ["a"]})
    ]
    assert len(set(identities)) == len(identities)


# --- code hashes -------------------------------------------------------------------------------------------


def resnet_hash(tree):
    return code_hash(tree / "lightning_modules/resnet.py", tree)


# --- edits that do not change a code hash ------------------------------------------------------------------


def test_moving_a_file_changes_no_hash(tree):
    before = resnet_hash(tree)
    (tree / "pipeline/data/jpeg.py").rename(tree / "pipeline/train/decoding.py")
    for path in (tree / "pipeline").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        moved = source.replace("from pipeline.data.jpeg import", "from pipeline.train.decoding import")
        moved = moved.replace("from pipeline.data import jpeg", "from pipeline.train import decoding")
        path.write_text(re.sub(r"\bjpeg\.(?=[A-Za-z_])", "decoding.", moved), encoding="utf-8")
    assert resnet_hash(tree) == before


def test_splitting_a_file_changes_no_hash(tree):
    before = resnet_hash(tree)
    path = tree / "pipeline/data/order.py"
    source = path.read_text(encoding="utf-8")
    place = source.index("\ndef epoch_stream")
    head, tail = source[:place], source[place:]
    imports = "".join(line + "\n" for line in head.splitlines() if line.startswith(("import ", "from ")))
    path.write_text(head, encoding="utf-8")
    own = "from pipeline.data.order import permutation\n"
    (tree / "pipeline/data/epochs.py").write_text(DRAFT + imports + own + tail, encoding="utf-8")
    assert resnet_hash(tree) == before


def test_reordering_imports_and_definitions_changes_no_hash(tree):
    before = resnet_hash(tree)
    path = tree / "pipeline/data/order.py"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert len(imports) > 1
    rest = [line for line in lines if line not in imports]
    path.write_text("".join([rest[0], *reversed(imports), *rest[1:]]), encoding="utf-8")
    assert resnet_hash(tree) == before


def test_renaming_a_function_of_the_schedule_changes_no_hash(tree):
    before = resnet_hash(tree)
    path = tree / "pipeline/schedule/execute.py"
    source = path.read_text(encoding="utf-8")
    assert "ignore_event" in source
    path.write_text(source.replace("ignore_event", "do_nothing"), encoding="utf-8")
    assert resnet_hash(tree) == before


@pytest.mark.parametrize("file", ["lightning_modules/resnet.py", "pipeline/train/train.py"])
@pytest.mark.parametrize("text", ["\n# why not\n", "\n\n\n", "  # end\n"])
def test_comments_and_layout_change_no_hash(hash_changes, file, text):
    assert not hash_changes(file, text)


def test_docstrings_and_error_messages_change_no_hash(tree, edit):
    before = resnet_hash(tree)
    text = '\n\ndef made_up(x):\n    """{}"""\n    if x:\n        raise ValueError(f"{} {{x}}")\n    return 1\n'
    edit("pipeline/data/order.py", text.format("One.", "one"))
    one = resnet_hash(tree)
    edit("pipeline/data/order.py", "Two.", old="One.")
    edit("pipeline/data/order.py", "two", old="one {x}")
    assert resnet_hash(tree) == one != before


@pytest.mark.parametrize(
    "file",
    [
        "lightning_modules/lenet5.py",
        "lightning_modules/sdlm.py",
        "lightning_modules/networks.py",
        "pipeline/judge/ledger.py",
        "pipeline/data/prepare/write_shards.py",
    ],
)
def test_code_of_other_papers_and_of_reports_changes_no_hash(hash_changes, file):
    assert not hash_changes(file, "\nMADE_UP = 1\n")


def test_the_hash_does_not_depend_on_where_the_project_is(tree, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "project"
    link.symlink_to(tree)
    here = code_hash(ROOT / "lightning_modules/resnet.py")
    assert resnet_hash(tree) == here
    assert code_hash(link / "lightning_modules/resnet.py", tree) == here
    assert code_hash(tree / "lightning_modules/resnet.py", link) == here


# --- edits that change code hashes -------------------------------------------------------------------------

SHARED = [
    "pipeline/train/train.py",
    "pipeline/train/evaluate.py",
    "pipeline/data/batches.py",
    "pipeline/data/sources.py",
    "pipeline/declare/protocol.py",
    "lightning_modules/classifier.py",
    "lightning_modules/recipe.py",
]


@pytest.mark.parametrize("file", [*SHARED, "lightning_modules/resnet.py"])
def test_a_new_constant_on_the_training_path_changes_the_hash(hash_changes, file):
    assert hash_changes(file, "\nMADE_UP = 1\n")


def test_a_changed_constant_changes_the_hashes_of_its_users(tree, edit):
    networks = ("resnet", "lenet5", "alexnet")

    def hashes():
        return [code_hash(tree / f"lightning_modules/{network}.py", tree) for network in networks]

    before = hashes()
    edit("lightning_modules/resnet.py", '"map8": 65', old='"map8": 64')
    own = hashes()
    assert [a != b for a, b in zip(before, own, strict=True)] == [True, False, False]
    edit("pipeline/data/batches.py", "SHEAR = 0.5 + ", old="SHEAR = ")
    assert all(a != b for a, b in zip(own, hashes(), strict=True))


def test_another_library_under_the_same_name_changes_the_hash(hash_changes):
    assert hash_changes("pipeline/data/order.py", "from made_up import sha256\n", old="import hashlib\n")


def test_another_definition_under_the_same_name_changes_the_hash(tree, edit):
    line = "\nfrom pipeline.data.order import {} as order_of\n"
    edit("pipeline/data/batches.py", line.format("permutation"))
    before = resnet_hash(tree)
    edit("pipeline/data/batches.py", "import epoch_stream as order_of", old="import permutation as order_of")
    assert resnet_hash(tree) != before


def test_another_error_raised_changes_the_hash(tree, edit):
    edit("pipeline/data/order.py", "\n\ndef made_up():\n    raise ValueError(1)\n")
    before = resnet_hash(tree)
    edit("pipeline/data/order.py", "raise StopIteration(1)", old="raise ValueError(1)")
    assert resnet_hash(tree) != before


def test_an_optimizer_of_one_paper_belongs_to_its_network(hash_changes):
    assert hash_changes("lightning_modules/sdlm.py", "\nMADE_UP = 1\n", network="lenet5")


@pytest.mark.parametrize(("network", "changes"), [("vgg_localisation", True), ("vgg", False)])
def test_box_regression_belongs_to_networks_that_predict_boxes(hash_changes, network, changes):
    assert hash_changes("lightning_modules/box_regression.py", "\nMADE_UP = 1\n", network=network) == changes


@pytest.mark.parametrize(
    "line",
    [
        "from lightning_modules.helper import X",
        "from lightning_modules import helper",
        "import lightning_modules.helper",
        "def late():\n    import lightning_modules.helper as h, math",
    ],
)
def test_a_module_that_the_network_imports_belongs_to_it(tree, hash_changes, edit, line):
    (tree / "lightning_modules/helper.py").write_text("X = 1\n", encoding="utf-8")
    edit("lightning_modules/resnet.py", f"\n{line}\n")
    assert hash_changes("lightning_modules/helper.py", "X = 2\n")


def test_imports_of_networks_and_names_are_not_followed():
    assert imported_modules(ROOT / "lightning_modules/classifier.py") == {"errors", "recipe", "rmsprop", "weights"}


# --- the list of training code -----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["pipeline/declare/protocol.py", "pipeline/train"])
def test_an_entry_that_matches_nothing_is_an_error(tree, file):
    (tree / file).rename(tree / "moved")
    with pytest.raises(FileNotFoundError, match=f"has {file}.*, which matches no file"):
        resnet_hash(tree)


def test_a_missing_file_of_a_derived_run_is_an_error(tree):
    (tree / "pipeline/derive/ensemble.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"has pipeline/derive/ensemble\.py, which matches no file"):
        derived_code_hash(derived("ensemble"), ["code"], tree)


def test_every_kind_of_derived_run_has_its_code():
    kinds = {"ensemble", "ensemble-sizes", "protocol", "column", "transfer", "compression", "localisation"}
    assert set(HANDLERS) == kinds
    assert set(DERIVED_CODE) == {*kinds, "timing"}  # which consumes no runs and has no handler
    for patterns in (TRAINING_CODE, *DERIVED_CODE.values()):
        assert matching_files(patterns, ROOT)


def derived(kind):
    """A derived run of this kind, without members."""
    specs = {
        "ensemble": EnsembleSpec(kind="ensemble", members={"a": 2}),
        "compression": CompressionSpec(kind="compression", of="a", density=0.5, conv_bits=8, fc_bits=5),
    }
    return DerivedRun("toy/depth", "paper", kind, 0, specs[kind], ())


@pytest.mark.parametrize(
    ("file", "kind", "matters"),
    [
        ("pipeline/derive/context.py", "ensemble", True),
        ("pipeline/derive/run.py", "compression", True),
        ("pipeline/derive/compression.py", "compression", True),
        ("pipeline/derive/quantise.py", "compression", True),
        ("pipeline/derive/retrain.py", "compression", True),
        ("pipeline/derive/compressed_file.py", "compression", True),
        ("pipeline/derive/huffman.py", "compression", True),
        ("pipeline/derive/compression.py", "ensemble", False),
        ("pipeline/derive/transfer.py", "compression", False),
        ("pipeline/judge/ledger.py", "compression", False),
    ],
)
def test_the_code_of_a_derived_run_is_that_of_its_kind(tree, edit, file, kind, matters):
    before = derived_code_hash(derived(kind), ["code"], tree)
    assert derived_code_hash(derived(kind), ["other"], tree) != before
    edit(file, "\nMADE_UP = 1\n")
    assert (derived_code_hash(derived(kind), ["code"], tree) != before) is matters


def test_equivalent_code_is_that_of_a_hash_without_an_entry_of_its_own():
    """Else runs of a chain of versions would count in several groups."""
    assert all(re.fullmatch("[0-9a-f]{16}", code) for pair in EQUIVALENT_CODE.items() for code in pair)
    assert EQUIVALENT_CODE.keys().isdisjoint(EQUIVALENT_CODE.values())
