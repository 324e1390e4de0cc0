"""Arguments and options that several commands share."""

from typing import Annotated, Literal

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Name = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="A name from `repro list`, or the path of a .yaml file.")
]

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="EXPERIMENT…", help="Names from `repro list`, or paths of .yaml files."),
]

Suite = Annotated[str | None, typer.Option(help="cs231n: all experiments of the lecture.")]

TrainedSuite = Annotated[
    str | None, typer.Option(help="cs231n: all experiments of the lecture that train at the scale.")
]

ScaleOption = Annotated[str, typer.Option(help="A scale of the experiments: paper, laptop, …")]

Variants = Annotated[
    list[str] | None, typer.Option("--variant", help="Run only this variant of one experiment (repeatable).")
]

SeedCount = Annotated[int | None, typer.Option(help="Number of seeds. Default: the declared seeds.")]

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a setting of the recipe, as in train.lr=0.05. Such runs count for no claim."
    ),
]

Precision = Annotated[
    Literal["fp32", "bf16", "tf32"] | None,
    typer.Option(
        help="Compute in this precision; short for --set train.precision=…. Unless it is the declared one, such"
        " runs count for no claim. tf32: NVIDIA GPUs only."
    ),
]

DataSet = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="Train on another data set; short for --set data.name=NAME. Such runs count for no claim.",
    ),
]

NetworkChanges = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change an argument of the network, as in depth=101 (repeatable)."),
]

Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        metavar="URL",
        help="Job API of the cluster, as in http://HOST:8265. Default: this machine's own cluster.",
    ),
]

GpusPerRun = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Devices per run: GPUs, or CPU processes on a cluster without GPUs. 0.25 or 1/4: four runs share a"
        " device.",
    ),
]
