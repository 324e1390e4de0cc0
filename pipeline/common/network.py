"""Environment variables that keep requests to this machine and the cluster away from proxies, and report nothing.

Proxies read tokens and passwords in the headers of plain http requests. requests (of MLflow and Ray), urllib and
botocore use the proxies of the environment, except for the hosts in `no_proxy`.
"""

import os
import socket
from collections.abc import MutableMapping

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")

# With RAY_USAGE_STATS_ENABLED=0 alone, Ray's dashboard still reports to its makers that the statistics are off.
# Nothing listens on the port of the discard service, so that report fails.
NO_STATISTICS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

ALL_INTERFACES = ("0.0.0.0", "::")  # addresses to listen on, not to connect to


def use_no_proxy(*hosts: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Connect to `hosts`, to this machine's name and to loopback addresses without a proxy.

    Adds them to `no_proxy` and `NO_PROXY` in `environment`: libraries differ in which of the two they read, and in
    which counts where both are set. Does nothing where `no_proxy` is "*", which excludes all hosts.
    """
    names = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    known = [host.strip() for text in names for host in text.split(",") if host.strip()]
    own = [host for host in (*LOOPBACK_HOSTS, socket.gethostname(), *hosts) if host and host not in ALL_INTERFACES]
    text = "*" if "*" in known else ",".join(dict.fromkeys([*known, *own]))
    environment["no_proxy"] = environment["NO_PROXY"] = text


def report_no_statistics(environment: MutableMapping[str, str] = os.environ) -> None:
    """Turn off the usage statistics of Ray and MLflow, which they send to their makers."""
    environment.update(NO_STATISTICS)
