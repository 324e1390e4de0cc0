"""The supervisor: an actor on the head that starts queued runs, retries them, and records their end. Imports Ray.

A cluster has one supervisor; it belongs to no terminal and no job. Its state can be rebuilt from the files under
REPRO_HOME, so `repro resume` can start a new one at any time.
"""

import shutil
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray

from pipeline.cluster import launches, processes, token
from pipeline.cluster.attempt import NODE_LOST, death_reason, last_line
from pipeline.cluster.autoscale import DeviceRequest
from pipeline.cluster.launches import Launch, task_devices
from pipeline.cluster.metrics import ClusterMetrics, metric_values
from pipeline.cluster.queue import Queue, QueueItem
from pipeline.cluster.shared_devices import remove_left_groups
from pipeline.cluster.sharing import FreeDevices, as_number, layout_text
from pipeline.cluster.state_file import read_report, state_file, write_supervisor_state
from pipeline.cluster.workers import Attempt, WorkerPool
from pipeline.common.errors import UserError
from pipeline.common.network import report_no_statistics, use_no_proxy
from pipeline.common.words import plural
from pipeline.plan.task import Task
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import RunFolder

TURN_SECONDS = 0.2  # interval of the main loop

STATE_SECONDS = 1.0  # interval of writing state.json

HOURS_SECONDS = 10.0  # interval of writing the device hours used

CANCEL_CHECKS = 200  # waiting runs checked for a cancellation per turn

IDLE_WORKER_SECONDS, IDLE_SUPERVISOR_SECONDS = 60.0, 120.0  # idle time after which they end

MAX_FAILURES = 3  # deaths in a row, without a new checkpoint between them, after which a run has failed

CANCELLED, NODE_DRAINING = "cancelled by repro cancel", "its node is shutting down"


@dataclass
class RunState:
    """The supervisor's record of a run."""

    task: Task
    launch: Launch
    attempts: int = 0
    failures: int = 0
    postponed: bool = False  # once, while a process of another cluster or command trained it


class Supervisor:
    """Starts queued runs on free devices, retries them, and records how they end."""

    def __init__(self) -> None:
        from pipeline.track.sync import BackgroundSync

        use_no_proxy()
        report_no_statistics()
        self.queue = Queue()
        self.pool = WorkerPool()
        self.states: dict[str, RunState] = {}
        self.running: dict[Any, Attempt] = {}  # by the reference to their result
        self.news: dict[str, list[str]] = {}
        self.waiting: deque[str] = deque()  # ids of launches that are not in the queue yet
        self.open: dict[str, Launch] = {}  # launches in the queue that have not ended
        self.cancel_checks: deque[str] = deque()  # active runs, in the order they are checked for a cancellation
        self.decisions: deque[tuple[str, str, str]] = deque()  # news of the queue that are not recorded yet
        self.troubles: list[str] = []  # errors of this turn
        self.last_busy = self.last_state = self.last_hours = time.monotonic()
        self.syncing = BackgroundSync()
        self.requested = DeviceRequest()
        self.metrics = ClusterMetrics()
        shutil.rmtree(token.cluster_folder() / "train", ignore_errors=True)  # left by killed groups of ranks
        if ray.get_runtime_context().was_current_actor_reconstructed:
            remove_left_groups()
            reported = read_report(state_file()).get("launches", [])  # of this cluster, not of others in the home
            self.waiting += [launch_id for launch_id in reported if not launches.is_over(launch_id)]
        threading.Thread(target=self._loop, name="supervisor", daemon=True).start()

    # Calls from other processes

    def add_launch(self, launch_id: str) -> None:
        """Run this launch too."""
        self.last_busy = time.monotonic()
        self.news.setdefault(launch_id, [])
        if launch_id not in self.open and launch_id not in self.waiting:
            self.waiting.append(launch_id)

    def news_since(self, launch_id: str, seen: int) -> tuple[list[str], bool]:
        """Return a launch's news after the first `seen`, and whether the launch has ended."""
        over = launch_id not in self.open and launch_id not in self.waiting
        return self.news.get(launch_id, [])[seen:], over

    # The main loop

    def _loop(self) -> None:
        with self.syncing:
            while not self._is_idle():
                began, self.troubles = time.monotonic(), []
                try:
                    self._turn(began)
                    self._wait(max(0.0, TURN_SECONDS - (time.monotonic() - began)))
                except Exception as error:  # noqa: BLE001 - a lost connection to Ray, or a bug: try again
                    traceback.print_exc()
                    self.troubles.append(last_line(error))
                if self.troubles:
                    time.sleep(1)
        self.pool.kill_idle(lambda worker: True)
        # The next launch starts a new supervisor.
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def _attempt_write(self, write: Callable[..., None], *args: Any) -> bool:
        """Call `write`; an error (a full or unreachable disk) is reported, and the next turn tries again."""
        try:
            write(*args)
        except (OSError, UserError) as error:  # UserError: the same, explained
            self.troubles.append(last_line(error))
            return False
        return True

    def _wait(self, seconds: float) -> None:
        """Wait until an attempt ends, at most `seconds`."""
        if self.running:
            ray.wait(list(self.running), timeout=seconds, fetch_local=False)
        else:
            time.sleep(seconds)

    def _is_idle(self) -> bool:
        if self.running or self.open or self.waiting:
            self.last_busy = time.monotonic()
        return time.monotonic() - self.last_busy > IDLE_SUPERVISOR_SECONDS

    def _turn(self, now: float) -> None:
        while self.waiting:
            try:
                self._open_launch(launches.read_launch(self.waiting[0]))
            except (UserError, ValueError, KeyError, TypeError) as error:  # a damaged launch file
                self.news.setdefault(self.waiting[0], []).append(f"not started: {error}")
            self.waiting.popleft()
        if self.running:
            ready, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
            for ref in ready:
                self._attempt_write(self._end_attempt, ref, now)
        self._attempt_write(self._check_cancelled)
        self.queue.over_budget(now)
        if not processes.node_is_draining():
            self._start_all(self.queue.admit(self._free_devices(), now), now)
        self._attempt_write(self._record_decisions)
        for launch in [launch for launch in self.open.values() if self.queue.is_over(launch.id)]:
            self._attempt_write(self._end_launch, launch, now)
        self.pool.kill_idle(lambda worker: now - worker.since > IDLE_WORKER_SECONDS)
        if now - self.last_state >= STATE_SECONDS:
            self.last_state = now
            self._attempt_write(self._request_budget_stops)
            self._attempt_write(self._write_state, now)
            gpu = self.pool.uses_gpus()
            self.requested.update(self.queue.wanted_devices(now, self.pool.shared.rooms(gpu=gpu)), gpu=gpu)

    # Launches

    def _open_launch(self, launch: Launch) -> None:
        """Add a launch's runs to the queue, except finished ones and those left unfinished after the launch."""
        items, before = [], self.queue.states()
        for task in launch.tasks:
            items.append(QueueItem(task.identity, task.title, task_devices(launch.terms, task), task.needs))
            if before.get(task.identity, ("",))[0] not in ("waiting", "running"):
                self.states[task.identity] = RunState(task, launch)
            self.syncing.watch(task.folder)  # also if finished: its last entries may not be in MLflow yet
        terms = launch.terms
        self.queue.add(
            launch.id,
            items,
            max_concurrent=terms.max_concurrent,
            max_device_hours=terms.max_device_hours,
            spent=launches.hours_used(launch.id),
        )
        self.open[launch.id] = launch
        self.news.setdefault(launch.id, []).append(f"{launch.words}: {plural(len(launch.tasks), 'run')}")
        now, states = time.monotonic(), self.queue.states()
        created = datetime.fromisoformat(
            launch.created
        ).timestamp()  # overrides earlier cancellations and failures
        for task in launch.tasks:
            if states[task.identity][0] in ("waiting", "running"):
                self.cancel_checks.append(task.identity)
            if states[task.identity][0] != "waiting":
                continue
            folder = RunFolder(task.folder)
            try:
                record, left = folder.result(), folder.unfinished()
            except UserError as error:  # a damaged file; the other runs start
                self._attempt_write(self._fail, task, str(error), now)
                continue
            if record:
                self.queue.ended(task.identity, "finished", now, usable=record.status == FINISHED)
            elif left and left.get("asked", now) > created:
                self.queue.ended(task.identity, left["why"], now, left["text"])

    def _end_launch(self, launch: Launch, now: float) -> None:
        launches.record_hours(launch.id, self.queue.spent(launch.id, now))
        launches.mark_ended(launch.id)
        del self.open[launch.id]

    def _open_launches_of(self, identity: str) -> list[str]:
        """Return the open launches that contain a run."""
        return [launch_id for launch_id in self.queue.launches_of(identity) if launch_id in self.open]

    def _add_news(self, identity: str, text: str) -> None:
        """Add a line to the news of all open launches that contain a run."""
        for launch_id in self._open_launches_of(identity):
            self.news[launch_id].append(f"{self.states[identity].task.title}: {text}")

    # Stop requests

    def _record_decisions(self) -> None:
        """Record the runs that ended in the queue: cancelled, over budget, or in need of a run that failed."""
        self.decisions += self.queue.news()
        counts: Counter[tuple[str, str]] = Counter()
        while self.decisions:  # a decision stays here until it is recorded, for example on a full disk
            identity, state, why = self.decisions[0]
            task = self.states[identity].task
            text = self._budget_text(identity) if state == "over-budget" else why or CANCELLED
            self._mark_unfinished(task, state, text)
            self.decisions.popleft()
            for launch_id in self._open_launches_of(identity):
                counts[launch_id, text] += 1
                if counts[launch_id, text] == 1:
                    self.news[launch_id].append(f"{task.title}: {text}")
        for (launch_id, text), count in counts.items():
            if count > 1:
                self.news[launch_id].append(f"{count - 1:,} more: {text}")

    def _request_budget_stops(self) -> None:
        """Request a stop of the runs over budget; again if a request was lost."""
        for attempt in self.running.values():
            if self.queue.must_stop_for_budget(attempt.task.identity):
                folder = RunFolder(attempt.task.folder)
                if not folder.stop_reason():
                    folder.request_stop("over-budget")

    def _check_cancelled(self) -> None:
        """Check some of the active runs, in turn, for a cancellation."""
        for _ in range(min(CANCEL_CHECKS, len(self.cancel_checks))):
            identity = self.cancel_checks.popleft()
            if self.queue.state(identity) not in ("waiting", "running"):
                continue
            if RunFolder(self.states[identity].task.folder).stop_reason() == "cancelled":
                self.queue.cancel(identity)  # a running one stops by itself; this prevents a retry
            else:
                self.cancel_checks.append(identity)

    def _budget_text(self, identity: str) -> str:
        """Return a sentence on the exhausted budget of a run; every launch that contains it has one."""
        selected = [self.open[launch_id] for launch_id in self._open_launches_of(identity)]
        hours = [launch.terms.max_device_hours or 0.0 for launch in selected or [self.states[identity].launch]]
        return f"the launch's budget of {max(hours):g} device hours is used up"

    # Attempts

    def _free_devices(self) -> FreeDevices:
        return self.pool.free_devices(self.running.values())

    def _start_all(self, items: Sequence[QueueItem], now: float) -> None:
        """Start admitted items; after any error, those that have not started wait again."""
        left = {item.identity for item in items}
        try:
            for item in items:
                if self._attempt_write(self._start, item, now):
                    left.remove(item.identity)
        finally:
            for identity in left:
                self.queue.ended(identity, "again", now)

    def _start(self, item: QueueItem, now: float) -> None:
        state = self.states[item.identity]
        state.launch = next(
            (self.open[launch_id] for launch_id in self._open_launches_of(item.identity)), state.launch
        )
        task, folder = state.task, RunFolder(state.task.folder)
        try:
            record = folder.result()
        except UserError as error:
            self._fail(task, str(error), now)
            return
        if record:  # another command trained it in the meantime
            self.queue.ended(item.identity, "finished", now, usable=record.status == FINISHED)
            return
        why, when = folder.stop_request()
        if why == "cancelled":
            self._mark_unfinished(task, "cancelled", CANCELLED, when)
            self.queue.ended(item.identity, "cancelled", now, CANCELLED)
            return
        if not state.postponed and not state.attempts and folder.is_training():
            state.postponed = True
            self.queue.postpone(item.identity, now)
            self._add_news(item.identity, "another repro command is training it; the others go first")
            return
        folder.clear_unfinished()
        state.attempts += 1
        began = datetime.now(UTC).isoformat(timespec="seconds")
        attempt = Attempt(task, state.launch, item.devices, began, folder.last_step(), gpu=self.pool.uses_gpus())
        self.running[self.pool.start(attempt)] = attempt
        text = "" if item.devices == 1 else f"on {layout_text(item.devices, gpu=attempt.gpu)} "
        text += f"from step {attempt.step:,}" if attempt.step else "from the beginning"
        text += f", attempt {state.attempts}" if state.attempts > 1 else ""
        folder.log(f"started {text}")
        self._add_news(item.identity, f"started {text}")

    def _end_attempt(self, ref: Any, now: float) -> None:
        """Record the end of an attempt. All files are written before the attempt is removed from `running`."""
        attempt = self.running[ref]
        task, folder = attempt.task, RunFolder(attempt.task.folder)
        try:
            how, why, when = ray.get(ref)
        except ray.exceptions.RayError as error:
            how, why, when = "died", death_reason(error), 0.0
        try:
            record = folder.result()
        except UserError as error:
            record, how, why = None, "failed", str(error)
        if record:
            self._finish(task, record, now)
        elif how == "failed":
            self._fail(task, why, now)
        elif how == "stopped" and why:
            text = CANCELLED if why == "cancelled" else self._budget_text(task.identity)
            step = folder.last_step()
            self._mark_unfinished(task, why, f"{text}; stopped after step {step:,}, resumable", when)
            self._log_end(task, "stopped", f"{text}; resumable after step {step:,}")
            self.queue.ended(task.identity, why, now, text)
        else:
            self._retry(attempt, how, NODE_DRAINING if how == "stopped" else why, now)
        del self.running[ref]
        self.syncing.watch(task.folder)
        self.pool.release(attempt, reusable=not (how == "died" or (how == "stopped" and not why)))

    def _finish(self, task: Task, record: Record, now: float) -> None:
        error = record.metrics.get("test/top1_error_pct")
        result = record.ended if error is None else f"test error {error:.2f} %"
        converged = record.status == FINISHED
        self._log_end(task, "finished", result if converged else f"did not converge: {record.ended}")
        self.queue.ended(task.identity, "finished", now, result, usable=converged)

    def _fail(self, task: Task, why: str, now: float) -> None:
        self._mark_unfinished(task, "failed", why)
        self._log_end(task, "failed", why)
        self.queue.ended(task.identity, "failed", now, why)

    def _retry(self, attempt: Attempt, how: str, why: str, now: float) -> None:
        """Queue a run again, unless it died `MAX_FAILURES` times in a row without progress.

        The loss of a node does not count, nor the death of a reused process, which another run may have caused.
        """
        task = attempt.task
        state, step = self.states[task.identity], RunFolder(task.folder).last_step()
        if how == "stopped" or step > attempt.step:
            state.failures = 0
        elif not attempt.reused and NODE_LOST not in why:
            state.failures += 1
        if state.failures >= MAX_FAILURES:
            self._fail(task, f"died {MAX_FAILURES} times in a row without progress; last error: {why}", now)
            return
        self._log_end(task, how, f"{why}; resumes from step {step:,}")
        self.queue.ended(task.identity, "again", now, why)

    def _mark_unfinished(self, task: Task, why: Any, text: str, when: float | None = None) -> None:
        launches.mark_unfinished(task, why, text, when)
        self.syncing.watch(task.folder)

    def _log_end(self, task: Task, how: str, why: str) -> None:
        RunFolder(task.folder).log(f"{how}: {why}")
        self._add_news(task.identity, f"{how}: {why}")

    # The state file

    def _write_state(self, now: float) -> None:
        """Write state.json, and every HOURS_SECONDS the device hours used by the open launches."""
        if now - self.last_hours >= HOURS_SECONDS:
            self.last_hours = now
            for launch_id in self.open:
                launches.record_hours(launch_id, self.queue.spent(launch_id, now))
        free = self._free_devices()
        waiting = self.queue.waiting(free)
        runs: dict[str, Any] = {
            identity: {"state": state, "why": waiting.get(identity, why)}
            for identity, (state, why) in self.queue.states().items()
        }
        images_per_second = 0.0
        for attempt in self.running.values():
            progress = RunFolder(attempt.task.folder).read_progress()
            images_per_second += float(progress.get("images_per_second") or 0.0)
            about = {"attempt": self.states[attempt.task.identity].attempts, "node": progress.get("host", "")}
            runs[attempt.task.identity] |= {"since": attempt.began} | about
        requested = self.requested.devices
        devices: dict[str, Any] = {"all": self.pool.device_count(), "free": as_number(free.total)}
        devices |= {} if requested is None else {"requested": requested}
        hours = sum(self.queue.spent(launch_id, now) for launch_id in self.open)
        states = (state for state, _ in self.queue.states().values())
        self.metrics.set(metric_values(states, devices, images_per_second, hours))
        write_supervisor_state(
            {
                "devices": devices | {"kind": "GPU" if self.pool.uses_gpus() else "CPU"},
                "runs": runs,
                "launches": [*self.open, *self.waiting],
                "trouble": "; ".join(filter(None, (*dict.fromkeys(self.troubles), self.syncing.trouble))),
            }
        )
