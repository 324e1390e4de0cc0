"""Processes that are the ranks of one group, for the tests of what several devices do together."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.smoke_runs import FORKSERVER

SECONDS = 120  # after which a test has found a group that hangs


class Ranks:
    """`world` processes in one group of torch.distributed, on this machine's loopback. To be closed."""

    def __init__(self, folder: Path, world: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.connections, self.processes = [], []
        for rank in range(world):
            here, there = FORKSERVER.Pipe()
            process = FORKSERVER.Process(target=serve, args=(there, folder / "meeting", rank, world), daemon=True)
            process.start()
            there.close()
            self.connections.append(here)
            self.processes.append(process)

    def run(self, work: Callable[..., Any], *words: Any) -> list[Any]:
        """What `work(*words)` returns on each rank; an exception that it raises there is what it returns."""
        self.begin(work, *words)
        return self.ended()

    def begin(self, work: Callable[..., Any], *words: Any) -> None:
        """The first half of `run`."""
        for connection in self.connections:
            connection.send((work, words))

    def ended(self) -> list[Any]:
        """The second half of `run`."""
        assert all(connection.poll(SECONDS) for connection in self.connections), "the ranks wait for each other"
        return [connection.recv() for connection in self.connections]

    def lose(self, rank: int) -> None:
        """`kill -9` one of them; the others are the first again."""
        self.processes[rank].kill()
        self.connections.pop(rank).close()

    def close(self) -> None:
        """End them."""
        for connection in self.connections:
            if not connection.closed:
                connection.close()
        for process in self.processes:
            process.join(5)
            process.kill()
            process.join()


def serve(connection: Any, meeting: Path, rank: int, world: int) -> None:
    """A rank's life."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        while True:
            work, words = connection.recv()
            try:
                answer = work(*words)
            except Exception as error:  # noqa: BLE001 - for the test to judge
                answer = error
            connection.send(answer)
    except EOFError:
        dist.destroy_process_group()
