"""Turn a network into one whose output is the features of one of its layers."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.train.evaluate import evaluation_mode


class LayerFeatures(nn.Module):
    """A network whose output is that of one of its layers, averaged over positions: (N, C, H, W) -> (N, D)."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer
        self.outputs: list[Tensor] = []
        network.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise UserError(f"layer {self.layer!r} has several outputs; name a layer with one")
        # A copy: the next layer may be an activation that overwrites the output.
        self.outputs.append(output.flatten(2).mean(2) if output.ndim > 2 else output.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D)."""
        return self._features(x, dense=False)

    def dense(self, x: Tensor) -> Tensor:
        """Apply the network densely: (N, C, H, W) -> (N, D)."""
        return self._features(x, dense=True)

    def _features(self, x: Tensor, *, dense: bool) -> Tensor:
        self.outputs.clear()
        (getattr(self.network, "dense", self.network) if dense else self.network)(x)
        if len(self.outputs) != 1:
            times = f"runs {len(self.outputs)} times" if self.outputs else "does not run as a module"
            how = " when the network is applied densely" if dense else ""
            raise UserError(f"layer {self.layer!r} {times}{how}; name another layer")
        return self.outputs.pop()


def feature_network(network: nn.Module, layer: str | None, image: tuple[int, ...]) -> nn.Module:
    """Return a network with the features of `layer` as output, in place of class scores; `network` is changed.

    `image` is the shape (C, H, W) of an image that the network reads.

    None, or the name of the fully connected layer before the last: the input of the last fully connected layer,
    which becomes the identity. So the features include the activation, as the "4096-D activations of the
    penultimate layer" of arXiv:1409.1556, appendix B, and a network applied densely averages them over positions.
    Any other layer: its output. Without dropout, since the network is in evaluation mode.

    Raises UserError if the network has no such layer.
    """
    if layer is not None and layer not in dict(network.named_modules()):
        names = [name for name, _ in network.named_modules() if name]
        raise UserError(f"{type(network).__name__} has no layer {layer!r}{nearest(layer, names)}")
    linear = running_linear_layers(network, image)
    if layer is None and not linear:
        raise UserError(f"{type(network).__name__} has no fully connected layer; name a layer for its features")
    if layer is None or linear_before_last(linear, layer):
        replace_by_identity(network, linear[-1])
        return network
    if isinstance(network.get_submodule(layer), nn.Linear):
        raise UserError(
            f"layer {layer!r} is fully connected and not the one before the last; its output lacks the activation:"
            " name the layer of its activation"
        )
    return LayerFeatures(network, layer)


def running_linear_layers(network: nn.Module, image: tuple[int, ...]) -> list[str]:
    """Return the names of the fully connected layers in the order in which they run on one image.

    Layers that only run in training, such as GoogLeNet's auxiliary classifiers, are not among them.
    """
    found: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: found.append(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    weight = next(network.parameters())
    try:
        with evaluation_mode(network):
            network(torch.zeros(1, *image, device=weight.device, dtype=weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def linear_before_last(linear: list[str], layer: str) -> bool:
    """Return True if `layer` is the fully connected layer before the last, or the module around it."""
    inside = [name for name in linear if f"{name}.".startswith(f"{layer}.")]
    return len(linear) > 1 and inside == [linear[-2]]


def replace_by_identity(network: nn.Module, name: str) -> None:
    """Replace a fully connected layer by one that returns its input, exactly."""
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    width = layer.in_features
    identity = nn.Linear(width, width, bias=False, device=layer.weight.device, dtype=layer.weight.dtype)
    identity.requires_grad_(False)
    if identity.weight.device.type != "meta":
        nn.init.eye_(identity.weight)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, identity)
