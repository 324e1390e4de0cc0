"""Derived runs in a declaration: what they consume, what a scale overrides, and what cannot be combined."""

import pytest

from pipeline.declare.derived import ERROR_METRICS, SIZE_METRICS
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import EXPERIMENTS, load_experiment
from pipeline.declare.metrics import metric_names
from tests.support.declarations import DERIVED, WITH_CROP, with_derived

# ruff: noqa: E501 - one error per line reads as a table


def test_a_derived_run_knows_the_runs_it_consumes(declare):
    declared = with_derived(declare)
    assert {name: spec.consumes for name, spec in declared.derived.items()} == {
        "three": {"plain-20": 2, "plain-32": 1},
        "small": {"resnet-20": 1},
        "else": {"plain-32": 1},
    }
    assert declared.derived_at("paper") == ["three", "small", "else"]
    assert declared.derived_at("smoke") == ["small"]  # the others consume plain-32, which does not run there
    assert declared.derived_at("smoke", ["plain-32"]) == ["else"]
    assert [declared.paper_data(name) for name in ("three", "else")] == ["cifar10", "cifar100"]


ERRORS = {
    "kind": ("{kind: compression", "{kind: compresion", "derived.small: unknown kind 'compresion'; did you mean 'compression'?"),
    "no kind": ("{kind: compression, ", "{", "derived.small: the key 'kind' is required"),
    "unknown key": ("density: 0.5", "densty: 0.5", "derived.small.densty: unknown key; did you mean 'density'?"),
    "density": ("density: 0.5", "density: 1.5", "derived.small.density: should be less than or equal to 1, not 1.5"),
    "bits": ("conv_bits: 8", "conv_bits: 9", "derived.small.conv_bits: should be less than or equal to 8, not 9"),
    "density of a layer": ("density: 0.5", "density: {conv1: 0.5, fc: 2.0}", "derived.small.density.fc: should be less than or equal to 1, not 2.0"),
    "no density": ("density: 0.5", "density: {}", "derived.small.density: should not be empty"),
    "bits of a layer": ("fc_bits: 5", "fc_bits: 5, bits: {conv1: 0}", "derived.small.bits.conv1: should be greater than or equal to 1, not 0"),
    "index bits": ("fc_bits: 5", "fc_bits: 5, fc_index_bits: 9", "derived.small.fc_index_bits: should be less than or equal to 8, not 9"),
    "prunings": ("fc_bits: 5", "fc_bits: 5, prunings: 3", "derived.small: 'prunings' > 1 needs 'retrain', the training after each pruning"),
    "retraining": ("fc_bits: 5", "fc_bits: 5, retrain: {steps: 10}", "derived.small.retrain.lr: this key is required"),
    "key of a retraining": ("fc_bits: 5", "fc_bits: 5, tune: {steps: 10, rate: 0.1}", "derived.small.tune.rate: unknown key; known: batch_size, lr, lr_end, steps"),
    "one network": ("members: {plain-20: 2, plain-32: 1}", "members: {plain-20: 1}", "derived.three: an ensemble needs at least 2 networks"),
    "unknown variant": ("of: resnet-20", "of: resnet-2", "derived.small: unknown variant 'resnet-2'; did you mean 'resnet-20'?"),
    "a variant's name": ("  three:", "  plain-32:", "derived.plain-32: a variant has the same name; give the derived run another"),
    "protocols": ("plain-32: 1}", "plain-32: 1}, test: [dense-of-256]", "derived.three (at paper scale): test protocols need runs whose data has a 'crop'"),
    "protocol": ("kind: compression, of: resnet-20, density: 0.5, conv_bits: 8, fc_bits: 5", "kind: protocol, of: resnet-20, test: [dense-of-256]", "derived.small (at paper scale): test protocols need runs whose data has a 'crop'"),
    "no such protocol": ("kind: compression, of: resnet-20, density: 0.5, conv_bits: 8, fc_bits: 5", "kind: protocol, of: resnet-20, test: [dense]", "derived.small.test.0: unknown test protocol 'dense'; examples: 1-crop-224-of-256, 10-crop-224-of-256, 144-crop-224-of-256-288-320-352, dense-of-256-384-512"),
    "a set of many sizes": ("data: cifar100, c: 1.0", "data: voc2007, c: 1.0, view: dense-of-256", "derived.else (at paper scale): voc2007 has images of many sizes, so it needs runs whose data has a 'crop'"),
    "values of C": ("c: 1.0", "c: [0.1, 1.0]", "derived.else: several values of 'c' need 'validation', the training images on which one is chosen"),
    "too few seeds": ("plain-20: 2", "plain-20: 6", "derived.three: 6 networks of plain-20 need 6 seeds, but there are 5 at paper scale; add seeds in variants.plain-20.seeds, or use fewer networks in scales.paper.derived.three"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_invalid_derived_run_is_an_error_with_file_key_and_reason(declare, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        with_derived(declare, old, new)
    assert str(caught.value) == f"toy/depth.yaml: {message}"


def test_a_scale_overrides_settings_of_a_derived_run(declare):
    smaller = "  smoke:\n    derived: {small: {density: 0.1}}\n"
    declared = declare("scales:\n", DERIVED, "  smoke:\n", smaller)
    assert (declared.derived_spec("small", "paper").density, declared.derived_spec("small", "smoke").density) == (
        0.5,
        0.1,
    )
    assert declared.derived_spec("small", "smoke").conv_bits == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{smal: {density: 0.1}}", "scales.smoke.derived: unknown derived run 'smal'; did you mean 'small'?"),
        (
            "{small: {density: 2.0}}",
            "scales.smoke.derived.small.density: should be less than or equal to 1, not 2.0",
        ),
        (
            "{small: {of: resnt-20}}",
            "scales.smoke.derived.small: unknown variant 'resnt-20'; did you mean 'resnet-20'?",
        ),
        (
            "{small: {kind: protocol}}",
            "scales.smoke.derived.small.kind: unknown value 'protocol'; known: compression",
        ),
    ],
)
def test_an_invalid_override_of_a_scale_is_an_error_with_file_key_and_reason(declare, change, message):
    with pytest.raises(DeclarationError) as caught:
        declare("scales:\n", DERIVED, "  smoke:\n", f"  smoke:\n    derived: {change}\n")
    assert str(caught.value) == f"toy/depth.yaml: {message}"


def test_a_variant_may_have_more_seeds_for_a_derived_run(declare):
    more = "plain-20: {seeds: [0, 1, 2, 3, 4, 5, 6, 7], model:"
    declared = declare(
        "plain-20: {model:",
        more,
        "scales:\n",
        DERIVED.replace("plain-20: 2", "plain-20: 8"),
        "  laptop:\n",
        "  laptop:\n    derived: {three: {members: {plain-20: 5}}}\n    seeds: [0, 1, 2, 3, 4]\n",
    )
    assert declared.seeds_of("plain-20", "paper") == tuple(range(8))
    assert declared.seeds_of("plain-32", "paper") == (0, 1, 2, 3, 4)
    assert declared.seeds_of("plain-20", "smoke") == (0, 1, 2)  # a scale's seeds are for all


def test_a_trained_claim_may_be_about_a_derived_run_but_an_exact_claim_may_not(declare):
    trained = "of: plain-20, metric: test"
    declared = declare("scales:\n", DERIVED, trained, "of: small, metric: test")
    assert next(claim for claim in declared.claims if claim.id == "error").of == "small"
    with pytest.raises(DeclarationError, match=r"claims.size.of: unknown variant 'small'"):
        declare("scales:\n", DERIVED, "of: plain-20, metric: model", "of: small, metric: model")
    with pytest.raises(DeclarationError, match=r"claims.error.of: unknown variant 'smal'; did you mean 'small'\?"):
        declare("scales:\n", DERIVED, trained, "of: smal, metric: test")


def test_test_protocols_are_those_of_the_members_unless_declared(declare):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 1, plain-32: 1}}\n  other: {kind: protocol, of: plain-20, test: [dense-of-384]}\nscales:\n"
    declared = declare(*WITH_CROP, "scales:\n", two)
    assert [declared.protocols(name, "paper") for name in ("two", "other", "plain-20")] == [
        ("dense-of-256",), ("dense-of-384",), ("dense-of-256",)
    ]  # fmt: skip
    own = "plain-32: {data: {test: [dense-of-384]}, model:"
    with pytest.raises(
        DeclarationError,
        match=r"derived.two \(at paper scale\): its runs are evaluated by different test protocols; name one",
    ):
        declare(*WITH_CROP, "scales:\n", two, "plain-32: {model:", own)
    named = declare(
        *WITH_CROP,
        "scales:\n",
        two.replace("plain-32: 1}", "plain-32: 1}, test: [dense-of-256]"),
        "plain-32: {model:",
        own,
        'test/dense-of-256/top1_error_pct, op: ">"',
        'test/dense-of-384/top1_error_pct, op: ">"',
    )
    assert named.protocols("two", "paper") == ("dense-of-256",)
    other = "plain-32: {data: {name: places}, model:"
    with pytest.raises(DeclarationError, match="its runs train on different data"):
        declare(*WITH_CROP, "scales:\n", two, "plain-32: {model:", other)


def test_a_transfer_from_data_with_a_crop_needs_a_view(declare):
    step = "derived:\n  else: {kind: transfer, of: plain-32, data: places, c: 1.0}\nscales:\n"
    with pytest.raises(
        DeclarationError, match="whose data has a 'crop' needs a 'view', such as 1-crop-224-of-256"
    ):
        declare(*WITH_CROP, "scales:\n", step)
    declared = declare(*WITH_CROP, "scales:\n", step.replace("c: 1.0", "c: 1.0, view: 1-crop-224-of-256"))
    assert declared.protocols("else", "paper") == ("1-crop-224-of-256",)


def test_members_of_an_ensemble_have_the_same_preprocessing(declare):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 1, plain-32: 1}}\nscales:\n"
    with pytest.raises(
        DeclarationError,
        match="its runs differ in how they use cifar10: normalise, pad_to, train, val or val_per_class",
    ):
        declare("scales:\n", two, "plain-32: {model:", "plain-32: {data: {normalise: scale}, model:")


# --- ensembles of several sizes, and columns ------------------------------------------------------------------

SIZES = "derived:\n  sizes: {kind: ensemble-sizes, members: {plain-20: 3, plain-32: 2}}\nscales:\n"
COLUMN = "derived:\n  column: {kind: column, of: plain-20, column: 2}\nscales:\n"


def test_every_size_is_measured_unless_some_are_declared(declare):
    assert declare("scales:\n", SIZES).derived["sizes"].measured_sizes == (1, 2, 3, 4, 5)
    some = SIZES.replace("2}}", "2}, sizes: [5, 1]}")
    assert declare("scales:\n", some).derived["sizes"].measured_sizes == (1, 5)


def test_claims_may_name_the_errors_of_each_size(declare):
    declared = declare("scales:\n", SIZES.replace("2}}", "2}, sizes: [3]}"))
    assert set(metric_names(declared, "sizes", named=True)) == {
        *(f"test/{error}" for error in (*SIZE_METRICS, "images")),
        *(f"test/of-3/{error}{end}" for error in SIZE_METRICS for end in ("", "_std")),
    }
    about = ("of: plain-20, metric: test/top1_error_pct", "of: sizes, metric: test/of-3/top1_error_pct")
    assert declare("scales:\n", SIZES, *about)
    with pytest.raises(
        DeclarationError, match="unknown metric 'test/of-6/top1_error_pct' of sizes; known: test/top1"
    ):
        declare("scales:\n", SIZES, about[0], about[1].replace("of-3", "of-6"))


def test_protocols_and_the_greedy_ensemble_are_part_of_the_names(declare):
    greedy = SIZES.replace("2}}", "2}, sizes: [5], greedy: true, test: [dense-of-256, dense-of-384]}")
    held_out = (WITH_CROP[0], WITH_CROP[1].replace("test:", "val: 100, test:"), *WITH_CROP[2:])
    declared = declare(*held_out, "scales:\n", greedy)
    named, short = (set(metric_names(declared, "sizes", named=named)) for named in (True, False))
    by_both = {"test/dense-of-256/of-5/loss_std", "test/dense-of-384/of-5/loss", "test/dense-of-384/greedy/images"}
    assert {*by_both, "val/dense-of-256/greedy/top1_error_pct", "greedy/networks"} < named
    assert not any(name.startswith(("val/dense-of-384", "test/of-5", "test/greedy")) for name in named)
    assert short - named >= {"test/of-5/loss", "test/greedy/loss", "val/greedy/loss", "test/loss"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2}}", "2}, sizes: [6]}", "derived.sizes: 'sizes' has an ensemble of 6 networks, but 'members' has 5"),
        ("2}}", "2}, sizes: [2, 2]}", "derived.sizes.sizes: 2 is listed twice"),
        ("2}}", "2}, sizes: [0]}", "derived.sizes.sizes.0: should be greater than 0, not 0"),
        (
            "2}}",
            "2}, greedy: true}",
            "derived.sizes (at paper scale): a greedy ensemble is chosen on validation images, but not all of its runs"
            " hold some out",
        ),
        ("plain-20: 3, plain-32: 2", "plain-20: 1", "derived.sizes: an ensemble needs at least 2 networks"),
    ],
)
def test_invalid_sizes_are_an_error_with_file_key_and_reason(declare, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        declare("scales:\n", SIZES.replace(old, new))
    assert str(caught.value) == f"toy/depth.yaml: {message}"


def test_members_of_a_greedy_ensemble_hold_out_the_same_images(declare):
    held_out = (WITH_CROP[0], WITH_CROP[1].replace("test:", "val: 100, test:"), *WITH_CROP[2:])
    greedy = SIZES.replace("2}}", "2}, greedy: true}")
    other = ("plain-32: {model:", "plain-32: {data: {val: 50}, model:")
    with pytest.raises(
        DeclarationError, match="chosen on validation images, but its runs hold out different ones"
    ):
        declare(*held_out, "scales:\n", greedy, *other)
    assert declare(*held_out, "scales:\n", SIZES, *other)


@pytest.mark.parametrize("number", ["0", "true", "1.5", "last"])
def test_column_is_a_number_or_the_deepest(declare, number):
    shown = {"true": "True", "last": "'last'"}.get(number, number)
    with pytest.raises(DeclarationError) as caught:
        declare("scales:\n", COLUMN.replace("column: 2", f"column: {number}"))
    assert str(caught.value) == (
        "toy/depth.yaml: derived.column.column: should be a column's number, from 1 for the shallowest, or"
        f" 'deepest', not {shown}"
    )


def test_column_has_the_metrics_and_protocols_of_its_run(declare):
    for number in ("2", "deepest"):
        declared = declare("scales:\n", COLUMN.replace("column: 2", f"column: {number}"))
        errors = [f"{part}/{error}" for part in ("test", "trainset") for error in ERROR_METRICS]
        assert metric_names(declared, "column", named=True) == errors
        assert declared.derived["column"].consumes == {"plain-20": 1}
    cropped = declare(*WITH_CROP, "scales:\n", COLUMN)
    assert cropped.protocols("column", "paper") == ("dense-of-256",)
    assert not [name for name in metric_names(cropped, "column", named=True) if name.startswith("trainset")]


@pytest.mark.parametrize(
    ("optimizer", "train", "retraining", "reason"),
    [
        ("", "loss: {name: cross-entropy, smoothing: 0.1}", "steps: 9, lr: 0.1", "'retrain' and 'tune' do not support train.loss.smoothing"),
        ("", "filter_rms_limit: 0.1", "steps: 9, lr: 0.1", "'retrain' and 'tune' do not support train.filter_rms_limit"),
        ("rate_in_velocity: true", "", "steps: 9, lr: 0.1, lr_end: 0.0", "rate_in_velocity needs a learning rate > 0 at every step, but lr_end is 0"),
    ],
)  # fmt: skip
def test_a_run_that_a_compression_cannot_train_further_is_an_error(declare, optimizer, train, retraining, reason):
    derived = DERIVED.replace("fc_bits: 5", f"fc_bits: 5, retrain: {{{retraining}}}")
    changes = (
        ("weight_decay: 1e-4}", f"weight_decay: 1e-4, {optimizer}}}\n  {train}") if train or optimizer else ()
    )
    with pytest.raises(DeclarationError) as caught:
        declare("scales:\n", derived, *changes)
    assert str(caught.value) == f"toy/depth.yaml: derived.small (at paper scale): {reason}"


def test_a_compression_of_lenet_5_of_1998_cannot_be_trained_further(tmp_path):
    text = (EXPERIMENTS / "lenet5/mnist.yaml").read_text(encoding="utf-8")
    changed = text.replace("fc_bits: 5}", "fc_bits: 5, tune: {steps: 9, lr: 0.1}}")
    assert changed != text
    (tmp_path / "lenet5").mkdir()
    (tmp_path / "lenet5" / "mnist.yaml").write_text(changed, encoding="utf-8")
    with pytest.raises(DeclarationError, match="'retrain' and 'tune' do not support optimizer 'sdlm'"):
        load_experiment("lenet5/mnist", tmp_path)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (
            "metric: compressed/bytes, claimed: 9.0, margin: 1.0",
            "metric: compressed/bytes is neither an error in percent nor a ratio, so only a claim of kind 'ordering',"
            " 'ratio' or 'bound' can name it, not 'metric'",
        ),
        (
            "metric: compressed/ratio, claimed: 9.0, margin: 1.0, statistic: best of 5",
            "statistic: compressed/ratio is a ratio; only 'mean' is possible",
        ),
    ],
)
def test_the_claimed_number_of_a_compression_is_an_error_or_a_mean_ratio(declare, claim, message):
    claims = f"claims:\n  - {{id: new, says: Small, of: small, source: Table 1, {claim}}}\n"
    with pytest.raises(DeclarationError) as caught:
        declare("scales:\n", DERIVED, "claims:\n", claims)
    assert str(caught.value) == f"toy/depth.yaml: claims.new.{message}"


def test_a_ratio_of_a_compression_can_be_claimed(declare):
    claim = "{id: new, says: Small, of: small, source: T, metric: compressed/ratio, claimed: 9.0, margin: 1.0}"
    assert declare("scales:\n", DERIVED, "claims:\n", f"claims:\n  - {claim}\n").claims[0].kind == "metric"
