"""Rows of the report's tables: what each cell shows, by what it is sorted, and the runs behind it. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.declare.claims import (
    BoundClaim,
    Claim,
    ExactClaim,
    GainClaim,
    MetricClaim,
    OpenClaim,
    OrderingClaim,
    RatioClaim,
)
from pipeline.judge.category import Category, category
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Outcome, Verdict
from pipeline.judge.wording import rounded, show_value
from pipeline.report.document.anchors import claim_anchor
from pipeline.report.document.content import PrintedError
from pipeline.report.leaderboard import LeaderboardRow
from pipeline.report.text import (
    MARKS,
    TONES,
    Tone,
    leaderboard_cells,
    next_step_text,
    percent,
    runs_text,
    verdict_cells,
    verdict_text,
    without_empty_columns,
)


@dataclass(frozen=True)
class TableCell:
    """One cell of a table."""

    text: str
    sort: float | str | None = None  # what the column is sorted by; None: the text
    tone: Tone | None = None  # of a verdict
    runs: tuple[str, ...] = ()  # identities of the runs behind the number
    claim: str = ""  # anchor of the claim behind the number
    folder: str = ""  # of the paper whose page has the runs; "": that of the table
    is_number: bool = False


@dataclass(frozen=True)
class CellTable:
    """A table with its caption."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]


# Column of the leaderboard -> the number behind its text.
BOARD_NUMBERS: Mapping[str, Callable[[LeaderboardRow], float | None]] = {
    "top-1 error %": lambda row: row.top1,
    "top-5 error %": lambda row: row.top5,
    "training error %": lambda row: row.train,
    "paper top-1 %": lambda row: row.paper,
    "paper top-5 %": lambda row: row.paper_top5,
    "difference": lambda row: row.difference,
    "seeds": lambda row: row.seeds,
    "images": lambda row: row.images,
    "test-set noise": lambda row: row.noise,
    "parameters": lambda row: row.parameters,
    "multiply-adds": lambda row: row.multiply_adds,
    "time per run": lambda row: row.seconds,
}
IN_CAPTION = ("scale", "data")  # columns of the leaderboard with the same value in all rows of a group


def board_table(rows: Sequence[LeaderboardRow]) -> CellTable:
    """Return one group of the leaderboard, ranked; the rows have one data set, test protocol and scale."""
    data, protocol, scale = rows[0].group
    several = len({row.experiment for row in rows}) > 1
    texts = []
    for row in rows:
        cells = leaderboard_cells(row)
        more = {"experiment": row.experiment if several else ""}
        paper_top5 = {"paper top-5 %": "" if row.paper_top5 is None else f"{row.paper_top5:g}"}
        network, *rest = [(name, text) for name, text in cells.items() if name not in IN_CAPTION]
        at = 1 + [name for name, _ in rest].index("paper top-1 %")
        texts.append(dict([network, *more.items(), *rest[:at], *paper_top5.items(), *rest[at:]]))
    shown = without_empty_columns(texts)
    columns = tuple(shown[0])
    images = ", ".join(sorted({f"{row.images:,}" for row in rows if row.images})) or "no"
    other = {row.paper_data for row in rows if row.paper is not None} - {data}
    note = f". The paper's errors are on {', '.join(sorted(other))}" if other else ""
    experiment = "" if several else f"{rows[0].experiment}: "
    protocol_text = f", {protocol}" if protocol else ""
    caption = f"{experiment}{data} at {scale} scale, {images} test images{protocol_text}{note}"
    return CellTable(
        caption,
        columns,
        tuple(
            tuple(board_cell(row, name, text) for name, text in cells.items())
            for row, cells in zip(rows, shown, strict=True)
        ),
    )


def board_cell(row: LeaderboardRow, column: str, text: str) -> TableCell:
    """Return one cell of the leaderboard. The measured error and the number of seeds lead to the runs."""
    runs = row.runs if column in ("top-1 error %", "seeds") else ()
    if column == "verdict":
        return TableCell(text, tone=outcome_tone(text.partition(":")[0]) if text else None)
    if column not in BOARD_NUMBERS:
        return TableCell(text)
    number = BOARD_NUMBERS[column](row)
    return TableCell(
        text,
        sort="" if number is None else number,
        runs=runs,
        folder=row.experiment.partition("/")[0],
        is_number=True,
    )


def outcome_tone(outcome: str) -> Tone:
    """Return the tone of an outcome's mark."""
    return TONES[MARKS[Outcome(outcome)]]


def printed_table(errors: Sequence[PrintedError]) -> CellTable:
    """Return the test errors that a paper prints, each beside ours at paper scale with its verdict."""
    several = len({error.experiment for error in errors}) > 1
    columns = ["network", *(["experiment"] if several else []), "test protocol"]
    shown = [name for name in ("top1", "top5") if any(getattr(error, name) for error in errors)]
    for name in shown:
        label = name.replace("top", "top-")
        columns += [f"paper {label} %", f"our {label} %", f"{label} verdict"]
    rows = []
    for error in errors:
        cells = [
            TableCell(error.network),
            *([TableCell(error.experiment)] if several else []),
            TableCell(error.protocol),
        ]
        for name in shown:
            cells += printed_cells(getattr(error, name))
        rows.append(tuple(cells))
    return CellTable("Test errors as published, and ours at paper scale", tuple(columns), tuple(rows))


def printed_cells(entry: LedgerEntry | None) -> list[TableCell]:
    """Return the cells of one printed error: the paper's, ours and the verdict; empty ones without an entry."""
    if entry is None:
        return [TableCell("", sort="", is_number=True), TableCell("", sort="", is_number=True), TableCell("")]
    claim, verdict, anchor = entry.claim, entry.verdict, claim_anchor(entry)
    assert isinstance(claim, MetricClaim)
    ours = verdict.measured
    return [
        TableCell(f"{claim.claimed:g}", sort=claim.claimed, claim=anchor, is_number=True),
        TableCell(percent(ours), sort="" if ours is None else ours, runs=runs_behind(entry), is_number=True),
        TableCell(verdict_text(verdict), tone=TONES[MARKS[verdict.outcome]]),
    ]


def runs_behind(entry: LedgerEntry) -> tuple[str, ...]:
    """Return the identities of the runs that a verdict rests on."""
    return entry.evidence.runs if entry.evidence else ()


@dataclass(frozen=True)
class ClaimRow:
    """One claim with its verdict, as shown."""

    anchor: str
    experiment: str
    id: str
    category: Category
    outcome: str  # without the reason
    verdict: str  # with mark and reason
    tone: Tone
    says: str
    source: str
    protocol: str  # metric, statistic and test protocol; "" without
    claimed: str
    claimed_sort: float | str
    ours: str
    ours_sort: float | str
    evidence: str
    runs: tuple[str, ...]
    runs_text: str
    next_step: str


def judged_row(entry: LedgerEntry) -> ClaimRow:
    """Return the row of a claim."""
    cells, verdict = verdict_cells(entry), entry.verdict
    claimed = getattr(entry.claim, "claimed", None)
    return ClaimRow(
        anchor=claim_anchor(entry),
        experiment=entry.experiment,
        id=cells["claim"],
        category=category(entry.claim),
        outcome=str(verdict.outcome),
        verdict=cells["verdict"],
        tone=TONES[MARKS[verdict.outcome]],
        says=cells["says"],
        source=cells["source"],
        protocol=protocol_text(entry.claim),
        claimed=claimed_text(entry.claim),
        claimed_sort=float(claimed) if isinstance(claimed, int | float) else "",
        ours=measured_text(verdict),
        ours_sort="" if verdict.measured is None else verdict.measured,
        evidence=cells["evidence"],
        runs=runs_behind(entry),
        runs_text=runs_text(entry),
        next_step=next_step_text(entry),
    )


def claimed_text(claim: Claim) -> str:
    """Return what a claim says about the number: "8.75 ± 0.5", "> 60", "plain-56 > plain-20"; "" without one."""
    match claim:
        case OpenClaim():
            return ""
        case OrderingClaim():
            margin = f", margin {show_value(claim.margin)}" if claim.margin else ""
            return f"{claim.lhs} {claim.op} {claim.rhs}{margin}"
        case GainClaim():
            return f"{claim.lhs} lower than {claim.rhs} by {within(claim.claimed, claim.margin)}"
        case RatioClaim():
            sign = "" if claim.op == "=" else f"{claim.op} "
            return f"{claim.lhs} / {claim.rhs}: {sign}{within(claim.claimed, claim.margin)}"
        case BoundClaim():
            return f"{claim.op} {show_value(claim.claimed)}"
        case ExactClaim():
            sign = "" if claim.op == "=" else f"{claim.op} "
            return f"{sign}{within(claim.claimed, claim.margin)}"
        case MetricClaim():
            return within(claim.claimed, claim.margin)
    raise AssertionError(claim)


def within(value: object, margin: float) -> str:
    """Return a claimed value with its margin."""
    text = " × ".join(map(show_value, value)) if isinstance(value, list | tuple) else show_value(value)
    return f"{text} ± {show_value(margin)}" if margin else text


def measured_text(verdict: Verdict) -> str:
    """Return the measured number with its interval: "8.81 (8.70 to 8.92)"; "" without one."""
    if verdict.measured is None:
        return ""
    if verdict.n == 0:  # exact
        return show_value(int(verdict.measured) if verdict.measured.is_integer() else verdict.measured)
    interval = f" ({rounded(verdict.interval[0])} to {rounded(verdict.interval[1])})" if verdict.interval else ""
    return rounded(verdict.measured) + interval


def protocol_text(claim: Claim) -> str:
    """Return what is measured and how: "test/top1_error_pct, mean over seeds; single view, last model"."""
    match claim:
        case MetricClaim():
            return f"{claim.metric}, {claim.statistic} over seeds; {claim.protocol}"
        case BoundClaim():
            return f"{claim.metric}, mean over seeds; {claim.protocol}"
        case OrderingClaim() | GainClaim():
            against = f" against {claim.rhs_metric}" if claim.rhs_metric else ""
            return f"{claim.metric}{against}, paired by seed"
        case RatioClaim():
            return f"{claim.metric}, paired by seed"
        case ExactClaim():
            return claim.metric
    return ""
