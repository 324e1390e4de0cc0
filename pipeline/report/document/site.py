"""The report as a folder of pages: an index, a page for each paper, figures and scripts as files."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.report.document.anchors import anchor
from pipeline.report.document.content import Report
from pipeline.report.document.figures import FILE_IMAGES, ShownFigure, figure_files
from pipeline.report.document.html import (
    ASSET_FOLDER,
    INDEX,
    SCRIPTS,
    STYLE_FILE,
    PageOptions,
    Place,
    asset,
    render_page,
    write_file,
)
from pipeline.report.paper_figures.paper_figure import PaperFigure
from pipeline.track.record import Record

LICENCE = "dataTables.LICENSE.txt"
MANIFEST = "report.json"  # list of the files of a report


def write_site(report: Report, folder: Path, *, title: str, address: Callable[[Record], str]) -> list[Path]:
    """Write the report as a static site: an index, one page per paper, figures as files. Return the files.

    Files of an earlier report in the folder are replaced or removed. All is rendered before the first file is
    written, and the manifest is written first: a folder whose writing was interrupted is a report's, too.

    Raises UserError for a folder that holds other files, or that cannot be written.
    """
    earlier = earlier_files(folder)
    files = site_files(report.with_images(FILE_IMAGES), title=title, address=address)
    written = [write_file_list(folder, {*earlier, *files})]
    written += [write_file(folder / name, content, durable=False) for name, content in files.items()]
    for name in earlier - {*files}:
        (folder / name).unlink(missing_ok=True)
    write_file_list(folder, files)
    return written


def site_files(report: Report, *, title: str, address: Callable[[Record], str]) -> dict[str, str | bytes]:
    """Return the files of a site without its manifest: name -> content."""
    pages = {paper.folder: f"{anchor(paper.folder)}.html" for paper in report.papers}
    files: dict[str, str | bytes] = {
        f"{ASSET_FOLDER}/{name}": asset(name) for name in (STYLE_FILE, *SCRIPTS, LICENCE)
    }

    def show(figures: Iterable[PaperFigure]) -> list[ShownFigure]:
        shown = []
        for figure in figures:
            one, images = figure_files(figure)
            files.update(images)
            shown.append(one)
        return shown

    for paper in report.papers:
        options = PageOptions(Place(pages, pages[paper.folder]), show, address, scripts=None, has_summary=False)
        files[pages[paper.folder]] = render_page(report, [paper], options, title=paper.paper.title)
    options = PageOptions(Place(pages, INDEX), show, address, scripts=None)
    files[INDEX] = render_page(report, [], options, title=title)
    return files


def write_file_list(folder: Path, names: Iterable[str]) -> Path:
    """Write the list of a site's files."""
    return write_file(folder / MANIFEST, json.dumps({"files": sorted(names)}, indent=1) + "\n")


def earlier_files(folder: Path) -> set[str]:
    """Return the files of an earlier report in a folder. Raises UserError for a folder with other files only."""
    manifest = folder / MANIFEST
    try:
        if manifest.is_file():
            names = json.loads(manifest.read_text(encoding="utf-8"))["files"]
            return {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}
        if folder.is_dir() and any(not path.name.startswith(f".{MANIFEST}-") for path in folder.iterdir()):
            raise UserError(f"{folder} holds other files and no report; give an empty or a new folder")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; give a folder, or a name that ends in .html for one file")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{manifest} cannot be read ({error}); remove the folder and run again") from None
    return set()
