"""Runs in worker processes: whatever happens to one, the others go on and nothing stays behind."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data import manifest, sources
from pipeline.declare.derived import EnsembleSpec, TransferSpec
from pipeline.plan.expand import DerivedRun
from pipeline.plan.identity import identity
from pipeline.schedule import execute, local
from pipeline.schedule.local import run_all, worker_count
from pipeline.plan.task import Task
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import FORKSERVER, smoke_run, smoke_task, journal_metrics, train_in, weights


@pytest.fixture(autouse=True)
def quick_processes(monkeypatch):
    """Workers forked from a process that has imported everything; that they start afresh is for test_cli.py."""
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda _: FORKSERVER)


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """The processes of a test; after it, none of them is left."""
    found = []
    start = local.Worker.start

    def noted(self):
        start(self)
        found.append(self.process)

    monkeypatch.setattr(local.Worker, "start", noted)
    yield found
    assert [process for process in found if process.is_alive()] == []


def long(seed=0, steps=100_000):
    """A run that does not end by itself while a test lasts."""
    return smoke_run(seed=seed, changes={"train.steps": steps, "train.eval_every": steps, "train.log_every": steps})


def go(tasks, workers=2, happened=lambda event: None, tick=lambda: None):
    events = []

    def hear(event):
        events.append(event)
        happened(event)

    ending = run_all(tasks, workers=workers, threads=1, on_event=hear, tick=tick)
    return ending, events


def kinds(events, task):
    return [event.kind for event in events if event.task is task]


def test_all_runs_end_and_each_is_told(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(variant, seed)) for seed in (0, 1) for variant in ("plain-20", "resnet-20")]
    ending, events = go(tasks)
    assert ending == "ended"
    for task in tasks:
        assert kinds(events, task) == ["started", "ended"]
        [record] = [event.record for event in events if event.task is task and event.record]
        assert record == RunFolder(task.folder).result()
        assert (record.variant, record.seed) == (task.run.variant, task.run.seed)


def test_a_run_in_a_worker_has_the_bits_of_one_in_this_process(tmp_path):
    task = smoke_task(tmp_path / "runs", smoke_run())
    go([task])
    train_in(tmp_path / "here", smoke_run())
    assert weights(task.folder) == weights(tmp_path / "here")
    assert journal_metrics(task.folder) == journal_metrics(tmp_path / "here")


def test_what_is_finished_is_not_trained_again(tmp_path):
    task = smoke_task(tmp_path, smoke_run())
    go([task])
    before = (task.folder / "result.json").stat().st_mtime_ns
    ending, events = go([task])
    assert (ending, kinds(events, task)) == ("ended", ["ended"])
    assert (task.folder / "result.json").stat().st_mtime_ns == before


def pid_of(task):
    """The process that trains it, once it does."""
    for _ in range(300):
        pid = RunFolder(task.folder).read_progress().get("pid")
        if pid:
            return pid
        time.sleep(0.1)
    raise AssertionError("it does not train")


def in_the_background(what):
    thread = threading.Thread(target=what)
    thread.start()
    return thread


def test_a_killed_worker_is_reported_and_the_other_runs_go_on(tmp_path):
    killed, others = smoke_task(tmp_path, long()), [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (1, 2)]
    thread = in_the_background(lambda: os.kill(pid_of(killed), signal.SIGKILL))
    ending, events = go([killed, *others], workers=1)
    thread.join()
    assert ending == "failed"
    assert kinds(events, killed) == ["started", "failed"]
    said = next(event.text for event in events if event.kind == "failed")
    assert said == "its process was ended by signal 9; run the same command again to resume"
    assert [kinds(events, task) for task in others] == [["started", "ended"]] * 2


def test_a_second_call_finishes_what_a_killed_worker_left(tmp_path, monkeypatch):
    task = smoke_task(tmp_path / "runs", smoke_run(changes={"train.steps": 60}))
    train_in(tmp_path / "here", task.run)

    def kill_in_the_middle():
        pid = pid_of(task)
        while not RunFolder(task.folder).checkpoint_files():
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(
        "pipeline.train.callback.CHECKPOINT_SECONDS", 0.0
    )  # in this process; the worker has its own
    train_in_part = in_the_background(kill_in_the_middle)
    monkeypatch.setattr(local, "worker_main", often_saving)
    ending, _ = go([task])
    train_in_part.join()
    assert ending == "failed"
    monkeypatch.undo()
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda _: FORKSERVER)
    ending, events = go([task])
    assert (ending, kinds(events, task)) == ("ended", ["started", "ended"])
    assert weights(task.folder) == weights(tmp_path / "here")
    assert journal_metrics(task.folder) == journal_metrics(tmp_path / "here")


WORK = local.worker_main


def often_saving(*words):
    """A worker's life with a checkpoint after every update."""
    os.environ["REPRO_CHECKPOINT_SECONDS"] = "0"
    WORK(*words)


def test_an_idle_worker_that_died_is_replaced(tmp_path, started):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in range(3)]
    killed = []

    def kill_after_the_first(event):
        if event.kind == "ended" and not killed:
            [process] = started
            process.kill()
            process.join(5)
            killed.append(process)

    ending, events = go(tasks, workers=1, happened=kill_after_the_first)
    assert killed
    assert ending == "ended"
    assert [kinds(events, task) for task in tasks] == [["started", "ended"]] * 3


def test_a_run_that_another_process_trains_is_waited_for(tmp_path):
    task = smoke_task(tmp_path, smoke_run())
    other = RunFolder(task.folder)
    other.path.mkdir(parents=True)
    lock = FileLock(other.lock_file)
    lock.acquire()

    def as_another_would(event):
        if event.kind == "waiting":
            train_in(task.folder, task.run)
            lock.release()

    ending, events = go([task], happened=as_another_would)
    assert ending == "ended"
    assert kinds(events, task) == ["waiting", "ended"]
    assert events[0].text == "another repro command is training this run; waiting for its result"
    assert events[1].record == other.result()


def test_ctrl_c_leaves_checkpoints_and_the_next_call_ends_with_the_same_bits(tmp_path):
    tasks = [smoke_task(tmp_path / "runs", smoke_run(seed=seed, changes={"train.steps": 60})) for seed in (0, 1, 2)]
    pressed = []

    def press(_event=None):
        going = [task for task in tasks if RunFolder(task.folder).read_progress()]
        if len(going) == 2 and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    ending, events = go(tasks, tick=press)
    assert ending == "stopped"
    assert kinds(events, tasks[0]) == kinds(events, tasks[1]) == ["started", "stopping", "stopped"]
    assert kinds(events, tasks[2]) == []
    assert all(RunFolder(task.folder).last_checkpoint(pytest.fail) for task in tasks[:2])
    ending, _ = go(tasks)
    assert ending == "ended"
    train_in(tmp_path / "here", tasks[1].run)
    assert weights(tasks[1].folder) == weights(tmp_path / "here")


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    task = smoke_task(tmp_path, long())

    def press(event):
        if event.kind in ("started", "stopping"):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests themselves run in the background
    with pytest.raises(KeyboardInterrupt):
        go([task], happened=press)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_stops_as_ctrl_c_does(tmp_path):
    task = smoke_task(tmp_path, long())
    ending, events = go([task], happened=lambda e: e.kind == "started" and os.kill(os.getpid(), signal.SIGTERM))
    assert (ending, kinds(events, task)) == ("stopped", ["started", "stopping", "stopped"])


def test_workers_whose_parent_is_gone_leave_a_checkpoint_and_end(tmp_path):
    task = smoke_task(tmp_path, long())
    parent = FORKSERVER.Process(target=run_in_a_parent, args=(task,))
    parent.start()
    folder = RunFolder(task.folder)
    worker = pid_of(task)
    parent.kill()
    parent.join()
    for _ in range(200):
        if not lives(worker):
            break
        time.sleep(0.1)
    assert not lives(worker)
    assert folder.last_checkpoint(pytest.fail)
    assert not folder.is_training()


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def run_in_a_parent(task):
    run_all([task], workers=1, threads=1, on_event=lambda _: None)


def class_folders(root):
    """A data set of two classes, eight pictures each."""
    for split in ("train", "test"):
        for number, name in enumerate(("dark", "light")):
            folder = root / "shades" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (16, 16), (100 * number + i,) * 3).save(folder / f"{i}.png")


def test_a_user_s_mistake_in_one_run_does_not_stop_the_others(tmp_path):
    data = tmp_path / "data"
    class_folders(data)
    run = smoke_run(changes={"data.name": "shades", "data.augment": [], "train.batch_size": 4})
    found = manifest.manifest_to_dict(manifest.manifest_of(sources.load_images("shades", data)))
    broken = Task(run, "broken", "code", found, tmp_path / "runs" / "broken", data)
    (data / "shades/train/dark/3.png").write_bytes(b"not a picture")
    good = [smoke_task(tmp_path / "runs", smoke_run(seed=seed)) for seed in (0, 1)]
    ending, events = go([good[0], broken, good[1]], workers=1)
    assert ending == "failed"
    assert kinds(events, broken) == ["started", "failed"]
    said = next(event.text for event in events if event.kind == "failed")
    assert "3.png cannot be read as an image; restore or remove it" in said
    assert "Traceback" not in said
    assert [kinds(events, task) for task in good] == [["started", "ended"]] * 2


def test_data_that_changed_since_the_run_was_named_is_refused(tmp_path):
    data = tmp_path / "data"
    class_folders(data)
    run = smoke_run(changes={"data.name": "shades", "data.augment": [], "train.batch_size": 4})
    found = manifest.manifest_to_dict(manifest.manifest_of(sources.load_images("shades", data)))
    (data / "shades/train/dark/3.png").unlink()
    task = Task(run, "changed", "code", found, tmp_path / "runs" / "changed", data)
    execute.load_cached_images.cache_clear()
    with pytest.raises(UserError, match=r"shades: the images changed since the command began; run the same command again"):
        execute.execute_task(task, threads=1, stop=lambda: False, on_event=lambda *_: None)


def test_an_error_of_ours_is_shown_whole_and_the_others_go_on(tmp_path):
    bad = smoke_task(tmp_path, smoke_run())
    bad.manifest.pop("classes")
    bad.manifest["classes"] = 7
    good = smoke_task(tmp_path, smoke_run(seed=1))
    ending, events = go([bad, good], workers=1)
    assert ending == "failed"
    assert "Traceback" in next(event.text for event in events if event.kind == "failed")
    assert kinds(events, good) == ["started", "ended"]


def test_as_many_workers_as_cores_allow(monkeypatch):
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
def test_each_worker_has_a_gpu_of_its_own_among_those_allowed(monkeypatch, visible, number, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(local.signal, "signal", lambda *_: None)
    ours, theirs = FORKSERVER.Pipe()
    ours.close()
    local.worker_main(theirs, 1, 1, number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    theirs.close()


def test_nothing_is_imported_for_training_before_there_is_a_run():
    """So that a worker starts in half a second and a command's help at once."""
    assert "import torch" not in Path(execute.__file__).read_text().split("def worker_count")[0]


@pytest.mark.parametrize(
    ("gpus", "cores", "workers", "readers"),
    [(0, 32, 4, 1), (1, 16, 1, 16), (8, 32, 8, 4), (8, 4, 8, 1), (1, 64, 1, 16)],
)
def test_workers_share_the_cores_to_read_photographs(monkeypatch, gpus, cores, workers, readers):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr(local, "available_cpus", lambda: cores)
    assert local.reader_count(workers) == readers


# --- steps -------------------------------------------------------------------------------------------------


def a_step(root, tasks, kind=None):
    """The task of a step that consumes the runs of other tasks."""
    kind = kind or EnsembleSpec(kind="ensemble", members={tasks[0].run.variant: len(tasks)})
    runs = tuple(task.run for task in tasks)
    step = DerivedRun(runs[0].experiment, runs[0].scale, "together", runs[0].seed, kind, runs)
    needs = tuple(task.identity for task in tasks)
    name = identity(step, manifest="m", code="code", members=needs)
    return replace(tasks[0], run=step, identity=name, folder=root / name, needs=needs)


def test_a_step_is_done_when_its_runs_have_ended(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (0, 1)]
    step = a_step(tmp_path, tasks)
    ending, events = go([step, *tasks])  # whatever its place in the line
    assert ending == "ended"
    assert kinds(events, step) == ["started", "ended"]
    last = [event.kind for event in events].index("ended", 2) if events[0].task is step else len(events) - 2
    assert all(event.task is step for event in events[last:])
    record = RunFolder(step.folder).result()
    assert record.ended == "2 networks averaged"
    assert RunFolder(step.folder).description()["needs"] == [
        {"run": f"resnet-20 seed {task.run.seed}", "identity": task.identity} for task in tasks
    ]


def test_a_step_finds_runs_that_ended_before(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (0, 1)]
    go(tasks)
    step = a_step(tmp_path, tasks)
    assert go([step])[0] == "ended"
    before = (step.folder / "result.json").stat().st_mtime_ns
    ending, events = go([step])
    assert (ending, kinds(events, step)) == ("ended", ["ended"])
    assert (step.folder / "result.json").stat().st_mtime_ns == before


def diverges(seed):
    """A run whose loss soon is no number."""
    return smoke_run(seed=seed, changes={"train.lr": 1e30})


def test_a_run_that_did_not_converge_leaves_its_step_undone_with_the_reason_and_the_others_go_on(tmp_path):
    bad, *good = [smoke_task(tmp_path, run) for run in (diverges(0), smoke_run(seed=1), smoke_run(seed=2))]
    steps = [a_step(tmp_path, [bad, good[0]]), a_step(tmp_path, good)]
    ending, events = go([bad, *good, *steps])
    assert ending == "ended"  # nothing went wrong but the network
    assert kinds(events, steps[0]) == ["left"]
    assert kinds(events, steps[1]) == ["started", "ended"]
    said = next(event.text for event in events if event.kind == "left")
    assert said.startswith("needs resnet-20 seed 0, which did not converge: the loss became")
    folder = RunFolder(steps[0].folder)
    left = folder.unfinished()
    assert (left["why"], left["text"]) == ("failed", said)
    assert folder.description()["variant"] == "together"
    assert folder.result() is None


def test_a_run_that_failed_leaves_its_step_undone(tmp_path):
    bad, good = smoke_task(tmp_path, smoke_run()), smoke_task(tmp_path, smoke_run(seed=1))
    bad.manifest["sha256"] = "0" * 64
    step = a_step(tmp_path, [bad, good])
    ending, events = go([bad, good, step], workers=1)
    assert ending == "failed"
    assert kinds(events, good) == ["started", "ended"]
    assert kinds(events, step) == ["left"]
    assert RunFolder(step.folder).unfinished()["text"] == (
        "needs resnet-20 seed 0, which failed: noise: the images changed since the command began; run the same command again"
    )


def test_a_step_of_runs_that_nobody_makes_is_left_with_the_reason(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (0, 1)]
    step = a_step(tmp_path, tasks)
    ending, events = go([step])
    assert (ending, kinds(events, step)) == ("ended", ["left"])
    assert events[0].text == "needs resnet-20 seed 0, which has not been trained on this machine (and 1 more)"


def test_ctrl_c_leaves_the_steps_for_the_next_time(tmp_path):
    tasks = [smoke_task(tmp_path, long()), smoke_task(tmp_path, smoke_run(seed=1))]
    step = a_step(tmp_path, tasks)

    def press(event):
        if event.kind == "ended":
            os.kill(os.getpid(), signal.SIGINT)

    ending, events = go([*tasks, step], happened=press)
    assert (ending, kinds(events, step)) == ("stopped", [])
    assert RunFolder(step.folder).unfinished() == {}


def test_two_commands_do_a_step_once(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (0, 1)]
    go(tasks)
    step = a_step(tmp_path, tasks)
    said = []
    assert execute.execute_task(step, threads=1, stop=lambda: False, on_event=lambda *words: said.append(words))
    assert [words[0] for words in said] == ["started"]
    lock = FileLock(RunFolder(step.folder).lock_file)
    with lock:  # as another would hold it
        assert (
            execute.execute_task(step, threads=1, stop=lambda: True, on_event=lambda *words: said.append(words)) is None
        )
    assert said[1:] == [("waiting", "another repro command is training this run; waiting for its result")]
    record = execute.execute_task(step, threads=1, stop=lambda: False, on_event=pytest.fail)
    assert record == RunFolder(step.folder).result()


def test_a_transfers_set_that_changed_is_refused(tmp_path):
    task = smoke_task(tmp_path / "runs", smoke_run())
    kind = TransferSpec(kind="transfer", of="resnet-20", data="shades", c=1.0)
    data = tmp_path / "data"
    class_folders(data)
    step = replace(a_step(tmp_path / "runs", [task], kind), data_root=data)
    execute.load_cached_images.cache_clear()
    with pytest.raises(UserError, match=r"shades: the images changed since the command began; run the same command again"):
        execute.execute_task(step, threads=1, stop=lambda: False, on_event=lambda *_: None)


def test_a_task_of_a_step_is_plain_data_too(tmp_path):
    step = a_step(tmp_path, [smoke_task(tmp_path, smoke_run(seed=seed, changes={"train.lr": 0.05})) for seed in (0, 1)])
    again = Task.from_dict(json.loads(json.dumps(step.to_dict())))
    assert again == step
    assert (again.run.declaration, again.run.changes) == (step.run.declaration, {"train.lr": 0.05})
    assert not again.is_distributable
    run = smoke_task(tmp_path, smoke_run())
    assert Task.from_dict(json.loads(json.dumps(run.to_dict()))) == run
