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

CHECKPOINT_SECONDS = 30.0  # between checkpoints; how often does not change the numbers

HEARTBEAT_SECONDS = 0.5

CHECKPOINT_SHARE = 0.02  # of the time, at most, goes into checkpoints


class TrainingCallback(pl.Callback):
    """Between updates: seeds the draws, reports, evaluates, checkpoints, and stops when asked."""

    def __init__(self, job: RunContext, stop: Callable[[], bool], start: int) -> None:
        self.job, self.stop, self.start, self.group = job, stop, start, job.group
        # Journal lines up to this step exist already.
        self.reported = self.group.on_rank_zero(lambda _: job.folder.repair_journal())
        self.checkpoint_io = BufferedCheckpointIO()
        self.finished = False
        self.last_window: dict[str, float] = {}
        self.spent = 0.0  # seconds of training in earlier sessions
        self.started = self.last_beat = self.last_checkpoint = time.monotonic()
        self.between_checkpoints = checkpoint_interval()
        self.beat_step = -1
        # How updates were made, where it changed from session to session: images that batch normalisation saw at
        # a time, and devices.
        self.device_batches: list[int] = []
        self.worlds: list[int] = []

    def seconds(self) -> float:
        """Seconds of training so far, over all sessions."""
        return self.spent + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds(), "device_batches": self.device_batches, "worlds": self.worlds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.spent = state_dict["seconds"]
        self.device_batches = list(state_dict.get("device_batches", []))  # older checkpoints do not say
        self.worlds = list(state_dict.get("worlds", []))

    def record_layout(self, parts: int) -> None:
        """How this session makes its updates, if that is not how the last one did."""
        world = self.group.world
        device_batch = self.job.recipe.batch_size // (parts * world)
        for used, now in ((self.device_batches, device_batch), (self.worlds, world)):
            if used[-1:] != [now]:
                used.append(now)

    def layout_changes(self) -> str:
        """Device batches and numbers of devices in their order, where there was more than one; else ""."""
        used = {"device batches": self.device_batches, "devices": self.worlds}
        several = {name: values for name, values in used.items() if len(values) > 1}
        return "".join(f"; {name} {', '.join(map(str, values))}" for name, values in several.items())

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning counts batches, and in an earlier session another number of them may have made an update."""
        del checkpoint["loops"]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        """Every random draw of an update depends on (seed, step) alone; or, of its images, on their group too."""
        seed, parts, world = self.job.seed, module.parts, self.group.world
        self.record_layout(parts)
        if parts * world == 1:
            torch.manual_seed(derive_seed(seed, "update", batch.step))
        else:
            module.seed_shared_draws(derive_seed(seed, "update", batch.step))
            torch.manual_seed(derive_seed(seed, "update", batch.step, self.group.rank + batch_idx % parts * world))
        images_per_pass = self.job.training_data.count
        if module.wants_pass_patterns and batch.step % images_per_pass == 0:
            number = batch.step // images_per_pass
            module.start_pass(*self.job.pass_patterns(number, self.job.recipe.optimizer.samples))  # type: ignore[union-attr]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """A run stopped while it was judged is judged now."""
        if self.group.world > 1 and self.job.device == "cpu":
            trainer.strategy.model.register_comm_hook(None, ordered_mean_hook)
        if self.start and self.start > self.reported:
            self.report(module, self.start)
        elif self.start >= self.job.recipe.steps:
            self.finished = True
            last = self.group.on_rank_zero(lambda _: list(self.job.folder.journal())[-1][0]["metrics"])
            self.last_window = {name: value for name, value in last.items() if name.startswith("train/")}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Report and evaluate where the recipe says; then, and only then, checkpoint.

        But for what takes long to judge: there the checkpoint comes first, and a resumed run reports what is due.
        """
        job, done = self.job, batch.step + self.job.block
        if (batch_idx + 1) % module.parts:
            return
        if job.training_data.is_slow and (done % job.eval_every == 0 or done == job.recipe.steps):
            self.checkpoint(trainer, done)
        self.report(module, done)
        now = time.monotonic()
        due = not self.finished and now - self.last_checkpoint >= self.between_checkpoints
        asked_to_stop, due = self.group.any_rank(not self.finished and self.stop(), due)
        if asked_to_stop or due:
            self.checkpoint(trainer, done)
        if self.group.rank == 0 and (now - self.last_beat >= HEARTBEAT_SECONDS or self.finished):
            images = (done - self.beat_step) * job.recipe.batch_size if self.beat_step >= 0 else 0
            job.folder.write_progress(done, images / max(now - self.last_beat, 1e-9))
            self.last_beat, self.beat_step = now, done
        if asked_to_stop:
            trainer.should_stop = True

    def report(self, module: Any, done: int) -> None:
        """What there is to say after `done` updates; nothing where it has been said."""
        job = self.job
        self.finished = done >= job.recipe.steps
        metrics: dict[str, float] = {}
        if done % job.log_every == 0 or done == job.recipe.steps:
            self.last_window = module.take_window()
            metrics |= self.last_window
        if done % job.eval_every == 0 and done < job.recipe.steps:
            metrics |= job.held_out_errors()
        if metrics and done > self.reported:
            self.group.on_rank_zero(
                lambda _: job.folder.append_journal({"step": done, "time": time.time(), "metrics": metrics})
            )

    def checkpoint(self, trainer: Any, done: int) -> None:
        """Write one; those of large networks, which take long, come more rarely."""
        began = time.monotonic()
        trainer.save_checkpoint("")
        self.group.on_rank_zero(lambda _: self.job.folder.save_checkpoint(done, self.checkpoint_io.write))
        self.last_checkpoint = time.monotonic()
        seldom = (self.last_checkpoint - began) / CHECKPOINT_SHARE
        self.between_checkpoints = max(checkpoint_interval(), seldom) if checkpoint_interval() else 0.0


def checkpoint_interval() -> float:
    """Seconds between checkpoints; REPRO_CHECKPOINT_SECONDS overrides, for machines that may vanish."""
    return env_number("REPRO_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)
