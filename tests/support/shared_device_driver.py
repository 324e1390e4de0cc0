"""Driver of a Ray cluster with two GPUs on this machine: python -m tests.support.shared_device_driver ADDRESS.

Four runs ask for a third of a GPU each, then one for a whole GPU; one of the four ends. Prints what each saw,
as JSON. A process of its own, because Ray reads its environment (loopback, token) when it is imported.
"""

import json
import os
import sys
from fractions import Fraction
from typing import Any

import ray

from pipeline.cluster.shared_devices import SharedDevice, SharedDevices, remove_left_groups
from pipeline.cluster.sharing import ray_amount

THIRD = Fraction(1, 3)
SECONDS = 240.0  # until a process of a run answers


def join(devices: SharedDevices, share: Fraction, *, gpu: bool = True) -> SharedDevice:
    """Let a run with a process of its own join a device."""
    device = devices.choose(share, gpu=gpu)
    device.used += share
    device.actors += 1
    return device


def leave(devices: SharedDevices, device: SharedDevice, share: Fraction) -> None:
    """Let a run leave, with its process."""
    device.used -= share
    devices.remove_actor(device)


@ray.remote
class Process:
    """Process of a run."""

    def gpus(self) -> str:
        """Return the GPUs that it sees."""
        return os.environ["CUDA_VISIBLE_DEVICES"]


def observe() -> dict[str, Any]:
    """Return the GPUs of the four runs, whether the fifth waits, its GPU, and the states of placement groups."""
    devices = SharedDevices()
    joined = [join(devices, THIRD) for _ in range(4)]
    options = {"num_cpus": 0, "num_gpus": ray_amount(THIRD)}
    processes = [Process.options(**options, scheduling_strategy=one.strategy()).remote() for one in joined]
    shared = ray.get([process.gpus.remote() for process in processes], timeout=SECONDS)
    waiting = Process.options(num_cpus=0, num_gpus=1).remote().gpus.remote()
    waits = not ray.wait([waiting], timeout=2)[0]
    ray.kill(processes[3])
    leave(devices, joined[3], THIRD)
    whole = ray.get(waiting, timeout=SECONDS)
    remove_left_groups()  # as a supervisor that was started again
    states = sorted({entry["state"] for entry in ray.util.placement_group_table().values()})
    return {"shared": shared, "waits": waits, "whole": whole, "groups": states}


if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False)
    print(json.dumps(observe()))
