"""`repro analyse` and `repro evaluate`: networks by name, without an experiment."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.cli import options
from pipeline.cli.leaderboard import print_published
from pipeline.cli.selection import parse_changes
from pipeline.cli.tables import TableFormat, column_names, print_rows, print_table, with_table_formats
from pipeline.cli.terminal import out, print_warning_line, say, spinner
from pipeline.common.errors import UserError


@with_table_formats
def analyse(
    network: Annotated[
        str | None, typer.Argument(metavar="NETWORK", help="A network, such as resnet-50. Default: all networks.")
    ] = None,
    changes: options.NetworkChanges = None,
    *,
    shape: TableFormat,
) -> None:
    """Print parameters, operations and memory of a network by layer, or of all networks with a chart."""
    from pipeline.analyse.catalogue import find_network
    from pipeline.declare.load import load_all

    if network is None:
        if changes:
            raise UserError("--set changes one network; name it, as in repro analyse resnet-50 --set depth=101")
        analyse_all(shape)
        return
    named = find_network(network, load_all(), parse_changes(changes or []))
    from pipeline.analyse.measure import analysis_of
    from pipeline.report.complexity import LAYER_ROW_COLUMNS, layer_cells, layer_rows

    rows = layer_rows(analysis_of(named.variant))
    if not shape.is_text:
        layers = {"network": named.name, "input": named.image, "layers": rows}
        print_rows(
            [{"network": named.name} | row for row in rows], shape, ("network", *LAYER_ROW_COLUMNS), value=layers
        )
        return
    channels, height, width = named.image
    out.print(
        f"[bold]{escape(named.name)}[/], {named.classes} classes, one image of {channels} x {height} x {width}"
    )
    print_table([layer_cells(row) for row in rows], left=("layer", "output", "kernel"))
    say("multiply-adds: of convolutional and fully connected layers, without biases; activations: their outputs.")
    say("field: side of the receptive field in input pixels, padding included. /2: stride; g32: groups.")


def analyse_all(shape: TableFormat) -> None:
    """Print the costs of all networks, and draw the chart of those with a published accuracy, timed here."""
    from pipeline.analyse.catalogue import (
        NetworkCost,
        catalogue,
        distinct_networks,
        network_cost,
        published_accuracies,
    )
    from pipeline.analyse.timing import REPEATS, forward_times
    from pipeline.common.paths import report_folder
    from pipeline.common.provenance import hardware_name
    from pipeline.declare.load import load_all
    from pipeline.report.complexity import chart_cells, complexity_cells
    from pipeline.report.paper_figures.complexity_charts import complexity_comparison

    experiments = load_all()
    named, accuracies = catalogue(experiments), published_accuracies(experiments)
    rows = []
    with spinner("") as status:
        for network in distinct_networks(named):
            if status:
                status.update(f"{network.name} …")
            row = network_cost(network, accuracies)
            rows.append(replace(row, forward_s=forward_times(network)) if network.name in accuracies else row)
    machine = hardware_name()
    charted = sorted((row for row in rows if row.forward_s), key=lambda row: -(row.top1_pct or 0))
    chart = report_folder() / "complexity.png"
    figure = complexity_comparison(charted, machine).write(chart) if charted else None
    if not shape.is_text:
        networks = [row.to_dict() for row in rows]
        value = {"networks": networks, "hardware": machine, "figure": figure}
        print_rows(networks, shape, column_names(NetworkCost), value=value)
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


@with_table_formats
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
    normalise: Annotated[
        str | None,
        typer.Option(
            metavar="MEAN/STD|NAME",
            help="Normalisation of the input, as in 0.5/0.5 for pixels in [0, 1]. Default: the publisher's.",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The network's classes in the order of its outputs, one name per line."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Key of the weights in a checkpoint, such as state_dict_ema.")
    ] = None,
    changes: options.NetworkChanges = None,
    *,
    shape: TableFormat,
) -> None:
    """Evaluate published weights. They get a labelled row in the leaderboard and count for no claim."""
    from pipeline.analyse.catalogue import find_network
    from pipeline.data.store import ADDRESS, local_folder
    from pipeline.declare.load import load_all
    from pipeline.derive.evaluate_imported import evaluate_imported
    from pipeline.derive.import_weights import import_file, import_torchvision
    from pipeline.derive.published_files import TORCHVISION
    from pipeline.track.published_results import PublishedResult, save_result

    if len(weights) not in (1, len(networks)):
        raise UserError(
            f"--weights is given {len(weights)} times for {len(networks)} networks; give it once for all networks,"
            " or once for each"
        )
    for source in weights:
        if ADDRESS.match(source):
            raise UserError("--weights must be a file on this machine, not an address; download the file first")
    data = str(local_folder(data)) if data.startswith("~") else data
    classes = classes and local_folder(str(classes))
    if key and set(weights) == {TORCHVISION}:
        raise UserError("--key selects weights in a file, and --weights torchvision is none; leave out --key")
    declared, changed = load_all(), parse_changes(changes or [])
    found = [find_network(network, declared, changed) for network in networks]
    with spinner("Reading the weights …"):
        members = []
        for named, source in zip(found, weights * len(found), strict=False):
            is_file = source != TORCHVISION
            imported = import_file(named, local_folder(source), key) if is_file else import_torchvision(named)
            members.append((named, imported))
    with spinner("Evaluating …"):
        result = evaluate_imported(
            members,
            data,
            protocol=protocol,
            normalise=normalise,
            classes=classes,
            threads=min(4, os.cpu_count() or 1),
        )
    save_result(result)
    try:
        from pipeline.track.mlflow_pages import publish_imported
        from pipeline.track.mlflow_writer import Tracker

        publish_imported(Tracker(), result.to_dict())
    except UserError as error:
        print_warning_line(f"Not tracked: {error}.\nThe result is kept on this machine; the leaderboard shows it.")
    if shape.is_text:
        print_published([result])
    else:
        print_rows([result.to_dict()], shape, column_names(PublishedResult), value=result.to_dict())
