"""`repro launch`, `status`, `logs`, `cancel`, `resume`, `node`, with a cluster that only notes what it is asked.

The real one is in tests/pipeline/schedule.
"""

import io
import json
import subprocess
import sys
import types
from functools import cache

import pytest
from rich.console import Console

from pipeline.cli import cluster as cli_cluster
from pipeline.cli import terminal
from pipeline.cluster import jobs, launches, local_head, node
from pipeline.cluster.local_head import ClusterAddress
from pipeline.common.errors import UserError
from pipeline.declare.load import load_experiment
from pipeline.judge.collect import FinishedRuns
from pipeline.plan.identity import code_hash
from pipeline.track.run_folder import RunFolder
from tests.support.fake_records import fake_record

RESNET = "resnet/cifar10_depth"
SMOKE = ("launch", RESNET, "--scale", "smoke")
HERE = ClusterAddress("127.0.0.1:6379", "http://127.0.0.1:8265", "token", 17)
FAR = ClusterAddress("", "http://far:8265", "")
CODE_HASH = cache(code_hash)  # half a second, the same for all tests


class Fake:
    """Notes what is asked of the cluster; `says` is the output of jobs, `code` their exit code."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.says, self.code = "started\n", 0
        self.here: ClusterAddress | None = HERE

    def at(self, address):
        self.asked.append(("at", address))
        return FAR

    def start_here(self, *, tell):
        tell("starting a Ray cluster on this machine")
        self.asked.append(("start",))
        return HERE

    def submit(self, cluster, words, *, code=None, upload=None, settings=None):
        self.asked.append(("submit", cluster, list(words), code, upload))
        return "job-1"

    def follow(self, cluster, job, write):
        if isinstance(self.says, BaseException):
            raise self.says
        write(self.says)
        return self.code

    def hand_over(self, names, happened):
        self.asked.append(("hand over", list(names)))
        happened("resnet [x] started")
        return self.code

    @property
    def submitted(self):
        return [one for one in self.asked if one[0] == "submit"]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    made = Fake()
    for name in ("REPRO_INSIDE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("at", "submit", "follow"):
        monkeypatch.setattr(jobs, name, getattr(made, name))
    monkeypatch.setattr(local_head, "find_local_cluster", lambda: made.here)
    monkeypatch.setattr(local_head, "ensure_local_cluster", made.start_here)
    monkeypatch.setattr(cli_cluster, "collect_with_warnings", lambda: FinishedRuns([], None))
    monkeypatch.setattr("pipeline.schedule.tasks.code_hash", CODE_HASH)
    monkeypatch.setattr(cli_cluster, "REMOTE_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(cli_cluster, "REFRESH_SECONDS", 0.0)
    here = types.ModuleType("pipeline.schedule.cluster")
    here.hand_over = made.hand_over
    monkeypatch.setitem(sys.modules, "pipeline.schedule.cluster", here)
    return made


@pytest.fixture
def inside(monkeypatch):
    monkeypatch.setenv(jobs.INSIDE_VARIABLE, "1")


@pytest.fixture
def launched(command, fake):
    """A launch of six runs, written down by the command itself."""
    code, _, err = command(*SMOKE)
    assert (code, err) == (0, "")
    (one,) = launches.all_launches()
    fake.asked.clear()
    return one


def finish(task) -> None:
    folder = RunFolder(task.folder)
    folder.create({})
    run = task.run
    made = fake_record(load_experiment(RESNET), run.variant, run.seed, 50.0, scale="smoke", identity=task.identity)
    folder.finish(made, None)


# --- launch ------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_begins_nothing(command, fake, tmp_path):
    code, out, err = command(*SMOKE, "--dry-run", "--price", "2", "--max-gpu-hours", "1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "resnet/cifar10_depth at smoke scale on noise"
    assert lines[1].split() == ["variant", "runs", "devices", "images", "device", "time", "cost"]
    assert lines[2].split() == ["plain-20", "3", "runs", "1", "720", "not", "measured"]  # 3 x 12 steps of 20
    assert lines[5] == (
        "6 runs, 0 finished, 6 to do: 1,440 images to train on, how long is not measured yet, and what it costs"
        " follows from that."
    )
    assert lines[6].startswith("--max-gpu-hours 1: nobody knows yet")
    assert fake.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_launch_is_written_down_and_one_job_carries_it(command, fake, tmp_path):
    code, out, err = command(*SMOKE, "--gpus-per-run", "2", "--max-gpu-hours", "3", "--max-concurrent", "4")
    assert (code, err) == (0, "")
    (one,) = launches.all_launches()
    assert one.words == "resnet/cifar10_depth at smoke"
    assert one.terms == launches.LaunchTerms(2, 3.0, 4)
    assert len(one.tasks) == 6
    copy = tmp_path / "code" / one.code.rpartition("/")[2]
    assert fake.asked == [("submit", HERE, ["carry", one.id], copy, None)]
    assert (copy / "pipeline" / "cli.py").is_file()
    lines = out.splitlines()
    assert lines[-3:] == [
        "At work, also when this terminal is closed; Ray's pages: http://127.0.0.1:8265",
        "started",
        f"The verdicts: repro verify {RESNET}",
    ]


def test_without_a_cluster_one_is_started(command, fake):
    fake.here = None
    code, _, err = command(*SMOKE)
    assert (code, err) == (0, "starting a Ray cluster on this machine\n")
    assert [one[0] for one in fake.asked] == ["start", "submit"]


def test_a_cluster_that_does_not_start_leaves_nothing_written(command, fake, monkeypatch):
    fake.here = None

    def refuse(*, tell):
        raise UserError("Ray did not start")

    monkeypatch.setattr(local_head, "ensure_local_cluster", refuse)
    assert command(*SMOKE)[::2] == (2, "error: Ray did not start\n")
    assert list(launches.all_launches()) == []


def test_a_job_that_is_not_taken_leaves_a_launch_to_resume(command, monkeypatch):
    def refuse(*_, **__):
        raise UserError("the cluster did not take the job: it is full")

    monkeypatch.setattr(jobs, "submit_job", refuse)
    code, _, err = command(*SMOKE)
    assert code == 2
    assert err == (
        "error: the cluster did not take the job: it is full; what was asked is written down, and repro resume"
        " begins it\n"
    )
    assert len(list(launches.unfinished_launches())) == 1


def test_failed_runs_are_the_exit_code(command, fake):
    fake.code = 1
    code, _, err = command(*SMOKE)
    assert (code, err) == (1, "Not all of it ended well; what and why: repro status\n")


def test_ctrl_c_ends_nothing_and_says_how_to_go_on(command, fake):
    fake.says = KeyboardInterrupt()
    code, out, err = command(*SMOKE)
    assert code == 130
    assert err == "It goes on without this terminal. To see it: repro status\nTo stop it: repro cancel all\n"
    assert "verdicts" not in out
    code, _, err = command(*SMOKE, "--address", "http://far:8265")
    assert code == 130
    assert err.endswith(
        "To see it: repro status --address http://far:8265\nTo stop it: repro cancel all --address http://far:8265\n"
    )


def test_what_is_finished_already_is_not_launched(command, fake, launched):
    for task in launched.tasks:
        finish(task)
    code, out, _ = command(*SMOKE)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "6 runs, 6 finished, 0 to do.",
        f"There is nothing left to do; the verdicts: repro verify {RESNET}",
    ]
    assert "3 runs, all finished" in out
    assert fake.asked == []
    assert [one.id for one in launches.all_launches()] == [launched.id]


def test_what_only_the_tracking_server_knows_to_be_finished_is_not_trained_again(command, launched, monkeypatch):
    first = launched.tasks[0]
    tracked = fake_record(load_experiment(RESNET), "plain-20", 0, 50.0, scale="smoke", identity=first.identity)
    monkeypatch.setattr(cli_cluster, "collect_with_warnings", lambda: FinishedRuns([tracked], None))
    _, out, _ = command(*SMOKE)
    assert "6 runs, 1 finished, 5 to do" in out
    *_, newest = launches.all_launches()
    assert [task.identity for task in newest.tasks] == [task.identity for task in launched.tasks[1:]]


def test_what_an_earlier_launch_wants_too_is_said(command, launched):
    assert (
        "6 of them are asked for by an earlier launch too; each is done once.\n" in command(*SMOKE, "--dry-run")[1]
    )
    launches.mark_ended(launched.id)
    assert "an earlier launch" not in command(*SMOKE, "--dry-run")[1]


def test_inside_the_cluster_the_launch_is_handed_over_without_another_job(command, fake, inside):
    code, out, err = command(*SMOKE, "--address", "http://far:8265")
    assert (code, err) == (0, "")
    (one,) = launches.all_launches()
    assert fake.asked == [("hand over", [one.id])]
    assert "resnet [x] started\n" in out


def test_with_an_address_the_same_words_and_the_code_are_sent(command, fake, tmp_path):
    words = ("--suite", "cs231n", "--max-gpu-hours", "2.5", "--dry-run")
    code, out, err = command(*SMOKE, *words, "--address", "http://far:8265/")
    assert (code, out, err) == (0, "started\n", "on the cluster at http://far:8265\n")
    at, (_, cluster, sent, code, upload) = fake.asked
    assert at == ("at", "http://far:8265/")
    assert cluster == FAR
    assert " ".join(sent) == (
        f"launch {RESNET} --scale smoke --suite cs231n --gpus-per-run 1 --max-gpu-hours 2.5 --dry-run"
    )
    assert code is None
    assert upload.parent == tmp_path / "code"
    assert list(launches.all_launches()) == []


def test_rays_own_variable_is_an_address_too(command, fake, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://far:8265")
    assert command(*SMOKE)[2] == "on the cluster at http://far:8265\n"
    assert fake.asked[0] == ("at", "http://far:8265")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("launch",), "name what to launch"),
        (("launch", "resnet/cifar10_dept"), "did you mean 'resnet/cifar10_depth'?"),
        ((*SMOKE, "--gpus-per-run", "3"), "3 devices cannot share a batch of 20 images equally"),
        ((*SMOKE, "--suite", "cs"), "there is no suite 'cs'; there is cs231n"),
        ((*SMOKE, "--max-gpu-hours", "0"), "--max-gpu-hours 0: a number above 0 is needed"),
    ],
)
@pytest.mark.parametrize("address", [(), ("--address", "http://far:8265")])
def test_mistakes_are_told_before_anything_begins(command, fake, tmp_path, words, said, address):
    code, out, err = command(*words, *address)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert fake.asked == []
    assert list(tmp_path.iterdir()) == []


def test_carrying_is_handing_over(command, fake):
    fake.code = 1
    assert command("carry", "a", "b")[:2] == (1, "resnet [x] started\n")
    assert fake.asked == [("hand over", ["a", "b"])]


# --- status ------------------------------------------------------------------------------------------------


def test_status_shows_launches_and_runs(command, launched):
    code, out, err = command("status")
    assert (code, err) == (0, "")
    assert "  6 runs: 6 not begun; 0.00 device hours used\n" in out
    assert "plain-20 seed 0   not begun" in out
    assert out.endswith("To go on where it stopped: repro resume\n")


def test_status_of_a_far_cluster_is_asked_as_json_and_drawn_here(command, fake, launched):
    _, answer, _ = command("status", "--json")
    fake.says = f"Running entrypoint for job x\n{answer}"
    _, here, _ = command("status")
    code, there, err = command("status", "--address", "http://far:8265")
    assert (code, err) == (0, "on the cluster at http://far:8265\n")
    assert there == here
    assert fake.submitted == [("submit", FAR, ["status", "--json"], None, None)]


def test_what_a_far_cluster_complains_of_is_said(command, fake):
    fake.says = "Running entrypoint\nerror: there is no launched run 'x', and none at all\n"
    code, out, err = command("logs", "x", "--address", "http://far:8265")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: the cluster at http://far:8265 says: there is no launched run 'x', and none at all"
    )


def test_watching_draws_until_ctrl_c(command, launched, monkeypatch):
    seen = io.StringIO()
    shown = Console(file=seen, force_terminal=True, width=80, height=24)
    monkeypatch.setattr(terminal, "out", shown)
    looks = iter([None, None])

    def sleep(_):
        try:
            next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(cli_cluster.time, "sleep", sleep)
    assert command("status", "--watch")[0] == 0
    assert seen.getvalue().count("6 not begun") >= 3
    assert next(looks, "none left") == "none left"


def test_watching_in_a_pipe_is_once(command, launched):
    assert command("status", "--watch") == command("status")


# --- logs --------------------------------------------------------------------------------------------------


def test_logs_of_a_run_that_waits_say_so(command, launched):
    code, out, _ = command("logs", "plain-20/0")
    assert (code, out) == (
        0,
        "plain-20 seed 0 (resnet/cifar10_depth@smoke): nothing happened to it yet; it waits its turn\n",
    )


def test_logs_are_what_happened_and_how_it_ended(command, launched):
    task = launched.tasks[0]
    RunFolder(task.folder).log("started [from] the beginning")
    finish(task)
    for words in (("plain-20", "seed", "0"), (task.identity[:6],)):
        _, out, _ = command("logs", *words)
        first, last = out.splitlines()
        assert first.endswith("started [from] the beginning")
        assert last == "plain-20 seed 0 (resnet/cifar10_depth@smoke): finished: test error 50.00 %"


def test_following_goes_on_until_the_run_ends(command, launched, monkeypatch):
    task = launched.tasks[0]
    folder = RunFolder(task.folder)
    folder.log("started")
    steps = iter([lambda: folder.log("goes on"), lambda: finish(task)])
    monkeypatch.setattr(cli_cluster.time, "sleep", lambda _: next(steps)())
    _, out, _ = command("logs", "plain-20/0", "--follow")
    assert [line[20:] for line in out.splitlines()[:2]] == ["started", "goes on"]
    assert out.count("started") == 1
    assert out.endswith("finished: test error 50.00 %\n")


def test_far_logs_are_drawn_here(command, fake, launched):
    RunFolder(launched.tasks[0].folder).log("started")
    _, fake.says, _ = command("logs", "plain-20/0", "--json")
    assert command("logs", "plain-20/0", "--address", "x")[1] == command("logs", "plain-20/0")[1]
    assert fake.submitted == [("submit", FAR, ["logs", "plain-20/0", "--json"], None, None)]


# --- cancel ------------------------------------------------------------------------------------------------


def test_cancelling_one_run_and_then_all(command, launched):
    code, out, _ = command("cancel", "plain-20/0")
    assert (code, out) == (
        0,
        f"{RESNET} plain-20 seed 0: will not be trained\nLaunched again, they go on where they stopped.\n",
    )
    assert RunFolder(launched.tasks[0].folder).unfinished()["why"] == "cancelled"
    _, out, _ = command("cancel", "all")
    assert out.startswith("5 runs that waited will not be trained\n")
    assert launches.is_over(launched.id)
    assert command("cancel", "all")[1] == "Nothing to cancel: no launch waits or is trained.\n"


def test_what_is_trained_is_asked_to_stop(command, launched):
    folder = RunFolder(launched.tasks[1].folder)
    folder.create({})
    folder.write_progress(3, 10.0)
    _, out, _ = command("cancel", "resnet-20/0")
    assert out.startswith(f"{RESNET} resnet-20 seed 0: asked to stop at its next step, resumable\n")
    assert folder.stop_reason() == "cancelled"


def test_a_run_that_ended_is_not_cancelled(command, launched):
    finish(launched.tasks[0])
    assert command("cancel", "plain-20/0")[1] == "plain-20/0 has ended already.\n"
    code, _, err = command("cancel", "plain-20/9")
    assert code == 2
    assert err.startswith("error: there is no launched run 'plain-20/9'; runs are called as in 'plain-20/")


def test_cancelling_far_away_is_a_job(command, fake):
    fake.says = "5 runs that waited will not be trained"  # a job's last line may lack its end
    assert command("cancel", "all", "--address", "x")[1] == "5 runs that waited will not be trained\n"
    assert fake.submitted == [("submit", FAR, ["cancel", "all"], None, None)]


# --- resume ------------------------------------------------------------------------------------------------


def test_resuming_carries_every_launch_on_by_its_own_code(command, fake, launched):
    second = launches.create_launch("again", launched.code, launches.LaunchTerms(1), launched.tasks)
    code, out, err = command("resume")
    assert (code, err) == (0, "")
    (job,) = fake.submitted
    assert job[2] == ["carry", launched.id, second.id]
    assert str(job[3]) == launched.code
    assert out.splitlines()[0].startswith("Going on with resnet/cifar10_depth at smoke, by ")


def test_what_was_cancelled_or_is_at_its_budgets_end_stays_so(command, fake, launched):
    launches.mark_unfinished(launched.tasks[0], "cancelled", "x")
    for task in launched.tasks[1:3]:
        launches.mark_unfinished(task, "over-budget", "x")
    _, out, _ = command("resume")
    assert out.splitlines()[:2] == [
        "1 run stays cancelled; to try anew, launch again.",
        "2 runs stay at their budget's end; to try anew, launch again.",
    ]
    assert len(fake.submitted) == 1
    assert RunFolder(launched.tasks[0].folder).unfinished()["why"] == "cancelled"


def test_where_nothing_is_left_no_cluster_is_started(command, fake, launched):
    fake.here = None
    for task in launched.tasks:
        launches.mark_unfinished(task, "failed", "x")
    assert command("resume")[1].splitlines() == [
        "6 runs stay failed; to try anew, launch again.",
        "There is nothing to resume.",
    ]
    assert fake.asked == []


def test_a_launch_that_ended_at_its_budget_is_not_forgotten(command, fake, launched):
    for task in launched.tasks:
        launches.mark_unfinished(task, "over-budget", "x")
    launches.mark_ended(launched.id)
    assert command("resume")[1].splitlines() == [
        "6 runs stay at their budget's end; to try anew, launch again.",
        "There is nothing to resume.",
    ]


def test_resuming_on_other_devices(command, fake, launched, tmp_path):
    assert command("resume", "--gpus-per-run", "2")[0] == 0
    assert [one.terms.devices for one in launches.all_launches()] == [2]
    code, _, err = command("resume", "--gpus-per-run", "3")
    assert code == 2
    assert "3 devices cannot share a batch of" in err
    (tmp_path / "cluster").mkdir(exist_ok=True)
    (tmp_path / "cluster" / "state.json").write_text(json.dumps({"time": 4e9}), encoding="utf-8")
    code, _, err = command("resume", "--gpus-per-run", "1")
    assert code == 2
    assert err == (
        "error: these launches are at work, and keep their devices until they end; repro cancel all stops them\n"
    )


def test_resuming_far_away_is_a_job(command, fake):
    assert command("resume", "--gpus-per-run", "2", "--address", "x")[0] == 0
    assert fake.submitted == [("submit", FAR, ["resume", "--gpus-per-run", "2"], None, None)]


def test_resuming_inside_hands_over(command, fake, launched, inside):
    assert command("resume")[0] == 0
    assert fake.asked == [("hand over", [launched.id])]


def test_a_retry_hears_that_runs_failed_but_not_of_what_was_cancelled(command, launched):
    for task in launched.tasks:
        launches.mark_unfinished(task, "cancelled", "x")
    assert command("resume")[0] == 0
    launches.mark_unfinished(launched.tasks[0], "failed", "x")
    assert command("resume")[0] == 1


# --- a damaged launch --------------------------------------------------------------------------------------


def test_a_damaged_launch_is_named_and_the_others_go_on(command, fake, launched):
    path = launches.launches_folder() / "20000101-000000-000000-dead.json"
    path.write_text('{"id": "2000', encoding="utf-8")
    said = f"Left out: {path} cannot be read as a launch: it is damaged, or another version wrote it; "
    for words in (("logs", "plain-20/0"), (*SMOKE, "--dry-run"), ("resume",), ("cancel", "plain-20/0")):
        code, out, err = command(*words)
        assert code == 0
        assert err.startswith(said)
        assert err.count("\n") == 1
        assert out
    code, out, err = command("status")
    assert (code, err) == (0, "")
    assert said in out
    assert "5 not begun, 1 cancelled" in out
    assert json.loads(command("status", "--json")[1])["damaged"][0].startswith(str(path))
    assert command(*SMOKE)[0] == 0
    command("cancel", "all")
    code, _, err = command("cancel", "all")
    assert code == 2
    assert f"error: nothing was cancelled, as {path} cannot be read" in err


# --- node, and the door ------------------------------------------------------------------------------------


def test_a_node_is_a_head_or_joins_one(command, monkeypatch):
    served = []
    monkeypatch.setattr(node, "run_node", lambda **words: served.append(words) or 0, raising=False)
    assert command("node", "--head", "--cpus", "2", "--until-idle", "60")[0] == 0
    assert command("node", "--address", "head:6379", "--listen", "10.0.0.2", "--grace", "5")[0] == 0
    common = {"cpus": None, "gpus": None, "until_idle": None}
    assert served == [
        common
        | {"head": True, "address": None, "listen": "127.0.0.1", "cpus": 2, "grace": 30.0, "until_idle": 60.0},
        common | {"head": False, "address": "head:6379", "listen": "10.0.0.2", "grace": 5.0},
    ]
    for words in ((), ("--head", "--address", "head:6379")):
        code, _, err = command("node", *words)
        assert (code, err) == (
            2,
            "error: a node is either the first, as in repro node --head, or joins one: --address HOST:6379\n",
        )


def test_looking_at_files_loads_no_heavy_library(tmp_path):
    code = (
        "import sys\nfrom pipeline import cli\n"
        "for words in (['status'], ['cancel', 'all'], ['resume']):\n"
        "    sys.argv = ['repro', *words]\n"
        "    try:\n        cli.main()\n    except SystemExit as ended:\n        assert not ended.code\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'numpy') if m in sys.modules])"
    )
    env = {"PATH": "", "REPRO_HOME": str(tmp_path), "PYTHONPATH": str(cli_cluster.Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
