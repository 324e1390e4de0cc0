"""The shared LightningModule: errors counted, rates set, a lost run stopped."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.classifier import (
    WARMUP_WINDOW,
    Classifier,
    NotConvergedError,
    totals_of,
)
from lightning_modules.errors import wrong_in_top
from lightning_modules.recipe import Batch

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
    """The module as a trainer would hold it: with one optimiser."""
    optimizer = module.configure_optimizers()
    monkeypatch.setattr(module, "optimizers", lambda: optimizer)
    return module


def batch(step: int = 0, n: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(step)
    images = torch.randn(n, 3, 8, 8, generator=draw)
    return Batch(step, images, torch.randint(0, 10, (n,), generator=draw))


def test_training_step_is_cross_entropy_and_counts(module):
    some = batch()
    loss = module.training_step(some, 0)
    with torch.no_grad():
        scores = module(some.images)  # batch statistics again: the same batch, the same scores
    torch.testing.assert_close(loss.detach(), F.cross_entropy(scores, some.labels))
    window = module.take_window()
    for k in (1, 5):
        wrong = wrong_in_top(scores, some.labels, k).item()
        assert window[f"train/top{k}_error_pct"] == pytest.approx(100 * wrong / 6)
    assert window["train/loss"] == pytest.approx(loss.item())
    assert module.take_window() == {}


def test_a_window_weighs_batches_by_their_images(module):
    a, b = batch(0, 6), batch(1, 2)
    first, second = module.training_step(a, 0).item(), module.training_step(b, 1).item()
    assert module.take_window()["train/loss"] == pytest.approx((6 * first + 2 * second) / 8)


def test_the_rate_follows_the_step_not_the_calls(module):
    for step, lr in ((7, 0.01), (0, 0.1), (5, 0.01)):
        module.training_step(batch(step), 0)
        assert [group["lr"] for group in module.optimizers().param_groups] == [pytest.approx(lr)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(module, value):
    some = batch(3)
    some.images[0, 0, 0, 0] = value
    with pytest.raises(NotConvergedError, match=r"the loss became (nan|inf) at step 3"):
        module.training_step(some, 0)
    assert module.take_window() == {}  # and nothing of it is counted


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_in_any_part_of_an_update_stops_before_it(module, value):
    module.parts = 3
    first, second, third = batch(3), batch(3), batch(3)
    first.images[0, 0, 0, 0] = value
    module.training_step(first, 0)
    module.training_step(second, 1)
    with pytest.raises(NotConvergedError, match=r"the loss became (nan|inf) at step 3"):
        module.training_step(third, 2)
    assert module.take_window() == {}


def test_an_update_made_from_parts_counts_once_it_is_whole(module):
    module.parts = 2
    a, b = batch(0, 6), batch(0, 2)
    first = module.training_step(a, 6).item()
    assert module.take_window() == {}
    second = module.training_step(b, 7).item()
    assert module.window[0] == 8
    assert module.take_window()["train/loss"] == pytest.approx((6 * first + 2 * second) / 8)


def counted(scores, labels, loss):
    """The totals of one batch."""
    return totals_of(scores, labels, loss, loss)


def test_warm_up_ends_when_the_error_of_a_window_is_low(monkeypatch):
    warm = {"lr": 0.01, "train_error_below_pct": 80.0}
    module = with_optimizer(classifier(warmup=warm, lr_drops=None), monkeypatch)

    def rate_at(step: int) -> float:
        module.set_lr(step)
        return module.optimizers().param_groups[0]["lr"]

    scores, labels = torch.eye(10), torch.arange(10)
    wrong = labels.roll(1)
    assert rate_at(0) == 0.01
    module.count(0, counted(scores, wrong, torch.tensor(1.0)))  # 100 % wrong
    assert rate_at(WARMUP_WINDOW) == 0.01
    module.count(0, counted(scores, labels, torch.tensor(1.0)))  # 0 % wrong
    assert rate_at(WARMUP_WINDOW + 1) == 0.01  # looked at only every 100 updates
    assert rate_at(2 * WARMUP_WINDOW) == 0.1
    module.count(0, counted(scores, wrong, torch.tensor(1.0)))
    assert rate_at(3 * WARMUP_WINDOW) == 0.1  # once over, it stays over


def test_warm_up_survives_a_checkpoint(monkeypatch):
    warm = {"lr": 0.01, "train_error_below_pct": 80.0}
    module = with_optimizer(classifier(warmup=warm, lr_drops=None), monkeypatch)
    module.count(0, counted(torch.eye(10), torch.arange(10), torch.tensor(1.0)))
    module.set_lr(WARMUP_WINDOW)
    again = with_optimizer(classifier(warmup=warm, lr_drops=None), monkeypatch)
    again.load_state_dict(module.state_dict())
    again.set_lr(WARMUP_WINDOW + 50)
    assert again.optimizers().param_groups[0]["lr"] == 0.1


def test_sgd_is_the_recipes(module):
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)


def test_hyperparameters_are_plain_values(module):
    assert dict(module.hparams)["network"] == "resnet_cifar"
    assert not any(isinstance(value, torch.nn.Module) for value in module.hparams.values())


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match="network 'resnet_cifr' is unknown; did you mean 'resnet_cifar'"):
        classifier(network="resnet_cifr")


def test_an_unknown_argument_names_the_nearest():
    with pytest.raises(ValueError, match="has no argument 'dept'; did you mean 'depth'"):
        classifier(network_args={"dept": 20})


def test_a_missing_argument_is_named():
    with pytest.raises(ValueError, match="'resnet_cifar' needs the argument 'depth'"):
        classifier(network_args={})


# --- other optimisers, auxiliary classifiers ---------------------------------------------------------------


def test_nesterov_is_torchs():
    optimizer = classifier(optimizer=SGD | {"nesterov": True}).configure_optimizers()
    assert optimizer.param_groups[0]["nesterov"] is True
    assert classifier().configure_optimizers().param_groups[0]["nesterov"] is False


def test_rmsprop_takes_its_settings():
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


def test_a_rate_falls_in_a_line(monkeypatch):
    module = with_optimizer(classifier(lr_drops=None, lr_end=(0.0, 10)), monkeypatch)
    module.set_lr(5)
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.05)


class WithAuxiliary(torch.nn.Module):
    """In training three scores; evaluated, the first."""

    aux_weight = 0.3

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        scores = self.network(x)
        return (scores, 2 * scores, 3 * scores) if self.training else scores


def test_auxiliary_losses_count_by_their_weight_in_training_alone(monkeypatch):
    module = with_optimizer(classifier(), monkeypatch)
    module.network = WithAuxiliary(module.network)
    module._forward_network = [module.network]
    some = batch()
    module.network.network.eval()  # batch statistics would differ from one pass to the next
    with torch.no_grad():
        scores = module.network.network(some.images)
    expected = sum(
        weight * F.cross_entropy(factor * scores, some.labels) for weight, factor in ((1, 1), (0.3, 2), (0.3, 3))
    )
    module.network.training = True
    assert module.training_step(some, 0).item() == pytest.approx(expected.item(), rel=1e-6)
    module.network.training = False
    assert module.training_step(some, 0).item() == pytest.approx(F.cross_entropy(scores, some.labels).item())
    assert module.window[0] == 2 * len(some.labels)  # of the network's own scores


# --- compiled and not --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_a_checkpoint_holds_the_network_once_and_goes_on_compiled_or_not(compiled):
    begun, goes_on = classifier(compile=compiled), classifier(compile=not compiled)
    expected = {"window", "warm"} | {f"network.{name}" for name in begun.network.state_dict()}
    assert set(begun.state_dict()) == expected
    with torch.no_grad():
        for parameter in begun.parameters():
            parameter.add_(1)
    goes_on.load_state_dict(begun.state_dict())
    assert all(goes_on.state_dict()[name].equal(value) for name, value in begun.state_dict().items())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["forward_network.", "forward_network._orig_mod."])
def test_a_checkpoint_that_holds_the_network_twice_is_loaded(name, compiled):
    state = {key: value + 1 for key, value in classifier().state_dict().items()}
    old = state | {
        name + key.removeprefix("network."): v for key, v in state.items() if key.startswith("network.")
    }
    module = classifier(compile=compiled)
    module.load_state_dict(old)
    assert all(module.state_dict()[key].equal(value) for key, value in state.items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict(old | {"other": torch.zeros(1)})


def test_what_is_compiled_is_the_network_that_is_kept_moved_and_evaluated():
    module = classifier(compile=True)
    assert module.forward_network is not module.network
    assert module.forward_network._orig_mod is module.network
    module.double().eval()
    assert not module.forward_network.training
    assert all(parameter.dtype == torch.float64 for parameter in module.forward_network.parameters())
    plain = classifier()
    assert plain.forward_network is plain.network


# --- a mini-batch in parts ---------------------------------------------------------------------------------


def passed(module, seed):
    """Which batch-norm layers a training pass goes through, with torch's own generator seeded by `seed`."""
    torch.manual_seed(seed)
    layers = [layer for layer in module.network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    before = [int(layer.num_batches_tracked) for layer in layers]
    module.network.train()(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    return [int(layer.num_batches_tracked) - was for layer, was in zip(layers, before, strict=True)]


DRAWING = {
    "stochastic_depth_cifar": {"depth": 20},
    "fractalnet": {"columns": 3, "widths": [4, 4, 4, 4], "dropout": [0.0, 0.2, 0.2, 0.2], "drop_path": 0.5},
}


@pytest.mark.parametrize(("network", "arguments"), DRAWING.items(), ids=DRAWING)
def test_parts_of_one_mini_batch_go_through_the_same_blocks_and_other_mini_batches_through_others(
    network, arguments
):
    module = classifier(network=network, network_args=arguments)

    def parts(mini_batch):
        found = []
        for part in range(3):
            module.seed_shared_draws(mini_batch)
            found.append(passed(module, part))
        return found

    ways = [parts(mini_batch) for mini_batch in range(4)]
    assert all(first == second == third for first, second, third in ways)
    assert len({tuple(first) for first, *_ in ways}) > 1


@pytest.mark.parametrize(("network", "arguments"), DRAWING.items(), ids=DRAWING)
def test_a_mini_batch_in_one_piece_draws_by_torchs_own_generator(network, arguments):
    module = classifier(network=network, network_args=arguments)
    ways = [passed(module, seed) for seed in (0, 0, 1, 2, 3)]
    assert ways[0] == ways[1]
    assert len({tuple(way) for way in ways}) > 1


def test_dropout_differs_between_the_parts_of_a_mini_batch():
    module = classifier(network="fractalnet", network_args=DRAWING["fractalnet"])
    images = torch.randn(2, 3, 16, 16)
    scores = []
    for part in (0, 0, 1):
        module.seed_shared_draws(7)
        torch.manual_seed(part)
        scores.append(module.network.train()(images))
    assert scores[0].equal(scores[1])
    assert not scores[0].equal(scores[2])


def test_a_network_that_draws_nothing_for_a_whole_mini_batch_needs_no_seed():
    module = classifier()
    module.seed_shared_draws(7)
    assert not hasattr(module.network, "shared_draws")
