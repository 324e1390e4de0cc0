"""Test training under a constraint, against loops over single weights and plain autograd, and its resumption."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.recipe import Batch
from pipeline.declare.derived import CompressionSpec, Retraining
from pipeline.declare.training import RmsProp, Sgd
from pipeline.derive.quantise import LayerSettings, compressible_layers, prune_layers, share_layer
from pipeline.derive.retrain import (
    PrunedWeights,
    Retrainer,
    SharedWeights,
    make_optimizer,
    network_loss,
    reduced_dropout,
    set_rate,
)
from pipeline.derive.run import COMPRESSED_FILE
from tests.support.derived_runs import derived_of, make_in
from tests.support.smoke_runs import stop_after

SGD = Sgd(name="sgd", momentum=0.9, weight_decay=0.01)
RMSPROP = RmsProp(name="rmsprop", alpha=0.9, eps=0.1, momentum=0.5, weight_decay=0.01)


def small_pruned_network():
    """Return a network of one convolution and one full connection, pruned to 40 %."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    kinds = compressible_layers(network)
    network.load_state_dict(prune_layers(network.state_dict(), dict.fromkeys(kinds, 0.4)))
    return network, kinds


def batches(count=6):
    """Return random batches for `small_pruned_network`."""
    torch.manual_seed(4)
    return [Batch(step, torch.randn(8, 2, 6, 6), torch.randint(5, (8,))) for step in range(count)]


def constrained_steps(network, constraint, settings):
    """Train with the code under test at a rate that falls."""
    optimizer = make_optimizer(settings, network, constraint)
    for batch in batches():
        set_rate(optimizer, 0.1 / (1 + batch.step), in_velocity=False)
        network.zero_grad(set_to_none=True)
        network_loss(network, batch).backward()
        constraint.constrain_gradients()
        optimizer.step()
        constraint.constrain_weights()


# --- pruned weights ------------------------------------------------------------------------------------------


def test_remaining_weights_are_trained_as_if_the_pruned_ones_did_not_exist():
    """The slow version: SGD with momentum, for each parameter by itself, on the remaining weights only."""
    network, kinds = small_pruned_network()
    slow, _ = small_pruned_network()
    constrained_steps(network, PrunedWeights(network, kinds), SGD)
    remaining = {name: (value.detach() != 0).float() for name, value in slow.named_parameters()}
    velocity = {name: torch.zeros_like(value) for name, value in slow.named_parameters()}
    for batch in batches():
        slow.zero_grad()
        F.cross_entropy(slow(batch.images), batch.labels).backward()
        with torch.no_grad():
            for name, value in slow.named_parameters():
                velocity[name] = 0.9 * velocity[name] + value.grad + 0.01 * value
                value -= 0.1 / (1 + batch.step) * velocity[name] * (remaining[name] if name in kinds else 1)
    for name, value in network.named_parameters():
        assert torch.allclose(value, slow.get_parameter(name), atol=1e-6), name


@pytest.mark.parametrize(
    "settings",
    [
        SGD,
        RMSPROP,
        RMSPROP.model_copy(update={"form": "tensorflow"}),
        Sgd(name="sgd", momentum=0.9, nesterov=True),
    ],
)
def test_pruned_weights_stay_zero_and_all_others_are_trained(settings):
    network, kinds = small_pruned_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    constraint = PrunedWeights(network, kinds)
    constrained_steps(network, constraint, settings)
    for name, value in network.state_dict().items():
        assert torch.equal(value == 0, before[name] == 0), name
        assert not torch.equal(value, before[name]), name
    assert constraint.density == pytest.approx({"0.weight": 29 / 72, "3.weight": 128 / 320})  # round(0.4 n) of n


# --- shared values -------------------------------------------------------------------------------------------


def shared_network(bits=2):
    """Return a network whose kept weights share 2^bits values, the constraint, and its layers."""
    network, kinds = small_pruned_network()
    settings = {name: LayerSettings(kind, 0.4, bits, 8) for name, kind in kinds.items()}
    layers = {name: share_layer(network.state_dict()[name], layer) for name, layer in settings.items()}
    return network, SharedWeights(network, layers), layers


def test_gradient_of_a_shared_value_is_the_sum_of_the_gradients_of_its_weights():
    network, constraint, layers = shared_network()
    [batch] = batches(1)
    network_loss(network, batch).backward()
    constraint.constrain_gradients()
    for name, layer in layers.items():
        gradients = network.get_parameter(name).grad.flatten().tolist()
        for number in range(len(layer.values)):  # equation 3, weight by weight
            own = [
                gradients[place]
                for place, index in zip(layer.positions.tolist(), layer.indices.tolist(), strict=True)
                if index == number
            ]
            assert float(constraint.values[name].grad[number]) == pytest.approx(math.fsum(own), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("settings", [SGD, RMSPROP])
def test_trained_values_are_those_of_autograd_through_the_codebook(settings):
    network, constraint, layers = shared_network()
    constrained_steps(network, constraint, settings)
    slow, _, _ = shared_network()
    codebooks = {name: nn.Parameter(torch.from_numpy(layer.values.copy())) for name, layer in layers.items()}
    others = {name: value for name, value in slow.named_parameters() if name not in layers}
    trained = [*codebooks.values(), *others.values()]
    if isinstance(settings, Sgd):
        optimizer = torch.optim.SGD(trained, momentum=0.9, weight_decay=0.01)
    else:
        optimizer = torch.optim.RMSprop(trained, alpha=0.9, eps=0.1, momentum=0.5, weight_decay=0.01)
    for batch in batches():
        weights = {}
        for name, layer in layers.items():
            flat = torch.zeros(math.prod(layer.shape))
            chosen = codebooks[name][torch.from_numpy(layer.indices)]
            weights[name] = flat.index_put((torch.from_numpy(layer.positions),), chosen).view(layer.shape)
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + batch.step)
        optimizer.zero_grad()
        outputs = torch.func.functional_call(slow, weights, (batch.images,))
        F.cross_entropy(outputs, batch.labels).backward()
        optimizer.step()
    for name, layer in constraint.layers().items():
        assert torch.allclose(torch.from_numpy(layer.values), codebooks[name], atol=1e-6), name
        assert not torch.equal(torch.from_numpy(layer.values), torch.from_numpy(layers[name].values))
        assert torch.equal(layer.weights(), network.get_parameter(name).detach())
    for name, value in others.items():
        assert torch.allclose(network.get_parameter(name), value, atol=1e-6), name


def test_shared_values_have_the_weight_decay_of_weights_and_biases_none_if_they_are_exempt():
    network, constraint, layers = shared_network()
    exempt = Sgd(name="sgd", momentum=0.9, weight_decay=0.01, decay="weights")
    decayed, others = make_optimizer(exempt, network, constraint).param_groups
    assert decayed["weight_decay"] == 0.01
    assert {id(value) for value in decayed["params"]} == {id(constraint.values[name]) for name in layers}
    assert (others["weight_decay"], [value.ndim for value in others["params"]]) == (0.0, [1, 1])


def test_velocities_are_scaled_with_the_rate_that_they_contain():
    """The velocity is momentum * velocity - lr * gradient (Krizhevsky et al. 2012)."""
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.5)
    velocity = 0.0
    for gradient, lr in ((2.0, 0.1), (3.0, 0.02), (-1.0, 0.02)):
        before = float(parameter.detach())
        parameter.grad = torch.tensor([gradient])
        set_rate(optimizer, lr, in_velocity=True)
        optimizer.step()
        velocity = 0.5 * velocity - lr * gradient
        assert float(parameter.detach()) - before == pytest.approx(velocity, rel=1e-5)


# --- dropout -------------------------------------------------------------------------------------------------


class Reversed(nn.Module):
    """Layers that are applied in another order than they are defined in."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.drop2, self.first = nn.Linear(6, 3), nn.Dropout(0.4), nn.Linear(8, 6)
        self.drop0, self.drop1 = nn.Dropout(0.2), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop of the input, of the first and of the last layer's output."""
        return self.drop2(self.last(self.drop1(self.first(self.drop0(x)).relu())))


def test_dropout_rates_fall_with_the_root_of_the_density_of_the_layer_before():
    network = Reversed().train()
    with reduced_dropout(network, {"first.weight": 0.25, "last.weight": 0.04}, torch.zeros(1, 8)):
        rates = network.drop0.p, network.drop1.p, network.drop2.p
        assert network.training
    # Equation 2 of Han et al. 2015: 0.5 sqrt(0.25) and 0.4 sqrt(0.04). The input has no connections before it.
    assert rates == pytest.approx((0.2, 0.25, 0.08))
    assert (network.drop0.p, network.drop1.p, network.drop2.p) == (0.2, 0.5, 0.4)


# --- stages of a derived run ---------------------------------------------------------------------------------

SPEC = CompressionSpec(
    kind="compression",
    of="resnet-20",
    density=0.3,
    conv_bits=4,
    fc_bits=3,
    prunings=2,
    retrain=Retraining(steps=3, lr=0.01, batch_size=16),
    tune=Retraining(steps=4, lr=0.001, lr_end=0.0, batch_size=16),
)


@pytest.fixture(scope="module")
def whole(runs, folders, tmp_path_factory):
    """Return the folder and the record of an uninterrupted compression."""
    path = tmp_path_factory.mktemp("whole")
    return path, make_in(path, derived_of(SPEC, runs[:1]), folders[:1])


def require_same(path, record, whole):
    """Require the bits of the uninterrupted run."""
    assert (path / COMPRESSED_FILE).read_bytes() == (whole[0] / COMPRESSED_FILE).read_bytes()
    assert record.metrics == whole[1].metrics


def test_each_stage_changes_the_network_and_coding_does_not(whole):
    path, record = whole
    losses = [record.metrics[f"{stage}/loss"] for stage in ("original", "pruned", "shared", "test")]
    assert len(set(losses)) == 3
    assert losses[2] == losses[3]
    assert record.metrics["compressed/density"] == pytest.approx(0.3, abs=1e-3)
    assert record.metrics["compressed/pruned_ratio"] == pytest.approx(1 / record.metrics["compressed/density"])
    assert record.metrics["compressed/quantised_ratio"] < record.metrics["compressed/ratio"]
    assert not (path / "checkpoints").exists()


@pytest.mark.parametrize("calls", [1, 3, 6, 8, 11])  # of stop(), which is asked after steps and before evaluations
def test_stopped_compression_resumes_to_the_same_bits(runs, folders, tmp_path, whole, calls):
    derived = derived_of(SPEC, runs[:1])
    assert make_in(tmp_path, derived, folders[:1], stop=stop_after(calls)) is None
    require_same(tmp_path, make_in(tmp_path, derived, folders[:1]), whole)


@pytest.mark.parametrize(
    ("steps", "seconds", "lost"),
    # Of 3 + 3 + 4 steps. Without checkpoints, a stage starts again; the results of the stages before are kept.
    [(0, "1000", 0), (2, "1000", 2), (3, "1000", 0), (5, "1000", 2), (8, "1000", 2), (2, "0", 0), (8, "0", 0)],
)
def test_killed_compression_resumes_to_the_same_bits(
    runs, folders, tmp_path, whole, steps, seconds, lost, monkeypatch
):
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", seconds)
    derived, step, made = derived_of(SPEC, runs[:1]), Retrainer.step, []

    def killed_after_steps(self, *args):
        if len(made) == steps:
            raise SystemError("killed")
        made.append(1)
        step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Retrainer, "step", killed_after_steps)
        with pytest.raises(SystemError, match="killed"):
            make_in(tmp_path, derived, folders[:1])
    monkeypatch.setattr(Retrainer, "step", lambda self, *args: (made.append(1), step(self, *args)))
    require_same(tmp_path, make_in(tmp_path, derived, folders[:1]), whole)
    assert len(made) == 10 + lost


def test_compression_killed_after_its_training_trains_nothing_again(runs, folders, tmp_path, whole, monkeypatch):
    derived = derived_of(SPEC, runs[:1])
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.derive.compression.compress", None)  # not callable
        with pytest.raises(TypeError, match="not callable"):
            make_in(tmp_path, derived, folders[:1])
    (tmp_path / "checkpoints" / "judged.json").unlink()  # the errors are measured again, each on its own network
    monkeypatch.setattr(Retrainer, "step", None)
    require_same(tmp_path, make_in(tmp_path, derived, folders[:1]), whole)


def test_damaged_result_of_a_stage_is_trained_again(runs, folders, tmp_path, whole):
    reports, derived = [], derived_of(SPEC, runs[:1])
    assert make_in(tmp_path, derived, folders[:1], stop=stop_after(5)) is None
    [file] = (tmp_path / "checkpoints").glob("pruning-1-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    record = make_in(tmp_path, derived, folders[:1], report=reports.append)
    assert f"{file.name} is damaged; training this stage again" in reports
    require_same(tmp_path, record, whole)


def test_other_seeds_see_other_images(runs, folders, tmp_path, whole):
    derived = dataclasses.replace(derived_of(SPEC, runs[:1]), seed=1)
    record = make_in(tmp_path, derived, folders[:1])
    assert record.metrics["original/loss"] == whole[1].metrics["original/loss"]
    assert record.metrics["pruned/loss"] != whole[1].metrics["pruned/loss"]


def test_loss_that_is_not_finite_ends_the_run(runs, folders, tmp_path):
    spec = SPEC.model_copy(update={"retrain": Retraining(steps=5, lr=1e30)})
    record = make_in(tmp_path, derived_of(spec, runs[:1]), folders[:1])
    assert record.status == "not converged"
    assert record.ended.startswith("pruning-1: the loss became ")
    assert not (tmp_path / COMPRESSED_FILE).exists()
