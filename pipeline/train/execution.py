"""Execution settings of a run: precision, memory format, compiler and threads. The fastest are found by timing.

Which settings are fastest depends on processor, network and batch: bf16 is slow where the processor converts it
back and forth, channels-last is slow for some small networks, compiled steps pay only in long runs. So the
candidates are timed on copies of the run's network, on random pixels, before its first optimizer step. The times
are cached, since the other seeds of a variant need the same ones. They change no random draw of the run.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.common.files import write_atomically
from pipeline.common.hashing import digest
from pipeline.common.locks import file_lock
from pipeline.common.provenance import hardware_name
from pipeline.declare.training import Train
from pipeline.track.record import execution_text
from pipeline.track.run_folder import explain_disk_errors
from pipeline.train.process import error_of_compiler

ROUNDS = 5  # optimizer steps of each candidate, in turn; their median counts
WARM_UP = 2  # steps of each candidate before these
TIE = 1.05  # a candidate must be this many times faster than the declared settings, or these are kept
SHORTEST_STEPS, SHORTEST_SECONDS = 100, 20.0  # of training; shorter runs use the declared settings
COMPILED_SECONDS = 300.0  # training time from which compiled steps are timed too: compiling takes up to a minute


@dataclass(frozen=True)
class Execution:
    """How optimizer steps are computed. Changes the rounding of numbers, and no other property of a run."""

    precision: Literal["fp32", "bf16", "tf32"]
    channels_last: bool
    compiled: bool
    threads: int  # on a CPU

    @property
    def text(self) -> str:
        """'bf16, channels-last, compiled, 2 threads'."""
        return execution_text(self.precision, self.channels_last, self.compiled, self.threads)


@dataclass(frozen=True)
class ExecutionChoice:
    """Execution settings of a run, and the seconds of an optimizer step of all that were timed, by their text."""

    execution: Execution
    step_seconds: Mapping[str, float]

    def write(self, file: Path) -> None:
        """Write the choice to a file, so that a resumed run computes as it began."""
        with explain_disk_errors(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "ExecutionChoice | None":
        """Return the choice in a file; None if there is none, or it is damaged."""
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            return cls(Execution(**raw["execution"]), dict(raw["step_seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def declared_execution(recipe: Train, threads: int, *, bf16: bool, compiler: bool) -> Execution:
    """Return the settings of a recipe, without bf16 and compiler where they are missing."""
    precision = "fp32" if recipe.precision == "bf16" and not bf16 else recipe.precision
    return Execution(precision, recipe.channels_last, recipe.compile and compiler, threads)


def usable(execution: Execution, threads: int, *, bf16: bool, compiler: bool) -> Execution:
    """Return the settings that a run began with as far as this machine has them."""
    return Execution(
        precision="fp32" if execution.precision == "bf16" and not bf16 else execution.precision,
        channels_last=execution.channels_last,
        compiled=execution.compiled and compiler,
        threads=min(execution.threads, threads),
    )


def fastest(
    declared: Execution,
    steps: int,
    measure: Callable[[Sequence[Execution]], list[float]],
    *,
    bf16: bool,
    compiler: bool,
) -> ExecutionChoice:
    """Return the fastest settings for a run of `steps` optimizer steps.

    `measure` returns the seconds per step of each of several candidates. Those that differ by less than TIE count
    as equal, and of equal ones the declared settings are taken, then those with fewer threads. Compiled steps are
    timed in long runs only.
    """
    first = measure([declared])[0] if steps >= SHORTEST_STEPS else 0.0
    if steps * first < SHORTEST_SECONDS:
        return ExecutionChoice(declared, {})
    eager = replace(declared, compiled=False)
    others = [replace(eager, precision="fp32", channels_last=layout) for layout in (False, True)]
    others += [replace(eager, precision="bf16", channels_last=True)] * bf16
    times = timed(measure, [declared, *others])
    best = quickest(times, declared)
    if best.threads > 1:
        times |= timed(measure, [best, replace(best, threads=1)])
        best = quickest(times, replace(best, threads=1))
    if compiler and steps * first > COMPILED_SECONDS:
        times |= timed(measure, [best, replace(best, channels_last=True, compiled=True)])
        best = quickest(times, best)
    return ExecutionChoice(best, {execution.text: seconds for execution, seconds in times.items()})


def timed(
    measure: Callable[[Sequence[Execution]], list[float]], candidates: Sequence[Execution]
) -> dict[Execution, float]:
    """Return the seconds per step of each candidate that could be timed."""
    distinct = list(dict.fromkeys(candidates))
    return {one: seconds for one, seconds in zip(distinct, measure(distinct), strict=True) if seconds > 0}


def quickest(times: Mapping[Execution, float], preferred: Execution) -> Execution:
    """Return the candidate with the shortest step; `preferred` unless another is TIE times faster."""
    best = min(times, key=times.__getitem__)
    return preferred if times.get(preferred, float("inf")) <= TIE * times[best] else best


class StepTimer:
    """Times optimizer steps of a network in several execution settings, with a cache on disk.

    `network` stays as it is; `shape` is that of a micro-batch, (N, C, H, W). The cache holds for this hardware,
    this version of torch, and the network that `key` describes. `report` is told which settings fail, and why.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        device: torch.device,
        *,
        key: Any,
        cache: Path | None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.network, self.shape, self.device, self.report = network, tuple(shape), device, report
        about = {"hardware": hardware_name(), "torch": torch.__version__, "shape": self.shape, "network": key}
        self.file = cache / "step-seconds" / f"{digest(about)}.json" if cache else None

    def __call__(self, candidates: Sequence[Execution]) -> list[float]:
        """Return the seconds per optimizer step of each candidate, 0 for one that fails."""
        known = self.read()
        if not all(one.text in known for one in candidates):
            known |= dict(zip((one.text for one in candidates), self.measure(candidates), strict=True))
            self.write({text: seconds for text, seconds in known.items() if seconds})  # what fails is tried again
        return [known[one.text] for one in candidates]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for another process that times the same network: its times are then in the cache.

        Seeds that train side by side get the same settings this way.
        """
        lock = None
        if self.file:
            with suppress(OSError):  # a folder that cannot be written has no cache either
                self.file.parent.mkdir(parents=True, exist_ok=True)
                lock = file_lock(self.file.with_suffix(".lock"))
                lock.acquire()
        try:
            yield
        finally:
            if lock:
                lock.release()

    def read(self) -> dict[str, float]:
        """Return the cached times; {} if there are none."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8")) if self.file else {}
            return {str(text): float(seconds) for text, seconds in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def write(self, times: Mapping[str, float]) -> None:
        """Write the cache. A folder that cannot be written is no error: the next run measures again."""
        if self.file:
            with suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.file, json.dumps(dict(times), indent=1))

    def measure(self, candidates: Sequence[Execution]) -> list[float]:
        """Time the candidates in turn, so that other work on the machine slows down all of them alike."""
        with unchanged_process(self.device, compiles=any(one.compiled for one in candidates)):
            images = torch.rand(self.shape, device=self.device)
            images = images.contiguous(memory_format=torch.channels_last)  # as those of the feed
            steps = [self.step_of(one, images) for one in candidates]
            failed = {number for number, step in enumerate(steps) if not all(step() for _ in range(WARM_UP))}
            seconds: list[list[float]] = [[] for _ in candidates]
            for _ in range(ROUNDS):
                for number, step in enumerate(steps):
                    seconds[number] += [] if number in failed else [step()]
        return [statistics.median(found) if found else 0.0 for found in seconds]

    def step_of(self, execution: Execution, images: Tensor) -> Callable[[], float]:
        """Return a function that runs one optimizer step and returns its seconds, 0 if it fails."""
        network = copy.deepcopy(self.network).train()
        if execution.channels_last:
            network = network.to(memory_format=torch.channels_last)
        forward = torch.compile(network) if execution.compiled else network
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

        def compute() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=execution.precision == "bf16"):
                outputs = forward(images)
            optimizer.zero_grad()
            scores = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.stack([one.float().square().mean() for one in scores]).sum().backward()
            optimizer.step()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        def step() -> float:
            torch.set_num_threads(execution.threads)
            began = time.perf_counter()
            try:
                compute()
            except Exception as error:  # noqa: BLE001 - of a compiler, or of a full GPU: this candidate is left out
                self.report(f"{execution.text} is not used, it fails here: {error_of_compiler(error)}")
                return 0.0
            return time.perf_counter() - began

        return step


@contextmanager
def unchanged_process(device: torch.device, *, compiles: bool) -> Iterator[None]:
    """Restore random generators and the number of threads, and free what was compiled."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if compiles:
                torch.compiler.reset()
