"""`repro launch`, `status`, `logs`, `cancel`, `resume` and `node`, with a fake cluster that records calls.

With real processes: tests/pipeline/cluster.
"""

import io
import json
import os
import subprocess
import sys
import time
import types
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.cli import cluster as cli_cluster
from pipeline.cli import launch as cli_launch
from pipeline.cli import remote as cli_remote
from pipeline.cli import terminal
from pipeline.cluster import jobs, launches, local_head, node
from pipeline.cluster import status as cluster_status
from pipeline.cluster.local_head import ClusterAddress
from pipeline.cluster.token import clusters_folder
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.load import load_experiment
from pipeline.judge.collect import FinishedRuns
from pipeline.plan.identity import code_hash
from pipeline.track.run_folder import RunFolder
from tests.support.clusters import cluster_files
from tests.support.fake_records import fake_record

RESNET = "resnet/cifar10_depth"
SMOKE = ("launch", RESNET, "--scale", "smoke")
LOCAL = ClusterAddress("127.0.0.1:6379", "http://127.0.0.1:8265", "token", 17)
REMOTE = ClusterAddress("", "http://remote:8265", "")
CODE_HASH = cache(code_hash)  # takes half a second; the same for all tests


class FakeCluster:
    """Records calls; `output` and `code` are those of every job, `running` is this machine's cluster."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.output: str | BaseException = "started\n"
        self.code = 0
        self.running: ClusterAddress | None = LOCAL

    def cluster_at(self, address):
        self.calls.append(("at", address))
        return REMOTE

    def ensure_local_cluster(self, *, report):
        if self.running:
            return self.running
        report("Starting a Ray cluster on this machine.")
        self.calls.append(("start",))
        return LOCAL

    def submit_job(self, cluster, argv, *, code=None, upload=None, settings=None):
        self.calls.append(("submit", cluster, list(argv), code, upload))
        return "job-1"

    def follow_job(self, cluster, job, write):
        if isinstance(self.output, BaseException):
            raise self.output
        write(self.output)
        return self.code

    def follow_launches(self, launch_ids, on_event):
        self.calls.append(("follow", list(launch_ids)))
        on_event("resnet [x] started")
        return self.code

    @property
    def submitted(self):
        """The submitted jobs."""
        return [call for call in self.calls if call[0] == "submit"]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """The fake cluster, which runs on this machine and at every address."""
    made = FakeCluster()
    for name in ("REPRO_INSIDE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("cluster_at", "submit_job", "follow_job"):
        monkeypatch.setattr(jobs, name, getattr(made, name))
    monkeypatch.setattr(local_head, "find_local_cluster", lambda: made.running)  # for status
    monkeypatch.setattr(local_head, "ensure_local_cluster", made.ensure_local_cluster)
    monkeypatch.setattr(cli_launch, "collect_with_warnings", lambda: FinishedRuns([], None))
    monkeypatch.setattr(cli_remote, "publish_launches", lambda ids: made.calls.append(("publish", *ids)))
    monkeypatch.setattr("pipeline.schedule.tasks.code_hash", CODE_HASH)
    monkeypatch.setattr(cli_cluster, "REMOTE_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(cli_cluster, "REFRESH_SECONDS", 0.0)
    connect = types.ModuleType("pipeline.cluster.connect")  # the real one loads Ray
    connect.follow_launches = made.follow_launches
    monkeypatch.setitem(sys.modules, "pipeline.cluster.connect", connect)
    return made


@pytest.fixture
def inside(monkeypatch):
    """The command runs as a job on the cluster."""
    monkeypatch.setenv(jobs.INSIDE_VARIABLE, "1")


@pytest.fixture
def launched(command, fake):
    """A launch of six runs, created by the command."""
    code, _, err = command(*SMOKE)
    assert (code, err) == (0, "")
    (launch,) = launches.all_launches()
    fake.calls.clear()
    return launch


def finish(task) -> None:
    """Give a run a result."""
    folder = RunFolder(task.folder)
    folder.create({})
    run = task.run
    made = fake_record(load_experiment(RESNET), run.variant, run.seed, 50.0, scale="smoke", identity=task.identity)
    folder.finish(made)


# --- launch ------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_starts_nothing(command, fake, tmp_path):
    code, out, err = command(*SMOKE, "--dry-run", "--price", "2", "--max-gpu-hours", "1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "resnet/cifar10_depth at smoke scale on noise"
    assert lines[1].split() == ["variant", "runs", "devices", "images", "device", "time", "cost"]
    assert lines[2].split() == ["plain-20", "3", "runs", "1", "720", "no", "estimate"]  # 3 x 12 steps of 20
    assert lines[5] == (
        "6 runs: 0 finished, 6 to do; 1,440 images to train on, no estimate of the device time yet."
    )
    assert lines[6].startswith("--max-gpu-hours 1: no estimate yet")
    assert fake.calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_launch_is_saved_and_run_by_one_job(command, fake, tmp_path):
    code, out, err = command(*SMOKE, "--gpus-per-run", "2", "--max-gpu-hours", "3", "--max-concurrent", "4")
    assert (code, err) == (0, "")
    (one,) = launches.all_launches()
    assert one.words == "resnet/cifar10_depth at smoke"
    assert one.terms == launches.LaunchTerms(2, 3.0, 4)
    assert len(one.tasks) == 6
    copy = tmp_path / "code" / one.code.rpartition("/")[2]
    assert fake.calls == [("submit", LOCAL, ["carry", one.id], copy, None)]
    assert (copy / "pipeline" / "cli" / "main.py").is_file()
    lines = out.splitlines()
    assert lines[-3:] == [
        "Running in the background; you can close this terminal. Ray dashboard: http://127.0.0.1:8265",
        "started",
        f"Verdicts: repro verify {RESNET}",
    ]


def test_without_a_cluster_one_is_started(command, fake):
    fake.running = None
    code, _, err = command(*SMOKE)
    assert (code, err) == (0, "Starting a Ray cluster on this machine.\n")
    assert [call[0] for call in fake.calls] == ["start", "submit"]


def test_without_a_cluster_no_launch_is_saved(command, fake, monkeypatch):
    fake.running = None

    def refuse(*, report):
        raise UserError("Ray did not start")

    monkeypatch.setattr(local_head, "ensure_local_cluster", refuse)
    assert command(*SMOKE)[::2] == (2, "error: Ray did not start\n")
    assert list(launches.all_launches()) == []


def test_a_launch_whose_job_is_not_accepted_can_be_resumed(command, monkeypatch):
    def refuse(*_, **__):
        raise UserError("the cluster did not accept the job: it is full")

    monkeypatch.setattr(jobs, "submit_job", refuse)
    code, _, err = command(*SMOKE)
    assert code == 2
    assert err == (
        "error: the cluster did not accept the job: it is full; the launch is saved: start it with repro resume\n"
    )
    assert len(list(launches.unfinished_launches())) == 1


def test_failed_runs_give_exit_code_1(command, fake):
    fake.code = 1
    code, _, err = command(*SMOKE)
    assert (code, err) == (1, "Some runs failed. Details: repro status\n")


def test_ctrl_c_ends_the_output_but_not_the_runs(command, fake):
    fake.output = KeyboardInterrupt()
    code, out, err = command(*SMOKE)
    assert code == 130
    assert err == "The runs continue in the background. Status: repro status\nTo stop them: repro cancel all\n"
    assert "Verdicts" not in out
    code, _, err = command(*SMOKE, "--address", "http://remote:8265")
    assert code == 130
    assert err.endswith(
        "Status: repro status --address http://remote:8265\nTo stop them: repro cancel all --address http://remote:8265\n"
    )


def test_finished_runs_are_not_launched(command, fake, launched):
    for task in launched.tasks:
        finish(task)
    code, out, _ = command(*SMOKE)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "6 runs: 6 finished, 0 to do.",
        f"Nothing left to do. Verdicts: repro verify {RESNET}",
    ]
    assert "3 runs, all finished" in out
    assert fake.calls == []
    assert [one.id for one in launches.all_launches()] == [launched.id]


def test_runs_finished_according_to_the_tracking_server_are_not_launched(command, launched, monkeypatch):
    first = launched.tasks[0]
    tracked = fake_record(load_experiment(RESNET), "plain-20", 0, 50.0, scale="smoke", identity=first.identity)
    monkeypatch.setattr(cli_launch, "collect_with_warnings", lambda: FinishedRuns([tracked], None))
    _, out, _ = command(*SMOKE)
    assert "6 runs: 1 finished, 5 to do" in out
    *_, newest = launches.all_launches()
    assert [task.identity for task in newest.tasks] == [task.identity for task in launched.tasks[1:]]


def test_runs_of_an_earlier_launch_are_counted(command, launched):
    assert "6 of them are also part of an earlier launch; each is done once.\n" in command(*SMOKE, "--dry-run")[1]
    launches.mark_ended(launched.id)
    assert "an earlier launch" not in command(*SMOKE, "--dry-run")[1]


def test_in_a_job_a_launch_is_followed_without_another_job(command, fake, inside):
    code, out, err = command(*SMOKE, "--address", "http://remote:8265")
    assert (code, err) == (0, "")
    (one,) = launches.all_launches()
    assert fake.calls == [("follow", [one.id]), ("publish", one.id)]
    assert "resnet [x] started\n" in out


def test_with_an_address_the_same_command_and_the_code_are_sent(command, fake, tmp_path):
    options = ("--suite", "cs231n", "--max-gpu-hours", "2.5", "--dry-run")
    code, out, err = command(*SMOKE, *options, "--address", "http://remote:8265/")
    assert (code, out, err) == (0, "started\n", "Using the cluster at http://remote:8265\n")
    address, (_, cluster, sent, code, upload) = fake.calls
    assert address == ("at", "http://remote:8265/")
    assert cluster == REMOTE
    assert " ".join(sent) == (
        f"launch {RESNET} --scale smoke --suite cs231n --gpus-per-run 1 --max-gpu-hours 2.5 --dry-run"
    )
    assert code is None
    assert upload.parent == tmp_path / "code"
    assert list(launches.all_launches()) == []


def test_the_address_can_come_from_rays_environment_variable(command, fake, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://remote:8265")
    assert command(*SMOKE)[2] == "Using the cluster at http://remote:8265\n"
    assert fake.calls[0] == ("at", "http://remote:8265")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("launch",), "nothing to launch; name an experiment"),
        (("launch", "resnet/cifar10_dept"), "did you mean 'resnet/cifar10_depth'?"),
        ((*SMOKE, "--gpus-per-run", "3"), "3 devices cannot share a batch of 20 images equally"),
        ((*SMOKE, "--suite", "cs"), "unknown suite 'cs'; known suites: cs231n"),
        ((*SMOKE, "--max-gpu-hours", "0"), "--max-gpu-hours 0: must be a number > 0"),
    ],
)
@pytest.mark.parametrize("address", [(), ("--address", "http://remote:8265")])
def test_mistakes_are_reported_before_anything_starts(command, fake, tmp_path, argv, message, address):
    code, out, err = command(*argv, *address)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert fake.calls == []
    assert list(tmp_path.iterdir()) == []


def test_the_command_of_a_job_follows_its_launches(command, fake):
    fake.code = 1
    assert command("carry", "a", "b")[:2] == (1, "resnet [x] started\n")
    assert fake.calls == [("follow", ["a", "b"]), ("publish", "a", "b")]


def test_a_leaderboard_that_cannot_be_published_does_not_change_the_end_of_a_launch(command, fake, monkeypatch):
    def refuse(launch_ids):
        raise UserError("MLflow run 1: its tag repro.record is not a record (cut); delete that run")

    monkeypatch.setattr(cli_remote, "publish_launches", refuse)
    code, _, err = command("carry", "a")
    assert code == 0
    assert err.startswith("The leaderboard in MLflow is not up to date: MLflow run 1: its tag")


# --- status ------------------------------------------------------------------------------------------------


def test_status_shows_launches_and_runs(command, launched):
    code, out, err = command("status")
    assert (code, err) == (0, "")
    assert "  6 runs: 6 not begun; 0.00 device hours used\n" in out
    assert "plain-20 seed 0   not begun" in out
    assert out.endswith("To continue: repro resume\n")


@pytest.fixture
def still_clock(monkeypatch):
    """A clock of `repro status` that stands still, so that two outputs have the same "1 s ago"."""
    now = time.time()
    monkeypatch.setattr(cluster_status, "time", types.SimpleNamespace(time=lambda: now))


@pytest.mark.usefixtures("still_clock")
def test_the_status_of_a_remote_cluster_is_fetched_as_json_and_rendered_locally(command, fake, launched):
    _, text, _ = command("status", "--json")
    fake.output = f"Running entrypoint for job x\n{text}"
    _, local, _ = command("status")
    code, remote, err = command("status", "--address", "http://remote:8265")
    assert (code, err) == (0, "Using the cluster at http://remote:8265\n")
    assert remote == local
    assert fake.submitted == [("submit", REMOTE, ["status", "--json"], None, None)]


def test_an_error_on_a_remote_cluster_is_reported(command, fake):
    fake.output = "Running entrypoint\nerror: no launched run 'x'; no runs have been launched\n"
    code, out, err = command("logs", "x", "--address", "http://remote:8265")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: the cluster at http://remote:8265 reports: no launched run 'x'; no runs have been launched"
    )


def test_watch_refreshes_until_ctrl_c(command, launched, monkeypatch):
    seen = io.StringIO()
    shown = Console(file=seen, force_terminal=True, width=80, height=24)
    monkeypatch.setattr(terminal, "out", shown)
    refreshes = iter([None, None])

    def sleep(_):
        try:
            next(refreshes)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(cli_cluster.time, "sleep", sleep)
    assert command("status", "--watch")[0] == 0
    assert seen.getvalue().count("6 not begun") >= 3
    assert next(refreshes, "none left") == "none left"


def test_watch_with_json_prints_a_line_for_each_interval(command, launched, monkeypatch):
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_cluster.time, "sleep", sleep)
    code, out, _ = command("status", "--watch", "--json", "--every", "15")
    assert (code, waited) == (0, [15.0] * 3)
    statuses = [json.loads(line) for line in out.splitlines()]
    assert [status["launches"][0]["counts"] for status in statuses] == [{"not begun": 6}] * 3
    assert statuses[0]["time"] < statuses[2]["time"]


def test_an_interval_without_watch_is_refused(command):
    assert command("status", "--every", "15") == (
        2,
        "",
        "error: --every is the interval of --watch; add --watch\n",
    )


def test_status_lines_end_when_their_reader_ends(tmp_path):
    status = f"{sys.executable} -m pipeline.cli status --watch --json --every 0.1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {status} | head -n 2"],
        env=os.environ | {"REPRO_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.usefixtures("still_clock")
def test_watch_without_a_terminal_prints_once(command, launched):
    assert command("status", "--watch") == command("status")


# --- logs --------------------------------------------------------------------------------------------------


def test_logs_of_a_waiting_run_say_that_it_has_not_started(command, launched):
    code, out, _ = command("logs", "plain-20/0")
    assert (code, out) == (
        0,
        "plain-20 seed 0 (resnet/cifar10_depth@smoke): no log yet; the run has not started\n",
    )


def test_logs_show_the_log_and_the_outcome(command, launched):
    task = launched.tasks[0]
    RunFolder(task.folder).log("started [from] the beginning")
    finish(task)
    for name in (("plain-20", "seed", "0"), (task.identity[:6],)):
        _, out, _ = command("logs", *name)
        first, last = out.splitlines()
        assert first.endswith("started [from] the beginning")
        assert last == "plain-20 seed 0 (resnet/cifar10_depth@smoke): finished: test error 50.00 %"


def test_follow_prints_new_lines_until_the_run_ends(command, launched, monkeypatch):
    task = launched.tasks[0]
    folder = RunFolder(task.folder)
    folder.log("started")
    steps = iter([lambda: folder.log("continues"), lambda: finish(task)])
    monkeypatch.setattr(cli_cluster.time, "sleep", lambda _: next(steps)())
    _, out, _ = command("logs", "plain-20/0", "--follow")
    assert [line[20:] for line in out.splitlines()[:2]] == ["started", "continues"]
    assert out.count("started") == 1
    assert out.endswith("finished: test error 50.00 %\n")


def test_follow_is_refused_with_json(command, launched):
    code, out, err = command("logs", "plain-20/0", "--follow", "--json")
    assert (code, out) == (2, "")
    assert "--follow prints lines as they come; omit it, or --json" in err


def test_launch_ends_when_its_output_is_closed():
    """As in `repro launch … | head`: the runs continue, the command does not."""
    read, write = os.pipe()
    code = (
        "import sys; from pipeline.cli import remote; from pipeline.cluster import jobs\n"
        "def follow(cluster, job, write):\n"
        "    from contextlib import suppress\n"
        "    for i in range(3):\n"
        "        with suppress(OSError): write('line\\n')\n"
        "    return 0\n"
        "jobs.follow_job = follow\n"
        "sys.exit(remote.show_job(None, 'job', ''))"
    )
    os.close(read)
    ended = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert ended.returncode == terminal.STOPPED
    assert ended.stderr.splitlines()[0].startswith("The runs continue in the background.")
    assert "Traceback" not in ended.stderr


def test_followed_lines_are_printed_once_also_if_one_of_the_same_second_comes_before_them(
    command, launched, monkeypatch
):
    """A measurement comes before events of its second, also those that are printed already."""
    task = launched.tasks[0]
    folder = RunFolder(task.folder)
    folder.create({})
    folder.log("started")
    second = datetime.fromisoformat(folder.log_file.read_text()[:19] + "+00:00").timestamp()
    measure = partial(folder.append_journal, {"step": 10, "time": second, "metrics": {"train/loss": 2.3}})
    steps = iter([measure, lambda: finish(task)])
    monkeypatch.setattr(cli_cluster.time, "sleep", lambda _: next(steps)())
    _, out, _ = command("logs", "plain-20/0", "--follow")
    assert [line[20:] for line in out.splitlines()[:2]] == ["started", "step 10: train/loss 2.3"]
    assert out.count("started") == 1


def test_logs_of_a_remote_cluster_are_printed_locally(command, fake, launched):
    RunFolder(launched.tasks[0].folder).log("started")
    _, fake.output, _ = command("logs", "plain-20/0", "--json")
    assert command("logs", "plain-20/0", "--address", "x")[1] == command("logs", "plain-20/0")[1]
    assert fake.submitted == [("submit", REMOTE, ["logs", "plain-20/0", "--json"], None, None)]


# --- cancel ------------------------------------------------------------------------------------------------


def test_cancel_one_run_and_then_all(command, launched):
    code, out, _ = command("cancel", "plain-20/0")
    assert (code, out) == (
        0,
        f"{RESNET} plain-20 seed 0: cancelled\nTo continue cancelled runs, launch them again.\n",
    )
    assert RunFolder(launched.tasks[0].folder).unfinished()["why"] == "cancelled"
    _, out, _ = command("cancel", "all")
    assert out.startswith("5 waiting runs cancelled\n")
    assert launches.is_over(launched.id)
    assert command("cancel", "all")[1] == "Nothing to cancel: no run is waiting or training.\n"


def test_cancelling_a_training_run_requests_a_stop(command, launched):
    folder = RunFolder(launched.tasks[1].folder)
    folder.create({})
    folder.write_progress(3, 10.0)
    _, out, _ = command("cancel", "resnet-20/0")
    assert out.startswith(f"{RESNET} resnet-20 seed 0: stops after its current step, resumable\n")
    assert folder.stop_reason() == "cancelled"


def test_a_run_that_has_ended_is_not_cancelled(command, launched):
    finish(launched.tasks[0])
    assert command("cancel", "plain-20/0")[1] == "plain-20/0 has already ended.\n"
    code, _, err = command("cancel", "plain-20/9")
    assert code == 2
    assert err.startswith("error: no launched run 'plain-20/9'; use VARIANT/SEED, as in 'plain-20/")


def test_cancel_with_an_address_is_a_job(command, fake):
    fake.output = "5 waiting runs cancelled"  # without a newline at the end
    assert command("cancel", "all", "--address", "x")[1] == "5 waiting runs cancelled\n"
    assert fake.submitted == [("submit", REMOTE, ["cancel", "all"], None, None)]


# --- resume ------------------------------------------------------------------------------------------------


def test_resume_runs_all_unfinished_launches(command, fake, launched):
    second = launches.create_launch("again", launched.code, launches.LaunchTerms(1), launched.tasks)
    code, out, err = command("resume")
    assert (code, err) == (0, "")
    (job,) = fake.submitted
    assert job[2] == ["carry", launched.id, second.id]
    assert str(job[3]) == launched.code
    assert out.splitlines()[0].startswith("Resuming resnet/cifar10_depth at smoke, launched by ")


def test_resume_skips_cancelled_runs_and_those_out_of_budget(command, fake, launched):
    launches.mark_unfinished(launched.tasks[0], "cancelled", "x")
    for task in launched.tasks[1:3]:
        launches.mark_unfinished(task, "over-budget", "x")
    _, out, _ = command("resume")
    assert out.splitlines()[:2] == [
        "1 run cancelled; to retry, launch again.",
        "2 runs out of budget; to retry, launch again.",
    ]
    assert len(fake.submitted) == 1
    assert RunFolder(launched.tasks[0].folder).unfinished()["why"] == "cancelled"


def test_resume_without_work_starts_no_cluster(command, fake, launched):
    fake.running = None
    for task in launched.tasks:
        launches.mark_unfinished(task, "failed", "x")
    assert command("resume")[1].splitlines() == [
        "6 runs failed; to retry, launch again.",
        "Nothing to resume.",
    ]
    assert fake.calls == []
    assert launches.is_over(launched.id)  # or status would advise to resume it, again and again


def test_resume_reports_a_last_launch_that_ran_out_of_budget(command, fake, launched):
    for task in launched.tasks:
        launches.mark_unfinished(task, "over-budget", "x")
    launches.mark_ended(launched.id)
    assert command("resume")[1].splitlines() == [
        "6 runs out of budget; to retry, launch again.",
        "Nothing to resume.",
    ]


def test_resume_leaves_the_launches_of_another_cluster(command, fake, launched):
    """As in a Slurm job that was requeued while another job runs with the same home."""
    (clusters_folder() / "slurm-7").mkdir(parents=True)
    (clusters_folder() / "slurm-7" / "state.json").write_text(
        json.dumps({"time": time.time(), "launches": [launched.id]}), encoding="utf-8"
    )
    assert command("resume")[1].splitlines() == [
        f"Runs on another cluster of this REPRO_HOME: {launched.words}, launched by {launched.by}.",
        "Nothing to resume.",
    ]
    assert fake.submitted == []


def test_a_batch_job_resumes_its_own_launch_only(command, fake, launched, monkeypatch, tmp_path):
    """Two jobs that are preempted together and restarted: neither takes the other's launch."""
    launches.create_launch("of another job", launched.code, launches.LaunchTerms(1), launched.tasks)
    note = tmp_path / "slurm-7.launch"
    monkeypatch.setenv("REPRO_LAUNCH_NOTE", str(note))
    note.write_text(launched.id)
    out = command("resume")[1]
    assert [job[2] for job in fake.submitted] == [["carry", launched.id]]
    assert "of another job" not in out
    launches.mark_ended(launched.id)
    assert command("resume")[1] == "Nothing to resume.\n"


def test_resume_with_other_devices(command, fake, launched, tmp_path):
    assert command("resume", "--gpus-per-run", "2")[0] == 0
    assert [one.terms.devices for one in launches.all_launches()] == [2]
    code, _, err = command("resume", "--gpus-per-run", "3")
    assert code == 2
    assert "3 devices cannot share a batch of" in err
    cluster_files(tmp_path).mkdir(parents=True, exist_ok=True)
    (cluster_files(tmp_path) / "state.json").write_text(json.dumps({"time": 4e9}), encoding="utf-8")
    code, _, err = command("resume", "--gpus-per-run", "1")
    assert code == 2
    assert err == (
        "error: --gpus-per-run 1: running launches keep their devices; stop them with repro cancel all, and launch"
        " again\n"
    )


def test_runs_can_share_a_device_and_be_resumed_with_devices_of_their_own(command, fake, tmp_path):
    assert command(*SMOKE, "--gpus-per-run", "0.25")[0] == 0
    (one,) = launches.all_launches()
    assert (one.terms.devices, one.terms.runs_per_device) == (1, 4)
    assert "4 runs per device" in " ".join(command("status")[1].split())
    assert command("resume", "--gpus-per-run", "1")[0] == 0
    assert [one.terms.runs_per_device for one in launches.all_launches()] == [1]


@pytest.mark.parametrize("argv", [SMOKE, ("resume",)])
def test_a_part_of_a_device_must_be_one_of_equal_parts(command, fake, argv):
    code, _, err = command(*argv, "--gpus-per-run", "0.3")
    assert code == 2
    assert err == (
        "error: --gpus-per-run 0.3: must be an integer >= 1, or 1/N for N runs on each device, as in 0.5, 0.25 or"
        " 1/3\n"
    )
    assert fake.calls == []


def test_resume_with_an_address_is_a_job(command, fake):
    assert command("resume", "--gpus-per-run", "2", "--address", "x")[0] == 0
    assert fake.submitted == [("submit", REMOTE, ["resume", "--gpus-per-run", "2"], None, None)]


def test_resume_in_a_job_follows_the_launches(command, fake, launched, inside):
    assert command("resume")[0] == 0
    assert fake.calls == [("follow", [launched.id]), ("publish", launched.id)]


def test_resume_exits_with_1_for_failed_runs_but_not_for_cancelled_ones(command, launched):
    for task in launched.tasks:
        launches.mark_unfinished(task, "cancelled", "x")
    assert command("resume")[0] == 0
    launches.mark_unfinished(launched.tasks[0], "failed", "x")
    assert command("resume")[0] == 1


# --- a damaged launch --------------------------------------------------------------------------------------


def test_a_damaged_launch_is_reported_and_the_others_continue(command, fake, launched):
    path = launches.launches_folder() / "20000101-000000-000000-dead.json"
    path.write_text('{"id": "2000', encoding="utf-8")
    message = f"Skipped: cannot read the launch file {path}: it is damaged or was written by another version; "
    for argv in (("logs", "plain-20/0"), (*SMOKE, "--dry-run"), ("resume",), ("cancel", "plain-20/0")):
        code, out, err = command(*argv)
        assert code == 0
        assert err.startswith(message)
        assert err.count("\n") == 1
        assert out
    code, out, err = command("status")
    assert (code, err) == (0, "")
    assert message in out
    assert "5 not begun, 1 cancelled" in out
    assert json.loads(command("status", "--json")[1])["damaged"][0].startswith(
        f"cannot read the launch file {path}"
    )
    assert command(*SMOKE)[0] == 0
    command("cancel", "all")
    code, _, err = command("cancel", "all")
    assert code == 2
    assert f"error: nothing was cancelled: cannot read the launch file {path}" in err


# --- node, and imports ------------------------------------------------------------------------------------


def test_a_node_is_a_head_or_joins_one(command, monkeypatch):
    for argv in ((), ("--head", "--address", "head:6379")):
        code, _, err = command("node", *argv)
        assert (code, err) == (
            2,
            "error: use either --head, to start a cluster, or --address HOST:6379, to join one\n",
        )
    calls = []
    monkeypatch.setattr(node, "run_node", lambda **arguments: calls.append(arguments) or 0)
    assert command("node", "--head", "--cpus", "2", "--until-idle", "60")[0] == 0
    assert command("node", "--address", "head:6379", "--listen", "10.0.0.2", "--grace", "5")[0] == 0
    common = {"cpus": None, "gpus": None, "until_idle": None, "autoscaled": None}
    assert calls == [
        common
        | {"head": True, "address": None, "listen": "127.0.0.1", "cpus": 2, "grace": 30.0, "until_idle": 60.0},
        common | {"head": False, "address": "head:6379", "listen": "10.0.0.2", "grace": 5.0},
    ]


def test_commands_that_read_files_load_no_heavy_library(tmp_path):
    code = (
        "import sys\nfrom pipeline.cli.main import main\n"
        "for argv in (['status'], ['cancel', 'all'], ['resume']):\n"
        "    sys.argv = ['repro', *argv]\n"
        "    try:\n        main()\n    except SystemExit as ended:\n        assert not ended.code\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'numpy') if m in sys.modules])"
    )
    env = {"PATH": "", "REPRO_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
