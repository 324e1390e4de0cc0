"""Errors of a network on a set of images, each image counted exactly once.

`evaluate` takes batches of images as they are. `evaluate_pictures` takes photographs of any size and a test
protocol: it shows one or several networks many views of each, and averages their answers.
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

EVAL_BATCH = 500  # images at a time: the same for all, since batches of other sizes may round differently

EVAL_VIEWS = 64  # of photographs, a network is shown at most so many at a time,

EVAL_PIXELS = EVAL_VIEWS * 256**2  # and of larger ones fewer: memory does not grow with the protocol


@dataclass(frozen=True)
class ErrorCounts:
    """How often the right class was not the best, or not among the best five."""

    images: int
    wrong1: int
    wrong5: int
    loss: float  # mean over the images
    rank: int = 0  # whose share of the images these are,
    world: int = 1  # out of so many

    def metrics(self, split: str) -> dict[str, float]:
        """As metrics of `split`: top-1 and top-5 error in percent, loss, and the images counted."""
        return {
            f"{split}/top1_error_pct": 100 * self.wrong1 / self.images,
            f"{split}/top5_error_pct": 100 * self.wrong5 / self.images,
            f"{split}/loss": self.loss,
            f"{split}/images": self.images,
        }


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
    """Errors of `network` in evaluation mode over `batches`: the share of rank `rank` of `world` (see `together`).

    Refuses to answer unless, in a world of one rank, `expected` images came.
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
    """RuntimeError unless as many images were evaluated as the manifest counts."""
    if images != expected:
        raise RuntimeError(f"{images} images were evaluated where the manifest counts {expected}: no result")


def combine_counts(parts: Sequence[ErrorCounts], expected: int) -> ErrorCounts:
    """The errors on all images from those of each rank; RuntimeError unless every rank and image is there once."""
    worlds, ranks = {part.world for part in parts}, sorted(part.rank for part in parts)
    if len(worlds) != 1 or ranks != list(range(worlds.pop())):
        shares = ", ".join(f"{part.rank} of {part.world}" for part in parts) or "none"
        raise RuntimeError(f"the ranks' shares (here {shares}) should be all there, each of them once: no result")
    images = sum(part.images for part in parts)
    require_count(images, expected)
    loss = math.fsum(part.loss * part.images for part in parts) / images
    return ErrorCounts(images, sum(part.wrong1 for part in parts), sum(part.wrong5 for part in parts), loss)


@dataclass(frozen=True, eq=False)
class EnsembleMember:
    """One network of an ensemble, and what its images are made of pixels by."""

    network: nn.Module
    normalise: Normaliser


@dataclass(frozen=True, eq=False)
class ViewStack:
    """Views of several pictures that go through a network together: of one part and scale, and of one size."""

    pictures: list[int]  # their numbers within the job
    groups: list[ViewGroup]  # one of each
    share: float  # of the scale in the whole protocol


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
    """Errors of the members' averaged answers to `samples`, each picture seen as `protocol` says.

    Answers are soft-max probabilities, averaged over the views of a scale, over scales, over parts and over
    members, alike within each; the loss is the mean of -log(the right class's average). `threads` read, decode and
    cut ahead; the numbers do not depend on them. Rank r of `world` takes pictures r, r + world, ...; `together`
    joins the ranks' errors.

    Stopped once `stop()` is true; RuntimeError where, in a world of one rank, not `expected` pictures came;
    DataError names a broken picture; UserError says what to use instead where a network cannot read such views.
    """
    mine = range(rank, len(samples), world)
    count = samples_per_pass(protocol)
    jobs = [mine[first : first + count] for first in range(0, len(mine), count)]
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # as in `evaluate`
    images = 0
    with ExitStack() as within:
        for member in members:
            within.enter_context(evaluation_mode(member.network))
        work = prefetch(
            jobs, lambda job: view_stacks(samples, protocol, job), threads=threads, depth=2 * threads, stop=stop
        )
        ready = within.enter_context(closing(work))  # no thread outlives this
        for job, found in zip(jobs, ready, strict=True):
            logs = [log_average(member, found, protocol.name, bf16=bf16, device=device) for member in members]
            answers = torch.stack(logs).logsumexp(0) - math.log(len(members))  # (pictures, classes)
            labels = samples.labels[list(job)].to(device)
            images += len(answers)
            own = answers.gather(1, labels[:, None])
            sums += torch.stack([wrong_in_top(answers, labels, 1), wrong_in_top(answers, labels, 5), -own.sum()])
    wrong1, wrong5, total = sums.tolist()
    if world == 1:
        require_count(images, expected)
    return ErrorCounts(images, int(wrong1), int(wrong5), total / images if images else 0.0, rank, world)


def samples_per_pass(protocol: Protocol) -> int:
    """How many pictures make about as many views, or pixels, as a network is shown at a time."""
    pixels = sum(
        part.views * (part.side or short * 1.25) ** 2 / len(part.shorts)
        for part, short in protocol_scales(protocol)
    )
    return max(1, min(EVAL_VIEWS // protocol.views, int(EVAL_PIXELS / pixels)))


def protocol_scales(protocol: Protocol) -> Iterator[tuple[ProtocolPart, int]]:
    """Each scale of each part."""
    return ((part, short) for part in protocol.parts for short in part.shorts)


def view_stacks(samples: Samples, protocol: Protocol, indices: Sequence[int]) -> list[ViewStack]:
    """The views of some pictures, those together that can go through a network together."""
    contents = samples.read(indices)
    if len(contents) != len(indices):
        raise RuntimeError(f"{len(contents)} pictures came where {len(indices)} were read: no result")
    found: dict[tuple[int, ...], ViewStack] = {}
    for picture, (index, content) in enumerate(zip(indices, contents, strict=True)):
        image = decode(content, samples.where(index))
        for place, part in enumerate(protocol.parts):
            for scale, group in enumerate(protocol_views(image, part)):
                key = (place, scale, *group.pixels.shape[1:3])
                share = 1 / len(protocol.parts) / len(part.shorts)
                stack = found.setdefault(key, ViewStack([], [], share))
                stack.pictures.append(picture)
                stack.groups.append(group)
    return list(found.values())


def log_average(
    member: EnsembleMember, found: list[ViewStack], name: str, *, bf16: bool, device: str | torch.device
) -> Tensor:
    """log of a member's averaged probabilities, float64 (pictures, classes).

    In logarithms and float64: classes that are all but impossible keep their order, and losses stay finite.
    """
    pictures = 1 + max(picture for stack in found for picture in stack.pictures)
    total: Tensor | None = None
    for stack in found:
        logs = log_posteriors(member, stack, name, bf16=bf16, device=device)  # (pictures of it, V, classes)
        logs = logs.logsumexp(1) - math.log(logs.shape[1] / stack.share)
        if total is None:
            total = logs.new_full((pictures, logs.shape[-1]), -math.inf)
        total[stack.pictures] = torch.logaddexp(total[stack.pictures], logs)
    assert total is not None
    return total


def log_posteriors(
    member: EnsembleMember, stack: ViewStack, name: str, *, bf16: bool, device: str | torch.device
) -> Tensor:
    """log of a network's probabilities for each view, and for its mirror image: (pictures, V, classes)."""
    first = stack.groups[0]
    pixels = torch.cat([group.pixels for group in stack.groups])
    corners = [group.corners for group in stack.groups if group.corners is not None]
    at = torch.cat(corners).to(device) if corners else None
    step = max(1, min(EVAL_VIEWS, EVAL_PIXELS // (pixels.shape[1] * pixels.shape[2])) // (1 + first.mirror))
    # A dense view may by chance have a mean image's size; like the others it has the mean colour taken out.
    normalise = member.normalise.one_colour() if first.dense else member.normalise
    logs = []
    for start in range(0, len(pixels), step):
        some = slice(start, start + step)
        x = normalise_crops(normalise, pixels[some].to(device), None if at is None else at[some], first.frame)
        scores = forward_scores(
            member.network, torch.cat([x, x.flip(3)]) if first.mirror else x, first.dense, name, bf16
        )
        logs.append(scores.double().log_softmax(1).unflatten(0, (1 + first.mirror, -1)))
    by_view = torch.cat(logs, 1).transpose(0, 1)  # (views, 1 or 2, classes)
    return by_view.reshape(len(stack.groups), -1, by_view.shape[-1])


def forward_scores(network: nn.Module, x: Tensor, dense: bool, name: str, bf16: bool) -> Tensor:
    """The scores of (N, 3, h, w); UserError where the network does not read such images.

    `dense`: by the network's own dense form. One without ends in an average over places and a linear layer: since
    that is linear, the average of its scores at all places is its score of the average, as `forward` gives it.
    """
    apply = getattr(network, "dense", network) if dense else network
    try:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            return apply(x)
    except ValueError as error:
        instead = "larger scales, or crops of a size that it reads" if dense else "crops of a size that it reads"
        raise UserError(f"test protocol {name!r} does not fit: {error}; use {instead}") from error


def response_std(network: nn.Module, batches: Iterable[Batch]) -> float | None:
    """Mean over layers of the standard deviation of a layer's responses, after batch-norm, before anything else.

    Figure 7 of arXiv:1512.03385. None for a network without batch normalisation.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not layers:
        return None
    sums = torch.zeros(len(layers), 3, dtype=torch.float64)  # values, their sum, the sum of their squares

    def watch(layer: int) -> Callable[..., None]:
        def add(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            values = output.double()
            sums[layer] += torch.stack([torch.tensor(values.numel()), values.sum(), values.square().sum()]).cpu()

        return add

    hooks = [layer.register_forward_hook(watch(i)) for i, layer in enumerate(layers)]
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
    """Within: the network in evaluation mode, no gradients. After: its own mode again."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)
