"""Second-order step sizes against Appendix C of LeCun et al. 1998, and optimizer steps against autograd."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lightning_modules.classifier import NotConvergedError
from lightning_modules.errors import wrong_in_top
from lightning_modules.lenet5 import Convolution, FullConnection, RadialBasis, lenet5, map_loss, mle_loss, squash
from lightning_modules.recipe import Batch
from lightning_modules.sdlm import UNROLLED_STEPS, OnlineClassifier, OnlineSDLM, curvature, loss_curvature

SETTINGS = {
    "network": "lenet5",
    "network_args": {},
    "classes": 10,
    "channels": 1,
    "loss": {"name": "map", "j": 1.0, "divided_by": 84.0},
    "lr": 5e-4,
    "lr_drops": {"at": [20], "factor": 0.4},
    "warmup": None,
    "optimizer": {"name": "sdlm", "mu": 0.02, "samples": 500},
}


def patterns(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 32, 32, generator=draw), torch.randint(0, 10, (n,), generator=draw)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return lenet5()


def small_network() -> nn.Sequential:
    """A convolution with two maps, a full connection with three units, two codes: small enough for loops."""
    torch.manual_seed(0)
    codes = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
    layers = [("c", Convolution(1, [(0,), (0,)])), ("f", FullConnection(2 * 2 * 2, 3)), ("o", RadialBasis(codes))]
    network = nn.Sequential()
    for name, layer in layers:
        network.add_module(name, layer)
    return network


def test_curvature_equals_appendix_c_by_connection():
    """Compute d2E/du2 of every connection in loops, summed over the connections that share a weight."""
    network = small_network()
    x, label = torch.randn(1, 1, 6, 6), torch.tensor([0])
    c, f = network.c, network.f
    a1 = c.weighted_sum(x, c.weight, c.bias)[0].detach()  # (2, 2, 2)
    x1 = squash(a1)
    a2 = f.weighted_sum(x1[None], f.weight, f.bias)[0].detach()  # (3,)
    derivative = lambda a: 1.7159 * 2 / 3 * (1 - torch.tanh(2 / 3 * a) ** 2)  # noqa: E731
    second2 = 2 * derivative(a2) ** 2  # equation 8: E = sum (x - w)^2, second derivative 2
    second1 = torch.zeros(8)
    h_f = torch.zeros(3, 8)
    for unit in range(3):
        for i in range(8):
            h_f[unit, i] = second2[unit] * x1.flatten()[i] ** 2
            second1[i] += second2[unit] * f.weight[unit, i].item() ** 2
    second1 = (second1.view(2, 2, 2) * derivative(a1) ** 2).detach()
    h_c = torch.zeros(2, 5, 5)
    for m in range(2):
        for i in range(5):
            for k in range(5):
                for row in range(2):
                    for column in range(2):
                        h_c[m, i, k] += second1[m, row, column] * x[0, 0, row + i, column + k] ** 2
    actual = curvature(network, x, label, mle_loss)
    torch.testing.assert_close(actual["f.weight"], h_f)
    torch.testing.assert_close(actual["f.bias"], second2)
    torch.testing.assert_close(actual["c.weight"], h_c)
    torch.testing.assert_close(actual["c.bias"], second1.sum((1, 2)))


def test_curvature_is_the_mean_over_patterns(network):
    x, y = patterns(4)
    loss = partial(map_loss, j=1.0)
    batched = curvature(network, x, y, loss)
    separate = [curvature(network, x[i : i + 1], y[i : i + 1], loss) for i in range(4)]
    for name, h in batched.items():
        torch.testing.assert_close(h, sum(one[name] for one in separate) / 4, rtol=1e-4, atol=1e-8)
        assert (h >= 0).all()


def test_second_derivatives_of_the_losses_equal_the_docstring_formulas():
    output, x, labels = RadialBasis(torch.randn(4, 6).sign()), torch.randn(3, 6), torch.tensor([0, 1, 3])
    torch.testing.assert_close(loss_curvature(output, x, labels, mle_loss), torch.full((3, 6), 2.0))
    j = 5.0
    actual = loss_curvature(output, x, labels, partial(map_loss, j=j))
    p = torch.cat([output(x), torch.full((3, 1), -j)], dim=1).softmax(1)  # last column: the probability of -j
    differences = torch.cat([x[:, None] - output.codes, torch.zeros(3, 1, 6)], dim=1)
    mean = (p[..., None] * differences).sum(1)
    variance = (p[..., None] * differences.square()).sum(1) - mean.square()
    torch.testing.assert_close(actual, (2 * p[:, -1:] + 4 * variance).clamp(min=0), rtol=1e-4, atol=1e-5)


def test_step_sizes_are_eta_over_mu_plus_h(network):
    online = OnlineSDLM(network, mle_loss, mu=0.02, compile=False)
    online.estimate(*patterns(8))
    sizes = online.step_sizes(5e-4)
    for name, h in online.h.items():
        torch.testing.assert_close(sizes[name], 5e-4 / (0.02 + h))
        assert sizes[name].max() <= 5e-4 / 0.02  # mu bounds every step size


def test_steps_before_an_estimate_raise(network):
    with pytest.raises(RuntimeError, match="have not been estimated"):
        OnlineSDLM(network, mle_loss, mu=0.02, compile=False).run(*patterns(1), 5e-4)


def by_autograd(network, loss, sizes, images, labels):
    """Make the same steps with autograd; returns the same totals as `run`."""
    total = torch.zeros(3)
    for i in range(len(images)):
        scores = network(images[i : i + 1])
        value = loss(scores, labels[i : i + 1])
        total += torch.tensor([value.item(), *(wrong_in_top(scores, labels[i : i + 1], k).item() for k in (1, 5))])
        network.zero_grad()
        value.backward()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter -= sizes[name] * parameter.grad
    return total


def check_against_autograd(network, *, compile: bool, n: int) -> None:
    images, labels = patterns(n)
    loss = lambda scores, labels: map_loss(scores, labels, j=1.0) / 84  # noqa: E731
    plain = copy.deepcopy(network)
    online = OnlineSDLM(network, loss, mu=0.02, compile=compile)
    online.estimate(images, labels)
    expected = by_autograd(plain, loss, online.step_sizes(5e-4), images, labels)
    torch.testing.assert_close(online.run(images, labels, 5e-4), expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_steps_equal_autograd(network):
    check_against_autograd(network, compile=False, n=UNROLLED_STEPS + 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_compiled_steps_equal_autograd(network):
    check_against_autograd(network, compile=True, n=UNROLLED_STEPS + 3)


def test_each_step_uses_the_weights_of_the_previous_step(network):
    """The steps differ from one step with the summed gradients of all patterns."""
    images, labels = patterns(6)
    other = copy.deepcopy(network)
    online = OnlineSDLM(network, mle_loss, mu=0.02, compile=False)
    online.estimate(images, labels)
    sizes = online.step_sizes(1e-4)
    online.run(images, labels, 1e-4)
    mle_loss(other(images), labels).backward()
    at_once = [p - 6 * sizes[name] * p.grad for name, p in other.named_parameters()]
    assert not all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(network.parameters(), at_once, strict=True))


def online_classifier(**changes) -> OnlineClassifier:
    torch.manual_seed(0)
    return OnlineClassifier(**(SETTINGS | changes))


def test_training_step_counts_errors_and_uses_the_learning_rate():
    module, (images, labels) = online_classifier(), patterns(4)
    module.estimate_curvature(images, labels)
    rates = []
    module.sdlm.run = lambda x, y, eta: rates.append(eta) or torch.tensor([8.0, 3.0, 1.0])
    module.training_step(Batch(0, images, labels), 0)
    module.training_step(Batch(20, images, labels), 1)
    assert rates == pytest.approx([5e-4, 2e-4])
    window = module.pop_window_metrics()
    sizes = torch.cat([2e-4 / (0.02 + h.flatten()) for h in module.sdlm.h.values()])  # at the last rate
    assert window.pop("train/smallest_step") == pytest.approx(sizes.min().item())
    assert window.pop("train/largest_step") == pytest.approx(sizes.max().item())
    assert window == {"train/loss": 2.0, "train/top1_error_pct": 75.0, "train/top5_error_pct": 25.0}
    assert module.pop_window_metrics() == {}


def test_non_finite_loss_raises():
    module, (images, labels) = online_classifier(), patterns(2)
    module.estimate_curvature(images, labels)
    images[1] = float("nan")
    with pytest.raises(NotConvergedError, match="nan at step 40"):
        module.training_step(Batch(40, images, labels), 0)


def test_second_derivatives_and_rate_are_part_of_a_checkpoint():
    module, again = online_classifier(), online_classifier()
    module.estimate_curvature(*patterns(3))
    module.training_step(Batch(20, *patterns(1)), 0)
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    again.on_load_checkpoint(checkpoint)
    assert again.sdlm.h.keys() == dict(module.network.named_parameters()).keys()
    assert all(torch.equal(h, module.sdlm.h[name]) for name, h in again.sdlm.h.items())
    assert again.eta == module.eta == pytest.approx(2e-4)


def test_overfits_two_patterns():
    """Overfit two patterns in 150 passes."""
    module, (images, _) = online_classifier(network_args={"init": "efficient_backprop"}), patterns(2)
    labels = torch.tensor([3, 8])
    losses = []
    for _ in range(150):
        module.estimate_curvature(images, labels)
        losses.append(module.sdlm.run(images, labels, 5e-3)[0].item())
    assert losses[-1] < 0.2 * losses[0]


def test_network_without_lenet5_layers_raises():
    with pytest.raises(ValueError, match=r"needs the second derivatives of LeNet-5's layers.*'lenet5_modern'"):
        online_classifier(network="lenet5_modern")
