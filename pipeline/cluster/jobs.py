"""Run `repro` commands on a cluster through Ray's job API, and relay their output.

A job continues when the terminal that follows it is closed. A client of the API can run any command on the
cluster, so the API requires a token.
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
from urllib.parse import urlsplit

from pipeline.cluster.local_head import ClusterAddress, ray_environment
from pipeline.cluster.token import COPY_TOKEN, check_token_file
from pipeline.common.errors import UserError
from pipeline.common.network import use_no_proxy
from pipeline.common.paths import data_folder, home
from pipeline.common.words import first_line
from pipeline.track.mlflow_reader import redact

INSIDE_VARIABLE = "REPRO_INSIDE"  # set in jobs: the command already runs on the cluster

ENDED_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")

CONNECT_RETRIES, RETRY_SECONDS = 5, 1.0  # after a lost connection to the API, and the interval

RAY_LINES = re.compile(  # log lines of Ray itself in a job's output
    r"(\S+ \S+\s(INFO|WARNING) \w+\.py:\d+ -- |\[\S+ \S+ I \d+ \d+\] logging\.cc:|Running entrypoint for job )"
)

UPLOAD_EXCLUDES = ["**/__pycache__", "**/*.pyc", ".git"]


def cluster_at(address: str) -> ClusterAddress:
    """Return the cluster with its job API at this URL; UserError where the API does not accept requests."""
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {redact(address)}: must be the URL of a cluster's job API, as in http://HOST:8265"
        )
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = str(check_token_file(Path(named).expanduser().absolute())) if named else ""
    cluster = ClusterAddress("", address.rstrip("/"), token)
    job_client(cluster)
    return cluster


def job_client(cluster: ClusterAddress) -> Any:
    """Return a client of the job API; UserError where the API does not respond or refuses the token."""
    os.environ.update(ray_environment(Path(cluster.token_file) if cluster.token_file else None))
    use_no_proxy(urlsplit(cluster.dashboard).hostname or "")  # a proxy must not see the token
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(cluster.dashboard)
    except connection_errors() as error:
        raise UserError(describe_refusal(cluster, error)) from error


def connection_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the job API's client raises where the API is down, busy, or refuses the request."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    other_server = KeyError, TypeError  # the response of a server that is not Ray's
    return ClientError, RayError, RuntimeError, OSError, ValueError, *other_server


def is_auth_error(error: BaseException) -> bool:
    """Return whether the API refused the request because of a missing or wrong token."""
    from ray.exceptions import AuthenticationError

    match = re.search(r"status code 40[13]\b|token file|RAY_AUTH_TOKEN", str(error))
    return isinstance(error, AuthenticationError) or bool(match)


def describe_refusal(cluster: ClusterAddress, error: BaseException) -> str:
    """Return a sentence on why the API is not usable."""
    if is_auth_error(error) and cluster.token_file:
        return (
            f"the cluster at {redact(cluster.dashboard)} does not accept the token in {cluster.token_file};"
            f" {COPY_TOKEN}"
        )
    if is_auth_error(error):
        return (
            f"the cluster at {redact(cluster.dashboard)} requires its token: copy cluster/NAME/token from the"
            " head's REPRO_HOME to this machine with mode 0600, and set RAY_AUTH_TOKEN_PATH to the copy"
        )
    return (
        f"no cluster responds at {redact(cluster.dashboard)}; start one there with repro node --head, or omit"
        " --address to use this machine"
    )


def submit_job(
    cluster: ClusterAddress,
    argv: Sequence[str],
    *,
    code: Path | None = None,
    upload: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> str:
    """Submit the command `repro ARGV` to the cluster and return the job's id.

    The command runs the code in the folder `code`, which the cluster can read, or in the folder `upload`, which is
    sent to it; by default the installed code. `settings`: more environment variables. On this machine's cluster
    the job uses the REPRO_HOME and REPRO_DATA of this process.
    """
    variables = {INSIDE_VARIABLE: "1", "PYTHONUNBUFFERED": "1"} | dict(settings or {})
    if cluster.pid:
        variables |= {"REPRO_HOME": str(home()), "REPRO_DATA": str(data_folder())}
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if code:
        variables["PYTHONPATH"] = str(code)
    if upload:  # Ray unpacks it and uses it as the working directory
        runtime_env |= {"working_dir": str(upload), "excludes": UPLOAD_EXCLUDES}
        variables["PYTHONPATH"] = "."
    python = sys.executable if cluster.pid else "python"  # on another machine, the first in the node's PATH
    command = shlex.join([python, "-m", "pipeline.cli", *argv])
    client = job_client(cluster)
    try:
        return str(client.submit_job(entrypoint=command, runtime_env=runtime_env))
    except connection_errors() as error:
        if is_auth_error(error):
            raise UserError(describe_refusal(cluster, error)) from error
        reason = redact(first_line(error))
        raise UserError(f"the cluster at {redact(cluster.dashboard)} did not accept the job: {reason}") from error


def follow_job(cluster: ClusterAddress, job: str, write: Callable[[str], None]) -> int:
    """Relay a job's output through `write` until the job ends; return its exit code.

    A stream that breaks is opened again and starts from the beginning; output already written is skipped.
    UserError where the API stays unreachable. KeyboardInterrupt ends the relay, not the job.
    """
    client = job_client(cluster)
    output = ""  # the longest output received; the first `written` characters are written or skipped
    written = 0

    def flush(whole: bool = False) -> None:
        """Write the complete lines, or all of the output; log lines of Ray are skipped."""
        nonlocal written
        fresh = output[written:]
        fresh = fresh if whole else fresh[: fresh.rfind("\n") + 1]
        written += len(fresh)
        text = "".join(line for line in fresh.splitlines(keepends=True) if not RAY_LINES.match(line))
        if text:
            write(text)

    async def relay() -> None:
        nonlocal output
        received = ""
        async for chunk in client.tail_job_logs(job):
            received += chunk
            output = received if len(received) > len(output) else output
            flush()

    failures = 0
    while True:
        with suppress(*connection_errors()):
            asyncio.run(relay())
        try:
            info = client.get_job_info(job)
            failures = 0
        except connection_errors() as error:
            failures += 1
            if failures == CONNECT_RETRIES:
                flush(whole=True)
                raise UserError(describe_loss(cluster, error)) from error
            info = None
        if info and info.status.value in ENDED_STATUSES:
            break
        time.sleep(RETRY_SECONDS)
    with suppress(*connection_errors()):
        output = max(output, client.get_job_logs(job), key=len)
    flush(whole=True)
    code = info.driver_exit_code
    return int(code) if code is not None else int(info.status.value != "SUCCEEDED")


def describe_loss(cluster: ClusterAddress, error: BaseException) -> str:
    """Return a sentence on why a job can no longer be followed."""
    if is_auth_error(error):
        return describe_refusal(cluster, error)
    return (
        f"the cluster at {redact(cluster.dashboard)} no longer responds; see its runs with repro status, and"
        " continue them with repro resume"
    )
