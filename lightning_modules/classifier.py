"""The LightningModule that all papers share: network, loss, optimizer, learning rate, training errors."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.errors import wrong_in_top
from lightning_modules.networks import build
from lightning_modules.recipe import Batch, lr_at, parameter_groups
from lightning_modules.rmsprop import RMSPROP
from lightning_modules.weights import (
    average_of,
    copy_weights,
    frozen_copy,
    gradient_magnitude,
    layer_parameters,
    limit_filters,
)

WARMUP_WINDOW = 100  # optimizer steps per measurement of the training error that ends a warm-up


class NotConvergedError(ArithmeticError):
    """The loss is not finite. The run ends, and its status is "not converged"."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss became {loss} at step {step}")
        self.step, self.loss = step, loss


def batch_totals(scores: Tensor, labels: Tensor, main_loss: Tensor, loss: Tensor) -> Tensor:
    """Return the totals of one batch, float64 (5,): images, top-1 errors, top-5 errors, two sums of losses.

    `main_loss` and `loss` are means over the batch, without and with the auxiliary classifiers.
    """
    n, wrong1 = len(labels), wrong_in_top(scores, labels, 1)
    counts = torch.full_like(wrong1, n), wrong1, wrong_in_top(scores, labels, 5)
    return torch.stack([*counts, main_loss.double() * n, loss.double() * n])


def all_reduce_sum(totals: Tensor) -> Tensor:
    """Sum `totals` over all ranks in place, in distributed training."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(totals)
    return totals


class Classifier(pl.LightningModule):
    """Train one network with softmax cross-entropy and SGD or RMSProp.

    A network with auxiliary classifiers (GoogLeNet) returns a tuple of scores in training, the main scores first.
    Its attribute `aux_weight` is the weight of the auxiliary losses.

    Args (all plain values, saved with every checkpoint):
        network: name in `networks.NETWORKS`.
        network_args: arguments of the network's builder.
        classes, channels: number of classes and of image channels.
        loss: {"name": "cross-entropy", "smoothing"}; the smoothing of labels in training, by default 0.
        lr: learning rate at step 0.
        lr_drops, lr_end, lr_power: see `recipe.lr_at`.
        warmup: None, or {"lr": rate, "train_error_below_pct": error}: use this rate until the top-1 training error
            over 100 steps is below `error` (ResNet-110, arXiv:1512.03385, section 4.2).
        optimizer: {"name": "sgd", "momentum", "nesterov", "weight_decay", "decay": "all" | "weights"}, or
            {"name": "rmsprop", "alpha", "eps", "momentum", "weight_decay", "decay", "form": "pytorch" |
            "tensorflow"}.
        channels_last: use the channels-last memory format.
        compile: run the network through torch.compile.
        plateau_factor: multiplies the learning rate at each of the steps in `plateau_steps`.
        average: None, or {"decay", "since", "batch_norm"}: keep an average of the weights from step `since` on,
            see `weights.average_of`.
        filter_rms_limit: None, or the largest root mean square of a filter, see `weights.limit_filters`.
        keep_best: keep a copy of the network, which `copy_best` makes.
        gradient_norms: layers whose mean gradient magnitude is measured, see `weights.gradient_magnitude`.
    """

    needs_curvature_estimate = False  # True: the training loop calls `estimate_curvature` before each pass
    accumulation_steps = 1  # micro-batches per optimizer step on this rank

    def __init__(
        self,
        *,
        network: str,
        network_args: Mapping[str, Any],
        classes: int,
        channels: int,
        loss: Mapping[str, Any],
        lr: float,
        lr_drops: Mapping[str, Any] | None,
        warmup: Mapping[str, Any] | None,
        optimizer: Mapping[str, Any],
        channels_last: bool = False,
        compile: bool = False,
        lr_end: tuple[float, int] | None = None,
        lr_power: float = 1.0,
        plateau_factor: float = 1.0,
        average: Mapping[str, Any] | None = None,
        filter_rms_limit: float | None = None,
        keep_best: bool = False,
        gradient_norms: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        net = build(network, network_args, num_classes=classes, in_channels=channels)
        self.network = net.to(memory_format=torch.channels_last) if channels_last else net
        # In a list, so that it is no child module: a checkpoint holds the network once, and a run can resume with
        # or without torch.compile.
        self._forward_network = [torch.compile(self.network) if compile else self.network]
        # Totals since the last report: images, top-1 errors, top-5 errors, sum of losses. A buffer stays on the
        # device, and an interrupted run resumes in the middle of a window.
        self.register_buffer("window", torch.zeros(4, dtype=torch.float64))
        # State of the warm-up: 1 once it has ended, then images and top-1 errors of the current window.
        self.register_buffer("warm", torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64))
        self.totals: Tensor | None = None  # `batch_totals` of this step's micro-batches so far
        self.plateau_steps: list[int] = []  # steps from which the learning rate is lower, see `plateau_drops`
        self.average = (
            average_of(self.network, average["decay"], batch_norm=average["batch_norm"]) if average else None
        )
        self.best = frozen_copy(self.network) if keep_best else None
        self.measured_layers = {name: layer_parameters(self.network, name) for name in gradient_norms}
        if gradient_norms:  # sums of magnitudes since the last report, one per layer, and the number of steps
            self.register_buffer("gradients", torch.zeros(len(gradient_norms) + 1, dtype=torch.float64))

    @property
    def forward_network(self) -> Callable[[Tensor], Any]:
        """The network, compiled if `compile` is set."""
        return self._forward_network[0]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict. Ignores `forward_network`, a second copy of the network in older checkpoints."""
        state = {name: value for name, value in state_dict.items() if not name.startswith("forward_network.")}
        return super().load_state_dict(state, *args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes) scores; the largest is the prediction."""
        return self.forward_network(images)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the softmax cross-entropy of scores (N, classes), mean over N."""
        return F.cross_entropy(scores, labels)

    def training_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the loss to minimise: the cross-entropy with smoothed labels, mean over N.

        With smoothing e and K classes, the true class has probability 1 - e + e / K and each other one e / K
        (Szegedy et al. 2015, arXiv:1512.00567, section 7). Evaluation uses `loss`.
        """
        smoothing = self.hparams["loss"].get("smoothing", 0.0)
        return (
            F.cross_entropy(scores, labels, label_smoothing=smoothing) if smoothing else self.loss(scores, labels)
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch.

        Raises NotConvergedError before the optimizer step if the loss of the step is not finite, also if it is not
        finite on another rank only: all ranks stop at the same step.
        """
        self.set_lr(batch.step)
        outputs = self.forward_network(batch.images)
        scores, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        main_loss = loss = self.training_loss(scores.float(), batch.labels)
        for aux_scores in auxiliary:
            weight = float(self.network.aux_weight)  # type: ignore[arg-type]
            loss = loss + weight * self.training_loss(aux_scores.float(), batch.labels)
        totals = batch_totals(scores.detach(), batch.labels, main_loss.detach(), loss.detach())
        self.totals = totals if self.totals is None else self.totals + totals
        if (batch_idx + 1) % self.accumulation_steps == 0:
            self.add_step_totals(batch.step, all_reduce_sum(self.totals))
            self.totals = None
        return loss

    def add_step_totals(self, step: int, totals: Tensor) -> None:
        """Add the totals of one optimizer step to the window, and to the window of the warm-up.

        Raises NotConvergedError if the loss is not finite.
        """
        images, *_, loss = totals.tolist()
        mean = loss / images
        if not math.isfinite(mean):
            raise NotConvergedError(step, mean)
        self.window += totals[:4]
        if self.hparams["warmup"]:
            self.warm[1:] += totals[:2]

    def seed_shared_generator(self, seed: int) -> None:
        """Seed the random draws that all micro-batches of one mini-batch share, such as dropped blocks."""
        network: Any = self.network
        if hasattr(network, "shared_draws"):  # keep the generator: a new object makes torch.compile recompile
            network.shared_draws = (network.shared_draws or torch.Generator()).manual_seed(seed)

    def lr_of(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`."""
        hparams = self.hparams
        if hparams["warmup"] and not self.warmup_has_ended(step):
            return float(hparams["warmup"]["lr"])
        lr = lr_at(step, hparams["lr"], hparams["lr_drops"], hparams["lr_end"], hparams["lr_power"])
        return float(lr * hparams["plateau_factor"] ** sum(step >= at for at in self.plateau_steps))

    def set_lr(self, step: int) -> None:
        """Set the learning rate of optimizer step `step`.

        With `rate_in_velocity` the velocity is v = momentum v - lr gradient, and the weights change by v
        (Krizhevsky et al. 2012, section 5). PyTorch keeps v / -lr, which is scaled here when the rate changes.
        """
        lr, optimizer = self.lr_of(step), self.optimizers()
        for group in optimizer.param_groups:
            before, group["lr"] = group["lr"], lr
            if before != lr and self.hparams["optimizer"].get("rate_in_velocity"):
                for parameter in group["params"]:
                    if (velocity := optimizer.state[parameter].get("momentum_buffer")) is not None:
                        velocity.mul_(before / lr)

    def end_step(self, step: int) -> None:
        """Limit the filters and update the average, after `step` optimizer steps."""
        if limit := self.hparams["filter_rms_limit"]:
            limit_filters(self.network, limit)
        if self.average is not None and step >= self.hparams["average"]["since"]:
            self.average.update_parameters(self.network)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the magnitudes of the step's gradients, before they are clipped."""
        for number, parameters in enumerate(self.measured_layers.values()):
            self.gradients[number] += gradient_magnitude(parameters)
        if self.measured_layers:
            self.gradients[-1] += 1

    def pop_gradient_norms(self) -> dict[str, float]:
        """Return the mean gradient magnitude of each measured layer over the window, and reset the window."""
        if not self.measured_layers:
            return {}
        *sums, steps = self.gradients.tolist()
        self.gradients.zero_()
        names = self.measured_layers if steps else ()
        return {f"train/gradient_norm/{name}": total / steps for name, total in zip(names, sums, strict=False)}

    def copy_best(self) -> None:
        """Keep a copy of the current network as the best."""
        assert self.best is not None
        copy_weights(self.network, self.best)

    def warmup_has_ended(self, step: int) -> bool:
        """Return True once a window of 100 steps had a low enough training error; checked every 100 steps."""
        if step and step % WARMUP_WINDOW == 0 and not self.warm[0]:
            _, images, wrong = self.warm.tolist()
            ended = images > 0 and 100 * wrong / images < self.hparams["warmup"]["train_error_below_pct"]
            self.warm.copy_(torch.tensor([float(ended), 0.0, 0.0]))
        return bool(self.warm[0])

    def pop_window_metrics(self) -> dict[str, float]:
        """Return errors, loss (on augmented images) and gradient norms over the window, and reset the window."""
        norms = self.pop_gradient_norms()
        images, wrong1, wrong5, loss = self.window.tolist()
        self.window.zero_()
        if not images:
            return {}
        return {
            "train/loss": loss / images,
            "train/top1_error_pct": 100 * wrong1 / images,
            "train/top5_error_pct": 100 * wrong5 / images,
        } | norms

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD or RMSProp with the recipe's settings."""
        recipe = self.hparams["optimizer"]
        groups = parameter_groups(self.network, recipe["weight_decay"], recipe["decay"])
        lr, momentum = self.hparams["lr"], recipe["momentum"]
        if recipe["name"] == "rmsprop":
            rmsprop = RMSPROP[recipe.get("form", "pytorch")]
            return rmsprop(groups, lr=lr, alpha=recipe["alpha"], eps=recipe["eps"], momentum=momentum)
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=recipe.get("nesterov", False))
