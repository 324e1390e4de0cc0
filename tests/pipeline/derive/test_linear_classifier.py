"""Test linear classifiers and their metrics on small sets of features."""

import math

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.data.prefetch import StopRequested
from pipeline.declare.transfer import TransferSpec
from pipeline.derive import linear_classifier
from pipeline.derive.linear_classifier import Examples, NotConvergedError, fit_scores, score_metrics

SOFTMAX = TransferSpec(kind="transfer", of="a", data="digits", c=1.0, normalise="none")
SVM = SOFTMAX.model_copy(update={"classifier": "svm"})


def clusters(classes=3, each=12, seed=0):
    """Return features of `classes` well separated clusters on the axes, and their classes."""
    noise = 0.2 * torch.randn(classes * each, classes, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(classes).repeat_interleave(each)
    return Examples(torch.eye(classes)[labels] + noise, labels)


@pytest.mark.parametrize("spec", [SOFTMAX, SVM], ids=["softmax", "svm"])
@pytest.mark.parametrize("classes", [2, 3])
def test_clusters_are_told_apart(spec, classes):
    test = clusters(classes, seed=1)
    fitted = fit_scores(spec, 1.0, clusters(classes), test.features, classes)
    assert fitted.scores.shape == (12 * classes, classes)
    assert (fitted.scores.argmax(1) == test.labels).float().mean() > 0.9


@pytest.mark.parametrize("spec", [SOFTMAX, SVM], ids=["softmax", "svm"])
def test_a_fit_can_be_repeated(spec):
    first, second = (fit_scores(spec, 1.0, clusters(), clusters(seed=1).features, 3) for _ in range(2))
    assert torch.equal(first.scores, second.scores)


def test_a_class_without_training_images_is_never_predicted():
    fitted = fit_scores(SOFTMAX, 1.0, clusters(2), clusters(2, seed=1).features, 4)
    assert torch.isinf(fitted.scores[:, 2:]).all()
    assert torch.isfinite(fitted.scores[:, :2]).all()


def test_difficult_images_do_not_train_their_class():
    train = clusters(2)
    marks = torch.full((24, 2), -1, dtype=torch.int8)
    marks[torch.arange(24), train.labels] = 1
    wrong = marks.clone()
    wrong[:3, 0] = -1  # three images of class 0 as counter-examples
    ignored = marks.clone()
    ignored[:3, 0] = 0
    test = clusters(2, seed=1).features

    def scores(features, kept):
        return fit_scores(SVM, 1.0, Examples(features, kept), test, 2).scores[:, 0]

    assert torch.equal(scores(train.features, ignored), scores(train.features[3:], marks[3:]))
    assert not torch.equal(scores(train.features, wrong), scores(train.features, ignored))


def test_a_softmax_learns_an_image_of_two_classes_as_one_of_each():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    marks = torch.tensor([[1, -1], [-1, 1], [1, 1]], dtype=torch.int8)
    twice = Examples(torch.stack([features[i] for i in (0, 1, 2, 2)]), torch.tensor([0, 1, 0, 1]))
    found, expected = (
        fit_scores(SOFTMAX, 1.0, train, features, 2).scores for train in (Examples(features, marks), twice)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_metrics_of_one_label_are_those_counted_by_hand():
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]).log().double()
    labels = torch.tensor([0, 1, 2, 0])  # the second image is wrong; classes have 2, 1 and 1 images
    found = score_metrics(scores, labels, classifier="softmax", kind=None, classes=("a", "b", "c"))
    assert found["top1_error_pct"] == 25
    assert found["mean_class_error_pct"] == pytest.approx(100 / 3)
    assert found["mean_class_recall_pct"] == pytest.approx(200 / 3)
    assert found["images"] == 4
    assert found["loss"] == pytest.approx(-sum(map(math.log, (0.7, 0.4, 0.7, 0.6))) / 4)
    assert "loss" not in score_metrics(scores, labels, classifier="svm", kind=None, classes=("a", "b", "c"))


def test_mean_average_precision_leaves_out_classes_without_positive_images():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.9, 0.5], [0.1, 0.2, 0.5]]).double()
    marks = torch.tensor([[-1, -1, -1], [1, 1, 0], [-1, -1, -1]], dtype=torch.int8)
    found = score_metrics(scores, marks, classifier="svm", kind="area", classes=("a", "b", "c"))
    assert found == {"mean_ap_pct": 75.0, "images": 3, "ap_pct/a": 50.0, "ap_pct/b": 100.0}


@pytest.mark.parametrize(
    ("spec", "limit"), [(SOFTMAX, "SOFTMAX_ITERATIONS"), (SVM, "SVM_ITERATIONS")], ids=["softmax", "svm"]
)
def test_a_fit_that_reaches_its_limit_is_an_error(spec, limit, monkeypatch):
    monkeypatch.setattr(linear_classifier, limit, 1)
    hard = Examples(torch.randn(40, 30, generator=torch.Generator().manual_seed(5)), torch.arange(40) % 4)
    with pytest.raises(NotConvergedError, match="failed to converge"):
        fit_scores(spec, 1e4, hard, hard.features, 4)


def test_a_request_to_stop_is_heeded_before_a_fit():
    with pytest.raises(StopRequested):
        fit_scores(SVM, 1.0, clusters(), clusters().features, 3, stop=lambda: True)


@pytest.mark.parametrize("spec", [SOFTMAX, SVM], ids=["softmax", "svm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_one_sentence(spec, value):
    train, broken = clusters(), clusters(seed=1).features
    broken[[3, 5], 1] = value
    with pytest.raises(UserError, match=r"^the features of 2 of 36 images are not finite; .*$"):
        fit_scores(spec, 1.0, Examples(broken, train.labels), train.features, 3)
    with pytest.raises(UserError, match=r"^the features of 2 of 36 images are not finite; .*$"):
        fit_scores(spec, 1.0, train, broken, 3)


@pytest.mark.parametrize("spec", [SOFTMAX, SVM], ids=["softmax", "svm"])
def test_training_images_of_one_class_are_one_sentence(spec):
    features = clusters().features
    with pytest.raises(UserError, match="needs training images of two classes or more; use"):
        fit_scores(spec, 1.0, Examples(features, torch.ones(36, dtype=torch.int64)), features, 3)


def test_marks_without_a_positive_image_have_no_mean():
    marks = torch.tensor([[-1, 0], [0, -1]], dtype=torch.int8)
    with pytest.raises(UserError, match="no class has a positive image among those to test on"):
        score_metrics(torch.rand(2, 2).double(), marks, classifier="svm", kind="area", classes=("a", "b"))


def test_equal_scores_are_wrong_in_the_error_and_in_the_recall():
    found = score_metrics(
        torch.zeros(3, 3).double(), torch.arange(3), classifier="svm", kind=None, classes=("a", "b", "c")
    )
    assert (found["top1_error_pct"], found["mean_class_recall_pct"]) == (100, 0)
