"""Transfer: a linear classifier on the features below a network's last full connection.

The lecture: take what a network has learnt as generic features and train a linear classifier on another set.
Zeiler and Fergus 2013 (arXiv:1311.2901, section 5.2) do so with a soft-max on the features of their ImageNet
network, all layers below it kept fixed. Here the soft-max is scikit-learn's multinomial LogisticRegression (found
by L-BFGS), with each feature's mean over the training part taken out and its deviation divided by.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import wrong_in_top
from pipeline.common.errors import UserError
from pipeline.data.batches import BatchBuilder
from pipeline.data.images import ImageSet
from pipeline.data.prefetch import never_stop, prefetch, raise_if_stopped
from pipeline.data.samples import Samples
from pipeline.data.shards import ShardSet
from pipeline.declare.derived import TransferSpec
from pipeline.declare.protocol import Protocol, parse_protocol
from pipeline.derive.context import DerivedContext, DerivedResult
from pipeline.train.evaluate import (
    EVAL_BATCH,
    EnsembleMember,
    ErrorCounts,
    evaluation_mode,
    log_average,
    require_count,
    samples_per_pass,
    view_stacks,
)
from pipeline.train.inputs import InMemoryData, ShardedData

ITERATIONS = 2000  # of L-BFGS, at most


@contextmanager
def capture_features(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within: whenever the network answers, what goes into its last full connection is added to the list."""
    last: list[Tensor] = []  # the input of the full connection that was reached last
    noted: list[Tensor] = []

    def reached(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last[:] = [inputs[0]]

    def answered(*_: object) -> None:
        noted.append(last.pop().flatten(1).float().cpu())

    connections = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not connections:
        raise UserError(f"{type(network).__name__} has no full connection whose inputs could be taken as features")
    hooks = [module.register_forward_pre_hook(reached) for module in connections]
    hooks.append(network.register_forward_hook(answered))
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()


def in_memory_features(
    network: nn.Module, maker: BatchBuilder, *, stop: Callable[[], bool] = never_stop
) -> Tensor:
    """float32 (N, D): the features of all images of `maker`, in their order. Stopped once `stop()` is true."""
    with evaluation_mode(network), capture_features(network) as noted:
        for some in torch.arange(len(maker)).split(EVAL_BATCH):
            raise_if_stopped(stop)
            network(maker(some.to(maker.device)))
    features = torch.cat(noted)
    require_count(len(features), len(maker))
    return features


def sample_features(
    member: EnsembleMember,
    samples: Samples,
    view: Protocol,
    *,
    threads: int,
    device: torch.device,
    stop: Callable[[], bool] = never_stop,
) -> Tensor:
    """float32 (N, D): the features of all pictures, in their order, each seen by the one crop that `view` is."""
    size = samples_per_pass(view)
    jobs = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    found = []
    work = prefetch(
        jobs, lambda job: view_stacks(samples, view, job), threads=threads, depth=2 * threads, stop=stop
    )
    with evaluation_mode(member.network), closing(work) as ready:
        for job, shown in zip(jobs, ready, strict=True):
            order = [picture for stack in shown for picture in stack.pictures]
            with capture_features(member.network) as noted:
                log_average(member, shown, view.name, bf16=False, device=device)
            features = torch.cat(noted)
            require_count(len(features), len(job))
            found.append(features[torch.tensor(order).argsort()])
    return torch.cat(found)


def fit_linear_probe(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, c: float, stop: Callable[[], bool] = never_stop
) -> tuple[dict[str, float], str, bool]:
    """Metrics of a soft-max learnt of (features, labels), on others; what was done; whether it converged.

    Beside the errors the mean over the classes of each class's error, which is what papers print of Caltech-101.
    One that did not converge has no errors, as a network that did not has none.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    raise_if_stopped(stop)
    learner = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # at the limit, or where L-BFGS finds no way on
        try:
            learner.fit(train[0].double().numpy(), train[1].numpy())
        except ConvergenceWarning as warning:
            reason = str(warning).splitlines()[0].rstrip(":.")
            return {}, f"the classifier on {train[0].shape[1]} features did not converge: {reason}", False
    iterations = int(np.max(learner[-1].n_iter_))
    known = torch.from_numpy(learner.classes_)
    classes = int(max(train[1].max(), test[1].max())) + 1
    answers = torch.full((len(test[1]), classes), -torch.inf, dtype=torch.float64)  # of a class never shown, none
    answers[:, known] = torch.from_numpy(learner.predict_log_proba(test[0].double().numpy()))
    labels = test[1]
    own = answers.gather(1, labels[:, None]).clamp(min=np.log(np.finfo(np.float64).tiny))
    wrong1, wrong5 = (int(wrong_in_top(answers, labels, k)) for k in (1, 5))
    errors = ErrorCounts(len(labels), wrong1, wrong5, float(-own.mean()))
    wrong = (answers.argmax(1) != labels).double()
    by_class = [wrong[labels == label].mean() for label in labels.unique()]
    metrics = errors.metrics("test") | {"test/mean_class_error_pct": float(100 * torch.stack(by_class).mean())}
    metrics |= {"features": float(train[0].shape[1]), "iterations": float(iterations)}
    return metrics, f"{iterations} iterations on {train[0].shape[1]} features", True


def run_transfer(bench: DerivedContext) -> DerivedResult:
    """Errors of a linear classifier, on the other set's test part."""
    step, first, other = bench.derived.spec, bench.datasets[0], bench.other_images
    assert isinstance(step, TransferSpec)
    seen: dict[str, tuple[Tensor, Tensor]] = {}  # part -> features and labels
    for part in ("train", "test"):
        bench.options.report(f"taking features of {step.data}'s {part} part")
        if isinstance(first, InMemoryData) and isinstance(other, ImageSet):
            images = getattr(other, part)
            require_same_size(step, first, other)
            features = in_memory_features(bench.networks[0], first.maker(images), stop=bench.options.stop)
            seen[part] = features, images.labels
        elif isinstance(first, ShardedData) and isinstance(other, ShardSet):
            samples, view = getattr(other, part), parse_protocol(step.view or "")
            member = EnsembleMember(bench.networks[0], first.normaliser)
            features = sample_features(
                member, samples, view, threads=bench.options.readers, device=bench.device, stop=bench.options.stop
            )
            seen[part] = features, samples.labels
        else:
            raise UserError(f"{step.data} is not of the kind that {bench.derived.members[0].variant} learnt from")
    metrics, ended, converged = fit_linear_probe(seen["train"], seen["test"], c=step.c, stop=bench.options.stop)
    return DerivedResult(metrics, ended, status="finished" if converged else "not converged")


def require_same_size(step: TransferSpec, first: InMemoryData, other: ImageSet) -> None:
    """UserError unless the other set's images have the size that the network learnt from."""
    ours, theirs = first.test.pixels.shape[1:], other.test.pixels.shape[1:]
    if ours != theirs:
        sizes = [" x ".join(map(str, shape)) for shape in (ours, theirs)]
        raise UserError(f"the network learnt from images of {sizes[0]}, and those of {step.data} have {sizes[1]}")
