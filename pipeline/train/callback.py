"""Lightning callback of a run: seeds, journal, evaluation, checkpoints, stop requests."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_modules.recipe import Batch, plateau_drops
from lightning_modules.sdlm import STEP_SIZES
from pipeline.common.environment import env_number
from pipeline.data.order import derive_seed
from pipeline.declare.training import FIRST_PASS_STEPS, GRADIENT_NORM, column_metric, steps_to_metric
from pipeline.train.context import RunContext
from pipeline.train.costs import CostMeter
from pipeline.train.lightning import BufferedCheckpointIO, ordered_mean_hook

WINDOW_METRICS = (  # of `pop_window_metrics`
    "train/loss",
    "train/top1_error_pct",
    "train/top5_error_pct",
    "train/localisation_error_pct",
    *STEP_SIZES,
)

CHECKPOINT_SECONDS = 30.0  # between checkpoints; does not change a result
HEARTBEAT_SECONDS = 0.5  # between updates of the run's progress file
CHECKPOINT_SHARE = 0.02  # largest fraction of the time that checkpoints may take


class TrainingCallback(pl.Callback):
    """Between optimizer steps: seeds random draws, writes the journal, evaluates, checkpoints, stops."""

    def __init__(self, context: RunContext, stop: Callable[[], bool], start: int) -> None:
        self.context, self.stop, self.start, self.group = context, stop, start, context.group
        # Last step in the journal.
        self.reported = self.group.on_rank_zero(lambda _: context.folder.repair_journal())
        self.checkpoint_io = BufferedCheckpointIO()
        self.finished = False
        self.last_window: dict[str, float] = {}
        self.earlier_seconds = 0.0  # seconds of training in earlier sessions
        self.started = self.last_beat = self.last_checkpoint = time.monotonic()
        self.between_checkpoints = checkpoint_interval()
        self.beat_step = -1
        # Layout of the optimizer steps, one entry per change between sessions: images of one micro-batch (which is
        # the batch of batch normalisation), number of devices, and precision.
        self.device_batches: list[int] = []
        self.worlds: list[int] = []
        self.precisions: list[str] = []
        # Part -> step -> top-1 or localisation error in percent.
        self.errors: dict[str, dict[int, float]] = {"val": {}, "test": {}, "train": {}}
        self.lr_drops: list[int] = []  # steps from which a plateau schedule has lowered the learning rate
        self.gradient_norms: dict[str, dict[int, float]] = {}  # metric -> step of the report -> mean of its window
        self.first_pass_steps: dict[str, float] = {}  # metric of FIRST_PASS_STEPS -> value of the first report
        self.meter = CostMeter(context.setup, context.device)

    def seconds(self) -> float:
        """Return the seconds of training so far, over all sessions."""
        return self.earlier_seconds + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this callback, for the checkpoint."""
        return {
            "seconds": self.seconds(),
            "device_batches": self.device_batches,
            "worlds": self.worlds,
            "precisions": self.precisions,
            "costs": self.meter.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.earlier_seconds = state_dict["seconds"]
        self.device_batches = list(state_dict.get("device_batches", []))  # missing in older checkpoints
        self.worlds = list(state_dict.get("worlds", []))
        self.precisions = list(state_dict.get("precisions", []))
        self.meter.load_state_dict(state_dict.get("costs"))

    def record_layout(self, accumulation_steps: int) -> None:
        """Record micro-batch, number of devices and precision of this session, where the last one's differ."""
        world = self.group.world
        layout: list[tuple[list[Any], Any]] = [
            (self.device_batches, self.context.recipe.batch_size // (accumulation_steps * world)),
            (self.worlds, world),
            (self.precisions, self.context.execution.precision),
        ]
        for values, value in layout:
            if values[-1:] != [value]:
                values.append(value)

    def layout_changes(self) -> str:
        """Return what changed between sessions: "; device batches 128, 64; precisions bf16, fp32"."""
        layout: dict[str, list[Any]] = {
            "device batches": self.device_batches,
            "devices": self.worlds,
            "precisions": self.precisions,
        }
        changed = {name: values for name, values in layout.items() if len(values) > 1}
        return "".join(f"; {name} {', '.join(map(str, values))}" for name, values in changed.items())

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Discard Lightning's loop state: it counts batches, and sessions may differ in batches per step."""
        del checkpoint["loops"]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        """Seed the random draws from (seed, step) and, if there are several micro-batches, from their number."""
        seed, accumulation_steps, world = self.context.seed, module.accumulation_steps, self.group.world
        self.record_layout(accumulation_steps)
        if accumulation_steps * world == 1:
            torch.manual_seed(derive_seed(seed, "update", batch.step))
        else:
            module.seed_shared_generator(derive_seed(seed, "update", batch.step))
            micro_batch = self.group.rank + batch_idx % accumulation_steps * world
            torch.manual_seed(derive_seed(seed, "update", batch.step, micro_batch))
        if module.needs_curvature_estimate:
            data, optimizer = self.context.training_data, self.context.recipe.optimizer
            number, image = divmod(batch.step, data.train_count)  # of the pass, and of the image within it
            if image == 0:
                assert optimizer.name == "sdlm"
                module.estimate_curvature(*data.curvature_patterns(seed, number, optimizer.samples))

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Report the last step again if the previous session stopped before its report."""
        if self.group.world > 1 and self.context.device == "cpu":
            trainer.strategy.model.register_comm_hook(None, ordered_mean_hook)
        self.restore_measurements(module)
        if self.start and self.start > self.reported:
            self.report(module, self.start)
        elif self.start >= self.context.recipe.steps:
            self.finished = True
            last = self.group.on_rank_zero(lambda _: list(self.context.folder.journal())[-1][0]["metrics"])
            names = (*WINDOW_METRICS, *map(column_metric, self.context.recipe.column_losses))
            self.last_window = {name: last[name] for name in names if name in last}
        if not self.finished:
            self.meter.start_session()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Report and evaluate at the recipe's intervals, then checkpoint if one is due.

        Before a slow evaluation a checkpoint is written; if the run stops in the evaluation, the resumed run
        repeats the report.
        """
        context, done = self.context, batch.step + self.context.block
        if (batch_idx + 1) % module.accumulation_steps:
            return
        module.end_step(done)
        if context.training_data.evaluates_slowly and (
            done % context.eval_every == 0 or done == context.recipe.steps
        ):
            self.checkpoint(trainer, done)
        self.report(module, done)
        now = time.monotonic()
        due = not self.finished and now - self.last_checkpoint >= self.between_checkpoints
        stop_requested, due = self.group.any_rank(not self.finished and self.stop(), due)
        if stop_requested or due:
            self.checkpoint(trainer, done)
        if self.finished:
            self.meter.pause()
        if self.group.rank == 0 and (now - self.last_beat >= HEARTBEAT_SECONDS or self.finished):
            images = (done - self.beat_step) * context.recipe.batch_size if self.beat_step >= 0 else 0
            context.folder.write_progress(done, images / max(now - self.last_beat, 1e-9))
            self.last_beat, self.beat_step = now, done
        if stop_requested:
            trainer.should_stop = True

    def report(self, module: Any, done: int) -> None:
        """Append the metrics that are due after `done` steps to the journal, unless it has them."""
        context = self.context
        self.finished = done >= context.recipe.steps
        metrics: dict[str, float] = {}
        if done % context.log_every == 0 or done == context.recipe.steps:
            self.last_window = module.pop_window_metrics()
            metrics |= self.last_window
        ends, selects = done == context.recipe.steps, context.recipe.select == "val"
        if selects if ends else done % context.eval_every == 0:  # all metrics are measured after the last step
            with self.meter.paused():
                metrics |= context.held_out_errors()
        if not metrics:
            return
        self.add_measurements(module, done, metrics)
        if context.recipe.plateau and f"{context.recipe.plateau.watch}/{context.error_name}" in metrics:
            metrics["train/lr"] = module.lr_of(done)
        if done > self.reported:
            self.group.on_rank_zero(
                lambda _: context.folder.append_journal({"step": done, "time": time.time(), "metrics": metrics})
            )

    def restore_measurements(self, module: Any) -> None:
        """Restore what earlier sessions measured, up to the first step of this one, from the journal.

        A checkpoint may be older than the last evaluation of its step, so it does not hold them.
        """

        def read(_: object) -> list[tuple[int, dict[str, float]]]:
            entries = [entry for entry, _ in self.context.folder.journal()]
            return [(entry["step"], entry["metrics"]) for entry in entries if entry["step"] <= self.start]

        for step, metrics in self.group.on_rank_zero(read):
            self.add_measurements(module, step, metrics)

    def add_measurements(self, module: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Add what a report after `step` steps says; lower the learning rate or keep the network accordingly."""
        recipe = self.context.recipe
        for part, errors in self.errors.items():
            if (name := f"{part}/{self.context.error_name}") in metrics:
                errors[step] = metrics[name]
        for name, value in metrics.items():
            if name.startswith(GRADIENT_NORM):
                self.gradient_norms.setdefault(name, {})[step] = value
        for name, of_first in zip(STEP_SIZES, FIRST_PASS_STEPS, strict=True):
            if name in metrics and step <= self.context.training_data.train_count:
                self.first_pass_steps.setdefault(of_first, metrics[name])
        if recipe.plateau:
            errors, plateau = self.errors[recipe.plateau.watch], recipe.plateau
            self.lr_drops = plateau_drops(errors, plateau.patience, plateau.max_drops)
            module.plateau_steps = self.lr_drops
        if recipe.select == "val" and self.best_step() == step and step >= self.start:
            module.copy_best()

    def best_step(self) -> int:
        """Return the first step of the lowest validation error so far."""
        errors = self.errors["val"]
        return min(errors, key=lambda step: (errors[step], step), default=-1)

    def last_metrics(self) -> dict[str, float]:
        """Return the metrics of training: last window, declared measurements, steps at which the rate fell."""
        drops = {}
        if self.context.recipe.plateau:
            drops = {"train/lr_drops": float(len(self.lr_drops))}
            drops |= {f"train/lr_drop_{number}_step": float(step) for number, step in enumerate(self.lr_drops, 1)}
        reached = steps_to_errors(self.errors["train"], self.context.recipe.steps_to_error_pct)
        norms = {name: window_mean(values) for name, values in self.gradient_norms.items()}
        return self.last_window | drops | reached | norms | self.first_pass_steps

    def costs(self) -> dict[str, float]:
        """Return the time and memory of training: rank 0's time, and the largest memory of a rank."""
        self.meter.peak_bytes = max(self.group.all_gather(self.meter.peak_bytes))
        return self.meter.costs(self.context.recipe.steps * self.context.recipe.batch_size)

    def selected(self) -> str:
        """Return the step selected by its validation error: "; judged: step 4 (validation error 50 %)"."""
        step = self.best_step()
        if self.context.recipe.select == "last" or step < 0:
            return ""
        return f"; judged: step {step} (validation error {self.errors['val'][step]:.4g} %)"

    def checkpoint(self, trainer: Any, done: int) -> None:
        """Write a checkpoint, and lengthen the interval so that checkpoints take at most CHECKPOINT_SHARE."""
        began = time.monotonic()
        with self.meter.paused():
            trainer.save_checkpoint("")
            self.group.on_rank_zero(lambda _: self.context.folder.save_checkpoint(done, self.checkpoint_io.write))
        self.last_checkpoint = time.monotonic()
        affordable = (self.last_checkpoint - began) / CHECKPOINT_SHARE
        self.between_checkpoints = max(checkpoint_interval(), affordable) if checkpoint_interval() else 0.0


def steps_to_errors(errors: Mapping[int, float], below: Iterable[float]) -> dict[str, float]:
    """Return as steps_to_metric the step of the first report with a training error below each of `below`.

    A metric is missing if no report has one. `errors`: step of the report -> training error in percent.
    """
    found: dict[str, float] = {}
    for error_pct in below:
        steps = [step for step, error in sorted(errors.items()) if error < error_pct]
        found |= {steps_to_metric(error_pct): float(step) for step in steps[:1]}
    return found


def window_mean(values: Mapping[int, float]) -> float:
    """Return the mean over all steps of a mean per window. `values`: last step of the window -> its mean."""
    total, before = 0.0, 0
    for step, value in sorted(values.items()):
        total += value * (step - before)
        before = step
    return total / before


def checkpoint_interval() -> float:
    """Return the shortest time between checkpoints, in seconds: REPRO_CHECKPOINT_SECONDS or CHECKPOINT_SECONDS."""
    return env_number("REPRO_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)
