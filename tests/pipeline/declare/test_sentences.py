"""Sentences of claims that give none."""

import pytest

from pipeline.declare.claim_tables import expand_claims
from pipeline.declare.load import load_all
from pipeline.declare.sentences import sentence

# ruff: noqa: E501 - one claim per line reads as a table
ERROR = "test/top1_error_pct"
SENTENCES = [
    ({"of": "vgg-16", "metric": "model/layer/pool1/output", "claimed": "64x112x112"},
     "pool1 of vgg-16 outputs 64 feature maps of 112 x 112"),
    ({"of": "vgg-16", "metric": "model/layer/fc8/output", "claimed": 1000}, "fc8 of vgg-16 outputs 1,000 values"),
    ({"of": "vgg-16", "metric": "model/layer/conv1/kernel_size", "claimed": 3}, "conv1 of vgg-16 has a window of 3 x 3"),
    ({"of": "vgg-16", "metric": "model/layer/a+b/weights", "claimed": 1200}, "a + b of vgg-16 has 1,200 weights"),
    ({"of": "vgg-16", "metric": "model/parameters", "claimed": 138, "unit": 1e6}, "vgg-16 has 138 million parameters"),
    ({"of": "vgg-16", "metric": "model/depth", "op": ">=", "claimed": 16}, "vgg-16 has at least 16 layers with weights"),
    ({"of": "vgg-16", "metric": "model/count/Linear", "claimed": 3}, "vgg-16 has 3 fully connected layers"),
    ({"of": "nin", "metric": "model/count/Linear", "claimed": 0}, "nin has no fully connected layers"),
    ({"of": "nin", "metric": "model/count/Linear", "claimed": 1}, "nin has 1 fully connected layer"),
    ({"of": "a", "over": "b", "metric": "model/parameters", "op": "<", "claimed": 1}, "a has fewer parameters than b"),
    ({"of": "a", "over": "b", "metric": "model/parameters", "claimed": 1}, "a has as many parameters as b"),
    ({"of": "a", "over": "b", "metric": "model/multiply_adds", "claimed": 0.18, "margin": 0.01},
     "a has 0.18 times the multiply-adds of b"),
    ({"of": "a", "over": "b", "metric": "model/parameters", "claimed": 1, "margin": 0.1}, "a has about as many parameters as b"),
    ({"of": "a", "metric": "model/count/Block", "op": ">", "claimed": 0}, "a has more than 0 blocks"),
    ({"of": "a", "metric": "model/layer/c/convolutions", "claimed": 1}, "c of a has 1 convolution"),
    ({"of": "a", "metric": "model/additions", "claimed": 0}, "a has no shortcut additions"),
    ({"of": "a", "metric": "model/layer/c/stride", "claimed": 2}, "c of a has stride 2"),
    ({"of": "a", "metric": "model/layer/c/init_bias", "claimed": 0}, "The initial biases of c of a are 0"),
    ({"of": "a", "metric": "recipe/drop_epochs", "claimed": 2}, "The learning rate drops every 2 epochs"),
    ({"of": "a", "metric": "recipe/data.augment", "claimed": []}, "Images are not augmented"),
    ({"of": "a", "metric": "recipe/train.lr_drops.factor", "claimed": 0.1}, "Each drop divides the learning rate by 10"),
    ({"of": "a", "metric": "recipe/epochs", "claimed": 300.0}, "Training runs for 300 epochs"),
    ({"of": "a", "metric": "recipe/drop_epochs", "claimed": [30.0, 60.0]}, "The learning rate drops at epochs 30, 60"),
    ({"of": "a", "metric": "recipe/test_views/dense-of-256", "claimed": 2}, "The protocol dense-of-256 has 2 views of an image"),
    ({"of": "a", "metric": "recipe/data.crop.short", "claimed": [256, 512]}, "The shorter side of an image is scaled to 256 to 512 pixels"),
    ({"of": "a", "metric": "recipe/train.steps", "claimed": 64000}, "Training runs for 64,000 iterations"),
    ({"of": "a", "metric": "recipe/train.lr_drops.at", "claimed": [32000, 48000]},
     "The learning rate drops at iterations 32,000, 48,000"),
    ({"of": "a", "metric": "recipe/train.optimizer.nesterov", "claimed": True}, "Nesterov momentum is used"),
    ({"of": "a", "metric": "recipe/train.optimizer.weight_decay", "claimed": 1e-5}, "The weight decay is 1e-5"),
    ({"of": "a", "metric": ERROR, "claimed": 8.75, "margin": 0.5}, "a has a top-1 test error of 8.75 %"),
    ({"of": "a", "metric": ERROR, "claimed": 6.43, "margin": 0.5, "statistic": "best of 5"},
     "a has a top-1 test error of 6.43 % in the best of 5 runs"),
    ({"of": "a", "metric": "test/dense-of-256/top5_error_pct", "claimed": 9.0, "margin": 0.5},
     "a has a top-5 test error (dense-of-256) of 9.0 %"),
    ({"of": "a", "metric": "test/of-3/top1_error_pct", "claimed": 9.0, "margin": 0.5},
     "a has a top-1 test error (ensembles of 3) of 9.0 %"),
    ({"of": "a", "metric": "test/dense-of-256/greedy/top5_error_pct", "op": "<", "claimed": 9.0},
     "The top-5 test error (dense-of-256, greedy ensemble) of a is below 9.0 %"),
    ({"of": "a", "metric": "test/mean_ap_pct", "claimed": 89.3, "margin": 1.3},
     "a has a test mean average precision of 89.3 %"),
    ({"of": "a", "metric": "test/15-per-class/mean_class_recall_pct", "claimed": 83.8, "margin": 1.5},
     "a has a test mean class recall (15 training images per class) of 83.8 %"),
    ({"of": "a", "metric": "train/top1_error_pct", "op": "<", "claimed": 0.1},
     "The top-1 training error of a is below 0.1 %"),
    ({"ordering": "a < b", "metric": ERROR}, "a has a lower top-1 test error than b"),
    ({"ordering": "a > b", "metric": ERROR}, "a has a higher top-1 test error than b"),
    ({"ordering": "a <= b", "metric": ERROR, "margin": 0.5}, "a has no higher top-1 test error than b (within 0.5 points)"),
    ({"ordering": "a ~ b", "metric": ERROR, "margin": 0.5}, "a and b have the same top-1 test error (within 0.5 points)"),
    ({"ordering": "a < a", "metric": "test/x/top1_error_pct", "rhs_metric": "test/y/top1_error_pct"},
     "a (x) has a lower top-1 test error than a (y)"),
    ({"ordering": "a < a", "metric": "test/of-2/loss", "rhs_metric": "test/loss"},
     "a (ensembles of 2) has a lower test loss than a (the first protocol)"),
    ({"lhs": "a", "rhs": "b", "metric": "train/seconds", "claimed": 0.75}, "The training time of a is 0.75 times that of b"),
    ({"lhs": "a", "rhs": "b", "metric": ERROR, "op": "<", "claimed": 0.8},
     "The top-1 test error of a is less than 0.8 times that of b"),
    ({"ordering": "a < b", "metric": "train/peak_memory_mib"}, "a has a lower peak memory than b"),
    ({"ordering": "a > b", "metric": "train/images_per_second"}, "a has a higher training speed than b"),
    ({"ordering": "a < b", "metric": "train/steps_to_25_pct_error"},
     "a has a lower number of steps to a training error below 25 % than b"),
    ({"of": "a", "metric": "train/gradient_norm/conv1", "op": ">", "claimed": 0.1},
     "The mean gradient magnitude in conv1 of a is above 0.1"),
    ({"gain": "a < b", "metric": ERROR, "claimed": 1.4, "margin": 0.7},
     "The top-1 test error of a is 1.4 points lower than that of b"),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "text"), SENTENCES, ids=[text for _, text in SENTENCES])
def test_sentence(claim, text):
    assert [found["says"] for found in expand_claims([claim])] == [text]


def test_no_sentence_for_what_only_the_source_can_say():
    assert sentence({"kind": "exact", "metric": "printed/error", "claimed": 3}, "3") == ""
    assert sentence({"kind": "open"}, "None") == ""


def test_no_sentence_of_an_experiment_has_an_open_placeholder():
    texts = [claim.says for experiment in load_all() for claim in experiment.claims]
    assert [text for text in texts if "{" in text or "<value>" in text or "None" in text.split()] == []
