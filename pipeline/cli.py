"""The command `repro`. A command parses, calls one function, prints, and returns an exit code.

Exit codes: 0 all well; 1 a claim is not reproduced (verify) or a run failed (run); 2 a mistake in what was asked;
130 stopped by Ctrl-C, resumable. Heavy libraries are imported inside the commands that need them.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.mistakes import UserError

if TYPE_CHECKING:
    from pipeline.ledger import Entry
    from pipeline.report.leaderboard import Row
    from pipeline.reproduce import Known

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Rerun the classic papers on convolutional networks and judge, number by number, whether they hold.",
)
PIPE_WIDTH = 160  # columns of a table that goes to a file or another program, unless COLUMNS says otherwise


def console(*, stderr: bool = False) -> Console:
    """A terminal's own width, or one that folds no table where there is no terminal."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


out, err = console(), console(stderr=True)

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="As `repro list` shows it, or a .yaml file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
FAILED, STOPPED = 1, 130


@app.command("list")
def list_experiments(as_json: AsJson = False) -> None:
    """All experiments: question, variants, scales, claims."""
    from pipeline.experiment import load, names

    found = [load(name) for name in names()]
    if as_json:
        print_json([{"name": e.name, "question": e.question, "scales": list(e.scales)} for e in found])
        return
    for e in found:
        out.print(f"[bold]{e.name}[/]")
        say(e.question, indent=2)
        say(f"{len(e.variants)} variants, {len(e.claims)} claims; scales: {', '.join(e.scales)}", indent=2)
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

    describe(declared, evidence().records, out, say)


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
    count = threads()
    with err.status("reading the data and the code …") if err.is_terminal else nullcontext():
        from pipeline.report.progress import Progress, planned
        from pipeline.reproduce import Known, carry_out, known, report, tasks_for
        from pipeline.runs import local_records

        tasks = tasks_for(runs)
    if dry_run:
        planned(tasks, out)
        return
    try:
        with Progress(tasks, err, quietly=as_json) as progress:
            came = carry_out(tasks, threads=count, happened=progress.happened, tick=progress.tick)
    except KeyboardInterrupt:  # the second one
        complain("Ended at once. The same command goes on from the last checkpoints.")
        raise typer.Exit(STOPPED) from None
    if came.untracked:
        complain(f"Not tracked yet: {came.untracked}.")
        complain("The runs are safe on this machine; the next repro command sends them.")
    if came.ending == "stopped":
        complain("Stopped. What is finished stays; the same command goes on where the runs stopped.")
        raise typer.Exit(STOPPED)
    have = Known(local_records(), None) if came.untracked else known()
    records = {record.identity: record for record in [*came.records, *have.records]}
    made = report(declared, scale, list(records.values()), have.tracker)
    files = {"figure": made.figure, "page": made.page}
    if as_json:
        board, verdicts = [row.to_dict() for row in made.rows], [entry.to_dict() for entry in made.entries]
        print_json({"leaderboard": board, "verdicts": verdicts} | {k: str(v) for k, v in files.items() if v})
    else:
        print_leaderboard(made.rows)
        print_outcome(made.entries, declared.name)
        for what, path in files.items():
            if path:
                out.print(f"{what:<8} {escape(str(path))}", soft_wrap=True)
        out.print("MLflow   [bold]repro ui[/] serves its pages: leaderboard, curves, verdicts")
    if came.ending == "failed":
        complain("Not all runs ended. What is finished stays; the same command goes on where the others stopped.")
        raise typer.Exit(FAILED)


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
    entries = judged(declared, evidence().records)
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
    rows = ranked(declared, evidence().records)
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

    found = evidence()
    for path in write_results(all_experiments(), found.records, found.tracker, file):
        out.print(f"wrote {escape(str(path))}", soft_wrap=True)


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="On the loopback address.")] = 5000) -> None:
    """MLflow's own pages, on this machine only, until Ctrl-C."""
    from pipeline.home import home, tracking_uri

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        bare = re.sub(r"//\S*@", "//", uri)  # without a password
        out.print(f"The tracking server has its own pages: {bare}", markup=False, soft_wrap=True)
        return
    with socket.socket() as taken, suppress(ConnectionError):
        taken.connect(("127.0.0.1", port))
        raise UserError(f"port {port} is in use; choose another, as in repro ui --port {port % 65535 + 1}")
    home().mkdir(parents=True, exist_ok=True)
    out.print(f"MLflow's pages: [bold]http://127.0.0.1:{port}[/], in a few seconds and until Ctrl-C")
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--backend-store-uri", uri, "--workers", "1"]
    words += ["--default-artifact-root", (home() / "mlartifacts").as_uri()]
    words += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}", "--uvicorn-opts", "--log-level warning"]
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }  # jobs: seven processes more
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends the server too
        signal.signal(number, signal.default_int_handler)
    with subprocess.Popen(words, env=os.environ | quiet, start_new_session=True) as server:
        try:
            raise typer.Exit(server.wait())
        except KeyboardInterrupt:
            os.killpg(server.pid, signal.SIGTERM)


def evidence() -> "Known":
    """All ended runs; says so where the tracking server cannot be used."""
    from pipeline.reproduce import known

    found = known()
    if found.trouble:
        complain(f"{found.trouble}.\nGoing by the runs on this machine alone.")
    return found


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

    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.experiment, row.scale, row.data), []).append(row)
    for (experiment, scale, data), group in groups.items():
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("network", overflow="fold")
        heads = {  # column -> its short name, since eight have to fit in 80 characters
            "top-1 error %": "top-1 error %",
            "top-5 error %": "top-5 %",
            "training error %": "training %",
            "paper top-1 %": "paper %",
            "seeds": "seeds",
            "test-set noise": "noise",
        }
        for head in heads.values():
            table.add_column(head, justify="right")
        for row in group:
            cells = leaderboard_cells(row)
            cells["paper top-1 %"] = "" if row.paper is None else f"{row.paper:g}"
            table.add_row(escape(cells["network"]), *(cells[name] for name in heads))
        images = ", ".join(sorted({f"{row.images:,}" for row in group if row.images}))
        out.print(f"[bold]{experiment} at {scale} scale on {data}[/] ({images or 'no'} test images)")
        out.print(table)
        other = {row.paper_data for row in group if row.paper is not None} - {data}
        if other:
            say(f"The paper's errors are for {', '.join(sorted(other))}.")
        out.print()


def print_outcome(entries: "list[Entry]", experiment: str) -> None:
    """After training: the verdicts that rest on runs, and a line about the others."""
    from pipeline.report.text import counts
    from pipeline.verdict import Reason

    trained = [entry for entry in entries if entry.evidence]
    shown = [entry for entry in trained if entry.verdict.reason is not Reason.NOT_RUN]
    if shown:
        out.print("[bold]Verdicts that rest on these runs[/]")
    for entry in shown:
        print_entry(entry)
    if len(trained) > len(shown):
        say(f"{len(trained) - len(shown)} more claims about these networks can be judged at paper scale only.")
    say(f"All {len(entries)} claims: {counts(entries)}.")
    out.print(f"The whole ledger: [bold]repro verify {experiment}[/]\n")


def print_ledger(entries: "list[Entry]") -> None:
    """Every verdict; claims that wait for runs in one list."""
    from pipeline.report.text import counts, outcome
    from pipeline.verdict import Reason

    for experiment in dict.fromkeys(entry.experiment for entry in entries):
        mine = [entry for entry in entries if entry.experiment == experiment]
        waiting = [entry for entry in mine if entry.verdict.reason is Reason.NOT_RUN]
        out.print(f"[bold]{experiment}[/]")
        for entry in mine:
            if entry not in waiting:
                print_entry(entry)
        if waiting:
            out.print(f"[dim]{outcome(waiting[0].verdict)}[/] ({len(waiting)} claims)")
            say(", ".join(entry.claim.id for entry in waiting), indent=4)
            say(f"They need finished runs: repro run {experiment} --scale paper", indent=4)
        out.print()
    say(f"All {len(entries)} claims: {counts(entries)}.")


def print_entry(entry: "Entry") -> None:
    """One claim: verdict and name, statement and source, what was compared, the runs behind it."""
    from pipeline.report.text import outcome, verdict_cells

    cells = verdict_cells(entry)
    out.print(f"[{colour(entry)}]{outcome(entry.verdict)}[/]  {escape(cells['claim'])}", soft_wrap=True)
    say(f"{cells['says']} ({cells['source']})", indent=4)
    say(cells["evidence"], indent=4)
    if cells["runs"]:
        say(f"Runs: {cells['runs']}", indent=4)


def colour(entry: "Entry") -> str:
    """Green for what holds, red for what does not, yellow for the source's errors."""
    from pipeline.report.page import CLASSES
    from pipeline.report.text import MARKS

    return {"good": "green", "bad": "red", "note": "yellow", "open": "dim"}[CLASSES[MARKS[entry.verdict.outcome]]]


def say(text: str, *, indent: int = 0) -> None:
    """Prose on standard output, folded for a terminal, one line for anything else; never read as markup."""
    space = " " * indent
    lines = [text]
    if out.is_terminal:
        hang = " " * 4 if indent == 2 else ""
        lines = textwrap.wrap(
            text,
            out.width - indent,
            subsequent_indent=hang,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
    for line in lines:
        out.print(space + line, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """A warning on standard error."""
    err.print(text, style="yellow", markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Plain JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
