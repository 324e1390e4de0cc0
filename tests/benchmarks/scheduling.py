"""Scheduling 500 runs of 8 GPUs each on 1,000 simulated GPUs, and the cost per run as the queue grows.

    python tests/benchmarks/scheduling.py [--rounds 2] [--part all|queue|ray]

queue  the queue alone on a simulated clock: microseconds per run for 100, 1,000 and 10,000 runs. Its makespan must
       equal the ideal one, in which each run starts, in order, as soon as 8 devices are free.
ray    a Ray cluster of five nodes on this machine, each with 200 simulated GPUs. The queue admits runs. A run is a
       placement group of eight one-GPU bundles, held for the length of the run, without a process. Prints the
       makespan relative to the ideal one, best of the rounds.

Lengths are log-normal (sigma 0.6: one run in twenty is more than 2.7 times the median), from a fixed seed, and
scaled so that the ideal makespan is 50 s. Overheads that hours of training would hide are visible at this
length.
"""

import argparse
import contextlib
import heapq
import json
import os
import platform
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.cluster.queue import Queue, QueueItem  # noqa: E402
from pipeline.cluster.sharing import FreeDevices  # noqa: E402

DEVICES, WIDTH, RUNS = 1000, 8, 500
NODES = 5
SIGMA = 0.6
IDEAL_SECONDS = 50.0
WANTED = 1.05  # makespan over the ideal, at most


def run_lengths(runs: int) -> list[float]:
    """Return unequal run lengths, in arbitrary seconds."""
    draw = random.Random(runs)
    return [draw.lognormvariate(0.0, SIGMA) for _ in range(runs)]


def ideal_ends(lengths: list[float], slots: int) -> list[float]:
    """Return when each run ends if runs start in order, each as soon as one of `slots` is free."""
    free, ends = [0.0] * slots, []
    for length in lengths:
        ends.append(heapq.heappop(free) + length)
        heapq.heappush(free, ends[-1])
    return ends


def filled(lengths: list[float]) -> Queue:
    """Return a queue with one launch of these runs."""
    queue = Queue()
    queue.add("all", [QueueItem(str(number), f"run {number}", WIDTH) for number in range(len(lengths))])
    return queue


def simulated_ends(lengths: list[float], devices: int) -> list[float]:
    """Return when each run ends that the queue admits, on a simulated clock."""
    queue, free, now = filled(lengths), devices, 0.0
    running: list[tuple[float, str]] = []
    ends = [0.0] * len(lengths)
    while True:
        for item in queue.admit(FreeDevices(free), now):
            free -= item.devices
            ends[int(item.identity)] = now + lengths[int(item.identity)]
            heapq.heappush(running, (ends[int(item.identity)], item.identity))
        if not running:
            return ends
        now, identity = heapq.heappop(running)
        free += WIDTH
        queue.ended(identity, "finished", now)


def queue_cost(runs: int, rounds: int) -> float:
    """Return CPU microseconds per run, best of the rounds; AssertionError if the schedule is not the ideal one."""
    lengths, seconds = run_lengths(runs), []
    ideal = ideal_ends(lengths, DEVICES // WIDTH)
    for _ in range(rounds):
        start = time.process_time()
        ends = simulated_ends(lengths, DEVICES)
        seconds.append(time.process_time() - start)
        if ends != ideal:
            raise AssertionError(f"{runs} runs: the queue's makespan is {max(ends)}, the ideal one {max(ideal)}")
    return min(seconds) / runs * 1e6


@contextlib.contextmanager
def simulated_cluster() -> Iterator[None]:
    """Start five Ray nodes of 200 simulated GPUs, on loopback and with their own token; stop them at the end."""
    with tempfile.TemporaryDirectory(prefix="repro-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        os.environ |= {
            "RAY_TMPDIR": folder,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise it listens on every interface
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "num_gpus": DEVICES // NODES, "object_store_memory": 80 * 2**20}
        cluster = Cluster(
            initialize_head=True, head_node_args=node | {"include_dashboard": False, "dashboard_port": port}
        )
        try:
            for _ in range(NODES - 1):
                cluster.add_node(**node)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


def on_ray(lengths: list[float]) -> dict[str, float]:
    """Execute the runs on Ray; return the seconds until all have ended, and the delays between runs.

    The queue counts devices as free as soon as a run ends, as the supervisor does. Ray learns it from the node
    15 to 105 ms later. A group requested before that is placed when Ray next looks at all groups: at the next
    change anywhere, or within a second.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

    def placed() -> tuple[PlacementGroup, float]:
        group = placement_group([{"GPU": 1}] * WIDTH)
        if not group.wait(60):
            raise TimeoutError("a placement group was not placed within a minute")
        return group, time.perf_counter()

    queue, free = filled(lengths), DEVICES
    asked: dict[Future[tuple[PlacementGroup, float]], str] = {}
    running: list[tuple[float, str, PlacementGroup]] = []  # heap, by end
    starts, ends, order = [], [], []
    origin = time.perf_counter()
    with ThreadPoolExecutor(DEVICES // WIDTH) as pool:
        while not queue.is_over("all"):
            for item in queue.admit(FreeDevices(free), time.perf_counter()):
                free -= WIDTH
                asked[pool.submit(placed)] = item.identity
                order.append(int(item.identity))
            seconds = max(0.0, running[0][0] - time.perf_counter()) if running else None
            if asked:
                wait(asked, timeout=seconds, return_when=FIRST_COMPLETED)
            elif seconds is not None:
                time.sleep(seconds)
            for future in [one for one in asked if one.done()]:
                identity = asked.pop(future)
                group, ready = future.result()
                starts.append(ready)
                heapq.heappush(running, (ready + lengths[int(identity)], identity, group))
            while running and running[0][0] <= time.perf_counter():
                _, identity, group = heapq.heappop(running)
                remove_placement_group(group)
                free += WIDTH
                ends.append(time.perf_counter())
                queue.ended(identity, "finished", ends[-1])
    if order != sorted(order):
        raise AssertionError("runs were not admitted in their order")
    if ray.available_resources().get("GPU", 0) < DEVICES:  # the last groups are being removed
        time.sleep(1)
    if ray.available_resources()["GPU"] != DEVICES:
        raise AssertionError("a placement group was left behind")
    starts.sort()
    at_once = DEVICES // WIDTH
    gaps = [start - end for start, end in zip(starts[at_once:], ends, strict=False)]
    return {
        "seconds": ends[-1] - origin,
        "over_ideal": (ends[-1] - origin) / IDEAL_SECONDS,
        "first_placed": starts[at_once - 1] - origin,
        "gap": statistics.mean(gaps),
        "longest_gap": max(gaps),
    }


def machine_description() -> str:
    """Return commit, processor and number of cores."""
    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"commit {commit}, {line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"commit {commit}, {platform.machine()}, {os.cpu_count()} cores"


def queue_part(rounds: int) -> dict[str, float]:
    """Print and return microseconds per run."""
    found = {str(runs): queue_cost(runs, max(3, rounds)) for runs in (100, 1000, 10_000)}
    for runs, cost in found.items():
        print(f"queue: {int(runs):>6,} runs {cost:6.1f} microseconds per run", flush=True)
    print(f"queue: a run costs {found['10000'] / found['100']:.2f} times as much with 100 times the runs")
    return found


def ray_part(rounds: int) -> dict[str, float]:
    """Print each round and return the best."""
    lengths = run_lengths(RUNS)
    scale = IDEAL_SECONDS / max(ideal_ends(lengths, DEVICES // WIDTH))
    lengths = [length * scale for length in lengths]
    rows = []
    with simulated_cluster():
        for _ in range(rounds):
            row = on_ray(lengths)
            rows.append(row)
            print(
                f"ray: {RUNS} runs of {WIDTH} on {DEVICES:,} in {row['seconds']:.2f} s:"
                f" {row['over_ideal']:.3f} times the ideal {IDEAL_SECONDS:.0f} s, wanted {WANTED} at most\n"
                f"     the first {DEVICES // WIDTH} placed after {row['first_placed']:.2f} s;"
                f" from an end to the next start {row['gap'] * 1e3:.0f} ms ({row['longest_gap'] * 1e3:.0f})",
                flush=True,
            )
    return min(rows, key=lambda row: row["over_ideal"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--part", choices=("all", "queue", "ray"), default="all")
    arguments = parser.parse_args()
    print(machine_description())
    found: dict[str, dict[str, float]] = {}
    if arguments.part != "ray":
        found["queue"] = queue_part(arguments.rounds)
    if arguments.part != "queue":
        found["ray"] = ray_part(arguments.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
