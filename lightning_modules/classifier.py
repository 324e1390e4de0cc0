"""The LightningModule that all papers share: a network, a loss, a recipe and the errors as it trains."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.errors import wrong_in_top
from lightning_modules.networks import build
from lightning_modules.recipe import Batch, lr_at, parameter_groups

WARMUP_WINDOW = 100  # updates over which the training error that ends a warm-up is measured


class NotConvergedError(ArithmeticError):
    """The loss stopped being a finite number: the run is over, and recorded as not converged."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss became {loss} at step {step}")
        self.step, self.loss = step, loss


def totals_of(scores: Tensor, labels: Tensor, own: Tensor, loss: Tensor) -> Tensor:
    """float64 (5,): images, wrong in top 1, wrong in top 5, sum of the scores' `own` losses, sum of the losses."""
    n, wrong1 = len(labels), wrong_in_top(scores, labels, 1)
    counts = torch.full_like(wrong1, n), wrong1, wrong_in_top(scores, labels, 5)
    return torch.stack([*counts, own.double() * n, loss.double() * n])


def over_all_ranks(totals: Tensor) -> Tensor:
    """The sum of every rank's `totals`, in place, where several ranks train together."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(totals)
    return totals


class Classifier(pl.LightningModule):
    """One network learning to classify.

    A network with auxiliary classifiers (GoogLeNet) gives, in training, a tuple of scores, its own first,
    and says in `aux_weight` how much the losses of the others count.

    Args (all plain values, saved with every checkpoint):
        network: name in `networks.NETWORKS`. network_args: its paper's arguments.
        classes, channels: of the data.
        loss: {"name": "cross-entropy"}.
        lr: learning rate at update 0; lr_drops, lr_end: see `recipe.lr_at`.
        warmup: None, or {"lr": rate, "train_error_below_pct": error}: this rate until the training error over
            the last 100 updates falls below (ResNet-110, arXiv:1512.03385 section 4.2).
        optimizer: {"name": "sgd", "momentum", "nesterov", "weight_decay", "decay": "all" | "weights"}, or
            {"name": "rmsprop", "alpha", "eps", "momentum", "weight_decay", "decay"}.
        compile: run the network through torch.compile.
    """

    wants_pass_patterns = False  # whether `start_pass` is to be called before every pass over the images
    parts = 1  # an update is made from so many batches, one after the other

    def __init__(
        self,
        *,
        network: str,
        network_args: Mapping[str, Any],
        classes: int,
        channels: int,
        loss: Mapping[str, Any],  # for subclasses; here always cross-entropy
        lr: float,
        lr_drops: Mapping[str, Any] | None,
        warmup: Mapping[str, Any] | None,
        optimizer: Mapping[str, Any],
        channels_last: bool = False,
        compile: bool = False,
        lr_end: tuple[float, int] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        net = build(network, network_args, num_classes=classes, in_channels=channels)
        self.network = net.to(memory_format=torch.channels_last) if channels_last else net
        # Not a module's child: a checkpoint holds the network once, and goes on compiled or not.
        self._forward_network = [torch.compile(self.network) if compile else self.network]
        # What happened since the last report: images, wrong in top 1, wrong in top 5, sum of losses. A buffer,
        # so that it stays on the device, and an interrupted run resumes in the middle of a window.
        self.register_buffer("window", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("warm", torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64))  # over, images, wrong
        self.totals: Tensor | None = None  # of this update's batches so far

    @property
    def forward_network(self) -> Callable[[Tensor], Any]:
        """The network as it is trained: compiled, if asked for."""
        return self._forward_network[0]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **more: Any) -> Any:
        """As any module; older checkpoints hold the network twice, a second time as `forward_network`."""
        once = {name: value for name, value in state_dict.items() if not name.startswith("forward_network.")}
        return super().load_state_dict(once, *args, **more)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes) scores; the largest is the answer."""
        return self.forward_network(images)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Softmax cross-entropy of (N, classes) scores, the mean over N."""
        return F.cross_entropy(scores, labels)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one update, or of a part of it; NotConvergedError, before the update, if it is not finite.

        Also where it is not finite on another rank alone: all end at the same step.
        """
        self.set_lr(batch.step)
        outputs = self.forward_network(batch.images)
        scores, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        own = loss = self.loss(scores.float(), batch.labels)
        for other in auxiliary:
            weight = float(self.network.aux_weight)  # type: ignore[arg-type]
            loss = loss + weight * self.loss(other.float(), batch.labels)
        totals = totals_of(scores.detach(), batch.labels, own.detach(), loss.detach())
        self.totals = totals if self.totals is None else self.totals + totals
        if (batch_idx + 1) % self.parts == 0:
            self.count(batch.step, over_all_ranks(self.totals))
            self.totals = None
        return loss

    def count(self, step: int, totals: Tensor) -> None:
        """Add one update's `totals_of` to the window, and to the warm-up's own while that lasts."""
        images, *_, loss = totals.tolist()
        mean = loss / images
        if not math.isfinite(mean):
            raise NotConvergedError(step, mean)
        self.window += totals[:4]
        if self.hparams["warmup"]:
            self.warm[1:] += totals[:2]

    def seed_shared_draws(self, seed: int) -> None:
        """What the network draws once for a whole mini-batch, it draws from this seed: alike in all its parts."""
        network: Any = self.network
        if hasattr(network, "shared_draws"):  # the same object ever after, or torch.compile would compile anew
            network.shared_draws = (network.shared_draws or torch.Generator()).manual_seed(seed)

    def set_lr(self, step: int) -> None:
        """Give the optimiser the learning rate of update `step`."""
        lr = lr_at(step, self.hparams["lr"], self.hparams["lr_drops"], self.hparams["lr_end"])
        if self.hparams["warmup"] and not self.warm_up_is_over(step):
            lr = self.hparams["warmup"]["lr"]
        for group in self.optimizers().param_groups:
            group["lr"] = lr

    def warm_up_is_over(self, step: int) -> bool:
        """Whether the training error of a past window of 100 updates was low enough; looked at every 100."""
        if step and step % WARMUP_WINDOW == 0 and not self.warm[0]:
            over, images, wrong = self.warm.tolist()
            over = images > 0 and 100 * wrong / images < self.hparams["warmup"]["train_error_below_pct"]
            self.warm.copy_(torch.tensor([float(over), 0.0, 0.0]))
        return bool(self.warm[0])

    def take_window(self) -> dict[str, float]:
        """Training errors and loss over the window, which starts anew; the batches as trained on (augmented)."""
        images, wrong1, wrong5, loss = self.window.tolist()
        self.window.zero_()
        if not images:
            return {}
        return {
            "train/loss": loss / images,
            "train/top1_error_pct": 100 * wrong1 / images,
            "train/top5_error_pct": 100 * wrong5 / images,
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD or RMSProp; the decayed parameters as the recipe says."""
        recipe = self.hparams["optimizer"]
        groups = parameter_groups(self.network, recipe["weight_decay"], recipe["decay"])
        lr, momentum = self.hparams["lr"], recipe["momentum"]
        if recipe["name"] == "rmsprop":
            return torch.optim.RMSprop(groups, lr=lr, alpha=recipe["alpha"], eps=recipe["eps"], momentum=momentum)
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=recipe.get("nesterov", False))
