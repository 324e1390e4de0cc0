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
from pipeline.schedule.execute import execute_task
from pipeline.schedule.local import reader_count
from pipeline.schedule.task import Task
from pipeline.track.run_folder import RunFolder

STOP_POLL_SECONDS = 0.25  # between looks at whether a run was asked to stop

LOST, NODE_DIED = "its machine was lost", "node has died"  # ours, and within Ray's words for it

RENDEZVOUS_SECONDS = 4 * 3600  # a rank may wait so long for another: the first computes what all need of the data

AttemptResult = tuple[
    str, str, float
]  # how an attempt ended ("ended", "stopped", "failed", "died"), why, asked when


class StopSignal:
    """Whether a run should stop: by whoever asks, or since its machine is about to end. Cheap to call."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.looked, self.answer = folder, -STOP_POLL_SECONDS, False
        self.why, self.when = "", 0.0  # of the request that was heard; "": the machine is about to end

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self.looked >= STOP_POLL_SECONDS:
            self.looked = now
            if not self.answer:
                self.why, self.when = self.folder.stop_request()
                self.answer = bool(self.why) or processes.node_is_draining()
        return self.answer


def attempt(raw: dict[str, Any], *, first: bool = True) -> AttemptResult:
    """Train a task in this process, alone or as one of the ranks of its group; UserError and whatever else raised
    goes into the run's log, by each rank, and is raised again.
    """
    task = Task.from_dict(raw)
    folder = RunFolder(task.folder)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    def say(kind: str, text: str = "", record: object = None) -> None:
        if first and text:
            folder.log(text)

    asked = StopSignal(folder)
    if processes.node_is_draining():
        return "stopped", "", 0.0
    with processes.register_training():
        record = execute_task(task, threads=1, readers=reader_count(devices_here()), stop=asked, say=say)
    return ("ended", "", 0.0) if record else ("stopped", asked.why, asked.when)


def devices_here() -> int:
    """Devices of this machine that runs are trained on: GPUs, else processors."""
    own = ray.get_runtime_context().get_node_id()
    mine: dict[str, float] = next((one["Resources"] for one in ray.nodes() if one["NodeID"] == own), {})
    return max(1, int(mine.get("GPU", 0) or mine.get("CPU", 0) or available_cpus()))


@ray.remote(max_restarts=0)
class Runner:
    """A process that trains runs of one device, one after the other."""

    def train(self, raw: dict[str, Any]) -> AttemptResult:
        """One run; what a user can mend is an answer, not an error."""
        folder = RunFolder(Path(raw["folder"]))
        try:
            return attempt(raw)
        except UserError as error:
            return "failed", str(error), 0.0
        except Exception as error:  # noqa: BLE001 - whatever it is, the user sees it and the other runs go on
            folder.log(traceback.format_exc())
            return "failed", f"{type(error).__name__}: {error}", 0.0


def do_nothing(*_: object) -> None:
    """There is nothing to do."""


def train_ranks(raw: dict[str, Any], world: int, gpu: bool) -> AttemptResult:
    """One run by `world` ranks, through Ray Train; the process group is its, all else is `train`'s."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.torch.config import _TorchBackend

    class NoDoor(_TorchBackend):
        """Leaves it to the ranks to meet: torch's own way for it listens on every network of the machine."""

        on_start = do_nothing

    class Meeting(TorchConfig):
        """How the ranks find each other: by a file where all are on one machine that listens to no other."""

        backend_cls = NoDoor if is_loopback_only() else _TorchBackend

    folder = RunFolder(Path(raw["folder"]))
    place = token.cluster_folder() / "train"
    place.mkdir(parents=True, exist_ok=True)
    name = f"{raw['identity']}-{time.time_ns()}"
    backend = "nccl" if gpu else "gloo"
    meet = {"backend": backend, "init_method": f"file://{place / name}.meeting"} if is_loopback_only() else None
    trainer = TorchTrainer(
        rank_main,
        train_loop_config={"raw": raw, "meet": meet},
        torch_config=Meeting(backend=backend, timeout_s=RENDEZVOUS_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=world, use_gpu=gpu, resources_per_worker={"GPU": 1} if gpu else {"CPU": 1}
        ),
        run_config=RunConfig(name=name, storage_path=str(place)),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - a rank's death comes as one of many errors
        left = folder.unfinished()
        if left.get("why") == "failed":
            return "failed", left["text"], 0.0
        return "died", failure_summary(error), 0.0
    finally:
        shutil.rmtree(place / name, ignore_errors=True)
        (place / f"{name}.meeting").unlink(missing_ok=True)
    return ("ended", "", 0.0) if folder.result() else ("stopped", *folder.stop_request())


train_together = ray.remote(num_cpus=0, max_retries=0)(train_ranks)


def rank_main(config: dict[str, Any]) -> None:
    """What one process of a group does."""
    import ray.train
    import ray.train.torch
    import torch

    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    raw, context = config["raw"], ray.train.get_context()
    number = context.get_world_rank()
    if config["meet"]:
        limit = timedelta(seconds=RENDEZVOUS_SECONDS)
        torch.distributed.init_process_group(
            **config["meet"], rank=number, world_size=context.get_world_size(), timeout=limit
        )
    folder = RunFolder(Path(raw["folder"]))
    try:
        attempt(raw, first=number == 0)
    except UserError as error:
        folder.mark_unfinished("failed", str(error))
        raise
    except Exception:
        folder.log(f"rank {number} on {socket.gethostname()}:\n{traceback.format_exc()}")
        raise


def is_loopback_only() -> bool:
    """Whether this cluster listens on its own machine only."""
    return ray.util.get_node_ip_address().startswith("127.")


def failure_summary(error: BaseException) -> str:
    """Why an attempt died, in a line: of a group's ranks, the first that says more than that another is gone."""
    failures = getattr(error, "worker_failures", None) or {}
    if any(NODE_DIED in str(one) for one in failures.values()):
        return LOST
    texts = [f"rank {number}: {last_line(one)}" for number, one in sorted(failures.items())]
    return "; ".join(texts[:2]) or last_line(error)


def last_line(error: BaseException) -> str:
    """The line that says most of what an error prints: its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error))[:300]


def death_reason(error: BaseException) -> str:
    """How a process ended that did not say so itself."""
    if isinstance(error, ray.exceptions.NodeDiedError) or NODE_DIED in str(error):
        return LOST
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its machine ran out of memory"
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
        return "its process was ended from outside"
    return last_line(error)
