"""The report as Markdown for a README or an issue: counts, errata, leaderboards and what was judged."""

import re
from collections.abc import Iterator, Mapping, Sequence

from pipeline.judge.ledger import LedgerEntry
from pipeline.report.deviations import deviation_lines
from pipeline.report.document.cells import CellTable, board_table, judged_row
from pipeline.report.document.content import PaperSection, Report, errata, judged_entries
from pipeline.report.document.runs import cost_rows
from pipeline.report.text import headlines, markdown

SPECIAL = re.compile(r"([\\`*\[\]<>&|])")


def render_markdown(report: Report, *, title: str) -> str:
    """Return the report as Markdown. Papers without runs have no section; their claims are counted at the top."""
    parts = [
        f"# {escaped(title)}",
        f"{escaped(report.subject)}; {report.made}, commit {report.commit[:8]}.",
        "\n".join(f"- {line}" for line in headlines(report.entries)),
        "The three kinds of claims mean different things and are not added up.",
    ]
    if report.trouble:
        parts.append(f"Runs may be missing: {escaped(report.trouble)}.")
    if not report.records:
        parts.append(
            "No finished runs of these experiments yet. Start some, for example"
            " `repro run resnet/cifar10_depth --scale laptop`."
        )
    if report.unfinished:
        parts += ["## Unfinished runs", "\n".join(f"- {line}" for line in unfinished_lines(report))]
    for paper in report.papers:
        parts += paper_parts(paper, report)
    if wrong := errata(report.entries):
        parts += ["## Errata", verdict_rows(wrong, ("claim", "source", "evidence"))]
    return "\n\n".join(filter(None, parts)) + "\n"


def unfinished_lines(report: Report) -> Iterator[str]:
    """Yield one line for each unfinished run: its name, its state and the command that resumes it."""
    for run in report.unfinished:
        why = f" ({escaped(run.why)})" if run.why else ""
        yield f"{escaped(run.title)} of {escaped(run.experiment)}: {run.state}{why}; to resume: `{run.command}`"


def paper_parts(paper: PaperSection, report: Report) -> list[str]:
    """Return leaderboard, judged claims, cost, choices and departures of a paper with runs; else nothing."""
    judged = judged_entries(paper.entries)
    if not paper.board and not judged:
        return []
    parts = [f"## {escaped(paper.paper.title)} ({paper.paper.year})"]
    parts += [table_text(board_table(group)) for group in paper.board]
    if judged:
        parts.append(verdict_rows(judged, ("verdict", "claim", "source", "source says", "measured", "runs")))
    for experiment in paper.experiments:
        if any(record.experiment == experiment.name for record in paper.records):
            costs = cost_rows(experiment, paper.records, report.rates, report.scales)
            costs = [row for row in costs if row.get("finished")]
            lines = [f"- {escaped(line)}" for line in deviation_lines(experiment)]
            parts += [f"**{escaped(experiment.name)}**: {escaped(experiment.question)}", rows_text(costs)]
            parts.append("\n".join(lines))
    return parts


def verdict_rows(entries: Sequence[LedgerEntry], columns: Sequence[str]) -> str:
    """Return claims as a table with some of the columns verdict, claim, source, measured, runs, evidence."""
    rows = []
    for entry in entries:
        row = judged_row(entry)
        cells = {
            "verdict": row.verdict,
            "claim": row.says,
            "source": row.source,
            "source says": row.claimed,
            "measured": row.ours,
            "runs": row.runs_text,
            "evidence": row.evidence,
        }
        rows.append({name: cells[name] for name in columns})
    return rows_text(rows)


def table_text(table: CellTable) -> str:
    """Return a table with its caption as Markdown."""
    rows = [dict(zip(table.columns, (cell.text for cell in row), strict=True)) for row in table.rows]
    return f"**{escaped(table.caption)}**\n\n{rows_text(rows)}"


def rows_text(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of plain texts as a Markdown table; "" without rows."""
    return markdown([{name: escaped(text, "|") for name, text in row.items()} for row in rows])


def escaped(text: str, *already: str) -> str:
    """Return a text that Markdown shows as it is, without links, HTML or emphasis.

    `already`: characters that are escaped later.
    """
    return SPECIAL.sub(lambda match: match[0] if match[0] in already else f"\\{match[0]}", " ".join(text.split()))
