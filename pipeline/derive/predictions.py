"""Predictions of several networks on the same images, kept in memory, and the errors of their averages.

The errors of an average are those of `TrainingData.ensemble_errors`, to the last digit: the same operations in the
same batches. The networks' outputs are computed once.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import wrong_in_top
from pipeline.data.batches import evaluation_batches
from pipeline.data.prefetch import prefetch
from pipeline.declare.protocol import parse_protocol
from pipeline.train.evaluate import (
    EVAL_BATCH,
    AveragedNetworks,
    EnsembleMember,
    ErrorCounts,
    evaluate_batches,
    evaluation_mode,
    log_average,
    require_count,
    samples_per_pass,
    view_stacks,
)
from pipeline.train.in_memory import InMemoryData
from pipeline.train.inputs import TrainingData
from pipeline.train.sharded import ShardedData


@dataclass(frozen=True, eq=False)
class Predictions:
    """Log-probabilities of several networks on the same images, in the batches of their evaluation."""

    logs: Sequence[Tensor]  # of each batch, float64 (networks, images, classes), on the CPU
    labels: Sequence[Tensor]  # of each batch, int64 (images,)
    count: Callable[[Tensor, Tensor], Tensor]  # from log-probabilities and labels: errors and sum of losses
    device: torch.device  # where they are averaged

    @property
    def networks(self) -> int:
        """Number of networks."""
        return self.logs[0].shape[0]

    def errors(self, members: Sequence[int]) -> ErrorCounts:
        """Return the errors of the averaged probabilities of the networks with these numbers."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for logs, labels in zip(self.logs, self.labels, strict=True):
            chosen = logs[list(members)].to(self.device)
            average = chosen.logsumexp(0) - math.log(len(members))
            sums += self.count(average, labels.to(self.device))
        wrong1, wrong5, total = sums.tolist()
        images = sum(map(len, self.labels))
        return ErrorCounts(images, int(wrong1), int(wrong5), total / images)


class RecordingNetworks(AveragedNetworks):
    """Networks whose log-probabilities are recorded at each forward pass: `logs`, (networks, N, classes)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__(networks)
        self.logs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        logs = [network(x).double().log_softmax(1) for network in self.networks]
        self.logs.append(torch.stack(logs).cpu())
        first: Tensor = logs[0]
        return first


def predict(
    networks: Sequence[nn.Module],
    datas: Sequence[TrainingData],
    part: Literal["test", "val"],
    protocol: str | None,
    *,
    bf16: bool,
) -> Predictions:
    """Return the predictions of `networks` on the test or validation images; None as protocol: on whole images.

    `datas` holds the training data of each network. With images in shards, raises StopRequested once a stop is
    requested.
    """
    data = datas[0]
    if isinstance(data, InMemoryData):
        return whole_image_predictions(networks, data, part, bf16=bf16)
    assert isinstance(data, ShardedData)
    assert protocol
    members = [EnsembleMember(network, own.normaliser) for network, own in zip(networks, datas, strict=True)]
    return sample_predictions(members, data, part, protocol, bf16=bf16)


def whole_image_predictions(
    networks: Sequence[nn.Module], data: InMemoryData, part: Literal["test", "val"], *, bf16: bool
) -> Predictions:
    """Return predictions on whole images held in memory."""
    images = data.test if part == "test" else data.validation
    batches = evaluation_batches(data.batch_builder(images), images.labels, batch_size=EVAL_BATCH)
    recording = RecordingNetworks(networks)
    evaluate_batches(recording, batches, F.nll_loss, expected=len(images), bf16=bf16)
    return Predictions(recording.logs, images.labels.split(EVAL_BATCH), count_in_float32, data.device)


def sample_predictions(
    members: Sequence[EnsembleMember], data: ShardedData, part: Literal["test", "val"], name: str, *, bf16: bool
) -> Predictions:
    """Return predictions on images in shards by the test protocol `name`. Each image is read once."""
    samples = data.test if part == "test" else data.validation
    protocol, threads = parse_protocol(name), data.options.readers
    size = samples_per_pass(protocol)
    jobs = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    found = []
    with ExitStack() as exit_stack:
        for member in members:
            exit_stack.enter_context(evaluation_mode(member.network))
        work = prefetch(
            jobs,
            lambda job: view_stacks(samples, protocol, job),
            threads=threads,
            depth=2 * threads,
            stop=data.options.stop,
        )
        for stacks in exit_stack.enter_context(closing(work)):
            logs = [log_average(member, stacks, name, bf16=bf16, device=data.device) for member in members]
            found.append(torch.stack(logs).cpu())
    require_count(sum(logs.shape[1] for logs in found), len(samples))
    labels = [samples.labels[list(job)] for job in jobs]
    return Predictions(found, labels, count_in_float64, data.device)


def count_in_float32(logs: Tensor, labels: Tensor) -> Tensor:
    """Count top-1 and top-5 errors and add the losses of a batch, as `evaluate_batches` does."""
    scores = logs.float()
    wrong = wrong_in_top(scores, labels, 1), wrong_in_top(scores, labels, 5)
    return torch.stack([*wrong, F.nll_loss(scores, labels).double() * len(labels)])


def count_in_float64(logs: Tensor, labels: Tensor) -> Tensor:
    """Count top-1 and top-5 errors and add the losses of a batch, as `evaluate_samples` does."""
    wrong = wrong_in_top(logs, labels, 1), wrong_in_top(logs, labels, 5)
    return torch.stack([*wrong, -logs.gather(1, labels[:, None]).sum()])
