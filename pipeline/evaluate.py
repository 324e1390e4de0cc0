"""Errors of a network on a set of images, each image counted exactly once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.classifier import wrong_in_top
from lightning_modules.recipe import Batch

BATCH = 500  # images at a time: the same for all, since batches of other sizes may round differently


@dataclass(frozen=True)
class Errors:
    """How often the right class was not the best, or not among the best five."""

    images: int
    wrong1: int
    wrong5: int
    loss: float  # mean over the images

    def metrics(self, split: str) -> dict[str, float]:
        """As metrics of `split`: top-1 and top-5 error in percent, loss, and the images counted."""
        return {
            f"{split}/top1_error_pct": 100 * self.wrong1 / self.images,
            f"{split}/top5_error_pct": 100 * self.wrong5 / self.images,
            f"{split}/loss": self.loss,
            f"{split}/images": self.images,
        }


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    expected: int,
    bf16: bool,
) -> Errors:
    """Errors of `network` in evaluation mode over `batches`; refuses to answer unless `expected` images came."""
    images = 0
    sums = torch.zeros(3, dtype=torch.float64)  # wrong in top 1, wrong in top 5, losses; read once, at the end
    with evaluating(network):
        for _, pixels, labels in batches:
            with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=bf16):
                scores = network(pixels)
            scores = scores.float()
            images += len(labels)
            wrong = wrong_in_top(scores, labels, 1), wrong_in_top(scores, labels, 5)
            sums = sums.to(scores.device) + torch.stack([*wrong, loss(scores, labels).double() * len(labels)])
    if images != expected:
        raise RuntimeError(f"{images} images were evaluated where the manifest counts {expected}: no result")
    wrong1, wrong5, total = sums.tolist()
    return Errors(images, int(wrong1), int(wrong5), total / images)


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
        with evaluating(network):
            for _, pixels, _ in batches:
                network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    count, total, squares = sums.T
    return float((squares / count - (total / count) ** 2).clamp(min=0).sqrt().mean())


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within: the network in evaluation mode, no gradients. After: its own mode again."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)
