"""Time until MLflow's page of the leaderboard shows its rows, with 10,000 tracked runs, in Chromium.

    python tests/benchmarks/mlflow_page_speed.py [--runs 10000] [--rounds 5]

The database is that of `leaderboard_speed.py`: one trained run, copied once for each planned run of every
experiment. Then the rows of the leaderboard are published as `repro run` does, and `mlflow server` serves them
with one worker.

page       from the request of the address that `repro ui` prints until the first row is visible, in a fresh
           browser profile, so with an empty cache; the median over the rounds
again      the same in a browser that has been there before, as after the first visit

The first visit after the server's start is left out: the server then opens its database.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT = 3.0  # seconds
PATIENCE = 300_000  # milliseconds
ROWS = "[role=row] a[href*='/runs/'], .ag-row a[href*='/runs/']"


def publish(records: list[Any], tracker: Any) -> int:
    """Publish the rows of all experiments and scales; return their number."""
    from pipeline.declare.load import load_all
    from pipeline.report.leaderboard import build_leaderboard
    from pipeline.report.mlflow_rows import network_runs
    from pipeline.track.mlflow_networks import publish_networks

    known, count = {record.run_id for record in records}, 0
    for experiment in load_all():
        board = build_leaderboard([experiment], records)
        for scale in experiment.scales:
            rows = [row for row in board if row.scale == scale]
            publish_networks(tracker, experiment.name, scale, network_runs(rows, records), known=known)
            count += len(rows)
    return count


def visit(context: Any, address: str) -> float:
    """Open the address in a new page; return the seconds until the first row is visible."""
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(address, timeout=PATIENCE, wait_until="commit")
    page.locator(ROWS).first.wait_for(timeout=PATIENCE)
    seconds = time.perf_counter() - begun
    page.close()
    return round(seconds, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from pipeline.common.provenance import commit, hardware_name
    from pipeline.track.mlflow_views import OVERVIEW, view_address
    from tests.benchmarks.leaderboard_speed import Store, planned
    from tests.support.browser import open_chromium
    from tests.support.mlflow_servers import free_port, process

    with contextlib.ExitStack() as ends:
        home = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        os.environ["REPRO_HOME"] = str(home)
        store = Store(home)
        begun = time.perf_counter()
        store.add(planned(arguments.runs - 1))  # the first is the trained one
        print(f"{arguments.runs} runs, made in {time.perf_counter() - begun:.0f} s", flush=True)
        begun = time.perf_counter()
        rows = publish(store.tracker.records(), store.tracker)
        print(f"{rows} rows, published in {time.perf_counter() - begun:.0f} s", flush=True)
        port = free_port()
        server = f"http://127.0.0.1:{port}"
        ends.enter_context(process(store.file, port))
        browser = ends.enter_context(open_chromium())
        address = view_address(server, store.tracker.experiment_id(OVERVIEW))
        known = browser.new_context()
        visit(known, address)
        found: dict[str, list[float]] = {"page": [], "again": []}
        for _ in range(arguments.rounds):
            fresh = browser.new_context()
            found["page"].append(visit(fresh, address))
            fresh.close()
            found["again"].append(visit(known, address))
    seconds = {name: statistics.median(values) for name, values in found.items()}
    slow = [name for name, value in seconds.items() if value > LIMIT]
    about = {"runs": arguments.runs, "rows": rows, "hardware": hardware_name(), "commit": commit()}
    print(json.dumps({"seconds": seconds, "all": found, **about, "slow": slow}, indent=1))
    raise SystemExit(bool(slow))


if __name__ == "__main__":
    main()
