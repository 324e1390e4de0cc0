"""The report as HTML: one self-contained file, or a folder of pages. Every text is escaped by the templates."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.common.errors import explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.common.words import duration, plural
from pipeline.judge.verdict import Outcome
from pipeline.report.deviations import deviation_groups
from pipeline.report.document.anchors import anchor, claim_anchor, run_anchor
from pipeline.report.document.cells import board_table, judged_row, printed_table
from pipeline.report.document.content import (
    PaperSection,
    Report,
    commands_to_judge,
    errata,
    judged_entries,
    printed_errors,
)
from pipeline.report.document.figures import EMBEDDED_IMAGES, ShownFigure, embed_figures
from pipeline.report.document.runs import RunRow, cost_rows, run_row
from pipeline.report.document.summary import outcome_counts_of, paper_cells, reason_counts
from pipeline.report.paper_figures.paper_figure import PaperFigure
from pipeline.report.text import MARKS, TONES, headlines, percent, short_commit, verdict_text
from pipeline.track.record import Record

ASSETS = Path(__file__).parent.parent / "assets"
SCRIPTS = ("dataTables.min.js", "report.js")
STYLE_FILE = "report.css"
ASSET_FOLDER = "assets"
INDEX = "index.html"
WHAT_TO_DO = "free some space, or choose another place"

ShowFigures = Callable[[Iterable[PaperFigure]], list[ShownFigure]]


@dataclass(frozen=True)
class Place:
    """Addresses of papers, claims and runs, as seen from one page."""

    pages: Mapping[str, str]  # folder of a paper -> its file; empty: everything is on one page
    here: str = ""  # file of the page
    has_runs: bool = True  # runs are listed, so that numbers can lead to them

    def to(self, folder: str, name: str) -> str:
        """Return the address of an anchor of a paper."""
        file = self.pages.get(folder, "")
        return f"#{name}" if file in ("", self.here) else f"{file}#{name}"

    def runs(self, identities: Sequence[str], folder: str) -> str:
        """Return the address of the first of these runs, in the table that shows only them."""
        first, file = run_anchor(identities[0]), self.pages.get(folder, "")
        return f"#{first}" if file in ("", self.here) else f"{file}?runs={'+'.join(identities)}#{first}"


@cache
def template_environment() -> Environment:
    """Return the environment of the templates: texts are escaped, and an unknown name is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
        "claim_anchor": claim_anchor,
        "duration": duration,
        "percent": percent,
        "plural": plural,
        "run_anchor": run_anchor,
        "short_commit": short_commit,
        "thousands": lambda number: f"{number:,}",
        "tone": lambda entry: TONES[MARKS[entry.verdict.outcome]],
        "verdict": lambda entry: verdict_text(entry.verdict),
    }
    return made


@cache
def asset(name: str) -> str:
    """Return the text of a script or style of the report."""
    return (ASSETS / name).read_text(encoding="utf-8")


def content_policy(*, scripts: Sequence[str] | None) -> str:
    """Return the Content-Security-Policy of a page: its own style and scripts, and no other source.

    `scripts`: texts of the inlined ones; None: all are files beside the page.
    """
    if scripts is None:
        script, style, images = "'self'", "'self'", "'self'"
    else:
        script = " ".join(map(source_hash, scripts)) or "'none'"
        style, images = source_hash(asset(STYLE_FILE)), "data:"
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src {images};"
        " base-uri 'none'; form-action 'none'"
    )


def source_hash(text: str) -> str:
    """Return the source of a policy that allows exactly this inlined text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@dataclass(frozen=True)
class PageOptions:
    """Form of a page."""

    place: Place = Place({})
    show: ShowFigures = embed_figures  # figures in the form that the page refers to
    address: Callable[[Record], str] = lambda record: ""
    scripts: Sequence[str] | None = SCRIPTS  # inlined; None: files beside the page
    has_summary: bool = True
    has_details: bool = True  # metrics and hashes of every run


def render_page(report: Report, papers: Sequence[PaperSection], options: PageOptions, *, title: str) -> str:
    """Return a page with these papers of a report, and with the summary of the whole report if it has one."""
    place = options.place
    shown = [paper_values(paper, report, options) for paper in papers]
    runs = run_values(report, papers, options.address) if place.has_runs else []
    inlined = None if options.scripts is None else [asset(name) for name in options.scripts]
    return (
        template_environment()
        .get_template("page.html.j2")
        .render(
            summary_values(report, options) if options.has_summary else {},
            report=report,
            place=place,
            papers=shown,
            runs=runs,
            identities={run.identity for run in runs},
            outcomes=[str(outcome) for outcome in Outcome],
            title=title,
            subtitle=subtitle(report),
            contents=contents_of(report, shown, options),
            show_summary=options.has_summary,
            show_details=options.has_details,
            policy=content_policy(scripts=inlined),
            style=Markup(asset(STYLE_FILE)),  # our own files are the only texts that are not escaped
            style_file="" if inlined is not None else f"{ASSET_FOLDER}/{STYLE_FILE}",
            scripts=[Markup(text) for text in inlined or ()],
            script_files=[f"{ASSET_FOLDER}/{name}" for name in SCRIPTS] if inlined is None else [],
        )
    )


def render_file(report: Report, *, title: str, address: Callable[[Record], str]) -> str:
    """Return the whole report as one page that refers to no other file."""
    report = report.with_images(EMBEDDED_IMAGES)
    return render_page(report, report.papers, PageOptions(address=address), title=title)


def subtitle(report: Report) -> str:
    """Return what the report covers, in one line."""
    claims = plural(len(report.entries), "claim")
    papers = plural(len(report.papers), "paper")
    runs = plural(len(report.records), "finished run")
    return f"{report.subject}: {claims} about {papers}, {runs}; {report.made}"


def contents_of(
    report: Report, papers: Sequence[Mapping[str, Any]], options: PageOptions
) -> list[tuple[str, str]]:
    """Return the links at the top of a page: text and address."""
    if not options.has_summary:
        return [("Summary of all papers", INDEX), ("Claims", "#main"), ("Runs", "#runs")]
    parts = [
        ("Summary", "#summary", True),
        ("Errata", "#errata", bool(errata(report.entries))),
        ("Leaderboard", "#leaderboard", len(report.papers) > 1 and bool(report.board)),
        ("The lecture", "#lecture", bool(report.lecture)),
        *((short_title(one), options.place.to(one.folder, anchor(one.folder)), True) for one in report.papers),
        ("Runs", "#runs", bool(papers) and bool(report.records)),
    ]
    return [(text, href) for text, href, is_there in parts if is_there]


def short_title(section: PaperSection) -> str:
    """Return the first author and the year, as papers are cited, and the folder."""
    first = section.paper.authors.split(",")[0].strip()
    return f"{section.folder} ({first} {section.paper.year})"


def summary_values(report: Report, options: PageOptions) -> dict[str, Any]:
    """Return the values of the summary, the leaderboard across papers and the lecture."""
    entries, place = report.entries, options.place
    trainable = [one.name for paper in report.papers for one in paper.experiments if "laptop" in one.scales]
    rows = [
        (
            {
                "folder": paper.folder,
                "anchor": anchor(paper.folder),
                "title": paper.paper.title,
                "year": paper.paper.year,
            },
            paper_cells(paper),
        )
        for paper in report.papers
    ]
    return {
        "trained": outcome_counts_of("trained", entries),
        "trained_reasons": [
            {"reason": one.reason, "claims": f"{one.number:,}", "meaning": one.meaning}
            for one in reason_counts("trained", entries)
        ],
        "arithmetic": outcome_counts_of("arithmetic", entries),
        "recipe": outcome_counts_of("recipe", entries),
        "judged": [judged_row(entry) for entry in judged_entries(entries)] if len(report.papers) > 1 else [],
        "errata": [judged_row(entry) for entry in errata(entries)],
        "paper_rows": rows,
        "paper_columns": list(rows[0][1]) if rows else [],
        "board": [board_table(group) for group in report.board] if len(report.papers) > 1 else [],
        "figures": options.show(report.figures),
        "unfinished": [
            {
                "run": run.title,
                "experiment": f"{run.experiment} at {run.scale} scale",
                "state": run.state,
                "reason": run.why,
                "last step": f"{run.step:,}" if run.step >= 0 else "",
                "to resume": run.command,
            }
            for run in report.unfinished
        ],
        "example": next(iter(trainable), "resnet/cifar10_depth"),
        "is_one_page": not place.pages,
    }


def paper_values(section: PaperSection, report: Report, options: PageOptions) -> dict[str, Any]:
    """Return the values of one paper."""
    errors = printed_errors(section.entries)
    return {
        "section": section,
        "title": section.paper.title,
        "anchor": anchor(section.folder),
        "headlines": headlines(section.entries),
        "board": [board_table(group) for group in section.board],
        "printed": printed_table(errors) if errors else None,
        "figures": options.show(section.figures),
        "claims": [judged_row(entry) for entry in section.entries],
        "experiments": [
            {
                "name": one.name,
                "anchor": anchor(one.name),
                "question": one.question,
                "costs": cost_rows(one, section.records, report.rates, report.scales),
                "deviations": deviation_groups(one),
                "commands": commands_to_judge(entry for entry in section.entries if entry.experiment == one.name),
            }
            for one in section.experiments
        ],
    }


def run_values(report: Report, papers: Sequence[PaperSection], address: Callable[[Record], str]) -> list[RunRow]:
    """Return the rows of the runs of these papers, each once."""
    records = {record.identity: record for paper in papers for record in paper.records}
    counted = report.counted
    return [
        run_row(
            record,
            is_counted=identity in counted,
            address=address(record),
            unread=report.unread.get(identity, ""),
        )
        for identity, record in records.items()
    ]


def write_file(path: Path, text: str | bytes, what_to_do: str = WHAT_TO_DO, *, durable: bool = True) -> Path:
    """Write a file of the report atomically; create its folder. Raises UserError if that fails.

    `durable`: the file also survives a crash of the operating system.
    """
    with explain_write_errors(path.parent, what_to_do):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text, durable=durable)
    return path
