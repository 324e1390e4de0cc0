"""The command `repro`. A command parses, calls one function, prints, and returns an exit code.

Exit codes: 0 success; 1 a claim is contradicted (verify) or a run failed (run); 2 a UserError; 130 stopped by
Ctrl-C, resumable. Heavy libraries are imported inside the commands that need them.
"""

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.cli import cluster as cli_cluster
from pipeline.cli import data as cli_data
from pipeline.cli import experiments as cli_experiments
from pipeline.cli import figures as cli_figures
from pipeline.cli import leaderboard as cli_leaderboard
from pipeline.cli import networks as cli_networks
from pipeline.cli import report as cli_report
from pipeline.cli import run as cli_run
from pipeline.cli import ui as cli_ui
from pipeline.cli.selection import collect_with_warnings
from pipeline.cli.terminal import err, out, print_warning_line
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.network import report_no_statistics, use_no_proxy

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

app.add_typer(cli_data.app, name="data")

DISTRIBUTION = "cnn-repro"

EXTRAS = {"s3fs": "s3"}  # package -> the extra that installs it; fsspec names the package in its message


def version_text() -> str:
    """Return the name, version and, where known, commit: 'cnn-repro 0.1.0 (commit 0123456789ab)'."""
    from importlib import metadata

    from pipeline.common.provenance import commit

    try:
        number = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # a copy of the source tree
        number = "(not installed)"
    return f"{DISTRIBUTION} {number}" + ("" if commit() == "unknown" else f" (commit {commit()})")


def print_version(is_given: bool) -> None:
    """Print the version and exit, if --version is given."""
    if is_given:
        print(version_text())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and the commit.", is_eager=True, callback=print_version),
    ] = False,
) -> None:
    """Rerun the classic papers on convolutional networks and judge every number that they print."""


app.command("list")(cli_experiments.list_experiments)
app.command()(cli_experiments.show)
app.command()(cli_run.run)
app.command()(cli_experiments.verify)
app.command()(cli_networks.analyse)
app.command()(cli_networks.evaluate)
app.command()(cli_leaderboard.leaderboard)
app.command("diff")(cli_leaderboard.diff)

app.command()(cli_figures.figures)


@app.command()
def results(
    file: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("RESULTS.md"),
) -> None:
    """Write RESULTS.md with its figures and records from the finished runs of every experiment."""
    from pipeline.declare.load import load_all
    from pipeline.report.results import write_results

    found = collect_with_warnings()
    with explain_write_errors(file.parent, "free some space, fix the folder, or choose another file with --out"):
        written = write_results(load_all(), found.records, found.tracker, file, warn=print_warning_line)
    for path in written:
        out.print(f"wrote {escape(str(path))}", soft_wrap=True)


app.command()(cli_report.report)


app.command()(cli_ui.ui)

cli_cluster.add_commands(app)


def missing_extra(error: ImportError) -> str:
    """Return the extra of this project that installs what an import lacks; "" if none does."""
    return next((extra for package, extra in EXTRAS.items() if package in (error.name or str(error))), "")


def main() -> None:
    """Run the command. A UserError is printed as one line; the exit code is 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an encoding without ✔
    use_no_proxy()
    report_no_statistics()
    try:
        try:
            app()
        finally:
            if sys.stdout:
                sys.stdout.flush()  # raise here, and not when the interpreter exits
    except UserError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except ImportError as error:
        extra = missing_extra(error)
        if not extra:
            raise
        needed = f"this needs the extra {extra!r}; install it, in the checkout: pip install -e '.[{extra}]'"
        err.print(f"[red]error:[/] {escape(needed)}", soft_wrap=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE) or error.filename:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the buffered output would fail again at exit
        if error.errno == errno.EPIPE:  # the reader has closed the pipe, as `head` does
            raise SystemExit(1) from None
        err.print("[red]error:[/] cannot write the output: no space left on device", soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
