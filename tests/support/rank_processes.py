"""Processes that are the ranks of one torch.distributed group on this machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.smoke_runs import FORKSERVER

HANG_SECONDS = 120  # after which ranks count as hanging


class Ranks:
    """`world` processes in one gloo group on loopback. Call `close` at the end."""

    def __init__(self, folder: Path, world: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.connections, self.processes = [], []
        for rank in range(world):
            own_end, rank_end = FORKSERVER.Pipe()
            arguments = (rank_end, folder / "rendezvous", rank, world)
            process = FORKSERVER.Process(target=serve, args=arguments, daemon=True)
            process.start()
            rank_end.close()
            self.connections.append(own_end)
            self.processes.append(process)

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return the result of `work(*arguments)` on each rank, or the exception that it raised."""
        self.start(work, *arguments)
        return self.results()

    def start(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Call `work(*arguments)` on each rank, without waiting."""
        for connection in self.connections:
            connection.send((work, arguments))

    def results(self) -> list[Any]:
        """Wait for the results of `start`."""
        assert all(connection.poll(HANG_SECONDS) for connection in self.connections), "the ranks hang"
        return [connection.recv() for connection in self.connections]

    def kill(self, rank: int) -> None:
        """Send SIGKILL to one rank. `results` then returns those of the others."""
        self.processes[rank].kill()
        self.connections.pop(rank).close()

    def close(self) -> None:
        """End the processes."""
        for connection in self.connections:
            if not connection.closed:
                connection.close()
        for process in self.processes:
            process.join(5)
            process.kill()
            process.join()


def serve(connection: Any, rendezvous: Path, rank: int, world: int) -> None:
    """Join the group and execute what the connection brings, until it is closed."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        while True:
            work, arguments = connection.recv()
            try:
                result = work(*arguments)
            except Exception as error:  # noqa: BLE001 - the test checks it
                result = error
            connection.send(result)
    except EOFError:
        dist.destroy_process_group()
