"""Stochastic diagonal Levenberg-Marquardt. LeCun et al. 1998, section III-B and Appendix C.

Every parameter k has its own step size, eta / (mu + h_kk), where h_kk is an estimate of the second
derivative of the loss, taken over a few patterns before each pass; the parameters then move after
every single pattern.

The estimate (Appendix C): h_kk sums d2E/du^2 over the connections u which share parameter k, and
d2E/du^2 = d2E/da^2 x^2 for a connection that carries x into a unit of weighted sum a. Second
derivatives go backwards through squared weights and squared slopes, as first derivatives do through
weights and slopes; what mixes two units, and the term with f'', is dropped, so that none is negative.

Left open by the paper, and what is done here:
  * Where this backward walk begins. The loss and the radial basis units have no parameters: together
    they are one function of f6's outputs, and the diagonal of its second derivative there is taken
    exactly. For equation 9 it is 2 p_j + 4 Var(x - w), where p is the softmax of the negated penalties
    and of -j, p_j the part of -j, and the variance runs over the classes; for equation 8 it is 2.
  * The sum runs over patterns and is divided by their number, as the loss is a mean over patterns.
  * The unit of the loss, which decides how h compares with mu. With the loss as equation 9 prints it, a sum over
    84 components, training collapses within six patterns: with weights of +-2.4 / fan-in the layers below f6
    hardly move, their h is below 1e-4, all of them step by eta / mu = 0.025, and f6 saturates before h is looked
    at again. The paper calls its criterion a *mean* squared error: divided by the 84 components it trains.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap

from lightning_modules.classifier import Classifier, NotConvergedError
from lightning_modules.errors import wrong_in_top
from lightning_modules.lenet5 import Layer, map_loss, squash, squash_slope
from lightning_modules.recipe import Batch, lr_at

Loss = Callable[[Tensor, Tensor], Tensor]  # (scores (N, C), labels (N,)) -> the mean over the batch
Tensors = dict[str, Tensor]

UNROLLED = 10  # updates in one compiled graph: 8 take 160 microseconds each where one by one takes 210


def loss_curvature(output: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """The diagonal of d2E/dx2, each pattern by itself, for the inputs `x` (N, D) of the last layer."""

    def of_one(x: Tensor, label: Tensor) -> Tensor:
        return loss(output(x[None]), label[None])

    # Rounding may leave a zero slightly below zero.
    return vmap(lambda x, label: jacrev(grad(of_one))(x, label).diagonal().clamp(min=0))(x, labels)


def curvature(network: nn.Sequential, images: Tensor, labels: Tensor, loss: Loss) -> dict[str, Tensor]:
    """h_kk of every parameter by name, the mean over the patterns given (Appendix C)."""
    with torch.no_grad():
        *hidden, (_, output) = network.named_children()
        x, trace = images, []
        for name, layer in hidden:
            assert isinstance(layer, Layer)
            a = layer.weigh(x, layer.weight, layer.bias)
            trace.append((name, layer, x, a))
            x = squash(a)
        second = loss_curvature(output, x, labels, loss)
    h = {}
    for name, layer, x, a in reversed(trace):
        # `weigh` is linear in its inputs and in its parameters: the first derivative of the same sums
        # over squared inputs and squared parameters is what Appendix C asks for.
        squared = [t.detach().square().requires_grad_() for t in (x, layer.weight, layer.bias)]
        sums = layer.weigh(*squared)
        second, h[f"{name}.weight"], h[f"{name}.bias"] = torch.autograd.grad(
            sums, squared, second * squash_slope(a).square()
        )
    return {name: h[name] / len(images) for name, _ in network.named_parameters()}


class OnlineSDLM:
    """Updates a network after every single pattern, each parameter with its own step size."""

    def __init__(self, network: nn.Sequential, loss: Loss, *, mu: float, compile: bool) -> None:
        self.network, self.loss, self.mu = network, loss, mu
        self.h: Tensors = {}
        self.many = self._updates
        self.one = self._updates
        if compile:  # a graph for each number of patterns that is asked for: UNROLLED, and one
            self.many = torch.compile(self._updates, fullgraph=True, dynamic=False)
            self.one = torch.compile(self._updates, fullgraph=True, dynamic=False)

    def estimate(self, images: Tensor, labels: Tensor) -> None:
        """New second derivatives h from some patterns, (N, C, H, W) and (N,), to be kept for a pass."""
        self.h = curvature(self.network, images, labels, self.loss)

    def step_sizes(self, eta: float) -> Tensors:
        """eta / (mu + h) of every parameter (eq. 21)."""
        if not self.h:
            raise RuntimeError("the second derivatives have not been estimated yet")
        return {name: eta / (self.mu + h) for name, h in self.h.items()}

    @torch.no_grad()
    def run(self, images: Tensor, labels: Tensor, eta: float) -> Tensor:
        """One update after each of the patterns, in their order; changes the network's parameters in place.

        Returns (3,): summed loss, wrong in top 1, wrong in top 5, each pattern counted before its update.
        """
        parameters = dict(self.network.named_parameters())
        sizes = self.step_sizes(eta)
        total = images.new_zeros(3)
        whole = len(images) - len(images) % UNROLLED
        for start in range(0, whole, UNROLLED):
            part = slice(start, start + UNROLLED)
            total += self.many(parameters, sizes, images[part], labels[part])
        for i in range(whole, len(images)):
            total += self.one(parameters, sizes, images[i : i + 1], labels[i : i + 1])
        return total

    def _updates(self, parameters: Mapping[str, Tensor], sizes: Tensors, images: Tensor, labels: Tensor) -> Tensor:
        now = dict(parameters)
        total = images.new_zeros(3)
        for image, label in zip(images.unbind(), labels[:, None].unbind(), strict=True):
            gradients, (loss, counts) = grad_and_value(self._objective, has_aux=True)(now, image, label)
            total = total + torch.cat([loss[None], counts])
            now = {name: value - sizes[name] * gradients[name] for name, value in now.items()}
        for name, value in parameters.items():
            value.copy_(now[name])
        return total

    def _objective(self, parameters: Tensors, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of one pattern, (C, H, W) with label (1,), and whether it is wrong in top 1 and in top 5."""
        scores = functional_call(self.network, parameters, (image,))[None]
        wrong = torch.stack([wrong_in_top(scores, label, 1), wrong_in_top(scores, label, 5)])
        return self.loss(scores, label), wrong.to(scores.dtype)


class OnlineClassifier(Classifier):
    """LeNet-5's own way to learn: a batch is a row of patterns, and the network moves after each of them.

    `loss` is {"name": "map", "j", "divided_by"}, `optimizer` {"name": "sdlm", "mu", "samples"}; the rate is eta.
    """

    wants_pass_patterns = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**(settings | {"compile": False}))
        self.automatic_optimization = False
        if not isinstance(self.network, nn.Sequential) or not isinstance(self.network[0], Layer):
            raise ValueError(
                f"optimizer 'sdlm' needs the second derivatives of LeNet-5's layers, which network "
                f"{settings['network']!r} does not have; use it with 'lenet5', or 'sgd' here"
            )
        recipe = settings["optimizer"]
        self.online = OnlineSDLM(self.network, self.loss, mu=recipe["mu"], compile=settings.get("compile", False))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Equation 9, the mean over N of (N, classes) scores, in the unit that the recipe divides by."""
        recipe = self.hparams["loss"]
        return map_loss(scores, labels, j=recipe["j"]) / recipe["divided_by"]

    def configure_optimizers(self) -> None:  # type: ignore[override]
        """None: the updates are made within `training_step`."""

    def start_pass(self, images: Tensor, labels: Tensor) -> None:
        """Before every pass: new second derivatives from some training patterns."""
        self.online.estimate(images, labels)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """As many updates as the batch has patterns; raises NotConvergedError if the loss is not finite."""
        eta = lr_at(batch.step, self.hparams["lr"], self.hparams["lr_drops"])
        loss, wrong1, wrong5 = self.online.run(batch.images, batch.labels, eta).double().unbind()
        if not torch.isfinite(loss):
            raise NotConvergedError(batch.step, loss.item())
        self.window += torch.stack([torch.full_like(loss, len(batch.labels)), wrong1, wrong5, loss])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The second derivatives hold until the end of the pass, so they are part of the state."""
        checkpoint["curvature"] = self.online.h

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See on_save_checkpoint."""
        self.online.h = checkpoint["curvature"]
