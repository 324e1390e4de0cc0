"""Wall time of `repro report` over all experiments with 2,000 tracked runs, process start included.

    python tests/benchmarks/report_speed.py [--runs 2000] [--pdf]

The runs are copies of one that is trained at smoke scale (see leaderboard_speed.py), with a run folder for
each: figures are drawn from its journal. For each output:

first   the first call in the home: the networks' exact values are measured, which needs torch
warm    the next call
cpu     processor time of the warm call, which a busy machine changes less than the wall time

`--pdf` writes a PDF too. Exits with 1 if the warm time of the single HTML file, or of the folder, exceeds its
limit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT = 30.0  # seconds, of the single file and of the folder
LIMITED = ("--html", "--html site")
OUTPUTS = {"--html": "report.html", "--html site": "site", "--markdown": "report.md", "--pdf": "report.pdf"}


def call(home: Path, option: str, name: str) -> tuple[float, float]:
    """Write one report; return its wall time and its processor time in seconds."""
    from tests.benchmarks.leaderboard_speed import environment

    words = [sys.executable, "-m", "pipeline.cli", "report", option.split()[0], str(home / "out" / name)]
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env=environment(home, None), check=False
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode or "wrote" not in done.stdout or "No finished runs" in done.stdout:
        raise SystemExit(f"repro report failed: {done.stdout[-500:]}{done.stderr}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return round(seconds, 1), round(used, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--pdf", action="store_true", help="write a PDF too")
    arguments = parser.parse_args()
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from pipeline.common.provenance import commit, hardware_name
    from tests.benchmarks.leaderboard_speed import Store, planned

    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["REPRO_HOME"] = str(home)
        store = Store(home)
        store.add(planned(arguments.runs)[: arguments.runs - 1])  # the first is the trained one
        store.folders(f"sqlite:///{store.file}")
        first, _ = call(home, "--html", "first.html")
        for option, name in OUTPUTS.items():
            if option == "--pdf" and not arguments.pdf:
                continue
            warm, cpu = call(home, option, name)
            found[option] = {"warm": warm, "cpu": cpu}
            print(f"{option:<14}warm {warm:6.1f} s   cpu {cpu:6.1f} s", flush=True)
        found["--html"]["first"] = first
        files = [path for path in (home / "out").iterdir() if path.is_file()]
        megabytes = {path.name: round(path.stat().st_size / 1e6, 1) for path in files}
    slow = [option for option in LIMITED if found[option]["warm"] > LIMIT]
    result = {"seconds": found, "runs": arguments.runs, "megabytes": megabytes, "slow": slow}
    print(json.dumps(result | {"hardware": hardware_name(), "commit": commit()}, indent=1))
    raise SystemExit(bool(slow))


if __name__ == "__main__":
    main()
