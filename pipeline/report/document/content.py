"""Content of a report, before any format: papers in the lecture's order, with claims, leaderboards and runs."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice

from pipeline.declare.claims import MetricClaim, Paper
from pipeline.declare.experiment import Experiment
from pipeline.declare.suites import lecture_position
from pipeline.judge.coverage import PrintedRow
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Outcome
from pipeline.report.document.lecture import LectureTopic, lecture_topics
from pipeline.report.document.unfinished import UnfinishedRun
from pipeline.report.leaderboard import LeaderboardRow, ranked
from pipeline.report.paper_figures.paper_figure import ImageKind, PaperFigure
from pipeline.report.paper_figures.rendering import with_images
from pipeline.report.paper_page import coverage_text, not_claimed_lines
from pipeline.report.run_files import unread_sentences
from pipeline.report.text import by_category
from pipeline.track.record import Record


@dataclass(frozen=True)
class PaperSection:
    """Everything that a report says about one paper."""

    folder: str
    paper: Paper
    experiments: tuple[Experiment, ...]
    entries: tuple[LedgerEntry, ...]  # of all claims; trained ones with evidence first
    board: tuple[tuple[LeaderboardRow, ...], ...]  # one group for each data set, protocol and scale
    figures: tuple[PaperFigure, ...]
    coverage: str  # how many printed rows have a claim; "" if not known
    not_claimed: tuple[str, ...]  # reasons why printed rows have no claim
    records: tuple[Record, ...]  # of its experiments, and those that its rows and verdicts rest on
    unread: tuple[str, ...] = ()  # a sentence for each of these whose curves or weights cannot be read


@dataclass(frozen=True)
class Report:
    """The content of a report."""

    subject: str  # "all experiments", or what was chosen
    papers: tuple[PaperSection, ...]
    board: tuple[tuple[LeaderboardRow, ...], ...]  # across papers
    lecture: tuple[LectureTopic, ...]
    figures: tuple[PaperFigure, ...]  # of the whole project
    records: Mapping[str, Record]  # by identity
    rates: Mapping[str, float]  # hardware -> multiply-adds of training per second
    scales: tuple[str, ...] = ()  # only these; empty: all
    unfinished: tuple[UnfinishedRun, ...] = ()
    trouble: str = ""  # why runs of the tracking server may be missing
    unread: Mapping[str, str] = field(
        default_factory=dict
    )  # identity -> which of its files cannot be read, and why
    made: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    commit: str = "unknown"

    @property
    def entries(self) -> list[LedgerEntry]:
        """The claims of all papers."""
        return [entry for paper in self.papers for entry in paper.entries]

    def with_images(self, wanted: Collection[ImageKind]) -> "Report":
        """Return the report with the images of all its figures in these formats and themes."""
        figures = [*self.figures, *(figure for paper in self.papers for figure in paper.figures)]
        rendered = iter(with_images(figures, wanted))
        own = tuple(islice(rendered, len(self.figures)))
        papers = [replace(paper, figures=tuple(islice(rendered, len(paper.figures)))) for paper in self.papers]
        return replace(self, figures=own, papers=tuple(papers))

    @property
    def counted(self) -> set[str]:
        """Identities of the runs that a row of the leaderboard or a verdict rests on."""
        return runs_of((row for group in self.board for row in group), self.entries)


def make_content(
    experiments: Sequence[Experiment],
    entries: Sequence[LedgerEntry],
    rows: Sequence[LeaderboardRow],
    records: Sequence[Record],
    *,
    subject: str,
    figures: Sequence[PaperFigure] = (),
    printed: Sequence[PrintedRow] = (),
    rates: Mapping[str, float] | None = None,
    unfinished: Sequence[UnfinishedRun] = (),
    scales: Sequence[str] = (),
    trouble: str = "",
    unread: Mapping[str, str] | None = None,
    commit: str = "unknown",
) -> Report:
    """Return a report from judged claims, rows of the leaderboard and records. Pure.

    `printed`: the rows of printed.yaml files; without them nothing is said about coverage.
    """
    names = {experiment.name for experiment in experiments}
    used = runs_of(rows, entries)
    by_identity = {
        record.identity: record for record in records if record.experiment in names or record.identity in used
    }
    papers = tuple(
        make_section(
            folder,
            [one for one in experiments if one.folder == folder],
            entries,
            rows,
            by_identity,
            [figure for figure in figures if figure.paper == folder],
            [row for row in printed if row.paper == folder],
            unread or {},
        )
        for folder in sorted({one.folder for one in experiments}, key=lecture_position)
    )
    return Report(
        subject=subject,
        papers=papers,
        board=tuple(map(tuple, ranked(rows))),
        lecture=tuple(lecture_topics(papers_of(papers), entries, printed)),
        figures=tuple(figure for figure in figures if not figure.paper),
        records=by_identity,
        rates=rates or {},
        unfinished=tuple(unfinished),
        scales=tuple(scales),
        trouble=trouble,
        unread=unread or {},
        commit=commit,
    )


def make_section(
    folder: str,
    experiments: Sequence[Experiment],
    entries: Sequence[LedgerEntry],
    rows: Sequence[LeaderboardRow],
    records: Mapping[str, Record],
    figures: Sequence[PaperFigure],
    printed: Sequence[PrintedRow],
    unread: Mapping[str, str],
) -> PaperSection:
    """Return what a report says about the paper of these experiments; the other arguments may hold more."""
    names = {experiment.name for experiment in experiments}
    own_rows = [row for row in rows if row.experiment in names]
    own_entries = sorted((entry for entry in entries if entry.experiment in names), key=reading_order)
    used = runs_of(own_rows, own_entries)
    own = {i: record for i, record in records.items() if record.experiment in names or i in used}
    ordered = sorted(own.values(), key=lambda one: (one.experiment, one.scale, one.variant, one.seed))
    return PaperSection(
        folder=folder,
        paper=experiments[0].paper,
        experiments=tuple(experiments),
        entries=tuple(own_entries),
        board=tuple(map(tuple, ranked(own_rows))),
        figures=tuple(figures),
        coverage=coverage_text(printed),
        not_claimed=tuple(line.removeprefix("- ") for line in not_claimed_lines(printed)),
        records=tuple(ordered),
        unread=tuple(unread_sentences(ordered, unread)),
    )


def runs_of(rows: Iterable[LeaderboardRow], entries: Iterable[LedgerEntry]) -> set[str]:
    """Return the identities of the runs that rows of the leaderboard and verdicts rest on."""
    shown = {identity for row in rows for identity in row.runs}
    return shown | {identity for entry in entries if entry.evidence for identity in entry.evidence.runs}


def papers_of(sections: Iterable[PaperSection]) -> dict[str, Paper]:
    """Return the paper of each folder."""
    return {section.folder: section.paper for section in sections}


def reading_order(entry: LedgerEntry) -> tuple[int, bool]:
    """Return a key that sorts claims: trained ones with runs, errata, contradictions, open ones, others."""
    outcome = entry.verdict.outcome
    if entry.is_judged_from_runs:
        return 0, False
    if outcome is Outcome.ERRATUM:
        return 1, False
    if outcome in (Outcome.NOT_CONFIRMED, Outcome.DEPARTS):
        return 2, False
    return 3, outcome is not Outcome.CANNOT_JUDGE


def judged_entries(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the trained claims that rest on finished runs which can judge them."""
    return [entry for entry in entries if entry.is_judged_from_runs]


def errata(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the claims whose source is wrong."""
    return [entry for entry in entries if entry.verdict.outcome is Outcome.ERRATUM]


def commands_to_judge(entries: Iterable[LedgerEntry]) -> dict[str, int]:
    """Return the commands that would allow a verdict, each with the number of claims, most claims first."""
    found: dict[str, int] = {}
    for entry in entries:
        if entry.command:
            found[entry.command] = found.get(entry.command, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class PrintedError:
    """A test error that the paper prints, beside ours at paper scale. Errors in percent."""

    experiment: str
    network: str
    protocol: str  # "" for the only one
    top1: LedgerEntry | None
    top5: LedgerEntry | None


def printed_errors(entries: Iterable[LedgerEntry]) -> list[PrintedError]:
    """Return the mean test errors that claims of a paper name, by network and test protocol, as declared."""
    found: dict[tuple[str, str, str], dict[str, LedgerEntry]] = {}
    for entry in by_category(list(entries)).get("trained", []):
        claim = entry.claim
        if not isinstance(claim, MetricClaim) or claim.by != "paper" or claim.statistic.startswith("best"):
            continue
        kind, _, rest = claim.metric.partition("/")
        protocol, _, error = rest.rpartition("/")
        if kind == "test" and error in ("top1_error_pct", "top5_error_pct"):
            key = (entry.experiment, claim.of, protocol)
            found.setdefault(key, {}).setdefault(error.partition("_")[0], entry)
    return [PrintedError(*key, one.get("top1"), one.get("top5")) for key, one in found.items()]
