"""The processes that train one run together, one device each: who this one is, and what they agree on.

They are ranks of torch.distributed, whoever started them. A run on one device is a group of one: then everything
here is trivial, and torch.distributed is not needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

Stop = Callable[[], bool]


@dataclass(frozen=True)
class RankGroup:
    """Rank `rank` of `world`. Its methods are to be called by all ranks, in the same order."""

    rank: int
    world: int

    def all_gather(self, value: T) -> list[T]:
        """Every rank's plain `value`, in the order of the ranks."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, value)
        return every

    def broadcast(self, value: T) -> T:
        """Rank 0's plain `value`."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        told = [value if self.rank == 0 else None]
        dist.broadcast_object_list(told, src=0)
        return told[0]  # type: ignore[return-value]

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag: whether it is true on any rank."""
        if self.world == 1:
            return flags
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL knows nothing else
        told = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return tuple(flag > 0 for flag in told.tolist())

    def broadcast_buffers(self, network: "nn.Module") -> None:
        """Give every rank's network rank 0's buffers: in training each has batch-norm averages of its own."""
        if self.world == 1:
            return
        import torch

        theirs = self.broadcast({name: buffer.cpu() for name, buffer in network.named_buffers()})
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(theirs[name])

    def on_all_ranks(self, act: Callable[[Stop], T], stop: Stop = lambda: False) -> T:
        """What `act(agreed)` returns on this rank. What ends it on one rank, UserError or Stopped, ends it on all.

        `agreed()`, asked as often as `act` likes, says whether `stop()` is true on any rank, or one has failed. A
        rank that is done goes on answering until all are, so that one may ask more often than another.
        """
        if self.world == 1:
            return act(stop)
        from pipeline.data.prefetch import StopRequested

        def agreed() -> bool:
            return self.any_rank(True, stop())[1]

        result, failed = None, None
        try:
            result = act(agreed)
        except (UserError, StopRequested) as error:
            failed = error
        while self.any_rank(False, failed is not None or stop())[0]:
            pass
        errors = [error for error in self.all_gather(failed) if error]
        if errors:  # one rank's mistake stops the others: it is the mistake that is to be heard of
            raise next((error for error in errors if isinstance(error, UserError)), errors[0])
        return result  # type: ignore[return-value]

    def on_rank_zero(self, act: Callable[[Stop], T], stop: Stop = lambda: False) -> T:
        """What `act(agreed)` returns on rank 0, which alone does it, or raises there; see `each`."""
        return self.broadcast(self.on_all_ranks(act if self.rank == 0 else lambda _: None, stop))  # type: ignore[return-value]


SINGLE_RANK = RankGroup(0, 1)


def current_ranks() -> RankGroup:
    """The group that this process is in, as torch.distributed knows it."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return RankGroup(dist.get_rank(), dist.get_world_size())
    return SINGLE_RANK


def micro_batches(batch: int, world: int, device_batch: int | None = None) -> int:
    """Into how many equal groups a global batch of so many images is cut: each goes through a device at once.

    The fewest that `world` devices can share, of at most `device_batch` images each; UserError if there are none.
    """
    most = batch if device_batch is None else device_batch
    fitting = (count for count in range(world, batch + 1, world) if batch % count == 0 and batch // count <= most)
    found = next(fitting, None)
    if found is not None:
        return found
    if batch % world:
        counts = divisors(batch)
        raise UserError(
            f"a batch of {batch} images cannot be shared equally by {world} devices; use {join_with_or(counts)} devices,"
            f" with a device batch of {join_with_or(counts[::-1])}"
        )
    raise UserError(
        f"a device batch of {device_batch} images cannot be; a batch of {batch} on {world} devices goes"
        f" through each of them by {join_with_or(divisors(batch // world))}"
    )


def divisors(number: int) -> list[int]:
    """All of them, rising."""
    return [n for n in range(1, number + 1) if number % n == 0]


def join_with_or(numbers: list[int]) -> str:
    """'1, 2 or 4'."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
