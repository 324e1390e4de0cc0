"""The commands `repro data`: prepare image sets as shards, verify and inspect them, generate a stand-in."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from lightning_modules.names import nearest
from pipeline.cli.progress import ProgressCallback, show_progress
from pipeline.cli.tables import TableFormat, print_rows, print_table, with_table_formats
from pipeline.cli.terminal import STOPPED, out, print_warning_line, say
from pipeline.common.errors import UserError
from pipeline.common.words import plural, printable, some_of

if TYPE_CHECKING:
    from pipeline.data.prepare.source_images import SourceSet
    from pipeline.data.shard_manifest import ShardManifest
    from pipeline.data.store import Store

app = typer.Typer(no_args_is_help=True, help="Prepare image sets as shards, verify and inspect them.")

ShardsArgument = Annotated[
    str,
    typer.Argument(
        metavar="SHARDS", help="A set's name, or the folder, http(s):// or s3:// address of its shards."
    ),
]


SPLIT_COLUMNS = ("set", "split", "images", "shards", "bytes", "classes")


@app.command("prepare")
@with_table_formats
def prepare_set(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder with the ILSVRC-2012 archives or with class folders, or a set's name such as mnist.",
        ),
    ],
    target: Annotated[str, typer.Option("--out", metavar="DIR|s3://…", help="Folder or address for the shards.")],
    short_side: Annotated[
        int | None,
        typer.Option(
            min=8, max=4096, help="Resize every image to this short side, in pixels. The result is another set."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=1_000_000, help="Images per shard.")] = 1000,
    split: Annotated[
        str | None,
        typer.Option(help="train or test: the split of class folders that are not in train/ and test/."),
    ] = None,
    *,
    shape: TableFormat,
) -> None:
    """Write a set as WebDataset shards. Run the same command again to resume after an interruption."""
    from pipeline.common.environment import available_cpus
    from pipeline.data import sources
    from pipeline.data.prepare.workspace import check_writable
    from pipeline.data.prepare.write_shards import prepare_shards
    from pipeline.data.store import open_store

    store = open_store(target)
    folder = None if source in sources.NAMES else source_folder(source, store)
    check_writable(store)
    with show_progress("reading source", "bytes") as progress:
        source_set = open_source(folder or source, split, progress)
    if source_set.skipped:
        paths = [printable(path) for path in source_set.skipped]
        print_warning_line(f"Skipped {plural(len(paths), 'file')} that are not images: {some_of(paths)}.")
    workers = available_cpus() if folder else 1  # on tiny images, threads only wait for each other
    try:
        with show_progress("writing shards", "images") as progress:
            manifest = prepare_shards(
                source_set,
                store,
                short_side=short_side,
                samples=samples,
                workers=workers,
                progress=progress,
                report=print_warning_line,
            )
    except KeyboardInterrupt:
        print_warning_line("Interrupted; finished shards are kept. Run the same command again to resume.")
        raise typer.Exit(STOPPED) from None
    if not shape.is_text:
        print_rows(split_rows(manifest), shape, SPLIT_COLUMNS, value=manifest.model_dump(mode="json"))
        return
    describe_manifest(manifest)
    describe_boxes(store, manifest)
    out.print(f"shards   {escape(str(store))}", soft_wrap=True)
    if manifest.name != store.address.rpartition("/")[2]:
        say(f"Runs look for this set in a folder named {manifest.name}, in data/ or below REPRO_SHARDS.")


def source_folder(source: str, out: "Store") -> Path:
    """Return the folder to prepare; UserError if it does not exist or contains the target `out`."""
    from pipeline.data.sources import NAMES

    folder = local_path(source, "SOURCE")
    if folder.is_file():
        raise UserError(f"{source} is a file; give the folder that contains it: {folder.absolute().parent}")
    if not folder.is_dir():
        raise UserError(f"no folder or set named {source}{nearest(source, NAMES)}")
    if out.local and out.local.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} is inside {source}, where shards would be read as images; use another folder")
    return folder


def local_path(text: str, name: str) -> Path:
    """Return a path given by a user; UserError for an address, which is not repeated: it may contain a password.

    `name`: the argument or option, for the message.
    """
    from pipeline.data.store import ADDRESS, local_folder

    if ADDRESS.match(text):
        raise UserError(f"{name} must be a local folder, not an address")
    return local_folder(text)


def open_source(source: Path | str, split: str | None, progress: ProgressCallback) -> "SourceSet":
    """List the images of a folder (archives or class folders), or of a set given by its name."""
    from pipeline.common.paths import data_folder
    from pipeline.data.prepare.archive_files import has_archives
    from pipeline.data.prepare.source_archives import source_from_archives
    from pipeline.data.prepare.source_folders import source_from_folders
    from pipeline.data.prepare.source_images import source_from_named_set

    archives = isinstance(source, Path) and has_archives(source)
    if split and (archives or isinstance(source, str)):
        raise UserError(f"--split applies to class folders only, and {source} has none; omit it")
    if isinstance(source, str):
        return source_from_named_set(source, data_folder())
    if archives:
        return source_from_archives(source, cache=data_folder() / ".cache", progress=progress)
    return source_from_folders(source, split)


@app.command("verify")
@with_table_formats
def verify_set(where: ShardsArgument, *, shape: TableFormat) -> None:
    """Compare every byte with the manifest and decode every image. Exit 1 if there is a problem."""
    from pipeline.common.environment import available_cpus
    from pipeline.common.paths import data_folder
    from pipeline.data.prepare.verify import verify_shards
    from pipeline.data.sources import find_shards

    store = find_shards(where, data_folder())
    with show_progress("verifying", "bytes") as progress:
        problems = verify_shards(store, threads=available_cpus(), progress=progress)
    if not shape.is_text:
        print_rows([{"problem": problem} for problem in problems], shape, ("problem",), value=problems)
    else:
        for problem in problems:
            out.print(problem, markup=False, soft_wrap=True)
        found = f"{len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'} found in"
        out.print(f"{found} {escape(str(store))}", soft_wrap=True)
    raise typer.Exit(bool(problems))


@app.command("inspect")
@with_table_formats
def inspect_set(where: ShardsArgument, *, shape: TableFormat) -> None:
    """Show counts and sizes; draw sample images and the class balance into the report folder."""
    from pipeline.common.paths import data_folder, report_folder
    from pipeline.data.prepare.inspect import sample_images, summarise, summary_lines
    from pipeline.data.shards import open_shards
    from pipeline.data.sources import find_shards
    from pipeline.report.figures import class_balance, contact_sheet

    shards = open_shards(find_shards(where, data_folder()), cache=data_folder() / ".cache" / "shards")
    summary = summarise(shards)
    images, titles = sample_images(shards)
    counts = {name: split.split.per_class for name, split in shards.splits.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # matplotlib draws a box instead
        sheet = contact_sheet(images, titles, report_folder() / f"{shards.name}.png")
        balance = class_balance(counts, report_folder() / f"{shards.name}-classes.png", heading=shards.name)
    if not shape.is_text:
        drawn = {"contact_sheet": sheet, "balance_chart": balance}
        print_rows(split_rows(shards.manifest), shape, SPLIT_COLUMNS, value=summary.to_dict() | drawn)
        return
    describe_manifest(shards.manifest)
    describe_boxes(shards.store, shards.manifest)
    for line in summary_lines(summary):
        say(line)
    for label, path in (("images", sheet), ("classes", balance)):
        out.print(f"{label:<8} {escape(str(path))}", soft_wrap=True)


@app.command("stand-in")
def generate_stand_in(
    what: Annotated[
        Literal["imagenet", "caltech101", "caltech256", "voc2007", "voc2012"],
        typer.Argument(metavar="SET", help="The set to imitate: imagenet, or one that transfers use."),
    ],
    target: Annotated[str, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    classes: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Number of classes (imagenet only: 10).")
    ] = None,
    train: Annotated[
        int | None,
        typer.Option(min=1, help="Training images per class (imagenet: 130); all images per class (others: 12)."),
    ] = None,
    test: Annotated[
        int | None, typer.Option(min=1, help="Validation images per class (imagenet only: 50).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images.")] = 0,
) -> None:
    """Generate a small, learnable set in the archive layout of a published set, for tests and dry runs."""
    from pipeline.data.prepare.stand_in import make_stand_in
    from pipeline.data.prepare.transfer_stand_in import make_transfer_stand_in

    folder = local_path(target, "--out")
    if what != "imagenet":
        for option, value in (("--classes", classes), ("--test", test)):
            if value is not None:
                raise UserError(f"{option} {value}: only the stand-in of imagenet has this option; omit it")
        with show_progress("generating", "images") as progress:
            make_transfer_stand_in(what, folder, images=train or 12, seed=seed, progress=progress)
        out.print(f"archives {escape(str(target))}", soft_wrap=True)
        if folder.name != f"{what}-standin":
            say(f"Runs look for this set in a folder named {what}-standin, in data/.")
        return
    classes, train, test = classes or 10, train or 130, test or 50
    with show_progress("generating", "images") as progress:
        make_stand_in(folder, classes=classes, train=train, test=test, seed=seed, progress=progress)
    out.print(f"archives {escape(str(target))}", soft_wrap=True)
    out.print(f"next     [bold]repro data prepare {escape(str(target))} --out data/imagenet-standin[/]")


def split_rows(manifest: "ShardManifest") -> list[dict[str, Any]]:
    """Return a row for each split of a set, with the columns SPLIT_COLUMNS."""
    return [
        {
            "set": manifest.name,
            "split": name,
            "images": split.samples,
            "shards": len(split.shards),
            "bytes": split.bytes,
            "classes": len(manifest.classes),
        }
        for name, split in manifest.splits.items()
    ]


def describe_manifest(manifest: "ShardManifest") -> None:
    """Print a table of the splits, then classes and their order, origin and sha256."""
    from pipeline.data.class_names import describe_order

    cells = [
        {
            "split": row["split"],
            "images": f"{row['images']:,}",
            "shards": f"{row['shards']:,}",
            "MB": f"{row['bytes'] / 1e6:,.1f}",
        }
        for row in split_rows(manifest)
    ]
    print_table(cells, left=("split",))
    order = describe_order(manifest.classes)
    classes = f"{printable(manifest.name)}: {len(manifest.classes)} classes ({order})"
    say(f"{classes}, from {printable(manifest.source)}; sha256 {manifest.sha256[:16]}")
    if manifest.resized:
        say(f"images resized to a short side of {manifest.resized.short_side} pixels: another set than the source")


def describe_boxes(store: "Store", manifest: "ShardManifest") -> None:
    """Print the counts of bounding boxes of a set, if it has any."""
    from pipeline.data.boxes import BOXES_NAME, read_box_manifest
    from pipeline.data.prepare.write_boxes import boxes_text

    if store.exists(BOXES_NAME):
        say(boxes_text(read_box_manifest(store, manifest)))
