"""What a recipe measures beside errors: steps until a training error, gradients of layers, losses of columns.

None changes a bit of training. All are the same after a resume, and on two ranks.
"""

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.data.order import derive_seed
from pipeline.track.run_folder import RunFolder
from pipeline.train.callback import steps_to_errors, window_mean
from pipeline.train.context import RunContext
from tests.support.smoke_runs import (
    images_of,
    journal_metrics,
    manifest_of,
    smoke_run,
    stop_after,
    train_in,
    train_past_a_damaged_checkpoint,
    weights,
    with_network,
)

NORMS = {"conv1": "train/gradient_norm/conv1", "map32.0": "train/gradient_norm/map32.0"}
CHANGES = {
    "train.gradient_norms": list(NORMS),
    "train.steps_to_error_pct": [99.0, 0.01],
    "train.log_every": 5,  # windows of 5, 5 and 2 steps
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and record of an uninterrupted run with both measurements."""
    path = tmp_path_factory.mktemp("whole")
    return path, train_in(path, smoke_run(changes=CHANGES))


def test_first_report_below_the_error_gives_the_steps():
    errors = {20: 30.0, 5: 80.0, 10: 25.0, 15: 24.9}
    assert steps_to_errors(errors, [25.0, 80.0, 24.0, 2.5]) == {
        "train/steps_to_25_pct_error": 15.0,  # below, not equal
        "train/steps_to_80_pct_error": 10.0,
    }


def test_windows_count_by_their_steps():
    assert window_mean({5: 1.0, 10: 2.0, 12: 8.0}) == pytest.approx((5 * 1 + 5 * 2 + 2 * 8) / 12)


def test_record_has_the_steps_of_reached_errors_only(whole):
    path, record = whole
    name = "train/top1_error_pct"
    reports = {step: found[name] for step, found in journal_metrics(path) if name in found}
    first = min(step for step, error in reports.items() if error < 99)
    assert record.metrics["train/steps_to_99_pct_error"] == first
    assert "train/steps_to_0.01_pct_error" not in record.metrics


def magnitudes(run, folder):
    """Return for each layer of NORMS the mean of |gradient| at every step, from a plain loop."""
    context = RunContext(run, RunFolder(folder), images_of("noise"), manifest_of("noise"))
    network, found = context.module.network, {layer: [] for layer in NORMS}
    optimizer = context.module.configure_optimizers()
    for batch in context.feed(0):
        network.train()
        optimizer.param_groups[0]["lr"] = context.module.lr_of(batch.step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch.images), batch.labels).backward()
        for layer, values in found.items():
            gradients = [p.grad.flatten() for p in network.get_submodule(layer).parameters()]
            values.append(float(torch.cat(gradients).abs().double().mean()))
        if context.recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(network.parameters(), context.recipe.clip_norm)
        optimizer.step()
    return found


@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradient_magnitudes_agree_with_a_plain_loop(tmp_path, clip):
    """They are those before clipping."""
    run = smoke_run(changes=CHANGES | {"train.clip_norm": clip, "train.lr": 0.005})
    record = train_in(tmp_path, run)
    reports = dict(journal_metrics(tmp_path))
    for layer, expected in magnitudes(run, tmp_path / "plain").items():
        name = NORMS[layer]
        for window in (slice(0, 5), slice(5, 10), slice(10, 12)):
            mean = sum(expected[window]) / len(expected[window])
            assert reports[window.stop][name] == pytest.approx(mean, rel=1e-3)
        assert record.metrics[name] == pytest.approx(sum(expected) / 12, rel=1e-3)


def test_measurements_change_no_bit_of_training(whole, uninterrupted):
    assert weights(whole[0]) == weights(uninterrupted[1])


@pytest.mark.parametrize("every", [1, 4])
def test_stopped_run_ends_with_the_same_measurements(whole, tmp_path, every):
    while (record := train_in(tmp_path, smoke_run(changes=CHANGES), stop=stop_after(every))) is None:
        pass
    assert record.metrics == whole[1].metrics
    assert journal_metrics(tmp_path) == journal_metrics(whole[0])


def test_run_resumed_from_an_older_checkpoint_ends_with_the_same_measurements(whole, tmp_path):
    """The journal then has reports of later steps than the checkpoint."""
    record = train_past_a_damaged_checkpoint(tmp_path, smoke_run(changes=CHANGES), (3, 4))
    assert record.metrics == whole[1].metrics
    assert journal_metrics(tmp_path) == journal_metrics(whole[0])


def test_dropped_blocks_have_zero_gradients(tmp_path):
    run = with_network("stochastic_depth_cifar", CHANGES, depth=8, p_L=0.1, rule="uniform")
    found = {name: value for name, value in train_in(tmp_path, run).metrics.items() if name in NORMS.values()}
    assert 0 <= found[NORMS["map32.0"]] < found[NORMS["conv1"]]


def test_two_ranks_agree_with_one(tmp_path, two_ranks):
    changes = {"data.pad_to": 32, "train.lr": 0.005, "train.gradient_norms": ["c1"]}
    run = with_network("lenet5_modern", changes)  # without batch normalisation
    one = train_in(tmp_path / "one", run, device_batch=10)
    first, second = two_ranks.run(train_in, tmp_path / "two", run)
    assert first.metrics == second.metrics
    assert first.metrics["train/gradient_norm/c1"] == pytest.approx(
        one.metrics["train/gradient_norm/c1"], rel=1e-3
    )
    assert first.costs.keys() == one.costs.keys()


def column_run(**changes):
    """Return a run of a small FractalNet of two columns that measures both; windows of 5, 5 and 2 steps."""
    network = {"columns": 2, "widths": [2, 2, 2, 2], "drop_path": 0.15, "global_share": 0.8, "dropout": []}
    settings = {"train.column_losses": [1, 2], "train.log_every": 5, "train.lr": 0.005}
    return with_network("fractalnet", settings | changes, **network)


def losses_of_columns(run, folder):
    """Return the loss of every step and the column that it trained alone, from a plain loop."""
    context = RunContext(run, RunFolder(folder), images_of("noise"), manifest_of("noise"))
    network, found = context.module.network, []
    optimizer = context.module.configure_optimizers()
    for batch in context.feed(0):
        network.train()
        torch.manual_seed(derive_seed(run.seed, "update", batch.step))
        state = torch.get_rng_state()
        drawn = network.draw_drop_path()
        torch.set_rng_state(state)
        optimizer.param_groups[0]["lr"] = context.module.lr_of(batch.step)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        kept = drawn.keep_mask(2) if type(drawn).__name__ == "GlobalDropPath" else None
        found.append((kept.index(True) + 1 if kept else None, float(loss.detach())))
    return found


def test_losses_of_columns_agree_with_a_plain_loop(tmp_path):
    run = column_run()
    record = train_in(tmp_path / "run", run)
    reports = dict(journal_metrics(tmp_path / "run"))
    steps = losses_of_columns(run, tmp_path / "plain")
    assert {column for column, _ in steps} == {None, 1, 2}
    for window in (slice(0, 5), slice(5, 10), slice(10, 12)):
        for column in (1, 2):
            alone = [loss for own, loss in steps[window] if own == column]
            found = reports[window.stop].get(f"train/column-{column}/loss")
            assert found == (pytest.approx(sum(alone) / len(alone), rel=1e-3) if alone else None)
    last = {name: value for name, value in reports[12].items() if name.startswith("train/column")}
    assert {name: record.metrics.get(name) for name in last} == last


def test_losses_of_columns_change_no_bit_and_survive_stops(tmp_path):
    record = train_in(tmp_path / "whole", column_run())
    train_in(tmp_path / "unmeasured", column_run(**{"train.column_losses": []}))
    assert weights(tmp_path / "whole") == weights(tmp_path / "unmeasured")
    while (stopped := train_in(tmp_path / "stopped", column_run(), stop=stop_after(4))) is None:
        pass
    assert stopped.metrics == record.metrics
    assert journal_metrics(tmp_path / "stopped") == journal_metrics(tmp_path / "whole")


def test_unknown_layer_names_the_nearest_one(tmp_path):
    with pytest.raises(
        UserError, match=r"^the network has no layer 'conv11' with weights; did you mean 'conv1'\?$"
    ):
        train_in(tmp_path, smoke_run(changes={"train.gradient_norms": ["conv11"]}))
