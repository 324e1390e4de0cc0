"""The Lightning callback of a run: seeds, reports, evaluations, checkpoints, stopping."""

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_modules.recipe import Batch
from pipeline.common.environment import env_number
from pipeline.data.order import derive_seed
from pipeline.train.context import RunContext
from pipeline.train.lightning import BufferedCheckpointIO, ordered_mean_hook

CHECKPOINT_SECONDS = 30.0  # between checkpoints; does not change the numbers
HEARTBEAT_SECONDS = 0.5
CHECKPOINT_SHARE = 0.02  # of the time goes into checkpoints, at most


class TrainingCallback(pl.Callback):
    """Seeds random draws, reports, evaluates, checkpoints and stops, between optimizer steps."""

    def __init__(self, context: RunContext, stop: Callable[[], bool], start: int) -> None:
        self.context, self.stop, self.start, self.group = context, stop, start, context.group
        # The journal has lines up to this step already.
        self.reported = self.group.on_rank_zero(lambda _: context.folder.repair_journal())
        self.checkpoint_io = BufferedCheckpointIO()
        self.finished = False
        self.last_window: dict[str, float] = {}
        self.spent = 0.0  # seconds of training in earlier sessions
        self.started = self.last_beat = self.last_checkpoint = time.monotonic()
        self.between_checkpoints = checkpoint_interval()
        self.beat_step = -1
        # Layout of the optimizer steps, where it changed from session to session: images of one micro-batch (which
        # batch normalisation sees), and number of devices.
        self.device_batches: list[int] = []
        self.worlds: list[int] = []

    def seconds(self) -> float:
        """Return the seconds of training so far, over all sessions."""
        return self.spent + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps of this callback."""
        return {"seconds": self.seconds(), "device_batches": self.device_batches, "worlds": self.worlds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint keeps."""
        self.spent = state_dict["seconds"]
        self.device_batches = list(state_dict.get("device_batches", []))  # missing in older checkpoints
        self.worlds = list(state_dict.get("worlds", []))

    def record_layout(self, accumulation_steps: int) -> None:
        """Note micro-batch and number of devices of this session, if they differ from the last session's."""
        world = self.group.world
        device_batch = self.context.recipe.batch_size // (accumulation_steps * world)
        for used, now in ((self.device_batches, device_batch), (self.worlds, world)):
            if used[-1:] != [now]:
                used.append(now)

    def layout_changes(self) -> str:
        """Return device batches and numbers of devices in order, if there was more than one; else ""."""
        used = {"device batches": self.device_batches, "devices": self.worlds}
        several = {name: values for name, values in used.items() if len(values) > 1}
        return "".join(f"; {name} {', '.join(map(str, values))}" for name, values in several.items())

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Discard Lightning's loop state: it counts batches, and sessions may differ in batches per step."""
        del checkpoint["loops"]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        """Seed the random draws: they depend on (seed, step) alone, and for micro-batches also on their number."""
        seed, accumulated, world = self.context.seed, module.accumulation_steps, self.group.world
        self.record_layout(accumulated)
        if accumulated * world == 1:
            torch.manual_seed(derive_seed(seed, "update", batch.step))
        else:
            module.seed_shared_draws(derive_seed(seed, "update", batch.step))
            micro_batch = self.group.rank + batch_idx % accumulated * world
            torch.manual_seed(derive_seed(seed, "update", batch.step, micro_batch))
        images_per_pass = self.context.training_data.count
        if module.wants_pass_patterns and batch.step % images_per_pass == 0:
            number = batch.step // images_per_pass
            module.start_pass(*self.context.pass_patterns(number, self.context.recipe.optimizer.samples))  # type: ignore[union-attr]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Make up for a report that the last session stopped in."""
        if self.group.world > 1 and self.context.device == "cpu":
            trainer.strategy.model.register_comm_hook(None, ordered_mean_hook)
        if self.start and self.start > self.reported:
            self.report(module, self.start)
        elif self.start >= self.context.recipe.steps:
            self.finished = True
            last = self.group.on_rank_zero(lambda _: list(self.context.folder.journal())[-1][0]["metrics"])
            self.last_window = {name: value for name, value in last.items() if name.startswith("train/")}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Report and evaluate where the recipe says so, then checkpoint if one is due.

        If evaluation is slow, the checkpoint comes first, and a resumed run makes up for the report.
        """
        context, done = self.context, batch.step + self.context.block
        if (batch_idx + 1) % module.accumulation_steps:
            return
        if context.training_data.is_slow and (done % context.eval_every == 0 or done == context.recipe.steps):
            self.checkpoint(trainer, done)
        self.report(module, done)
        now = time.monotonic()
        due = not self.finished and now - self.last_checkpoint >= self.between_checkpoints
        stop_requested, due = self.group.any_rank(not self.finished and self.stop(), due)
        if stop_requested or due:
            self.checkpoint(trainer, done)
        if self.group.rank == 0 and (now - self.last_beat >= HEARTBEAT_SECONDS or self.finished):
            images = (done - self.beat_step) * context.recipe.batch_size if self.beat_step >= 0 else 0
            context.folder.write_progress(done, images / max(now - self.last_beat, 1e-9))
            self.last_beat, self.beat_step = now, done
        if stop_requested:
            trainer.should_stop = True

    def report(self, module: Any, done: int) -> None:
        """Add to the journal what is due after `done` steps, unless it is there already."""
        context = self.context
        self.finished = done >= context.recipe.steps
        metrics: dict[str, float] = {}
        if done % context.log_every == 0 or done == context.recipe.steps:
            self.last_window = module.take_window()
            metrics |= self.last_window
        if done % context.eval_every == 0 and done < context.recipe.steps:
            metrics |= context.held_out_errors()
        if metrics and done > self.reported:
            self.group.on_rank_zero(
                lambda _: context.folder.append_journal({"step": done, "time": time.time(), "metrics": metrics})
            )

    def checkpoint(self, trainer: Any, done: int) -> None:
        """Write a checkpoint; large networks, whose checkpoints take long, get fewer of them."""
        began = time.monotonic()
        trainer.save_checkpoint("")
        self.group.on_rank_zero(lambda _: self.context.folder.save_checkpoint(done, self.checkpoint_io.write))
        self.last_checkpoint = time.monotonic()
        affordable = (self.last_checkpoint - began) / CHECKPOINT_SHARE
        self.between_checkpoints = max(checkpoint_interval(), affordable) if checkpoint_interval() else 0.0


def checkpoint_interval() -> float:
    """Return the seconds between checkpoints: REPRO_CHECKPOINT_SECONDS, or CHECKPOINT_SECONDS."""
    return env_number("REPRO_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)
