"""One run, from its first update to its record, in the process it finds itself in.

Whatever stops it (Ctrl-C, `kill -9`, a full disk), the same call goes on where the last checkpoint stands, and
on a CPU ends with the same bits as a run never stopped: sample order and every random draw are functions of
(seed, step), and the windows over which training errors are averaged are part of the checkpoint.
"""

import ctypes
import io
import logging
import math
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import safetensors.torch
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from lightning_modules.classifier import Classifier, NotConvergedError
from lightning_modules.recipe import Batch
from pipeline.data.ahead import Stopped
from pipeline.data.batches import Feed
from pipeline.data.images import ImageSet
from pipeline.data.manifest import Manifest, to_dict
from pipeline.data.order import key
from pipeline.data.photographs import PhotoFeed
from pipeline.data.shards import ShardSet
from pipeline.experiment import Train
from pipeline.mistakes import UserError
from pipeline.plan import Run
from pipeline.record import FINISHED, NOT_CONVERGED, Record, commit, hardware, libraries, lock_hash
from pipeline.runs import RunFolder
from pipeline.supply import Small, Ways, supply

CHECKPOINT_SECONDS = 30.0  # between checkpoints; how often does not change the numbers
HEARTBEAT_SECONDS = 0.5
EVALUATIONS, REPORTS = 40, 200  # in a run, unless declared
LARGEST_BLOCK = 500  # patterns handed over at once where each makes an update of its own
CHECKPOINT_SHARE = 0.02  # of the time, at most, goes into checkpoints


def train(
    run: Run,
    *,
    identity: str,
    folder: RunFolder,
    images: ImageSet | ShardSet,
    manifest: Manifest,
    code: str,
    threads: int = 1,
    readers: int = 1,
    cache: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> Record | None:
    """Train `run` to its end and write its record, or return None where `stop()` asked to leave it resumable.

    `readers` threads read photographs; `cache` is a folder for what is computed once from the data.

    Raises UserError for what a user can mend (a full disk); a run whose loss is not finite ends with a record
    that says so.
    """
    prepare_process(threads)
    folder.create(describe(run, identity, manifest))
    try:
        job = Job(run, folder, images, manifest, Ways(readers, cache, warn, stop))
    except Stopped:
        return None
    checkpoint = folder.last_checkpoint(warn)
    start = checkpoint[0] if checkpoint else 0
    conductor = Conductor(job, stop, start)
    trainer = pl.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=1,
        max_epochs=1,  # the feed is one long row of batches; it knows where to start and to end
        precision="bf16-mixed" if job.bf16 else "32-true",
        callbacks=[conductor],
        plugins=[PlainFile()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    ended, status = f"{run.recipe.train.steps} steps", FINISHED
    try:
        # A generator has no length: Lightning would hold what is left against all batches since update 0.
        with closing(iter(job.feed(start))) as batches, job.supply.training_goes_on():
            trainer.fit(
                job.module,
                train_dataloaders=batches,
                ckpt_path=checkpoint[1] if checkpoint else None,
                weights_only=True,
            )
    except NotConvergedError as error:
        ended, status = str(error), NOT_CONVERGED
    except Stopped:
        return None
    if status == FINISHED and not conductor.finished:
        return None
    try:
        metrics = job.final_metrics() | conductor.last_window if status == FINISHED else {}
    except Stopped:
        return None
    record = Record(
        identity=identity,
        experiment=run.experiment,
        scale=run.scale,
        variant=run.variant,
        seed=run.seed,
        status=status,  # type: ignore[arg-type]
        ended=ended,
        changes=dict(run.changes),
        declaration=run.declaration,
        manifest=manifest.sha256[:16],
        code=code,
        lock=lock_hash(),
        commit=commit(),
        data=manifest.name,
        metrics=metrics,
        precision="bf16" if job.bf16 else "fp32",
        compiled=job.compiled,
        threads=threads,
        hardware=hardware(),
        libraries=libraries(),
        seconds=conductor.seconds(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder.finish(record, safetensors.torch.save(job.weights()) if status == FINISHED else None)
    return record


def describe(run: Run, identity: str, manifest: Manifest) -> dict[str, Any]:
    """What a run is, for its folder and for tracking while it trains."""
    return {
        "identity": identity,
        "experiment": run.experiment,
        "scale": run.scale,
        "variant": run.variant,
        "seed": run.seed,
        "changes": dict(run.changes),
        "declaration": run.declaration,
        "recipe": run.recipe.model_dump(mode="json"),
        "manifest": to_dict(manifest),
        "commit": commit(),
    }


class Job:
    """The parts of one run: its images, its network, and what is measured on them."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        images: ImageSet | ShardSet,
        manifest: Manifest,
        ways: Ways | None = None,
    ) -> None:
        self.run, self.folder = run, folder
        self.recipe, self.seed = run.recipe.train, run.seed
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.bf16 = self.recipe.precision == "bf16" and has_bf16(self.device)
        self.compiled = self.recipe.compile and has_compiler()
        self.log_every = self.recipe.log_every or max(1, self.recipe.steps // REPORTS)
        self.eval_every = self.recipe.eval_every or max(1, self.recipe.steps // EVALUATIONS)
        device, ways = torch.device(self.device), ways or Ways()
        self.supply = supply(images, run.recipe.data, device, sha256=manifest.sha256, ways=ways)
        self.module = module_for(run, manifest, compiled=self.compiled)
        self.block = block_size(self.recipe, self.log_every, self.eval_every, self.supply.count)

    def feed(self, start: int) -> Feed | PhotoFeed:
        """The training batches from update `start` to the last."""
        return self.supply.feed(self.recipe, self.seed, start, self.block)

    def held_out_errors(self) -> dict[str, float]:
        """Errors, of the network as it is now, on the test set and on the validation set if there is one."""
        return self.supply.held_out(self.module.network, self.module.loss, bf16=self.bf16)

    def final_metrics(self) -> dict[str, float]:
        """What is measured once, on the last model."""
        newest = self.folder.checkpoint_files()[:1]
        kept = self.folder.judged(newest[0].name if newest else "")
        return self.supply.final(self.module.network, self.module.loss, bf16=self.bf16, kept=kept)

    def pass_patterns(self, number: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` training images and labels drawn for pass `number`, for estimates made before it."""
        if not isinstance(self.supply, Small):
            raise UserError("optimizer 'sdlm' learns from small images in memory, not from photographs in shards")
        return self.supply.patterns(self.seed, number, count)

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters and buffers, for safetensors."""
        return {
            name: value.detach().cpu().contiguous() for name, value in self.module.network.state_dict().items()
        }


class Conductor(pl.Callback):
    """Between updates: seeds the draws, reports, evaluates, checkpoints, and stops when asked."""

    def __init__(self, job: Job, stop: Callable[[], bool], start: int) -> None:
        self.job, self.stop, self.start = job, stop, start
        self.reported = job.folder.mend_journal()  # journal lines up to this step exist already
        self.finished = False
        self.last_window: dict[str, float] = {}
        self.spent = 0.0  # seconds of training in earlier sessions
        self.started = self.last_beat = self.last_checkpoint = time.monotonic()
        self.between_checkpoints = checkpoint_seconds()
        self.beat_step = -1

    def seconds(self) -> float:
        """Seconds of training so far, over all sessions."""
        return self.spent + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.spent = state_dict["seconds"]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        """Every random draw of an update depends on (seed, step) alone."""
        torch.manual_seed(key(self.job.seed, "update", batch.step))
        images_per_pass = self.job.supply.count
        if module.wants_pass_patterns and batch.step % images_per_pass == 0:
            number = batch.step // images_per_pass
            module.start_pass(*self.job.pass_patterns(number, self.job.recipe.optimizer.samples))  # type: ignore[union-attr]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """A run stopped while it was judged is judged now."""
        if self.start and self.start > self.reported:
            self.report(module, self.start)
        elif self.start >= self.job.recipe.steps:
            self.finished = True
            *_, (last, _) = self.job.folder.journal()
            self.last_window = {
                name: value for name, value in last["metrics"].items() if name.startswith("train/")
            }

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Report and evaluate where the recipe says; then, and only then, checkpoint.

        But for what takes long to judge: there the checkpoint comes first, and a resumed run reports what is due.
        """
        job, done = self.job, batch.step + self.job.block
        if job.supply.is_slow and (done % job.eval_every == 0 or done == job.recipe.steps):
            self.checkpoint(trainer, done)
        self.report(module, done)
        asked_to_stop = not self.finished and self.stop()
        now = time.monotonic()
        if asked_to_stop or (not self.finished and now - self.last_checkpoint >= self.between_checkpoints):
            self.checkpoint(trainer, done)
        if now - self.last_beat >= HEARTBEAT_SECONDS or self.finished:
            images = (done - self.beat_step) * job.recipe.batch_size if self.beat_step >= 0 else 0
            job.folder.report(done, images / max(now - self.last_beat, 1e-9))
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
            job.folder.append({"step": done, "time": time.time(), "metrics": metrics})

    def checkpoint(self, trainer: Any, done: int) -> None:
        """Write one; those of large networks, which take long, come more rarely."""
        began = time.monotonic()
        self.job.folder.save_checkpoint(done, lambda path: trainer.save_checkpoint(path))
        self.last_checkpoint = time.monotonic()
        seldom = (self.last_checkpoint - began) / CHECKPOINT_SHARE
        self.between_checkpoints = max(checkpoint_seconds(), seldom) if checkpoint_seconds() else 0.0


class PlainFile(TorchCheckpointIO):
    """Checkpoints written where they belong; Lightning's own way is through the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """In one piece: on a full disk torch raises a RuntimeError that names no cause, this an OSError."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).write_bytes(content.getbuffer())


def module_for(run: Run, manifest: Manifest, *, compiled: bool) -> Classifier:
    """The run's LightningModule, initialised from its seed."""
    recipe = run.recipe.train
    kind: type[Classifier] = Classifier
    if recipe.optimizer.name == "sdlm":
        from lightning_modules.sdlm import OnlineClassifier

        kind = OnlineClassifier
    torch.manual_seed(key(run.seed, "weights"))
    try:
        return kind(
            network=run.recipe.model.name,
            network_args=run.recipe.model.args,
            classes=len(manifest.classes),
            channels=manifest.image[0],
            loss=recipe.loss.model_dump(mode="json"),
            lr=recipe.lr,
            lr_drops=recipe.lr_drops.model_dump(mode="json") if recipe.lr_drops else None,
            warmup=recipe.warmup.model_dump(mode="json") if recipe.warmup else None,
            optimizer=recipe.optimizer.model_dump(mode="json"),
            channels_last=recipe.channels_last,
            compile=compiled,
            lr_end=None if recipe.lr_end is None else (recipe.lr_end, recipe.steps),
        )
    except ValueError as error:  # a network and a way to learn that do not fit
        raise UserError(str(error)) from error


def block_size(recipe: Train, log_every: int, eval_every: int, images: int) -> int:
    """How many updates one training step makes: 1, or for one-pattern-at-a-time learning as many as fit.

    A block ends wherever something is reported, evaluated or estimated, or the learning rate drops.
    """
    if recipe.optimizer.name != "sdlm":
        return 1
    drops = (recipe.lr_drops.at or ()) if recipe.lr_drops else ()
    common = math.gcd(recipe.steps, log_every, eval_every, images, *drops)
    return max(n for n in range(1, min(common, LARGEST_BLOCK) + 1) if common % n == 0)


def prepare_process(threads: int) -> None:
    """Threads, quiet libraries, and an allocator that keeps its pages between steps."""
    torch.set_num_threads(threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")  # of torch about its own parts
    keep_pages()


def keep_pages() -> None:
    """Stop glibc from handing memory back after every step: page faults cost up to 30 % of a step on a CPU.

    mallopt(3): M_MMAP_THRESHOLD -3, M_TRIM_THRESHOLD -1, M_TOP_PAD -2. Elsewhere than on glibc: nothing.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((-3, 32 * 2**20 - 1), (-1, 2**31 - 1), (-2, 256 * 2**20)):
            libc.mallopt(parameter, value)


def has_bf16(device: str) -> bool:
    """Whether the device computes in bfloat16 itself, instead of emulating it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return hasattr(torch.ops, "mkldnn") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler it needs, for a CPU's kernels and a GPU's launchers alike."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"]))


def checkpoint_seconds() -> float:
    """Seconds between checkpoints; REPRO_CHECKPOINT_SECONDS overrides, for machines that may vanish."""
    return float(os.environ.get("REPRO_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))
