"""Errors of networks on a set of images, each image counted exactly once.

`evaluate_batches` evaluates one network on batches of images of one size. `evaluate_samples` evaluates one or
several networks on images of varying size by a test protocol: it averages the predictions over views and networks.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import wrong_in_top
from lightning_modules.recipe import Batch
from pipeline.common.errors import UserError
from pipeline.data.jpeg import decode
from pipeline.data.normalise import Normaliser, normalise_crops
from pipeline.data.prefetch import never_stop, prefetch
from pipeline.data.samples import Samples
from pipeline.data.views import ViewGroup, protocol_views
from pipeline.declare.protocol import Protocol, ProtocolPart

EVAL_BATCH = 500  # images per forward pass; fixed, because other batch sizes may round differently

EVAL_VIEWS = 64  # largest number of views per forward pass

EVAL_PIXELS = EVAL_VIEWS * 256**2  # largest number of pixels per forward pass, for protocols with larger views


@dataclass(frozen=True)
class ErrorCounts:
    """Number of top-1 and top-5 errors on a set of images."""

    images: int
    wrong1: int
    wrong5: int
    loss: float  # mean over the images
    rank: int = 0  # rank that evaluated these images
    world: int = 1  # number of ranks that share the images

    def metrics(self, split: str) -> dict[str, float]:
        """Return top-1 and top-5 error in percent, loss, and number of images, as metrics of `split`."""
        return {
            f"{split}/top1_error_pct": 100 * self.wrong1 / self.images,
            f"{split}/top5_error_pct": 100 * self.wrong5 / self.images,
            f"{split}/loss": self.loss,
            f"{split}/images": self.images,
        }


class AveragedNetworks(nn.Module):
    """Log of the averaged softmax outputs of several networks: (N, C, H, W) -> (N, classes), float64."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        logs = [network(x).double().log_softmax(1) for network in self.networks]
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))


def evaluate_batches(
    network: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    expected: int,
    bf16: bool,
    rank: int = 0,
    world: int = 1,
) -> ErrorCounts:
    """Return the errors of `network` in evaluation mode over `batches`.

    With `world` > 1 these are the errors of one rank's share; see `combine_counts`. Raises RuntimeError where a
    single rank did not see `expected` images.
    """
    images = 0
    sums = torch.zeros(3, dtype=torch.float64)  # wrong in top 1, wrong in top 5, losses; read once, at the end
    with evaluation_mode(network):
        for _, pixels, labels in batches:
            with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=bf16):
                scores = network(pixels)
            scores = scores.float()
            images += len(labels)
            wrong = wrong_in_top(scores, labels, 1), wrong_in_top(scores, labels, 5)
            sums = sums.to(scores.device) + torch.stack([*wrong, loss(scores, labels).double() * len(labels)])
    if world == 1:
        require_count(images, expected)
    wrong1, wrong5, total = sums.tolist()
    return ErrorCounts(images, int(wrong1), int(wrong5), total / images if images else 0.0, rank, world)


def require_count(images: int, expected: int) -> None:
    """Raise RuntimeError unless the number of evaluated images equals that in the manifest."""
    if images != expected:
        raise RuntimeError(f"{images} images were evaluated, but the manifest counts {expected}: no result")


def combine_counts(parts: Sequence[ErrorCounts], expected: int) -> ErrorCounts:
    """Return the errors on all images from those of each rank.

    Raises RuntimeError unless each rank and each image is counted exactly once.
    """
    worlds, ranks = {part.world for part in parts}, sorted(part.rank for part in parts)
    if len(worlds) != 1 or ranks != list(range(worlds.pop())):
        shares = ", ".join(f"{part.rank} of {part.world}" for part in parts) or "none"
        raise RuntimeError(f"each rank must report its share exactly once, but these did: {shares}: no result")
    images = sum(part.images for part in parts)
    require_count(images, expected)
    loss = math.fsum(part.loss * part.images for part in parts) / images
    return ErrorCounts(images, sum(part.wrong1 for part in parts), sum(part.wrong5 for part in parts), loss)


@dataclass(frozen=True, eq=False)
class EnsembleMember:
    """One network of an ensemble and the normalisation of its input."""

    network: nn.Module
    normalise: Normaliser


@dataclass(frozen=True, eq=False)
class ViewStack:
    """Views of several images with the same part, scale and size, for one forward pass."""

    images: list[int]  # indices within the job
    groups: list[ViewGroup]  # one per image
    share: float  # weight of part and scale in the protocol


def evaluate_samples(
    members: Sequence[EnsembleMember],
    samples: Samples,
    protocol: Protocol,
    *,
    expected: int,
    threads: int,
    bf16: bool,
    device: str | torch.device,
    rank: int = 0,
    world: int = 1,
    stop: Callable[[], bool] = never_stop,
) -> ErrorCounts:
    """Return the errors of the members' averaged predictions on `samples`, evaluated by `protocol`.

    Softmax probabilities are averaged over the views of a scale, over scales, over parts and over members, with
    equal weights within each; the loss is the mean of -log(averaged probability of the right class). `threads`
    read, decode and crop ahead; the numbers do not depend on them. Rank r of `world` takes images r, r + world,
    ...; `combine_counts` joins the ranks' errors.

    Raises StopRequested once `stop()` is true, RuntimeError where a single rank did not see `expected` images,
    DataError for a broken image, and UserError where a network cannot read views of this size.
    """
    rank_samples = range(rank, len(samples), world)
    count = samples_per_pass(protocol)
    jobs = [rank_samples[start : start + count] for start in range(0, len(rank_samples), count)]
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # as in `evaluate_batches`
    images = 0
    with ExitStack() as exit_stack:
        for member in members:
            exit_stack.enter_context(evaluation_mode(member.network))
        work = prefetch(
            jobs, lambda job: view_stacks(samples, protocol, job), threads=threads, depth=2 * threads, stop=stop
        )
        ready = exit_stack.enter_context(closing(work))  # ends the threads
        for job, stacks in zip(jobs, ready, strict=True):
            logs = [log_average(member, stacks, protocol.name, bf16=bf16, device=device) for member in members]
            average = torch.stack(logs).logsumexp(0) - math.log(
                len(members)
            )  # log-probabilities (images, classes)
            labels = samples.labels[list(job)].to(device)
            images += len(average)
            wrong = wrong_in_top(average, labels, 1), wrong_in_top(average, labels, 5)
            sums += torch.stack([*wrong, -average.gather(1, labels[:, None]).sum()])
    wrong1, wrong5, total = sums.tolist()
    if world == 1:
        require_count(images, expected)
    return ErrorCounts(images, int(wrong1), int(wrong5), total / images if images else 0.0, rank, world)


def samples_per_pass(protocol: Protocol) -> int:
    """Return the number of images whose views fill one forward pass."""
    pixels = sum(
        part.views * (part.side or short * 1.25) ** 2 / len(part.shorts)
        for part, short in protocol_scales(protocol)
    )
    return max(1, min(EVAL_VIEWS // protocol.views, int(EVAL_PIXELS / pixels)))


def protocol_scales(protocol: Protocol) -> Iterator[tuple[ProtocolPart, int]]:
    """Yield each part with the short side of each of its scales."""
    return ((part, short) for part in protocol.parts for short in part.shorts)


def view_stacks(samples: Samples, protocol: Protocol, indices: Sequence[int]) -> list[ViewStack]:
    """Read the images at `indices` and return their views, stacked by part, scale and size."""
    contents = samples.read(indices)
    if len(contents) != len(indices):
        raise RuntimeError(f"{len(contents)} images were read, but {len(indices)} were requested: no result")
    stacks: dict[tuple[int, ...], ViewStack] = {}
    for number, (index, content) in enumerate(zip(indices, contents, strict=True)):
        image = decode(content, samples.where(index))
        for part_number, part in enumerate(protocol.parts):
            for scale, group in enumerate(protocol_views(image, part)):
                key = (part_number, scale, *group.pixels.shape[1:3])
                share = 1 / len(protocol.parts) / len(part.shorts)
                stack = stacks.setdefault(key, ViewStack([], [], share))
                stack.images.append(number)
                stack.groups.append(group)
    return list(stacks.values())


def log_average(
    member: EnsembleMember, stacks: list[ViewStack], name: str, *, bf16: bool, device: str | torch.device
) -> Tensor:
    """Return the log of a member's probabilities averaged over views, float64 (images, classes).

    Averaging in float64 logarithms keeps the order of classes of tiny probability, and losses finite.
    """
    images = 1 + max(number for stack in stacks for number in stack.images)
    total: Tensor | None = None
    for stack in stacks:
        logs = log_posteriors(member, stack, name, bf16=bf16, device=device)  # (stacked images, V, classes)
        logs = logs.logsumexp(1) - math.log(logs.shape[1] / stack.share)
        if total is None:
            total = logs.new_full((images, logs.shape[-1]), -math.inf)
        total[stack.images] = torch.logaddexp(total[stack.images], logs)
    assert total is not None
    return total


def log_posteriors(
    member: EnsembleMember, stack: ViewStack, name: str, *, bf16: bool, device: str | torch.device
) -> Tensor:
    """Return the log-probabilities of each view and, if the protocol has it, its mirror: (images, V, classes)."""
    first = stack.groups[0]
    logs = []
    for x in view_batches(member, stack, device):
        scores = forward_scores(member.network, x, first.dense, name, bf16)
        logs.append(scores.double().log_softmax(1).unflatten(0, (1 + first.mirror, -1)))
    by_view = torch.cat(logs, 1).transpose(0, 1)  # (views, 1 or 2, classes)
    return by_view.reshape(len(stack.groups), -1, by_view.shape[-1])


def view_batches(member: EnsembleMember, stack: ViewStack, device: str | torch.device) -> Iterator[Tensor]:
    """Yield the normalised views of a stack in batches (N, 3, h, w).

    If the protocol has mirror images, those of a batch follow its views: (2N, 3, h, w).
    """
    first = stack.groups[0]
    pixels = torch.cat([group.pixels for group in stack.groups])
    corners = [group.corners for group in stack.groups if group.corners is not None]
    at = torch.cat(corners).to(device) if corners else None
    step = max(1, min(EVAL_VIEWS, EVAL_PIXELS // (pixels.shape[1] * pixels.shape[2])) // (1 + first.mirror))
    # Dense views vary in size, and some may have the size of the mean image; subtract the mean colour from all.
    normalise = member.normalise.with_mean_colour() if first.dense else member.normalise
    for start in range(0, len(pixels), step):
        block = slice(start, start + step)
        x = normalise_crops(normalise, pixels[block].to(device), None if at is None else at[block], first.frame)
        yield torch.cat([x, x.flip(3)]) if first.mirror else x


def forward_scores(network: nn.Module, x: Tensor, dense: bool, name: str, bf16: bool) -> Tensor:
    """Return the scores of images (N, 3, h, w). Raises UserError if the network cannot read images of this size.

    `dense`: by the network's method of this name. A network without one ends in global average pooling and a
    linear layer: since that is linear, `forward` gives the average of its scores at all positions.
    """
    apply: Callable[[Tensor], Tensor] = getattr(network, "dense", network) if dense else network
    try:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            return apply(x)
    except ValueError as error:
        instead = "larger scales, or crops of a size that it reads" if dense else "crops of a size that it reads"
        raise UserError(f"test protocol {name!r} does not fit: {error}; use {instead}") from error


def response_std(network: nn.Module, batches: Iterable[Batch]) -> float | None:
    """Return the standard deviation of layer responses after batch normalisation, mean over layers.

    See Figure 7 of arXiv:1512.03385. None for a network without batch normalisation.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not layers:
        return None
    sums = torch.zeros(len(layers), 3, dtype=torch.float64)  # count, sum, sum of squares

    def sum_responses(layer: int) -> Callable[..., None]:
        def add(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            values = output.double()
            total = values.sum()
            count = torch.full_like(total, values.numel())  # torch.stack takes tensors of one device only
            sums[layer] += torch.stack([count, total, values.square().sum()]).cpu()

        return add

    hooks = [layer.register_forward_hook(sum_responses(i)) for i, layer in enumerate(layers)]
    try:
        with evaluation_mode(network):
            for _, pixels, _ in batches:
                network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    count, total, squares = sums.T
    return float((squares / count - (total / count) ** 2).clamp(min=0).sqrt().mean())


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put the network into evaluation mode without gradients; restore its mode at the end of the context."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)
