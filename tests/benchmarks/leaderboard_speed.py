"""Wall time of `repro leaderboard` with 10,000 tracked runs, process start included.

    python tests/benchmarks/leaderboard_speed.py [--runs 10000] [--rounds 5]

One run is trained at smoke scale and synced to MLflow. Its rows in every table are then copied in SQL, once for
each planned run of every experiment, with the tags, recipe, record and metrics of that run. A copy has as many
metrics, parameters and tags as a real run, and 100 points per curve.

file       the database file on this machine, read directly
server     `mlflow server` with one worker on that file: `cold` without the record cache, `warm` with it, then
           after 50 more runs ended, and after one run was deleted
shared     as warm, with a run folder for each run in REPRO_HOME: journal, record and sync state
client     the same records through MLflow's search API, from a process that has imported MLflow

`warm` and `file` are medians over the rounds. The second number of each pair is the CPU time of the command, which
depends less on other work on the machine. The parts of a command are timed in a separate process.
"""

import argparse
import contextlib
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT = 2.0  # seconds
POINTS = 100  # of each curve
TABLES = {"tags": "run_uuid", "params": "run_uuid", "latest_metrics": "run_uuid", "metrics": "run_uuid"}
# The parts of the command, timed one after the other.
PARTS = """
import json, sys, time
marks, begun = {}, time.perf_counter()
def mark(name):
    global begun
    marks[name] = time.perf_counter() - begun
    begun = time.perf_counter()
import pipeline.cli
mark("import the command line")
from pipeline.declare.load import load_all
from pipeline.judge.collect import collect_runs
mark("import the rest")
declared = load_all()
mark("read the declarations")
found = collect_runs().records
mark("read the records")
from pipeline.report.leaderboard import build_leaderboard
rows = build_leaderboard(declared, found)
mark("rank them")
print(json.dumps({"records": len(found), "rows": len(rows), **marks}))
"""


def planned(count: int) -> list[Any]:
    """Return `count` runs of all experiments and scales: five seeds of each first, then five more, and so on."""
    from pipeline.declare.load import experiment_names, load_experiment
    from pipeline.plan.expand import Run, plan_runs

    experiments = [load_experiment(name) for name in experiment_names()]
    found: list[Any] = []
    seen: set[tuple[str, str, str, int]] = set()
    for seeds in range(5, 1000, 5):
        for experiment in experiments:
            for scale in experiment.scales:
                for run in plan_runs(experiment, scale=scale, seeds=seeds):
                    name = (run.experiment, run.scale, run.variant, run.seed)
                    if isinstance(run, Run) and name not in seen:
                        seen.add(name)
                        found.append(run)
        if len(found) >= count:
            return found[:count]
    raise SystemExit(f"cannot plan {count} runs")


def record_of(run: Any, number: int, like: Any) -> Any:
    """Return a record for a run that was not trained, with the fields of `like` that do not identify it."""
    from pipeline.report.leaderboard import TOP1, TOP5

    draw = random.Random(number)
    error = draw.uniform(5, 40)
    metrics = dict(like.metrics) | {TOP1: error, TOP5: error / 5}
    for protocol in run.recipe.data.test:  # as evaluated by
        metrics |= {f"test/{protocol}/top1_error_pct": error, f"test/{protocol}/top5_error_pct": error / 5}
        metrics[f"test/{protocol}/images"] = metrics["test/images"]
    return replace(
        like,
        identity=f"{number:016x}",
        experiment=run.experiment,
        scale=run.scale,
        variant=run.variant,
        seed=run.seed,
        changes={},
        ended=f"{run.recipe.train.steps} steps",
        declaration=run.declaration,
        data=run.recipe.data.name,
        metrics=metrics,
        finished=f"2026-01-{1 + number // 1000 % 28:02d}T{number // 60 % 24:02d}:{number % 60:02d}:00+00:00",
    )


class Store:
    """A database with one trained run and copies of it."""

    def __init__(self, home: Path, points: int = POINTS) -> None:
        from pipeline.track.mlflow_writer import Tracker
        from pipeline.track.run_folder import RunFolder
        from tests.support.smoke_runs import smoke_run, train_in

        self.home, self.file, self.curve_points = home, home / "mlflow.db", points
        self.first = home / "first"
        train_in(self.first, smoke_run())
        tracker = Tracker(f"sqlite:///{self.file}")
        tracker.sync(RunFolder(self.first))
        self.record = RunFolder(self.first).result()
        self.base = sqlite3.connect(self.file)
        self.base.execute("PRAGMA synchronous = OFF")
        [self.run_id] = self.base.execute("SELECT run_uuid FROM tags WHERE key = 'repro.record'").fetchone()
        self.rows = {name: self._rows(name, key, self.run_id) for name, key in TABLES.items()}
        self.run = self._rows("runs", "run_uuid", self.run_id)[0]
        self.inputs = self._rows("inputs", "destination_id", self.run_id)
        self.papers: dict[str, int] = {}
        self.tracker = tracker
        self.count = 0

    def _rows(self, table: str, key: str, run_id: str) -> list[dict[str, Any]]:
        found = self.base.execute(f"SELECT * FROM {table} WHERE {key} = ?", (run_id,))
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]

    def _put(self, table: str, rows: list[dict[str, Any]]) -> None:
        if rows:
            names = list(rows[0])
            words = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            self.base.executemany(words, [list(row.values()) for row in rows])

    def paper(self, run: Any) -> int:
        """Return the id of the MLflow experiment for the paper of a run."""
        return self.experiment(run.experiment.partition("/")[0])

    def experiment(self, name: str) -> int:
        """Return the id of an MLflow experiment; create it if it does not exist."""
        if name not in self.papers:
            self.base.commit()
            self.papers[name] = int(self.tracker.experiment_id(name))
        return self.papers[name]

    def add(self, runs: list[Any]) -> None:
        """Add a copy of the trained run for each of `runs`, with increasing end times."""
        from pipeline.track.folder_content import flatten

        start = int(time.time() * 1000) - 10**9
        for run in runs:
            self.count += 1
            record, run_id = record_of(run, self.count, self.record), uuid.uuid4().hex
            ended = start + 1000 * self.count
            place = self.paper(run)
            named = {
                "repro.key": f"run:{record.identity}",
                "repro.identity": record.identity,
                "repro.experiment": run.experiment,
                "repro.scale": run.scale,
                "repro.variant": run.variant,
                "repro.seed": str(run.seed),
                "repro.declaration": run.declaration,
                "repro.record": json.dumps(record.to_dict()),
                "mlflow.runName": run.title,
            }
            info = {"run_uuid": run_id, "name": run.title, "experiment_id": place, "end_time": ended}
            self._put("runs", [self.run | info | {"start_time": ended - 60_000}])
            tags = [row | {"run_uuid": run_id} for row in self.rows["tags"]]
            self._put("tags", [row | {"value": named.get(row["key"], row["value"])} for row in tags])
            params = flatten(run.recipe.model_dump(mode="json")) | {"seed": run.seed}
            self._put("params", [{"run_uuid": run_id, "key": k, "value": str(v)[:500]} for k, v in params.items()])
            latest = [row | {"run_uuid": run_id} for row in self.rows["latest_metrics"]]
            self._put(
                "latest_metrics", [row | {"value": record.metrics.get(row["key"], row["value"])} for row in latest]
            )
            self._put("metrics", self.points(run_id, ended))
            self._put(
                "inputs", [row | {"destination_id": run_id, "input_uuid": uuid.uuid4().hex} for row in self.inputs]
            )
        self.base.commit()

    def points(self, run_id: str, ended: int) -> list[dict[str, Any]]:
        """Return the rows of the curves of one run."""
        first = {row["key"]: row for row in self.rows["metrics"]}
        return [
            row | {"run_uuid": run_id, "step": number, "timestamp": ended - 60_000 + 500 * number}
            for row in first.values()
            for number in range(self.curve_points // (1 if row["key"].startswith("train/") else 10))
        ]

    def add_rows(self, like: str, networks: list[tuple[str, Any]], place: str) -> None:
        """Add a row for each pair of an experiment's name and a `NetworkRun`, like the MLflow run `like`.

        Rows go into the MLflow experiment `place`, or that of their paper. One that exists is not added again.
        """
        tables = {name: self._rows(name, key, like) for name, key in TABLES.items()}
        run = self._rows("runs", "run_uuid", like)[0]
        query = "SELECT experiment_id, value FROM tags JOIN runs USING (run_uuid) WHERE key = 'repro.key'"
        keys = set(self.base.execute(query))
        for experiment, network in networks:
            number = self.experiment(place or experiment.partition("/")[0])
            if (number, network.key) in keys:
                continue
            run_id = uuid.uuid4().hex
            self._put("runs", [run | {"run_uuid": run_id, "name": network.name, "experiment_id": number}])
            fixed = {"repro.key": network.key, "repro.level": "network", "mlflow.runName": network.name}
            tags = {**network.tags, **fixed, "repro.runs": " ".join(network.run_ids)[:5000]}
            self._put("tags", [{"run_uuid": run_id, "key": key, "value": value} for key, value in tags.items()])
            for table in ("latest_metrics", "metrics"):
                first = tables[table][0] | {"run_uuid": run_id}
                self._put(table, [first | {"key": key, "value": value} for key, value in network.metrics.items()])
            if network.is_parent:
                parent = [(run_id, seed) for seed in network.run_ids]
                self.base.executemany(
                    "UPDATE tags SET value = ? WHERE key = 'mlflow.parentRunId' AND run_uuid = ?", parent
                )
        self.base.commit()

    def delete(self) -> None:
        """Delete one run through MLflow."""
        rows = self.base.execute("SELECT run_uuid FROM tags WHERE key = 'repro.identity'")
        run_id = rows.fetchall()[self.count // 2][0]
        self.base.commit()
        self.tracker.client.delete_run(run_id)

    def folders(self, server: str) -> None:
        """Write a run folder for each run, with its record, journal and sync state."""
        from pipeline.track.mlflow_reader import read_tracked_runs, server_key

        files = {name: (self.first / name).read_bytes() for name in ("journal.jsonl", "network.safetensors")}
        what = json.loads((self.first / "run.json").read_text())
        for row in read_tracked_runs(f"sqlite:///{self.file}") or []:
            folder = self.home / "runs" / row.record["identity"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "result.json").write_text(json.dumps(row.record))
            (folder / "run.json").write_text(json.dumps(what | {"identity": row.record["identity"]}))
            (folder / "journal.jsonl").write_bytes(files["journal.jsonl"])
            state = {"server": server_key(server), "offset": len(files["journal.jsonl"]), "run_id": row.run_id}
            (folder / "tracked.json").write_text(json.dumps(state | {"done": True}))


def command(home: Path, uri: str | None) -> tuple[float, float]:
    """Run `repro leaderboard`; return its wall time and its CPU time in seconds."""
    with_it = environment(home, uri)
    begun, before = time.perf_counter(), os.times()
    words = [sys.executable, "-m", "pipeline.cli", "leaderboard"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=with_it, check=False)
    seconds, after = time.perf_counter() - begun, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    if done.returncode or done.stderr or "resnet-20" not in done.stdout:
        raise SystemExit(f"repro leaderboard failed: {done.stdout[-500:]}{done.stderr}")
    return round(seconds, 2), round(used, 2)


def parts(home: Path, uri: str | None) -> dict[str, float]:
    """Return the seconds of each part of the command."""
    words = [sys.executable, "-c", PARTS]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment(home, uri), check=True)
    return json.loads(done.stdout.splitlines()[-1])


def environment(home: Path, uri: str | None) -> dict[str, str]:
    """Return the environment of a process with this home and this tracking server."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return plain | {"REPRO_HOME": str(home)} | ({"MLFLOW_TRACKING_URI": uri} if uri else {})


def forget(home: Path) -> None:
    """Remove the record cache."""
    for file in (home / "runs").glob(".tracked-*"):
        file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from pipeline.common.provenance import commit, hardware_name
    from tests.support.mlflow_servers import free_port, process

    found: dict[str, Any] = {}

    def say(name: str, value: Any) -> None:
        found[name] = value
        print(f"{name:<28}{value}", flush=True)

    with contextlib.ExitStack() as ends:
        home = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        os.environ["REPRO_HOME"] = str(home)
        store = Store(home)
        runs = planned(arguments.runs + 49)
        begun = time.perf_counter()
        store.add(runs[: arguments.runs - 1])  # the first is the trained one
        megabytes = store.file.stat().st_size / 1e6
        print(
            f"{arguments.runs} runs, {megabytes:.0f} MB, made in {time.perf_counter() - begun:.0f} s", flush=True
        )

        def several(uri: str | None) -> tuple[float, float]:
            rows = [command(home, uri) for _ in range(arguments.rounds)]
            return statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows)

        command(home, None)  # reads the files into the page cache
        say("file", several(None))
        say("file, parts", {name: round(value, 3) for name, value in parts(home, None).items()})

        port = free_port()
        uri = f"http://127.0.0.1:{port}"
        ends.enter_context(process(store.file, port))
        say("server, cold", command(home, uri))
        say("server, warm", several(uri))
        say("server, parts", {name: round(value, 3) for name, value in parts(home, uri).items()})
        store.add(runs[arguments.runs - 1 :])
        say("server, 50 more ended", command(home, uri))
        store.delete()
        say("server, one deleted", command(home, uri))
        store.folders(uri)
        command(home, uri)
        say("shared, warm", several(uri))
        forget(home)
        say("shared, cold", command(home, uri))

        from pipeline.track.mlflow_writer import Tracker

        tracker = Tracker(uri)
        assert tracker.client
        begun = time.perf_counter()
        count = len(tracker.search_ended())
        say("client", round(time.perf_counter() - begun, 2))
        assert count == arguments.runs + 49, f"{count} runs"  # one is deleted
    slow = [name for name in ("file", "server, warm", "shared, warm") if found[name][0] > LIMIT]
    print(
        json.dumps(
            {
                "seconds": found,
                "runs": arguments.runs,
                "hardware": hardware_name(),
                "commit": commit(),
                "slow": slow,
            },
            indent=1,
        )
    )
    raise SystemExit(bool(slow))


if __name__ == "__main__":
    main()
