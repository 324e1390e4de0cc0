"""Test one run on several ranks: the global batch, equal bits, and errors that stop all ranks."""

import dataclasses
import math
import os
import random
import time

import pytest
import safetensors.torch
import torch
from filelock import FileLock

from pipeline.common.errors import UserError
from pipeline.schedule.execute import execute_task
from pipeline.track.run_folder import RunFolder
from pipeline.train import callback, context
from pipeline.train.lightning import ordered_mean_hook
from pipeline.train.ranks import SINGLE_RANK, RankGroup, current_ranks
from pipeline.train.train import count_micro_batches
from tests.support.rank_processes import Ranks
from tests.support.smoke_runs import (
    LENET,
    images_of,
    journal_metrics,
    manifest_of,
    smoke_run,
    smoke_task,
    stop_after,
    train_in,
    weights,
    with_network,
)

BATCH = 20  # of the run
STEPS = 12
SLOW = pytest.mark.slow


def train_on_rank(path, run, device_batch=None, after=None, stopping=0):
    """Train on this rank; `stop` returns True on rank `stopping` alone, after so many steps."""
    stops = after is not None and current_ranks().rank == stopping
    return train_in(path, run, device_batch=device_batch, stop=stop_after(after) if stops else lambda: False)


def train_on_all(ranks, *args):
    """Train on all ranks and return their result, which must be equal; raise an exception of rank 0."""
    first, *others = ranks.run(train_on_rank, *args)
    if isinstance(first, Exception):
        raise first
    assert all(other == first for other in others)
    return first


def network_of(run):
    return run.recipe.model.name


def losses(path):
    return {step: found["train/loss"] for step, found in journal_metrics(path)}


def train_without_omp_num_threads(*args):
    """Train without OMP_NUM_THREADS and return the number of threads that computed."""
    os.environ.pop("OMP_NUM_THREADS", None)
    train_on_rank(*args)
    return torch.get_num_threads()


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two CPUs")
def test_each_rank_computes_with_the_declared_threads(two_ranks, tmp_path):
    """Without OMP_NUM_THREADS, Lightning gives every rank all CPUs, which changes the bits."""
    run = smoke_run(changes={"train.steps": 2, "train.lr_drops.at": [1]})
    assert two_ranks.run(train_without_omp_num_threads, tmp_path, run) == [1, 1]


def assert_close_losses(path, other):
    """Assert that no training loss differs by 1e-5 or more."""
    first, second = losses(path), losses(other)
    assert list(first) == list(second)
    assert max(abs(first[step] - second[step]) for step in first) < 1e-5


def parameters(path):
    """Return the final weights without batch-norm averages, which are those of rank 0's micro-batches alone."""
    averages = ("running_mean", "running_var", "num_batches_tracked")
    state = safetensors.torch.load(weights(path))
    return {name: value for name, value in state.items() if not name.endswith(averages)}


@pytest.fixture(scope="module")
def on_two_ranks(two_ranks, tmp_path_factory):
    """Record and folder of an uninterrupted run on two ranks."""
    path = tmp_path_factory.mktemp("on_two_ranks")
    return train_on_all(two_ranks, path, smoke_run()), path


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """Record and folder of an uninterrupted run on one device with the same micro-batches."""
    path = tmp_path_factory.mktemp("alone")
    return train_in(path, smoke_run(), device_batch=BATCH // 2), path


# --- the record ----------------------------------------------------------------------------------------------


def test_two_ranks_write_one_record_that_counts_every_image_once(on_two_ranks):
    record, path = on_two_ranks
    assert (record.status, record.world, record.device_batch) == ("finished", 2, BATCH // 2)
    assert (record.metrics["test/images"], record.metrics["trainset/images"]) == (100, 200)
    assert RunFolder(path).result() == record
    assert [step for step, _ in journal_metrics(path)] == list(range(2, STEPS + 1, 2))
    assert sorted(file.name for file in path.iterdir()) == [
        "journal.jsonl",
        "network.safetensors",
        "result.json",
        "run.json",
    ]


def test_recorded_errors_are_those_of_the_saved_network(on_two_ranks, tmp_path):
    record, path = on_two_ranks
    run_context = context.RunContext(smoke_run(), RunFolder(tmp_path), images_of("noise"), manifest_of("noise"))
    run_context.module.network.load_state_dict(safetensors.torch.load(weights(path)))
    for name, value in run_context.final_metrics().items():  # other batch sizes round differently
        assert record.metrics[name] == pytest.approx(value, rel=1e-5), name


def test_record_of_one_device_has_world_1(on_one_device):
    record, _ = on_one_device
    assert (record.world, record.device_batch) == (1, BATCH // 2)


# --- micro-batches -------------------------------------------------------------------------------------------


def test_two_ranks_learn_like_one_device_with_the_same_micro_batches(on_two_ranks, on_one_device):
    assert_close_losses(on_two_ranks[1], on_one_device[1])
    two, one = parameters(on_two_ranks[1]), parameters(on_one_device[1])
    assert all(two[name].equal(one[name]) for name in one)  # the sum of two gradients does not depend on order


def test_micro_batch_of_batch_normalisation_changes_the_loss(on_one_device, tmp_path):
    train_in(tmp_path, smoke_run())  # the on_two_ranks batch at once
    assert any(abs(losses(tmp_path)[step] - loss) > 1e-3 for step, loss in losses(on_one_device[1]).items())


def test_without_batch_normalisation_micro_batches_change_only_rounding(tmp_path):
    run = with_network("lenet5_modern", {"data.pad_to": 32})
    for device_batch in (None, 5):
        train_in(tmp_path / str(device_batch), run, device_batch=device_batch)
    assert_close_losses(tmp_path / "None", tmp_path / "5")
    assert weights(tmp_path / "None") != weights(tmp_path / "5")  # other sums


STOCHASTIC = with_network("stochastic_depth_cifar", {"train.lr": 0.01}, depth=14)


FRACTAL = with_network("fractalnet", columns=3, widths=[4, 4, 8, 8], dropout=[0.0, 0.2, 0.4, 0.4])


@pytest.mark.parametrize("run", [STOCHASTIC, pytest.param(FRACTAL, marks=SLOW)], ids=network_of)
def test_random_draws_of_batches_and_micro_batches_do_not_depend_on_the_number_of_devices(
    two_ranks, tmp_path, run
):
    """Skipped blocks get zero gradients, so momentum and weight decay change them on one and on two devices."""
    train_on_all(two_ranks, tmp_path / "two", run, 5)
    train_in(tmp_path / "one", run, device_batch=5)
    assert_close_losses(tmp_path / "two", tmp_path / "one")
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-4)


def count_reductions(path, run, device_batch):
    """Train and return the number of gradient reductions."""
    buckets = []

    def counting_hook(state, bucket):
        buckets.append(bucket.index())
        return ordered_mean_hook(state, bucket)

    original, callback.ordered_mean_hook = callback.ordered_mean_hook, counting_hook
    try:
        train_on_rank(path, run, device_batch)
    finally:
        callback.ordered_mean_hook = original
    return buckets.count(0)


@pytest.mark.parametrize("device_batch", [pytest.param(10, marks=SLOW), 2])
def test_gradients_are_reduced_once_per_step_with_any_number_of_micro_batches(two_ranks, tmp_path, device_batch):
    assert two_ranks.run(
        count_reductions, tmp_path, smoke_run(changes={"train.eval_every": 12}), device_batch
    ) == [STEPS, STEPS]


# --- stopping and resuming -----------------------------------------------------------------------------------


def assert_same_run(path, record, uninterrupted):
    """Assert that a run has the bits of the uninterrupted run."""
    expected, expected_path = uninterrupted
    assert weights(path) == weights(expected_path)
    assert journal_metrics(path) == journal_metrics(expected_path)
    assert record.metrics == expected.metrics


@pytest.mark.parametrize("stopping", [pytest.param(0, marks=SLOW), 1])
def test_stop_request_on_one_rank_stops_both_at_that_step_resumable(two_ranks, on_two_ranks, tmp_path, stopping):
    for count, last_step in ((1, 1), (3, 4), (7, 11)):
        assert train_on_all(two_ranks, tmp_path, smoke_run(), None, count, stopping) is None
        newest = RunFolder(tmp_path).checkpoint_files()[0]
        assert int(newest.name[5:15]) == last_step
    assert_same_run(tmp_path, train_on_all(two_ranks, tmp_path, smoke_run()), on_two_ranks)


@SLOW
def test_micro_batches_resume_with_the_same_bits(two_ranks, tmp_path):
    uninterrupted = train_on_all(two_ranks, tmp_path / "uninterrupted", smoke_run(), 5)
    assert train_on_all(two_ranks, tmp_path / "stopped", smoke_run(), 5, 5) is None
    assert_same_run(
        tmp_path / "stopped",
        train_on_all(two_ranks, tmp_path / "stopped", smoke_run(), 5),
        (uninterrupted, tmp_path / "uninterrupted"),
    )


@pytest.mark.parametrize("device_batch", [10, pytest.param(5, marks=SLOW)])
def test_run_can_resume_on_another_number_of_devices(two_ranks, tmp_path, device_batch):
    """With four micro-batches the order of sums depends on the devices, and rounding differences grow."""
    run = smoke_run(changes={"train.steps": 8, "train.lr_drops": None})
    one_device, path = tmp_path / "one_device", tmp_path / "moved"
    train_in(one_device, run, device_batch=device_batch)
    assert train_in(path, run, device_batch=device_batch, stop=stop_after(3)) is None
    assert train_on_all(two_ranks, path, run, device_batch, 2) is None
    record = train_in(path, run, device_batch=device_batch)
    assert (record.world, record.device_batch) == (1, device_batch)
    assert_close_losses(path, one_device)


@SLOW
def test_all_ranks_skip_a_damaged_checkpoint(two_ranks, on_two_ranks, tmp_path):
    assert train_on_all(two_ranks, tmp_path, smoke_run(), None, 3) is None
    assert train_on_all(two_ranks, tmp_path, smoke_run(), None, 3) is None
    newest, _ = RunFolder(tmp_path).checkpoint_files()
    newest.write_bytes(b"damaged")
    assert_same_run(tmp_path, train_on_all(two_ranks, tmp_path, smoke_run()), on_two_ranks)


def train_with_checkpoints(path, run):
    """Train with a checkpoint after every step."""
    os.environ["REPRO_CHECKPOINT_SECONDS"] = "0"
    return train_on_rank(path, run)


@SLOW
@pytest.mark.parametrize("killed", [0, 1])
def test_killed_rank_ends_the_other_and_two_new_ranks_resume_with_the_same_bits(on_two_ranks, tmp_path, killed):
    path, seed = tmp_path / "run", random.randrange(10**6)
    print("random seed", seed)
    draw = random.Random(seed)
    for number in range(2):
        ranks = Ranks(tmp_path / str(number), 2)
        try:
            ranks.run(current_ranks)  # returns when the processes have started
            ranks.start(train_with_checkpoints, path, smoke_run())
            time.sleep(draw.uniform(0.5, 1.5))
            ranks.kill(killed)
            [other] = ranks.results()  # fails long before the 30 minutes after which torch.distributed gives up
            assert isinstance(other, RuntimeError) or other.status == "finished"
        finally:
            ranks.close()
    ranks = Ranks(tmp_path / "last", 2)
    assert_same_run(path, train_on_all(ranks, path, smoke_run()), on_two_ranks)
    ranks.close()


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("three_ranks"), 3)
    yield ranks
    ranks.close()


@SLOW
def test_three_ranks_resume_with_the_same_bits(three_ranks, tmp_path):
    run = smoke_run(changes={"train.batch_size": 12, "train.steps": 6, "train.lr_drops": None})
    uninterrupted = train_on_all(three_ranks, tmp_path / "uninterrupted", run)
    assert (uninterrupted.world, uninterrupted.device_batch) == (3, 4)
    assert train_on_all(three_ranks, tmp_path / "stopped", run, None, 2, 2) is None
    assert_same_run(
        tmp_path / "stopped",
        train_on_all(three_ranks, tmp_path / "stopped", run),
        (uninterrupted, tmp_path / "uninterrupted"),
    )


# --- an error on one rank stops all --------------------------------------------------------------------------


def train_with_nan(path, run, step, rank, device_batch=None):
    """Train; on one rank an image of one step is NaN."""
    group, feed = current_ranks(), context.RunContext.feed

    def feed_with_nan(self, start):
        for batch in feed(self, start):
            if group.rank == rank and batch.step == step:
                batch.images[0].fill_(math.nan)
            yield batch

    context.RunContext.feed = feed_with_nan
    try:
        return train_in(path, run, device_batch=device_batch)
    finally:
        context.RunContext.feed = feed


@pytest.mark.parametrize(
    ("rank", "device_batch"), [pytest.param(0, None, marks=SLOW), (1, None), pytest.param(1, 2, marks=SLOW)]
)
def test_nan_loss_on_one_rank_ends_all_ranks_at_that_step(two_ranks, tmp_path, rank, device_batch):
    record, other = two_ranks.run(train_with_nan, tmp_path, smoke_run(), 5, rank, device_batch)
    assert record == other == RunFolder(tmp_path).result()
    assert (record.status, record.ended, record.metrics) == ("not converged", "the loss became nan at step 5", {})
    assert [step for step, _ in journal_metrics(tmp_path)] == [2, 4]
    assert not RunFolder(tmp_path).network_file.exists()


def test_diverging_loss_ends_all_ranks(two_ranks, tmp_path):
    record = train_on_all(two_ranks, tmp_path, smoke_run("plain-20", changes={"train.lr": 1e30}))
    assert record.status == "not converged"
    assert record.ended.startswith("the loss became")


def train_on_full_disk(path, run, method):
    """Train; rank 0 cannot write."""

    def full(*_):
        raise UserError("cannot write to runs: no space left on device")

    original = getattr(RunFolder, method)
    if current_ranks().rank == 0:
        setattr(RunFolder, method, full)
    try:
        return train_on_rank(path, run, None, 3)
    finally:
        setattr(RunFolder, method, original)


@pytest.mark.parametrize(
    "method", [pytest.param("create", marks=SLOW), pytest.param("append", marks=SLOW), "save_checkpoint"]
)
def test_full_disk_is_the_same_user_error_on_every_rank(two_ranks, on_two_ranks, tmp_path, method):
    for error in two_ranks.run(train_on_full_disk, tmp_path, smoke_run(), method):
        assert isinstance(error, UserError)
        assert str(error) == "cannot write to runs: no space left on device"
    assert_same_run(
        tmp_path, train_on_all(two_ranks, tmp_path, smoke_run()), on_two_ranks
    )  # with free space it resumes


def test_devices_that_cannot_share_the_batch_are_a_user_error(two_ranks, tmp_path):
    for error in two_ranks.run(train_on_rank, tmp_path, smoke_run(changes={"train.batch_size": 21})):
        assert isinstance(error, UserError)
        assert "2 devices cannot share a batch of 21 images equally; use 1, 3, 7 or 21" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device_batch", [None, 1])
def test_sdlm_is_refused_on_several_devices_and_with_a_device_batch(device_batch):
    recipe = smoke_run("lenet5", experiment=LENET).recipe.train
    with pytest.raises(UserError, match=r"'sdlm' learns one pattern at a time, .* train on one device"):
        count_micro_batches(recipe, SINGLE_RANK if device_batch else RankGroup(0, 2), device_batch)
    assert count_micro_batches(recipe, SINGLE_RANK, None) == 1


# --- tasks ---------------------------------------------------------------------------------------------------


def execute_on_rank(task, stopping=None):
    """Execute a task on this rank; return its record and the kinds of its events."""
    kinds, calls = [], 0

    def stop():
        nonlocal calls
        calls += 1
        return current_ranks().rank == stopping and calls >= 5

    return execute_task(task, threads=1, stop=stop, on_event=lambda *event: kinds.append(event[0])), kinds


def test_task_is_executed_once_and_all_ranks_get_its_record(two_ranks, tmp_path):
    task = dataclasses.replace(smoke_task(tmp_path, smoke_run()), device_batch=5)
    (record, kinds), (other, other_kinds) = two_ranks.run(execute_on_rank, task)
    assert record == other
    assert (record.world, record.device_batch) == (2, 5)
    assert (kinds, other_kinds) == (["started"], [])
    assert two_ranks.run(execute_on_rank, task) == [(record, []), (record, [])]
    with FileLock(RunFolder(task.folder).lock_file, timeout=0):
        pass  # no rank holds the lock


def test_ranks_wait_for_a_locked_task_until_one_is_requested_to_stop(two_ranks, tmp_path):
    task = smoke_task(tmp_path, smoke_run())
    task.folder.mkdir()
    with FileLock(RunFolder(task.folder).lock_file):
        assert two_ranks.run(execute_on_rank, task, 1) == [(None, ["waiting"]), (None, [])]


def execute_with_changed_data(rank, task):
    """Execute a task; on one rank the data have changed."""
    if current_ranks().rank == rank:
        task = dataclasses.replace(task, manifest=task.manifest | {"sha256": "other"})
    return execute_on_rank(task)


def test_changed_data_on_one_rank_are_a_user_error_on_every_rank(two_ranks, tmp_path):
    for error in two_ranks.run(execute_with_changed_data, 1, smoke_task(tmp_path, smoke_run())):
        assert isinstance(error, UserError)
        assert "noise: the images changed since the command began" in str(error)
