"""One run on several devices, here processes: the recipe's batch, the bits, what stops one and ends all."""

import dataclasses
import math
import os
import random
import time

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
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
    smoke_run,
    smoke_task,
    journal_metrics,
    images_of,
    manifest_of,
    stop_after,
    train_in,
    weights,
)

BATCH = 20  # of the run
STEPS = 12
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    two = Ranks(tmp_path_factory.mktemp("pair"), 2)
    yield two
    two.close()


def trained(path, run, device_batch=None, after=None, by=0):
    """Train on all ranks; rank `by`, and no other, is asked to stop after so many updates."""
    asked = after is not None and current_ranks().rank == by
    return train_in(path, run, device_batch=device_batch, stop=stop_after(after) if asked else lambda: False)


def on(pair, *words):
    """What every rank returns, which is the same."""
    first, *others = pair.run(trained, *words)
    if isinstance(first, Exception):
        raise first
    assert all(other == first for other in others)
    return first


def with_network(name, changes=None, **arguments):
    """The run of another network."""
    run = smoke_run(changes=changes)
    model = type(run.recipe.model)(name=name, **arguments)
    return dataclasses.replace(run, recipe=run.recipe.model_copy(update={"model": model}))


def network_of(run):
    return run.recipe.model.name


def losses(path):
    return {step: found["train/loss"] for step, found in journal_metrics(path)}


def without_its_variable(*words):
    """How many threads computed where the environment says nothing."""
    os.environ.pop("OMP_NUM_THREADS", None)
    trained(*words)
    return torch.get_num_threads()


@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor has one thread")
def test_each_rank_computes_with_the_threads_it_was_given(pair, tmp_path):
    """Lightning's launcher of several ranks takes all processors where OMP_NUM_THREADS is not set: other bits."""
    run = smoke_run(changes={"train.steps": 2, "train.lr_drops.at": [1]})
    assert pair.run(without_its_variable, tmp_path, run) == [1, 1]


def same_losses(path, other):
    """Whether no training loss differs by 1e-5 or more."""
    ours, theirs = losses(path), losses(other)
    assert list(ours) == list(theirs)
    assert max(abs(ours[step] - theirs[step]) for step in ours) < 1e-5


def parameters(path):
    """The last model but for its batch-norm averages, which are of rank 0's groups alone."""
    averages = ("running_mean", "running_var", "num_batches_tracked")
    found = safetensors.torch.load(weights(path))
    return {name: value for name, value in found.items() if not name.endswith(averages)}


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """A run of two ranks, never stopped: its record and its folder."""
    path = tmp_path_factory.mktemp("whole")
    return on(pair, path, smoke_run()), path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same groups of images on one device, never stopped."""
    path = tmp_path_factory.mktemp("alone")
    return train_in(path, smoke_run(), device_batch=BATCH // 2), path


# --- the record ------------------------------------------------------------------------------------------------


def test_two_ranks_make_one_record_that_counts_every_image_once(whole):
    record, path = whole
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


def test_the_record_s_errors_are_those_of_the_network_kept(whole, tmp_path):
    record, path = whole
    job = context.RunContext(smoke_run(), RunFolder(tmp_path), images_of("noise"), manifest_of("noise"))
    job.module.network.load_state_dict(safetensors.torch.load(weights(path)))
    for name, value in job.final_metrics().items():  # in batches of another size, which round differently
        assert record.metrics[name] == pytest.approx(value, rel=1e-5), name


def test_one_device_is_recorded_as_such(alone):
    record, _ = alone
    assert (record.world, record.device_batch) == (1, BATCH // 2)


# --- the same images, the same losses --------------------------------------------------------------------------


def test_two_ranks_learn_as_one_device_does_from_the_same_groups(whole, alone):
    same_losses(whole[1], alone[1])
    ours, theirs = parameters(whole[1]), parameters(alone[1])
    assert all(ours[name].equal(theirs[name]) for name in theirs)  # two groups can be added in one way only


def test_batch_normalisation_sees_another_batch_and_the_loss_is_another(alone, tmp_path):
    train_in(tmp_path, smoke_run())  # the whole batch at once
    assert any(abs(losses(tmp_path)[step] - loss) > 1e-3 for step, loss in losses(alone[1]).items())


def test_without_batch_normalisation_parts_make_no_difference(tmp_path):
    run = with_network("lenet5_modern", {"data.pad_to": 32})
    for device_batch in (None, 5):
        train_in(tmp_path / str(device_batch), run, device_batch=device_batch)
    same_losses(tmp_path / "None", tmp_path / "5")
    assert weights(tmp_path / "None") != weights(tmp_path / "5")  # it was another way to add them up


STOCHASTIC = with_network("stochastic_depth_cifar", {"train.lr": 0.01}, depth=14)
FRACTAL = with_network("fractalnet", columns=3, widths=[4, 4, 8, 8], dropout=[0.0, 0.2, 0.4, 0.4])


@pytest.mark.parametrize("run", [STOCHASTIC, pytest.param(FRACTAL, marks=SLOW)], ids=network_of)
def test_what_is_drawn_for_a_whole_batch_or_for_its_groups_does_not_depend_on_the_devices(pair, tmp_path, run):
    """Blocks that no image of an update goes through get gradients of zero: momentum and decay move them alike."""
    on(pair, tmp_path / "two", run, 5)
    train_in(tmp_path / "one", run, device_batch=5)
    same_losses(tmp_path / "two", tmp_path / "one")
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-4)


def counted(path, run, device_batch):
    """How often gradients travelled."""
    travelled = []

    def counting(state, bucket):
        travelled.append(bucket.index())
        return ordered_mean_hook(state, bucket)

    callback.ordered_mean_hook, kept = counting, callback.ordered_mean_hook
    try:
        trained(path, run, device_batch)
    finally:
        callback.ordered_mean_hook = kept
    return travelled.count(0)


@pytest.mark.parametrize("device_batch", [pytest.param(10, marks=SLOW), 2])
def test_gradients_travel_once_an_update_however_many_its_parts(pair, tmp_path, device_batch):
    assert pair.run(counted, tmp_path, smoke_run(changes={"train.eval_every": 12}), device_batch) == [STEPS, STEPS]


# --- stopped and resumed ---------------------------------------------------------------------------------------


def same(path, record, whole):
    """Whether a run is the run never stopped, to the bit."""
    expected, never_stopped = whole
    assert weights(path) == weights(never_stopped)
    assert journal_metrics(path) == journal_metrics(never_stopped)
    assert record.metrics == expected.metrics


@pytest.mark.parametrize("by", [pytest.param(0, marks=SLOW), 1])
def test_asked_on_one_rank_both_stop_at_that_step_and_resume_to_the_same_bits(pair, whole, tmp_path, by):
    for count, stands in ((1, 1), (3, 4), (7, 11)):
        assert on(pair, tmp_path, smoke_run(), None, count, by) is None
        newest = RunFolder(tmp_path).checkpoint_files()[0]
        assert int(newest.name[5:15]) == stands
    same(tmp_path, on(pair, tmp_path, smoke_run()), whole)


@SLOW
def test_parts_resume_to_the_same_bits(pair, tmp_path):
    never_stopped = on(pair, tmp_path / "whole", smoke_run(), 5)
    assert on(pair, tmp_path / "stopped", smoke_run(), 5, 5) is None
    same(tmp_path / "stopped", on(pair, tmp_path / "stopped", smoke_run(), 5), (never_stopped, tmp_path / "whole"))


@pytest.mark.parametrize("device_batch", [10, pytest.param(5, marks=SLOW)])
def test_one_device_then_two_then_one_again_lose_as_one_device_does(pair, tmp_path, device_batch):
    """Of four groups, rounding differs by how many devices add them up, and grows from update to update."""
    run = smoke_run(changes={"train.steps": 8, "train.lr_drops": None})
    undisturbed, path = tmp_path / "undisturbed", tmp_path / "moved"
    train_in(undisturbed, run, device_batch=device_batch)
    assert train_in(path, run, device_batch=device_batch, stop=stop_after(3)) is None
    assert on(pair, path, run, device_batch, 2) is None
    record = train_in(path, run, device_batch=device_batch)
    assert (record.world, record.device_batch) == (1, device_batch)
    same_losses(path, undisturbed)


@SLOW
def test_a_damaged_checkpoint_is_passed_over_by_every_rank(pair, whole, tmp_path):
    assert on(pair, tmp_path, smoke_run(), None, 3) is None
    assert on(pair, tmp_path, smoke_run(), None, 3) is None
    newest, _ = RunFolder(tmp_path).checkpoint_files()
    newest.write_bytes(b"damaged")
    same(tmp_path, on(pair, tmp_path, smoke_run()), whole)


def checkpointing(path, run):
    """Train, with a checkpoint after every update."""
    os.environ["REPRO_CHECKPOINT_SECONDS"] = "0"
    return trained(path, run)


@SLOW
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_killed_ends_the_other_soon_and_a_new_pair_goes_on_to_the_same_bits(whole, tmp_path, lost):
    path, seed = tmp_path / "run", random.randrange(10**6)
    print("random seed", seed)
    draw = random.Random(seed)
    for number in range(2):
        ranks = Ranks(tmp_path / str(number), 2)
        try:
            ranks.run(current_ranks)  # they are up
            ranks.begin(checkpointing, path, smoke_run())
            time.sleep(draw.uniform(0.5, 1.5))
            ranks.lose(lost)
            begun = time.monotonic()
            [left] = ranks.ended()
            assert time.monotonic() - begun < 10
            assert isinstance(left, RuntimeError) or left.status == "finished"
        finally:
            ranks.close()
    ranks = Ranks(tmp_path / "last", 2)
    same(path, on(ranks, path, smoke_run()), whole)
    ranks.close()


# --- three ranks -----------------------------------------------------------------------------------------------


def summed():
    """What gradients become by the way that is used, and whether an all-reduce gives it wherever they lie."""
    rank, world = dist.get_rank(), dist.get_world_size()
    values = torch.randn(5000, generator=torch.Generator().manual_seed(rank))
    every = [torch.randn(5000, generator=torch.Generator().manual_seed(other)) for other in range(world)]

    class Bucket:
        def __init__(self, content):
            self.content = content

        def buffer(self):
            return self.content

    expected = ((every[0] + every[1]) + every[2]) / 3
    ordered = ordered_mean_hook(None, Bucket(values)).wait()
    turned = ordered_mean_hook(None, Bucket(values.flip(0))).wait()
    reduced, reduced_turned = values.clone(), values.flip(0).clone()
    dist.all_reduce(reduced)
    dist.all_reduce(reduced_turned)
    return ordered.equal(expected), turned.equal(expected.flip(0)), reduced.equal(reduced_turned.flip(0))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("three"), 3)
    yield ranks
    ranks.close()


def test_gradients_are_added_in_the_order_of_the_ranks_wherever_they_lie(three):
    assert three.run(summed) == [(True, True, False)] * 3  # where an all-reduce would add in other orders


@SLOW
def test_three_ranks_resume_to_the_same_bits(three, tmp_path):
    run = smoke_run(changes={"train.batch_size": 12, "train.steps": 6, "train.lr_drops": None})
    never_stopped = on(three, tmp_path / "whole", run)
    assert (never_stopped.world, never_stopped.device_batch) == (3, 4)
    assert on(three, tmp_path / "stopped", run, None, 2, 2) is None
    same(tmp_path / "stopped", on(three, tmp_path / "stopped", run), (never_stopped, tmp_path / "whole"))


# --- what ends one rank ends all -------------------------------------------------------------------------------


def poisoned(path, run, step, rank, device_batch=None):
    """One rank's images of one update are not numbers; what came of it, and in how many seconds."""
    group, feed = current_ranks(), context.RunContext.feed

    def with_poison(self, start):
        for batch in feed(self, start):
            if group.rank == rank and batch.step == step:
                batch.images[0].fill_(math.nan)
            yield batch

    context.RunContext.feed = with_poison
    begun = time.monotonic()
    try:
        return train_in(path, run, device_batch=device_batch), time.monotonic() - begun
    finally:
        context.RunContext.feed = feed


@pytest.mark.parametrize(
    ("rank", "device_batch"), [pytest.param(0, None, marks=SLOW), (1, None), pytest.param(1, 2, marks=SLOW)]
)
def test_a_loss_that_is_no_number_on_one_rank_ends_all_at_that_step(pair, tmp_path, rank, device_batch):
    (one, seconds), (other, others_seconds) = pair.run(poisoned, tmp_path, smoke_run(), 5, rank, device_batch)
    assert max(seconds, others_seconds) < 10
    assert one == other == RunFolder(tmp_path).result()
    assert (one.status, one.ended, one.metrics) == ("not converged", "the loss became nan at step 5", {})
    assert [step for step, _ in journal_metrics(tmp_path)] == [2, 4]
    assert not RunFolder(tmp_path).network_file.exists()


def test_a_rate_that_is_far_too_high_ends_all(pair, tmp_path):
    record = on(pair, tmp_path, smoke_run("plain-20", changes={"train.lr": 1e30}))
    assert record.status == "not converged"
    assert record.ended.startswith("the loss became")


def on_a_full_disk(path, run, method):
    """Where rank 0 cannot write."""

    def full(*_):
        raise UserError("cannot write to runs: no space left on device")

    kept = getattr(RunFolder, method)
    if current_ranks().rank == 0:
        setattr(RunFolder, method, full)
    try:
        return trained(path, run, None, 3)
    finally:
        setattr(RunFolder, method, kept)


@pytest.mark.parametrize(
    "method", [pytest.param("create", marks=SLOW), pytest.param("append", marks=SLOW), "save_checkpoint"]
)
def test_a_full_disk_is_one_sentence_on_every_rank(pair, whole, tmp_path, method):
    for error in pair.run(on_a_full_disk, tmp_path, smoke_run(), method):
        assert isinstance(error, UserError)
        assert str(error) == "cannot write to runs: no space left on device"
    same(tmp_path, on(pair, tmp_path, smoke_run()), whole)  # and room made, it goes on


def test_devices_that_cannot_share_the_batch_are_refused(pair, tmp_path):
    for error in pair.run(trained, tmp_path, smoke_run(changes={"train.batch_size": 21})):
        assert isinstance(error, UserError)
        assert "2 devices cannot share a batch of 21 images equally; use 1, 3, 7 or 21" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device_batch", [None, 1])
def test_one_pattern_at_a_time_is_for_one_device(device_batch):
    recipe = smoke_run("lenet5", experiment=LENET).recipe.train
    with pytest.raises(
        UserError, match=r"'sdlm' learns one pattern at a time, .* train on one device"
    ):
        count_micro_batches(recipe, SINGLE_RANK if device_batch else RankGroup(0, 2), device_batch)
    assert count_micro_batches(recipe, SINGLE_RANK, None) == 1


# --- a task, its lock and its result ---------------------------------------------------------------------------


def carried_out(task, asked=None):
    """train_task on all ranks; what each returns, and what it says."""
    said, begun = [], time.monotonic()

    def stop():
        return current_ranks().rank == asked and time.monotonic() - begun > 0.2

    return execute_task(task, threads=1, stop=stop, on_event=lambda *words: said.append(words[0])), said


def test_a_task_is_trained_once_and_its_result_is_known_to_all(pair, tmp_path):
    task = dataclasses.replace(smoke_task(tmp_path, smoke_run()), device_batch=5)
    (record, said), (others, silent) = pair.run(carried_out, task)
    assert record == others
    assert (record.world, record.device_batch) == (2, 5)
    assert (said, silent) == (["started"], [])
    assert pair.run(carried_out, task) == [(record, []), (record, [])]
    with FileLock(RunFolder(task.folder).lock_file, timeout=0):
        pass  # nobody holds it


def test_a_task_that_another_process_trains_is_waited_for_until_any_rank_is_asked_to_stop(pair, tmp_path):
    task = smoke_task(tmp_path, smoke_run())
    task.folder.mkdir()
    with FileLock(RunFolder(task.folder).lock_file):
        assert pair.run(carried_out, task, 1) == [(None, ["waiting"]), (None, [])]


def changed_on(rank, task):
    """One rank's data are others."""
    if current_ranks().rank == rank:
        task = dataclasses.replace(task, manifest=task.manifest | {"sha256": "other"})
    return carried_out(task)


def test_data_that_one_rank_lacks_are_one_sentence_on_every_rank(pair, tmp_path):
    for error in pair.run(changed_on, 1, smoke_task(tmp_path, smoke_run())):
        assert isinstance(error, UserError)
        assert "noise: the images changed since the command began" in str(error)
