"""Loading a declaration: every mistake an author makes is one sentence; the recipe is laid over in order."""

import pytest
import yaml
from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.layers import describe_changes, merge_layers
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.declare.yaml_loader import Loader

# ruff: noqa: E501 - a mistake a line reads as the table it is
SMALL = (
    "only test/top1_error_pct, test/top5_error_pct, test/loss, test/images, train/top1_error_pct, "
    "train/top5_error_pct, train/loss, test/response_std, trainset/top1_error_pct, trainset/top5_error_pct, "
    "trainset/loss, trainset/images"
)
# What the author wrote instead of what; the whole sentence that follows "toy/depth.yaml: ".
MISTAKES = {
    # a key nobody knows, at every level
    "top": ("question:", "quesion:", "quesion: unknown key; did you mean 'question'?"),
    "name": ("question:", "name: x\nquestion:", "name: unknown key; an experiment is called as its file is"),
    "paper": ("year: 2015", "yaer: 2015", "paper.yaer: unknown key; did you mean 'year'?"),
    "data": ("cifar10, augment:", "cifar10, augmnt:", "data.augmnt: unknown key; did you mean 'augment'?"),
    "train": ("  batch_size: 128", "  batchsize: 128", "train.batchsize: unknown key; did you mean 'batch_size'?"),
    "drops": ("at: [32000, 48000]", "att: [32000, 48000]", "train.lr_drops.att: unknown key; did you mean 'at'?"),
    "optimizer": ("momentum: 0.9", "momentm: 0.9", "train.optimizer.momentm: unknown key; did you mean 'momentum'?"),
    "variant": ("    train: {warmup", "    trian: {warmup", "variants.resnet-20.trian: unknown key; did you mean 'train'?"),
    "variant's train": ("{warmup: {lr: 0.01", "{warmup: {lrr: 0.01", "variants.resnet-20.train.warmup.lrr: unknown key; did you mean 'lr'?"),
    "scale": ("data: {name: noise}", "dta: {name: noise}", "scales.smoke.dta: unknown key; did you mean 'data'?"),
    "scale's train": ("{steps: 12,", "{stepz: 12,", "scales.smoke.train.stepz: unknown key; did you mean 'steps'?"),
    "scale's data": ("{name: noise}", "{name: noise, pad: 3}", "scales.smoke.data.pad: unknown key; did you mean 'pad_to'?"),
    "exact claim": ("margin: 5000", "margn: 5000", "claims.size.margn: unknown key; did you mean 'margin'?"),
    "metric claim": ("margin: 0.5", "margn: 0.5", "claims.error.margn: unknown key; did you mean 'margin'?"),
    "ordering claim": ("lhs: plain-32, op", "left: plain-32, op", "claims.deeper.left: unknown key; known: by, confidence, id, kind, lhs, margin, metric, op, rhs, rhs_metric, says, source"),
    "departure": ("what: Pixels", "wat: Pixels", "departures.0.wat: unknown key; did you mean 'what'?"),
    # a key that is not there
    "no data": ("data: {name: cifar10, augment: [pad4-crop, flip]}", "", "data: this key is required"),
    "no lr": ("  lr: 0.1\n", "", "train.lr: this key is required"),
    "no model's name": ("{name: plain_cifar, depth: 20}", "{depth: 20}", "variants.plain-20.model.name: this key is required"),
    "no claim's source": (", source: \"ILSVRC\"", "", "claims.prize.source: this key is required"),
    # a value of the wrong kind
    "text for a number": ("  lr: 0.1\n", "  lr: fast\n", "train.lr: should be a valid number, not 'fast'"),
    "quoted number": ("  lr: 0.1\n", "  lr: \"0.1\"\n", "train.lr: should be a valid number, not '0.1'"),
    "true for a number": ("  lr: 0.1\n", "  lr: true\n", "train.lr: should be a valid number, not True"),
    "fraction of an update": ("steps: 64000", "steps: 64000.5", "train.steps: should be a valid integer, not 64000.5"),
    "no updates": ("steps: 64000", "steps: 0", "train.steps: should be greater than 0, not 0"),
    "negative rate": ("  lr: 0.1\n", "  lr: -0.1\n", "train.lr: should be greater than 0, not -0.1"),
    "not a number": ("  lr: 0.1\n", "  lr: .nan\n", "train.lr: should be a finite number, not nan"),
    "infinite decay": ("weight_decay: 1e-4", "weight_decay: .inf", "train.optimizer.weight_decay: should be a finite number, not inf"),
    "not a number, claimed": ("claimed: 270000", "claimed: .nan", "claims.size.claimed: should be a finite number, not nan"),
    "not a number, of a model": ("depth: 20}", "depth: .nan}", "variants.plain-20.model: 'depth' should be a finite number, not nan"),
    "number for a text": ("section: \"4.2\"", "section: 4.2", "paper.section: should be text (quote it), not 4.2"),
    "a variant that is no map": ("{model: {name: plain_cifar, depth: 20}}", "20", "variants.plain-20: should be a map of keys, not 20"),
    "a variant's name without quotes": ("  plain-32: {", "  32: {", "variants.32: a key must be text: quote it"),
    "one seed for a list": ("seeds: [0, 1, 2, 3, 4]", "seeds: 5", "seeds: should be a list, not 5"),
    "text for one of many factors": ("factor: 0.1", "factor: [0.1, much]", "train.lr_drops.factor.1: should be a valid number, not 'much'"),
    "scale's value": ("{steps: 12,", "{steps: few,", "scales.smoke.train.steps: should be a valid integer, not 'few'"),
    # a word that is not one of those known
    "normalise": ("name: cifar10,", "name: cifar10, normalise: per_channel,", "data.normalise: 'per_channel' is not one of per-pixel-mean, per-channel, lecun98, scale, raw-mean-image, raw-mean-colour, gcn-zca; did you mean 'per-channel'?"),
    "operator": ("op: \">\", claimed", "op: \"=>\", claimed", "claims.stuck.op: '=>' is not one of <, >; did you mean '>'?"),
    "kind of claim": ("kind: metric", "kind: metrc", "claims.error: kind 'metrc' is not one of exact, metric, bound, ordering, ratio, open; did you mean 'metric'?"),
    "no kind of claim": ("kind: metric, ", "", "claims.error: the key 'kind' is required"),
    "kind of optimizer": ("name: sgd", "name: sdg", "train.optimizer: name 'sdg' is not one of sgd, rmsprop, sdlm; did you mean 'sgd'?"),
    "reason": ("no-labels", "no-label", "claims.prize.reason: 'no-label' is not one of no-data, no-labels, protocol-unspecified, over-budget; did you mean 'no-labels'?"),
    "augmentation": ("[pad4-crop, flip]", "[pad4crop, flip]", "data.augment.0: unknown augmentation 'pad4crop'; did you mean 'pad4-crop'?"),
    "scale's augmentation": ("[pad1-crop]", "[pad0-crop]", "scales.laptop.data.augment.0: unknown augmentation 'pad0-crop'; did you mean 'pad4-crop'?"),
    "statistic": ("margin: 0.5,", "margin: 0.5, statistic: best of five,", "claims.error.statistic: unknown statistic 'best of five'; use 'mean' or 'best of N'"),
    # names that point nowhere
    "claim's variant": ("of: plain-20, metric: test", "of: plain20, metric: test", "claims.error.of: unknown variant 'plain20'; did you mean 'plain-20'?"),
    "ordering's variant": ("rhs: plain-20", "rhs: plan-20", "claims.deeper.rhs: unknown variant 'plan-20'; did you mean 'plain-20'?"),
    "scale's variant": ("[plain-20, resnet-20]", "[plain-20, resnt-20]", "scales.smoke.variants: unknown variant 'resnt-20'; did you mean 'resnet-20'?"),
    # what does not fit together
    "no paper scale": ("  paper: {why", "  papr: {why", "scales: there is no 'paper' scale (the recipe as published)"),
    "drop after the end": ("48000]", "64000]", "train: the drop at 64000 comes after the last of 64000 steps"),
    "drop after a scale's end": ("at: [200]", "at: [400]", "scales.laptop.train: the drop at 400 comes after the last of 400 steps"),
    "falling drops": ("[32000, 48000]", "[48000, 32000]", "train.lr_drops: 'at' must rise from drop to drop"),
    "no drops": ("[32000, 48000]", "[]", "train.lr_drops.at: should not be empty"),
    "too many factors": ("factor: 0.1", "factor: [0.1, 0.1, 0.1]", "train.lr_drops: 2 drops need one factor or 2, not 3"),
    "sdlm in batches": ("{name: sgd, momentum: 0.9, weight_decay: 1e-4}", "{name: sdlm, mu: 0.02, samples: 500}", "train: optimizer 'sdlm' learns one pattern at a time: batch_size must be 1"),
    "drops at and every": ("{at: [32000, 48000],", "{at: [32000], every: 9,", "train.lr_drops: give either 'at' or 'every'"),
    "drops never": ("{at: [32000, 48000], factor", "{factor", "train.lr_drops: give either 'at' or 'every'"),
    "every with a list": ("{at: [32000, 48000], factor: 0.1}", "{every: 9, factor: [0.1]}", "train.lr_drops: 'every' needs one factor, not a list"),
    "every after the end": ("{at: [32000, 48000],", "{every: 64000,", "train: the drop at 64000 comes after the last of 64000 steps"),
    "drops and a line": ("  lr: 0.1\n", "  lr: 0.1\n  lr_end: 0.0\n", "train: a rate falls by 'lr_drops' or in a line to 'lr_end', not both"),
    "nesterov alone": ("momentum: 0.9,", "nesterov: true,", "train.optimizer: nesterov needs a momentum above 0"),
    "exact of nothing": ("of: plain-20, metric: model", "metric: model", "claims.size: 'model/parameters' needs the variant it is measured 'of'"),
    "exact over nobody": ("of: plain-20, metric: model", "of: plain-20, over: plain, metric: model", "claims.size.over: unknown variant 'plain'; did you mean 'plain-32'?"),
    "less within a margin": ("claimed: 270000", "op: '<', claimed: 270000", "claims.size: op '<' takes no margin"),
    "less than a list": ("claimed: 270000, margin: 5000", "op: '<', claimed: [1, 2]", "claims.size: op '<' compares numbers, and [1, 2] is none"),
    "scales without a recipe": ("train:\n  steps: 64000\n  batch_size: 128\n  lr: 0.1\n  lr_drops: {at: [32000, 48000], factor: 0.1}\n  optimizer: {name: sgd, momentum: 0.9, weight_decay: 1e-4}\n", "", "train: required where there are scales to train at"),
    "claim twice": ("id: stuck", "id: error", "claims: the id 'error' is used twice"),
    "seed twice": ("[0, 1, 2, 3, 4]", "[0, 1, 2, 1]", "seeds: 1 is listed twice"),
    "scale's seed twice": ("seeds: [0, 1, 2]\n", "seeds: [0, 0]\n", "scales.smoke.seeds: 0 is listed twice"),
    "negative seed": ("[0, 1, 2, 3, 4]", "[-1]", "seeds.0: should be greater than or equal to 0, not -1"),
    "no seeds": ("[0, 1, 2, 3, 4]", "[]", "seeds: should not be empty"),
    "no variants of a scale": ("[plain-20, resnet-20]", "[]", "scales.smoke.variants: should not be empty"),
    "variant twice": ("[plain-20, resnet-20]", "[plain-20, plain-20]", "scales.smoke.variants: 'plain-20' is listed twice"),
    "correction that corrects nothing": ("corrected: 1e-4", "corrected: 1e-5", "claims.decay: 'corrected' is the claimed value itself; leave it out"),
    "equality without a margin": ("op: \">\", rhs", "op: \"~\", rhs", "claims.deeper: op '~' needs a margin above 0"),
    "metric nobody measures": ("metric: test/top1_error_pct, claimed: 9.5", "metric: test/nonsense, claimed: 9.5", f"claims.error.metric: plain-20 measures no 'test/nonsense', {SMALL}"),
    "compared by nobody's metric": ("metric: test/top1_error_pct, source: \"Figure 6\"}\n  - {id: ratio", "metric: test/loss, rhs_metric: val/loss, source: x}\n  - {id: ratio", f"claims.deeper.rhs_metric: plain-20 measures no 'val/loss', {SMALL}"),
    "ratio down to zero": ("margin: 0.1,", "margin: 1.1,", "claims.ratio: a ratio is positive: the margin must be below the claimed 1.1"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence_with_file_key_and_reason(declare, old, new, sentence):
    with pytest.raises(DeclarationError) as caught:
        declare(old, new)
    assert str(caught.value) == f"toy/depth.yaml: {sentence}"


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
def test_broken_yaml_is_named_with_its_line(declare, old, new, words):
    with pytest.raises(DeclarationError, match=r"^toy/depth\.yaml: not readable as YAML: ") as caught:
        declare(old, new)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "- a\n- b\n", "just words\n"])
def test_a_file_that_is_no_map_is_refused(tmp_path, text):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/depth.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DeclarationError, match=r"^toy/depth\.yaml: an experiment is a map of keys \(paper, data"):
        load_experiment("toy/depth", tmp_path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/depth.yaml").write_bytes(b"question: \xff\n")
    with pytest.raises(DeclarationError, match=r"not readable as YAML: 'utf-8' codec"):
        load_experiment("toy/depth", tmp_path)


def test_an_unknown_experiment_names_the_nearest_one(experiment, tmp_path):
    with pytest.raises(UserError, match=r"no experiment 'toy/dept'; did you mean 'toy/depth'\?"):
        load_experiment("toy/dept", tmp_path / "experiments")
    assert experiment_names(tmp_path / "experiments") == ["toy/depth"]


def test_a_path_is_loaded_as_its_name_is(experiment, tmp_path):
    assert load_experiment(str(tmp_path / "experiments/toy/depth.yaml")) == experiment
    assert experiment.name == "toy/depth"
    assert experiment.folder == "toy"


# --- YAML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-5E+3", -5000.0),
        ("2.5e3", 2500.0),
        (".5e-1", 0.05),
        ("1.e2", 100.0),
        ("1.0e-4", 1e-4),
        ("12", 12),
        ("1e", "1e"),
        ("e-4", "e-4"),
        ("v1e4", "v1e4"),
        ("1e4x", "1e4x"),
    ],
)
def test_numbers_are_written_as_everywhere_but_in_yaml_1_1(text, value):
    loaded = yaml.load(text, Loader=Loader)
    assert loaded == value
    assert type(loaded) is type(value)


def test_a_declared_1e_4_is_a_number(experiment):
    assert experiment.train.optimizer.weight_decay == 0.0001


def test_merge_keys_of_yaml_work_and_are_no_duplicates():
    text = "base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\n"
    assert yaml.load(text, Loader=Loader)["mine"] == {"x": 1, "y": 3}


# --- the recipe --------------------------------------------------------------------------------------------


def test_each_layer_is_laid_over_the_one_before(declare):
    declared = declare(
        "    train: {warmup:",
        "    train: {lr: 0.2, batch_size: 64, steps: 65000, warmup:",
        "train: {steps: 400,",
        "train: {batch_size: 32, steps: 400,",
    )
    assert declared.recipe("plain-20", "paper").train.lr == 0.1  # the experiment's
    assert declared.recipe("resnet-20", "paper").train.lr == 0.2  # the variant's over it
    assert declared.recipe("resnet-20", "paper").train.batch_size == 64
    assert declared.recipe("resnet-20", "laptop").train.batch_size == 32  # the scale's over both
    assert declared.recipe("resnet-20", "laptop").train.steps == 400
    changed = declared.recipe("resnet-20", "laptop", {"train.batch_size": 16, "train.optimizer.momentum": 0.5})
    assert changed.train.batch_size == 16  # --set over all
    assert (changed.train.optimizer.momentum, changed.train.optimizer.weight_decay) == (0.5, 1e-4)
    assert changed.train.lr == 0.2


def test_a_nested_map_keeps_what_the_layer_above_does_not_name(experiment):
    assert experiment.recipe("plain-20", "smoke").train.lr_drops.factor == 0.1
    assert experiment.recipe("plain-20", "laptop").train.lr_drops.factor == 0.5
    assert experiment.recipe("plain-20", "laptop").data.name == "digits"


def test_a_map_that_names_another_thing_replaces():
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


def test_merging_leaves_its_layers_alone():
    below, above = {"a": {"x": 1}}, {"b": {"y": {"z": 2}}}
    result = merge_layers(below, above)
    result["a"]["x"] = result["b"]["y"]["z"] = 99
    assert (below, above) == ({"a": {"x": 1}}, {"b": {"y": {"z": 2}}})


def test_a_change_by_set_does_not_stay_in_the_declaration(experiment):
    assert experiment.recipe("resnet-20", "paper", {"train.warmup.lr": 0.05}).train.warmup.lr == 0.05
    assert experiment.recipe("resnet-20", "paper").train.warmup.lr == 0.01


def test_a_layer_may_take_away(declare):
    declared = declare("train: {steps: 400,", "train: {warmup: null, steps: 400,")
    assert declared.recipe("resnet-20", "paper").train.warmup is not None
    assert declared.recipe("resnet-20", "laptop").train.warmup is None


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
            "--set train.steps=100: train (for plain-20 at laptop): the drop at 200 comes after the last of 100 steps",
        ),
    ],
)
def test_a_wrong_change_by_set_is_one_sentence(experiment, change, words):
    with pytest.raises(UserError) as caught:
        experiment.recipe("plain-20", "laptop", change)
    assert words in str(caught.value)


PHOTOGRAPHS = (  # what `declare` puts for the toy's data, and for the numbers that are claimed of them
    "data: {name: cifar10, augment: [pad4-crop, flip]}",
    "data: {name: imagenet, crop: {side: 224, short: 256}, test: [dense-of-256]}",
    "data: {name: digits, augment: [pad1-crop]}",
    "data: {name: standin}",
    "    data: {name: noise}\n",
    "",
    "metric: test/top1_error_pct, claimed: 9.5",
    "metric: test/dense-of-256/top1_error_pct, claimed: 9.5",
    'metric: test/top1_error_pct, op: ">", claimed',
    'metric: test/dense-of-256/top1_error_pct, op: ">", claimed',
)
HERE = "(for plain-20 at laptop)"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"data.crop.area": [0.08, 1]},
            f"--set data.crop.area=[0.08, 1]: data.crop {HERE}: give either 'short' (then cut) or 'area' with 'aspect' "
            "(then resize)",
        ),
        (
            {"data.crop": None},
            f"--set data.crop=null: data {HERE}: test protocols are for photographs: they need 'crop'",
        ),
        (
            {"data.test": []},
            f"--set data.test=[]: data {HERE}: photographs need a 'test' protocol, such as 1-crop-224-of-256",
        ),
        (
            {"data.augment": ["pad4-crop"], "train.lr": 0.2},  # which is right
            f"--set data.augment=[pad4-crop]: data {HERE}: 'pad4-crop' is for small images: 'crop' goes without it",
        ),
        (
            {"data.crop.side": 200, "data.val": 5, "data.crop.short": [300, 100]},  # all of the map
            f"--set data.crop.side=200, --set data.crop.short=[300, 100]: data.crop {HERE}: 'short' should rise: "
            "[300, 100] does not",
        ),
        (
            {"train.optimizer.name": "sdlm", "train.lr": 0.2},  # a key missing in the map where another was set
            f"--set train.optimizer.name=sdlm: train.optimizer.momentum {HERE}: unknown key; known: mu, name, samples",
        ),
        ({"data.crop": {"side": 8}}, f"--set data.crop {HERE}: give either 'short'"),
    ],
)
def test_a_mistake_between_two_keys_is_blamed_on_the_changes_of_their_map(declare, changes, sentence):
    declared = declare(*PHOTOGRAPHS)
    with pytest.raises(UserError) as caught:
        declared.recipe("plain-20", "laptop", changes)
    assert str(caught.value).startswith(sentence)


def test_a_declaration_that_was_wrong_before_the_changes_is_blamed_itself(experiment):
    scale = experiment.scales["laptop"].model_copy(update={"train": {"steps": 100}})
    wrong = experiment.model_copy(update={"scales": {"laptop": scale}})  # not by `load`, which would refuse
    with pytest.raises(DeclarationError, match=r"^toy/depth.yaml: scales.laptop.train: the drop at 48000 comes"):
        wrong.recipe("plain-20", "laptop", {"train.lr": 0.2})


@pytest.mark.parametrize(
    ("key", "changes", "said"),
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
def test_the_changes_nearest_to_a_mistake_are_named(key, changes, said):
    assert describe_changes(key, changes) == said


@pytest.mark.parametrize(
    ("variant", "scale", "words"),
    [
        ("plan-20", "paper", "unknown variant 'plan-20'; did you mean 'plain-20'?"),
        ("plain-20", "papr", "unknown scale 'papr'; did you mean 'paper'?"),
    ],
)
def test_an_unknown_variant_or_scale_names_the_nearest(experiment, variant, scale, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        experiment.recipe(variant, scale)


# --- bf16 and channels-last --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "precision", "channels_last"),
    [("paper", "fp32", False), ("smoke", "fp32", False), ("laptop", "bf16", True), ("gpu", "bf16", True)],
)
def test_laptop_and_gpu_scales_are_fast_unless_declared_otherwise(declare, scale, precision, channels_last):
    train = declare("  smoke:", "  gpu: {}\n  smoke:").recipe("plain-20", scale).train
    assert (train.precision, train.channels_last) == (precision, channels_last)


@pytest.mark.parametrize("where", ["  batch_size: 128", "train: {steps: 400,"])
def test_a_declared_precision_stays(declare, where):
    new = where + "\n  precision: fp32" if where.startswith("  ") else where + " precision: fp32,"
    assert declare(where, new).recipe("plain-20", "laptop").train.precision == "fp32"


def test_set_may_ask_for_full_precision(experiment):
    assert experiment.recipe("plain-20", "laptop", {"train.precision": "fp32"}).train.precision == "fp32"


def test_fast_follows_the_variants_own_optimizer(declare):
    online = "train: {batch_size: 1, warmup: null, loss: {name: map, j: 1.0, divided_by: 1.0}, optimizer: {name: sdlm, mu: 0.02, samples: 5}}"
    declared = declare("depth: 32}}", f"depth: 32}}, {online}}}")
    assert declared.recipe("plain-32", "laptop").train.precision == "fp32"  # sdlm knows no bf16
    assert declared.recipe("plain-20", "laptop").train.precision == "bf16"


# --- the declaration ---------------------------------------------------------------------------------------


def test_a_declaration_is_frozen(experiment):
    recipe = experiment.recipe("plain-20", "paper")
    for thing, key in (
        (experiment, "question"),
        (experiment.train, "lr"),
        (recipe.data, "name"),
        (experiment.claims[0], "id"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(thing, key, "x")


def test_a_scale_may_name_its_own_seeds_and_variants(experiment):
    assert experiment.seeds_at("smoke") == (0, 1, 2)
    assert experiment.seeds_at("paper") == (0, 1, 2, 3, 4)
    assert experiment.variants_at("smoke") == ("plain-20", "resnet-20")
    assert experiment.variants_at("paper") == ("plain-20", "plain-32", "resnet-20")


def test_the_papers_data_is_that_of_the_variant_not_of_the_scale(declare):
    declared = declare("depth: 32}}", "depth: 32}, data: {name: cifar100}}")
    assert declared.paper_data("plain-20") == "cifar10"
    assert declared.paper_data("plain-32") == "cifar100"


def test_a_models_other_keys_are_its_builders_arguments(experiment):
    assert experiment.variants["resnet-20"].model.args == {"depth": 20, "shortcut": "A"}


# --- what is judged by arithmetic alone ----------------------------------------------------------------------

ARITHMETIC = """
paper: {title: "A", authors: "B", year: 2015, section: "3"}
question: Is it so?
data: {name: imagenet}
train: {steps: 100, batch_size: 10, lr: 0.1, optimizer: {name: sgd, momentum: 0.9}}
variants:
  resnet-20: {model: {name: resnet_cifar, depth: 20}, data: {name: cifar10}, train: {lr: 0.2}}
scales: {}
printed:
  error: {value: 14.8, where: "Table 3"}
claims:
  - {id: size, kind: exact, says: "0.27 million", of: resnet-20, metric: model/parameters, claimed: 270000, margin: 5000, source: "Table 6"}
  - {id: chart, kind: exact, by: lecture, says: "11.7", metric: printed/error, claimed: 11.7, corrected: 14.8, source: "slides"}
"""


@pytest.fixture
def arithmetic(tmp_path):
    def load_changed(old="", new=""):
        path = tmp_path / "toy" / "architecture.yaml"
        path.parent.mkdir(exist_ok=True)
        assert old in ARITHMETIC
        path.write_text(ARITHMETIC.replace(old, new, 1) if old else ARITHMETIC, encoding="utf-8")
        return load_experiment("toy/architecture", tmp_path)

    return load_changed


def test_without_scales_a_variant_is_as_published(arithmetic):
    published = arithmetic().published("resnet-20")
    assert (published.model.args, published.data.name) == ({"depth": 20}, "cifar10")
    assert (published.train.lr, published.train.steps) == (0.2, 100)


def test_without_a_recipe_there_is_none(arithmetic):
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
        ("where: ", "were: ", "toy/architecture.yaml: printed.error.were: unknown key; did you mean 'where'?"),
    ],
)
def test_a_mistake_without_scales_is_one_sentence_too(arithmetic, old, new, words):
    with pytest.raises(DeclarationError) as caught:
        arithmetic(old, new)
    assert str(caught.value).startswith(words)


def test_a_trained_claim_needs_scales(arithmetic):
    new = 'kind: metric, says: "x", of: resnet-20, metric: test/x, claimed: 9.0, margin: 1.0, source: "T"}'
    with pytest.raises(DeclarationError, match=r"claims.size: a claim of kind 'metric' needs runs"):
        arithmetic(ARITHMETIC.partition("{id: size, ")[2].partition("\n")[0], new)


# --- steps -------------------------------------------------------------------------------------------------

STEPS = """derived:
  three: {kind: ensemble, members: {plain-20: 2, plain-32: 1}}
  small: {kind: compression, of: resnet-20, density: 0.5, conv_bits: 8, fc_bits: 5}
  else: {kind: transfer, of: plain-32, data: cifar100, c: 1.0}
scales:
"""


def with_steps(declare, *pairs):
    """The declaration with steps, pieces of these replaced."""
    text = STEPS
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return declare("scales:\n", text)


def test_steps_know_what_they_consume(declare):
    declared = with_steps(declare)
    assert {name: step.consumes for name, step in declared.steps.items()} == {
        "three": {"plain-20": 2, "plain-32": 1},
        "small": {"resnet-20": 1},
        "else": {"plain-32": 1},
    }
    assert declared.steps_at("paper") == ["three", "small", "else"]
    assert declared.steps_at("smoke") == ["small"]  # whose runs are all made there
    assert declared.steps_at("smoke", ["plain-32"]) == ["else"]
    assert [declared.paper_data(name) for name in ("three", "else")] == ["cifar10", "cifar100"]


WRONG_STEPS = {
    "kind": ("{kind: compression", "{kind: compresion", "derived.small: kind 'compresion' is not one of ensemble, protocol, transfer, compression; did you mean 'compression'?"),
    "no kind": ("{kind: compression, ", "{", "derived.small: the key 'kind' is required"),
    "unknown key": ("density: 0.5", "densty: 0.5", "derived.small.densty: unknown key; did you mean 'density'?"),
    "density": ("density: 0.5", "density: 1.5", "derived.small.density: should be less than or equal to 1, not 1.5"),
    "bits": ("conv_bits: 8", "conv_bits: 9", "derived.small.conv_bits: should be less than or equal to 8, not 9"),
    "one network": ("members: {plain-20: 2, plain-32: 1}", "members: {plain-20: 1}", "derived.three: an ensemble has at least two networks"),
    "nobody": ("of: resnet-20", "of: resnet-2", "derived.small: unknown variant 'resnet-2'; did you mean 'resnet-20'?"),
    "a variant's name": ("  three:", "  plain-32:", "derived.plain-32: a variant has this name; give the derived run another"),
    "protocols": ("plain-32: 1}", "plain-32: 1}, test: [dense-of-256]", "derived.three (at paper scale): test protocols are for photographs, and its runs learn from small images, shown whole"),
    "protocol": ("kind: compression, of: resnet-20, density: 0.5, conv_bits: 8, fc_bits: 5", "kind: protocol, of: resnet-20, test: [dense-of-256]", "derived.small (at paper scale): test protocols are for photographs, and its runs learn from small images, shown whole"),
    "no such protocol": ("kind: compression, of: resnet-20, density: 0.5, conv_bits: 8, fc_bits: 5", "kind: protocol, of: resnet-20, test: [dense]", "derived.small.test.0: 'dense' is no test protocol; such names are 1-crop-224-of-256, 10-crop-224-of-256, 144-crop-224-of-256-288-320-352, dense-of-256-384-512"),
    "many views": ("c: 1.0", "c: 1.0, view: 10-crop-224-of-256", "derived.else: 'view' should be a single crop, such as 1-crop-224-of-256, not 10-crop-224-of-256"),
    "too few seeds": ("plain-20: 2", "plain-20: 6", "derived.three: 6 networks of plain-20 need 6 seeds, and at paper scale there are 5; give variants.plain-20.seeds, or fewer networks in scales.paper.derived.three"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "sentence"), WRONG_STEPS.values(), ids=WRONG_STEPS.keys())
def test_a_mistake_in_a_step_is_one_sentence(declare, old, new, sentence):
    with pytest.raises(DeclarationError) as caught:
        with_steps(declare, old, new)
    assert str(caught.value) == f"toy/depth.yaml: {sentence}"


def test_a_scale_may_change_a_step(declare):
    smaller = "  smoke:\n    derived: {small: {density: 0.1}}\n"
    declared = declare("scales:\n", STEPS, "  smoke:\n", smaller)
    assert (declared.step("small", "paper").density, declared.step("small", "smoke").density) == (0.5, 0.1)
    assert declared.step("small", "smoke").conv_bits == 8


@pytest.mark.parametrize(
    ("change", "sentence"),
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
        ("{small: {kind: protocol}}", "scales.smoke.derived.small.kind: 'protocol' is not one of compression"),
    ],
)
def test_a_mistake_of_a_scale_in_a_step_is_one_sentence(declare, change, sentence):
    with pytest.raises(DeclarationError) as caught:
        declare("scales:\n", STEPS, "  smoke:\n", f"  smoke:\n    derived: {change}\n")
    assert str(caught.value) == f"toy/depth.yaml: {sentence}"


def test_a_variant_may_have_more_seeds_than_the_others(declare):
    more = "plain-20: {seeds: [0, 1, 2, 3, 4, 5, 6, 7], model:"
    declared = declare(
        "plain-20: {model:",
        more,
        "scales:\n",
        STEPS.replace("plain-20: 2", "plain-20: 8"),
        "  laptop:\n",
        "  laptop:\n    derived: {three: {members: {plain-20: 5}}}\n    seeds: [0, 1, 2, 3, 4]\n",
    )
    assert declared.seeds_of("plain-20", "paper") == tuple(range(8))
    assert declared.seeds_of("plain-32", "paper") == (0, 1, 2, 3, 4)
    assert declared.seeds_of("plain-20", "smoke") == (0, 1, 2)  # a scale's seeds are for all


def test_a_claim_may_be_of_a_step_but_arithmetic_may_not(declare):
    trained = "of: plain-20, metric: test"
    declared = declare("scales:\n", STEPS, trained, "of: small, metric: test")
    assert next(claim for claim in declared.claims if claim.id == "error").of == "small"
    with pytest.raises(DeclarationError, match=r"claims.size.of: unknown variant 'small'"):
        declare("scales:\n", STEPS, "of: plain-20, metric: model", "of: small, metric: model")
    with pytest.raises(DeclarationError, match=r"claims.error.of: unknown variant 'smal'; did you mean 'small'\?"):
        declare("scales:\n", STEPS, trained, "of: smal, metric: test")


def test_photographs_are_judged_by_their_runs_protocols_unless_a_step_names_others(declare):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 1, plain-32: 1}}\n  other: {kind: protocol, of: plain-20, test: [dense-of-384]}\nscales:\n"
    declared = declare(*PHOTOGRAPHS, "scales:\n", two)
    assert [declared.protocols(name, "paper") for name in ("two", "other", "plain-20")] == [
        ("dense-of-256",), ("dense-of-384",), ("dense-of-256",)
    ]  # fmt: skip
    own = "plain-32: {data: {test: [dense-of-384]}, model:"
    with pytest.raises(
        DeclarationError,
        match=r"derived.two \(at paper scale\): its runs are judged by different protocols; say in 'test' which",
    ):
        declare(*PHOTOGRAPHS, "scales:\n", two, "plain-32: {model:", own)
    told = declare(
        *PHOTOGRAPHS,
        "scales:\n",
        two.replace("plain-32: 1}", "plain-32: 1}, test: [dense-of-256]"),
        "plain-32: {model:",
        own,
        'test/dense-of-256/top1_error_pct, op: ">"',
        'test/dense-of-384/top1_error_pct, op: ">"',
    )
    assert told.protocols("two", "paper") == ("dense-of-256",)
    other = "plain-32: {data: {name: places}, model:"
    with pytest.raises(DeclarationError, match="its runs learn from different data"):
        declare(*PHOTOGRAPHS, "scales:\n", two, "plain-32: {model:", other)


BY_DENSE = [f"test/dense-of-256/{error}" for error in ("top1_error_pct", "top5_error_pct", "loss", "images")]
TRAINED = ["train/top1_error_pct", "train/top5_error_pct", "train/loss"]


@pytest.mark.parametrize("metric", ["test/dense-of-255/top1_error_pct", "test/top1_error_pct"])
def test_a_number_of_photographs_is_one_by_a_protocol_that_they_are_judged_by(declare, metric):
    claimed = "metric: test/dense-of-256/top1_error_pct, claimed: 9.5"
    with pytest.raises(DeclarationError) as caught:
        declare(*PHOTOGRAPHS, claimed, f"metric: {metric}, claimed: 9.5")
    said = ", ".join(BY_DENSE + TRAINED)
    assert (
        str(caught.value) == f"toy/depth.yaml: claims.error.metric: plain-20 measures no {metric!r}, only {said}"
    )
    ordering = (
        'lhs: plain-32, op: ">", rhs: plain-20, metric: test/top1_error_pct, source: "Figure 6"}\n  - {id: ratio'
    )
    with pytest.raises(
        DeclarationError, match=r"claims.deeper.metric: plain-32 measures no 'test/dense-of-255/loss'"
    ):
        declare(*PHOTOGRAPHS, ordering, ordering.replace("test/top1_error_pct", "test/dense-of-255/loss"))


def test_a_step_measures_what_its_kind_does(declare):
    steps = """derived:
  both: {kind: ensemble, members: {plain-20: 1, plain-32: 1}}
  more: {kind: protocol, of: plain-20, test: [dense-of-256]}
  else: {kind: transfer, of: plain-32, data: places, c: 1.0, view: 1-crop-224-of-256}
  less: {kind: compression, of: plain-20, density: 0.5, conv_bits: 8, fc_bits: 5}
scales:
"""
    measured = {
        name: set(declare(*PHOTOGRAPHS, "scales:\n", steps).measured(name, named=True))
        for name in ("plain-20", "both", "more", "else", "less")
    }
    assert measured["plain-20"] == {*BY_DENSE, *TRAINED}
    assert measured["both"] == measured["more"] == set(BY_DENSE)
    assert {"test/top1_error_pct", "test/mean_class_error_pct", "features"} < measured["else"]
    assert {*BY_DENSE, "pruned/dense-of-256/loss", "compressed/ratio"} < measured["less"]
    assert "original/loss" not in measured["less"]
    whole = declare(*PHOTOGRAPHS, "scales:\n", steps).measured("less", named=False)
    assert {"test/loss", "original/loss", "pruned/loss", *measured["less"]} < set(whole)


def test_features_of_photographs_need_a_view(declare):
    step = "derived:\n  else: {kind: transfer, of: plain-32, data: places, c: 1.0}\nscales:\n"
    with pytest.raises(DeclarationError, match="features of photographs need a 'view', such as 1-crop-224-of-256"):
        declare(*PHOTOGRAPHS, "scales:\n", step)
    declared = declare(*PHOTOGRAPHS, "scales:\n", step.replace("c: 1.0", "c: 1.0, view: 1-crop-224-of-256"))
    assert declared.protocols("else", "paper") == ("1-crop-224-of-256",)


def test_an_ensemble_is_shown_small_images_in_one_way(declare):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 1, plain-32: 1}}\nscales:\n"
    with pytest.raises(DeclarationError, match="its runs are shown cifar10 in different ways"):
        declare("scales:\n", two, "plain-32: {model:", "plain-32: {data: {normalise: scale}, model:")
