"""Processes that train runs on the devices of a Ray cluster. Imports Ray."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline.cluster.attempt import Runner, is_loopback_only, train_together
from pipeline.cluster.launches import Launch
from pipeline.common.paths import data_folder, home
from pipeline.plan.task import Task

HEAD_RESOURCE = {"node:__internal_head__": 0.001}  # Ray schedules an actor with this resource on the head


@dataclass
class Attempt:
    """A run that is being trained."""

    task: Task
    launch: Launch
    began: str  # UTC, ISO 8601
    step: int  # of the checkpoint it started from, 0 for none
    gpu: bool
    runner: Any = None  # actor handle, for a run on one device
    reused: bool = False  # the actor has trained another run before


@dataclass
class IdleWorker:
    """A Runner actor that waits for a run."""

    runner: Any
    kind: tuple[str, bool]  # code folder, uses a GPU
    since: float = field(default_factory=time.monotonic)


class WorkerPool:
    """Starts attempts, and keeps the actors of finished ones for the next run of the same kind."""

    def __init__(self) -> None:
        self.idle: list[IdleWorker] = []
        self.had_gpu = False

    def uses_gpus(self) -> bool:
        """Return whether runs train on GPUs: True once the cluster had a GPU, even if all are lost for a while."""
        self.had_gpu = self.had_gpu or ray.cluster_resources().get("GPU", 0) > 0
        return self.had_gpu

    def device_count(self) -> int:
        """Return the number of devices of the cluster."""
        return int(ray.cluster_resources().get("GPU" if self.uses_gpus() else "CPU", 0))

    def start(self, attempt: Attempt) -> Any:
        """Start an attempt and return the reference to its AttemptResult."""
        raw, devices = attempt.task.to_dict(), task_devices(attempt.launch, attempt.task)
        hide_gpus = {} if attempt.gpu else {"CUDA_VISIBLE_DEVICES": ""}
        runtime_env = {"env_vars": worker_environment(attempt.launch) | hide_gpus}
        if devices > 1:
            self.kill_idle(lambda worker: True)
            # On the head: the loss or shutdown of a node must not end the attempts of other nodes.
            remote = train_together.options(runtime_env=runtime_env, resources=HEAD_RESOURCE)
            return remote.remote(raw, devices, attempt.gpu)
        kind = (attempt.launch.code, attempt.gpu)
        idle = next((worker for worker in self.idle if worker.kind == kind), None)
        if idle:
            self.idle.remove(idle)
            attempt.runner, attempt.reused = idle.runner, True
        else:
            self.kill_idle(lambda worker: worker.kind != kind)
            resources = {"num_gpus": 1, "num_cpus": 0} if attempt.gpu else {"num_cpus": 1}
            options = Runner.options(runtime_env=runtime_env, **resources)  # type: ignore[attr-defined]
            attempt.runner = options.remote()
        return attempt.runner.train.remote(raw)

    def release(self, attempt: Attempt, *, reusable: bool) -> None:
        """Keep the actor of an ended attempt for another run, or kill it."""
        if attempt.runner and reusable:
            self.idle.append(IdleWorker(attempt.runner, (attempt.launch.code, attempt.gpu)))
        elif attempt.runner:
            ray.kill(attempt.runner)

    def kill_idle(self, matches: Callable[[IdleWorker], bool]) -> None:
        """Kill the idle actors that match, to free their devices."""
        for worker in [worker for worker in self.idle if matches(worker)]:
            ray.kill(worker.runner)
            self.idle.remove(worker)


def task_devices(launch: Launch, task: Task) -> int:
    """Return the number of devices of a task: those of the launch, or 1 if the task cannot be distributed."""
    return launch.terms.devices if task.is_distributable else 1


def worker_environment(launch: Launch) -> dict[str, str]:
    """Return environment variables for processes that train: the launch's code and this process's folders."""
    interface = "lo0" if sys.platform == "darwin" else "lo"
    loopback = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if is_loopback_only() else {}
    return loopback | {
        "PYTHONPATH": launch.code,
        "REPRO_HOME": str(home()),
        "REPRO_DATA": str(data_folder()),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # StopSignal does this, and the supervisor retries the run
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
