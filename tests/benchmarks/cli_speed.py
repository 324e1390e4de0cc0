"""Wall time of the commands that only read, and of `repro run` with all runs finished.

    python tests/benchmarks/cli_speed.py [--rounds 5]

Two temporary homes are used. One holds the records of results/records.json as finished runs; in the other
`repro run EXPERIMENT --scale smoke --seeds 1` has just trained its runs. Every command is a process of its own,
timed from its start to its end.

first   the first call in the home: no cache of ours exists, the operating system may have cached the files
warm    median of the following calls
cpu     processor time of the command in the last call, which a busy machine changes less than the wall time

Exits with 1 if a warm time exceeds its limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

EXPERIMENT = "resnet/cifar10_depth"

RUN = ("run", EXPERIMENT, "--scale", "smoke", "--seeds", "1")

READING = {  # command -> limit in seconds of its warm wall time; None: no limit
    ("--help",): 1.0,
    ("--version",): 1.0,
    ("list",): 1.0,
    ("show", EXPERIMENT): 1.0,
    ("leaderboard",): 1.0,
    ("status",): 1.0,
    ("verify", EXPERIMENT): 1.0,
    ("verify",): 3.0,
}

RUN_LIMIT = 2.0


@dataclass(frozen=True)
class Timing:
    """Seconds of one command."""

    command: str
    first: float
    warm: float
    cpu: float
    limit: float | None


def call(home: Path, words: tuple[str, ...]) -> tuple[float, float]:
    """Run a command; return its wall time and its processor time in seconds."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "REPRO_"))}
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words],
        cwd=ROOT,
        env=plain | {"REPRO_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:  # 1: a claim is not reproduced
        raise SystemExit(f"repro {' '.join(words)} failed:\n{done.stdout[-500:]}{done.stderr}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def measure(home: Path, words: tuple[str, ...], limit: float | None, rounds: int) -> Timing:
    """Time a command once, then `rounds` times."""
    first, _ = call(home, words)
    calls = [call(home, words) for _ in range(rounds)]
    return Timing(" ".join(words), first, statistics.median(seconds for seconds, _ in calls), calls[-1][1], limit)


def put_recorded_runs(home: Path) -> None:
    """Write the recorded runs as run folders, without curves and models."""
    for record in json.loads((ROOT / "results" / "records.json").read_text(encoding="utf-8")):
        folder = home / "runs" / record["identity"]
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")


def main() -> None:
    """Measure all commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="calls after the first one")
    rounds = parser.parse_args().rounds
    from pipeline.common.provenance import commit, hardware_name

    slow = []
    print(f"{'repro':<52}{'first s':>9}{'warm s':>9}{'cpu s':>8}{'limit s':>9}", flush=True)

    def show(timing: Timing) -> None:
        limit = "" if timing.limit is None else f"{timing.limit:.1f}"
        print(
            f"{timing.command:<52}{timing.first:>9.2f}{timing.warm:>9.2f}{timing.cpu:>8.2f}{limit:>9}", flush=True
        )
        if timing.limit is not None and timing.warm > timing.limit:
            slow.append(timing.command)

    with tempfile.TemporaryDirectory() as folder:
        reading, trained = Path(folder) / "recorded", Path(folder) / "trained"
        put_recorded_runs(reading)
        for words, limit in READING.items():
            show(measure(reading, words, limit, rounds))
        call(trained, RUN)
        show(measure(trained, RUN, RUN_LIMIT, rounds))
    print(json.dumps({"rounds": rounds, "hardware": hardware_name(), "commit": commit(), "slow": slow}))
    raise SystemExit(bool(slow))


if __name__ == "__main__":
    main()
