"""Plugins that fit Lightning to our ranks and checkpoints."""

import io
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import ClusterEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from pipeline.train.ranks import RankGroup


class BufferedCheckpointIO(TorchCheckpointIO):
    """A checkpoint on its way from the trainer, which ranks wait in for each other, to a file.

    Lightning's own way is through the system's temporary folder; and on a full disk torch raises a RuntimeError
    that names no cause, `write` an OSError.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Hold it."""
        self.held = io.BytesIO()
        torch.save(checkpoint, self.held)

    def write(self, path: Path) -> None:
        """Write what is held, which is then no longer."""
        path.write_bytes(self.held.getbuffer())
        del self.held


class RankEnvironment(ClusterEnvironment):
    """What a trainer asks about processes that somebody else has started, with one device for each."""

    def __init__(self, group: RankGroup) -> None:
        super().__init__()
        self.group = group

    creates_processes_externally = True
    main_address, main_port = "", 0  # they have found each other already

    @staticmethod
    def detect() -> bool:
        """Never by itself."""
        return False

    def world_size(self) -> int:
        """All of them."""
        return self.group.world

    def global_rank(self) -> int:
        """Which of them this is."""
        return self.group.rank

    def node_rank(self) -> int:
        """Each counts as a node of its own."""
        return self.group.rank

    def local_rank(self) -> int:
        """With one device."""
        return 0

    def set_world_size(self, size: int) -> None:
        """Nothing to set."""

    def set_global_rank(self, rank: int) -> None:
        """Nothing to set."""


def ordered_mean_hook(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean of some gradients over all ranks, which are added up in their order; for processors.

    There, an all-reduce adds in an order that depends on the place in the bucket, and after the first update of a
    session DDP fills its buckets anew: three ranks or more would end with other bits if they resumed.
    """
    mine = bucket.buffer()
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    arrived = dist.all_gather(every, mine, async_op=True).get_future()
    return arrived.then(lambda _: sum(every[1:], every[0]).div_(len(every)))
