"""Statements of the lecture (Stanford CS231n, lecture 9) in its order, each with the claims that judge it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.declare.claims import Paper
from pipeline.declare.suites import lecture_position
from pipeline.judge.coverage import PrintedRow
from pipeline.judge.ledger import LedgerEntry


@dataclass(frozen=True)
class LectureStatement:
    """One statement of the lecture."""

    says: str
    entries: tuple[LedgerEntry, ...]  # the claims that judge it
    why: str = ""  # reason why no claim judges it


@dataclass(frozen=True)
class LectureTopic:
    """What the lecture says about one paper."""

    folder: str
    title: str
    statements: tuple[LectureStatement, ...]


def lecture_topics(
    papers: Mapping[str, Paper], entries: Sequence[LedgerEntry], printed: Sequence[PrintedRow]
) -> list[LectureTopic]:
    """Return the topics in the order of the lecture, of these papers only, by folder.

    The statements of printed.yaml come first, in its order; each other claim of the lecture is a statement of its
    own. Claims that are not among `entries` are left out.
    """
    by_name = {f"{entry.experiment}/{entry.claim.id}": entry for entry in entries}
    rows = [row for row in printed if row.kind == "lecture" and row.paper in papers]
    found: dict[str, list[LectureStatement]] = {}
    for row in rows:
        judged = tuple(by_name[name] for name in row.claims if name in by_name)
        if judged or row.why:
            found.setdefault(row.paper, []).append(LectureStatement(row.says, judged, row.why))
    named = {name for row in rows for name in row.claims}
    for name, entry in by_name.items():
        folder = name.partition("/")[0]
        if entry.claim.by == "lecture" and name not in named and folder in papers:
            found.setdefault(folder, []).append(LectureStatement(entry.claim.says, (entry,)))
    return [
        LectureTopic(folder, papers[folder].title, tuple(found[folder]))
        for folder in sorted(found, key=lecture_position)
    ]
