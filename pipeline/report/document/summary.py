"""Counts for the first page of a report: outcomes and reasons, categories apart. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.judge.category import Category
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Outcome, Reason
from pipeline.report.document.content import PaperSection, judged_entries
from pipeline.report.text import MARKS, OUTCOME_ORDER, TONES, Tone, by_category, outcome_noun

REASON_MEANINGS: Mapping[Reason, str] = {
    Reason.NOT_RUN: "no finished run at its scale, fewer than declared at paper scale, or runs without its metric",
    Reason.NO_DATA: "the data set is not available, or the device does not report the quantity",
    Reason.NO_LABELS: "the labels needed to evaluate are not public",
    Reason.UNDERPOWERED: "too few seeds, or too much spread, for a decision",
    Reason.RECIPE_UNSPECIFIED: "outside the margin, and the source leaves a material setting open",
    Reason.PROTOCOL_UNSPECIFIED: "the source does not say how the number was measured",
    Reason.RECIPE_DEPARTS: "outside the margin, and our recipe has a material departure",
    Reason.DID_NOT_CONVERGE: "the loss became infinite or NaN in at least one run",
    Reason.OVER_BUDGET: "training stopped at its budget, or the experiment is too expensive to run",
}


@dataclass(frozen=True)
class OutcomeCount:
    """Number of claims with one outcome."""

    text: str  # "reproduced", "errata"
    mark: str
    tone: Tone
    number: int


@dataclass(frozen=True)
class ReasonCount:
    """Number of claims that cannot be judged for one reason."""

    reason: str
    number: int
    meaning: str


def outcome_counts_of(kind: Category, entries: Sequence[LedgerEntry]) -> list[OutcomeCount]:
    """Return the number of claims of each outcome of a category, zeros included, in the order of OUTCOME_ORDER.

    `entries` may hold other categories.
    """
    found = Counter(entry.verdict.outcome for entry in by_category(entries).get(kind, []))
    return [
        OutcomeCount(outcome_noun(outcome, found[outcome]), MARKS[outcome], TONES[MARKS[outcome]], found[outcome])
        for outcome in OUTCOME_ORDER[kind]
    ]


def reason_counts(kind: Category, entries: Sequence[LedgerEntry]) -> list[ReasonCount]:
    """Return the reasons why claims of a category cannot be judged, most claims first."""
    found = Counter(entry.verdict.reason for entry in by_category(entries).get(kind, []))
    return [
        ReasonCount(str(reason), found[reason], REASON_MEANINGS[reason])
        for reason in sorted(REASON_MEANINGS, key=lambda reason: -found[reason])
        if found[reason]
    ]


def paper_cells(paper: PaperSection) -> dict[str, int]:
    """Return one row of the table of papers: claims by category, judged ones and errata, and finished runs."""
    kinds = by_category(paper.entries)
    return {
        "trained claims": len(kinds.get("trained", [])),
        "with runs": len(judged_entries(paper.entries)),
        "arithmetic": len(kinds.get("arithmetic", [])),
        "recipe": len(kinds.get("recipe", [])),
        "errata": count_of(paper.entries, Outcome.ERRATUM),
        "runs": len(paper.records),
    }


def count_of(entries: Iterable[LedgerEntry], outcome: Outcome) -> int:
    """Return the number of claims with an outcome."""
    return sum(entry.verdict.outcome is outcome for entry in entries)
