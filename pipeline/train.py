"""One run, from its first update to its record, in the process or the group of processes it finds itself in.

Whatever stops it (Ctrl-C, `kill -9`, a full disk), the same call goes on where the last checkpoint stands, and
on a CPU ends with the same bits as a run never stopped: sample order and every random draw are functions of
(seed, step), and the windows over which training errors are averaged are part of the checkpoint.

On several devices each rank of the group calls `train`. The global batch stays the recipe's: it is cut into groups
of images that go through a device at once, which are the same on any number of devices that can share them. Rank 0
alone writes files; what stops one rank stops all of them, at the same step.
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
import torch.distributed as dist
from pytorch_lightning.plugins.environments import ClusterEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
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
from pipeline.group import Group, current, groups
from pipeline.home import number_named
from pipeline.mistakes import UserError
from pipeline.plan import Run
from pipeline.record import FINISHED, NOT_CONVERGED, Record, commit, describe, hardware, libraries, lock_hash
from pipeline.runs import RunFolder
from pipeline.supply import Small, Ways, require_counted, supply

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
    device_batch: int | None = None,
    cache: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> Record | None:
    """Train `run` to its end and write its record, or return None where `stop()` asked to leave it resumable.

    Called by every rank of a group, all of which return the same; one that is asked to stop stops all. `threads`
    compute and `readers` read photographs, on each of them; at most `device_batch` images go through a device at a
    time, and a larger share in several parts; `cache` is a folder for what is computed once from the data.

    Raises UserError for what a user can mend (a full disk, devices that cannot share the batch); a run whose loss
    is not finite ends with a record that says so.
    """
    require_counted(images, manifest)
    prepare_process(threads)
    group = current()
    cut = cut_into(run.recipe.train, group, device_batch)
    tell = warn if group.rank == 0 else lambda _: None
    group.led(lambda _: folder.create(describe(run, identity, to_dict(manifest))))
    try:
        ways = Ways(readers, cache, tell, stop, group, parts=cut // group.world)
        job = Job(run, folder, images, manifest, ways)
    except Stopped:
        return None
    checkpoint = group.led(lambda _: folder.last_checkpoint(tell))
    start = checkpoint[0] if checkpoint else 0
    conductor = Conductor(job, stop, start)
    trainer = pl.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=[torch.cuda.current_device()] if job.device == "cuda" and group.world > 1 else 1,
        num_nodes=group.world,
        # Every parameter takes part in every update: networks that leave blocks out give these gradients of zero.
        strategy=DDPStrategy(broadcast_buffers=False) if group.world > 1 else "auto",
        accumulate_grad_batches=job.module.parts,
        max_epochs=1,  # the feed is one long row of batches; it knows where to start and to end
        precision="bf16-mixed" if job.bf16 else "32-true",
        callbacks=[conductor],
        plugins=[conductor.content, Ranks(group)],
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
    record = Record(  # of which rank 0's is kept
        identity=identity,
        experiment=run.experiment,
        scale=run.scale,
        variant=run.variant,
        seed=run.seed,
        status=status,  # type: ignore[arg-type]
        ended=ended + conductor.changed(),
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
        world=group.world,
        device_batch=run.recipe.train.batch_size // cut,
    )
    weights = safetensors.torch.save(job.weights()) if status == FINISHED and group.rank == 0 else None
    group.led(lambda _: folder.finish(record, weights))
    return group.first(record)


def cut_into(recipe: Train, group: Group, device_batch: int | None) -> int:
    """Into how many groups of images a global batch is cut; UserError where `group` cannot share it like that."""
    if recipe.optimizer.name == "sdlm" and (group.world > 1 or device_batch is not None):
        raise UserError(
            "optimizer 'sdlm' learns from one pattern after the other, which cannot be shared or cut: train it on"
            " one device, and without a device batch"
        )
    return groups(recipe.batch_size, group.world, device_batch)


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
        ways = ways or Ways()
        self.group = ways.group
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        bf16, compiled = self.recipe.precision == "bf16", self.recipe.compile
        lacking = self.group.any(bf16 and not has_bf16(self.device), compiled and not has_compiler())  # some rank
        self.bf16, self.compiled = bf16 and not lacking[0], compiled and not lacking[1]
        self.log_every = self.recipe.log_every or max(1, self.recipe.steps // REPORTS)
        self.eval_every = self.recipe.eval_every or max(1, self.recipe.steps // EVALUATIONS)
        device = torch.device(self.device)
        self.supply = supply(images, run.recipe.data, device, sha256=manifest.sha256, ways=ways)
        self.module = module_for(run, manifest, compiled=self.compiled)
        self.module.parts = ways.parts
        self.block = block_size(self.recipe, self.log_every, self.eval_every, self.supply.count)

    def feed(self, start: int) -> Feed | PhotoFeed:
        """The training batches from update `start` to the last."""
        return self.supply.feed(self.recipe, self.seed, start, self.block)

    def held_out_errors(self) -> dict[str, float]:
        """Errors, of rank 0's network as it is now, on the test set and on the validation set if there is one."""
        self.group.same_buffers(self.module.network)
        return self.supply.held_out(self.module.network, self.module.loss, bf16=self.bf16)

    def final_metrics(self) -> dict[str, float]:
        """What is measured once, on the last model of rank 0."""
        self.module.to(self.device)  # a trainer leaves it on the CPU
        self.group.same_buffers(self.module.network)
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
        self.job, self.stop, self.start, self.group = job, stop, start, job.group
        # Journal lines up to this step exist already.
        self.reported = self.group.led(lambda _: job.folder.mend_journal())
        self.content = Content()
        self.finished = False
        self.last_window: dict[str, float] = {}
        self.spent = 0.0  # seconds of training in earlier sessions
        self.started = self.last_beat = self.last_checkpoint = time.monotonic()
        self.between_checkpoints = checkpoint_seconds()
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

    def note(self, parts: int) -> None:
        """How this session makes its updates, if that is not how the last one did."""
        world = self.group.world
        device_batch = self.job.recipe.batch_size // (parts * world)
        for used, now in ((self.device_batches, device_batch), (self.worlds, world)):
            if used[-1:] != [now]:
                used.append(now)

    def changed(self) -> str:
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
        self.note(parts)
        if parts * world == 1:
            torch.manual_seed(key(seed, "update", batch.step))
        else:
            module.seed_shared_draws(key(seed, "update", batch.step))
            torch.manual_seed(key(seed, "update", batch.step, self.group.rank + batch_idx % parts * world))
        images_per_pass = self.job.supply.count
        if module.wants_pass_patterns and batch.step % images_per_pass == 0:
            number = batch.step // images_per_pass
            module.start_pass(*self.job.pass_patterns(number, self.job.recipe.optimizer.samples))  # type: ignore[union-attr]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """A run stopped while it was judged is judged now."""
        if self.group.world > 1 and self.job.device == "cpu":
            trainer.strategy.model.register_comm_hook(None, mean_in_order)
        if self.start and self.start > self.reported:
            self.report(module, self.start)
        elif self.start >= self.job.recipe.steps:
            self.finished = True
            last = self.group.led(lambda _: list(self.job.folder.journal())[-1][0]["metrics"])
            self.last_window = {name: value for name, value in last.items() if name.startswith("train/")}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Report and evaluate where the recipe says; then, and only then, checkpoint.

        But for what takes long to judge: there the checkpoint comes first, and a resumed run reports what is due.
        """
        job, done = self.job, batch.step + self.job.block
        if (batch_idx + 1) % module.parts:
            return
        if job.supply.is_slow and (done % job.eval_every == 0 or done == job.recipe.steps):
            self.checkpoint(trainer, done)
        self.report(module, done)
        now = time.monotonic()
        due = not self.finished and now - self.last_checkpoint >= self.between_checkpoints
        asked_to_stop, due = self.group.any(not self.finished and self.stop(), due)
        if asked_to_stop or due:
            self.checkpoint(trainer, done)
        if self.group.rank == 0 and (now - self.last_beat >= HEARTBEAT_SECONDS or self.finished):
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
            self.group.led(lambda _: job.folder.append({"step": done, "time": time.time(), "metrics": metrics}))

    def checkpoint(self, trainer: Any, done: int) -> None:
        """Write one; those of large networks, which take long, come more rarely."""
        began = time.monotonic()
        trainer.save_checkpoint("")
        self.group.led(lambda _: self.job.folder.save_checkpoint(done, self.content.write))
        self.last_checkpoint = time.monotonic()
        seldom = (self.last_checkpoint - began) / CHECKPOINT_SHARE
        self.between_checkpoints = max(checkpoint_seconds(), seldom) if checkpoint_seconds() else 0.0


class Content(TorchCheckpointIO):
    """A checkpoint on its way from the trainer, which ranks wait in for each other, to a file.

    Lightning's own way is through the system's temporary folder; and on a full disk torch raises a RuntimeError
    that names no cause, `write` an OSError.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Hold it."""
        self.held = io.BytesIO()
        torch.save(checkpoint, self.held)

    def write(self, path: Path) -> None:
        """Write what is held, which is then no longer."""
        path.write_bytes(self.held.getbuffer())
        del self.held


class Ranks(ClusterEnvironment):
    """What a trainer asks about processes that somebody else has started, with one device for each."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    creates_processes_externally = True
    main_address, main_port = "", 0  # they have found each other already

    @staticmethod
    def detect() -> bool:
        """Never by itself."""
        return False

    def world_size(self) -> int:
        """All of them."""
        return self.group.world

    def global_rank(self) -> int:
        """Which of them this is."""
        return self.group.rank

    def node_rank(self) -> int:
        """Each counts as a node of its own."""
        return self.group.rank

    def local_rank(self) -> int:
        """With one device."""
        return 0

    def set_world_size(self, size: int) -> None:
        """Nothing to set."""

    def set_global_rank(self, rank: int) -> None:
        """Nothing to set."""


def mean_in_order(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean of some gradients over all ranks, which are added up in their order; for processors.

    There, an all-reduce adds in an order that depends on the place in the bucket, and after the first update of a
    session DDP fills its buckets anew: three ranks or more would end with other bits if they resumed.
    """
    mine = bucket.buffer()
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    arrived = dist.all_gather(every, mine, async_op=True).get_future()
    return arrived.then(lambda _: sum(every[1:], every[0]).div_(len(every)))


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
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else Lightning gives each of several ranks all cores
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
    return number_named("REPRO_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)
