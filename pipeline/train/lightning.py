"""Lightning plugins: for ranks that another program starts, and for checkpoints that rank 0 alone writes."""

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
    """Holds a checkpoint in memory until rank 0 calls `write`, after all ranks have taken part in saving it.

    Lightning itself writes through the system's temporary folder. On a full disk torch raises a RuntimeError
    without the cause, but `write` raises an OSError.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Serialise the checkpoint into memory."""
        self.buffer = io.BytesIO()
        torch.save(checkpoint, self.buffer)

    def write(self, path: Path) -> None:
        """Write the buffered checkpoint to `path` and free the buffer."""
        path.write_bytes(self.buffer.getbuffer())
        del self.buffer


class RankEnvironment(ClusterEnvironment):
    """Describes ranks to Lightning that another program started, with one device each."""

    def __init__(self, group: RankGroup) -> None:
        super().__init__()
        self.group = group

    creates_processes_externally = True
    main_address, main_port = "", 0  # the process group is initialised already

    @staticmethod
    def detect() -> bool:
        """Return False: this environment is never detected, always passed in."""
        return False

    def world_size(self) -> int:
        """Return the number of ranks."""
        return self.group.world

    def global_rank(self) -> int:
        """Return the number of this rank."""
        return self.group.rank

    def node_rank(self) -> int:
        """Return the number of this rank: each counts as a node of one device."""
        return self.group.rank

    def local_rank(self) -> int:
        """Return 0: one device per node."""
        return 0

    def set_world_size(self, size: int) -> None:
        """Do nothing: the world size is known."""

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the rank is known."""


def ordered_mean_hook(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Return the mean of a bucket of gradients over all ranks, summed in order of rank; a DDP hook for CPUs.

    gloo's all-reduce sums in an order that depends on the position in the bucket, and DDP rebuilds its buckets
    after the first step of a session. With three or more ranks, a resumed run would therefore end with other bits.
    """
    own = bucket.buffer()
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    future = dist.all_gather(gathered, own, async_op=True).get_future()
    return future.then(lambda _: sum(gathered[1:], gathered[0]).div_(len(gathered)))
