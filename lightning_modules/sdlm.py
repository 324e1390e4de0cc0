"""Stochastic diagonal Levenberg-Marquardt. LeCun et al. 1998, section III-B and Appendix C.

Every parameter k has its own step size, eta / (mu + h_kk), where h_kk estimates the second derivative of the loss.
The estimate uses a few patterns, the paper's word for training images, and is renewed before each pass over the
training set. An optimizer step follows every single pattern.

The estimate (Appendix C): h_kk sums d2E/du^2 over the connections u that share parameter k, and
d2E/du^2 = d2E/da^2 x^2 for a connection that carries x into a unit with the weighted sum a. Second derivatives
propagate backwards through squared weights and squared derivatives f', as first derivatives do through weights and
f'. The off-diagonal terms and the term with f'' are dropped, so no estimate is negative.

Left open by the paper, and what is done here:
  * Where the backward pass starts. The loss and the radial basis units have no parameters: together they are one
    function of f6's outputs, and the diagonal of its second derivative there is computed exactly. For equation 9
    it is 2 p_j + 4 Var(x - w), where p is the softmax of the negated penalties and of -j, p_j the probability of
    -j, and the variance is over the classes. For equation 8 it is 2.
  * The sum over patterns is divided by their number, because the loss is a mean over patterns.
  * The unit of the loss, which sets h relative to mu: dividing the loss by a number is the same as multiplying mu
    by it at the same eta. Section III-B prints the range of the step sizes in the first pass, and with it the unit
    can be found: see experiments/lenet5/mnist.yaml.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap

from lightning_modules.classifier import Classifier, NotConvergedError
from lightning_modules.errors import wrong_in_top
from lightning_modules.lenet5 import TrainableLayer, map_loss, squash, squash_derivative
from lightning_modules.recipe import Batch, lr_at

Loss = Callable[[Tensor, Tensor], Tensor]  # scores (N, C), labels (N,) -> mean over the batch
Tensors = dict[str, Tensor]

STEP_SIZES = ("train/smallest_step", "train/largest_step")  # metrics: over all parameters

UNROLLED_STEPS = 10  # per compiled graph: a step takes 160 microseconds with 8 in one graph, 210 with 1


def loss_curvature(output: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Return the diagonal of d2E/dx2 per pattern, (N, D), for the inputs `x` (N, D) of the last layer."""

    def loss_of_one(x: Tensor, label: Tensor) -> Tensor:
        return loss(output(x[None]), label[None])

    # Rounding can make a zero slightly negative.
    return vmap(lambda x, label: jacrev(grad(loss_of_one))(x, label).diagonal().clamp(min=0))(x, labels)


def curvature(network: nn.Sequential, images: Tensor, labels: Tensor, loss: Loss) -> Tensors:
    """Return h_kk of every parameter by name, mean over the given patterns (Appendix C)."""
    with torch.no_grad():
        *hidden, (_, output) = network.named_children()
        x, forward_pass = images, []
        for name, layer in hidden:
            assert isinstance(layer, TrainableLayer)
            a = layer.weighted_sum(x, layer.weight, layer.bias)
            forward_pass.append((name, layer, x, a))
            x = squash(a)
        second = loss_curvature(output, x, labels, loss)
    h = {}
    for name, layer, x, a in reversed(forward_pass):
        # `weighted_sum` is linear in its inputs and in its parameters: the second derivatives of Appendix C are
        # the first derivatives of the same sums over squared inputs and squared parameters.
        squared = [t.detach().square().requires_grad_() for t in (x, layer.weight, layer.bias)]
        sums = layer.weighted_sum(*squared)
        second, h[f"{name}.weight"], h[f"{name}.bias"] = torch.autograd.grad(
            sums, squared, second * squash_derivative(a).square()
        )
    return {name: h[name] / len(images) for name, _ in network.named_parameters()}


class OnlineSDLM:
    """Optimizer that makes one step per pattern, with a step size per parameter. "Online" is batch size 1."""

    def __init__(self, network: nn.Sequential, loss: Loss, *, mu: float, compile: bool) -> None:
        self.network, self.loss, self.mu = network, loss, mu
        self.h: Tensors = {}
        self._run_unrolled = self._run_steps
        self._run_single = self._run_steps
        if compile:  # one graph for UNROLLED_STEPS patterns, one for a single pattern
            self._run_unrolled = torch.compile(self._run_steps, fullgraph=True, dynamic=False)
            self._run_single = torch.compile(self._run_steps, fullgraph=True, dynamic=False)

    def estimate(self, images: Tensor, labels: Tensor) -> None:
        """Estimate the second derivatives h from patterns (N, C, H, W) and labels (N,)."""
        self.h = curvature(self.network, images, labels, self.loss)

    def step_sizes(self, eta: float) -> Tensors:
        """Return eta / (mu + h) of every parameter (eq. 21). RuntimeError before the first `estimate`."""
        if not self.h:
            raise RuntimeError("the second derivatives have not been estimated; call estimate() first")
        return {name: eta / (self.mu + h) for name, h in self.h.items()}

    @torch.no_grad()
    def run(self, images: Tensor, labels: Tensor, eta: float) -> Tensor:
        """Make one step per pattern, in order; changes the network's parameters in place.

        Returns (3,): sum of losses, top-1 errors, top-5 errors, each pattern evaluated before its step.
        """
        parameters = dict(self.network.named_parameters())
        sizes = self.step_sizes(eta)
        total = images.new_zeros(3)
        remainder_start = len(images) - len(images) % UNROLLED_STEPS
        for start in range(0, remainder_start, UNROLLED_STEPS):
            block = slice(start, start + UNROLLED_STEPS)
            total += self._run_unrolled(parameters, sizes, images[block], labels[block])
        for i in range(remainder_start, len(images)):
            total += self._run_single(parameters, sizes, images[i : i + 1], labels[i : i + 1])
        return total

    def _run_steps(
        self, parameters: Mapping[str, Tensor], sizes: Tensors, images: Tensor, labels: Tensor
    ) -> Tensor:
        current = dict(parameters)
        total = images.new_zeros(3)
        for image, label in zip(images.unbind(), labels[:, None].unbind(), strict=True):
            gradients, (loss, counts) = grad_and_value(self._objective, has_aux=True)(current, image, label)
            total = total + torch.cat([loss[None], counts])
            current = {name: value - sizes[name] * gradients[name] for name, value in current.items()}
        for name, value in parameters.items():
            value.copy_(current[name])
        return total

    def _objective(self, parameters: Tensors, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of one pattern (C, H, W) with label (1,), and its top-1 and top-5 error, 0 or 1."""
        scores = functional_call(self.network, parameters, (image,))[None]
        wrong = torch.stack([wrong_in_top(scores, label, 1), wrong_in_top(scores, label, 5)])
        return self.loss(scores, label), wrong.to(scores.dtype)


class OnlineClassifier(Classifier):
    """Train LeNet-5 as its paper does: one optimizer step per pattern, so a batch of N patterns is N steps.

    `loss` is {"name": "map", "j", "divided_by"}, `optimizer` is {"name": "sdlm", "mu", "samples"}, the learning
    rate is eta. Raises ValueError for a network without LeNet-5's layers.
    """

    needs_curvature_estimate = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**(settings | {"compile": False}))
        self.automatic_optimization = False
        if not isinstance(self.network, nn.Sequential) or not isinstance(self.network[0], TrainableLayer):
            raise ValueError(
                f"optimizer 'sdlm' needs the second derivatives of LeNet-5's layers, which network "
                f"{settings['network']!r} does not have; use it with 'lenet5', or choose 'sgd'"
            )
        self.eta = settings["lr"]  # of the last step
        recipe = settings["optimizer"]
        self.sdlm = OnlineSDLM(self.network, self.loss, mu=recipe["mu"], compile=settings.get("compile", False))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of equation 9, mean over scores (N, classes), divided by the recipe's `divided_by`."""
        recipe = self.hparams["loss"]
        return map_loss(scores, labels, j=recipe["j"]) / recipe["divided_by"]

    def configure_optimizers(self) -> None:  # type: ignore[override]
        """Return None: `training_step` changes the parameters itself."""

    def pop_window_metrics(self) -> dict[str, float]:
        """Return errors and loss over the window, and its smallest and largest step size; reset the window."""
        metrics = super().pop_window_metrics()
        if not metrics:
            return {}
        sizes = torch.cat([size.flatten() for size in self.sdlm.step_sizes(self.eta).values()])
        return metrics | dict(zip(STEP_SIZES, (sizes.min().item(), sizes.max().item()), strict=True))

    def estimate_curvature(self, images: Tensor, labels: Tensor) -> None:
        """Estimate the second derivatives from some training patterns, before each pass over the training set."""
        self.sdlm.estimate(images, labels)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Make one step per pattern of the batch. Raises NotConvergedError if the loss is not finite."""
        self.eta = lr_at(batch.step, self.hparams["lr"], self.hparams["lr_drops"])
        loss, wrong1, wrong5 = self.sdlm.run(batch.images, batch.labels, self.eta).double().unbind()
        if not torch.isfinite(loss):
            raise NotConvergedError(batch.step, loss.item())
        self.window += torch.stack([torch.full_like(loss, len(batch.labels)), wrong1, wrong5, loss])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the second derivatives, which stay in use until the end of the pass, and the learning rate."""
        checkpoint["curvature"], checkpoint["eta"] = self.sdlm.h, self.eta

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saves."""
        self.sdlm.h, self.eta = checkpoint["curvature"], checkpoint["eta"]
