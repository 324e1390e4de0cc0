"""Linear classifiers on features: a softmax, or support vector machines, one against all others (scikit-learn).

Both take images with one label, or with marks (1 positive, 0 difficult, -1 negative) for each class. The softmax
is scikit-learn's multinomial LogisticRegression (L-BFGS); an image with several positive classes is one training
image of each. The SVMs are its LinearSVC (LIBLINEAR, squared hinge loss); difficult images of a class are left out
of the training of its SVM.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.errors import wrong_in_top
from pipeline.common.errors import UserError
from pipeline.data.prefetch import never_stop, raise_if_stopped
from pipeline.data.transfer_sets.images import DIFFICULT, POSITIVE, AveragePrecision
from pipeline.declare.transfer import MEAN_AP, MEAN_CLASS_RECALL, TransferSpec
from pipeline.derive.average_precision import average_precision
from pipeline.train.evaluate import ErrorCounts
from pipeline.train.inputs import Metrics

SOFTMAX_ITERATIONS = 2000  # of L-BFGS, at most
SVM_ITERATIONS = 20_000  # of LIBLINEAR, at most


class NotConvergedError(Exception):
    """A classifier reached its largest number of iterations, or its line search failed."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Features of images and their labels."""

    features: Tensor  # float32 (N, D)
    labels: Tensor  # int64 (N,) classes, or int8 (N, classes) marks

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, which: Tensor) -> "Examples":
        """Return those of some images, by indices int64 or by a mask bool (N,)."""
        return Examples(self.features[which], self.labels[which])


@dataclass(frozen=True)
class FittedScores:
    """Scores of the test images by a fitted classifier."""

    scores: Tensor  # float64 (N, classes); log-probabilities of a softmax, distances of SVMs
    iterations: int  # of the solver; the most of all SVMs


def fit_scores(
    spec: TransferSpec,
    c: float,
    train: Examples,
    test: Tensor,
    classes: int,
    *,
    stop: Callable[[], bool] = never_stop,
) -> FittedScores:
    """Fit the classifier of `spec` on `train`, and return the scores of the features `test`, float32 (N, D).

    A class without training images has score -inf. Raises NotConvergedError, StopRequested if `stop()` is true
    before a fit, and UserError for features that are not finite, or images of a single class.
    """
    raise_if_stopped(stop)
    for features in (train.features, test):
        if broken := int((~features.isfinite().all(1)).sum()):
            raise UserError(
                f"the features of {broken:,} of {len(features):,} images are not finite; check the networks that"
                " compute them, or name another layer"
            )
    train_x, test_x = train.features.double().numpy(), test.double().numpy()
    if spec.classifier == "svm" and train.labels.ndim == 2:
        return _scores_by_class(spec, c, train_x, train.labels, test_x, stop)
    labels = train.labels
    if labels.ndim == 2:  # one training image for each positive class
        image, label = (labels == POSITIVE).nonzero(as_tuple=True)
        train_x, labels = train_x[image.numpy()], label
    if len(labels.unique()) < 2:
        raise UserError("a classifier needs training images of two classes or more; use a set or part with more")
    fitted = _fit(_estimator(spec, c), train_x, labels.numpy())
    found = (fitted.predict_log_proba if spec.classifier == "softmax" else fitted.decision_function)(test_x)
    if found.ndim == 1:  # one SVM for two classes
        found = np.stack([-found, found], axis=1)
    scores = torch.full((len(test_x), classes), -torch.inf, dtype=torch.float64)
    scores[:, torch.from_numpy(fitted.classes_)] = torch.from_numpy(found)
    return FittedScores(scores, _iterations(fitted))


def _scores_by_class(
    spec: TransferSpec,
    c: float,
    train_x: NDArray[np.float64],
    marks: Tensor,
    test_x: NDArray[np.float64],
    stop: Callable[[], bool],
) -> FittedScores:
    """Return the scores of one SVM for each class of images with marks."""
    scores = torch.full((len(test_x), marks.shape[1]), -torch.inf, dtype=torch.float64)
    iterations = 0
    for label in range(marks.shape[1]):
        raise_if_stopped(stop)
        counted = (marks[:, label] != DIFFICULT).numpy()
        positive = (marks[:, label] == POSITIVE).numpy()[counted]
        if positive.all() or not positive.any():
            continue
        fitted = _fit(_estimator(spec, c), train_x[counted], positive)
        scores[:, label] = torch.from_numpy(fitted.decision_function(test_x))
        iterations = max(iterations, _iterations(fitted))
    return FittedScores(scores, iterations)


def _estimator(spec: TransferSpec, c: float) -> Any:
    """Return the unfitted classifier of `spec` as a pipeline."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    if spec.classifier == "softmax":
        classifier = LogisticRegression(C=c, max_iter=SOFTMAX_ITERATIONS)
    else:  # the dual solver draws its order from a generator; the seed makes it repeatable
        classifier = LinearSVC(C=c, dual="auto", random_state=0, max_iter=SVM_ITERATIONS)
    return make_pipeline(*([StandardScaler()] if spec.normalise == "standardise" else []), classifier)


def _fit(estimator: Any, features: NDArray[np.float64], targets: NDArray[Any]) -> Any:
    """Fit a classifier. Raises NotConvergedError with the first line of scikit-learn's warning."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # the iteration limit, or a failed line search
        try:
            return estimator.fit(features, targets)
        except ConvergenceWarning as warning:
            raise NotConvergedError(str(warning).splitlines()[0].rstrip(":.")) from None


def _iterations(fitted: Any) -> int:
    return int(np.max(fitted[-1].n_iter_))


def score_metrics(
    scores: Tensor, labels: Tensor, *, classifier: str, kind: AveragePrecision | None, classes: tuple[str, ...]
) -> Metrics:
    """Return the metrics of `scores` (N, classes) on images with these labels, without a place in their names.

    With marks: the mean average precision, and that of each class, in percent. With one label: top-1 and top-5
    error, the mean over classes of each class's error and of its recall, all in percent, and a softmax's loss.
    Both have the number of images.
    """
    if labels.ndim == 2:
        return multi_label_metrics(scores, labels, kind or "area", classes)
    wrong1, wrong5 = (int(wrong_in_top(scores, labels, k)) for k in (1, 5))
    own_class = scores.gather(1, labels[:, None]).clamp(min=np.log(np.finfo(np.float64).tiny))
    counted = ErrorCounts(len(labels), wrong1, wrong5, float(-own_class.mean())).metrics("")
    found = {name.removeprefix("/"): value for name, value in counted.items()}
    if classifier != "softmax":
        del found["loss"]
    own = [labels == label for label in labels.unique()]
    rates = [wrong_in_top(scores[which], labels[which], 1) / which.sum(dtype=torch.float64) for which in own]
    mean_error = float(100 * torch.stack(rates).mean())
    return found | {"mean_class_error_pct": mean_error, MEAN_CLASS_RECALL: 100 - mean_error}


def multi_label_metrics(
    scores: Tensor, marks: Tensor, kind: AveragePrecision, classes: tuple[str, ...]
) -> Metrics:
    """Return the mean average precision and that of each class, in percent, and the number of images.

    A class without a positive test image has none. Raises UserError if all classes are without.
    """
    found: Metrics = {}
    for label, name in enumerate(classes):
        own = marks[:, label].numpy()
        if (own == POSITIVE).any():
            found[f"ap_pct/{name}"] = 100 * average_precision(scores[:, label].numpy(), own, kind)
    if not found:
        raise UserError("no class has a positive image among those to test on; use a part with labels")
    return {MEAN_AP: float(np.mean(list(found.values()))), "images": float(len(marks))} | found
