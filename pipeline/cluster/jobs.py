"""Ray's job API: one of our own commands, run on a cluster, its output brought back.

Whoever reaches the API can run anything there, so it asks for a token; the commands that a terminal follows go on
when the terminal is closed.
"""

import asyncio
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.cluster.local_head import Cluster, environment
from pipeline.cluster.token import guarded
from pipeline.common.errors import UserError
from pipeline.common.paths import data_folder, home
from pipeline.track.mlflow_reader import shown

INSIDE = "REPRO_INSIDE"  # set for commands that run on the cluster already

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

TRIES, BETWEEN = 5, 1.0  # to reach the API again, and seconds between

RAYS = re.compile(  # lines of Ray's own in a job's output
    r"(\S+ \S+\s(INFO|WARNING) \w+\.py:\d+ -- |\[\S+ \S+ I \d+ \d+\] logging\.cc:|Running entrypoint for job )"
)

IGNORED = ["**/__pycache__", "**/*.pyc", ".git"]


def at(address: str) -> Cluster:
    """The cluster whose job API is at this address; UserError where it cannot be used."""
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {shown(address)}: the address of a cluster's job API is needed, as in http://HOST:8265"
        )
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = str(guarded(Path(named).expanduser().absolute())) if named else ""
    cluster = Cluster("", address.rstrip("/"), token)
    client(cluster)
    return cluster


def client(cluster: Cluster) -> Any:
    """The job API's client; UserError where it does not answer, or not to us."""
    os.environ.update(environment(Path(cluster.token_file) if cluster.token_file else None))
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(cluster.dashboard)
    except broken() as error:
        raise UserError(refusal(cluster, error)) from error


def broken() -> tuple[type[Exception], ...]:
    """What the job API's client raises where the API is away, busy, or takes no order from us."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    unlike = KeyError, TypeError  # where something else answers
    return ClientError, RayError, RuntimeError, OSError, ValueError, *unlike


def unwanted(error: BaseException) -> bool:
    """Whether the API answered, and asked who we are."""
    from ray.exceptions import AuthenticationError

    said = re.search(r"status code 40[13]\b|token file|RAY_AUTH_TOKEN", str(error))
    return isinstance(error, AuthenticationError) or bool(said)


def refusal(cluster: Cluster, error: BaseException) -> str:
    """Why the API cannot be used, in a sentence."""
    if unwanted(error) and cluster.token_file:
        return (
            f"the cluster at {shown(cluster.dashboard)} does not accept the token in {cluster.token_file}; copy"
            " the head's there (it is cluster/token in its REPRO_HOME, mode 0600)"
        )
    if unwanted(error):
        return (
            f"the cluster at {shown(cluster.dashboard)} asks for its token: put a copy of its token file where"
            " only you can read it (mode 0600), and name it in RAY_AUTH_TOKEN_PATH"
        )
    return (
        f"no cluster answers at {shown(cluster.dashboard)}; start one there with repro node --head, or leave"
        " --address out to use this machine"
    )


def submit(
    cluster: Cluster,
    words: Sequence[str],
    *,
    code: Path | None = None,
    upload: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> str:
    """Run `repro WORDS` on the cluster and return the job's id.

    By the code in the folder `code`, which the cluster sees; or in the folder `upload`, which is sent there; else
    by what is installed there. On this machine's cluster it keeps its things where this command does.
    """
    variables = {INSIDE: "1", "PYTHONUNBUFFERED": "1"} | dict(settings or {})
    if cluster.pid:
        variables |= {"REPRO_HOME": str(home()), "REPRO_DATA": str(data_folder())}
    where: dict[str, Any] = {"env_vars": variables}
    if code:
        variables["PYTHONPATH"] = str(code)
    if upload:  # Ray unpacks it, and starts the command within it
        where |= {"working_dir": str(upload), "excludes": IGNORED}
        variables["PYTHONPATH"] = "."
    python = sys.executable if cluster.pid else "python"  # elsewhere, whichever is first in the node's PATH
    command = shlex.join([python, "-m", "pipeline.cli", *words])
    api = client(cluster)
    try:
        return api.submit_job(entrypoint=command, runtime_env=where)
    except broken() as error:
        said = refusal(cluster, error) if unwanted(error) else ""
        at = f"the cluster at {shown(cluster.dashboard)}"
        raise UserError(said or f"{at} did not take the job: {shown(first_line(error))}") from error


def follow(cluster: Cluster, job: str, write: Callable[[str], None]) -> int:
    """Relay a job's output until it ends; its exit code. An interrupt ends the relaying, not the job.

    A stream that breaks is asked for again, and begins anew: what was shown is left out. UserError where the API
    is gone for good.
    """
    api = client(cluster)
    got = ""  # the longest that was seen; of it, `shown_to` characters are dealt with
    shown_to = 0

    def show(whole: bool = False) -> None:
        """Write the lines that are complete, Ray's own left out."""
        nonlocal shown_to
        fresh = got[shown_to:]
        fresh = fresh if whole else fresh[: fresh.rfind("\n") + 1]
        shown_to += len(fresh)
        text = "".join(line for line in fresh.splitlines(keepends=True) if not RAYS.match(line))
        if text:
            write(text)

    async def relay() -> None:
        nonlocal got
        seen = ""
        async for some in api.tail_job_logs(job):
            seen += some
            got = seen if len(seen) > len(got) else got
            show()

    failures = 0
    while True:
        with suppress(*broken()):  # what was shown is known
            asyncio.run(relay())
        try:
            info = api.get_job_info(job)
            failures = 0
        except broken() as error:
            failures += 1
            if failures == TRIES:
                show(whole=True)
                raise UserError(lost(cluster, error)) from error
            info = None
        if info and info.status.value in ENDED:
            break
        time.sleep(BETWEEN)
    with suppress(*broken()):
        got = max(got, api.get_job_logs(job), key=len)
    show(whole=True)
    code = info.driver_exit_code
    return code if code is not None else int(info.status.value != "SUCCEEDED")


def lost(cluster: Cluster, error: BaseException) -> str:
    """That a job cannot be followed any more, in a sentence."""
    if unwanted(error):
        return refusal(cluster, error)
    return (
        f"the cluster at {shown(cluster.dashboard)} does not answer any more; repro status says how what was begun"
        " there stands, and repro resume goes on with it"
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or repr(error)).splitlines()[0][:300]
