"""The shared LightningModule: errors and loss, learning rate, non-finite losses, checkpoints, micro-batches."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.classifier import (
    WARMUP_WINDOW,
    Classifier,
    NotConvergedError,
    batch_totals,
)
from lightning_modules.errors import wrong_in_top
from lightning_modules.recipe import Batch
from lightning_modules.rmsprop import TensorFlowRMSprop

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "decay": "all"}


def classifier(**changes) -> Classifier:
    torch.manual_seed(0)
    settings = {
        "network": "resnet_cifar",
        "network_args": {"depth": 8},
        "classes": 10,
        "channels": 3,
        "loss": {"name": "cross-entropy"},
        "lr": 0.1,
        "lr_drops": {"at": [5], "factor": 0.1},
        "warmup": None,
        "optimizer": SGD,
    }
    return Classifier(**(settings | changes))


@pytest.fixture
def module(monkeypatch) -> Classifier:
    return with_optimizer(classifier(), monkeypatch)


def with_optimizer(module: Classifier, monkeypatch) -> Classifier:
    """Attach an optimizer to the module, as a trainer does."""
    optimizer = module.configure_optimizers()
    monkeypatch.setattr(module, "optimizers", lambda: optimizer)
    return module


def batch(step: int = 0, n: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(step)
    images = torch.randn(n, 3, 8, 8, generator=draw)
    return Batch(step, images, torch.randint(0, 10, (n,), generator=draw))


def test_training_step_returns_cross_entropy_and_counts_errors(module):
    one_batch = batch()
    loss = module.training_step(one_batch, 0)
    with torch.no_grad():
        scores = module(one_batch.images)  # still in training mode: the same batch statistics, so the same scores
    torch.testing.assert_close(loss.detach(), F.cross_entropy(scores, one_batch.labels))
    window = module.pop_window_metrics()
    for k in (1, 5):
        wrong = wrong_in_top(scores, one_batch.labels, k).item()
        assert window[f"train/top{k}_error_pct"] == pytest.approx(100 * wrong / 6)
    assert window["train/loss"] == pytest.approx(loss.item())
    assert module.pop_window_metrics() == {}


def test_window_weights_batches_by_their_number_of_images(module):
    a, b = batch(0, 6), batch(1, 2)
    first, second = module.training_step(a, 0).item(), module.training_step(b, 1).item()
    assert module.pop_window_metrics()["train/loss"] == pytest.approx((6 * first + 2 * second) / 8)


def test_learning_rate_depends_on_the_step_not_on_the_calls(module):
    for step, lr in ((7, 0.01), (0, 0.1), (5, 0.01)):
        module.training_step(batch(step), 0)
        assert [group["lr"] for group in module.optimizers().param_groups] == [pytest.approx(lr)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_stops_before_the_optimizer_step(module, value):
    one_batch = batch(3)
    one_batch.images[0, 0, 0, 0] = value
    with pytest.raises(NotConvergedError, match=r"the loss became (nan|inf) at step 3"):
        module.training_step(one_batch, 0)
    assert module.pop_window_metrics() == {}  # not counted


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_in_any_micro_batch_stops_before_the_optimizer_step(module, value):
    module.accumulation_steps = 3
    first, second, third = batch(3), batch(3), batch(3)
    first.images[0, 0, 0, 0] = value
    module.training_step(first, 0)
    module.training_step(second, 1)
    with pytest.raises(NotConvergedError, match=r"the loss became (nan|inf) at step 3"):
        module.training_step(third, 2)
    assert module.pop_window_metrics() == {}


def test_accumulated_step_is_counted_after_its_last_micro_batch(module):
    module.accumulation_steps = 2
    a, b = batch(0, 6), batch(0, 2)
    first = module.training_step(a, 6).item()
    assert module.pop_window_metrics() == {}
    second = module.training_step(b, 7).item()
    assert module.window[0] == 8
    assert module.pop_window_metrics()["train/loss"] == pytest.approx((6 * first + 2 * second) / 8)


def totals(scores, labels, loss):
    """Return the totals of one batch without auxiliary classifiers."""
    return batch_totals(scores, labels, loss, loss)


def test_warmup_ends_when_the_error_of_a_window_is_low(monkeypatch):
    warmup = {"lr": 0.01, "train_error_below_pct": 80.0}
    module = with_optimizer(classifier(warmup=warmup, lr_drops=None), monkeypatch)

    def rate_at(step: int) -> float:
        module.set_lr(step)
        return module.optimizers().param_groups[0]["lr"]

    scores, labels = torch.eye(10), torch.arange(10)
    wrong = labels.roll(1)
    assert rate_at(0) == 0.01
    module.add_step_totals(0, totals(scores, wrong, torch.tensor(1.0)))  # 100 % wrong
    assert rate_at(WARMUP_WINDOW) == 0.01
    module.add_step_totals(0, totals(scores, labels, torch.tensor(1.0)))  # 0 % wrong
    assert rate_at(WARMUP_WINDOW + 1) == 0.01  # checked only every 100 steps
    assert rate_at(2 * WARMUP_WINDOW) == 0.1
    module.add_step_totals(0, totals(scores, wrong, torch.tensor(1.0)))
    assert rate_at(3 * WARMUP_WINDOW) == 0.1  # the warm-up ends only once


def test_warmup_state_is_part_of_a_checkpoint(monkeypatch):
    warmup = {"lr": 0.01, "train_error_below_pct": 80.0}
    module = with_optimizer(classifier(warmup=warmup, lr_drops=None), monkeypatch)
    module.add_step_totals(0, totals(torch.eye(10), torch.arange(10), torch.tensor(1.0)))
    module.set_lr(WARMUP_WINDOW)
    again = with_optimizer(classifier(warmup=warmup, lr_drops=None), monkeypatch)
    again.load_state_dict(module.state_dict())
    again.set_lr(WARMUP_WINDOW + 50)
    assert again.optimizers().param_groups[0]["lr"] == 0.1


def test_sgd_has_the_settings_of_the_recipe(module):
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)


def test_hyperparameters_are_plain_values(module):
    assert dict(module.hparams)["network"] == "resnet_cifar"
    assert not any(isinstance(value, torch.nn.Module) for value in module.hparams.values())


def test_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match="network 'resnet_cifr' is unknown; did you mean 'resnet_cifar'"):
        classifier(network="resnet_cifr")


def test_unknown_argument_names_the_nearest():
    with pytest.raises(ValueError, match="has no argument 'dept'; did you mean 'depth'"):
        classifier(network_args={"dept": 20})


def test_missing_argument_is_named():
    with pytest.raises(ValueError, match="'resnet_cifar' needs the argument 'depth'"):
        classifier(network_args={})


# --- other optimizers, auxiliary classifiers ---------------------------------------------------------------


def test_nesterov_is_passed_to_sgd():
    optimizer = classifier(optimizer=SGD | {"nesterov": True}).configure_optimizers()
    assert optimizer.param_groups[0]["nesterov"] is True
    assert classifier().configure_optimizers().param_groups[0]["nesterov"] is False


def test_rmsprop_has_the_settings_of_the_recipe():
    recipe = {
        "name": "rmsprop",
        "alpha": 0.9,
        "eps": 1.0,
        "momentum": 0.5,
        "weight_decay": 0.01,
        "decay": "weights",
    }
    optimizer = classifier(optimizer=recipe, lr=0.045).configure_optimizers()
    assert isinstance(optimizer, torch.optim.RMSprop)
    decayed, spared = optimizer.param_groups
    assert (decayed["alpha"], decayed["eps"], decayed["momentum"], decayed["lr"]) == (0.9, 1.0, 0.5, 0.045)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)


def test_the_tensorflow_form_of_rmsprop_is_chosen_by_the_recipe():
    recipe = {"name": "rmsprop", "alpha": 0.8, "eps": 1.0, "momentum": 0.9, "weight_decay": 0.0, "decay": "all"}
    optimizer = classifier(optimizer=recipe | {"form": "tensorflow"}, lr=0.045).configure_optimizers()
    assert isinstance(optimizer, TensorFlowRMSprop)
    [group] = optimizer.param_groups
    assert (group["alpha"], group["eps"], group["momentum"], group["lr"]) == (0.8, 1.0, 0.9, 0.045)


# --- label smoothing -----------------------------------------------------------------------------------------


def smoothed_cross_entropy(scores, labels, smoothing):
    """Slow version of arXiv:1512.00567, section 7: q'(k) = (1 - e) [k = y] + e / K; the mean of -sum q' log p."""
    total = 0.0
    for row, label in zip(scores.double().tolist(), labels.tolist(), strict=True):
        normaliser = sum(math.exp(score) for score in row)
        for k, score in enumerate(row):
            share = (1 - smoothing) * (k == label) + smoothing / len(row)
            total -= share * math.log(math.exp(score) / normaliser)
    return total / len(labels)


def test_labels_are_smoothed_in_training_and_not_in_evaluation(monkeypatch):
    module = with_optimizer(classifier(loss={"name": "cross-entropy", "smoothing": 0.1}), monkeypatch)
    one = batch()
    loss = module.training_step(one, 0).item()
    with torch.no_grad():
        scores = module(one.images)
    assert loss == pytest.approx(smoothed_cross_entropy(scores, one.labels, 0.1), rel=1e-5)
    assert module.pop_window_metrics()["train/loss"] == pytest.approx(loss)
    plain = smoothed_cross_entropy(scores, one.labels, 0.0)
    assert module.loss(scores, one.labels).item() == pytest.approx(plain, rel=1e-5)
    assert abs(loss - plain) > 0.01


def test_losses_of_auxiliary_classifiers_are_smoothed_too(monkeypatch):
    loss = {"name": "cross-entropy", "smoothing": 0.1}
    module = with_optimizer(classifier(loss=loss), monkeypatch)
    scores, one = torch.randn(6, 10), batch()
    module._forward_network[0] = lambda images: (scores, 2 * scores)
    module.network.aux_weight = 0.4
    expected = smoothed_cross_entropy(scores, one.labels, 0.1)
    expected += 0.4 * smoothed_cross_entropy(2 * scores, one.labels, 0.1)
    assert module.training_step(one, 0).item() == pytest.approx(expected, rel=1e-5)


def test_linear_learning_rate_schedule(monkeypatch):
    module = with_optimizer(classifier(lr_drops=None, lr_end=(0.0, 10)), monkeypatch)
    module.set_lr(5)
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.05)


def step_of(module, step):
    """Take one optimizer step."""
    module.set_lr(step)
    optimizer = module.optimizers()
    optimizer.zero_grad()
    module.training_step(batch(step), 0).backward()
    optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_velocity_with_the_rate_inside_is_that_of_the_equation(monkeypatch, decay):
    """Krizhevsky et al. 2012, section 5: v = 0.9 v - decay lr w - lr gradient, w = w + v."""
    sgd = SGD | {"weight_decay": decay, "rate_in_velocity": True}
    module = with_optimizer(classifier(optimizer=sgd, lr_drops={"at": [2], "factor": 0.1}), monkeypatch)
    twin = with_optimizer(classifier(optimizer=sgd, lr_drops={"at": [2], "factor": 0.1}), monkeypatch)
    velocity = [torch.zeros_like(w) for w in twin.network.parameters()]
    for step in range(5):
        step_of(module, step)
        lr = 0.1 if step < 2 else 0.01
        gradients = torch.autograd.grad(twin.training_step(batch(step), 0), list(twin.network.parameters()))
        with torch.no_grad():
            for v, w, gradient in zip(velocity, twin.network.parameters(), gradients, strict=True):
                v.mul_(0.9).sub_(lr * (gradient + decay * w))
                w.add_(v)
        for ours, theirs in zip(module.network.parameters(), twin.network.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_velocity_without_the_rate_differs_after_a_drop(monkeypatch):
    drops = {"lr_drops": {"at": [2], "factor": 0.1}}
    modules = [
        with_optimizer(classifier(optimizer=SGD | {"rate_in_velocity": inside}, **drops), monkeypatch)
        for inside in (False, True)
    ]
    for step in range(3):
        for module in modules:
            step_of(module, step)
        same = torch.allclose(*(module.network.conv1.weight for module in modules))
        assert same == (step < 2)


def test_plateau_steps_lower_the_rate(monkeypatch):
    module = with_optimizer(classifier(lr_drops=None, plateau_factor=0.1), monkeypatch)
    module.plateau_steps = [4, 8]
    assert [round(module.lr_of(step), 6) for step in (0, 3, 4, 7, 8, 99)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]


def test_average_starts_at_its_first_step_and_filters_are_limited_before(monkeypatch):
    average = {"decay": None, "since": 2, "batch_norm": False}
    module = classifier(average=average, filter_rms_limit=0.01)
    weights = []
    for step in (1, 2, 3):
        module.network.conv1.weight.data.uniform_(-1, 1)
        module.end_step(step)
        weights.append(module.network.conv1.weight.detach().clone())
        assert weights[-1].square().mean(dim=(1, 2, 3)).sqrt().max() <= 0.01 + 1e-6
    torch.testing.assert_close(module.average.module.conv1.weight, (weights[1] + weights[2]) / 2)


class WithAuxiliary(torch.nn.Module):
    """Wrap a network: three scores in training, the first in evaluation."""

    aux_weight = 0.3

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        scores = self.network(x)
        return (scores, 2 * scores, 3 * scores) if self.training else scores


def test_auxiliary_losses_are_weighted_and_only_in_training(monkeypatch):
    module = with_optimizer(classifier(), monkeypatch)
    module.network = WithAuxiliary(module.network)
    module._forward_network = [module.network]
    one_batch = batch()
    module.network.network.eval()  # batch statistics would differ between passes
    with torch.no_grad():
        scores = module.network.network(one_batch.images)
    expected = sum(
        weight * F.cross_entropy(factor * scores, one_batch.labels)
        for weight, factor in ((1, 1), (0.3, 2), (0.3, 3))
    )
    module.network.training = True
    assert module.training_step(one_batch, 0).item() == pytest.approx(expected.item(), rel=1e-6)
    module.network.training = False
    assert module.training_step(one_batch, 0).item() == pytest.approx(
        F.cross_entropy(scores, one_batch.labels).item()
    )
    assert module.window[0] == 2 * len(one_batch.labels)  # main scores only


# --- torch.compile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_checkpoint_holds_the_network_once_and_loads_with_or_without_compile(compiled):
    saved, resumed = classifier(compile=compiled), classifier(compile=not compiled)
    expected = {"window", "warm"} | {f"network.{name}" for name in saved.network.state_dict()}
    assert set(saved.state_dict()) == expected
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(1)
    resumed.load_state_dict(saved.state_dict())
    assert all(resumed.state_dict()[name].equal(value) for name, value in saved.state_dict().items())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["forward_network.", "forward_network._orig_mod."])
def test_older_checkpoint_with_two_copies_of_the_network_loads(name, compiled):
    state = {key: value + 1 for key, value in classifier().state_dict().items()}
    old = state | {
        name + key.removeprefix("network."): v for key, v in state.items() if key.startswith("network.")
    }
    module = classifier(compile=compiled)
    module.load_state_dict(old)
    assert all(module.state_dict()[key].equal(value) for key, value in state.items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict(old | {"other": torch.zeros(1)})


def test_compiled_network_shares_weights_and_mode_with_the_module():
    module = classifier(compile=True)
    assert module.forward_network is not module.network
    assert module.forward_network._orig_mod is module.network
    module.double().eval()
    assert not module.forward_network.training
    assert all(parameter.dtype == torch.float64 for parameter in module.forward_network.parameters())
    plain = classifier()
    assert plain.forward_network is plain.network


# --- micro-batches -----------------------------------------------------------------------------------------


def computed_layers(module, seed):
    """Return 1 for each batch-norm layer computed in a training pass, after seeding the default generator."""
    torch.manual_seed(seed)
    layers = [layer for layer in module.network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    before = [int(layer.num_batches_tracked) for layer in layers]
    module.network.train()(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    return [
        int(layer.num_batches_tracked) - count_before for layer, count_before in zip(layers, before, strict=True)
    ]


RANDOM_NETWORKS = {
    "stochastic_depth_cifar": {"depth": 20},
    "fractalnet": {"columns": 3, "widths": [4, 4, 4, 4], "dropout": [0.0, 0.2, 0.2, 0.2], "drop_path": 0.5},
}


@pytest.mark.parametrize(("network", "arguments"), RANDOM_NETWORKS.items(), ids=RANDOM_NETWORKS)
def test_micro_batches_of_one_mini_batch_share_their_random_paths(network, arguments):
    module = classifier(network=network, network_args=arguments)

    def layers_by_micro_batch(mini_batch):
        computed = []
        for micro_batch in range(3):
            module.seed_shared_generator(mini_batch)
            computed.append(computed_layers(module, micro_batch))
        return computed

    paths = [layers_by_micro_batch(mini_batch) for mini_batch in range(4)]
    assert all(first == second == third for first, second, third in paths)
    assert len({tuple(first) for first, *_ in paths}) > 1


@pytest.mark.parametrize(("network", "arguments"), RANDOM_NETWORKS.items(), ids=RANDOM_NETWORKS)
def test_mini_batch_without_micro_batches_uses_the_default_generator(network, arguments):
    module = classifier(network=network, network_args=arguments)
    paths = [computed_layers(module, seed) for seed in (0, 0, 1, 2, 3)]
    assert paths[0] == paths[1]
    assert len({tuple(path) for path in paths}) > 1


def test_dropout_differs_between_micro_batches():
    module = classifier(network="fractalnet", network_args=RANDOM_NETWORKS["fractalnet"])
    images = torch.randn(2, 3, 16, 16)
    scores = []
    for micro_batch in (0, 0, 1):
        module.seed_shared_generator(7)
        torch.manual_seed(micro_batch)
        scores.append(module.network.train()(images))
    assert scores[0].equal(scores[1])
    assert not scores[0].equal(scores[2])


def test_seed_shared_generator_ignores_networks_without_shared_draws():
    module = classifier()
    module.seed_shared_generator(7)
    assert not hasattr(module.network, "shared_draws")
