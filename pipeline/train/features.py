"""Features of images: the input of a network's last fully connected layer."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch
from torch import Tensor, nn

from pipeline.common.errors import UserError
from pipeline.data.batches import BatchBuilder
from pipeline.data.prefetch import never_stop, prefetch, raise_if_stopped
from pipeline.data.samples import Samples
from pipeline.declare.protocol import Protocol
from pipeline.train.evaluate import (
    EVAL_BATCH,
    EnsembleMember,
    evaluation_mode,
    log_average,
    require_count,
    samples_per_pass,
    view_stacks,
)


@contextmanager
def capture_features(network: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list to which each forward pass appends the input of the last fully connected layer, float32 (N, D).

    Raises UserError if the network has no fully connected layer.
    """
    last: list[Tensor] = []  # input of the fully connected layer that ran last
    captured: list[Tensor] = []

    def before_linear(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last[:] = [inputs[0]]

    def after_network(*_: object) -> None:
        captured.append(last.pop().flatten(1).float().cpu())

    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(f"{type(network).__name__} has no fully connected layer, so it computes no features")
    hooks = [module.register_forward_pre_hook(before_linear) for module in layers]
    hooks.append(network.register_forward_hook(after_network))
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


def batch_features(network: nn.Module, builder: BatchBuilder, *, stop: Callable[[], bool] = never_stop) -> Tensor:
    """Return float32 (N, D) features of all images of `builder`, in order. StopRequested if `stop()` is true."""
    with evaluation_mode(network), capture_features(network) as captured:
        for indices in torch.arange(len(builder)).split(EVAL_BATCH):
            raise_if_stopped(stop)
            network(builder(indices.to(builder.device)))
    features = torch.cat(captured)
    require_count(len(features), len(builder))
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
    """Return float32 (N, D) features of all samples, in order, from the single crop `view`."""
    size = samples_per_pass(view)
    jobs = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    batches = []
    work = prefetch(
        jobs, lambda job: view_stacks(samples, view, job), threads=threads, depth=2 * threads, stop=stop
    )
    with evaluation_mode(member.network), closing(work) as ready:
        for job, stacks in zip(jobs, ready, strict=True):
            order = [index for stack in stacks for index in stack.images]
            with capture_features(member.network) as captured:
                log_average(member, stacks, view.name, bf16=False, device=device)
            features = torch.cat(captured)
            require_count(len(features), len(job))
            batches.append(features[torch.tensor(order).argsort()])
    return torch.cat(batches)
