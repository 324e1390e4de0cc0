"""Run a Ray node on this machine in the foreground (`repro node`).

By default a node listens on loopback only. On a stop signal (SIGTERM: a preemption, a scale-down, the time limit
of a batch system) the training on the node writes its checkpoints; then the node ends the processes it started.

cluster/NAME/ under REPRO_HOME, written by the head of the cluster NAME (token.cluster_name):
  token        token of Ray's authentication, readable by its owner only
  node.json    addresses of the running head
  node.log     output of a head in the background
  state.json   report of the supervisor
  start.lock   held while a background head starts, or shuts down when idle
  head.lock    held by the running head
  heartbeat    id of the running head, which touches it every 5 s
  wanted       touched whenever a command uses the cluster

A temporary folder on the node's machine, whose path the node's processes find in REPRO_NODE:
  leaving      exists once the node shuts down
  training/    a file for each process that trains on the node, named by its pid
  ray/         Ray's files and logs
"""

import contextlib
import shutil
import socket
import tempfile
from pathlib import Path

from pipeline.cluster import ports
from pipeline.cluster.autoscale import AutoscaledKind
from pipeline.cluster.head_lock import hold_head_lock
from pipeline.cluster.local_head import (
    ClusterAddress,
    find_local_cluster,
    head_token,
    remove_cluster_file,
    write_cluster_file,
)
from pipeline.cluster.metrics import SERVICE_DISCOVERY
from pipeline.cluster.ray_node import RayNode, print_line
from pipeline.cluster.token import check_token_file, ensure_token_file
from pipeline.common.errors import UserError
from pipeline.common.network import use_no_proxy
from pipeline.common.signals import count_stop_signals, node_stop_signals

MAX_BASE_LENGTH = 20  # characters: the path of a Unix socket has at most 107, and Ray's folders take 68


def run_node(
    *,
    head: bool,
    address: str | None,
    listen: str,
    cpus: int | None,
    gpus: int | None,
    grace: float,
    until_idle: float | None,
    autoscaled: AutoscaledKind | None = None,
) -> int:
    """Run a cluster node until a stop signal; return the exit code, 1 where Ray ended unexpectedly.

    `head` starts a cluster, `address` ("HOST:6379") joins one. `listen`: the address of this machine to listen on,
    or "auto" for the one that other machines connect to.
    `cpus`, `gpus`: the resources offered, None for all. `grace`: seconds for training to write checkpoints after a
    stop signal. `until_idle`: a head that is idle for so many seconds shuts down. `autoscaled`: the devices of the
    nodes that an autoscaler outside adds to the head's cluster.
    """
    peer = (address or "").rpartition(":")[0].strip("[]")
    listen = ports.own_address(peer) if listen == "auto" else listen
    use_no_proxy(listen, peer)
    loopback_only = ports.is_loopback(listen)
    if autoscaled and not head:
        raise UserError("--autoscaled is an option of the head: use it with --head")
    token = check_arguments(head, address, listen, loopback_only)
    with contextlib.ExitStack() as stack:
        heartbeat = stack.enter_context(hold_head_lock()) if head else None
        stop_signals = stack.enter_context(count_stop_signals(node_stop_signals()))
        folder = Path(tempfile.mkdtemp(prefix="repro-node-", dir=node_base_folder()))
        node = RayNode(folder, token, loopback_only)
        code = 1
        try:
            cluster = node.start(address, listen, cpus, gpus, stop_signals, autoscaled)
            if cluster is None:  # stopped during the start
                code = 0
            else:
                if head:
                    write_cluster_file(cluster)
                print_addresses(node, cluster, address, loopback_only)
                is_replaced = heartbeat.is_replaced if heartbeat else lambda: False
                code = node.watch(stop_signals, until_idle if head else None, is_replaced)
                if head:
                    remove_cluster_file()
                if code == 0:
                    node.drain(grace, stop_signals)
        except UserError as error:
            if str(folder) not in str(error):  # keep the logs that the message refers to
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if head:
                remove_cluster_file()
            remaining = node.end()
        if remaining:
            print_line(f"Cannot end these processes: {remaining}")
            code = 1
        if code == 0:
            shutil.rmtree(folder, ignore_errors=True)
            print_line("The node has ended.")
        return code


def check_arguments(head: bool, address: str | None, listen: str, loopback_only: bool) -> Path:
    """Return the token file to use; UserError for invalid arguments, or where no head responds at `address`."""
    if head == bool(address):
        raise UserError("use either --head, to start a cluster, or --address HOST:6379, to join one")
    if not loopback_only:
        check_local_address(listen)
    if not address:
        running = find_local_cluster()
        if running:
            raise UserError(
                f"a cluster of this REPRO_HOME already runs at {running.dashboard} (process {running.pid}); use"
                f" it, stop it with: kill {running.pid}, or set REPRO_CLUSTER to another name for a second one"
            )
        return ensure_token_file()
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not (host and port.isdigit()):
        raise UserError(f"--address {address}: must be the head's HOST:PORT, as in 10.0.0.1:{ports.GCS_PORT}")
    try:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            local_address = connection.getsockname()[0]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"no head responds at {address} ({reason.lower()}); start one there with: repro node --head --listen"
            " ADDRESS_OF_THAT_MACHINE"
        ) from None
    if loopback_only and not ports.is_loopback(local_address):
        raise UserError(
            f"a node that joins {address} must be reachable from other machines; give an address of this machine,"
            f" for example --listen {local_address}"
        )
    return check_token_file(head_token(host, int(port)))


def check_local_address(listen: str) -> None:
    """Raise UserError for an address that is not one of this machine."""
    try:
        family = socket.AF_INET6 if ":" in listen else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((listen, 0))
    except OSError:
        raise UserError(
            f"--listen {listen}: not an address of this machine; use one of its own, or 127.0.0.1"
        ) from None


def node_base_folder() -> Path:
    """Return the folder for the node's temporary folder; its path must be short, for Ray's sockets."""
    default = tempfile.gettempdir()
    return Path(default if len(default) <= MAX_BASE_LENGTH else "/tmp")


def print_addresses(node: RayNode, cluster: ClusterAddress, address: str | None, loopback_only: bool) -> None:
    """Print how to reach the node, and the sockets it listens on."""
    if address:
        print_line(f"Joined the cluster at {address}.")
    else:
        print_line(f"The cluster is ready. Dashboard and job API: {cluster.dashboard}")
        print_line(f"Metrics, for Prometheus: {cluster.dashboard}{SERVICE_DISCOVERY}")
        print_line(f"Access requires the token in {cluster.token_file}")
        if not loopback_only:
            print_line(
                f"To join from another machine: repro node --address {cluster.gcs} --listen ITS_OWN_ADDRESS"
            )
            print_line("  (copy the token there with mode 0600, and set RAY_AUTH_TOKEN_PATH to the copy)")
    print_line("Listening sockets:")
    for line in ports.audit_lines(ports.listening_sockets(process.pid for process in node.descendants())):
        print_line(line)
    if not loopback_only:
        print_line(
            "Ray opens some of these on all network interfaces. All except its metrics require the token, but"
        )
        print_line("the traffic is not encrypted: protect these ports with a firewall or use a private network.")
