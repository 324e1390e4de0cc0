"""Test the worker pool: a failed or stopped run does not affect the others, and no process remains."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.schedule import local
from pipeline.schedule.local import run_all, worker_count
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import FORKSERVER, journal_metrics, smoke_run, smoke_task, train_in, weights
from tests.support.worker_pools import derived_task, kinds_of, run_tasks_in_pool, shades_task, write_shades


@pytest.fixture(autouse=True)
def fork_workers(monkeypatch):
    """Fork workers from a process that has imported torch; the tests of the commands spawn them."""
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda _: FORKSERVER)


@pytest.fixture(autouse=True)
def workers(monkeypatch):
    """The worker processes of a test. Fails the test if one of them is alive at its end."""
    processes = []
    start = local.Worker.start

    def start_and_record(self):
        start(self)
        processes.append(self.process)

    monkeypatch.setattr(local.Worker, "start", start_and_record)
    yield processes
    assert [process for process in processes if process.is_alive()] == []


def long_run(seed=0, steps=100_000):
    """Return a run that takes longer than any test."""
    return smoke_run(
        seed=seed, changes={"train.steps": steps, "train.eval_every": steps, "train.log_every": steps}
    )


# --- runs ----------------------------------------------------------------------------------------------------


def test_all_runs_end_with_an_event_each(tmp_path):
    tasks = [
        smoke_task(tmp_path, smoke_run(variant, seed)) for seed in (0, 1) for variant in ("plain-20", "resnet-20")
    ]
    outcome, events = run_tasks_in_pool(tasks)
    assert outcome == "ended"
    for task in tasks:
        assert kinds_of(events, task) == ["started", "ended"]
        [record] = [event.record for event in events if event.task is task and event.record]
        assert record == RunFolder(task.folder).result()
        assert (record.variant, record.seed) == (task.run.variant, task.run.seed)


def test_run_in_a_worker_has_the_bits_of_a_run_in_this_process(tmp_path):
    task = smoke_task(tmp_path / "runs", smoke_run())
    run_tasks_in_pool([task])
    train_in(tmp_path / "expected", smoke_run())
    assert weights(task.folder) == weights(tmp_path / "expected")
    assert journal_metrics(task.folder) == journal_metrics(tmp_path / "expected")


def test_finished_run_is_not_trained_again(tmp_path):
    task = smoke_task(tmp_path, smoke_run())
    run_tasks_in_pool([task])
    written = (task.folder / "result.json").stat().st_mtime_ns
    outcome, events = run_tasks_in_pool([task])
    assert (outcome, kinds_of(events, task)) == ("ended", ["ended"])
    assert (task.folder / "result.json").stat().st_mtime_ns == written


def test_user_error_in_one_run_does_not_stop_the_others(tmp_path):
    data = tmp_path / "data"
    write_shades(data)
    broken = shades_task(data, tmp_path / "runs" / "broken")
    (data / "shades/train/dark/3.png").write_bytes(b"not an image")
    good = [smoke_task(tmp_path / "runs", smoke_run(seed=seed)) for seed in (0, 1)]
    outcome, events = run_tasks_in_pool([good[0], broken, good[1]], workers=1)
    assert outcome == "failed"
    assert kinds_of(events, broken) == ["started", "failed"]
    text = next(event.text for event in events if event.kind == "failed")
    assert "3.png cannot be read as an image; restore or remove it" in text
    assert "Traceback" not in text
    assert [kinds_of(events, task) for task in good] == [["started", "ended"]] * 2


def test_other_errors_are_reported_with_a_traceback(tmp_path):
    failing = smoke_task(tmp_path, smoke_run())
    failing.manifest["classes"] = 7
    good = smoke_task(tmp_path, smoke_run(seed=1))
    outcome, events = run_tasks_in_pool([failing, good], workers=1)
    assert outcome == "failed"
    assert "Traceback" in next(event.text for event in events if event.kind == "failed")
    assert kinds_of(events, good) == ["started", "ended"]


def test_pool_waits_for_a_run_that_another_process_trains(tmp_path):
    task = smoke_task(tmp_path, smoke_run())
    folder = RunFolder(task.folder)
    folder.path.mkdir(parents=True)
    lock = FileLock(folder.lock_file)
    lock.acquire()

    def train_as_the_other_process(event):
        if event.kind == "waiting":
            train_in(task.folder, task.run)
            lock.release()

    outcome, events = run_tasks_in_pool([task], on_event=train_as_the_other_process)
    assert outcome == "ended"
    assert kinds_of(events, task) == ["waiting", "ended"]
    assert events[0].text == "another repro command is training this run; waiting for its result"
    assert events[1].record == folder.result()


def test_runs_that_another_process_trains_go_behind_the_others(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in range(3)]
    folder = RunFolder(tasks[0].folder)
    folder.path.mkdir(parents=True)
    lock = FileLock(folder.lock_file)
    lock.acquire()

    def release_after_the_others(event):
        if event.kind == "waiting":
            lock.release()

    outcome, events = run_tasks_in_pool(tasks, workers=1, on_event=release_after_the_others)
    assert outcome == "ended"
    order = [event.task.run.seed for event in events if event.kind == "ended"]
    assert order == [1, 2, 0]
    assert kinds_of(events, tasks[0]) == ["waiting", "started", "ended"]


# --- killed workers ------------------------------------------------------------------------------------------


def pid_of(task):
    """Return the process that trains a task, once it does."""
    for _ in range(1000):
        pid = RunFolder(task.folder).read_progress().get("pid")
        if pid:
            return pid
        time.sleep(0.1)
    raise AssertionError("the run does not start")


def start_thread(target):
    """Return a started thread that calls `target`."""
    thread = threading.Thread(target=target)
    thread.start()
    return thread


def test_killed_worker_is_reported_and_the_other_runs_continue(tmp_path):
    killed, others = (
        smoke_task(tmp_path, long_run()),
        [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (1, 2)],
    )
    thread = start_thread(lambda: os.kill(pid_of(killed), signal.SIGKILL))
    outcome, events = run_tasks_in_pool([killed, *others], workers=1)
    thread.join()
    assert outcome == "failed"
    assert kinds_of(events, killed) == ["started", "failed"]
    text = next(event.text for event in events if event.kind == "failed")
    assert text == "its process was ended by signal 9; run the same command again to resume"
    assert [kinds_of(events, task) for task in others] == [["started", "ended"]] * 2


WORKER_MAIN = local.worker_main


def worker_with_checkpoint_every_step(*args):
    """Main function of a worker that writes a checkpoint after every step."""
    os.environ["REPRO_CHECKPOINT_SECONDS"] = "0"
    WORKER_MAIN(*args)


def test_next_call_resumes_the_run_of_a_killed_worker(tmp_path, monkeypatch):
    task = smoke_task(tmp_path / "runs", smoke_run(changes={"train.steps": 30}))
    train_in(tmp_path / "expected", task.run)

    def kill_in_the_middle():
        pid = pid_of(task)
        while not RunFolder(task.folder).checkpoint_files():
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    thread = start_thread(kill_in_the_middle)
    monkeypatch.setattr(local, "worker_main", worker_with_checkpoint_every_step)
    outcome, _ = run_tasks_in_pool([task])
    thread.join()
    assert outcome == "failed"
    monkeypatch.undo()
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda _: FORKSERVER)
    outcome, events = run_tasks_in_pool([task])
    assert (outcome, kinds_of(events, task)) == ("ended", ["started", "ended"])
    assert weights(task.folder) == weights(tmp_path / "expected")
    assert journal_metrics(task.folder) == journal_metrics(tmp_path / "expected")


def test_idle_worker_that_died_is_replaced(tmp_path, workers):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in range(3)]
    killed = []

    def kill_after_the_first(event):
        if event.kind == "ended" and not killed:
            [process] = workers
            process.kill()
            process.join(5)
            killed.append(process)

    outcome, events = run_tasks_in_pool(tasks, workers=1, on_event=kill_after_the_first)
    assert killed
    assert outcome == "ended"
    assert [kinds_of(events, task) for task in tasks] == [["started", "ended"]] * 3


def run_pool(task):
    """Run a pool of one worker; main function of a parent process."""
    run_all([task], workers=1, threads=1, on_event=lambda _: None)


def is_alive(pid):
    """Return True for a running process that is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_worker_whose_parent_died_writes_a_checkpoint_and_exits(tmp_path):
    task = smoke_task(tmp_path, long_run())
    parent = FORKSERVER.Process(target=run_pool, args=(task,))
    parent.start()
    folder = RunFolder(task.folder)
    try:
        worker = pid_of(task)
    finally:
        parent.kill()
        parent.join()
    for _ in range(200):
        if not is_alive(worker):
            break
        time.sleep(0.1)
    assert not is_alive(worker)
    assert folder.last_checkpoint(pytest.fail)
    assert not folder.is_training()


# --- signals -------------------------------------------------------------------------------------------------


def test_next_call_after_ctrl_c_ends_with_the_same_bits(tmp_path):
    tasks = [
        smoke_task(tmp_path / "runs", smoke_run(seed=seed, changes={"train.steps": 30})) for seed in (0, 1, 2)
    ]
    interrupted = []

    def interrupt(_event=None):
        training = [task for task in tasks if RunFolder(task.folder).read_progress()]
        if len(training) == 2 and not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    outcome, events = run_tasks_in_pool(tasks, tick=interrupt)
    assert outcome == "stopped"
    assert kinds_of(events, tasks[0]) == kinds_of(events, tasks[1]) == ["started", "stopping", "stopped"]
    assert kinds_of(events, tasks[2]) == []
    assert all(RunFolder(task.folder).last_checkpoint(pytest.fail) for task in tasks[:2])
    outcome, _ = run_tasks_in_pool(tasks)
    assert outcome == "ended"
    train_in(tmp_path / "expected", tasks[1].run)
    assert weights(tasks[1].folder) == weights(tmp_path / "expected")


def test_second_ctrl_c_raises_keyboard_interrupt(tmp_path):
    task = smoke_task(tmp_path, long_run())

    def interrupt(event):
        if event.kind in ("started", "stopping"):
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)  # SIG_IGN if the tests run in the background
    with pytest.raises(KeyboardInterrupt):
        run_tasks_in_pool([task], on_event=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_cancelled_run_stops_resumable_and_the_others_continue(tmp_path):
    cancelled, other = smoke_task(tmp_path, long_run()), smoke_task(tmp_path, smoke_run(seed=1))
    folder = RunFolder(cancelled.folder)

    def cancel():
        if folder.read_progress() and not folder.stop_reason():
            folder.request_stop("cancelled")

    outcome, events = run_tasks_in_pool([cancelled, other], workers=1, tick=cancel)
    assert outcome == "stopped"
    assert kinds_of(events, cancelled) == ["started", "stopped"]
    assert [event.text for event in events if event.kind == "stopped"] == ["cancelled by repro cancel; resumable"]
    assert kinds_of(events, other) == ["started", "ended"]
    assert folder.last_checkpoint(pytest.fail)


def test_sigterm_stops_runs_as_ctrl_c_does(tmp_path):
    task = smoke_task(tmp_path, long_run())
    outcome, events = run_tasks_in_pool(
        [task], on_event=lambda event: event.kind == "started" and os.kill(os.getpid(), signal.SIGTERM)
    )
    assert (outcome, kinds_of(events, task)) == ("stopped", ["started", "stopping", "stopped"])


# --- workers, GPUs and readers -------------------------------------------------------------------------------


def test_worker_count_is_limited_by_runs_and_cpus(monkeypatch):
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [worker_count(runs, threads) for runs, threads in ((20, 1), (3, 1), (20, 3), (20, 16), (0, 1))] == [
        8,
        3,
        2,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("visible", "number", "expected"), [(None, 1, "1"), ("2,5", 1, "5"), ("GPU-a", 0, "GPU-a"), ("", 0, "")]
)
def test_each_worker_uses_one_of_the_visible_gpus(monkeypatch, visible, number, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(local.signal, "signal", lambda *_: None)
    parent_end, worker_end = FORKSERVER.Pipe()
    parent_end.close()
    local.worker_main(worker_end, 1, 1, number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    worker_end.close()


@pytest.mark.parametrize(
    ("gpus", "cpus", "workers", "readers"),
    [(0, 32, 4, 1), (1, 16, 1, 16), (8, 32, 8, 4), (8, 4, 8, 1), (1, 64, 1, 16)],
)
def test_workers_on_gpus_share_the_cpus_for_reading(monkeypatch, gpus, cpus, workers, readers):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr(local, "available_cpus", lambda: cpus)
    assert local.reader_count(workers) == readers


# --- derived runs --------------------------------------------------------------------------------------------


def test_derived_run_starts_when_its_members_have_ended(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (0, 1)]
    derived = derived_task(tmp_path, tasks)
    outcome, events = run_tasks_in_pool([derived, *tasks])  # in any order
    assert outcome == "ended"
    assert kinds_of(events, derived) == ["started", "ended"]
    last = [event.kind for event in events].index("ended", 2) if events[0].task is derived else len(events) - 2
    assert all(event.task is derived for event in events[last:])
    record = RunFolder(derived.folder).result()
    assert record.ended == "2 networks averaged"
    assert RunFolder(derived.folder).description()["needs"] == [
        {"run": f"resnet-20 seed {task.run.seed}", "identity": task.identity} for task in tasks
    ]


def test_derived_run_uses_members_that_ended_earlier(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (0, 1)]
    run_tasks_in_pool(tasks)
    derived = derived_task(tmp_path, tasks)
    assert run_tasks_in_pool([derived])[0] == "ended"
    written = (derived.folder / "result.json").stat().st_mtime_ns
    outcome, events = run_tasks_in_pool([derived])
    assert (outcome, kinds_of(events, derived)) == ("ended", ["ended"])
    assert (derived.folder / "result.json").stat().st_mtime_ns == written


def diverging_run(seed):
    """Return a run whose loss soon becomes infinite."""
    return smoke_run(seed=seed, changes={"train.lr": 1e30})


def test_derived_run_is_skipped_with_the_reason_if_a_member_did_not_converge(tmp_path):
    diverging, *good = [
        smoke_task(tmp_path, run) for run in (diverging_run(0), smoke_run(seed=1), smoke_run(seed=2))
    ]
    derived_tasks = [derived_task(tmp_path, [diverging, good[0]]), derived_task(tmp_path, good)]
    outcome, events = run_tasks_in_pool([diverging, *good, *derived_tasks])
    assert outcome == "ended"  # a run that did not converge has not failed
    assert kinds_of(events, derived_tasks[0]) == ["skipped"]
    assert kinds_of(events, derived_tasks[1]) == ["started", "ended"]
    text = next(event.text for event in events if event.kind == "skipped")
    assert text.startswith("needs resnet-20 seed 0, which did not converge: the loss became")
    folder = RunFolder(derived_tasks[0].folder)
    unfinished = folder.unfinished()
    assert (unfinished["why"], unfinished["text"]) == ("failed", text)
    assert folder.description()["variant"] == "together"
    assert folder.result() is None


def test_derived_run_is_skipped_if_a_member_failed(tmp_path):
    failing, good = smoke_task(tmp_path, smoke_run()), smoke_task(tmp_path, smoke_run(seed=1))
    failing.manifest["sha256"] = "0" * 64
    derived = derived_task(tmp_path, [failing, good])
    outcome, events = run_tasks_in_pool([failing, good, derived], workers=1)
    assert outcome == "failed"
    assert kinds_of(events, good) == ["started", "ended"]
    assert kinds_of(events, derived) == ["skipped"]
    assert RunFolder(derived.folder).unfinished()["text"] == (
        "needs resnet-20 seed 0, which failed: noise: the images changed since the command began; run the same"
        " command again"
    )


def test_derived_run_is_skipped_if_no_task_trains_its_members(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (0, 1)]
    derived = derived_task(tmp_path, tasks)
    outcome, events = run_tasks_in_pool([derived])
    assert (outcome, kinds_of(events, derived)) == ("ended", ["skipped"])
    assert events[0].text == "needs resnet-20 seed 0, which has not been trained on this machine (and 1 more)"


def test_derived_run_is_not_skipped_after_ctrl_c(tmp_path):
    tasks = [smoke_task(tmp_path, long_run()), smoke_task(tmp_path, smoke_run(seed=1))]
    derived = derived_task(tmp_path, tasks)

    def interrupt(event):
        if event.kind == "ended":
            os.kill(os.getpid(), signal.SIGINT)

    outcome, events = run_tasks_in_pool([*tasks, derived], on_event=interrupt)
    assert (outcome, kinds_of(events, derived)) == ("stopped", [])
    assert RunFolder(derived.folder).unfinished() == {}
