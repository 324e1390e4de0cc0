"""Transfer: a linear classifier on the features below a network's last fully connected layer.

Stanford CS231n, lecture 9, "CNN architectures": use a trained network as a generic feature extractor and train a
linear classifier on another set. Zeiler and Fergus 2013 (arXiv:1311.2901, section 5.2) train a softmax on the
features of their ImageNet network, all layers below it fixed. Here the softmax is scikit-learn's multinomial
LogisticRegression (L-BFGS) on features standardised by the training part's mean and deviation.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lightning_modules.errors import wrong_in_top
from pipeline.data.prefetch import never_stop, raise_if_stopped
from pipeline.declare.derived import TransferSpec
from pipeline.derive.context import DerivedContext, DerivedResult
from pipeline.train.evaluate import ErrorCounts

ITERATIONS = 2000  # of L-BFGS, at most


def fit_linear_probe(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, c: float, stop: Callable[[], bool] = never_stop
) -> tuple[dict[str, float], str, bool]:
    """Fit a softmax classifier on (features, labels) and evaluate it on `test`.

    Return its metrics, a description of how the fit ended, and whether it converged.

    The metrics include the mean over classes of the error of each class, which papers print for Caltech-101. A fit
    that did not converge has no metrics. Raises StopRequested if `stop()` is true before the fit.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    raise_if_stopped(stop)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # the iteration limit, or a failed line search
        try:
            classifier.fit(train[0].double().numpy(), train[1].numpy())
        except ConvergenceWarning as warning:
            reason = str(warning).splitlines()[0].rstrip(":.")
            return {}, f"the classifier on {train[0].shape[1]} features did not converge: {reason}", False
    iterations = int(np.max(classifier[-1].n_iter_))
    known = torch.from_numpy(classifier.classes_)
    classes = int(max(train[1].max(), test[1].max())) + 1
    # A class without training images has probability 0.
    log_probabilities = torch.full((len(test[1]), classes), -torch.inf, dtype=torch.float64)
    log_probabilities[:, known] = torch.from_numpy(classifier.predict_log_proba(test[0].double().numpy()))
    labels = test[1]
    own_class = log_probabilities.gather(1, labels[:, None]).clamp(min=np.log(np.finfo(np.float64).tiny))
    wrong1, wrong5 = (int(wrong_in_top(log_probabilities, labels, k)) for k in (1, 5))
    errors = ErrorCounts(len(labels), wrong1, wrong5, float(-own_class.mean()))
    wrong = (log_probabilities.argmax(1) != labels).double()
    by_class = [wrong[labels == label].mean() for label in labels.unique()]
    metrics = errors.metrics("test") | {"test/mean_class_error_pct": float(100 * torch.stack(by_class).mean())}
    metrics |= {"features": float(train[0].shape[1]), "iterations": float(iterations)}
    return metrics, f"{iterations} iterations on {train[0].shape[1]} features", True


def run_transfer(context: DerivedContext) -> DerivedResult:
    """Return the errors of a linear classifier on the other set's test part."""
    spec, other = context.derived.spec, context.other_images
    assert isinstance(spec, TransferSpec)
    assert other is not None
    features = {}  # part -> features and labels
    for part in ("train", "test"):
        context.options.report(f"computing features of {spec.data}'s {part} part")
        features[part] = context.datasets[0].features(context.networks[0], other, part, spec.view)
    metrics, ended, converged = fit_linear_probe(
        features["train"], features["test"], c=spec.c, stop=context.options.stop
    )
    return DerivedResult(metrics, ended, status="finished" if converged else "not converged")
