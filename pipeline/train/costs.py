"""Time and memory of training, over all sessions of a run, without evaluations and checkpoints."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

MIB = 2**20


class CostMeter:
    """Measures what training costs on one rank. Changes no number of the run.

    The sums are part of each checkpoint, so steps that are repeated after a kill count once, as they ran last. A
    run whose sessions had different `setup`s has no costs.
    """

    def __init__(self, setup: str, device: str) -> None:
        self.setup, self.device = setup, device  # description of hardware, threads and precision; "cpu" or "cuda"
        self.setups: list[str] = []  # of all sessions, one per change
        self.sum_seconds = 0.0  # of the closed intervals
        self.peak_bytes = 0
        self.began: float | None = None  # start of the current interval; None: paused

    def start_session(self) -> None:
        """Start the first interval of a session."""
        if self.setups[-1:] != [self.setup]:
            self.setups.append(self.setup)
        if self.device == "cuda":
            gc.collect()  # memory of earlier runs of this process
        self.start()

    def start(self) -> None:
        """Start an interval of training."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.began = time.monotonic()

    def pause(self) -> None:
        """End the interval, if there is one."""
        if self.began is None:
            return
        if self.device == "cuda":
            torch.cuda.synchronize()  # the last step may still compute
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated())
        self.sum_seconds += time.monotonic() - self.began
        self.began = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens within this context."""
        running = self.began is not None
        self.pause()
        try:
            yield
        finally:
            if running:
                self.start()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for the checkpoint; only while paused."""
        return {"setups": self.setups, "seconds": self.sum_seconds, "peak_bytes": self.peak_bytes}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore the state; None: of a checkpoint that has none."""
        self.setups = list(state["setups"]) if state else ["unknown"]
        if state:
            self.sum_seconds, self.peak_bytes = state["seconds"], state["peak_bytes"]

    def costs(self, images: int) -> dict[str, float]:
        """Return COST_METRICS of training on so many images; {} if the setup changed.

        The memory is the largest that the GPU's allocator held in a training step. On a CPU it is not measured: a
        process keeps memory of its earlier runs.
        """
        if len(self.setups) != 1 or not self.sum_seconds:
            return {}
        found = {"train/seconds": self.sum_seconds, "train/images_per_second": images / self.sum_seconds}
        if self.peak_bytes:
            found["train/peak_memory_mib"] = self.peak_bytes / MIB
        return found
