"""The cluster of a command: this machine's own, or one at an address, where the command runs as a job."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import terminal
from pipeline.cli.terminal import STOPPED, print_warning_line, say
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.cluster.local_head import ClusterAddress
    from pipeline.cluster.status import ClusterStatus


def is_cluster_job() -> bool:
    """Return whether this command runs as a job on the cluster."""
    from pipeline.cluster.jobs import INSIDE_VARIABLE

    return bool(os.environ.get(INSIDE_VARIABLE))


def remote_cluster(address: str | None) -> "ClusterAddress | None":
    """Return the cluster at an address; None without an address, and in a job, which uses its own cluster."""
    if not address or is_cluster_job():
        return None
    from pipeline.cluster import jobs

    cluster = jobs.cluster_at(address)
    print_warning_line(f"Using the cluster at {cluster.dashboard}")
    return cluster


def local_cluster() -> "ClusterAddress":
    """Return this machine's cluster; start it if it does not run."""
    from pipeline.cluster import local_head

    return local_head.ensure_local_cluster(report=print_warning_line)


def run_and_follow(launch_ids: Sequence[str], code: Path, cluster: "ClusterAddress | None") -> int:
    """Run launches and print their news, directly in a job on the cluster (None) or else through such a job.

    At their end the job publishes the leaderboards, whether or not a terminal still shows its output.
    """
    if cluster is None:
        from pipeline.cluster.connect import follow_launches

        exit_code = follow_launches(launch_ids, print_event)
        try:
            publish_launches(launch_ids)
        except UserError as error:  # the runs have ended as `exit_code` says
            print_warning_line(f"The leaderboard in MLflow is not up to date: {error}.")
        return exit_code
    from pipeline.cluster import jobs

    try:
        job = jobs.submit_job(cluster, ["carry", *launch_ids], code=code)
    except UserError as error:
        raise UserError(f"{error}; the launch is saved: start it with repro resume") from error
    say(f"Running in the background; you can close this terminal. Ray dashboard: {cluster.dashboard}")
    return show_job(cluster, job, "")


def publish_launches(launch_ids: Sequence[str]) -> None:
    """Judge the experiments of launches that have ended; publish verdicts and leaderboard to MLflow."""
    from pipeline.cli.selection import collect_with_warnings
    from pipeline.cluster import launches
    from pipeline.declare.load import load_experiment
    from pipeline.report.publish import make_reports

    tasks = [task for launch_id in launch_ids for task in launches.read_launch(launch_id).tasks]
    names = dict.fromkeys((task.run.experiment, task.run.scale) for task in tasks)
    finished = collect_with_warnings()
    selected = [(load_experiment(experiment), scale) for experiment, scale in names]
    reports, troubles = make_reports(selected, finished.records, finished.tracker)
    for trouble in troubles:
        print_warning_line(f"{trouble[0].upper()}{trouble[1:]}.")
    if finished.tracker and not troubles and any(report.rows for report in reports):
        say("The leaderboard in MLflow is up to date; to open it: repro ui")


def relay_command(cluster: "ClusterAddress", argv: Sequence[str], upload: Path | None = None) -> int:
    """Run a command as a job on the cluster and show its output; return its exit code."""
    from pipeline.cluster import jobs

    width = {"COLUMNS": str(terminal.out.width)} if terminal.out.is_terminal else {}
    return show_job(cluster, jobs.submit_job(cluster, argv, upload=upload, settings=width), cluster.dashboard)


def show_job(cluster: "ClusterAddress", job: str, address: str) -> int:
    """Show a job's output until it ends; return its exit code.

    Ctrl-C, or a reader that closes the output, ends the output, not the job.
    """
    from pipeline.cluster import jobs

    last = "\n"

    def write(text: str) -> None:
        nonlocal last
        last = text[-1:] or last
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # as in `repro launch … | head`
            terminal.discard_output()
            raise KeyboardInterrupt from None

    try:
        code = jobs.follow_job(cluster, job, write)
        write("" if last == "\n" else "\n")
        return code
    except KeyboardInterrupt:
        where = f" --address {address}" if address else ""
        print_warning_line(f"The runs continue in the background. Status: repro status{where}")
        print_warning_line(f"To stop them: repro cancel all{where}")
        return STOPPED


def run_for_json(cluster: "ClusterAddress", argv: Sequence[str]) -> dict[str, Any]:
    """Run a command that prints JSON on the cluster and return the JSON; else UserError with its last line."""
    from pipeline.cluster import jobs

    chunks: list[str] = []
    code = jobs.follow_job(cluster, jobs.submit_job(cluster, argv), chunks.append)
    text = "".join(chunks)
    start = text.find("\n{") + 1 if not text.startswith("{") else 0
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start:])
        return dict(found)
    except (ValueError, TypeError):
        last = (text.strip().splitlines() or [f"exit code {code}"])[-1].removeprefix("error: ")
        raise UserError(f"the cluster at {cluster.dashboard} reports: {last}") from None


def remote_status(cluster: "ClusterAddress") -> "ClusterStatus":
    """Return the status of a cluster at an address."""
    from pipeline.cluster.status import ClusterStatus

    return ClusterStatus.from_dict(run_for_json(cluster, ["status", "--json"]))


def print_event(text: str) -> None:
    """Print a line of news."""
    terminal.out.print(text, markup=False, soft_wrap=True)
