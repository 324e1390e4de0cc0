"""Jobs of docker/slurm/repro.sbatch on a real Slurm of two nodes: finished, preempted, and at their time limit.

Needs the tools of install_tools.sh. With fakes of Slurm's commands: test_shipping.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.composed import ROOT
from tests.support.slurm import missing_slurm, slurm

REASON = missing_slurm()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(REASON), reason=REASON),
]
EXPERIMENT = "resnet/cifar10_depth"
RUNS = 6  # two networks with three seeds, at smoke scale
JOB_SECONDS = 900.0  # limit of a step of a test, on a busy machine
NODES = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def daemons(tmp_path_factory):
    """A Slurm with two nodes."""
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def cluster(daemons):
    """A Slurm with two idle nodes; its jobs end with the test, also with one that failed."""
    yield daemons
    daemons.command("scancel", "--full", "--user", "root")
    daemons.wait(lambda: daemons.nodes() == {"idle"}, "the nodes are idle", JOB_SECONDS)


def submit(cluster, home, *arguments, options=()):
    """Submit the script with the arguments of `repro launch`; return the number of the job."""
    home.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
    script = str(ROOT / "docker" / "slurm" / "repro.sbatch")
    argv = ["sbatch", "--parsable", *NODES, *options, script, *arguments]
    variables = {"PATH": path, "REPRO_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return cluster.command(*argv, cwd=home, **variables)


def preempt(cluster, home):
    """Submit a short job that takes the nodes of the others; return its number."""
    return cluster.command(
        "sbatch", "--parsable", *NODES, "--partition=high", "--exclusive", "--wrap=sleep 20", cwd=home
    )


def log(home, job):
    """Return the output of a job so far."""
    file = home / f"repro-{job}.log"
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def trains(home):
    """Return whether a run has reached its first steps."""
    return any(home.glob("runs/*/progress.json"))


def run_logs(home):
    """Return the logs of all runs."""
    return "".join(path.read_text(encoding="utf-8") for path in home.glob("runs/*/log.txt"))


def test_slurm_accepts_the_script_of_a_checkout_of_windows(cluster, tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--config", "core.autocrlf=true", ROOT, clone], check=True)
    script = clone / "docker" / "slurm" / "repro.sbatch"
    cluster.command("sbatch", "--test-only", *NODES, str(script), EXPERIMENT)
    script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(AssertionError, match="DOS line breaks"):
        cluster.command("sbatch", "--test-only", *NODES, str(script), EXPERIMENT)


def test_a_job_trains_on_both_nodes_and_finishes(cluster, tmp_path):
    home = tmp_path / "home"
    job = submit(cluster, home, EXPERIMENT, "--scale", "smoke")
    states = ("COMPLETED", "FAILED", "TIMEOUT")
    cluster.wait(lambda: cluster.job(job)["JobState"] in states, "the job ends", JOB_SECONDS)
    assert (cluster.job(job)["JobState"], cluster.job(job)["ExitCode"]) == ("COMPLETED", "0:0"), log(home, job)
    assert len(list(home.glob("runs/*/result.json"))) == RUNS
    assert "Joined the cluster" in log(home, job)
    assert cluster.nodes() <= {"idle", "comp"}


def test_two_jobs_side_by_side_share_the_runs_of_a_home(cluster, tmp_path):
    home = tmp_path / "home"
    jobs = [submit(cluster, home, EXPERIMENT, "--scale", "smoke", options=["--nodes=1"]) for _ in range(2)]
    states = ("COMPLETED", "FAILED", "TIMEOUT")
    for job in jobs:
        cluster.wait(lambda job=job: cluster.job(job)["JobState"] in states, "the job ends", JOB_SECONDS)
        assert (cluster.job(job)["JobState"], cluster.job(job)["ExitCode"]) == ("COMPLETED", "0:0"), log(home, job)
    assert len(list(home.glob("runs/*/result.json"))) == RUNS
    assert all("started from the beginning" in log(home, job) for job in jobs)
    starts = [cluster.job(job)["StartTime"] for job in jobs]
    ends = [cluster.job(job)["EndTime"] for job in jobs]
    assert max(starts) < min(ends)  # side by side


def preempted_and_resumed(cluster, home):
    """Submit a launch, preempt it by another job while it trains, and wait until it resumes."""
    job = submit(cluster, home, EXPERIMENT, "--scale", "laptop")
    cluster.wait(lambda: trains(home), "a run trains", JOB_SECONDS)
    other = preempt(cluster, home)
    cluster.wait(lambda: cluster.job(other)["JobState"] == "COMPLETED", "the other job ends", JOB_SECONDS)
    cluster.wait(lambda: "Resuming" in log(home, job), "the job resumes", JOB_SECONDS)
    assert cluster.job(job)["Restarts"] == "1"


def test_a_preempted_job_writes_checkpoints_and_resumes_after_the_other_job(cluster, tmp_path):
    home = tmp_path / "home"
    preempted_and_resumed(cluster, home)
    assert any(home.glob("runs/*/checkpoints/*"))
    assert "its node is shutting down" in run_logs(home)  # it was told, not killed
    cluster.wait(lambda: "started from step" in run_logs(home), "a run resumes from its checkpoint", JOB_SECONDS)


def test_a_job_that_is_preempted_without_notice_is_requeued(tmp_path):
    """By Slurm's default SIGTERM goes to the processes of the steps: Ray ends, and the script is not told."""
    home = tmp_path / "home"
    with slurm(tmp_path / "slurm", parameters="") as cluster:
        preempted_and_resumed(cluster, home)


def test_a_job_at_its_time_limit_requeues_itself(cluster, tmp_path):
    home = tmp_path / "home"
    job = submit(cluster, home, EXPERIMENT, "--scale", "laptop")
    cluster.wait(lambda: trains(home), "a run trains", JOB_SECONDS)
    hours, minutes, _ = map(int, cluster.job(job)["RunTime"].split(":"))
    limit = 60 * hours + minutes + 4  # the job receives SIGTERM three minutes before
    cluster.command("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "1", "the job is requeued", JOB_SECONDS)
    assert "its node is shutting down" in run_logs(home)  # it was told, not killed
    cluster.wait(lambda: "Resuming" in log(home, job), "the job resumes", JOB_SECONDS)
    cluster.wait(lambda: "started from step" in run_logs(home), "a run resumes from its checkpoint", JOB_SECONDS)
    assert "TIMEOUT" not in cluster.job(job)["JobState"]


def test_a_cancelled_job_leaves_no_node_running(cluster, tmp_path):
    home = tmp_path / "home"
    job = submit(cluster, home, EXPERIMENT, "--scale", "laptop")
    cluster.wait(lambda: trains(home), "a run trains", JOB_SECONDS)
    cluster.command("scancel", job)
    cluster.wait(lambda: cluster.nodes() == {"idle"}, "the nodes are idle", JOB_SECONDS)
    assert (cluster.job(job)["JobState"], cluster.job(job)["Restarts"]) == ("CANCELLED", "0")  # it is not requeued
    assert not list((home / "cluster").glob("*/node.json"))
