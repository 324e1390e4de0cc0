"""Experiments: resolved recipes, seeds, variants, test protocols and metrics."""

import pytest
from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import load_experiment
from pipeline.declare.metrics import metric_names
from tests.support.declarations import WITH_CROP

# ruff: noqa: E501 - declarations as an author writes them

# --- the recipe --------------------------------------------------------------------------------------------


def test_a_recipe_merges_experiment_variant_scale_and_changes(declare):
    declared = declare(
        "    train: {warmup:",
        "    train: {lr: 0.2, batch_size: 64, steps: 65000, warmup:",
        "train: {steps: 400,",
        "train: {batch_size: 32, steps: 400,",
    )
    assert declared.recipe("plain-20", "paper").train.lr == 0.1  # of the experiment
    assert declared.recipe("resnet-20", "paper").train.lr == 0.2  # of the variant
    assert declared.recipe("resnet-20", "paper").train.batch_size == 64
    assert declared.recipe("resnet-20", "laptop").train.batch_size == 32  # of the scale
    assert declared.recipe("resnet-20", "laptop").train.steps == 400
    changed = declared.recipe("resnet-20", "laptop", {"train.batch_size": 16, "train.optimizer.momentum": 0.5})
    assert changed.train.batch_size == 16  # of --set
    assert (changed.train.optimizer.momentum, changed.train.optimizer.weight_decay) == (0.5, 1e-4)
    assert changed.train.lr == 0.2


def test_a_nested_map_keeps_settings_that_are_not_overridden(experiment):
    assert experiment.recipe("plain-20", "smoke").train.lr_drops.factor == 0.1
    assert experiment.recipe("plain-20", "laptop").train.lr_drops.factor == 0.5
    assert experiment.recipe("plain-20", "laptop").data.name == "digits"


def test_a_change_by_set_does_not_change_the_declaration(experiment):
    assert experiment.recipe("resnet-20", "paper", {"train.warmup.lr": 0.05}).train.warmup.lr == 0.05
    assert experiment.recipe("resnet-20", "paper").train.warmup.lr == 0.01


def test_an_override_may_be_null(declare):
    declared = declare("train: {steps: 400,", "train: {warmup: null, steps: 400,")
    assert declared.recipe("resnet-20", "paper").train.warmup is not None
    assert declared.recipe("resnet-20", "laptop").train.warmup is None


def test_a_recipe_is_resolved_once_and_not_kept_for_a_copy_with_other_settings(experiment):
    first = experiment.recipe("plain-20", "paper")
    assert experiment.recipe("plain-20", "paper") is first
    assert experiment.model_copy(update={"claims": ()}).recipe("plain-20", "paper") is first
    assert experiment.recipe("plain-20", "paper", {"train.lr": 0.05}).train.lr == 0.05
    train = experiment.train.model_copy(update={"lr": 0.3})
    assert experiment.model_copy(update={"train": train}).recipe("plain-20", "paper").train.lr == 0.3
    assert experiment.recipe("plain-20", "paper").train.lr == 0.1


def test_what_is_kept_is_no_part_of_an_experiment(experiment, declare):
    again = declare()
    again.recipe("plain-20", "paper")
    again.memo["key"] = "value"
    assert again == experiment
    assert again.model_dump() == experiment.model_dump()
    assert again.with_others({}).memo == {}  # declarations depend on the others
    assert again.model_copy(update={"scales": {}}).memo == {}
    assert again.model_copy(update={"claims": ()}).memo["key"] == "value"


@pytest.mark.parametrize(
    ("variant", "scale", "words"),
    [
        ("plan-20", "paper", "unknown variant 'plan-20'; did you mean 'plain-20'?"),
        ("plain-20", "papr", "unknown scale 'papr'; did you mean 'paper'?"),
    ],
)
def test_an_unknown_variant_or_scale_names_the_closest(experiment, variant, scale, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        experiment.recipe(variant, scale)


# --- bf16 and channels-last --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "precision", "channels_last"),
    [("paper", "fp32", False), ("smoke", "fp32", False), ("laptop", "bf16", True), ("large", "fp32", False)],
)
def test_laptop_scale_alone_defaults_to_bf16_and_channels_last(declare, scale, precision, channels_last):
    train = declare("  smoke:", "  large: {}\n  smoke:").recipe("plain-20", scale).train
    assert (train.precision, train.channels_last) == (precision, channels_last)


@pytest.mark.parametrize("where", ["  batch_size: 128", "train: {steps: 400,"])
def test_a_declared_precision_is_kept(declare, where):
    new = where + "\n  precision: fp32" if where.startswith("  ") else where + " precision: fp32,"
    assert declare(where, new).recipe("plain-20", "laptop").train.precision == "fp32"


def test_set_overrides_the_default_precision(experiment):
    assert experiment.recipe("plain-20", "laptop", {"train.precision": "fp32"}).train.precision == "fp32"


def test_sdlm_keeps_full_precision(declare):
    online = "train: {batch_size: 1, warmup: null, loss: {name: map, j: 1.0, divided_by: 1.0}, optimizer: {name: sdlm, mu: 0.02, samples: 5}}"
    declared = declare("depth: 32}}", f"depth: 32}}, {online}}}")
    assert declared.recipe("plain-32", "laptop").train.precision == "fp32"
    assert declared.recipe("plain-20", "laptop").train.precision == "bf16"


# --- the declaration ---------------------------------------------------------------------------------------


def test_an_experiment_is_immutable(experiment):
    recipe = experiment.recipe("plain-20", "paper")
    for thing, key in (
        (experiment, "question"),
        (experiment.train, "lr"),
        (recipe.data, "name"),
        (experiment.claims[0], "id"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(thing, key, "x")


def test_a_scale_may_have_its_own_seeds_and_variants(experiment):
    assert experiment.seeds_at("smoke") == (0, 1, 2)
    assert experiment.seeds_at("paper") == (0, 1, 2, 3, 4)
    assert experiment.variants_at("smoke") == ("plain-20", "resnet-20")
    assert experiment.variants_at("paper") == ("plain-20", "plain-32", "resnet-20")


def test_the_data_of_the_paper_do_not_depend_on_the_scale(declare):
    declared = declare("depth: 32}}", "depth: 32}, data: {name: cifar100}}")
    assert declared.paper_data("plain-20") == "cifar10"
    assert declared.paper_data("plain-32") == "cifar100"


# --- metrics -----------------------------------------------------------------------------------------------

BY_DENSE = [f"test/dense-of-256/{error}" for error in ("top1_error_pct", "top5_error_pct", "loss", "images")]
TRAINED = ["train/top1_error_pct", "train/top5_error_pct", "train/loss"]


def test_the_metrics_of_a_derived_run_depend_on_its_kind(declare):
    derived = """derived:
  both: {kind: ensemble, members: {plain-20: 1, plain-32: 1}}
  more: {kind: protocol, of: plain-20, test: [dense-of-256]}
  else: {kind: transfer, of: plain-32, data: places, c: 1.0, view: 1-crop-224-of-256}
  less: {kind: compression, of: plain-20, density: 0.5, conv_bits: 8, fc_bits: 5}
scales:
"""
    measured = {
        name: set(metric_names(declare(*WITH_CROP, "scales:\n", derived), name, named=True))
        for name in ("plain-20", "both", "more", "else", "less")
    }
    assert measured["plain-20"] == {*BY_DENSE, *TRAINED}
    assert measured["both"] == measured["more"] == set(BY_DENSE)
    assert {"test/top1_error_pct", "test/mean_class_error_pct", "features"} < measured["else"]
    assert {*BY_DENSE, "pruned/dense-of-256/loss", "compressed/ratio"} < measured["less"]
    assert "original/loss" not in measured["less"]
    whole = metric_names(declare(*WITH_CROP, "scales:\n", derived), "less", named=False)
    assert {"test/loss", "original/loss", "pruned/loss", *measured["less"]} < set(whole)


def test_the_recipe_declares_measurements_beside_errors(declare):
    declared = declare(
        "  batch_size: 128\n",
        "  batch_size: 128\n  steps_to_error_pct: [25.0, 2.5]\n  gradient_norms: [conv1, map32.0]\n"
        "  column_losses: [4]\n",
    )
    names = {"train/steps_to_25_pct_error", "train/steps_to_2.5_pct_error"}
    names |= {"train/gradient_norm/conv1", "train/gradient_norm/map32.0", "train/column-4/loss"}
    assert names <= set(metric_names(declared, "plain-20", named=True))


# --- without scales -----------------------------------------------------------------------------------------

ARITHMETIC = """
paper: {title: "A", authors: "B", year: 2015, section: "3"}
question: Is it so?
data: {name: imagenet}
train: {steps: 100, batch_size: 10, lr: 0.1, optimizer: {name: sgd, momentum: 0.9}}
variants:
  resnet-20: {model: {name: resnet_cifar, depth: 20}, data: {name: cifar10}, train: {lr: 0.2}}
scales: {}
printed:
  Table 3: {error: {value: 14.8, confidence: memory}}
claims:
  - {id: size, kind: exact, says: "0.27 million", of: resnet-20, metric: model/parameters, claimed: 270000, margin: 5000, source: "Table 6"}
  - {id: chart, kind: exact, by: lecture, says: "11.7", metric: printed/error, claimed: 11.7, corrected: 14.8, source: "slides"}
"""


@pytest.fixture
def arithmetic(tmp_path):
    """Load an experiment without scales, after replacing a piece of its text."""

    def load_changed(old="", new=""):
        path = tmp_path / "toy" / "architecture.yaml"
        path.parent.mkdir(exist_ok=True)
        assert old in ARITHMETIC
        path.write_text(ARITHMETIC.replace(old, new, 1) if old else ARITHMETIC, encoding="utf-8")
        return load_experiment("toy/architecture", tmp_path)

    return load_changed


def test_a_variant_has_its_published_recipe(arithmetic):
    published = arithmetic().published("resnet-20")
    assert (published.model.args, published.data.name) == ({"depth": 20}, "cifar10")
    assert (published.train.lr, published.train.steps) == (0.2, 100)


def test_a_variant_with_a_partial_recipe_needs_the_experiments(arithmetic):
    recipe = "train: {steps: 100, batch_size: 10, lr: 0.1, optimizer: {name: sgd, momentum: 0.9}}\n"
    with pytest.raises(DeclarationError, match=r"variants.resnet-20.train.steps: this key is required"):
        arithmetic(recipe)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "train: {lr: 0.2}",
            "train: {lrr: 0.2}",
            "toy/architecture.yaml: variants.resnet-20.train.lrr: unknown key; did you mean 'lr'?",
        ),
        (
            "kind: exact, says",
            "kind: bound, op: '<', says",
            "toy/architecture.yaml: claims.size.margin: unknown key",
        ),
        (
            "confidence: memory",
            "confidense: memory",
            "toy/architecture.yaml: printed.error.confidense: unknown key; did you mean 'confidence'?",
        ),
    ],
)
def test_an_error_names_file_and_key(arithmetic, old, new, words):
    with pytest.raises(DeclarationError) as caught:
        arithmetic(old, new)
    assert str(caught.value).startswith(words)


def test_a_trained_claim_needs_scales(arithmetic):
    new = 'kind: metric, says: "x", of: resnet-20, metric: test/x, claimed: 9.0, margin: 1.0, source: "T"}'
    with pytest.raises(DeclarationError, match=r"claims.size: a claim of kind 'metric' needs runs"):
        arithmetic(ARITHMETIC.partition("{id: size, ")[2].partition("\n")[0], new)
