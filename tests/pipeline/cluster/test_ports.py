"""The audit of listening sockets, and the choice of ports."""

import os
import socket
import subprocess
import sys

import pytest

from pipeline.cluster import ports
from pipeline.cluster.ports import (
    ListeningSocket,
    audit_lines,
    choose_ports,
    format_endpoint,
    is_loopback,
    listening_sockets,
    moved_port_lines,
    own_address,
    plain_address,
    process_role,
    reachable_sockets,
)
from pipeline.common.errors import UserError


@pytest.fixture
def listen():
    """Listen on an address and return the port."""
    opened = []

    def open_socket(address, family=socket.AF_INET):
        server = socket.socket(family)
        opened.append(server)
        server.bind((address, 0))
        server.listen()
        return server.getsockname()[1]

    yield open_socket
    for server in opened:
        server.close()


def own_sockets():
    """Return address and port of the sockets that this process listens on."""
    return {(listening.address, listening.port) for listening in listening_sockets([os.getpid()])}


def test_listening_sockets_are_found_and_other_sockets_are_not(listen):
    before = own_sockets()
    port, other = listen("127.0.0.1"), listen("127.0.0.2")
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))  # bound, but does not listen
    with bound, socket.create_connection(("127.0.0.1", port)):  # connected
        assert own_sockets() - before == {("127.0.0.1", port), ("127.0.0.2", other)}


def test_a_socket_on_all_interfaces_is_reachable(listen):
    inner, outer = listen("127.0.0.1"), listen("0.0.0.0")
    found = [listening for listening in listening_sockets([os.getpid()]) if listening.port in (inner, outer)]
    assert [listening.port for listening in reachable_sockets(found)] == [outer]
    assert audit_lines(found)[-1] == (
        "1 of 2 sockets are reachable from other machines, 1 of them on all network interfaces."
    )


def test_an_ipv6_socket_on_an_ipv4_mapped_address_is_shown_as_ipv4(listen):
    port = listen("::ffff:127.0.0.1", socket.AF_INET6)  # as gRPC does
    [found] = [listening for listening in listening_sockets([os.getpid()]) if listening.port == port]
    assert (found.address, reachable_sockets([found])) == ("127.0.0.1", [])


def test_sockets_of_several_processes_are_found_once_each(listen):
    port = listen("127.0.0.1")
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        child_port = int(child.stdout.readline())
        found = listening_sockets([os.getpid(), child.pid, os.getpid()])
        assert sorted(listening.port for listening in found if listening.port in (port, child_port)) == sorted(
            [port, child_port]
        )
        child.stdin.close()
    assert listening_sockets([child.pid]) == []  # it has ended


@pytest.mark.parametrize(
    ("address", "shown", "loopback"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.8.9.1", "127.8.9.1", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "0.0.0.0", False),
        ("::", "::", False),
        ("10.0.0.7", "10.0.0.7", False),
        ("::ffff:10.0.0.7", "10.0.0.7", False),
        ("fe80::1%eth0", "fe80::1", False),
    ],
)
def test_loopback_addresses_are_recognized(address, shown, loopback):
    assert (plain_address(address), is_loopback(address)) == (shown, loopback)


def test_a_name_is_loopback_only_if_all_its_addresses_are(monkeypatch):
    known = {"localhost": ["127.0.0.1", "::1"], "both": ["127.0.0.1", "10.0.0.7"], "": ["0.0.0.0"]}

    def look_up(host, port):
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(2, 1, 6, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert [is_loopback(name) for name in ("localhost", "both", "", "nobody")] == [True, False, False, False]


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["/x/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp"], "global control service (GCS)"),
        (["/x/ray/core/src/ray/raylet/raylet", "--x"], "node scheduler (raylet)"),
        (["python", "/x/ray/dashboard/dashboard.py", "--port=8265"], "dashboard and job API"),
        (["python", "-u", "/x/ray/dashboard/agent.py"], "dashboard and job agent"),
        (["ray::DashboardAgent"], "dashboard and job agent"),
        (["ray::Trainer.train"], "worker process"),
        (["/usr/bin/sshd", "-D"], "sshd"),
        ([], "?"),  # a kernel thread, or just ended
    ],
)
def test_a_process_has_a_role(command, role):
    assert process_role(command) == role


def test_the_audit_has_a_line_per_socket_and_a_summary():
    found = [
        ListeningSocket("127.0.0.1", 8265, "python", "dashboard and job API"),
        ListeningSocket("::1", 80, "x", "x"),
    ]
    assert audit_lines(found) == [
        "  dashboard and job API  127.0.0.1:8265",
        "  x                      [::1]:80",
        "No socket is reachable from other machines.",
    ]
    assert audit_lines([])[-1] == "No socket is reachable from other machines."
    outside = ListeningSocket("10.0.0.7", 6379, "gcs_server", "GCS")
    assert audit_lines([*found, outside])[-1] == "1 of 3 sockets are reachable from other machines."
    assert format_endpoint(outside) == "10.0.0.7:6379"


def test_ports_in_use_are_avoided(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        in_use = first.getsockname()[1], second.getsockname()[1]
        monkeypatch.setattr(ports, "GCS_PORT", in_use[0])
        monkeypatch.setattr(ports, "DASHBOARD_PORT", in_use[1])
        gcs, dashboard = choose_ports("127.0.0.1", loopback_only=True, retry=False)
        assert gcs == 0
        assert dashboard not in (0, *in_use)
        for retry in (False, True):
            chosen = choose_ports("127.0.0.1", loopback_only=False, retry=retry)
            assert not {0, *in_use} & {*chosen}  # other machines must know the port
    assert choose_ports("127.0.0.1", loopback_only=True, retry=False) == in_use
    assert choose_ports("127.0.0.1", loopback_only=False, retry=False) == in_use
    assert choose_ports("127.0.0.1", loopback_only=True, retry=True)[0] == 0


def test_a_head_says_which_ports_it_did_not_get():
    assert moved_port_lines(6379, 8265) == []
    assert moved_port_lines(6379, 40000) == ["The dashboard uses port 40000 instead of 8265."]
    assert moved_port_lines(0, 40000)[0] == "The GCS, which other nodes join, uses another port instead of 6379."


def names(monkeypatch, **addresses):
    """Let host names have these addresses, and the default route start at 10.0.0.9."""
    monkeypatch.setattr(socket, "gethostname", lambda: "me")
    monkeypatch.setattr(ports, "host_addresses", lambda host: addresses.get(host, [host]))
    monkeypatch.setattr(ports, "route_address", lambda host: "10.0.0.9" if host == "192.0.2.1" else "")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["10.0.0.1"], "10.0.0.1"),
        (["127.0.1.1"], "10.0.0.9"),  # Debian's /etc/hosts
        (["::1", "127.0.0.1"], "10.0.0.9"),
        (["127.0.1.1", "10.0.0.2"], "10.0.0.2"),
        (["me"], "10.0.0.9"),  # no address at all
    ],
)
def test_own_address_is_one_that_others_reach(monkeypatch, own, expected):
    names(monkeypatch, me=own)
    assert own_address() == expected


def test_without_a_network_the_address_must_be_given(monkeypatch):
    names(monkeypatch, me=["127.0.1.1"])
    monkeypatch.setattr(ports, "route_address", lambda host: "")
    with pytest.raises(UserError, match="--listen auto: found no address of this machine but loopback"):
        own_address()


def test_own_address_towards_a_peer_is_that_of_the_route():
    assert own_address("127.0.0.1") == "127.0.0.1"
