"""Test traces against torch's own operation counts, gradients and shapes."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.networks import NETWORKS
from lightning_modules.resnet import resnet_cifar
from pipeline.analyse.tracing import SkipInitialisation, trace_forward
from tests.support.branched_network import Branches


@pytest.fixture(scope="module")
def trace():
    """Return the trace of Branches on the meta device."""
    with torch.device("meta"):
        return trace_forward(Branches(), (3, 32, 32))


def test_multiply_adds_of_the_layers_add_up_to_torchs_count(trace):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Branches().eval()(torch.zeros(1, 3, 32, 32))
    layers = sum(trace.multiply_adds[name] for name, _ in Branches().named_children())
    assert layers == trace.multiply_adds[""] == counter.get_total_flops() / 2


@pytest.mark.parametrize(("layer", "field"), [("conv1", 3), ("map32", 15), ("map32.0", 7)])
def test_receptive_field_is_where_the_gradient_is_not_zero(layer, field):
    # with positive weights, the gradient of the middle unit is positive in its field and zero outside
    network = resnet_cifar(depth=20).eval()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    outputs = {}
    network.get_submodule(layer).register_forward_hook(lambda *args: outputs.update(out=args[2]))
    image = torch.ones(1, 3, 32, 32, requires_grad=True)
    network(image)
    outputs["out"][0, 0, 16, 16].backward()
    touched = image.grad[0, 0].abs().sum(0).nonzero()
    assert int(touched.max() - touched.min()) + 1 == field
    assert trace_forward(network, (3, 32, 32)).fields[layer].field == field


class Operations(nn.Module):
    """Every operation whose shape on the meta device is computed without torch, and some others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.joined = nn.Identity()
        self.pooled = nn.Identity()
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        y = self.norm(x).relu().add_(x) * torch.ones(4, 1, 1, device=x.device)
        y = self.joined(torch.cat([y, -x.tanh() / 2 - x.pow(2)], 1))
        return self.fc(self.pooled(y.mean((2, 3))))


@pytest.mark.parametrize("network", [Operations, Branches, lambda: resnet_cifar(depth=8)])
def test_trace_on_the_meta_device_equals_that_of_real_tensors(network):
    channels = 4 if network is Operations else 3
    real = trace_forward(network().eval(), (channels, 32, 32))
    with torch.device("meta"):
        built = network().eval()
    meta = trace_forward(built, (channels, 32, 32))
    assert {name: output.shape for name, output in meta.outputs.items()} == {
        name: output.shape for name, output in real.outputs.items()
    }
    assert (meta.fields, meta.multiply_adds) == (real.fields, real.multiply_adds)
    assert (meta.additions, meta.longest_path) == (real.additions, real.longest_path)


def test_second_trace_of_a_network_equals_the_first(trace):
    with torch.device("meta"):
        again = trace_forward(Branches(), (3, 32, 32))
    assert (again.multiply_adds, again.fields) == (trace.multiply_adds, trace.fields)


def test_hooks_are_removed_after_a_failed_pass():
    network = Branches()
    with pytest.raises(RuntimeError):
        trace_forward(network, (4, 32, 32))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["lenet5", "alexnet", "resnet_cifar"])
def test_skipped_initialisation_keeps_all_parameters(name):
    args = {"depth": 20} if name == "resnet_cifar" else {}
    shapes = {key: value.shape for key, value in NETWORKS[name].build(**args).state_dict().items()}
    with torch.device("meta"), SkipInitialisation():
        built = NETWORKS[name].build(**args)
    assert {key: value.shape for key, value in built.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in built.parameters())
