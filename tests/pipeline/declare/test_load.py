"""Loading: an invalid file is an error of one line with file, key and reason."""

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import EXPERIMENTS, experiment_names, load_all, load_experiment
from pipeline.declare.printed import PRINTED_FILE
from tests.support.declarations import WITH_CROP

# ruff: noqa: E501 - one error per line reads as a table
METRICS = (
    "known: test/top1_error_pct, test/top5_error_pct, test/loss, test/images, train/top1_error_pct, "
    "train/top5_error_pct, train/loss, test/response_std, trainset/top1_error_pct, trainset/top5_error_pct, "
    "trainset/loss, trainset/images"
)
ERRORS = {  # replaced text, new text, message
    "top": ("question:", "quesion:", "quesion: unknown key; did you mean 'question'?"),
    "name": ("question:", "name: x\nquestion:", "name: unknown key; the name of an experiment is the path of its file"),
    "paper": ("year: 2015", "yaer: 2015", "paper.yaer: unknown key; did you mean 'year'?"),
    "variant": ("    train: {warmup", "    trian: {warmup", "variants.resnet-20.trian: unknown key; did you mean 'train'?"),
    "variant's train": ("{warmup: {lr: 0.01", "{warmup: {lrr: 0.01", "variants.resnet-20.train.warmup.lrr: unknown key; did you mean 'lr'?"),
    "scale": ("data: {name: noise}", "dta: {name: noise}", "scales.smoke.dta: unknown key; did you mean 'data'?"),
    "scale's train": ("{steps: 12,", "{stepz: 12,", "scales.smoke.train.stepz: unknown key; did you mean 'steps'?"),
    "scale's data": ("{name: noise}", "{name: noise, pad: 3}", "scales.smoke.data.pad: unknown key; did you mean 'pad_to'?"),
    "no data": ("data: {name: cifar10, augment: [pad4-crop, flip]}", "", "data: this key is required"),
    "number for a text": ("section: \"4.2\"", "section: 4.2", "paper.section: should be text (quote it), not 4.2"),
    "a variant that is no map": ("{model: {name: plain_cifar, depth: 20}}", "20", "variants.plain-20: should be a map of keys, not 20"),
    "a variant's name without quotes": ("  plain-32: {", "  32: {", "variants.32: a key must be text: quote it"),
    "one seed for a list": ("seeds: [0, 1, 2, 3, 4]", "seeds: 5", "seeds: should be a list, not 5"),
    "scale's value": ("{steps: 12,", "{steps: few,", "scales.smoke.train.steps: should be a valid integer, not 'few'"),
    "scale's augmentation": ("[pad1-crop]", "[pad0-crop]", "scales.laptop.data.augment.0: unknown augmentation 'pad0-crop'; did you mean 'pad4-crop'?"),
    "claim's variant": ("of: plain-20, metric: test", "of: plain20, metric: test", "claims.error.of: unknown variant 'plain20'; did you mean 'plain-20'?"),
    "ordering's variant": ("rhs: plain-20", "rhs: plan-20", "claims.deeper.rhs: unknown variant 'plan-20'; did you mean 'plain-20'?"),
    "scale's variant": ("[plain-20, resnet-20]", "[plain-20, resnt-20]", "scales.smoke.variants: unknown variant 'resnt-20'; did you mean 'resnet-20'?"),
    "no paper scale": ("  paper: {why", "  papr: {why", "scales: the scale 'paper' (the recipe as published) is required"),
    "drop after a scale's end": ("at: [200]", "at: [400]", "scales.laptop.train: the drop at step 400 must be before step 400, the end of training"),
    "unknown variant of a ratio": ("of: plain-20, metric: model", "of: plain-20, over: plain, metric: model", "claims.size.over: unknown variant 'plain'; did you mean 'plain-32'?"),
    "scales without a recipe": ("train:\n  steps: 64000\n  batch_size: 128\n  lr: 0.1\n  lr_drops: {at: [32000, 48000], factor: 0.1}\n  optimizer: {name: sgd, momentum: 0.9, weight_decay: 1e-4}\n", "", "train: this key is required if there are scales, except for timings alone"),
    "claim twice": ("id: stuck", "id: error", "claims: the id 'error' is used twice"),
    "scale's seed twice": ("seeds: [0, 1, 2]\n", "seeds: [0, 0]\n", "scales.smoke.seeds: 0 is listed twice"),
    "no variants of a scale": ("[plain-20, resnet-20]", "[]", "scales.smoke.variants: should not be empty"),
    "variant twice": ("[plain-20, resnet-20]", "[plain-20, plain-20]", "scales.smoke.variants: 'plain-20' is listed twice"),
    "unknown metric": ("metric: test/top1_error_pct, claimed: 9.5", "metric: test/nonsense, claimed: 9.5", f"claims.error.metric: unknown metric 'test/nonsense' of plain-20; {METRICS}"),
    "bound on a time": ("of: plain-32, metric: test/top1_error_pct", "of: plain-32, metric: train/seconds", "claims.stuck.metric: train/seconds depends on the hardware, so only a claim of kind 'ordering' or 'ratio' can name it, not 'bound'"),
    "steps that are not counted": ("of: plain-32, metric: test/top1_error_pct", "of: plain-32, metric: train/steps_to_25_pct_error", f"claims.stuck.metric: unknown metric 'train/steps_to_25_pct_error' of plain-32; {METRICS}"),
    "unknown metric of one side": ("metric: test/top1_error_pct, source: \"Figure 6\"}\n  - {id: ratio", "metric: test/loss, rhs_metric: val/loss, source: x}\n  - {id: ratio", f"claims.deeper.rhs_metric: unknown metric 'val/loss' of plain-20; {METRICS}"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_invalid_experiment_is_an_error_with_file_key_and_reason(declare, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        declare(old, new)
    assert str(caught.value) == f"toy/depth.yaml: {message}"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("metric: printed/sise, op: <", "metric: printed has no value 'sise'; did you mean 'size'?"),
        (
            "metric: printed/size, over_metric: printed/of, op: <",
            "over_metric: printed has no value 'of'; known: size",
        ),
    ],
)
def test_an_unknown_printed_value_is_an_error_of_loading(declare, claim, message):
    text = f"printed: {{Table 1: {{size: 240}}}}\nclaims:\n  - {{id: small, kind: exact, says: x, source: x, claimed: 1, {claim}}}\n"
    with pytest.raises(DeclarationError) as caught:
        declare("claims:\n", text)
    assert str(caught.value) == f"toy/depth.yaml: claims.small.{message}"


def test_steps_and_gradients_are_no_errors_in_percent(declare):
    counted = ("  batch_size: 128\n", "  batch_size: 128\n  steps_to_error_pct: [25.0]\n")
    steps = "metric: train/steps_to_25_pct_error"
    declare(*counted, "of: plain-32, metric: test/top1_error_pct", f"of: plain-32, {steps}")  # a bound
    with pytest.raises(
        DeclarationError, match=r"claims\.error\.metric: train/steps_to_25_pct_error is not an error in"
    ):
        declare(*counted, "of: plain-20, metric: test/top1_error_pct", f"of: plain-20, {steps}")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  lr: 0.1\n", "  lr: 0.1\n  lr: 0.2\n", "the key 'lr' is given twice at line 9, column 3"),
        ("name: sgd,", "name: sgd, name: sdlm,", "the key 'name' is given twice at line 10, column 26"),
        ("question:", "question: [", "expected ',' or ']'"),
        ("question:", "? [a]\n: 1\nquestion:", "found unhashable key at line 3"),
        ("question:", "\tquestion:", "cannot start any token at line 3, column 1"),
    ],
)
def test_invalid_yaml_is_an_error_with_its_line(declare, old, new, words):
    with pytest.raises(DeclarationError, match=r"^toy/depth\.yaml: invalid YAML: ") as caught:
        declare(old, new)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# a comment\n", "- a\n- b\n", "text\n"])
def test_a_file_that_is_not_a_map_is_an_error(tmp_path, text):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/depth.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DeclarationError, match=r"^toy/depth\.yaml: must be a map of keys \(paper, data"):
        load_experiment("toy/depth", tmp_path)


def test_a_file_that_is_not_utf8_is_an_error(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/depth.yaml").write_bytes(b"question: \xff\n")
    with pytest.raises(DeclarationError, match=r"invalid YAML: 'utf-8' codec"):
        load_experiment("toy/depth", tmp_path)


def test_an_unknown_experiment_names_the_closest_one(experiment, tmp_path):
    with pytest.raises(UserError, match=r"^no experiment 'toy/dept'; did you mean 'toy/depth'\?"):
        load_experiment("toy/dept", tmp_path / "experiments")
    assert experiment_names(tmp_path / "experiments") == ["toy/depth"]


def test_a_path_loads_the_same_experiment_as_its_name(experiment, tmp_path):
    assert load_experiment(str(tmp_path / "experiments/toy/depth.yaml")) == experiment
    assert experiment.name == "toy/depth"
    assert experiment.folder == "toy"


def test_a_path_without_a_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"^no file \S+none\.yaml$"):
        load_experiment(str(tmp_path / "none.yaml"))


def test_all_experiments_are_those_of_the_folder():
    assert [experiment.name for experiment in load_all()] == experiment_names()
    declared = [path for path in EXPERIMENTS.rglob("*.yaml") if path.name != PRINTED_FILE]
    assert len(experiment_names()) == len(declared)


# --- metrics of claims -------------------------------------------------------------------------------------

BY_DENSE = [f"test/dense-of-256/{error}" for error in ("top1_error_pct", "top5_error_pct", "loss", "images")]
TRAINED = ["train/top1_error_pct", "train/top5_error_pct", "train/loss"]


@pytest.mark.parametrize("metric", ["test/dense-of-255/top1_error_pct", "test/top1_error_pct"])
def test_a_claimed_number_names_a_test_protocol_of_its_variant(declare, metric):
    claimed = "metric: test/dense-of-256/top1_error_pct, claimed: 9.5"
    with pytest.raises(DeclarationError) as caught:
        declare(*WITH_CROP, claimed, f"metric: {metric}, claimed: 9.5")
    known = ", ".join(BY_DENSE + TRAINED)
    message = f"toy/depth.yaml: claims.error.metric: unknown metric {metric!r} of plain-20; known: {known}"
    assert str(caught.value) == message
    ordering = (
        'lhs: plain-32, op: ">", rhs: plain-20, metric: test/top1_error_pct, source: "Figure 6"}\n  - {id: ratio'
    )
    with pytest.raises(
        DeclarationError,
        match=r"claims.deeper.metric: unknown metric 'test/dense-of-255/loss' of plain-32; known: ",
    ):
        declare(*WITH_CROP, ordering, ordering.replace("test/top1_error_pct", "test/dense-of-255/loss"))
