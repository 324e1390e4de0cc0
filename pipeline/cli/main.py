"""The command `repro`. A command parses, calls one function, prints, and returns an exit code.

Exit codes: 0 success; 1 a claim is contradicted (verify) or a run failed (run); 2 a UserError; 130 stopped by
Ctrl-C, resumable. Heavy libraries are imported inside the commands that need them.
"""

import errno
import io
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli import cluster as cli_cluster
from pipeline.cli import data as cli_data
from pipeline.cli import leaderboard as cli_leaderboard
from pipeline.cli import run as cli_run
from pipeline.cli import ui as cli_ui
from pipeline.cli.run import parse_changes
from pipeline.cli.tables import (
    print_coverage,
    print_experiments,
    print_ledger,
    print_published,
    print_table,
)
from pipeline.cli.terminal import AsJson, err, out, print_json, print_warning_line, say
from pipeline.common.errors import UserError, explain_write_errors

if TYPE_CHECKING:
    from pipeline.declare.experiment import Experiment

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

app.add_typer(cli_data.app, name="data")

Name = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="A name from `repro list`, or the path of a .yaml file.")
]

OptionalName = Annotated[
    str | None, typer.Argument(metavar="EXPERIMENT", help="A name from `repro list`. Default: all experiments.")
]

DISTRIBUTION = "cnn-repro"


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


@app.command("list")
def list_experiments(as_json: AsJson = False) -> None:
    """List all experiments by paper, with their questions, and the scales and data that they need."""
    from pipeline.declare.load import load_all

    experiments = load_all()
    if as_json:
        print_json([listed_experiment(experiment) for experiment in experiments])
    else:
        print_experiments(experiments)
        out.print("Details: [bold]repro show EXPERIMENT[/]")


def listed_experiment(experiment: "Experiment") -> dict[str, Any]:
    """Return one experiment of `repro list` as plain data."""
    return {
        "name": experiment.name,
        "paper": experiment.paper.title,
        "question": experiment.question,
        "scales": list(experiment.scales),
        "data": {scale: experiment.data_at(scale) for scale in experiment.scales},
    }


@app.command()
def show(experiment: Name, as_json: AsJson = False) -> None:
    """Show one experiment: recipe, variants, scales, claims, and the work of each scale."""
    from pipeline.declare.load import load_experiment

    declared = load_experiment(experiment)
    if as_json:
        print_json(declared.model_dump(mode="json"))
        return
    from pipeline.report.describe import print_experiment

    print_experiment(declared, cli_cluster.collect_with_warnings().records, out, say)


app.command()(cli_run.run)


@app.command()
def verify(
    experiment: OptionalName = None,
    suite: cli_run.Suite = None,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="Compare the claims with everything that the papers print. Exit 1 if one is missing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge every claim from the finished runs and print the verdicts.

    Exit 1 if a claim is not confirmed or not reproduced, or if a recipe departs.
    """
    from pipeline.declare.load import load_all, load_experiment
    from pipeline.declare.suites import check_suite

    if suite:
        check_suite(suite)
        if experiment:
            raise UserError("give an experiment or --suite, not both")
    if coverage:
        verify_coverage(experiment, as_json)
        return
    from pipeline.judge.collect import judge_experiments
    from pipeline.judge.verdict import CONTRADICTIONS

    declared = [load_experiment(experiment)] if experiment else load_all()
    entries = judge_experiments(declared, cli_cluster.collect_with_warnings().records)
    if as_json:
        print_json([entry.to_dict() for entry in entries])
    else:
        print_ledger(entries, experiment)
    raise typer.Exit(any(entry.verdict.outcome in CONTRADICTIONS for entry in entries))


def verify_coverage(experiment: str | None, as_json: bool) -> None:
    """Print which printed rows have a claim, of all papers or of an experiment's. Exit 1 if one is missing."""
    from pipeline.declare.load import load_all, load_all_printed, load_experiment
    from pipeline.judge.coverage import printed_rows

    printed = load_all_printed()
    if experiment:
        folder = load_experiment(experiment).folder
        if folder not in printed:
            raise UserError(f"experiments/{folder}/printed.yaml not found")
        printed = {folder: printed[folder]}
    rows = printed_rows(load_all(), printed)
    if as_json:
        print_json([row.to_dict() for row in rows])
    else:
        print_coverage(rows)
    raise typer.Exit(any(row.is_missing for row in rows))


@app.command()
def analyse(
    network: Annotated[
        str | None, typer.Argument(metavar="NETWORK", help="A network, such as resnet-50. Default: all networks.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change an argument of the network, as in depth=101 (repeatable)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print parameters, operations and memory of a network by layer, or of all networks with a chart."""
    from pipeline.analyse.catalogue import find_network
    from pipeline.declare.load import load_all

    if network is None:
        if changes:
            raise UserError("--set changes one network; name it, as in repro analyse resnet-50 --set depth=101")
        analyse_all(as_json)
        return
    named = find_network(network, load_all(), parse_changes(changes or []))
    from pipeline.analyse.measure import analysis_of
    from pipeline.report.complexity import layer_cells, layer_rows

    rows = layer_rows(analysis_of(named.variant))
    if as_json:
        print_json({"network": named.name, "input": named.image, "layers": rows})
        return
    channels, height, width = named.image
    out.print(
        f"[bold]{escape(named.name)}[/], {named.classes} classes, one image of {channels} x {height} x {width}"
    )
    print_table([layer_cells(row) for row in rows], left=("layer", "output", "kernel"))
    say("multiply-adds: of convolutional and fully connected layers, without biases; activations: their outputs.")
    say("field: side of the receptive field in input pixels, padding included. /2: stride; g32: groups.")


def analyse_all(as_json: bool) -> None:
    """Print the costs of all networks, and draw the chart of those with a published accuracy, timed here."""
    from pipeline.analyse.catalogue import catalogue, distinct_networks, network_cost, published_accuracies
    from pipeline.analyse.timing import REPEATS, forward_times
    from pipeline.common.paths import report_folder
    from pipeline.common.provenance import hardware_name
    from pipeline.declare.load import load_all
    from pipeline.report.complexity import chart_cells, complexity_cells
    from pipeline.report.figures import complexity_chart

    experiments = load_all()
    named, accuracies = catalogue(experiments), published_accuracies(experiments)
    rows = []
    with err.status("") if err.is_terminal else nullcontext() as status:
        for network in distinct_networks(named):
            if status:
                status.update(f"{network.name} …")
            row = network_cost(network, accuracies)
            rows.append(replace(row, forward_s=forward_times(network)) if network.name in accuracies else row)
    machine = hardware_name()
    charted = sorted((row for row in rows if row.forward_s), key=lambda row: -(row.top1_pct or 0))
    figure = complexity_chart(charted, machine, report_folder() / "complexity.png") if charted else None
    if as_json:
        print_json({"networks": [row.to_dict() for row in rows], "hardware": machine, "figure": figure})
        return
    for paper in sorted({row.paper for row in rows}):
        out.print(f"[bold]{paper}[/]")
        print_table([complexity_cells(row) for row in rows if row.paper == paper], left=("network",))
        out.print()
    if charted:
        out.print("[bold]the lecture's comparison[/]: published accuracy against cost")
        print_table([chart_cells(row) for row in charted], left=("network",))
        say("top-1: published, single central crop, read from the chart of arXiv:1605.07678 (within 1 point).")
        say("G ops: two for each multiply-add. memory: parameters and feature maps of one image, in fp32.")
        say(f"forward: one image, fp32; median and range of {REPEATS} passes on {machine}.")
        out.print(f"figure   {escape(str(figure))}", soft_wrap=True)


@app.command()
def evaluate(
    networks: Annotated[
        list[str],
        typer.Argument(
            metavar="NETWORK…", help="Networks, such as resnet-50. Several are evaluated as an ensemble."
        ),
    ],
    weights: Annotated[
        list[str],
        typer.Option(help="A .safetensors or .pth file, or torchvision. Once for all networks, or once for each."),
    ],
    data: Annotated[
        str, typer.Option(help="Shards, a folder of class folders, or a known data set such as cifar10.")
    ],
    protocol: Annotated[
        str | None,
        typer.Option(help="Test protocol, such as 10-crop-224-of-256. Default: the publisher's protocol."),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change an argument of the network (repeatable).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate published weights. They get a labelled row in the leaderboard and count for no claim."""
    from pipeline.analyse.catalogue import find_network
    from pipeline.declare.load import load_all
    from pipeline.derive.evaluate_imported import evaluate_imported
    from pipeline.derive.import_weights import TORCHVISION, import_file, import_torchvision
    from pipeline.track.published_results import save_result

    if len(weights) not in (1, len(networks)):
        raise UserError(
            f"--weights is given {len(weights)} times for {len(networks)} networks; give it once for all networks,"
            " or once for each"
        )
    found = [find_network(network, load_all(), parse_changes(changes or [])) for network in networks]
    with err.status("reading the weights …") if err.is_terminal else nullcontext():
        members = [
            (named, import_torchvision(named) if source == TORCHVISION else import_file(named, Path(source)))
            for named, source in zip(found, weights * len(found), strict=False)
        ]
    with err.status("evaluating …") if err.is_terminal else nullcontext():
        result = evaluate_imported(members, data, protocol=protocol, threads=min(4, os.cpu_count() or 1))
    save_result(result)
    try:
        from pipeline.track.mlflow_pages import publish_imported
        from pipeline.track.mlflow_writer import Tracker

        publish_imported(Tracker(), result.to_dict())
    except UserError as error:
        print_warning_line(f"Not tracked: {error}.\nThe result is kept on this machine; the leaderboard shows it.")
    if as_json:
        print_json(result.to_dict())
    else:
        print_published([result])


app.command()(cli_leaderboard.leaderboard)

app.command("diff")(cli_leaderboard.diff)


@app.command()
def results(
    file: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("RESULTS.md"),
) -> None:
    """Write RESULTS.md with its figures and records from the finished runs of every experiment."""
    from pipeline.declare.load import load_all
    from pipeline.report.results import write_results

    found = cli_cluster.collect_with_warnings()
    with explain_write_errors(file.parent, "free some space, fix the folder, or choose another file with --out"):
        written = write_results(load_all(), found.records, found.tracker, file)
    for path in written:
        out.print(f"wrote {escape(str(path))}", soft_wrap=True)


app.command()(cli_ui.ui)

cli_cluster.add_commands(app)


def main() -> None:
    """Run the command. A UserError is printed as one line; the exit code is 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an encoding without ✔
    try:
        try:
            app()
        finally:
            if sys.stdout:
                sys.stdout.flush()  # raise here, and not when the interpreter exits
    except UserError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
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
