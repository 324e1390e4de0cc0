"""Connect to a Ray cluster, find or start its supervisor, and hand launches to it. Imports Ray."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from pipeline.cluster import launches, token
from pipeline.cluster.attempt import last_line
from pipeline.cluster.launches import Launch
from pipeline.cluster.supervisor import HEAD_RESOURCE, Supervisor, worker_environment
from pipeline.common.errors import UserError
from pipeline.track.run_folder import RunFolder

SUPERVISOR_NAME, NAMESPACE = "supervisor", "repro"


def connect() -> None:
    """Join the cluster that this process runs on, or that RAY_ADDRESS names; UserError if there is none."""
    if ray.is_initialized():
        return
    token.cluster_folder().mkdir(parents=True, exist_ok=True)
    os.chdir(token.cluster_folder())  # Ray hands this folder to all workers as a place of code, before any other
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster can be joined here: {last_line(error)}") from error


def get_supervisor(launch: Launch) -> Any:
    """The cluster's supervisor, made if there is none; it runs on the head."""
    where = {"env_vars": worker_environment(launch)}
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
            runtime_env=where,
        )
        .remote()
    )


def follow_launches(names: Sequence[str], happened: Callable[[str], None]) -> int:
    """Give launches to the supervisor and pass on what happens until all are over: 0, or 1 if some run failed."""
    connect()
    given = [launches.read_launch(name) for name in names]
    seen = dict.fromkeys(names, 0)
    over: set[str] = set()
    keeper: Any = None
    while len(over) < len(names):
        try:
            if keeper is None:
                keeper = get_supervisor(given[0])
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
    return folder.result() is None and folder.unfinished().get("why") not in ("cancelled", "over-budget")
