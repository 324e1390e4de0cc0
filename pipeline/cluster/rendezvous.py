"""Rendezvous of the ranks of a run through a file. Imports Ray Train and torch: import it late."""

from pathlib import Path
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend  # the public base class does not destroy the process group


class FileRendezvousBackend(_TorchBackend):
    """Ray Train's torch backend without its TCP store, which listens on all network interfaces."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Do nothing; each rank calls `torch.distributed.init_process_group` itself."""


class FileRendezvousConfig(TorchConfig):
    """TorchConfig of ranks on one machine that find each other through a file."""

    @property
    def backend_cls(self) -> type[FileRendezvousBackend]:
        """Return the backend that leaves the rendezvous to the ranks."""
        return FileRendezvousBackend


def file_init_method(path: Path) -> str:
    """Return the `init_method` of `torch.distributed.init_process_group` for a rendezvous file."""
    return f"file://{path}"
