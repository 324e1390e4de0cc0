"""The health check of the image: the address of the head's dashboard, from its command line."""

import runpy
from types import SimpleNamespace

import psutil
import pytest

from pipeline.common.paths import ROOT

HEALTHY = runpy.run_path(str(ROOT / "docker" / "healthy.py"))


def process(*command):
    return SimpleNamespace(cmdline=lambda: list(command))


def ended():
    raise psutil.NoSuchProcess(1)


OTHERS = [
    SimpleNamespace(cmdline=ended),
    process("gcs_server", "--port=6379", "--host=1"),
    process("ray-dashboard-JobHead-0 (python -u /ray/dashboard/dashboard.py --host=9 --port=9)"),  # a title
]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.0.0.7", "10.0.0.7:41231"), ("127.0.0.1", "127.0.0.1:41231"), ("fd00::7", "[fd00::7]:41231")],
)
def test_the_port_of_a_dashboard_is_found_where_8265_was_in_use(host, expected):
    command = ["python", "-u", "/ray/dashboard/dashboard.py", f"--host={host}", "--port=41231", "--port-retries=0"]
    assert HEALTHY["dashboard_address"]([*OTHERS, process(*command)]) == expected


def test_without_a_dashboard_there_is_no_address():
    assert HEALTHY["dashboard_address"](OTHERS) == ""
