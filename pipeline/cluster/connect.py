"""Connect to a Ray cluster, find or start its supervisor, and pass launches to it. Imports Ray."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from pipeline.cluster import launches, token
from pipeline.cluster.attempt import last_line
from pipeline.cluster.launches import Launch
from pipeline.cluster.supervisor import Supervisor
from pipeline.cluster.workers import HEAD_RESOURCE, worker_environment
from pipeline.common.errors import UserError
from pipeline.track.run_folder import RunFolder

SUPERVISOR_NAME, NAMESPACE = "supervisor", "repro"

NEWS_POLL_SECONDS = 0.5


def connect() -> None:
    """Connect to the cluster of RAY_ADDRESS, else to the one this process runs on; UserError if there is none."""
    if ray.is_initialized():
        return
    token.cluster_folder().mkdir(parents=True, exist_ok=True)
    # Ray puts the working directory first on the import path of all workers: use a folder without code.
    os.chdir(token.cluster_folder())
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot connect to a Ray cluster from this machine: {last_line(error)}") from error


def get_supervisor(launch: Launch) -> Any:
    """Return the cluster's supervisor actor; if there is none, start it on the head with the launch's code."""
    return (
        ray.remote(Supervisor)
        .options(
            num_cpus=0,
            max_concurrency=8,
            name=SUPERVISOR_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            resources=HEAD_RESOURCE,
            runtime_env={"env_vars": worker_environment(launch)},
        )
        .remote()
    )


def follow_launches(launch_ids: Sequence[str], on_event: Callable[[str], None]) -> int:
    """Pass launches to the supervisor and its news to `on_event` until all end; return 1 if a run failed, or 0."""
    connect()
    followed = [launches.read_launch(launch_id) for launch_id in launch_ids]
    seen = dict.fromkeys(launch_ids, 0)
    over: set[str] = set()
    supervisor: Any = None
    while len(over) < len(launch_ids):
        try:
            if supervisor is None:
                supervisor = get_supervisor(followed[0])
                for launch_id in launch_ids:
                    ray.get(supervisor.add_launch.remote(launch_id))
                seen = dict.fromkeys(launch_ids, 0)
            for launch_id in (launch_id for launch_id in launch_ids if launch_id not in over):
                news, ended = ray.get(supervisor.news_since.remote(launch_id, seen[launch_id]))
                seen[launch_id] += len(news)
                for text in news:
                    on_event(text)
                if ended:
                    over.add(launch_id)
        except ray.exceptions.RayActorError:  # it shut down when idle, or Ray is restarting it
            supervisor = None
        time.sleep(NEWS_POLL_SECONDS)
    return int(any(has_failed(RunFolder(task.folder)) for launch in followed for task in launch.tasks))


def has_failed(folder: RunFolder) -> bool:
    """Return whether a run has no result, and was neither cancelled nor stopped at the end of a budget."""
    return folder.result() is None and folder.unfinished().get("why") not in ("cancelled", "over-budget")
