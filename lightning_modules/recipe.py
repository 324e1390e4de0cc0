"""How a network learns, as plain values: learning rates by step and which parameters decay."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Batch(NamedTuple):
    """What an update, or an evaluation step, is made from; Lightning moves its tensors to the device."""

    step: int  # number of the first update made from it; when evaluating, of the batch
    images: Tensor  # float32 (N, C, H, W)
    labels: Tensor  # int64 (N,)


def lr_at(step: int, lr: float, drops: Mapping[str, Any] | None, end: tuple[float, int] | None = None) -> float:
    """The learning rate of update `step` (counted from 0).

    `drops` is {"at": steps, "factor": one number or one per step}: from update `at[i]` on, the rate is
    multiplied by the factors so far. "Divided by 10 at 32k and 48k" is {"at": [32000, 48000], "factor": 0.1}.
    Or {"every": n, "factor": number}: multiplied after every n updates. `end` is (rate, steps): instead of drops,
    a straight line from `lr` at update 0 to that rate after the last of so many steps.
    """
    if end is not None:
        last, steps = end
        return lr + (last - lr) * step / steps
    if drops is None:
        return lr
    if drops.get("every"):
        return float(lr * drops["factor"] ** (step // drops["every"]))
    for at, factor in zip(drops["at"], factors(drops), strict=True):
        if step >= at:
            lr *= factor
    return lr


def factors(drops: Mapping[str, Any]) -> Sequence[float]:
    """One factor per drop, from one number for all or a list."""
    factor = drops["factor"]
    return factor if isinstance(factor, Sequence) else [factor] * len(drops["at"])


def parameter_groups(network: nn.Module, weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """Groups for an optimiser: `decay` "all" decays every parameter, "weights" spares biases and batch-norm."""
    every = list(network.parameters())
    if decay == "all":
        return [{"params": every, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
