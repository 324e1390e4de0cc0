"""Many runs on a cluster: a supervisor that admits them, and what trains them. The only files that import Ray are
this one and `jobs.py`.

The supervisor is an actor of its own on the head, one a cluster, and belongs to no terminal and no job. It holds
nothing that the files under REPRO_HOME do not say: whoever ends it, `repro resume` begins another that goes on.
"""

import json
import logging
import os
import shutil
import socket
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ray

from pipeline.home import cores, data_folder, home
from pipeline.mistakes import UserError
from pipeline.record import FINISHED
from pipeline.runs import RunFolder, write_atomically
from pipeline.schedule import launches, node
from pipeline.schedule.launches import Launch
from pipeline.schedule.local import carry_out, reader_count
from pipeline.schedule.queue import Item, Queue
from pipeline.schedule.task import Task

NAME, NAMESPACE = "supervisor", "repro"
TURN = 0.2  # seconds between looks at what has ended and what may start
WRITE = 1.0  # between writings of state.json
SPEND = 10.0  # between writings of the hours spent
LOOK = 0.25  # between looks at whether a run was asked to stop
LOOKED_AT = 200  # waiting runs a turn that are looked at for a cancellation
IDLE_WORKER, IDLE_SUPERVISOR = 60.0, 120.0  # seconds until what has nothing to do ends
STRIKES = 3  # deaths in a row, without a new checkpoint between, after which a run has failed
CANCELLED, LEAVING = "cancelled by repro cancel", "its machine is about to end"
LOST, NODE_DIED = "its machine was lost", "node has died"  # ours, and within Ray's words for it
HEAD = {"node:__internal_head__": 0.001}
GROUP_SECONDS = 4 * 3600  # a rank may wait so long for another: the first computes what all need of the data

Said = tuple[str, str, float]  # how an attempt ended ("ended", "stopped", "failed", "died"), why, asked when


class Asked:
    """Whether a run should stop: by whoever asks, or since its machine is about to end. Cheap to call."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.looked, self.answer = folder, -LOOK, False
        self.why, self.when = "", 0.0  # of the request that was heard; "": the machine is about to end

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self.looked >= LOOK:
            self.looked = now
            if not self.answer:
                self.why, self.when = self.folder.asked_when()
                self.answer = bool(self.why) or node.leaving()
        return self.answer


def attempt(raw: dict[str, Any], *, first: bool = True) -> Said:
    """Train a task in this process, alone or as one of the ranks of its group; UserError and whatever else raised
    goes into the run's log, by each rank, and is raised again.
    """
    task = Task.from_dict(raw)
    folder = RunFolder(task.folder)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    def say(kind: str, text: str = "", record: object = None) -> None:
        if first and text:
            folder.log(text)

    asked = Asked(folder)
    if node.leaving():
        return "stopped", "", 0.0
    with node.training_here():
        record = carry_out(task, threads=1, readers=reader_count(devices_here()), stop=asked, say=say)
    return ("ended", "", 0.0) if record else ("stopped", asked.why, asked.when)


def devices_here() -> int:
    """Devices of this machine that runs are trained on: GPUs, else processors."""
    own = ray.get_runtime_context().get_node_id()
    mine: dict[str, float] = next((one["Resources"] for one in ray.nodes() if one["NodeID"] == own), {})
    return max(1, int(mine.get("GPU", 0) or mine.get("CPU", 0) or cores()))


@ray.remote(max_restarts=0)
class Runner:
    """A process that trains runs of one device, one after the other."""

    def train(self, raw: dict[str, Any]) -> Said:
        """One run; what a user can mend is an answer, not an error."""
        folder = RunFolder(Path(raw["folder"]))
        try:
            return attempt(raw)
        except UserError as error:
            return "failed", str(error), 0.0
        except Exception as error:  # noqa: BLE001 - whatever it is, the user sees it and the other runs go on
            folder.log(traceback.format_exc())
            return "failed", f"{type(error).__name__}: {error}", 0.0


def nothing(*_: object) -> None:
    """There is nothing to do."""


def fit(raw: dict[str, Any], world: int, gpu: bool) -> Said:
    """One run by `world` ranks, through Ray Train; the process group is its, all else is `train`'s."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.torch.config import _TorchBackend

    class NoDoor(_TorchBackend):
        """Leaves it to the ranks to meet: torch's own way for it listens on every network of the machine."""

        on_start = nothing

    class Meeting(TorchConfig):
        """How the ranks find each other: by a file where all are on one machine that listens to no other."""

        backend_cls = NoDoor if alone() else _TorchBackend

    folder = RunFolder(Path(raw["folder"]))
    place = node.folder() / "train"
    place.mkdir(parents=True, exist_ok=True)
    name = f"{raw['identity']}-{time.time_ns()}"
    backend = "nccl" if gpu else "gloo"
    meet = {"backend": backend, "init_method": f"file://{place / name}.meeting"} if alone() else None
    trainer = TorchTrainer(
        rank,
        train_loop_config={"raw": raw, "meet": meet},
        torch_config=Meeting(backend=backend, timeout_s=GROUP_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=world, use_gpu=gpu, resources_per_worker={"GPU": 1} if gpu else {"CPU": 1}
        ),
        run_config=RunConfig(name=name, storage_path=str(place)),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - a rank's death comes as one of many errors
        left = folder.left()
        if left.get("why") == "failed":
            return "failed", left["text"], 0.0
        return "died", reason(error), 0.0
    finally:
        shutil.rmtree(place / name, ignore_errors=True)
        (place / f"{name}.meeting").unlink(missing_ok=True)
    return ("ended", "", 0.0) if folder.result() else ("stopped", *folder.asked_when())


train_together = ray.remote(num_cpus=0, max_retries=0)(fit)


def rank(config: dict[str, Any]) -> None:
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
        limit = timedelta(seconds=GROUP_SECONDS)
        torch.distributed.init_process_group(
            **config["meet"], rank=number, world_size=context.get_world_size(), timeout=limit
        )
    folder = RunFolder(Path(raw["folder"]))
    try:
        attempt(raw, first=number == 0)
    except UserError as error:
        folder.leave("failed", str(error))
        raise
    except Exception:
        folder.log(f"rank {number} on {socket.gethostname()}:\n{traceback.format_exc()}")
        raise


def alone() -> bool:
    """Whether this cluster listens on its own machine only."""
    return ray.util.get_node_ip_address().startswith("127.")


def reason(error: BaseException) -> str:
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


@dataclass
class Attempt:
    """A run that is being trained."""

    task: Task
    launch: Launch
    began: str  # UTC, ISO 8601
    step: int  # of the checkpoint it began from
    gpu: bool
    runner: Any = None  # the process, if one alone trains it
    reused: bool = False  # whether that process had trained before


@dataclass
class Known:
    """What the supervisor remembers of a run."""

    task: Task
    launch: Launch
    attempts: int = 0
    strikes: int = 0


@dataclass
class Idle:
    """A process that waits for a run."""

    runner: Any
    kind: tuple[str, bool]  # its code, and whether it has a GPU
    since: float = field(default_factory=time.monotonic)


class Supervisor:
    """Admits runs, starts them, tries them again, and writes down what becomes of them."""

    def __init__(self) -> None:
        from pipeline.syncing import Syncing

        self.queue = Queue()
        self.known: dict[str, Known] = {}
        self.running: dict[Any, Attempt] = {}  # by the reference to what it will answer
        self.idle: list[Idle] = []
        self.news: dict[str, list[str]] = {}
        self.waiting: deque[str] = deque()  # launches handed over and not yet looked at
        self.open: dict[str, Launch] = {}  # and looked at, but not over
        self.look: deque[str] = deque()  # waiting runs, to be looked at for a cancellation
        self.heard: deque[tuple[str, str, str]] = deque()  # of the queue, and not yet written down
        self.troubles: list[str] = []
        self.busy = self.written = self.saved = time.monotonic()
        self.syncing = Syncing()
        self.had_gpu = False
        shutil.rmtree(node.folder() / "train", ignore_errors=True)  # of groups that were killed
        if ray.get_runtime_context().was_current_actor_reconstructed:
            names = sorted(path.stem for path in launches.folder().glob("*.json"))
            self.waiting += [name for name in names if not launches.is_over(name)]
        threading.Thread(target=self._live, name="supervisor", daemon=True).start()

    # What others ask

    def take(self, launch: str) -> None:
        """Carry out this launch too."""
        self.busy = time.monotonic()
        self.news.setdefault(launch, [])
        if launch not in self.open and launch not in self.waiting:
            self.waiting.append(launch)

    def told(self, launch: str, after: int) -> tuple[list[str], bool]:
        """What happened in a launch since so many sentences ago, and whether it is over."""
        over = launch not in self.open and launch not in self.waiting
        return self.news.get(launch, [])[after:], over

    # Its life

    def _live(self) -> None:
        with self.syncing:
            while not self._may_end():
                began, self.troubles = time.monotonic(), []
                try:
                    self._turn(began)
                    self._wait(max(0.0, TURN - (time.monotonic() - began)))
                except Exception as error:  # noqa: BLE001 - Ray in between, or a bug: all is tried again
                    traceback.print_exc()
                    self.troubles.append(last_line(error))
                if self.troubles:
                    time.sleep(1)
        self._free_workers(lambda one: True)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)  # the next launch makes another

    def _try(self, act: Callable[..., None], *words: Any) -> bool:
        """Do it; a disk that is full, or gone for a while, is trouble, and the next turn tries again."""
        try:
            act(*words)
        except OSError as error:
            self.troubles.append(last_line(error))
            return False
        return True

    def _wait(self, seconds: float) -> None:
        """Until something has ended, or so long."""
        if self.running:
            ray.wait(list(self.running), timeout=seconds, fetch_local=False)
        else:
            time.sleep(seconds)

    def _may_end(self) -> bool:
        if self.running or self.open or self.waiting:
            self.busy = time.monotonic()
        return time.monotonic() - self.busy > IDLE_SUPERVISOR

    def _turn(self, now: float) -> None:
        while self.waiting:
            try:
                self._begin(launches.one(self.waiting[0]))
            except (UserError, ValueError, KeyError, TypeError) as error:  # a damaged file of one launch
                self.news.setdefault(self.waiting[0], []).append(f"not begun: {error}")
            self.waiting.popleft()
        if self.running:
            ready, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
            for ref in ready:
                self._try(self._ended, ref, now)
        self._try(self._look_for_cancelled)
        self.queue.over_budget(now)
        for item in [] if node.leaving() else self.queue.admit(self._free(), now):
            if not self._try(self._start, item, now):
                self.queue.ended(item.identity, "again", now)
        self._try(self._hear)
        for launch in [one for one in self.open.values() if self.queue.is_over(one.id)]:
            self._try(self._end, launch, now)
        self._free_workers(lambda one: now - one.since > IDLE_WORKER)
        if now - self.written >= WRITE:
            self.written = now
            self._try(self._ask_to_stop)
            self._try(self._write, now)

    def _begin(self, launch: Launch) -> None:
        """Take a launch's runs into the queue; what is finished is finished, what was left so stays so."""
        items, before = [], self.queue.states()
        for task in launch.tasks:
            items.append(Item(task.identity, task.title, devices_of(launch, task), task.needs))
            if before.get(task.identity, ("",))[0] not in ("waiting", "running"):
                self.known[task.identity] = Known(task, launch)
            self.syncing.watch(task.folder)  # a finished one too: its last words may not have been sent
        terms = launch.terms
        self.queue.add(
            launch.id,
            items,
            max_concurrent=terms.max_concurrent,
            max_device_hours=terms.max_device_hours,
            spent=launches.spent(launch.id),
        )
        self.open[launch.id] = launch
        self.news.setdefault(launch.id, [])
        self.news[launch.id].append(f"{launch.words}: {len(launch.tasks)} runs and steps")
        now, states = time.monotonic(), self.queue.states()
        asked = datetime.fromisoformat(launch.created).timestamp()  # what was left before that is wanted again
        for task in launch.tasks:
            if states[task.identity][0] in ("waiting", "running"):
                self.look.append(task.identity)
            if states[task.identity][0] != "waiting":
                continue
            folder = RunFolder(task.folder)
            record, left = folder.result(), folder.left()
            if record:
                self.queue.ended(task.identity, "finished", now, usable=record.status == FINISHED)
            elif left and left.get("asked", now) > asked:
                self.queue.ended(task.identity, left["why"], now, left["text"])

    def _hear(self) -> None:
        """Write down what the queue has decided: what will not run, as it was cancelled, is over its budget, or
        needs what failed.
        """
        self.heard += self.queue.news()
        told: Counter[tuple[str, str]] = Counter()
        while self.heard:  # what cannot be written down now, on a full disk, is not forgotten
            identity, state, why = self.heard[0]
            known = self.known[identity]
            text = self._budget_words(identity) if state == "over-budget" else why or CANCELLED
            self._leave(known.task, state, text)
            self.heard.popleft()
            for launch in self._wanted_by(identity):
                told[launch, text] += 1
                if told[launch, text] == 1:
                    self.news[launch].append(f"{known.task.title}: {text}")
        for (launch, text), times in told.items():
            if times > 1:
                self.news[launch].append(f"{times - 1:,} more: {text}")

    def _leave(self, task: Task, why: Any, text: str, asked: float | None = None) -> None:
        launches.leave(task, why, text, asked)
        self.syncing.watch(task.folder)

    def _ask_to_stop(self) -> None:
        """Those whose launches are all over their budgets; again, where the request was lost."""
        for one in self.running.values():
            entry = self.queue.entries[one.task.identity]
            if entry.stop and entry.stop.becomes == "over-budget" and entry.stop.wanted == len(entry.wanted):
                folder = RunFolder(one.task.folder)
                if not folder.asked():
                    folder.ask("over-budget")

    def _look_for_cancelled(self) -> None:
        """Some of the waiting runs, in turn: was one cancelled?"""
        for _ in range(min(LOOKED_AT, len(self.look))):
            identity = self.look.popleft()
            state = self.queue.state(identity)
            if state not in ("waiting", "running"):
                continue
            if RunFolder(self.known[identity].task.folder).asked() == "cancelled":
                self.queue.cancel(identity)  # one that runs stops by itself; it will not be tried again
            else:
                self.look.append(identity)

    # Devices

    def _gpu(self) -> bool:
        """Whether runs are trained on GPUs: for good, once there was one, also when all are lost for a while."""
        self.had_gpu = self.had_gpu or ray.cluster_resources().get("GPU", 0) > 0
        return self.had_gpu

    def _all(self) -> int:
        return int(ray.cluster_resources().get("GPU" if self._gpu() else "CPU", 0))

    def _free(self) -> int:
        """Devices that none of our runs uses; whoever else uses the cluster makes ours wait at Ray's door."""
        used = sum(devices_of(one.launch, one.task) for one in self.running.values())
        return max(0, self._all() - used)

    def _free_workers(self, which: Callable[[Idle], bool]) -> None:
        """End idle processes, whose devices others need."""
        for one in [one for one in self.idle if which(one)]:
            ray.kill(one.runner)
            self.idle.remove(one)

    # One run

    def _start(self, item: Item, now: float) -> None:
        known = self.known[item.identity]
        known.launch = next((self.open[name] for name in self._wanted_by(item.identity)), known.launch)
        task, launch, folder = known.task, known.launch, RunFolder(known.task.folder)
        try:
            record = folder.result()
        except UserError as error:
            self._failed(task, str(error), now)
            return
        if record:  # by somebody else, since we looked
            self.queue.ended(item.identity, "finished", now, usable=record.status == FINISHED)
            return
        why, when = folder.asked_when()
        if why == "cancelled":
            self._leave(task, "cancelled", CANCELLED, when)
            self.queue.ended(item.identity, "cancelled", now, CANCELLED)
            return
        folder.begin_anew()
        known.attempts += 1
        one = Attempt(
            task, launch, datetime.now(UTC).isoformat(timespec="seconds"), last_step(folder), self._gpu()
        )
        self.running[self._train(one)] = one
        how = f"on {item.devices} {'GPUs' if one.gpu else 'processes'} " if item.devices > 1 else ""
        how += f"from step {one.step:,}" if one.step else "from the beginning"
        how += f", attempt {known.attempts}" if known.attempts > 1 else ""
        folder.log(f"started {how}")
        self._say(item.identity, f"started {how}")

    def _train(self, one: Attempt) -> Any:
        """Start it; the reference to what it will answer."""
        raw, devices = one.task.to_dict(), devices_of(one.launch, one.task)
        where = {"env_vars": surroundings(one.launch) | ({} if one.gpu else {"CUDA_VISIBLE_DEVICES": ""})}
        if devices > 1:
            self._free_workers(lambda idle: True)
            # Where the supervisor is: a node that is lost, or asked to end, must not take others' ranks along.
            return train_together.options(runtime_env=where, resources=HEAD).remote(raw, devices, one.gpu)
        kind = (one.launch.code, one.gpu)
        idle = next((idle for idle in self.idle if idle.kind == kind), None)
        if idle:
            self.idle.remove(idle)
            one.runner, one.reused = idle.runner, True
        else:
            self._free_workers(lambda idle: idle.kind != kind)
            asks = {"num_gpus": 1, "num_cpus": 0} if one.gpu else {"num_cpus": 1}
            one.runner = Runner.options(runtime_env=where, **asks).remote()  # type: ignore[attr-defined]
        return one.runner.train.remote(raw)

    def _ended(self, ref: Any, now: float) -> None:
        """One attempt is over, one way or another. All is written down before it is forgotten."""
        one = self.running[ref]
        task, folder = one.task, RunFolder(one.task.folder)
        try:
            how, why, when = ray.get(ref)
        except ray.exceptions.RayError as fault:
            how, why, when = "died", died(fault), 0.0
        try:
            record = folder.result()
        except UserError as error:
            record, how, why = None, "failed", str(error)
        if record:
            wrong = record.metrics.get("test/top1_error_pct")
            told = record.ended if wrong is None else f"test error {wrong:.2f} %"
            self._over(
                task, "finished", told if record.status == FINISHED else f"did not converge: {record.ended}"
            )
            self.queue.ended(task.identity, "finished", now, told, usable=record.status == FINISHED)
        elif how == "failed":
            self._failed(task, why, now)
        elif how == "stopped" and why:
            text = CANCELLED if why == "cancelled" else self._budget_words(task.identity)
            self._leave(task, why, f"{text}; stopped after step {last_step(folder):,}, resumable", when)
            self._over(task, "stopped", f"{text}; resumable after step {last_step(folder):,}")
            self.queue.ended(task.identity, why, now, text)
        else:
            self._again(one, how, LEAVING if how == "stopped" else why, now)
        del self.running[ref]
        self.syncing.watch(task.folder)
        if one.runner and (how == "died" or (how == "stopped" and not why)):
            ray.kill(one.runner)
        elif one.runner:
            self.idle.append(Idle(one.runner, (one.launch.code, one.gpu)))

    def _over(self, task: Task, how: str, why: str) -> None:
        RunFolder(task.folder).log(f"{how}: {why}")
        self._say(task.identity, f"{how}: {why}")

    def _failed(self, task: Task, why: str, now: float) -> None:
        self._leave(task, "failed", why)
        self._over(task, "failed", why)
        self.queue.ended(task.identity, "failed", now, why)

    def _again(self, one: Attempt, how: str, why: str, now: float) -> None:
        """Back into the queue; but what dies over and over at the same place has failed.

        A lost machine, or a process that waited for a run and may have died before, is not the run's fault.
        """
        known, step = self.known[one.task.identity], last_step(RunFolder(one.task.folder))
        if how == "stopped" or step > one.step:
            known.strikes = 0
        elif not one.reused and LOST not in why:
            known.strikes += 1
        if known.strikes >= STRIKES:
            self._failed(one.task, f"died {STRIKES} times in a row without progress; the last time: {why}", now)
            return
        self._over(one.task, how, f"{why}; to go on from step {step:,}")
        self.queue.ended(one.task.identity, "again", now, why)

    def _wanted_by(self, identity: str) -> list[str]:
        """The launches that wait for a run."""
        return [name for name in self.queue.entries[identity].wanted if name in self.open]

    def _budget_words(self, identity: str) -> str:
        """Whose budget is used up, as all that want the run have one."""
        wanting = [self.open[name] for name in self._wanted_by(identity)] or [self.known[identity].launch]
        hours = [launch.terms.max_device_hours or 0.0 for launch in wanting]
        return f"the launch's budget of {max(hours):g} device hours is used up"

    # What is written down

    def _say(self, identity: str, text: str) -> None:
        """Tell all launches that want this run."""
        for launch in self._wanted_by(identity):
            self.news[launch].append(f"{self.known[identity].task.title}: {text}")

    def _end(self, launch: Launch, now: float) -> None:
        launches.spend(launch.id, self.queue.spent(launch.id, now))
        launches.end(launch.id)
        del self.open[launch.id]

    def _write(self, now: float) -> None:
        """state.json, for whoever asks how things are; and how much of the budgets is used."""
        if now - self.saved >= SPEND:
            self.saved = now
            for name in self.open:
                launches.spend(name, self.queue.spent(name, now))
        free = self._free()
        waiting = self.queue.waiting(free)
        runs: dict[str, Any] = {
            identity: {"state": state, "why": waiting.get(identity, why)}
            for identity, (state, why) in self.queue.states().items()
        }
        for one in self.running.values():
            where = RunFolder(one.task.folder).progress().get("host", "")
            attempts = self.known[one.task.identity].attempts
            runs[one.task.identity] |= {"since": one.began, "attempt": attempts, "node": where}
        state = {
            "time": time.time(),
            "devices": {"all": self._all(), "free": free, "kind": "GPU" if self._gpu() else "CPU"},
            "runs": runs,
            "trouble": "; ".join(filter(None, (*dict.fromkeys(self.troubles), self.syncing.trouble))),
        }
        write_atomically(node.folder() / "state.json", json.dumps(state))


def devices_of(launch: Launch, task: Task) -> int:
    """Devices that a task is trained on: those asked for, but what cannot be shared takes one."""
    return launch.terms.devices if task.together else 1


def surroundings(launch: Launch) -> dict[str, str]:
    """Environment of the processes that train: the launch's own code, and this project's folders."""
    name = "lo0" if sys.platform == "darwin" else "lo"
    loopback = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if alone() else {}
    return loopback | {
        "PYTHONPATH": launch.code,
        "REPRO_HOME": str(home()),
        "REPRO_DATA": str(data_folder()),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # our own asks the runs to stop, and tries them again
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }


def last_step(folder: RunFolder) -> int:
    """The update that a run would resume after."""
    files = folder.checkpoint_files()
    return int(files[0].name.split("-")[1]) if files else 0


def died(error: BaseException) -> str:
    """How a process ended that did not say so itself."""
    if isinstance(error, ray.exceptions.NodeDiedError) or NODE_DIED in str(error):
        return LOST
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its machine ran out of memory"
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
        return "its process was ended from outside"
    return last_line(error)


def connect() -> None:
    """Join the cluster that this process runs on, or that RAY_ADDRESS names; UserError if there is none."""
    if ray.is_initialized():
        return
    node.folder().mkdir(parents=True, exist_ok=True)
    os.chdir(node.folder())  # Ray hands this folder to all workers as a place of code, before any other
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster can be joined here: {last_line(error)}") from error


def supervisor(launch: Launch) -> Any:
    """The cluster's supervisor, made if there is none; it runs on the head."""
    where = {"env_vars": surroundings(launch)}
    return (
        ray.remote(Supervisor)
        .options(
            num_cpus=0,
            max_concurrency=8,
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            resources=HEAD,
            runtime_env=where,
        )
        .remote()
    )


def hand_over(names: Sequence[str], happened: Callable[[str], None]) -> int:
    """Give launches to the supervisor and pass on what happens until all are over: 0, or 1 if some run failed."""
    connect()
    given = [launches.one(name) for name in names]
    seen = dict.fromkeys(names, 0)
    over: set[str] = set()
    keeper: Any = None
    while len(over) < len(names):
        try:
            if keeper is None:
                keeper = supervisor(given[0])
                for name in names:
                    ray.get(keeper.take.remote(name))
                seen = dict.fromkeys(names, 0)
            for name in (name for name in names if name not in over):
                news, ended = ray.get(keeper.told.remote(name, seen[name]))
                seen[name] += len(news)
                for text in news:
                    happened(text)
                if ended:
                    over.add(name)
        except ray.exceptions.RayActorError:  # it has just ended, or Ray is starting it again
            keeper = None
        time.sleep(0.5)
    return int(any(is_failed(RunFolder(task.folder)) for one in given for task in one.tasks))


def is_failed(folder: RunFolder) -> bool:
    """Whether a run has no result although nobody wanted it to stop."""
    return folder.result() is None and folder.left().get("why") not in ("cancelled", "over-budget")
