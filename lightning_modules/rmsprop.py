"""RMSProp as TensorFlow computes it, for recipes published with TensorFlow (Inception-v3 and later)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class TensorFlowRMSprop(torch.optim.Optimizer):
    """RMSProp of TensorFlow 1 (tf.train.RMSPropOptimizer, not centred).

    For each parameter, with gradient g, learning rate lr and state s (mean square) and v (velocity):

        s = alpha s + (1 - alpha) g^2            s starts at 1
        v = momentum v + lr g / sqrt(s + eps)    v starts at 0
        parameter = parameter - v

    `torch.optim.RMSprop` differs in three ways: it adds eps to the root of s, s starts at 0, and the learning rate
    multiplies the velocity instead of being part of it, which matters when the rate changes. With the eps of 1.0
    of arXiv:1512.00567, section 8, the first difference changes every step.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, a part of the velocity.
        alpha: decay of the mean square, in [0, 1].
        eps: added to the mean square, > 0.
        momentum: factor of the velocity.
        weight_decay: times the parameter, added to its gradient.

    Raises ValueError for a setting outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        alpha: float = 0.9,
        eps: float = 1e-10,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        if not (lr >= 0 and 0 <= alpha <= 1 and eps > 0 and momentum >= 0 and weight_decay >= 0):
            raise ValueError(
                "RMSProp needs lr, momentum and weight_decay >= 0, alpha in [0, 1] and eps > 0, not"
                f" lr {lr:g}, momentum {momentum:g}, weight_decay {weight_decay:g}, alpha {alpha:g}, eps {eps:g}"
            )
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one optimizer step. Returns the loss of `closure`, which computes the gradients, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if group["weight_decay"]:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                state = self.state[parameter]
                if not state:
                    state["square_avg"] = torch.ones_like(parameter)
                    if group["momentum"]:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                mean_square = state["square_avg"]
                mean_square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
                change = gradient / (mean_square + group["eps"]).sqrt_()
                if group["momentum"]:
                    change = state["momentum_buffer"].mul_(group["momentum"]).add_(change, alpha=group["lr"])
                    parameter.sub_(change)
                else:
                    parameter.sub_(change, alpha=group["lr"])
        return loss


RMSPROP: dict[str, Callable[..., torch.optim.Optimizer]] = {  # by the setting `form` of a recipe
    "pytorch": torch.optim.RMSprop,
    "tensorflow": TensorFlowRMSprop,
}
