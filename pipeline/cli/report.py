"""`repro report`: papers, claims, verdicts, figures and runs as a page, a site, a PDF or Markdown."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.cli.options import Suite
from pipeline.cli.selection import collect_with_warnings, experiments_or_suite
from pipeline.cli.terminal import out, spinner

ALL = "All experiments"
TITLE = "Classic papers on convolutional networks, rerun"
ONE_FILE = (".html", ".htm")  # ends of the name of a single file; any other name is a folder


def report(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT…", help="Papers or experiments from `repro list`. Default: all."),
    ] = None,
    suite: Suite = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="A name that ends in .html: one self-contained file. Any other: a folder with a static site.",
        ),
    ] = None,
    pdf: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a PDF; needs the extra pdf.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write Markdown, for a README or an issue.")
    ] = None,
) -> None:
    """Write a report: counts of verdicts, then each paper with leaderboard, figures, claims and runs.

    Without an option it is one HTML file in the folder `report` of REPRO_HOME.
    """
    from pipeline.common.paths import report_folder, tracking_uri
    from pipeline.report.document.collect import collect_report, run_addresses
    from pipeline.report.document.html import render_file, write_file
    from pipeline.report.document.markdown import render_markdown
    from pipeline.report.document.pdf import weasyprint_module, write_pdf
    from pipeline.report.document.site import earlier_files, write_site

    declared, subject = experiments_or_suite(experiments or [], suite), subject_of(experiments or [], suite)
    title = TITLE if suite or subject == ALL else subject
    if html is None and pdf is None and markdown is None:
        html = report_folder() / "report.html"
    if html is not None and html.suffix.lower() not in ONE_FILE:
        earlier_files(html)  # refuse a folder with other files before the work
    if pdf is not None:
        weasyprint_module()
    with spinner("judging the claims and drawing the figures …"):
        found = collect_with_warnings()
        content = collect_report(declared, found, subject=subject)
        address = run_addresses(tracking_uri() if found.tracker else "")
        written = []
        if html is not None and html.suffix.lower() in ONE_FILE:
            written.append(write_file(html, render_file(content, title=title, address=address)))
        elif html is not None:
            files = write_site(content, html, title=title, address=address)
            written.append(next(path for path in files if path.name == "index.html"))
        if markdown is not None:
            written.append(write_file(markdown, render_markdown(content, title=title)))
    if pdf is not None:
        with spinner("laying out the PDF; one of all experiments takes some minutes …"):
            written.append(write_pdf(content, pdf, title=title, address=address))
    for path in written:
        out.print(f"wrote {escape(str(path))}", soft_wrap=True)
    if not content.records:
        out.print("No finished runs yet. Start some: [bold]repro run EXPERIMENT --scale laptop[/]")


def subject_of(names: list[str], suite: str | None) -> str:
    """Return what to call the experiments of a report."""
    return f"Suite {suite}" if suite else ", ".join(dict.fromkeys(names)) or ALL
