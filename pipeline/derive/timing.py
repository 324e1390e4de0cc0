"""Timing: forward passes of untrained networks on random pixels, as in Canziani et al. 2016 (arXiv:1605.07678).

Times do not depend on the weights, so nothing is trained. The networks are measured one after the other, in fp32,
without gradients. On GPUs, memory is the peak of the passes and power is what the driver reports (NVML); on CPUs
neither is measured. Timings of one machine wait for each other.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import fmean, median, pstdev

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from lightning_modules.networks import build
from pipeline.analyse.fit import hyperbola_r_squared, line_r_squared, rank_correlation
from pipeline.analyse.measure import class_count, measure_network, published_image_shape
from pipeline.common.errors import UserError
from pipeline.common.words import first_line
from pipeline.data.prefetch import StopRequested, never_stop, raise_if_stopped
from pipeline.declare.derived import TimingSpec
from pipeline.declare.experiment import PublishedRecipe
from pipeline.plan.expand import DerivedRun, NetworkOfTiming
from pipeline.plan.task import Task
from pipeline.track.record import Record, make_record
from pipeline.track.run_folder import RunFolder
from pipeline.train.process import allow_tf32, prepare_process

TIMING_POLL_SECONDS = 0.5
POWER_SECONDS = 1.0  # duration of the passes over which power is averaged; the driver's own mean is about as long
MIN_FIT = 3  # networks of a fit


@dataclass(frozen=True)
class Passes:
    """Measurement of one network at one batch size."""

    seconds: float  # of a pass, median
    memory_mib: float | None = None  # peak during a pass, with weights; None on CPUs
    watts: float | None = None  # mean during the passes; None if the device does not report it

    def metrics(self, batch_size: int) -> dict[str, float]:
        """Return what was measured, by the names of `PASS_METRICS`."""
        found = {"seconds_per_image": self.seconds / batch_size}
        if self.memory_mib is not None:
            found["memory_mib"] = self.memory_mib
        if self.watts is not None:
            found |= {"watts": self.watts, "joules_per_image": self.watts * self.seconds / batch_size}
        return found


def make_timing(
    task: Task,
    *,
    threads: int = 1,
    stop: Callable[[], bool] = never_stop,
    report: Callable[[str], None] = lambda _: None,
) -> Record | None:
    """Measure all networks of a timing and write its record; None once `stop()` is true.

    Raises UserError for a network that cannot be built, or whose batch does not fit into the device's memory.
    """
    timing, folder = task.run, RunFolder(task.folder)
    assert isinstance(timing, DerivedRun)
    assert isinstance(timing.spec, TimingSpec)
    prepare_process(threads)
    allow_tf32(False)
    folder.create(task.description())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with machine_lock(task, stop):
            began = time.monotonic()
            metrics: dict[str, float] = {}
            for name, network in timing.networks.items():
                report(f"measuring {name}")
                metrics |= network_metrics(name, network, timing, device, stop)
    except StopRequested:
        return None
    metrics |= relations(timing.spec, timing.networks, metrics)
    record = make_record(
        task,
        status="finished",
        ended=f"{timing.spec.repeats} passes of {len(timing.networks)} networks at each batch size",
        metrics=metrics,
        precision="fp32",
        compiled=False,
        threads=threads,
        seconds=time.monotonic() - began,
    )
    folder.finish(record)
    return record


@contextmanager
def machine_lock(task: Task, stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of this machine's timings. Raises StopRequested once `stop()` is true."""
    lock = FileLock(task.folder.parent / "timing.lock")
    while not lock.is_locked:
        raise_if_stopped(stop)
        with suppress(Timeout):
            lock.acquire(timeout=TIMING_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def network_metrics(
    name: str, network: NetworkOfTiming, timing: DerivedRun, device: torch.device, stop: Callable[[], bool]
) -> dict[str, float]:
    """Return the metrics of one network at all batch sizes. Raises StopRequested between batch sizes."""
    spec = timing.spec
    assert isinstance(spec, TimingSpec)
    recipe = PublishedRecipe(model=network.model, data=network.data, train=None)
    image = published_image_shape(recipe)
    found: dict[str, float] = {}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(timing.seed)
            built = build(
                network.model.name, network.model.args, num_classes=class_count(network.data), in_channels=image[0]
            )
            pixels = torch.randn(max(spec.batch_sizes), *image)
        built = built.eval().to(device)
        for size in spec.batch_sizes:
            raise_if_stopped(stop)
            passes = measure_passes(built, pixels[:size].to(device), spec.repeats)
            found |= {f"{name}/batch-{size}/{key}": value for key, value in passes.metrics(size).items()}
    except (ValueError, torch.OutOfMemoryError) as error:
        raise UserError(f"{timing.title}: {name}: {first_line(error)}") from None
    if len(spec.batch_sizes) > 1:
        ends = min(spec.batch_sizes), max(spec.batch_sizes)
        first, last = (found[f"{name}/batch-{size}/seconds_per_image"] for size in ends)
        found[f"{name}/batch_gain"] = first / last
    return found


@torch.inference_mode()
def measure_passes(network: nn.Module, images: Tensor, repeats: int) -> Passes:
    """Return the median time of `repeats` passes, after one that does not count; on GPUs also memory and power."""
    if images.device.type != "cuda":
        timed_pass(network, images)
        return Passes(median(timed_pass(network, images) for _ in range(repeats)))
    timed_pass(network, images)
    torch.cuda.reset_peak_memory_stats(images.device)
    seconds = median(timed_pass(network, images) for _ in range(repeats))
    memory = torch.cuda.max_memory_allocated(images.device) / 2**20
    return Passes(seconds, memory, power_of(network, images))


def timed_pass(network: nn.Module, images: Tensor) -> float:
    """Return the seconds of one forward pass, until its result is there."""
    on_gpu = images.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(images.device)
    began = time.perf_counter()
    network(images)
    if on_gpu:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - began


def power_of(network: nn.Module, images: Tensor) -> float | None:
    """Return the mean power in watts over POWER_SECONDS of passes; None if the driver does not report it."""
    samples = []
    began = time.monotonic()
    while time.monotonic() - began < POWER_SECONDS:
        timed_pass(network, images)
        try:
            samples.append(torch.cuda.power_draw(images.device) / 1000)  # milliwatts
        except (ModuleNotFoundError, RuntimeError):  # no pynvml, or no such sensor
            return None
    return fmean(samples[len(samples) // 2 :])  # the first half still averages over earlier work


def relations(
    spec: TimingSpec, networks: Mapping[str, NetworkOfTiming], metrics: Mapping[str, float]
) -> dict[str, float]:
    """Return the relations over all networks of operations, time, accuracy and energy, and the spread of power.

    A fit needs MIN_FIT networks that differ in operations, or in accuracy; without them it has no metric.
    """
    found: dict[str, float] = {}
    operations = {
        name: float(measure_network(PublishedRecipe(model=one.model, data=one.data, train=None), "multiply_adds"))
        for name, one in networks.items()
    }

    def values(names: list[str], size: int, metric: str) -> list[float]:
        return [metrics[f"{name}/batch-{size}/{metric}"] for name in names]

    for size in spec.batch_sizes:
        if len(networks) >= MIN_FIT and len(set(operations.values())) > 1:
            times = values(list(networks), size, "seconds_per_image")
            found[f"fit/batch-{size}/operations/r_squared"] = line_r_squared(list(operations.values()), times)
        rated = spec.rated
        if len(rated) < MIN_FIT or len({spec.accuracies[name] for name in rated}) == 1:
            continue
        accuracies, times = [spec.accuracies[name] for name in rated], values(rated, size, "seconds_per_image")
        found[f"fit/batch-{size}/hyperbola/r_squared"] = hyperbola_r_squared(times, accuracies)
        found[f"fit/batch-{size}/line/r_squared"] = line_r_squared(times, accuracies)
        if all(f"{name}/batch-{size}/joules_per_image" in metrics for name in rated):  # the driver may omit some
            joules = values(rated, size, "joules_per_image")
            found[f"energy/batch-{size}/rank_correlation"] = rank_correlation(joules, accuracies)
    watts = [value for name, value in metrics.items() if name.endswith("/watts")]
    return found | ({"power/relative_spread": pstdev(watts) / fmean(watts)} if len(watts) > 1 else {})
