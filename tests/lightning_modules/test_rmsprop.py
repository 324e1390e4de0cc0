"""RMSProp as TensorFlow computes it, against loops over single numbers, and resumed to the same bits."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_modules.rmsprop import RMSPROP, TensorFlowRMSprop

RATES = [0.5, 0.5, 0.05, 0.05, 0.4]


def gradients():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(len(RATES), 4, generator=draw, dtype=torch.float64)


def trained(optimizer, parameter, given, rates=RATES):
    """Make one optimizer step with each of the gradients and rates; return the parameter's values."""
    for gradient, lr in zip(given, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach().tolist()


@pytest.mark.parametrize(("momentum", "decay", "eps"), [(0.0, 0.0, 1.0), (0.9, 0.0, 1.0), (0.9, 0.1, 1e-3)])
def test_it_is_the_published_rule_for_each_number(momentum, decay, eps):
    start = [0.5, -1.0, 2.0, 0.0]
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    settings = {"alpha": 0.9, "eps": eps, "momentum": momentum, "weight_decay": decay}
    found = trained(TensorFlowRMSprop([parameter], lr=0.1, **settings), parameter, gradients())
    for place, value in enumerate(start):
        mean_square, velocity, weight = 1.0, 0.0, value
        for gradient, lr in zip(gradients()[:, place].tolist(), RATES, strict=True):
            gradient += decay * weight
            mean_square = 0.9 * mean_square + 0.1 * gradient * gradient
            velocity = momentum * velocity + lr * gradient / math.sqrt(mean_square + eps)
            weight -= velocity
        assert found[place] == pytest.approx(weight, rel=1e-12)


def test_the_differences_to_pytorch_change_the_weights():
    """With an eps of 1, as Inception-v3 has; then with a mean square that starts at 0."""
    values = {}
    for form, optimizer in RMSPROP.items():
        parameter = nn.Parameter(torch.ones(4, dtype=torch.float64))
        made = optimizer([parameter], lr=0.1, alpha=0.9, eps=1.0, momentum=0.9)
        values[form] = trained(made, parameter, gradients())
    assert not torch.allclose(*(torch.tensor(found) for found in values.values()), rtol=1e-2)
    parameter = nn.Parameter(torch.ones(4, dtype=torch.float64))
    from_zero = TensorFlowRMSprop([parameter], lr=0.1, alpha=0.9, eps=1.0, momentum=0.9)
    from_zero.state[parameter] = {
        "square_avg": torch.zeros(4, dtype=torch.float64),
        "momentum_buffer": torch.zeros(4, dtype=torch.float64),
    }
    found = trained(from_zero, parameter, gradients())
    assert not torch.allclose(torch.tensor(found), torch.tensor(values["tensorflow"]), rtol=1e-3)


def test_it_resumes_from_its_state_with_the_same_bits():
    def fresh():
        parameter = nn.Parameter(torch.ones(4, dtype=torch.float64))
        return parameter, TensorFlowRMSprop([parameter], lr=0.1, eps=1.0, momentum=0.9)

    parameter, optimizer = fresh()
    whole = trained(optimizer, parameter, gradients())
    parameter, optimizer = fresh()
    trained(optimizer, parameter, gradients()[:2], RATES[:2])
    saved = copy.deepcopy((parameter.detach(), optimizer.state_dict()))
    parameter, optimizer = fresh()
    parameter.data.copy_(saved[0])
    optimizer.load_state_dict(saved[1])
    assert trained(optimizer, parameter, gradients()[2:], RATES[2:]) == whole
    assert set(optimizer.state[parameter]) == {"square_avg", "momentum_buffer"}


def test_a_parameter_without_gradient_stays():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = TensorFlowRMSprop([used, unused], lr=0.1)
    loss = optimizer.step(lambda: used.sum().backward() or 2.0)
    assert (loss, unused.tolist(), used[0] < 1) == (2.0, [1.0, 1.0], True)


@pytest.mark.parametrize("setting", [{"lr": -0.1}, {"alpha": 1.1}, {"eps": 0.0}, {"momentum": -0.1}])
def test_a_setting_outside_its_range_is_an_error(setting):
    with pytest.raises(ValueError, match="RMSProp needs lr, momentum and weight_decay >= 0, alpha in"):
        TensorFlowRMSprop([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | setting))
