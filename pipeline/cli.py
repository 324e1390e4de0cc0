"""The command `repro`. A command parses, calls one function, prints, and returns an exit code.

Exit codes: 0 all well; 1 a claim is not reproduced (verify) or a run failed (run); 2 a mistake in what was asked;
130 stopped by Ctrl-C, resumable. Heavy libraries are imported inside the commands that need them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.mistakes import UserError

if TYPE_CHECKING:
    from pipeline.experiment import Experiment
    from pipeline.ledger import Entry
    from pipeline.record import Record
    from pipeline.report.leaderboard import Row

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Rerun the classic papers on convolutional networks and judge, number by number, whether they hold.",
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="As `repro list` shows it, or a .yaml file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
MADE, STOPPED = 1, 130


@app.command("list")
def list_experiments(as_json: AsJson = False) -> None:
    """All experiments: question, variants, scales, claims."""
    from pipeline.experiment import load, names

    found = [load(name) for name in names()]
    if as_json:
        print_json([{"name": e.name, "question": e.question, "scales": list(e.scales)} for e in found])
        return
    table = plain_table("experiment", "question", "variants", "scales", "claims")
    for e in found:
        table.add_row(e.name, e.question, str(len(e.variants)), ", ".join(e.scales), str(len(e.claims)))
    out.print(table)
    out.print("\nMore of one: [bold]repro show EXPERIMENT[/]")


@app.command()
def show(experiment: Name, as_json: AsJson = False) -> None:
    """One experiment: recipe, variants, scales, claims, and an estimate of the work."""
    from pipeline.experiment import load

    declared = load(experiment)
    if as_json:
        print_json(declared.model_dump(mode="json"))
        return
    from pipeline.report.describe import describe

    describe(declared, tracked(declared.name), out)


@app.command()
def run(
    experiment: Name,
    scale: Annotated[str, typer.Option(help="A scale of the experiment: paper, laptop, …")] = "laptop",
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant (repeatable).")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, instead of those declared.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe, as in train.lr=0.05; labelled as departing."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train what is not finished, track it, and judge the claims. Ctrl-C leaves everything resumable."""
    from pipeline.experiment import load
    from pipeline.plan import plan

    declared = load(experiment)
    runs = plan(declared, scale=scale, variants=variant or (), seeds=seeds, changes=parsed(changes or []))
    with err.status("reading the data and the code …") if err.is_terminal else quiet():
        from pipeline.reproduce import carry_out, tasks_for

        tasks = tasks_for(runs)
    from pipeline.report.progress import Progress

    with Progress(tasks, err, quietly=as_json) as progress:
        if dry_run:
            progress.plan()
            return
        came = carry_out(tasks, threads=threads(), happened=progress.happened, tick=progress.tick)
    if came.untracked:
        err.print(f"[yellow]Not tracked yet:[/] {came.untracked}")
        err.print("The runs are safe in their journals; the next repro command sends them.")
    entries, rows, files = concluded(declared, scale, came.records)
    if as_json:
        ledger_json = [entry.to_dict() for entry in entries]
        print_json({"leaderboard": [row.to_dict() for row in rows], "verdicts": ledger_json} | files)
    else:
        print_leaderboard(rows)
        print_ledger(entries, trained_only=True)
        for what, path in files.items():
            out.print(f"{what:<8} {path}", soft_wrap=True)
        out.print("MLflow   [bold]repro ui[/] opens its pages (leaderboard, curves, verdicts)")
    if not came.whole:
        err.print("\nNot all runs ended. What is finished stays; the same command goes on where they stopped.")
        raise typer.Exit(STOPPED if progress.interrupted else MADE)


@app.command()
def verify(
    experiment: Annotated[str | None, typer.Argument(help="One experiment; all without.")] = None,
    as_json: AsJson = False,
) -> None:
    """The ledger: every claim judged anew from the evidence alone. Exit 1 if one is not reproduced."""
    from pipeline.experiment import load
    from pipeline.reproduce import all_experiments, judged
    from pipeline.verdict import Outcome

    declared = [load(experiment)] if experiment else all_experiments()
    entries = judged(declared, tracked(experiment and declared[0].name))
    if as_json:
        print_json([entry.to_dict() for entry in entries])
    else:
        print_ledger(entries)
    raise typer.Exit(any(entry.verdict.outcome is Outcome.NOT_REPRODUCED for entry in entries))


@app.command()
def leaderboard(
    experiment: Annotated[str | None, typer.Argument(help="One experiment; all without.")] = None,
    as_json: AsJson = False,
) -> None:
    """Networks ranked by error, the paper's number beside ours."""
    from pipeline.experiment import load
    from pipeline.report.leaderboard import leaderboard as ranked
    from pipeline.reproduce import all_experiments

    declared = [load(experiment)] if experiment else all_experiments()
    rows = ranked(declared, tracked(experiment and declared[0].name))
    if as_json:
        print_json([row.to_dict() for row in rows])
    elif rows:
        print_leaderboard(rows)
    else:
        out.print("No finished runs yet; start some with: [bold]repro run EXPERIMENT --scale laptop[/]")


@app.command()
def results(
    file: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("RESULTS.md"),
) -> None:
    """Write RESULTS.md, its figures and its records from the tracked runs of every experiment."""
    from pipeline.report.results import write_results
    from pipeline.reproduce import all_experiments
    from pipeline.tracking import Tracker

    for path in write_results(all_experiments(), tracked(None), Tracker(), file):
        out.print(f"wrote {path}", soft_wrap=True)


@app.command()
def ui(port: Annotated[int, typer.Option(help="On the loopback address.")] = 5000) -> None:
    """MLflow's own pages, on this machine only, until Ctrl-C."""
    from pipeline.home import home, tracking_uri

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        out.print(f"The tracking server has its own pages: {uri.rsplit('@', 1)[-1]}")
        return
    out.print(f"MLflow's pages: [bold]http://127.0.0.1:{port}[/]  (Ctrl-C ends them)")
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--backend-store-uri", uri, "--workers", "1"]
    words += ["--default-artifact-root", (home() / "mlartifacts").as_uri()]
    try:
        raise typer.Exit(
            subprocess.run(words, check=False, env=os.environ | {"MLFLOW_LOG_LEVEL": "WARNING"}).returncode
        )
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def tracked(experiment: str | None) -> "list[Record]":
    """All ended runs: those on the tracking server, after sending it what is unsent; without it, those here."""
    from pipeline.reproduce import sync_all
    from pipeline.runs import local_records

    try:
        from pipeline.tracking import Tracker, silence

        silence()
        tracker = Tracker()
        sync_all(tracker)
        return tracker.records(experiment)
    except UserError as error:
        err.print(f"[yellow]{error}[/]\nJudging from the runs on this machine alone.", soft_wrap=True)
        return local_records()


def concluded(
    declared: "Experiment", scale: str, records: "list[Record]"
) -> "tuple[list[Entry], list[Row], dict[str, str]]":
    """Verdicts, leaderboard and files of an experiment at a scale, over all its runs and those just made."""
    from pipeline.reproduce import report
    from pipeline.tracking import Tracker, TrackingError

    known = {record.identity: record for record in records}
    known |= {record.identity: record for record in tracked(declared.name)}
    try:
        made = report(declared, scale, list(known.values()), Tracker())
    except TrackingError:
        made = report(declared, scale, list(known.values()), None)
    files = {"page": str(made.page)}
    if made.figure:
        files = {"figure": str(made.figure)} | files
    return made.entries, made.rows, files


def parsed(changes: list[str]) -> dict[str, Any]:
    """["train.lr=0.05"] -> {"train.lr": 0.05}; values are YAML."""
    import yaml

    from pipeline.experiment import Loader

    result = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise UserError(f"--set {change}: give a key and a value, as in train.lr=0.05")
        try:
            result[key] = yaml.load(text, Loader=Loader)
        except yaml.YAMLError:
            raise UserError(f"--set {change}: {text!r} is not a YAML value") from None
    return result


def threads() -> int:
    """Threads of one run on a CPU: 1, so that the same run has the same bits everywhere, or OMP_NUM_THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "1")
    if not asked.isdigit() or int(asked) < 1:
        raise UserError(f"OMP_NUM_THREADS is {asked!r}; a number from 1 on is needed")
    return int(asked)


def print_leaderboard(rows: "list[Row]") -> None:
    """One table for each experiment, scale and data set."""
    from pipeline.report.text import leaderboard_cells

    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row.experiment, row.scale, row.data), []).append(leaderboard_cells(row))
    for (experiment, scale, data), cells in groups.items():
        names = [name for name in cells[0] if name not in ("scale", "data")]
        table = plain_table(*names, title=f"{experiment} at {scale} scale on {data}")
        for cell in cells:
            table.add_row(*(cell[name] for name in names))
        out.print(table)
        out.print()


def print_ledger(entries: "list[Entry]", *, trained_only: bool = False) -> None:
    """Verdicts as a table; `trained_only`: those that rest on runs, and a line about the others."""
    from pipeline.report.text import counts, outcome, verdict_cells

    shown = [entry for entry in entries if entry.evidence] if trained_only else entries
    table = plain_table("verdict", "claim", "why", title="Verdicts")
    for entry in shown:
        cells = verdict_cells(entry)
        runs = f"\n[dim]{cells['runs']}[/]" if cells["runs"] and not trained_only else ""
        table.add_row(f"[{colour(entry)}]{outcome(entry.verdict)}[/]", cells["claim"], cells["evidence"] + runs)
    out.print(table)
    out.print(f"All {len(entries)} claims: {counts(entries)}.")
    if trained_only:
        out.print("The whole ledger, with the claims that need no training or other runs: [bold]repro verify[/]\n")


def colour(entry: "Entry") -> str:
    """Green for what holds, red for what does not, yellow for the source's errors."""
    from pipeline.report.page import CLASSES
    from pipeline.report.text import MARKS

    return {"good": "green", "bad": "red", "note": "yellow", "open": "dim"}[CLASSES[MARKS[entry.verdict.outcome]]]


def plain_table(*names: str, title: str | None = None) -> Table:
    """A table without a box; wide where nobody looks at a terminal."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for name in names:
        table.add_column(name, overflow="fold", header_style="bold")
    return table


def print_json(value: Any) -> None:
    """Plain JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


class quiet:  # noqa: N801 - reads as the statement it is
    """A status line that nobody sees."""

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, *error: object) -> None:
        """Nothing."""


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        err.print(f"[red]error:[/] {error}", soft_wrap=True, markup=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        err.print("\nstopped; the same command goes on where it was")
        raise SystemExit(STOPPED) from None


if __name__ == "__main__":
    main()
