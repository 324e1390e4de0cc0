"""Averages of weights, copies, and the limit on filters, each against an obvious computation."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from lightning_modules.weights import average_of, copy_weights, frozen_copy, limit_filters, start_from, train_only


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def train_a_little(net, steps):
    """Yield the network's state after each of some random changes of its weights and statistics."""
    for _ in range(steps):
        net(torch.randn(5, 3, 8, 8))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        yield {name: value.clone() for name, value in net.state_dict().items()}


def averaged(decay, *, batch_norm):
    """Return the average after six steps, and the states that went into it."""
    net = network()
    average, states = average_of(net, decay, batch_norm=batch_norm), []
    for state in train_a_little(net, 6):
        average.update_parameters(net)
        states.append(state)
    return average.module.state_dict(), states


def test_plain_average_is_the_mean_of_all_weights():
    average, states = averaged(None, batch_norm=True)
    for name in ("0.weight", "1.bias", "1.running_var"):
        expected = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(average[name], expected)


def test_exponential_average_starts_at_the_first_weights():
    average, states = averaged(0.9, batch_norm=True)
    for name in ("0.weight", "1.running_mean"):
        expected = states[0][name]
        for state in states[1:]:
            expected = 0.9 * expected + 0.1 * state[name]
        torch.testing.assert_close(average[name], expected)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_statistics_of_batch_norm_are_the_last_ones_unless_averaged(decay):
    average, states = averaged(decay, batch_norm=False)
    assert torch.equal(average["1.running_mean"], states[-1]["1.running_mean"])
    assert not torch.allclose(average["1.weight"], states[-1]["1.weight"])


def test_counter_of_batch_norm_is_the_last_one():
    average, _ = averaged(None, batch_norm=True)
    assert average["1.num_batches_tracked"] == 6


def test_no_optimizer_changes_an_average_or_a_copy():
    for module in (average_of(network(), None, batch_norm=False), frozen_copy(network())):
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_copy_weights_copies_parameters_and_buffers():
    net, target = network(), frozen_copy(network())
    *_, last = train_a_little(net, 2)
    copy_weights(net, target)
    assert all(torch.equal(value, last[name]) for name, value in target.state_dict().items())
    net[0].weight.data.zero_()
    assert target[0].weight.abs().max() > 0  # a copy, not a reference


def test_filters_above_the_limit_are_scaled_to_it_and_others_stay():
    net = network()
    with torch.no_grad():
        net[0].weight[0] *= 10
        net[0].weight[1] = 0
    before = net[0].weight.detach().clone()
    bias = net[0].bias.detach().clone()
    limit_filters(net, 0.1)
    for old, new in zip(before, net[0].weight.detach(), strict=True):
        rms = float((old**2).mean() ** 0.5)
        torch.testing.assert_close(new, old * 0.1 / rms if rms > 0.1 else old)
    assert (before.square().mean(dim=(1, 2, 3)).sqrt() > 0.1).tolist()[0] is True
    assert torch.equal(net[0].bias, bias)
    assert torch.equal(net[0].weight[1], torch.zeros(3, 3, 3))


def test_only_convolutions_are_limited():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].weight.data.fill_(3.0)
    limit_filters(net, 0.1)
    assert (net[0].weight == 3).all()


# --- start from another network ------------------------------------------------------------------------------


def deeper():
    torch.manual_seed(1)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), more=nn.Conv2d(4, 4, 1), last=nn.Conv2d(4, 2, 1)))


def shallower():
    torch.manual_seed(2)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), last=nn.Conv2d(4, 2, 1)))


def test_named_layers_are_copied_and_others_stay():
    net, state = deeper(), shallower().state_dict()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start_from(net, state, ["conv"])
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name] if name.startswith("conv.") else before[name])


def test_all_layers_of_an_equal_network_are_copied():
    net, state = shallower(), shallower().state_dict()
    net.last.weight.data.zero_()
    start_from(net, state, [])
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["cov"], "this network has no layer 'cov' with weights"),
        (["more"], "the network to start from has no layer 'more' with weights"),
        ([], "the network to start from has no more.bias"),
    ],
)
def test_layers_that_do_not_exist_are_named_and_nothing_is_copied(layers, message):
    net = deeper()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        start_from(net, shallower().state_dict(), layers)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# --- layers that are trained ---------------------------------------------------------------------------------


def test_only_the_named_layers_are_trained():
    network = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(1, 2, 3), fc=nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)))
    )
    train_only(network, ["fc"])
    assert {name for name, value in network.named_parameters() if value.requires_grad} == {
        "fc.0.weight",
        "fc.0.bias",
        "fc.1.weight",
        "fc.1.bias",
    }


def test_an_unknown_layer_cannot_be_trained():
    with pytest.raises(ValueError, match="has no layer 'fc' with weights"):
        train_only(nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3))), ["fc"])


def test_batch_normalisation_cannot_be_frozen():
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), bn=nn.BatchNorm2d(2), fc=nn.Linear(2, 3)))
    with pytest.raises(ValueError, match="batch normalisation 'bn' cannot be frozen"):
        train_only(network, ["fc"])
    train_only(network, ["bn", "fc"])
