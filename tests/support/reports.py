"""A report of the declaration in tests/pipeline/conftest.py, with hostile names, and its pages read as HTML."""

from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Any

from pipeline.declare.experiment import Experiment
from pipeline.report.document.content import Report, make_content
from pipeline.report.leaderboard import build_leaderboard, with_verdicts
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import new_figure
from pipeline.track.record import Record
from tests.support.ledgers import judge_by_id

HOSTILE = '<img src=x onerror=alert(1)></script><script>alert(2)</script>"\' onmouseover="alert(3)'
VOID = {"meta", "img", "br", "source", "link", "input"}


def empty_figure(name: str = "toy-figure", caption: str = "Errors of two networks.") -> PaperFigure:
    """Return a figure without lines."""

    def draw(theme: Any) -> Any:
        figure = new_figure(2.0, 1.0)
        figure.subplots()
        return figure

    return FigureTitle(name, "toy", "Errors", "Figure 6").drawn(caption, draw)


def toy_report(experiment: Experiment, records: Iterable[Record], **other: Any) -> Report:
    """Return the report of one experiment from made-up records."""
    rows = list(records)
    entries = list(judge_by_id(experiment, rows).values())
    board = with_verdicts(build_leaderboard([experiment], rows), entries)
    return make_content(
        [experiment], entries, board, rows, **{"subject": "toy/depth", "figures": [empty_figure()]} | other
    )


class Tags(HTMLParser):
    """The tags of a page with their attributes, the tags left open, and the text of every row of a table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def ids(self) -> list[str]:
        """Every id, in order."""
        return [value for _, attributes in self.seen if (value := attributes.get("id"))]

    def addresses(self, *names: str) -> list[str]:
        """The values of attributes that refer to something: href, src, srcset."""
        return [v for _, attributes in self.seen for name in names if (v := attributes.get(name)) is not None]
