"""Which doors are open: an audit that sees every one, and says which of them other machines reach."""

import os
import socket
import subprocess
import sys

import pytest

from pipeline.cluster.ports import (
    ListeningSocket,
    audit_lines,
    format_endpoint,
    is_loopback,
    listening_sockets,
    plain_address,
    process_kind,
    reachable_sockets,
)


@pytest.fixture
def door():
    """Listen on an address; the port."""
    opened = []

    def listen(address, family=socket.AF_INET):
        one = socket.socket(family)
        opened.append(one)
        one.bind((address, 0))
        one.listen()
        return one.getsockname()[1]

    yield listen
    for one in opened:
        one.close()


def mine():
    return {(one.address, one.port) for one in listening_sockets([os.getpid()])}


def test_what_listens_is_found_and_what_does_not_is_not(door):
    before = mine()
    port, other = door("127.0.0.1"), door("127.0.0.2")
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))  # has a port, and accepts nothing
    with bound, socket.create_connection(("127.0.0.1", port)):  # as does a connection
        assert mine() - before == {("127.0.0.1", port), ("127.0.0.2", other)}


def test_a_socket_on_all_networks_is_beyond_this_machine(door):
    inner, outer = door("127.0.0.1"), door("0.0.0.0")
    found = [one for one in listening_sockets([os.getpid()]) if one.port in (inner, outer)]
    assert [one.port for one in reachable_sockets(found)] == [outer]
    assert audit_lines(found)[-1] == (
        "1 of 2 sockets can be reached from other machines, 1 of them on every network this machine is in"
    )


def test_an_ipv6_socket_that_listens_on_an_ipv4_address_is_shown_as_that(door):
    port = door("::ffff:127.0.0.1", socket.AF_INET6)  # as gRPC does
    [one] = [one for one in listening_sockets([os.getpid()]) if one.port == port]
    assert (one.address, reachable_sockets([one])) == ("127.0.0.1", [])


def test_the_doors_of_a_child_are_seen_and_a_shared_one_is_told_once(door):
    port = door("127.0.0.1")
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        theirs = int(child.stdout.readline())
        found = listening_sockets([os.getpid(), child.pid, os.getpid()])
        assert sorted(one.port for one in found if one.port in (port, theirs)) == sorted([port, theirs])
        child.stdin.close()
    assert listening_sockets([child.pid]) == []  # it has ended


@pytest.mark.parametrize(
    ("address", "shown", "inside"),
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
def test_only_loopback_is_this_machine(address, shown, inside):
    assert (plain_address(address), is_loopback(address)) == (shown, inside)


def test_a_name_is_this_machine_only_if_all_its_addresses_are(monkeypatch):
    known = {"localhost": ["127.0.0.1", "::1"], "both": ["127.0.0.1", "10.0.0.7"], "": ["0.0.0.0"]}

    def look_up(host, port):
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(2, 1, 6, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert [is_loopback(name) for name in ("localhost", "both", "", "nobody")] == [True, False, False, False]


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["/x/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp"], "the cluster's directory (GCS)"),
        (["/x/ray/core/src/ray/raylet/raylet", "--x"], "the node's scheduler (raylet)"),
        (["python", "/x/ray/dashboard/dashboard.py", "--port=8265"], "dashboard and job API"),
        (["python", "-u", "/x/ray/dashboard/agent.py"], "agent of the dashboard and of jobs"),
        (["ray::DashboardAgent"], "agent of the dashboard and of jobs"),
        (["ray::Trainer.train"], "a worker process"),
        (["/usr/bin/sshd", "-D"], "sshd"),
        ([], "?"),  # of the kernel, or just ended
    ],
)
def test_a_process_is_named_for_a_person(command, what):
    assert process_kind(command) == what


def test_the_audit_in_words():
    found = [
        ListeningSocket("127.0.0.1", 8265, "python", "dashboard and job API"),
        ListeningSocket("::1", 80, "x", "x"),
    ]
    assert audit_lines(found) == [
        "  dashboard and job API  127.0.0.1:8265",
        "  x                      [::1]:80",
        "nothing listens beyond this machine",
    ]
    assert audit_lines([])[-1] == "nothing listens beyond this machine"
    outside = ListeningSocket("10.0.0.7", 6379, "gcs_server", "GCS")
    assert audit_lines([*found, outside])[-1] == "1 of 3 sockets can be reached from other machines"
    assert format_endpoint(outside) == "10.0.0.7:6379"
