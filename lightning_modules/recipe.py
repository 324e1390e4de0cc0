"""Training recipe as plain values: the batch, the learning rate by step, the parameter groups for weight decay."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # commands that only print a recipe do not wait for torch
    from torch import Tensor, nn


class Batch(NamedTuple):
    """One micro-batch for training, or one evaluation batch. Lightning moves its tensors to the device."""

    step: int  # in training the number of the first optimizer step made from it, in evaluation that of the batch
    images: "Tensor"  # float32 (N, C, H, W)
    labels: "Tensor"  # int64 (N,)


def lr_at(
    step: int,
    lr: float,
    drops: Mapping[str, Any] | None,
    end: tuple[float, int] | None = None,
    power: float = 1.0,
) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0.

    Args:
        lr: the initial learning rate.
        drops: None, or {"at": steps, "factor": one number or one per step}, which multiplies the rate by the i-th
            factor from step `at[i]` on: "divided by 10 at 32k and 48k" is {"at": [32000, 48000], "factor": 0.1}.
            Or {"every": n, "factor": number}, which multiplies it after every n steps.
        end: (final rate, steps) for a continuous schedule instead of drops: from `lr` at step 0 to the final rate
            after that many steps.
        power: of the continuous schedule, last + (lr - last) * (1 - step / steps)^power; 1 is linear.
    """
    if end is not None:
        last, steps = end
        if power != 1.0:
            return last + (lr - last) * (1 - step / steps) ** power
        return lr + (last - lr) * step / steps
    if drops is None:
        return lr
    if drops.get("every"):
        return float(lr * drops["factor"] ** (step // drops["every"]))
    for at, factor in zip(drops["at"], factors(drops), strict=True):
        if step >= at:
            lr *= factor
    return lr


def plateau_drops(evaluations: Mapping[int, float], patience: int, max_drops: int) -> list[int]:
    """Return the steps after which a plateau schedule has lowered the learning rate, in order.

    A drop follows when the error has not been lower than the lowest so far in `patience` evaluations in a row.
    Then the count starts again, from the same lowest error.

    Args:
        evaluations: step -> error, of all evaluations so far.
        patience: number of evaluations without a lower error.
        max_drops: the number of drops after which no more follow.
    """
    lowest, waited = float("inf"), 0
    found: list[int] = []
    for step, error in sorted(evaluations.items()):
        if error < lowest:
            lowest, waited = error, 0
        else:
            waited += 1
        if waited == patience and len(found) < max_drops:
            found.append(step)
            waited = 0
    return found


def factors(drops: Mapping[str, Any]) -> Sequence[float]:
    """Return one factor per drop, where `drops` has one for all or a list."""
    factor = drops["factor"]
    return factor if isinstance(factor, Sequence) else [factor] * len(drops["at"])


def parameter_groups(network: "nn.Module", weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """Return optimizer parameter groups.

    `decay` "all" applies weight decay to every parameter, "weights" exempts biases and batch-norm parameters.
    """
    parameters = list(network.parameters())
    if decay == "all":
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
