"""Collective operations of the ranks that train one run together, with one device each.

The ranks are those of torch.distributed, whichever program started them. With a single rank the operations do
nothing, and torch.distributed is not imported.
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
    """Rank `rank` of `world`. All ranks must call its methods, in the same order."""

    rank: int
    world: int

    def all_gather(self, value: T) -> list[T]:
        """Return the picklable `value` of every rank, in order of rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Return rank 0's picklable `value`."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        values = [value if self.rank == 0 else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Return a bool per flag: True if the flag is true on any rank."""
        if self.world == 1:
            return flags
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL reduces on GPUs only
        reduced = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return tuple(flag > 0 for flag in reduced.tolist())

    def broadcast_buffers(self, network: "nn.Module") -> None:
        """Copy rank 0's buffers to every rank: in training, each rank has its own batch-norm statistics."""
        if self.world == 1:
            return
        import torch

        buffers = self.broadcast({name: buffer.cpu() for name, buffer in network.named_buffers()})
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])

    def on_all_ranks(self, act: Callable[[Stop], T], stop: Stop = lambda: False) -> T:
        """Call `act(agreed)` on every rank and return this rank's result.

        `agreed()` returns True if `stop()` is true on any rank or a rank has failed. `act` may call it any number
        of times: a rank that is done takes part in the calls of the others until all are done. A UserError or
        StopRequested on one rank is raised on all.
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
        if errors:  # a UserError takes precedence: it is why the other ranks raised StopRequested
            raise next((error for error in errors if isinstance(error, UserError)), errors[0])
        return result  # type: ignore[return-value]

    def on_rank_zero(self, act: Callable[[Stop], T], stop: Stop = lambda: False) -> T:
        """Call `act(agreed)` on rank 0 alone; return its result or raise its error on all. See `on_all_ranks`."""
        return self.broadcast(self.on_all_ranks(act if self.rank == 0 else lambda _: None, stop))  # type: ignore[return-value]


SINGLE_RANK = RankGroup(0, 1)


def current_ranks() -> RankGroup:
    """Return the ranks of torch.distributed, or SINGLE_RANK if it is not initialised."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return RankGroup(dist.get_rank(), dist.get_world_size())
    return SINGLE_RANK


def micro_batches(batch: int, world: int, device_batch: int | None = None) -> int:
    """Return the number of equal micro-batches that a global batch of `batch` images is split into.

    It is the smallest number that `world` devices can share, with at most `device_batch` images per micro-batch.
    Raises UserError if there is no such number.
    """
    largest = batch if device_batch is None else device_batch
    counts = (
        count for count in range(world, batch + 1, world) if batch % count == 0 and batch // count <= largest
    )
    first = next(counts, None)
    if first is not None:
        return first
    if batch % world:
        worlds = divisors(batch)
        raise UserError(
            f"{world} devices cannot share a batch of {batch} images equally; use {join_with_or(worlds)} devices,"
            f" with a device batch of {join_with_or(worlds[::-1])}"
        )
    raise UserError(
        f"a batch of {batch} images on {world} devices cannot use a device batch of {device_batch}; use"
        f" {join_with_or(divisors(batch // world))}"
    )


def divisors(number: int) -> list[int]:
    """Return all divisors, in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def join_with_or(numbers: list[int]) -> str:
    """Return the numbers as text: '1, 2 or 4'."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
