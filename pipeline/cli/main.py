"""The command `repro`. A command parses, calls one function, prints, and returns an exit code.

Exit codes: 0 all well; 1 a claim is not reproduced (verify) or a run failed (run); 2 a mistake in what was asked;
130 stopped by Ctrl-C, resumable. Heavy libraries are imported inside the commands that need them.
"""

import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli import cluster as cli_cluster
from pipeline.cli import data as cli_data
from pipeline.cli.tables import print_leaderboard, print_ledger, print_outcome, print_published, print_table
from pipeline.cli.terminal import STOPPED, AsJson, err, out, print_json, print_warning_line, say
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.words import plural

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Rerun the classic papers on convolutional networks and judge, number by number, whether they hold.",
)

app.add_typer(cli_data.app, name="data")

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="As `repro list` shows it, or a .yaml file.")]

FAILING_OUTCOMES = 1


@app.command("list")
def list_experiments(as_json: AsJson = False) -> None:
    """All experiments: question, variants, scales, claims."""
    from pipeline.declare.load import experiment_names, load_experiment

    found = [load_experiment(name) for name in experiment_names()]
    if as_json:
        print_json([{"name": e.name, "question": e.question, "scales": list(e.scales)} for e in found])
        return
    for e in found:
        out.print(f"[bold]{e.name}[/]")
        say(e.question, indent=2)
        scales = f"scales: {', '.join(e.scales)}" if e.scales else "judged by arithmetic, nothing is trained"
        say(f"{plural(len(e.variants), 'variant')}, {plural(len(e.claims), 'claim')}; {scales}", indent=2)
    out.print("\nMore of one: [bold]repro show EXPERIMENT[/]")


@app.command()
def show(experiment: Name, as_json: AsJson = False) -> None:
    """One experiment: recipe, variants, scales, claims, and an estimate of the work."""
    from pipeline.declare.load import load_experiment

    declared = load_experiment(experiment)
    if as_json:
        print_json(declared.model_dump(mode="json"))
        return
    from pipeline.report.describe import print_experiment

    print_experiment(declared, cli_cluster.collect_with_warnings().records, out, say)


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
    from pipeline.declare.load import load_experiment
    from pipeline.plan.expand import plan_runs

    declared = load_experiment(experiment)
    runs = plan_runs(
        declared, scale=scale, variants=variant or (), seeds=seeds, changes=parse_changes(changes or [])
    )
    count = thread_count()
    with err.status("reading the data and the code …") if err.is_terminal else nullcontext():
        from pipeline.judge.collect import FinishedRuns, collect_runs
        from pipeline.report.progress import ProgressDisplay, plan_lines
        from pipeline.report.publish import make_report
        from pipeline.schedule.reproduce import run_tasks
        from pipeline.schedule.tasks import make_tasks
        from pipeline.track.run_folder import local_records

        tasks = make_tasks(runs)
    if dry_run:
        plan_lines(tasks, out)
        return
    try:
        with ProgressDisplay(tasks, err, quietly=as_json) as progress:
            came = run_tasks(tasks, threads=count, happened=progress.happened, tick=progress.tick)
    except KeyboardInterrupt:  # the second one
        print_warning_line("Ended at once. The same command goes on from the last checkpoints.")
        raise typer.Exit(STOPPED) from None
    if came.untracked:
        print_warning_line(f"Not tracked yet: {came.untracked}.")
        print_warning_line("The runs are safe on this machine; the next repro command sends them.")
    if came.ending == "stopped":
        print_warning_line("Stopped. What is finished stays; the same command goes on where the runs stopped.")
        raise typer.Exit(STOPPED)
    have = FinishedRuns(local_records(), None) if came.untracked else collect_runs()
    records = {record.identity: record for record in [*came.records, *have.records]}
    made = make_report(declared, scale, list(records.values()), have.tracker)
    files = {"figure": made.figure, "page": made.page}
    if as_json:
        board, verdicts = [row.to_dict() for row in made.rows], [entry.to_dict() for entry in made.entries]
        print_json({"leaderboard": board, "verdicts": verdicts} | {k: str(v) for k, v in files.items() if v})
    else:
        print_leaderboard(made.rows)
        print_outcome(made.entries, experiment)
        for what, path in files.items():
            if path:
                out.print(f"{what:<8} {escape(str(path))}", soft_wrap=True)
        out.print("MLflow   [bold]repro ui[/] serves its pages: leaderboard, curves, verdicts")
    if came.ending == "failed":
        print_warning_line(
            "Not all runs ended. What is finished stays; the same command goes on where the others stopped."
        )
        raise typer.Exit(FAILING_OUTCOMES)


@app.command()
def verify(
    experiment: Annotated[str | None, typer.Argument(help="One experiment; all without.")] = None,
    as_json: AsJson = False,
) -> None:
    """The ledger: every claim judged anew from the evidence alone. Exit 1 if one is not reproduced."""
    from pipeline.declare.load import load_all, load_experiment
    from pipeline.judge.collect import judge_experiments
    from pipeline.judge.verdict import Outcome

    declared = [load_experiment(experiment)] if experiment else load_all()
    entries = judge_experiments(declared, cli_cluster.collect_with_warnings().records)
    if as_json:
        print_json([entry.to_dict() for entry in entries])
    else:
        print_ledger(entries, experiment)
    raise typer.Exit(any(entry.verdict.outcome is Outcome.NOT_REPRODUCED for entry in entries))


@app.command()
def analyse(
    network: Annotated[
        str | None, typer.Argument(metavar="NETWORK", help="Such as resnet-50; all, side by side, without.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change an argument of the network, as in depth=101 (repeatable)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What networks cost: one layer by layer; or all, and the lecture's chart of accuracy against operations."""
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
    say("multiply-adds: of convolutions and full connections, biases not counted; activations: their outputs.")
    say("sees: side of the receptive field in input pixels, padding included. /2: stride; g32: groups.")


def analyse_all(as_json: bool) -> None:
    """Every network's costs, and the chart of those with a published accuracy, timed here."""
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
        for one in distinct_networks(named):
            if status:
                status.update(f"{one.name} …")
            row = network_cost(one, accuracies)
            rows.append(replace(row, forward_s=forward_times(one)) if one.name in accuracies else row)
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
        out.print("[bold]the lecture's comparison[/]: published accuracy, and what it costs")
        print_table([chart_cells(row) for row in charted], left=("network",))
        say("top-1: published, single central crop, read off the chart of arXiv:1605.07678 (within a point).")
        say("G ops: a multiply-add is two. memory: parameters and maps of one image, single precision.")
        say(f"forward: one image, single precision; median and range of {REPEATS} passes on {machine}.")
        out.print(f"figure   {escape(str(figure))}", soft_wrap=True)


@app.command()
def evaluate(
    networks: Annotated[
        list[str],
        typer.Argument(metavar="NETWORK…", help="Such as resnet-50; several are an ensemble."),
    ],
    weights: Annotated[
        list[str],
        typer.Option(help="A .safetensors or .pth file, or torchvision; one for all, or one for each network."),
    ],
    data: Annotated[str, typer.Option(help="Shards, a folder of class folders, or a known set such as cifar10.")],
    protocol: Annotated[
        str | None,
        typer.Option(help="How photographs are shown, as in 10-crop-224-of-256; else as the publisher does."),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change an argument of the network (repeatable).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate weights that others published: a labelled row of the leaderboard, never a reproduction."""
    from pipeline.analyse.catalogue import find_network
    from pipeline.declare.load import load_all
    from pipeline.derive.published_weights import TORCHVISION, evaluate_imported, import_file, import_torchvision
    from pipeline.track.published_results import save_result

    if len(weights) not in (1, len(networks)):
        raise UserError(
            f"--weights is given {len(weights)} times for {len(networks)} networks; give it once for all, or once"
            " for each"
        )
    found = [find_network(network, load_all(), parse_changes(changes or [])) for network in networks]
    with err.status("reading the weights …") if err.is_terminal else nullcontext():
        members = [
            (named, import_torchvision(named) if theirs == TORCHVISION else import_file(named, Path(theirs)))
            for named, theirs in zip(found, weights * len(found), strict=False)
        ]
    with err.status("evaluating …") if err.is_terminal else nullcontext():
        result = evaluate_imported(members, data, protocol=protocol, threads=min(4, os.cpu_count() or 1))
    save_result(result)
    try:
        from pipeline.track.mlflow_writer import Tracker

        Tracker().imported_run(result.to_dict())
    except UserError as error:
        print_warning_line(f"Not tracked: {error}.\nThe result is kept on this machine, and on its leaderboard.")
    if as_json:
        print_json(result.to_dict())
    else:
        print_published([result])


@app.command()
def leaderboard(
    experiment: Annotated[str | None, typer.Argument(help="One experiment; all without.")] = None,
    as_json: AsJson = False,
) -> None:
    """Networks ranked by error, the paper's number beside ours."""
    from pipeline.declare.load import load_all, load_experiment
    from pipeline.report.leaderboard import build_leaderboard as ranked
    from pipeline.track.published_results import load_results

    declared = [load_experiment(experiment)] if experiment else load_all()
    rows = ranked(declared, cli_cluster.collect_with_warnings().records)
    imported = [] if experiment else load_results()
    if as_json:
        own = [{"kind": "trained here"} | row.to_dict() for row in rows]
        print_json(own + [{"kind": "published weights"} | row.to_dict() for row in imported])
        return
    if rows:
        print_leaderboard(rows)
    if imported:
        print_published(imported)
    if not rows and not imported:
        out.print("No finished runs yet; start some with: [bold]repro run EXPERIMENT --scale laptop[/]")


@app.command()
def results(
    file: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("RESULTS.md"),
) -> None:
    """Write RESULTS.md, its figures and its records from the tracked runs of every experiment."""
    from pipeline.declare.load import load_all
    from pipeline.report.results import write_results

    found = cli_cluster.collect_with_warnings()
    with explain_write_errors(file.parent, "make room, mend the folder, or name another file with --out"):
        written = write_results(load_all(), found.records, found.tracker, file)
    for path in written:
        out.print(f"wrote {escape(str(path))}", soft_wrap=True)


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="On the loopback address.")] = 5000) -> None:
    """MLflow's own pages, on this machine only, until Ctrl-C."""
    from pipeline.common.paths import home, tracking_uri

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        bare = re.sub(r"//\S*@", "//", uri)  # without a password
        out.print(f"The tracking server has its own pages: {bare}", markup=False, soft_wrap=True)
        return
    with socket.socket() as taken, suppress(ConnectionError):
        taken.connect(("127.0.0.1", port))
        raise UserError(f"port {port} is in use; choose another, as in repro ui --port {port % 65535 + 1}")
    with explain_write_errors(home()):
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


cli_cluster.add_commands(app)


def parse_changes(changes: list[str]) -> dict[str, Any]:
    """["train.lr=0.05"] -> {"train.lr": 0.05}; values are YAML."""
    import yaml

    from pipeline.declare.yaml_loader import Loader

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


def thread_count() -> int:
    """Threads of one run on a CPU: 1, so that the same run has the same bits everywhere, or OMP_NUM_THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "1")
    if not asked.isdigit() or int(asked) < 1:
        raise UserError(f"OMP_NUM_THREADS is {asked!r}; a number from 1 on is needed")
    return int(asked)


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ✔
    try:
        try:
            app()
        finally:
            if sys.stdout:
                sys.stdout.flush()  # what cannot be written is found here, and not at the interpreter's end
    except UserError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE) or error.filename:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is not written yet would fail once more at the end
        if error.errno == errno.EPIPE:  # whoever reads has had enough, as `head` has
            raise SystemExit(1) from None
        err.print("[red]error:[/] cannot write what there is to say: no space left", soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
