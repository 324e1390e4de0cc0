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
from pipeline.cluster.supervisor import HEAD, Supervisor, surroundings
from pipeline.common.errors import UserError
from pipeline.track.run_folder import RunFolder

NAME, NAMESPACE = "supervisor", "repro"


def connect() -> None:
    """Join the cluster that this process runs on, or that RAY_ADDRESS names; UserError if there is none."""
    if ray.is_initialized():
        return
    token.folder().mkdir(parents=True, exist_ok=True)
    os.chdir(token.folder())  # Ray hands this folder to all workers as a place of code, before any other
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster can be joined here: {last_line(error)}") from error


def supervisor(launch: Launch) -> Any:
    """The cluster's supervisor, made if there is none; it runs on the head."""
    where = {"env_vars": surroundings(launch)}
    return (
        ray.remote(Supervisor)
        .options(
            num_cpus=0,
            max_concurrency=8,
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            resources=HEAD,
            runtime_env=where,
        )
        .remote()
    )


def hand_over(names: Sequence[str], happened: Callable[[str], None]) -> int:
    """Give launches to the supervisor and pass on what happens until all are over: 0, or 1 if some run failed."""
    connect()
    given = [launches.one(name) for name in names]
    seen = dict.fromkeys(names, 0)
    over: set[str] = set()
    keeper: Any = None
    while len(over) < len(names):
        try:
            if keeper is None:
                keeper = supervisor(given[0])
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
    return folder.result() is None and folder.left().get("why") not in ("cancelled", "over-budget")
