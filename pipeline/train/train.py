"""One run, from its first update to its record, in the process or the group of processes it finds itself in.

Whatever stops it (Ctrl-C, `kill -9`, a full disk), the same call goes on where the last checkpoint stands, and
on a CPU ends with the same bits as a run never stopped: sample order and every random draw are functions of
(seed, step), and the windows over which training errors are averaged are part of the checkpoint.

On several devices each rank of the group calls `train`. The global batch stays the recipe's: it is cut into groups
of images that go through a device at once, which are the same on any number of devices that can share them. Rank 0
alone writes files; what stops one rank stops all of them, at the same step.
"""

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytorch_lightning as pl
import safetensors.torch
import torch
from pytorch_lightning.strategies import DDPStrategy

from lightning_modules.classifier import NotConvergedError
from pipeline.common.errors import UserError
from pipeline.common.provenance import commit, hardware_name, library_versions, lock_hash
from pipeline.data.images import ImageSet
from pipeline.data.manifest import Manifest, manifest_to_dict
from pipeline.data.prefetch import StopRequested
from pipeline.data.shards import ShardSet
from pipeline.declare.recipe import Train
from pipeline.plan.expand import Run
from pipeline.track.record import FINISHED, NOT_CONVERGED, Record, describe_run
from pipeline.track.run_folder import RunFolder
from pipeline.train.callback import TrainingCallback
from pipeline.train.context import RunContext
from pipeline.train.inputs import ReadOptions, require_counts
from pipeline.train.lightning import RankEnvironment
from pipeline.train.process import prepare_process
from pipeline.train.ranks import RankGroup, current_ranks, micro_batches


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
    require_counts(images, manifest)
    prepare_process(threads)
    group = current_ranks()
    cut = count_micro_batches(run.recipe.train, group, device_batch)
    tell = warn if group.rank == 0 else lambda _: None
    group.on_rank_zero(lambda _: folder.create(describe_run(run, identity, manifest_to_dict(manifest))))
    try:
        ways = ReadOptions(readers, cache, tell, stop, group, accumulation_steps=cut // group.world)
        job = RunContext(run, folder, images, manifest, ways)
    except StopRequested:
        return None
    checkpoint = group.on_rank_zero(lambda _: folder.last_checkpoint(tell))
    start = checkpoint[0] if checkpoint else 0
    conductor = TrainingCallback(job, stop, start)
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
        plugins=[conductor.checkpoint_io, RankEnvironment(group)],
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
        with closing(iter(job.feed(start))) as batches, job.training_data.training_goes_on():
            trainer.fit(
                job.module,
                train_dataloaders=batches,
                ckpt_path=checkpoint[1] if checkpoint else None,
                weights_only=True,
            )
    except NotConvergedError as error:
        ended, status = str(error), NOT_CONVERGED
    except StopRequested:
        return None
    if status == FINISHED and not conductor.finished:
        return None
    try:
        metrics = job.final_metrics() | conductor.last_window if status == FINISHED else {}
    except StopRequested:
        return None
    record = Record(  # of which rank 0's is kept
        identity=identity,
        experiment=run.experiment,
        scale=run.scale,
        variant=run.variant,
        seed=run.seed,
        status=status,  # type: ignore[arg-type]
        ended=ended + conductor.layout_changes(),
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
        hardware=hardware_name(),
        libraries=library_versions(),
        seconds=conductor.seconds(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        world=group.world,
        device_batch=run.recipe.train.batch_size // cut,
    )
    weights = safetensors.torch.save(job.weights()) if status == FINISHED and group.rank == 0 else None
    group.on_rank_zero(lambda _: folder.finish(record, weights))
    return group.broadcast(record)


def count_micro_batches(recipe: Train, group: RankGroup, device_batch: int | None) -> int:
    """Into how many groups of images a global batch is cut; UserError where `group` cannot share it like that."""
    if recipe.optimizer.name == "sdlm" and (group.world > 1 or device_batch is not None):
        raise UserError(
            "optimizer 'sdlm' learns from one pattern after the other, which cannot be shared or cut: train it on"
            " one device, and without a device batch"
        )
    return micro_batches(recipe.batch_size, group.world, device_batch)
