"""`repro data`: preparing sets of photographs as shards, and looking at what is there."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.cli.terminal import STOPPED, AsJson, err, out, print_json, print_warning_line, say
from pipeline.common.errors import UserError
from pipeline.declare.validation import hint

if TYPE_CHECKING:
    from pipeline.data.prepare.originals import SourceSet
    from pipeline.data.shard_manifest import ShardManifest
    from pipeline.data.store import Store

app = typer.Typer(no_args_is_help=True, help="Prepare image sets as shards; verify, inspect and imitate them.")

Where = Annotated[
    str,
    typer.Argument(metavar="SHARDS", help="A set's name, or a folder, http(s):// or s3:// with manifest.json."),
]

Tick = Callable[[int, int], None]  # of what is done, and what there is in all

SAY_EVERY_SECONDS = 30


@app.command("prepare")
def prepare_command(
    source: Annotated[
        str,
        typer.Argument(help="The ILSVRC-2012 archives' folder, class folders, or a set such as mnist, cifar10."),
    ],
    target: Annotated[str, typer.Option("--out", metavar="DIR|s3://…", help="Where the shards go.")],
    short_side: Annotated[
        int | None,
        typer.Option(min=8, max=4096, help="Resize each picture to this short side: other data, and labelled so."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=1_000_000, help="Pictures in a shard.")] = 1000,
    split: Annotated[
        str | None, typer.Option(help="train or test: which part class folders without train/ and test/ are.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write WebDataset shards and a manifest. Stopped at any moment, the same command goes on."""
    from pipeline.common.environment import available_cpus
    from pipeline.data import sources
    from pipeline.data.prepare.prepare import prepare_shards as make
    from pipeline.data.prepare.workspace import check_writable
    from pipeline.data.store import open_store

    here = open_store(target)
    folder = None if source in sources.NAMES else source_folder(source, here)
    check_writable(here)
    with show_progress("reading the source", "bytes") as tick:
        originals = open_source(folder or source, split, tick)
    workers = available_cpus() if folder else 1  # threads only wait for each other on tiny pictures
    try:
        with show_progress("pictures", "images") as tick:
            made = make(
                originals,
                here,
                short_side=short_side,
                samples=samples,
                workers=workers,
                progress=tick,
                warn=print_warning_line,
            )
    except KeyboardInterrupt:
        print_warning_line("Stopped. Finished shards stay; the same command goes on where this one stopped.")
        raise typer.Exit(STOPPED) from None
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    describe_manifest(made)
    out.print(f"shards   {escape(str(here))}", soft_wrap=True)
    if made.name != here.address.rpartition("/")[2]:
        say(f"A run finds them in a folder called {made.name}, in data/ or below REPRO_SHARDS.")


def source_folder(source: str, out: "Store") -> Path:
    """The folder that is to be prepared; UserError where there is none, or shards would get into it."""
    from pipeline.data.sources import NAMES

    folder = local_path(source, "pictures are prepared from")
    if folder.is_file():
        raise UserError(f"{source} is a file; give the folder that holds it: {folder.absolute().parent}")
    if not folder.is_dir():
        known = hint(source, NAMES) or f"; known are {', '.join(NAMES)}"
        raise UserError(f"there is no folder {source}, and no set of that name{known}")
    if out.local and out.local.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} lies in {source} itself, where shards would be taken for pictures; choose another")
    return folder


def local_path(said: str, what: str) -> Path:
    """The path that a user wrote. An address is refused without repeating it: it may hold a password."""
    from pipeline.data.store import ADDRESS, local_folder

    if ADDRESS.match(said):
        raise UserError(f"{what} a folder of this machine; give one instead of an address")
    return local_folder(said)


def open_source(source: Path | str, split: str | None, tick: Tick) -> "SourceSet":
    """What is to be prepared: in a folder, or a set by its name."""
    from pipeline.common.paths import data_folder
    from pipeline.data.prepare import archive_files, archives, originals

    packed = isinstance(source, Path) and archive_files.has_archives(source)
    if split and (packed or isinstance(source, str)):
        raise UserError(f"--split says which part class folders are, and {source} holds none; leave it out")
    if isinstance(source, str):
        return originals.source_from_named_set(source, data_folder())
    if packed:
        return archives.source_from_archives(source, cache=data_folder() / ".cache", progress=tick)
    return originals.source_from_folders(source, split)


@app.command("verify")
def verify_command(where: Where, as_json: AsJson = False) -> None:
    """Compare every byte with the manifest, open every picture, name all that is wrong. Exit 1 if anything is."""
    from pipeline.common.environment import available_cpus
    from pipeline.common.paths import data_folder
    from pipeline.data.prepare import verify
    from pipeline.data.sources import find_shards

    here = find_shards(where, data_folder())
    with show_progress("checking", "bytes") as tick:
        wrong = verify.verify_shards(here, threads=available_cpus(), progress=tick)
    if as_json:
        print_json(wrong)
    else:
        for sentence in wrong:
            out.print(sentence, markup=False, soft_wrap=True)
        words = f"{len(wrong)} {'thing is' if len(wrong) == 1 else 'things are'} wrong with" if wrong else "whole:"
        out.print(f"{words} {escape(str(here))}", soft_wrap=True)
    raise typer.Exit(bool(wrong))


@app.command("inspect")
def inspect_command(where: Where, as_json: AsJson = False) -> None:
    """Counts, sizes, a contact sheet of pictures, and a chart of the classes' balance."""
    from pipeline.common.paths import data_folder, report_folder
    from pipeline.data.prepare import inspect
    from pipeline.data.shards import open_shards
    from pipeline.data.sources import find_shards
    from pipeline.report.figures import class_balance, contact_sheet

    shards = open_shards(find_shards(where, data_folder()), cache=data_folder() / ".cache" / "shards")
    summary = inspect.summarise(shards)
    images, titles = inspect.sample_images(shards)
    counts = {name: part.split.per_class for name, part in shards.splits.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box stands for it
        sheet = contact_sheet(images, titles, report_folder() / f"{shards.name}.png")
        balance = class_balance(counts, report_folder() / f"{shards.name}-classes.png", heading=shards.name)
    if as_json:
        print_json(summary.to_dict() | {"contact_sheet": sheet, "balance_chart": balance})
        return
    describe_manifest(shards.manifest)
    for line in inspect.summary_lines(summary):
        say(line)
    for what, path in (("pictures", sheet), ("classes", balance)):
        out.print(f"{what:<8} {escape(str(path))}", soft_wrap=True)


@app.command("stand-in")
def stand_in_command(
    what: Annotated[Literal["imagenet"], typer.Argument(help="What is imitated.")],
    target: Annotated[str, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    classes: Annotated[int, typer.Option(min=2, max=1000)] = 10,
    train: Annotated[int, typer.Option(min=1, help="Training pictures of each class.")] = 130,
    test: Annotated[int, typer.Option(min=1, help="Validation pictures of each class.")] = 50,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a small, learnable set in ImageNet's own layout, for tests and dry runs; never called ImageNet."""
    from pipeline.data.prepare.standin import make_standin

    folder = local_path(target, "a stand-in is made in")
    with show_progress("drawing", "images") as tick:
        make_standin(folder, classes=classes, train=train, test=test, seed=seed, progress=tick)
    out.print(f"archives {escape(str(target))}", soft_wrap=True)
    out.print(f"next     [bold]repro data prepare {escape(str(target))} --out data/imagenet-standin[/]")


def describe_manifest(manifest: "ShardManifest") -> None:
    """A set's parts, a line each."""
    from pipeline.data.prepare.originals import printable

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(escape(manifest.name))
    for head in ("images", "shards", "MB"):
        table.add_column(head, justify="right")
    for name, part in manifest.splits.items():
        table.add_row(name, f"{part.samples:,}", f"{len(part.shards):,}", f"{part.bytes / 1e6:,.1f}")
    out.print(table)
    say(f"{len(manifest.classes)} classes, from {printable(manifest.source)}; sha256 {manifest.sha256[:16]}")
    if manifest.resized:
        say(
            f"every picture resized to a short side of {manifest.resized.short_side}: other data than the source's"
        )


@contextmanager
def show_progress(what: str, unit: Literal["images", "bytes"]) -> Iterator[Tick]:
    """`tick(done, of)` shows a bar with speed and estimate; without a terminal, a line every half minute."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class PerSecond(ProgressColumn):
        """Images a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f}/s" if speed else "")

    if not err.is_terminal:
        yield LogProgress(what, unit).tick
        return
    counted = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), PerSecond()]
    with Progress(
        TextColumn(what), BarColumn(), *counted, TimeRemainingColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task(what, total=None, visible=False)

        yield lambda done, of: bar.update(task, completed=done, total=of, visible=True)


class LogProgress:
    """Progress for a log file."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.began = self.said = time.monotonic()
        self.first: int | None = None  # what was done already when it began

    def tick(self, done: int, of: int) -> None:
        """Say how far it is, if the last time is long ago."""
        self.first = done if self.first is None else self.first
        now = time.monotonic()
        if now - self.said < SAY_EVERY_SECONDS:
            return
        self.said = now
        speed = (done - self.first) / max(now - self.began, 1e-9)
        seconds = (of - done) / speed if speed else 0
        left = f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
        words = f", {left} left" if speed else ""
        err.print(f"{self.what}: {done:,} of {of:,} {self.unit}, {speed:,.0f}/s{words}", soft_wrap=True)
