"""Requests to this machine without a proxy, and no usage statistics."""

import socket
import urllib.request

import pytest
from requests.utils import should_bypass_proxies

from pipeline.common import network
from pipeline.common.network import report_no_statistics, use_no_proxy

OWN = ["localhost", "127.0.0.1", "127.0.0.0/8", "::1", socket.gethostname()]


@pytest.fixture
def proxied(monkeypatch):
    """Environment of a machine behind a proxy, without exceptions."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8265/api/version",
        "http://localhost:5000",
        "http://127.0.1.1:5000",  # Debian's address of the host's own name
        "http://[::1]:5000",
        f"http://{socket.gethostname()}:5000",
        "http://10.0.0.1:8265",
    ],
)
def test_this_machine_and_the_cluster_are_reached_without_a_proxy(proxied, url):
    assert not should_bypass_proxies(url, None)
    use_no_proxy("10.0.0.1")
    assert should_bypass_proxies(url, None)
    assert not should_bypass_proxies("http://mlflow.example:5000", None)


def test_urllib_agrees(proxied):
    use_no_proxy("head")
    assert urllib.request.proxy_bypass("head")
    assert urllib.request.proxy_bypass("127.0.0.1")
    assert not urllib.request.proxy_bypass("mlflow.example")


def test_exceptions_of_the_user_remain_and_nothing_is_added_twice():
    environment = {"no_proxy": "a.example, 127.0.0.1", "NO_PROXY": "b.example"}
    for _ in range(2):
        use_no_proxy("", "0.0.0.0", environment=environment)
    expected = ["a.example", "127.0.0.1", "b.example", *(host for host in OWN if host != "127.0.0.1")]
    assert environment["no_proxy"].split(",") == expected
    assert environment["NO_PROXY"] == environment["no_proxy"]


def test_an_exception_for_all_hosts_remains():
    environment = {"NO_PROXY": "*"}
    use_no_proxy("head", environment=environment)
    assert environment == {"no_proxy": "*", "NO_PROXY": "*"}


def test_statistics_are_off_also_where_the_user_switched_them_on():
    environment = {"RAY_USAGE_STATS_ENABLED": "1"}
    report_no_statistics(environment)
    assert environment == network.NO_STATISTICS
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_rays_report_that_statistics_are_off_goes_nowhere(monkeypatch):
    """Ray's dashboard sends it although statistics are off."""
    from ray._common.usage import usage_lib

    for name, value in network.NO_STATISTICS.items():
        monkeypatch.setenv(name, value)
    assert not usage_lib.usage_stats_enabled()
    assert usage_lib._usage_stats_report_url() == "http://127.0.0.1:9/"
