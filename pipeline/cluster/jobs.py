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

from pipeline.cluster.local_head import ClusterAddress, ray_environment
from pipeline.cluster.token import check_token_file
from pipeline.common.errors import UserError
from pipeline.common.paths import data_folder, home
from pipeline.common.words import first_line
from pipeline.track.mlflow_reader import redact

INSIDE_VARIABLE = "REPRO_INSIDE"  # set for commands that run on the cluster already

ENDED_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")

CONNECT_RETRIES, RETRY_SECONDS = 5, 1.0  # to reach the API again, and seconds between

RAYS = re.compile(  # lines of Ray's own in a job's output
    r"(\S+ \S+\s(INFO|WARNING) \w+\.py:\d+ -- |\[\S+ \S+ I \d+ \d+\] logging\.cc:|Running entrypoint for job )"
)

IGNORED = ["**/__pycache__", "**/*.pyc", ".git"]


def cluster_at(address: str) -> ClusterAddress:
    """The cluster whose job API is at this address; UserError where it cannot be used."""
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {redact(address)}: the address of a cluster's job API is needed, as in http://HOST:8265"
        )
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = str(check_token_file(Path(named).expanduser().absolute())) if named else ""
    cluster = ClusterAddress("", address.rstrip("/"), token)
    job_client(cluster)
    return cluster


def job_client(cluster: ClusterAddress) -> Any:
    """The job API's client; UserError where it does not answer, or not to us."""
    os.environ.update(ray_environment(Path(cluster.token_file) if cluster.token_file else None))
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(cluster.dashboard)
    except connection_errors() as error:
        raise UserError(describe_refusal(cluster, error)) from error


def connection_errors() -> tuple[type[Exception], ...]:
    """What the job API's client raises where the API is away, busy, or takes no order from us."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    unlike = KeyError, TypeError  # where something else answers
    return ClientError, RayError, RuntimeError, OSError, ValueError, *unlike


def is_auth_error(error: BaseException) -> bool:
    """Whether the API answered, and asked who we are."""
    from ray.exceptions import AuthenticationError

    said = re.search(r"status code 40[13]\b|token file|RAY_AUTH_TOKEN", str(error))
    return isinstance(error, AuthenticationError) or bool(said)


def describe_refusal(cluster: ClusterAddress, error: BaseException) -> str:
    """Why the API cannot be used, in a sentence."""
    if is_auth_error(error) and cluster.token_file:
        return (
            f"the cluster at {redact(cluster.dashboard)} does not accept the token in {cluster.token_file}; copy"
            " the head's there (it is cluster/token in its REPRO_HOME, mode 0600)"
        )
    if is_auth_error(error):
        return (
            f"the cluster at {redact(cluster.dashboard)} asks for its token: put a copy of its token file where"
            " only you can read it (mode 0600), and name it in RAY_AUTH_TOKEN_PATH"
        )
    return (
        f"no cluster answers at {redact(cluster.dashboard)}; start one there with repro node --head, or leave"
        " --address out to use this machine"
    )


def submit_job(
    cluster: ClusterAddress,
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
    variables = {INSIDE_VARIABLE: "1", "PYTHONUNBUFFERED": "1"} | dict(settings or {})
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
    api = job_client(cluster)
    try:
        return api.submit_job(entrypoint=command, runtime_env=where)
    except connection_errors() as error:
        said = describe_refusal(cluster, error) if is_auth_error(error) else ""
        at = f"the cluster at {redact(cluster.dashboard)}"
        raise UserError(said or f"{at} did not take the job: {redact(first_line(error))}") from error


def follow_job(cluster: ClusterAddress, job: str, write: Callable[[str], None]) -> int:
    """Relay a job's output until it ends; its exit code. An interrupt ends the relaying, not the job.

    A stream that breaks is asked for again, and begins anew: what was shown is left out. UserError where the API
    is gone for good.
    """
    api = job_client(cluster)
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
        with suppress(*connection_errors()):  # what was shown is known
            asyncio.run(relay())
        try:
            info = api.get_job_info(job)
            failures = 0
        except connection_errors() as error:
            failures += 1
            if failures == CONNECT_RETRIES:
                show(whole=True)
                raise UserError(describe_loss(cluster, error)) from error
            info = None
        if info and info.status.value in ENDED_STATUSES:
            break
        time.sleep(RETRY_SECONDS)
    with suppress(*connection_errors()):
        got = max(got, api.get_job_logs(job), key=len)
    show(whole=True)
    code = info.driver_exit_code
    return code if code is not None else int(info.status.value != "SUCCEEDED")


def describe_loss(cluster: ClusterAddress, error: BaseException) -> str:
    """That a job cannot be followed any more, in a sentence."""
    if is_auth_error(error):
        return describe_refusal(cluster, error)
    return (
        f"the cluster at {redact(cluster.dashboard)} does not answer any more; repro status says how what was begun"
        " there stands, and repro resume goes on with it"
    )
