"""Train one run from its first optimizer step to its record, in one process or as one rank of several.

A run that was stopped by Ctrl-C, `kill -9` or a full disk resumes from its last checkpoint when `train` is called
again. On a CPU it ends with the same bits as an uninterrupted run: sample order and all random draws are functions
of (seed, step), and the window over which training errors are averaged is part of the checkpoint.

On several devices every rank calls `train`. The recipe's global batch is split into micro-batches, which are the
same on any number of devices that can share them. Only rank 0 writes files. An error or a stop request on one rank
stops all ranks at the same step.
"""

from collections.abc import Callable
from contextlib import closing

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from lightning_modules.classifier import NotConvergedError
from pipeline.common.errors import UserError
from pipeline.data.manifest import manifest_from_dict
from pipeline.data.prefetch import StopRequested, never_stop
from pipeline.declare.training import Train
from pipeline.plan.expand import Run
from pipeline.plan.task import Task
from pipeline.track.record import FINISHED, NOT_CONVERGED, Record, make_record
from pipeline.track.run_folder import RunFolder
from pipeline.train.callback import TrainingCallback
from pipeline.train.context import RunContext
from pipeline.train.inputs import AnyImageSet, ReadOptions, require_counts
from pipeline.train.lightning import RankEnvironment
from pipeline.train.process import explain_compile_errors, prepare_process
from pipeline.train.ranks import RankGroup, current_ranks, micro_batches


def train(
    task: Task,
    images: AnyImageSet,
    *,
    threads: int = 1,
    readers: int = 1,
    stop: Callable[[], bool] = never_stop,
    report: Callable[[str], None] = lambda _: None,
) -> Record | None:
    """Train the task's run on `images`, write its record and return it; None if `stop()` ended it, resumable.

    Every rank calls this function and gets the same result. On each rank up to `threads` threads compute and
    `readers` threads read sharded images. On rank 0 `report` is called with messages for the user.

    Raises UserError for errors that the user can fix, such as a full disk or devices that cannot share the batch.
    A run whose loss is not finite ends with a record of status "not converged".
    """
    run, folder, manifest = task.run, RunFolder(task.folder), manifest_from_dict(task.manifest)
    assert isinstance(run, Run)
    require_counts(images, manifest)
    prepare_process(threads)
    ranks = current_ranks()
    count = count_micro_batches(run.recipe.train, ranks, task.device_batch)
    if ranks.rank:
        report = discard_report
    ranks.on_rank_zero(lambda _: folder.create(task.description()))
    options = ReadOptions(
        readers=readers,
        cache=task.data_root / ".cache",
        report=report,
        stop=stop,
        group=ranks,
        accumulation_steps=count // ranks.world,
    )
    try:
        context = RunContext(run, folder, images, manifest, options, threads=threads)
        checkpoint = ranks.on_rank_zero(lambda _: folder.last_checkpoint(report))
        start = checkpoint[0] if checkpoint else 0
        if task.needs and not checkpoint:
            context.start_from(RunFolder(task.folder.parent / task.needs[0]))
        callback = TrainingCallback(context, stop, start)
        with explain_compile_errors():
            status, ended = fit(context, callback, start, str(checkpoint[1]) if checkpoint else None)
        if status == FINISHED and not callback.finished:
            return None
        metrics = context.final_metrics() | callback.last_metrics() if status == FINISHED else {}
    except StopRequested:
        return None
    record = make_record(  # rank 0's is written and returned
        task,
        status=status,  # type: ignore[arg-type]
        ended=ended + callback.selected() + callback.layout_changes(),
        metrics=metrics,
        precision=context.execution.precision,
        channels_last=context.execution.channels_last,
        compiled=context.execution.compiled,
        threads=context.execution.threads,
        step_seconds=context.choice.step_seconds,
        seconds=callback.seconds(),
        costs=callback.costs() if status == FINISHED else {},
        world=ranks.world,
        members=task.needs,
        device_batch=run.recipe.train.batch_size // count,
    )
    weights = context.weights() if status == FINISHED and ranks.rank == 0 else {}
    ranks.on_rank_zero(lambda _: folder.finish(record, weights))
    return ranks.broadcast(record)


def fit(context: RunContext, callback: TrainingCallback, start: int, checkpoint: str | None) -> tuple[str, str]:
    """Run Lightning's training loop from step `start`; return status and description of the end of training."""
    ranks, is_gpu = context.group, context.device == "cuda"
    trainer = pl.Trainer(
        accelerator="gpu" if is_gpu else "cpu",
        devices=[torch.cuda.current_device()] if is_gpu and ranks.world > 1 else 1,
        num_nodes=ranks.world,
        # Every parameter takes part in every step: networks that skip blocks give their parameters zero gradients.
        strategy=DDPStrategy(broadcast_buffers=False) if ranks.world > 1 else "auto",
        accumulate_grad_batches=context.module.accumulation_steps,
        gradient_clip_val=context.recipe.clip_norm,
        max_epochs=1,  # the feed is one sequence of batches over all epochs
        precision="bf16-mixed" if context.bf16 else "32-true",
        callbacks=[callback],
        plugins=[callback.checkpoint_io, RankEnvironment(ranks)],
        default_root_dir=context.folder.path,  # in a Slurm job, Lightning looks for hpc_ckpt_*.ckpt in it
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    try:
        # A generator has no length: Lightning would compare the batches left with all batches since step 0.
        with closing(iter(context.feed(start))) as batches, context.training_data.during_training():  # type: ignore[type-var]
            trainer.fit(context.module, train_dataloaders=batches, ckpt_path=checkpoint, weights_only=True)
    except NotConvergedError as error:
        return NOT_CONVERGED, str(error)
    return FINISHED, f"{context.recipe.steps} steps"


def discard_report(_text: str) -> None:
    """Discard a message, on all ranks but 0."""


def count_micro_batches(recipe: Train, ranks: RankGroup, device_batch: int | None) -> int:
    """Return the number of micro-batches of a global batch. Raises UserError if `ranks` cannot share it."""
    if recipe.optimizer.name == "sdlm" and (ranks.world > 1 or device_batch is not None):
        raise UserError(
            "optimizer 'sdlm' learns one pattern at a time, so its batch cannot be split: train on one device,"
            " without a device batch"
        )
    return micro_batches(recipe.batch_size, ranks.world, device_batch)
