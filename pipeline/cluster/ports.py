"""Choose free ports for Ray, and audit the sockets that its processes listen on."""

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

from pipeline.common.errors import UserError

PROCESS_ROLES = (  # substring of the command line, role of the process; the first match counts
    ("gcs_server", "global control service (GCS)"),
    ("raylet/raylet", "node scheduler (raylet)"),
    ("runtime_env/agent/main.py", "runtime environment agent"),
    ("ray::RuntimeEnvAgent", "runtime environment agent"),
    ("dashboard/agent.py", "dashboard and job agent"),
    ("ray::DashboardAgent", "dashboard and job agent"),
    ("dashboard/dashboard.py", "dashboard and job API"),
    ("_private/monitor.py", "autoscaler metrics"),
    ("_private/log_monitor.py", "log monitor"),
    ("default_worker.py", "worker process"),
    ("ray::", "worker process"),
)

GCS_PORT, DASHBOARD_PORT = 6379, 8265  # Ray's defaults

LOOPBACK = "127.0.0.1"

DOCUMENTATION_HOSTS = ("192.0.2.1", "2001:db8::1")  # RFC 5737 and 3849: they have the default route, and no host


@dataclass(frozen=True, order=True)
class ListeningSocket:
    """An address and port on which a process accepts connections."""

    address: str  # "127.0.0.1"; "0.0.0.0" and "::" are all network interfaces of this machine
    port: int
    process: str  # "raylet", "python"
    role: str  # "dashboard and job API"


class PortTakenError(Exception):
    """Another program took a port between the check and the start of Ray."""


def listening_sockets(pids: Iterable[int]) -> list[ListeningSocket]:
    """Return the TCP sockets that these processes listen on, without duplicates; ended processes have none."""
    found: dict[tuple[str, int], ListeningSocket] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            name, role = process.name(), process_role(process.cmdline())
            connections = process.net_connections(kind="tcp")
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                address, port = plain_address(connection.laddr.ip), connection.laddr.port
                found.setdefault((address, port), ListeningSocket(address, port, name, role))
    return sorted(found.values(), key=lambda listening: (listening.port, listening.address))


def process_role(command: Sequence[str]) -> str:
    """Return the role of a Ray process from its command line; the program's name for any other process."""
    line = " ".join(command)
    program = command[0].rpartition("/")[2] if command else "?"
    return next((role for part, role in PROCESS_ROLES if part in line), program)


def plain_address(address: str) -> str:
    """Return the address without its IPv6 zone, and an IPv4-mapped IPv6 address as IPv4."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def is_loopback(host: str) -> bool:
    """Return whether an address, or every address of a host name, is a loopback address."""
    try:
        return ipaddress.ip_address(plain_address(host)).is_loopback
    except ValueError:
        pass
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(plain_address(address)).is_loopback for address in addresses)


def reachable_sockets(sockets: Iterable[ListeningSocket]) -> list[ListeningSocket]:
    """Return the sockets that other machines can reach."""
    return [listening for listening in sockets if not is_loopback(listening.address)]


def audit_lines(sockets: Sequence[ListeningSocket]) -> list[str]:
    """Return one line per socket, and a last line with the number that other machines can reach."""
    width = max((len(listening.role) for listening in sockets), default=0)
    lines = [f"  {listening.role:<{width}}  {format_endpoint(listening)}" for listening in sockets]
    reachable = reachable_sockets(sockets)
    if not reachable:
        return [*lines, "No socket is reachable from other machines."]
    unspecified = sum(ipaddress.ip_address(listening.address).is_unspecified for listening in reachable)
    more = f", {unspecified} of them on all network interfaces" if unspecified else ""
    return [*lines, f"{len(reachable)} of {len(sockets)} sockets are reachable from other machines{more}."]


def format_endpoint(listening: ListeningSocket) -> str:
    """'127.0.0.1:8265'; '[::1]:80'."""
    host = f"[{listening.address}]" if ":" in listening.address else listening.address
    return f"{host}:{listening.port}"


def choose_ports(listen: str, *, loopback_only: bool, retry: bool) -> tuple[int, int]:
    """Return the ports for GCS (0: Ray chooses) and the dashboard.

    They are Ray's default ports where these are free, other free ports otherwise or on a `retry`: several heads
    may run on one machine.
    """
    address = LOOPBACK if loopback_only else listen
    other_gcs = 0 if loopback_only else free_port(address)
    if retry:
        return other_gcs, free_port(address)
    return (
        GCS_PORT if is_port_free(address, GCS_PORT) else other_gcs,
        DASHBOARD_PORT if is_port_free(address, DASHBOARD_PORT) else free_port(address),
    )


def moved_port_lines(gcs: int, dashboard: int) -> list[str]:
    """Return a line for each port of `choose_ports` that is not Ray's default; 0: Ray chose one itself."""
    chosen = {"GCS, which other nodes join, uses": (GCS_PORT, gcs), "dashboard uses": (DASHBOARD_PORT, dashboard)}
    return [
        f"The {name} {f'port {port}' if port else 'another port'} instead of {default}."
        for name, (default, port) in chosen.items()
        if port != default
    ]


def is_port_free(listen: str, port: int) -> bool:
    """Return whether a port of an address of this machine can be bound."""
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore closed connections in TIME_WAIT
        try:
            probe.bind((listen, port))
        except OSError:
            return False
    return True


def free_port(listen: str = LOOPBACK) -> int:
    """Return a free TCP port of an address of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        probe.bind((listen, 0))
        return int(probe.getsockname()[1])


def own_address(peer: str = "") -> str:
    """Return the address of this machine that other machines connect to.

    `peer`: a host that this machine reaches; the address is the one with which it does so. Without it, the address
    of the host's name, or, where that is a loopback address as on Debian, the one of the default route. UserError
    where there is only loopback.
    """
    if peer:
        address = route_address(peer)
    else:
        named = [one for one in host_addresses(socket.gethostname()) if is_ipv4(one)]
        found = [*named, *map(route_address, DOCUMENTATION_HOSTS)]
        address = next((one for one in found if one and not is_loopback(one)), "")
    if not address:
        raise UserError(
            "--listen auto: found no address of this machine but loopback; give the address to listen on"
        )
    return address


def route_address(host: str) -> str:
    """Return the address of this machine from which it sends to `host`; "" without a route. Sends nothing."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def is_ipv4(text: str) -> bool:
    """Return whether a text is an IPv4 address."""
    try:
        return ipaddress.ip_address(text).version == 4
    except ValueError:
        return False


def host_addresses(host: str) -> list[str]:
    """Return the addresses of a host; the name itself where it cannot be looked up."""
    try:
        return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, None)))
    except OSError:
        return [host]
