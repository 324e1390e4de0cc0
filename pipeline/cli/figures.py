"""`repro figures`: the papers' figures from the finished runs, as files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from pipeline.cli.options import Suite
from pipeline.cli.selection import check_scale, collect_with_warnings, experiments_or_suite
from pipeline.cli.tables import TableFormat, print_rows, with_table_formats
from pipeline.cli.terminal import out, print_warning_line, say, spinner
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.report.paper_figures.paper_figure import FigureFormat


FIGURE_COLUMNS = ("name", "paper", "title", "source", "caption", "missing", "files")


@with_table_formats
def figures(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT…", help="Names or papers from `repro list`. Default: all experiments."),
    ] = None,
    suite: Suite = None,
    scale: Annotated[
        str | None, typer.Option(help="Draw only runs at this scale. Default: paper scale if there are runs.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder of the files.")] = Path("figures"),
    formats: Annotated[str, typer.Option("--format", help="png, svg, pdf, or several, as in png,pdf.")] = "png",
    theme: Annotated[Literal["light", "dark"], typer.Option(help="Colours.")] = "light",
    *,
    shape: TableFormat,
) -> None:
    """Draw the figures of the papers from the finished runs, with the papers' own values as marks."""
    from pipeline.analyse.measure import measure_claim
    from pipeline.judge.collect import judge_experiments
    from pipeline.report.paper_figures.collect import paper_figures
    from pipeline.report.paper_figures.project import with_numbers
    from pipeline.report.run_files import RunFiles, unread_sentences

    chosen, wanted = experiments_or_suite(experiments or [], suite), parse_formats(formats)
    check_scale(chosen, scale)
    with spinner("judging the claims and drawing the figures …"):
        found = collect_with_warnings()
        read = RunFiles(found.tracker)
        entries = judge_experiments(with_numbers(chosen), found.records)
        drawn = paper_figures(
            chosen,
            found.records,
            entries,
            curves=read.curve,
            weights=read.weights,
            measure=measure_claim,
            scales=(scale,) if scale else (),
        )
        files = {
            figure.name: [figure.write(to / f"{figure.name}.{end}", theme) for end in wanted]
            for figure in drawn
            if not figure.missing
        }
    for sentence in unread_sentences(found.records, read.unread):
        print_warning_line(f"Missing from the figures: {sentence}")
    if not shape.is_text:
        rows = [figure.to_dict() | {"files": files.get(figure.name, [])} for figure in drawn]
        print_rows(rows, shape, FIGURE_COLUMNS)
        return
    for figure in drawn:
        for path in files.get(figure.name, []):
            out.print(f"wrote {escape(str(path))}", soft_wrap=True)
    for figure in drawn:
        if figure.missing:
            say(f"{figure.name}: {figure.missing}")


def parse_formats(text: str) -> "list[FigureFormat]":
    """Return the formats in a text such as "png,pdf". Raises UserError for an unknown one."""
    from pipeline.report.paper_figures.paper_figure import FIGURE_FORMATS

    known = {str(name): name for name in FIGURE_FORMATS}
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--format {text}: must be one or several of {', '.join(known)}, joined by commas")
    return [known[name] for name in dict.fromkeys(names)]
