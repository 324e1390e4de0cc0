"""Processes that train runs on the devices of a Ray cluster. Imports Ray."""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import ray

from pipeline.cluster.attempt import Runner, is_loopback_only, train_together
from pipeline.cluster.autoscale import autoscaled_kind
from pipeline.cluster.launches import Launch
from pipeline.cluster.shared_devices import SharedDevice, SharedDevices
from pipeline.cluster.sharing import Devices, FreeDevices, ray_amount
from pipeline.common.paths import data_folder, home
from pipeline.common.provenance import SHARING_VARIABLE
from pipeline.plan.task import Task

HEAD_RESOURCE = {"node:__internal_head__": 0.001}  # Ray schedules an actor with this resource on the head


ActorKind = tuple[str, bool, Devices]  # code folder, uses a GPU, devices


@dataclass
class Attempt:
    """A run that is being trained."""

    task: Task
    launch: Launch
    devices: Devices  # that it uses; the queue charges the same
    began: str  # UTC, ISO 8601
    step: int  # of the checkpoint it started from, 0 for none
    gpu: bool
    runner: Any = None  # actor handle, for a run on one device
    reused: bool = False  # the actor has trained another run before
    device: SharedDevice | None = None  # where its actor runs, if it shares a device


@dataclass
class IdleWorker:
    """A Runner actor that waits for a run."""

    runner: Any
    kind: ActorKind
    device: SharedDevice | None  # that it uses a part of
    since: float = field(default_factory=time.monotonic)


class WorkerPool:
    """Starts attempts, and keeps the actors of finished ones for the next run of the same kind."""

    def __init__(self) -> None:
        self.idle: list[IdleWorker] = []
        self.shared = SharedDevices()
        self.had_gpu = False

    def uses_gpus(self) -> bool:
        """Return whether runs train on GPUs: True once the cluster had a GPU, even if all are lost for a while.

        True from the start where an autoscaler adds nodes with GPUs.
        """
        self.had_gpu = self.had_gpu or autoscaled_kind() == "gpu" or ray.cluster_resources().get("GPU", 0) > 0
        return self.had_gpu

    def device_count(self) -> int:
        """Return the number of devices of the cluster."""
        return int(ray.cluster_resources().get("GPU" if self.uses_gpus() else "CPU", 0))

    def free_devices(self, running: Iterable[Attempt]) -> FreeDevices:
        """Return the devices and parts of devices that none of these attempts uses.

        Others' jobs on the cluster do not count; they delay attempts in Ray's queue. After the loss of a node more
        devices may be used than there are: then nothing is free, the rooms of shared devices included.
        """
        gpu = self.uses_gpus()
        used = sum(attempt.devices for attempt in running if attempt.gpu == gpu and not attempt.device)
        rooms = self.shared.rooms(gpu=gpu)
        whole = int(self.device_count() - used) - len(rooms)
        return FreeDevices(whole, rooms) if whole >= 0 else FreeDevices(0)

    def start(self, attempt: Attempt) -> Any:
        """Start an attempt and return the reference to its AttemptResult."""
        raw, devices = attempt.task.to_dict(), attempt.devices
        hide_gpus = {} if attempt.gpu else {"CUDA_VISIBLE_DEVICES": ""}
        environment = worker_environment(attempt.launch) | hide_gpus
        if devices > 1:
            self.kill_idle(lambda worker: True)
            # On the head: the loss or shutdown of a node must not end the attempts of other nodes.
            remote = train_together.options(runtime_env={"env_vars": environment}, resources=HEAD_RESOURCE)
            return remote.remote(raw, devices, attempt.gpu)
        kind = (attempt.launch.code, attempt.gpu, devices)
        device = self.shared.choose(devices, gpu=attempt.gpu) if isinstance(devices, Fraction) else None
        idle = next((worker for worker in self.idle if worker.kind == kind and worker.device is device), None)
        if idle:
            self.idle.remove(idle)
            attempt.runner, attempt.reused = idle.runner, True
        else:
            attempt.runner = self.new_runner(kind, device, environment)
        if device:
            attempt.device = device
            device.used += devices
        return attempt.runner.train.remote(raw)

    def new_runner(self, kind: ActorKind, device: SharedDevice | None, environment: dict[str, str]) -> Any:
        """Start an actor, on a shared device or on one of its own, after killing idle actors of other kinds."""
        _, gpu, devices = kind
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus" if gpu else "num_cpus": ray_amount(devices)}
        if device:
            device.actors += 1
            options["scheduling_strategy"] = device.strategy()
            environment = environment | {SHARING_VARIABLE: str(devices.denominator)}
        self.kill_idle(lambda worker: worker.kind != kind)
        return Runner.options(runtime_env={"env_vars": environment}, **options).remote()  # type: ignore[attr-defined]

    def release(self, attempt: Attempt, *, reusable: bool) -> None:
        """Keep the actor of an ended attempt for another run, or kill it."""
        if not attempt.runner:
            return
        if attempt.device:
            attempt.device.used -= attempt.devices
        kind = (attempt.launch.code, attempt.gpu, attempt.devices)
        worker = IdleWorker(attempt.runner, kind, attempt.device)
        self.idle.append(worker)
        if not reusable:
            self.kill_idle(lambda other: other is worker)

    def kill_idle(self, matches: Callable[[IdleWorker], bool]) -> None:
        """Kill the idle actors that match, to free their devices."""
        for worker in [worker for worker in self.idle if matches(worker)]:
            ray.kill(worker.runner)
            self.idle.remove(worker)
            if worker.device:
                self.shared.remove_actor(worker.device)


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
