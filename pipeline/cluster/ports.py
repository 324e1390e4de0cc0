"""Ports: free ones for Ray, and an audit of what listens."""

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

from pipeline.common.errors import UserError

PROCESS_KINDS = (  # a word of the command line -> what the process is; the first that fits
    ("gcs_server", "the cluster's directory (GCS)"),
    ("raylet/raylet", "the node's scheduler (raylet)"),
    ("runtime_env/agent/main.py", "agent that prepares environments"),
    ("ray::RuntimeEnvAgent", "agent that prepares environments"),
    ("dashboard/agent.py", "agent of the dashboard and of jobs"),
    ("ray::DashboardAgent", "agent of the dashboard and of jobs"),
    ("dashboard/dashboard.py", "dashboard and job API"),
    ("_private/monitor.py", "measurements of the autoscaler"),
    ("_private/log_monitor.py", "log monitor"),
    ("default_worker.py", "a worker process"),
    ("ray::", "a worker process"),
)


@dataclass(frozen=True, order=True)
class ListeningSocket:
    """One address and port that accepts connections."""

    address: str  # "127.0.0.1"; "0.0.0.0" and "::" are every network of this machine
    port: int
    process: str  # "raylet", "python"
    what: str  # for a person: "dashboard and job API"


def listening_sockets(pids: Iterable[int]) -> list[ListeningSocket]:
    """The TCP sockets these processes listen on, each once; a process that has ended listens on none."""
    found: dict[tuple[str, int], ListeningSocket] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            name, what = process.name(), process_kind(process.cmdline())
            connections = process.net_connections(kind="tcp")
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                address, port = plain_address(one.laddr.ip), one.laddr.port
                found.setdefault((address, port), ListeningSocket(address, port, name, what))
    return sorted(found.values(), key=lambda one: (one.port, one.address))


def process_kind(command: Sequence[str]) -> str:
    """What a process is, from its command line; its program, where it is none of Ray's."""
    line = " ".join(command)
    own = command[0].rpartition("/")[2] if command else "?"
    return next((what for word, what in PROCESS_KINDS if word in line), own)


def plain_address(address: str) -> str:
    """An IPv4 address that a dual-stack socket shows as IPv6, as IPv4."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: an address, or a name of which all addresses are so."""
    try:
        return ipaddress.ip_address(plain_address(host)).is_loopback
    except ValueError:
        pass
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(plain_address(address)).is_loopback for address in addresses)


def reachable_sockets(found: Iterable[ListeningSocket]) -> list[ListeningSocket]:
    """Those that other machines can reach."""
    return [one for one in found if not is_loopback(one.address)]


def audit_lines(found: Sequence[ListeningSocket]) -> list[str]:
    """The audit for a person: a line a socket, and a last one that says whether other machines reach any."""
    width = max((len(one.what) for one in found), default=0)
    lines = [f"  {one.what:<{width}}  {format_endpoint(one)}" for one in found]
    outside = reachable_sockets(found)
    if not outside:
        return [*lines, "nothing listens beyond this machine"]
    every = sum(ipaddress.ip_address(one.address).is_unspecified for one in outside)
    last = f"{len(outside)} of {len(found)} sockets can be reached from other machines"
    return [*lines, last + (f", {every} of them on every network this machine is in" if every else "")]


def format_endpoint(one: ListeningSocket) -> str:
    """'127.0.0.1:8265'; '[::1]:80'."""
    return f"[{one.address}]:{one.port}" if ":" in one.address else f"{one.address}:{one.port}"


GCS_PORT, DASHBOARD_PORT = 6379, 8265  # Ray's own

LOOPBACK = "127.0.0.1"


def choose_ports(listen: str, alone: bool, again: bool) -> tuple[int, int]:
    """For GCS (0: Ray chooses) and dashboard: Ray's usual ones; where only we look for them, else free ones."""
    if not alone:
        for port in (GCS_PORT, DASHBOARD_PORT):
            if not is_port_free(listen, port):
                raise UserError(
                    f"port {port} of {listen}, where other machines look for a head, is taken; end what has it"
                )
        return GCS_PORT, DASHBOARD_PORT
    if again:
        return 0, free_port()
    return (
        GCS_PORT if is_port_free(LOOPBACK, GCS_PORT) else 0,
        DASHBOARD_PORT if is_port_free(LOOPBACK, DASHBOARD_PORT) else free_port(),
    )


def is_port_free(listen: str, port: int) -> bool:
    """Whether nobody has this port of ours."""
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of one that has ended do not count
        try:
            one.bind((listen, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """One that nobody has now."""
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        return int(one.getsockname()[1])


class PortTakenError(Exception):  # noqa: N818 - it says what happened
    """Another program was faster."""
