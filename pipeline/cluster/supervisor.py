"""Many runs on a cluster: a supervisor that admits them, and what trains them. The only files that import Ray are
this one and `jobs.py`.

The supervisor is an actor of its own on the head, one a cluster, and belongs to no terminal and no job. It holds
nothing that the files under REPRO_HOME do not say: whoever ends it, `repro resume` begins another that goes on.
"""

import json
import shutil
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import ray

from pipeline.cluster import launches, processes, token
from pipeline.cluster.attempt import LOST, Runner, death_reason, is_loopback_only, last_line, train_together
from pipeline.cluster.launches import Launch
from pipeline.cluster.queue import Queue, QueueItem
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.common.paths import data_folder, home
from pipeline.schedule.task import Task
from pipeline.track.record import FINISHED
from pipeline.track.run_folder import RunFolder

TURN_SECONDS = 0.2  # seconds between looks at what has ended and what may start

STATE_SECONDS = 1.0  # between writings of state.json

HOURS_SECONDS = 10.0  # between writings of the hours spent

CANCEL_CHECKS = 200  # waiting runs a turn that are looked at for a cancellation

IDLE_WORKER_SECONDS, IDLE_SUPERVISOR_SECONDS = 60.0, 120.0  # seconds until what has nothing to do ends

MAX_FAILURES = 3  # deaths in a row, without a new checkpoint between, after which a run has failed

CANCELLED, LEAVING = "cancelled by repro cancel", "its machine is about to end"

HEAD_RESOURCE = {"node:__internal_head__": 0.001}


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
class RunState:
    """What the supervisor remembers of a run."""

    task: Task
    launch: Launch
    attempts: int = 0
    failures: int = 0


@dataclass
class IdleWorker:
    """A process that waits for a run."""

    runner: Any
    kind: tuple[str, bool]  # its code, and whether it has a GPU
    since: float = field(default_factory=time.monotonic)


class Supervisor:
    """Admits runs, starts them, tries them again, and writes down what becomes of them."""

    def __init__(self) -> None:
        from pipeline.track.sync import BackgroundSync

        self.queue = Queue()
        self.states: dict[str, RunState] = {}
        self.running: dict[Any, Attempt] = {}  # by the reference to what it will answer
        self.idle: list[IdleWorker] = []
        self.news: dict[str, list[str]] = {}
        self.waiting: deque[str] = deque()  # launches handed over and not yet looked at
        self.open: dict[str, Launch] = {}  # and looked at, but not over
        self.look: deque[str] = deque()  # waiting runs, to be looked at for a cancellation
        self.decisions: deque[tuple[str, str, str]] = deque()  # of the queue, and not yet written down
        self.troubles: list[str] = []
        self.busy = self.written = self.saved = time.monotonic()
        self.syncing = BackgroundSync()
        self.had_gpu = False
        shutil.rmtree(token.cluster_folder() / "train", ignore_errors=True)  # of groups that were killed
        if ray.get_runtime_context().was_current_actor_reconstructed:
            names = sorted(path.stem for path in launches.launches_folder().glob("*.json"))
            self.waiting += [name for name in names if not launches.is_over(name)]
        threading.Thread(target=self._loop, name="supervisor", daemon=True).start()

    # What others ask

    def add_launch(self, launch: str) -> None:
        """Carry out this launch too."""
        self.busy = time.monotonic()
        self.news.setdefault(launch, [])
        if launch not in self.open and launch not in self.waiting:
            self.waiting.append(launch)

    def news_since(self, launch: str, after: int) -> tuple[list[str], bool]:
        """What happened in a launch since so many sentences ago, and whether it is over."""
        over = launch not in self.open and launch not in self.waiting
        return self.news.get(launch, [])[after:], over

    # Its life

    def _loop(self) -> None:
        with self.syncing:
            while not self._may_end():
                began, self.troubles = time.monotonic(), []
                try:
                    self._turn(began)
                    self._wait(max(0.0, TURN_SECONDS - (time.monotonic() - began)))
                except Exception as error:  # noqa: BLE001 - Ray in between, or a bug: all is tried again
                    traceback.print_exc()
                    self.troubles.append(last_line(error))
                if self.troubles:
                    time.sleep(1)
        self._free_workers(lambda one: True)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)  # the next launch makes another

    def _attempt_write(self, act: Callable[..., None], *words: Any) -> bool:
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
        return time.monotonic() - self.busy > IDLE_SUPERVISOR_SECONDS

    def _turn(self, now: float) -> None:
        while self.waiting:
            try:
                self._begin(launches.read_launch(self.waiting[0]))
            except (UserError, ValueError, KeyError, TypeError) as error:  # a damaged file of one launch
                self.news.setdefault(self.waiting[0], []).append(f"not begun: {error}")
            self.waiting.popleft()
        if self.running:
            ready, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
            for ref in ready:
                self._attempt_write(self._ended, ref, now)
        self._attempt_write(self._look_for_cancelled)
        self.queue.over_budget(now)
        for item in [] if processes.node_is_draining() else self.queue.admit(self._free_devices(), now):
            if not self._attempt_write(self._start, item, now):
                self.queue.ended(item.identity, "again", now)
        self._attempt_write(self._record_decisions)
        for launch in [one for one in self.open.values() if self.queue.is_over(one.id)]:
            self._attempt_write(self._end, launch, now)
        self._free_workers(lambda one: now - one.since > IDLE_WORKER_SECONDS)
        if now - self.written >= STATE_SECONDS:
            self.written = now
            self._attempt_write(self._ask_to_stop)
            self._attempt_write(self._write, now)

    def _begin(self, launch: Launch) -> None:
        """Take a launch's runs into the queue; what is finished is finished, what was left so stays so."""
        items, before = [], self.queue.states()
        for task in launch.tasks:
            items.append(QueueItem(task.identity, task.title, task_devices(launch, task), task.needs))
            if before.get(task.identity, ("",))[0] not in ("waiting", "running"):
                self.states[task.identity] = RunState(task, launch)
            self.syncing.watch(task.folder)  # a finished one too: its last words may not have been sent
        terms = launch.terms
        self.queue.add(
            launch.id,
            items,
            max_concurrent=terms.max_concurrent,
            max_device_hours=terms.max_device_hours,
            spent=launches.hours_used(launch.id),
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
            record, left = folder.result(), folder.unfinished()
            if record:
                self.queue.ended(task.identity, "finished", now, usable=record.status == FINISHED)
            elif left and left.get("asked", now) > asked:
                self.queue.ended(task.identity, left["why"], now, left["text"])

    def _record_decisions(self) -> None:
        """Write down what the queue has decided: what will not run, as it was cancelled, is over its budget, or
        needs what failed.
        """
        self.decisions += self.queue.news()
        told: Counter[tuple[str, str]] = Counter()
        while self.decisions:  # what cannot be written down now, on a full disk, is not forgotten
            identity, state, why = self.decisions[0]
            known = self.states[identity]
            text = self._budget_words(identity) if state == "over-budget" else why or CANCELLED
            self._mark_unfinished(known.task, state, text)
            self.decisions.popleft()
            for launch in self._wanted_by(identity):
                told[launch, text] += 1
                if told[launch, text] == 1:
                    self.news[launch].append(f"{known.task.title}: {text}")
        for (launch, text), times in told.items():
            if times > 1:
                self.news[launch].append(f"{times - 1:,} more: {text}")

    def _mark_unfinished(self, task: Task, why: Any, text: str, asked: float | None = None) -> None:
        launches.mark_unfinished(task, why, text, asked)
        self.syncing.watch(task.folder)

    def _ask_to_stop(self) -> None:
        """Those whose launches are all over their budgets; again, where the request was lost."""
        for one in self.running.values():
            entry = self.queue.entries[one.task.identity]
            if entry.stop and entry.stop.becomes == "over-budget" and entry.stop.wanted == len(entry.wanted):
                folder = RunFolder(one.task.folder)
                if not folder.stop_reason():
                    folder.request_stop("over-budget")

    def _look_for_cancelled(self) -> None:
        """Some of the waiting runs, in turn: was one cancelled?"""
        for _ in range(min(CANCEL_CHECKS, len(self.look))):
            identity = self.look.popleft()
            state = self.queue.state(identity)
            if state not in ("waiting", "running"):
                continue
            if RunFolder(self.states[identity].task.folder).stop_reason() == "cancelled":
                self.queue.cancel(identity)  # one that runs stops by itself; it will not be tried again
            else:
                self.look.append(identity)

    # Devices

    def _gpu(self) -> bool:
        """Whether runs are trained on GPUs: for good, once there was one, also when all are lost for a while."""
        self.had_gpu = self.had_gpu or ray.cluster_resources().get("GPU", 0) > 0
        return self.had_gpu

    def _device_count(self) -> int:
        return int(ray.cluster_resources().get("GPU" if self._gpu() else "CPU", 0))

    def _free_devices(self) -> int:
        """Devices that none of our runs uses; whoever else uses the cluster makes ours wait at Ray's door."""
        used = sum(task_devices(one.launch, one.task) for one in self.running.values())
        return max(0, self._device_count() - used)

    def _free_workers(self, which: Callable[[IdleWorker], bool]) -> None:
        """End idle processes, whose devices others need."""
        for one in [one for one in self.idle if which(one)]:
            ray.kill(one.runner)
            self.idle.remove(one)

    # One run

    def _start(self, item: QueueItem, now: float) -> None:
        known = self.states[item.identity]
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
        why, when = folder.stop_request()
        if why == "cancelled":
            self._mark_unfinished(task, "cancelled", CANCELLED, when)
            self.queue.ended(item.identity, "cancelled", now, CANCELLED)
            return
        folder.clear_unfinished()
        known.attempts += 1
        one = Attempt(
            task, launch, datetime.now(UTC).isoformat(timespec="seconds"), last_step(folder), self._gpu()
        )
        self.running[self._train(one)] = one
        how = f"on {item.devices} {'GPUs' if one.gpu else 'processes'} " if item.devices > 1 else ""
        how += f"from step {one.step:,}" if one.step else "from the beginning"
        how += f", attempt {known.attempts}" if known.attempts > 1 else ""
        folder.log(f"started {how}")
        self._add_news(item.identity, f"started {how}")

    def _train(self, one: Attempt) -> Any:
        """Start it; the reference to what it will answer."""
        raw, devices = one.task.to_dict(), task_devices(one.launch, one.task)
        where = {"env_vars": worker_environment(one.launch) | ({} if one.gpu else {"CUDA_VISIBLE_DEVICES": ""})}
        if devices > 1:
            self._free_workers(lambda idle: True)
            # Where the supervisor is: a node that is lost, or asked to end, must not take others' ranks along.
            return train_together.options(runtime_env=where, resources=HEAD_RESOURCE).remote(raw, devices, one.gpu)
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
            how, why, when = "died", death_reason(fault), 0.0
        try:
            record = folder.result()
        except UserError as error:
            record, how, why = None, "failed", str(error)
        if record:
            wrong = record.metrics.get("test/top1_error_pct")
            told = record.ended if wrong is None else f"test error {wrong:.2f} %"
            self._log_end(
                task, "finished", told if record.status == FINISHED else f"did not converge: {record.ended}"
            )
            self.queue.ended(task.identity, "finished", now, told, usable=record.status == FINISHED)
        elif how == "failed":
            self._failed(task, why, now)
        elif how == "stopped" and why:
            text = CANCELLED if why == "cancelled" else self._budget_words(task.identity)
            self._mark_unfinished(task, why, f"{text}; stopped after step {last_step(folder):,}, resumable", when)
            self._log_end(task, "stopped", f"{text}; resumable after step {last_step(folder):,}")
            self.queue.ended(task.identity, why, now, text)
        else:
            self._retry(one, how, LEAVING if how == "stopped" else why, now)
        del self.running[ref]
        self.syncing.watch(task.folder)
        if one.runner and (how == "died" or (how == "stopped" and not why)):
            ray.kill(one.runner)
        elif one.runner:
            self.idle.append(IdleWorker(one.runner, (one.launch.code, one.gpu)))

    def _log_end(self, task: Task, how: str, why: str) -> None:
        RunFolder(task.folder).log(f"{how}: {why}")
        self._add_news(task.identity, f"{how}: {why}")

    def _failed(self, task: Task, why: str, now: float) -> None:
        self._mark_unfinished(task, "failed", why)
        self._log_end(task, "failed", why)
        self.queue.ended(task.identity, "failed", now, why)

    def _retry(self, one: Attempt, how: str, why: str, now: float) -> None:
        """Back into the queue; but what dies over and over at the same place has failed.

        A lost machine, or a process that waited for a run and may have died before, is not the run's fault.
        """
        known, step = self.states[one.task.identity], last_step(RunFolder(one.task.folder))
        if how == "stopped" or step > one.step:
            known.failures = 0
        elif not one.reused and LOST not in why:
            known.failures += 1
        if known.failures >= MAX_FAILURES:
            self._failed(
                one.task, f"died {MAX_FAILURES} times in a row without progress; the last time: {why}", now
            )
            return
        self._log_end(one.task, how, f"{why}; to go on from step {step:,}")
        self.queue.ended(one.task.identity, "again", now, why)

    def _wanted_by(self, identity: str) -> list[str]:
        """The launches that wait for a run."""
        return [name for name in self.queue.entries[identity].wanted if name in self.open]

    def _budget_words(self, identity: str) -> str:
        """Whose budget is used up, as all that want the run have one."""
        wanting = [self.open[name] for name in self._wanted_by(identity)] or [self.states[identity].launch]
        hours = [launch.terms.max_device_hours or 0.0 for launch in wanting]
        return f"the launch's budget of {max(hours):g} device hours is used up"

    # What is written down

    def _add_news(self, identity: str, text: str) -> None:
        """Tell all launches that want this run."""
        for launch in self._wanted_by(identity):
            self.news[launch].append(f"{self.states[identity].task.title}: {text}")

    def _end(self, launch: Launch, now: float) -> None:
        launches.record_hours(launch.id, self.queue.spent(launch.id, now))
        launches.mark_ended(launch.id)
        del self.open[launch.id]

    def _write(self, now: float) -> None:
        """state.json, for whoever asks how things are; and how much of the budgets is used."""
        if now - self.saved >= HOURS_SECONDS:
            self.saved = now
            for name in self.open:
                launches.record_hours(name, self.queue.spent(name, now))
        free = self._free_devices()
        waiting = self.queue.waiting(free)
        runs: dict[str, Any] = {
            identity: {"state": state, "why": waiting.get(identity, why)}
            for identity, (state, why) in self.queue.states().items()
        }
        for one in self.running.values():
            where = RunFolder(one.task.folder).read_progress().get("host", "")
            attempts = self.states[one.task.identity].attempts
            runs[one.task.identity] |= {"since": one.began, "attempt": attempts, "node": where}
        state = {
            "time": time.time(),
            "devices": {"all": self._device_count(), "free": free, "kind": "GPU" if self._gpu() else "CPU"},
            "runs": runs,
            "trouble": "; ".join(filter(None, (*dict.fromkeys(self.troubles), self.syncing.trouble))),
        }
        write_atomically(token.cluster_folder() / "state.json", json.dumps(state))


def task_devices(launch: Launch, task: Task) -> int:
    """Devices that a task is trained on: those asked for, but what cannot be shared takes one."""
    return launch.terms.devices if task.is_distributable else 1


def worker_environment(launch: Launch) -> dict[str, str]:
    """Environment of the processes that train: the launch's own code, and this project's folders."""
    name = "lo0" if sys.platform == "darwin" else "lo"
    loopback = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if is_loopback_only() else {}
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
