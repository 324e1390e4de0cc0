"""The supervisor's report, and whether it shows a live supervisor."""

import json
import time

import pytest

from pipeline.cluster.state_file import (
    STALE_SECONDS,
    read_supervisor_state,
    state_file,
    supervisor_is_alive,
    write_supervisor_state,
)


def test_a_report_is_read_as_written_with_its_time(cluster_home):
    before = time.time()
    write_supervisor_state({"devices": {}, "runs": {}, "trouble": ""})
    assert list(json.loads(state_file().read_text())) == ["time", "devices", "runs", "trouble"]
    assert before <= read_supervisor_state()["time"] <= time.time()
    assert supervisor_is_alive()


def test_an_old_report_shows_no_live_supervisor(cluster_home):
    state_file().write_text(json.dumps({"time": time.time() - STALE_SECONDS - 1}))
    assert not supervisor_is_alive()


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_damaged_report_is_no_report(cluster_home, text):
    state_file().write_text(text)
    assert read_supervisor_state() == {}
    assert not supervisor_is_alive()
