"""Time until MLflow's pages show their rows, with 10,000 tracked runs, in headless Chromium.

    python tests/benchmarks/mlflow_page_speed.py [--runs 10000] [--rounds 5] [--keep FOLDER]

The database is that of `leaderboard_speed.py`: one trained run, copied in SQL once for each planned run of every
experiment. The rows of one experiment are published as `repro run` does; those of the others are copies of such a
row in SQL, with the tags and metrics that `repro run` would write. `mlflow server` has one worker.

leaderboard  the address that `repro ui` prints
paper        the saved view of the MLflow experiment with the most runs
plain        that MLflow experiment as MLflow opens it, without a view of ours: the peer, with the same runs

Each page is opened in a fresh browser profile, so with an empty cache, and its time ends when the first rows are
visible. `best` is the lowest time of the rounds, `all` has each; the pages take turns. `cpu` is what browser and
server used for the best round, in seconds of one processor. The first visit after the server's start is left out:
the server then opens its database. With --keep the database stays in the folder, and is used by the next call.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT = 3.0  # seconds
PATIENCE = 300_000  # milliseconds
SHOWN = 10  # rows that are visible at the end of a visit
POINTS = 10  # of each curve; the tables of runs do not read curves
ROWS = "[role=row] a[href*='/runs/'], .ag-row a[href*='/runs/']"
PUBLISHED = ("resnet/cifar10_depth", "smoke")  # by the product


def publish(store: Any) -> int:
    """Publish the rows of all experiments and scales; return their number."""
    from pipeline.declare.load import load_all
    from pipeline.report.leaderboard import build_leaderboard
    from pipeline.report.mlflow_rows import network_runs
    from pipeline.track.mlflow_networks import publish_networks
    from pipeline.track.mlflow_views import OVERVIEW

    records = store.tracker.records()
    networks = {}
    for experiment in load_all():
        board = build_leaderboard([experiment], records)
        for scale in experiment.scales:
            rows = [row for row in board if row.scale == scale]
            networks[experiment.name, scale] = network_runs(rows, records)
    known = {record.run_id for record in records}
    publish_networks(store.tracker, *PUBLISHED, networks[PUBLISHED], known=known)
    for place in (PUBLISHED[0].partition("/")[0], OVERVIEW):
        like = store.tracker.search(place, "tags.`repro.level` = 'network'")[0].info.run_id
        others = [(name, one) for (name, scale), found in networks.items() for one in found]
        store.add_rows(like, others, OVERVIEW if place == OVERVIEW else "")
    return sum(map(len, networks.values()))


def make_store(home: Path, runs: int) -> Any:
    """Return a store with this many runs and the rows of the leaderboard."""
    from tests.benchmarks.leaderboard_speed import Store, planned

    store = Store(home, points=POINTS)
    begun = time.process_time()
    store.add(planned(runs - 1))  # the first is the trained one
    print(f"{runs} runs, made in {time.process_time() - begun:.0f} s of CPU time", flush=True)
    begun = time.process_time()
    print(f"{publish(store)} rows, made in {time.process_time() - begun:.0f} s of CPU time", flush=True)
    return store


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU time that these processes have used."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def used_by(server: psutil.Process) -> tuple[float, float]:
    """Return the CPU time of the browser that this process has started, and of the server."""
    started = psutil.Process().children(recursive=True)
    chromium = [process for process in started if "chrom" in process.name()]
    return cpu_seconds(chromium), cpu_seconds([server, *server.children(recursive=True)])


@dataclass
class Visits:
    """Times of the visits of one page in seconds: wall time, CPU time of the browser and of the server."""

    address: str
    all: list[tuple[float, float, float]]

    def summary(self) -> dict[str, Any]:
        """Return the best visit, and the wall time of each."""
        wall, browser, server = min(self.all)
        return {"best": wall, "cpu": {"browser": browser, "server": server}, "all": [one[0] for one in self.all]}


def visit(browser: Any, address: str, server: psutil.Process) -> tuple[float, float, float]:
    """Open the address in a fresh profile; return wall time until its rows, CPU time of browser and server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    before = used_by(server)
    begun = time.perf_counter()
    page.goto(address, timeout=PATIENCE, wait_until="commit")
    page.locator(ROWS).nth(SHOWN - 1).wait_for(timeout=PATIENCE)
    seconds = time.perf_counter() - begun
    after = used_by(server)
    context.close()
    return round(seconds, 2), round(after[0] - before[0], 2), round(after[1] - before[1], 2)


def largest_paper(tracker: Any) -> str:
    """Return the id of the MLflow experiment with the most runs."""
    from pipeline.track.mlflow_reader import open_sqlite

    with open_sqlite(Path(tracker.uri.removeprefix("sqlite:///"))) as base:
        query = "SELECT experiment_id FROM runs GROUP BY experiment_id ORDER BY count(*) DESC LIMIT 1"
        return str(base.execute(query).fetchone()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from pipeline.common.provenance import commit, hardware_name
    from pipeline.track.mlflow_views import MODE, OVERVIEW, view_address
    from pipeline.track.mlflow_writer import Tracker
    from tests.support.browser import open_chromium
    from tests.support.mlflow_servers import free_port, process

    with contextlib.ExitStack() as ends:
        home = arguments.keep or Path(ends.enter_context(tempfile.TemporaryDirectory()))
        os.environ["REPRO_HOME"] = str(home)
        file = home / "mlflow.db"
        if not file.exists():
            home.mkdir(exist_ok=True)
            make_store(home, arguments.runs)
        tracker = Tracker(f"sqlite:///{file}")
        tracker.update_views(OVERVIEW)  # of this version, also in a database that was kept
        paper = largest_paper(tracker)
        port = free_port()
        server = f"http://127.0.0.1:{port}"
        running = psutil.Process(ends.enter_context(process(file, port)).pid)
        browser = ends.enter_context(open_chromium())
        pages = {
            "leaderboard": view_address(server, tracker.experiment_id(OVERVIEW)),
            "paper": view_address(server, paper),
            "plain": f"{server}/#/experiments/{paper}/runs?{MODE}",
        }
        visits = {name: Visits(address, []) for name, address in pages.items()}
        visit(browser, pages["leaderboard"], running)
        for _ in range(arguments.rounds):
            for one in visits.values():
                one.all.append(visit(browser, one.address, running))
                print(one.address, one.all[-1], flush=True)
        found = {name: one.summary() for name, one in visits.items()}
    slow = [name for name in ("leaderboard", "paper") if found[name]["best"] > LIMIT]
    about = {"runs": arguments.runs, "hardware": hardware_name(), "commit": commit()}
    print(json.dumps({"seconds": found, **about, "slow": slow}, indent=1))
    raise SystemExit(bool(slow))


if __name__ == "__main__":
    main()
