"""One attempt to train a run on the cluster, by one process or by several ranks. Imports Ray."""

import logging
import shutil
import socket
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray

from pipeline.cluster import processes, token
from pipeline.common.environment import available_cpus
from pipeline.common.errors import UserError
from pipeline.common.provenance import runs_per_device
from pipeline.plan.task import Task
from pipeline.schedule.execute import execute_task
from pipeline.schedule.local import reader_count
from pipeline.schedule.stop import StopSignal
from pipeline.track.run_folder import RunFolder

NODE_LOST, RAY_NODE_DIED = "its node was lost", "node has died"  # our message; part of Ray's message

CONTEXT_BYTES = 2**29  # memory of CUDA itself in each process, which PyTorch does not count

RENDEZVOUS_SECONDS = 4 * 3600  # rank 0 may compute statistics of a whole data set while the others wait


# The end of an attempt: how ("ended", "stopped", "failed" or "died"); why (the reason of a stop request, "" where
# the node shuts down, or the error); the Unix time of the stop request that was followed, 0 for none. A plain
# tuple: the supervisor may run other code than the process that trains, so that a class of ours might not
# unpickle.
AttemptResult = tuple[str, str, float]


def attempt(raw: dict[str, Any], *, first: bool = True) -> AttemptResult:
    """Train a task in this process, alone or as one rank of a group.

    Only the first rank writes to the run's log. Errors, UserError included, propagate to the caller.
    """
    task = Task.from_dict(raw)
    folder = RunFolder(task.folder)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns where there is no GPU

    def log_event(kind: str, text: str = "", record: object = None) -> None:
        if first and text:
            folder.log(text)

    stop = StopSignal(folder, processes.node_is_draining)
    if processes.node_is_draining():
        return "stopped", "", 0.0
    limit_memory()
    readers = reader_count(node_devices() * runs_per_device())
    with processes.register_training():
        record = execute_task(task, threads=1, readers=readers, stop=stop, on_event=log_event)
    return ("ended", "", 0.0) if record else ("stopped", stop.why, stop.when)


def limit_memory() -> None:
    """Limit this process to its share of a GPU's memory, so that a run cannot exhaust that of its neighbours."""
    import torch

    if runs_per_device() > 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties().total_memory
        share = total / runs_per_device() - CONTEXT_BYTES
        torch.cuda.set_per_process_memory_fraction(max(share, CONTEXT_BYTES) / total)


def node_devices() -> int:
    """Return the number of training devices of this node: GPUs, or CPUs where it has no GPU."""
    node_id = ray.get_runtime_context().get_node_id()
    resources: dict[str, float] = next((one["Resources"] for one in ray.nodes() if one["NodeID"] == node_id), {})
    return max(1, int(resources.get("GPU", 0) or resources.get("CPU", 0) or available_cpus()))


def memory_advice(error: BaseException) -> str:
    """Return what to do where a GPU's memory was too small; "" for any other error."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        return ""
    shared = runs_per_device()
    share = f"its share of the GPU's memory, which {shared} runs share," if shared > 1 else "the GPU's memory"
    larger = "a larger --gpus-per-run or " if shared > 1 else ""
    return f"{share} is too small; launch it with {larger}a smaller --device-batch"


@ray.remote(max_restarts=0)
class Runner:
    """Actor that trains runs on one device, one after the other."""

    def train(self, raw: dict[str, Any]) -> AttemptResult:
        """Train one run; errors become a "failed" result, so that the actor can train the next run."""
        folder = RunFolder(Path(raw["folder"]))
        try:
            return attempt(raw)
        except UserError as error:
            return "failed", str(error), 0.0
        except Exception as error:  # noqa: BLE001 - any error fails this run only; its traceback goes to the log
            folder.log(traceback.format_exc())
            return "failed", memory_advice(error) or f"{type(error).__name__}: {error}", 0.0


def train_ranks(raw: dict[str, Any], world: int, gpu: bool) -> AttemptResult:
    """Train one run with `world` ranks. Ray Train provides the process group; the ranks do everything else."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipeline.cluster.rendezvous import FileRendezvousConfig, file_init_method

    folder = RunFolder(Path(raw["folder"]))
    storage = token.cluster_folder() / "train"
    storage.mkdir(parents=True, exist_ok=True)
    name = f"{raw['identity']}-{time.time_ns()}"
    backend = "nccl" if gpu else "gloo"
    rendezvous_file = storage / f"{name}.meeting"
    loopback = is_loopback_only()
    config = FileRendezvousConfig if loopback else TorchConfig
    process_group = {"backend": backend, "init_method": file_init_method(rendezvous_file)} if loopback else None
    trainer = TorchTrainer(
        rank_main,
        train_loop_config={"raw": raw, "process_group": process_group},
        torch_config=config(backend=backend, timeout_s=RENDEZVOUS_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=world, use_gpu=gpu, resources_per_worker={"GPU": 1} if gpu else {"CPU": 1}
        ),
        run_config=RunConfig(name=name, storage_path=str(storage)),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - Ray Train reports the death of a rank as one of many errors
        left = folder.unfinished()
        if left.get("why") == "failed":
            return "failed", left["text"], 0.0
        return "died", failure_summary(error), 0.0
    finally:
        shutil.rmtree(storage / name, ignore_errors=True)
        rendezvous_file.unlink(missing_ok=True)
    return ("ended", "", 0.0) if folder.result() else ("stopped", *folder.stop_request())


train_together = ray.remote(num_cpus=0, max_retries=0)(train_ranks)


def rank_main(config: dict[str, Any]) -> None:
    """Train a task as one rank; the entry point of Ray Train's worker processes."""
    import ray.train
    import ray.train.torch
    import torch

    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    raw, context = config["raw"], ray.train.get_context()
    rank = context.get_world_rank()
    if config["process_group"]:
        timeout = timedelta(seconds=RENDEZVOUS_SECONDS)
        torch.distributed.init_process_group(
            **config["process_group"], rank=rank, world_size=context.get_world_size(), timeout=timeout
        )
    folder = RunFolder(Path(raw["folder"]))
    try:
        attempt(raw, first=rank == 0)
    except UserError as error:
        folder.mark_unfinished("failed", str(error))
        raise
    except Exception:
        folder.log(f"rank {rank} on {socket.gethostname()}:\n{traceback.format_exc()}")
        raise


def is_loopback_only() -> bool:
    """Return whether this cluster listens on loopback only."""
    address: str = ray.util.get_node_ip_address()
    return address.startswith("127.")


def failure_summary(error: BaseException) -> str:
    """Return one line on why a group of ranks died: the last lines of the first two ranks that failed."""
    failures = getattr(error, "worker_failures", None) or {}
    if any(RAY_NODE_DIED in str(failure) for failure in failures.values()):
        return NODE_LOST
    texts = [f"rank {rank}: {last_line(failure)}" for rank, failure in sorted(failures.items())]
    return "; ".join(texts[:2]) or last_line(error)


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error))[:300]


def death_reason(error: BaseException) -> str:
    """Return why a training process died, from Ray's error."""
    if isinstance(error, ray.exceptions.NodeDiedError) or RAY_NODE_DIED in str(error):
        return NODE_LOST
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its node ran out of memory"
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
        return "its process was killed"
    return last_line(error)
