"""Learning rates and weight-decay groups against the recipes of the papers."""

import pytest
import torch

from lightning_modules.recipe import lr_at, parameter_groups, plateau_drops
from lightning_modules.resnet import resnet_cifar

CIFAR = {"at": [32000, 48000], "factor": 0.1}  # arXiv:1512.03385, section 4.2
LENET5 = {"at": [120000, 300000, 480000, 720000], "factor": [0.4, 0.5, 0.5, 0.2]}  # LeCun et al. 1998, III-B


@pytest.mark.parametrize(
    ("step", "lr"), [(0, 0.1), (31999, 0.1), (32000, 0.01), (47999, 0.01), (48000, 0.001), (63999, 0.001)]
)
def test_rate_is_divided_by_10_at_32k_and_48k(step, lr):
    assert lr_at(step, 0.1, CIFAR) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(
    ("passes", "lr"), [((1, 2), 5e-4), ((3, 5), 2e-4), ((6, 8), 1e-4), ((9, 12), 5e-5), ((13, 20), 1e-5)]
)
def test_learning_rates_of_lenet5_by_pass(passes, lr):
    first, last = passes
    for step in ((first - 1) * 60000, last * 60000 - 1):
        assert lr_at(step, 5e-4, LENET5) == pytest.approx(lr, rel=1e-12)


def test_rate_is_constant_without_drops():
    assert lr_at(10**6, 0.3, None) == 0.3


def test_decay_all_applies_to_every_parameter():
    network = resnet_cifar(depth=20)
    (group,) = parameter_groups(network, 1e-4, "all")
    assert len(group["params"]) == len(list(network.parameters()))
    assert group["weight_decay"] == 1e-4


def test_decay_weights_exempts_biases_and_batch_norm():
    network = resnet_cifar(depth=20)
    decayed, exempt = parameter_groups(network, 1e-4, "weights")
    assert len(decayed["params"]) == 20  # 19 convolutions and fc
    assert len(exempt["params"]) == 2 * 19 + 1  # scale and shift of each batch-norm, and fc's bias
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (1e-4, 0.0)


def test_rate_of_inception_v4_is_multiplied_by_0_94_periodically():
    every = {"at": None, "every": 10, "factor": 0.94}  # arXiv:1602.07261, section 4
    assert [lr_at(step, 0.045, every) for step in (0, 9)] == [0.045, 0.045]
    assert lr_at(10, 0.045, every) == pytest.approx(0.0423)
    assert lr_at(29, 0.045, every) == pytest.approx(0.045 * 0.94**2)


@pytest.mark.parametrize(("step", "lr"), [(0, 0.04), (42500, 0.03), (85000, 0.02), (169999, 0.04 / 170000)])
def test_linear_schedule_of_squeezenet_ends_at_zero(step, lr):
    assert lr_at(step, 0.04, None, end=(0.0, 170000)) == pytest.approx(lr)


# --- plateau -------------------------------------------------------------------------------------------------


def test_drop_follows_when_the_error_has_not_improved_for_some_evaluations():
    errors = dict(enumerate([50, 40, 41, 40, 39, 42, 43, 44, 30, 31, 32], start=1))
    assert plateau_drops(errors, patience=2, max_drops=9) == [4, 7, 11]
    assert plateau_drops(errors, patience=2, max_drops=2) == [4, 7]
    assert plateau_drops(errors, patience=3, max_drops=9) == [8]
    assert plateau_drops({}, patience=1, max_drops=1) == []


def test_an_equal_error_is_no_improvement():
    assert plateau_drops({10: 5.0, 20: 5.0}, patience=1, max_drops=1) == [20]


@pytest.mark.parametrize("patience", [1, 2, 3, 5])
def test_drops_are_those_of_pytorch(patience):
    for seed in range(20):
        errors = torch.randint(0, 12, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=patience - 1, threshold=0.0
        )
        found = []
        for step, error in enumerate(errors):
            before = optimizer.param_groups[0]["lr"]
            schedule.step(error)
            found += [step] if optimizer.param_groups[0]["lr"] < before and len(found) < 3 else []
        assert plateau_drops(dict(enumerate(errors)), patience, 3) == found


# --- polynomial decay ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "lr"), [(0, 0.5), (25, 0.02 + 0.48 * 0.75**2), (50, 0.02 + 0.12), (100, 0.02)])
def test_polynomial_decay(step, lr):
    assert lr_at(step, 0.5, None, (0.02, 100), 2.0) == pytest.approx(lr)
