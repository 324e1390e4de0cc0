"""Test the plugins of Lightning: checkpoints in memory, and the sum of gradients over ranks."""

import pytest
import torch
import torch.distributed as dist

from pipeline.train.lightning import BufferedCheckpointIO, ordered_mean_hook
from tests.support.rank_processes import Ranks


def test_checkpoint_is_buffered_until_it_is_written(tmp_path):
    checkpoint_io = BufferedCheckpointIO()
    checkpoint_io.save_checkpoint({"a": torch.arange(3)}, tmp_path / "ignored")
    assert list(tmp_path.iterdir()) == []
    checkpoint_io.write(tmp_path / "checkpoint")
    assert torch.load(tmp_path / "checkpoint", weights_only=True)["a"].tolist() == [0, 1, 2]
    assert not hasattr(checkpoint_io, "buffer")


def compare_means():
    """Return whether the hook sums in order of rank, also with a reversed bucket, and whether all-reduce does."""
    rank, world = dist.get_rank(), dist.get_world_size()
    gradients = torch.randn(5000, generator=torch.Generator().manual_seed(rank))
    of_ranks = [torch.randn(5000, generator=torch.Generator().manual_seed(other)) for other in range(world)]

    class Bucket:
        def __init__(self, content):
            self.content = content

        def buffer(self):
            return self.content

    expected = ((of_ranks[0] + of_ranks[1]) + of_ranks[2]) / 3
    mean = ordered_mean_hook(None, Bucket(gradients)).wait()
    reversed_mean = ordered_mean_hook(None, Bucket(gradients.flip(0))).wait()
    reduced, reversed_reduced = gradients.clone(), gradients.flip(0).clone()
    dist.all_reduce(reduced)
    dist.all_reduce(reversed_reduced)
    return (
        mean.equal(expected),
        reversed_mean.equal(expected.flip(0)),
        reduced.equal(reversed_reduced.flip(0)),
    )


@pytest.fixture
def three_ranks(tmp_path):
    ranks = Ranks(tmp_path / "ranks", 3)
    yield ranks
    ranks.close()


def test_gradients_are_summed_in_order_of_rank_at_any_position_in_the_bucket(three_ranks):
    assert three_ranks.run(compare_means) == [(True, True, False)] * 3  # all-reduce sums in another order
