"""Train a network under a constraint: pruned weights stay zero, or the weights of a layer share values.

Han et al. 2015 (arXiv:1506.02626), section 3, retrain the remaining weights after pruning. Han et al. 2016
(arXiv:1510.00149), section 3.3, train the shared values: the gradient of a shared value is the sum of the
gradients of its weights (equation 3). Both use the data, the loss and the optimizer of the run; biases and batch
normalisation are trained too.

A stage is one such training. Its result is a file in the derived run's folder, and during the stage there are
checkpoints as in a run. All random draws are functions of (seed, stage, step), so a run that was stopped ends, on
a CPU, with the same bits as an uninterrupted one. Each stage trains on one device.
"""

import io
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.classifier import NotConvergedError
from lightning_modules.recipe import Batch, lr_at
from lightning_modules.rmsprop import RMSPROP
from pipeline.common.files import file_hash, write_atomically
from pipeline.data.order import derive_seed
from pipeline.data.prefetch import StopRequested
from pipeline.declare.derived import Retraining
from pipeline.declare.training import RmsProp, Sgd
from pipeline.derive.context import DerivedContext
from pipeline.derive.quantise import SharedLayer
from pipeline.track.run_folder import explain_disk_errors
from pipeline.train.callback import CHECKPOINT_SHARE, checkpoint_interval

RESULT_PREFIXES = ("network.", "value.")  # of the tensors in the file of a stage's result


class Constraint(Protocol):
    """What training may change of a network's weights."""

    density: dict[str, float]  # weight of a layer -> fraction that is not 0
    values: dict[str, nn.Parameter]  # weight of a layer -> its shared values

    def constrain_gradients(self) -> None:
        """Change the gradients of a backward pass so that the optimizer keeps the constraint."""

    def constrain_weights(self) -> None:
        """Set the network's weights, after an optimizer step, from what the optimizer has changed."""


class PrunedWeights:
    """The weights that are 0 stay 0 (Han et al. 2015, section 3)."""

    def __init__(self, network: nn.Module, layers: Iterable[str]) -> None:
        parameters = dict(network.named_parameters())
        self.weights = {name: parameters[name] for name in layers}
        self.pruned = {name: weight.detach() == 0 for name, weight in self.weights.items()}
        self.density = {name: 1 - float(pruned.double().mean()) for name, pruned in self.pruned.items()}
        self.values: dict[str, nn.Parameter] = {}

    def constrain_gradients(self) -> None:
        """Set the gradients of pruned weights to 0; momentum and weight decay of a zero are 0 too."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(self.pruned[name], 0)

    def constrain_weights(self) -> None:
        """Do nothing: without a gradient, a pruned weight has not changed."""


class SharedWeights:
    """The kept weights of a layer have few values, which are trained; the others stay 0 (section 3.3)."""

    def __init__(self, network: nn.Module, layers: Mapping[str, SharedLayer]) -> None:
        parameters = dict(network.named_parameters())
        self.quantised = dict(layers)
        self.weights = {name: parameters[name] for name in layers}
        self.values = {
            name: nn.Parameter(torch.from_numpy(layer.values.copy()).to(self.weights[name].device))
            for name, layer in layers.items()
        }
        self.places = {
            name: [
                torch.from_numpy(part).to(self.weights[name].device) for part in (layer.positions, layer.indices)
            ]
            for name, layer in layers.items()
        }
        self.density = {name: len(layer.positions) / self.weights[name].numel() for name, layer in layers.items()}
        self.constrain_weights()

    def constrain_gradients(self) -> None:
        """Set the gradient of each shared value to the sum of the gradients of its weights (equation 3)."""
        for name, values in self.values.items():
            positions, indices = self.places[name]
            gradient = self.weights[name].grad
            if gradient is None:
                values.grad = None
                continue
            of_weights = gradient.flatten()[positions].double()
            values.grad = torch.bincount(indices, of_weights, minlength=len(values)).to(values.dtype)

    def constrain_weights(self) -> None:
        """Give each kept weight its shared value."""
        with torch.no_grad():
            for name, values in self.values.items():
                positions, indices = self.places[name]
                weight = self.weights[name]
                flat = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
                weight.copy_(flat.index_copy_(0, positions, values[indices]).view(weight.shape))

    def layers(self) -> dict[str, SharedLayer]:
        """Return the layers with their trained values."""
        return {
            name: SharedLayer(
                layer.shape, layer.positions, self.values[name].detach().cpu().numpy(), layer.indices
            )
            for name, layer in self.quantised.items()
        }


def trained_parameters(network: nn.Module, constraint: Constraint) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer changes: shared values take the place of their layer's weights."""
    return {
        name: constraint.values.get(name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def make_optimizer(settings: Sgd | RmsProp, network: nn.Module, constraint: Constraint) -> torch.optim.Optimizer:
    """Return the run's optimizer for the trained parameters; shared values have the weight decay of weights."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in trained_parameters(network, constraint).items():
        has_decay = settings.decay == "all" or parameter.ndim > 1 or name in constraint.values
        (decayed if has_decay else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if isinstance(settings, RmsProp):
        rmsprop = RMSPROP[settings.form]
        return rmsprop(groups, lr=0.01, alpha=settings.alpha, eps=settings.eps, momentum=settings.momentum)
    return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, *, in_velocity: bool) -> None:
    """Set the learning rate. With `in_velocity`, scale velocities as `Classifier.set_lr` does."""
    for group in optimizer.param_groups:
        before, group["lr"] = group["lr"], lr
        if in_velocity and before != lr:
            for parameter in group["params"]:
                if (velocity := optimizer.state[parameter].get("momentum_buffer")) is not None:
                    velocity.mul_(before / lr)


def network_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy of a batch, with the weighted losses of auxiliary classifiers if there are any."""
    outputs = network(batch.images)
    scores, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = F.cross_entropy(scores.float(), batch.labels)
    for aux_scores in auxiliary:
        weight = float(network.aux_weight)  # type: ignore[arg-type]
        loss = loss + weight * F.cross_entropy(aux_scores.float(), batch.labels)
    return loss


@contextmanager
def reduced_dropout(network: nn.Module, density: Mapping[str, float], image: Tensor) -> Iterator[None]:
    """Multiply each dropout rate by the root of the density of the layer before it, for the time of the context.

    Han et al. 2015, equation 2: D_r = D_o sqrt(C_ir / C_io), where C_i counts the connections of layer i, whose
    outputs are dropped. The layer before a dropout is found by applying the network to `image`, (1, C, H, W).
    """
    drops = {module: module.p for module in network.modules() if isinstance(module, nn.modules.dropout._DropoutNd)}
    owners = {network.get_submodule(name.rpartition(".")[0]): share for name, share in density.items()}
    before: list[float] = [1.0]
    rates: dict[nn.Module, float] = {}

    def note(module: nn.Module, _inputs: Any) -> None:
        if module in drops:
            rates[module] = drops[module] * math.sqrt(before[-1])
        else:
            before.append(owners[module])

    was_training = network.training
    hooks = [module.register_forward_pre_hook(note) for module in {*drops, *owners}] if drops else []
    try:
        if drops:
            with torch.no_grad():
                network.eval()(image)
            network.train(was_training)
    finally:
        for hook in hooks:
            hook.remove()
    try:
        for module, rate in rates.items():
            module.p = rate  # type: ignore[assignment]
        yield
    finally:
        for module, rate in drops.items():
            module.p = rate


class Retrainer:
    """Trains the stages of one derived run, each from its last checkpoint."""

    def __init__(self, context: DerivedContext) -> None:
        self.context, self.folder = context, context.folder
        self.recipe = context.derived.members[0].recipe.train
        self.network, self.data = context.networks[0], context.datasets[0]
        self.steps = 0  # of the stages so far
        self.stage = ""  # the current or last one

    def train(self, stage: str, settings: Retraining, constraint: Constraint) -> None:
        """Train the network in place, or load the result of a stage that an earlier attempt finished.

        Raises StopRequested, after a checkpoint, once `stop()` is true, and NotConvergedError for a loss that is
        not finite.
        """
        self.stage = stage
        if not self.load_result(stage, constraint):
            seconds = self.fit(stage, settings, constraint)
            self.save_result(stage, constraint, seconds)
        self.steps += settings.steps

    def fit(self, stage: str, settings: Retraining, constraint: Constraint) -> float:
        """Run the optimizer steps of a stage, from its last checkpoint or its first step.

        Return the seconds that the stage took, over all sessions.
        """
        optimizer_settings = self.recipe.optimizer
        assert isinstance(optimizer_settings, Sgd | RmsProp)
        in_velocity = isinstance(optimizer_settings, Sgd) and optimizer_settings.rate_in_velocity
        network, context, stop = self.network, self.context, self.context.options.stop
        optimizer = make_optimizer(optimizer_settings, network, constraint)
        start, earlier = self.load_checkpoint(stage, constraint, optimizer)
        batch_size = settings.batch_size or self.recipe.batch_size
        recipe = self.recipe.model_copy(update={"steps": settings.steps, "batch_size": batch_size})
        seed = derive_seed(context.derived.seed, stage)
        end = None if settings.lr_end is None else (settings.lr_end, settings.steps)
        context.options.report(f"{stage}: training for {settings.steps - start:,} steps")
        began = last = time.monotonic()
        interval = checkpoint_interval()
        network.train()
        with ExitStack() as stack:
            batches: Any = stack.enter_context(closing(iter(self.data.feed(recipe, seed, start, 1))))  # type: ignore[type-var]
            stack.enter_context(self.data.during_training())
            for step, images, labels in batches:
                batch = Batch(step, images.to(context.device), labels.to(context.device))
                if batch.step == start:
                    stack.enter_context(reduced_dropout(network, constraint.density, batch.images[:1]))
                torch.manual_seed(derive_seed(seed, "update", batch.step))
                set_rate(optimizer, lr_at(batch.step, settings.lr, None, end), in_velocity=in_velocity)
                self.step(batch, optimizer, constraint)
                done, now = batch.step + 1, time.monotonic()
                stopped = done < settings.steps and stop()
                if stopped or (done < settings.steps and now - last >= interval):
                    self.save_checkpoint(stage, done, constraint, optimizer, earlier + now - began)
                    last = time.monotonic()
                    interval = max(interval, (last - now) / CHECKPOINT_SHARE) if interval else 0.0
                if stopped:
                    raise StopRequested
        return earlier + time.monotonic() - began

    def step(self, batch: Batch, optimizer: torch.optim.Optimizer, constraint: Constraint) -> None:
        """Make one optimizer step."""
        network, context = self.network, self.context
        network.zero_grad(set_to_none=True)
        with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.bf16):
            loss = network_loss(network, batch)
        if not math.isfinite(value := loss.item()):
            raise NotConvergedError(batch.step, value)
        loss.backward()
        constraint.constrain_gradients()
        if self.recipe.clip_norm:
            trained = trained_parameters(network, constraint).values()
            nn.utils.clip_grad_norm_(trained, self.recipe.clip_norm)
        optimizer.step()
        constraint.constrain_weights()

    # Files

    def state(self, constraint: Constraint) -> dict[str, Tensor]:
        """Return the tensors that training changes: the network's, and shared values."""
        network, values = RESULT_PREFIXES
        found = {f"{network}{name}": value for name, value in self.network.state_dict().items()}
        found |= {f"{values}{name}": value for name, value in constraint.values.items()}
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    def load_state(self, state: Mapping[str, Tensor], constraint: Constraint) -> None:
        """Restore what `state` returned."""
        network, values = RESULT_PREFIXES
        weights = {name.removeprefix(network): value for name, value in state.items() if name.startswith(network)}
        self.network.load_state_dict(weights)
        with torch.no_grad():
            for name, value in constraint.values.items():
                value.copy_(state[f"{values}{name}"])

    def save_result(self, stage: str, constraint: Constraint, seconds: float) -> None:
        """Write the result of a finished stage, under a name that contains the hash of the file."""
        partial = self.folder.checkpoints / ".result"
        with explain_disk_errors(self.folder.path):
            self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
            state = self.state(constraint) | {"seconds": torch.tensor(seconds)}
            write_atomically(partial, safetensors.torch.save(state))
            partial.replace(self.folder.checkpoints / f"{stage}-{file_hash(partial)}.safetensors")

    def load_result(self, stage: str, constraint: Constraint) -> bool:
        """Load the result of a stage; False if there is none, or if its file is damaged."""
        for path in self.folder.checkpoints.glob(f"{stage}-*.safetensors"):
            if path.name == f"{stage}-{file_hash(path)}.safetensors":
                state = safetensors.torch.load_file(path)
                self.load_state(state, constraint)
                self.context.earlier_seconds += float(state["seconds"])
                return True
            self.context.options.report(f"{path.name} is damaged; training this stage again")
        return False

    def save_checkpoint(
        self, stage: str, done: int, constraint: Constraint, optimizer: torch.optim.Optimizer, seconds: float
    ) -> None:
        """Write a checkpoint of a stage after `done` steps."""
        buffer = io.BytesIO()
        progress = {"stage": stage, "done": done, "seconds": seconds}
        torch.save(progress | {"state": self.state(constraint), "optimizer": optimizer.state_dict()}, buffer)

        def write(path: Path) -> None:
            path.write_bytes(buffer.getbuffer())

        self.folder.save_checkpoint(self.steps + done, write)

    def load_checkpoint(
        self, stage: str, constraint: Constraint, optimizer: torch.optim.Optimizer
    ) -> tuple[int, float]:
        """Restore the last checkpoint of a stage; return its step and the seconds until it, or zeros."""
        found = self.folder.last_checkpoint(self.context.options.report)
        if found is None:
            return 0, 0.0
        kept = torch.load(found[1], map_location=self.context.device, weights_only=True)
        if kept["stage"] != stage:
            return 0, 0.0
        self.load_state(kept["state"], constraint)
        optimizer.load_state_dict(kept["optimizer"])
        self.context.earlier_seconds += kept["seconds"]
        return int(kept["done"]), float(kept["seconds"])
