"""Cells of tables and headlines on the terminal, in MLflow, on the HTML page and in RESULTS.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pipeline.common.words import plural
from pipeline.declare.claims import Claim, OpenClaim
from pipeline.judge.category import Category, category
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.statistics import finite_test_set_noise
from pipeline.judge.verdict import Outcome, Reason, Verdict
from pipeline.report.leaderboard import LeaderboardRow

if TYPE_CHECKING:
    from pipeline.track.published_results import PublishedResult

MARKS = {
    Outcome.CONFIRMED: "✔",
    Outcome.ERRATUM: "!",
    Outcome.NOT_CONFIRMED: "✘",
    Outcome.FOLLOWED: "✔",
    Outcome.DEPARTS: "✘",
    Outcome.REPRODUCED: "✔",
    Outcome.BETTER: "▲",
    Outcome.NOT_REPRODUCED: "✘",
    Outcome.REACHED: "✔",
    Outcome.TREND: "✔",
    Outcome.NO_TREND: "✘",
    Outcome.CANNOT_JUDGE: "–",
}

OUTCOME_ORDER: Mapping[Category, Sequence[Outcome]] = {
    "trained": (
        Outcome.REPRODUCED,
        Outcome.REACHED,
        Outcome.NOT_REPRODUCED,
        Outcome.BETTER,
        Outcome.TREND,
        Outcome.NO_TREND,
        Outcome.CANNOT_JUDGE,
    ),
    "arithmetic": (Outcome.ERRATUM, Outcome.NOT_CONFIRMED, Outcome.CONFIRMED, Outcome.CANNOT_JUDGE),
    "recipe": (Outcome.ERRATUM, Outcome.DEPARTS, Outcome.FOLLOWED, Outcome.CANNOT_JUDGE),
}
"""Outcomes of each category in the order of tables and counts: what a reader looks for first."""

Tone = Literal["good", "bad", "note", "open"]

TONES: dict[str, Tone] = {"✔": "good", "▲": "good", "✘": "bad", "!": "note", "–": "open"}
"""Tone of a verdict's mark, which decides its colour."""

MEANINGS: dict[Category, str] = {
    "arithmetic": "shapes, counts and printed values, compared exactly",
    "recipe": "our settings compared with the printed ones, not results",
    "trained": "results of training, judged by statistics over seeds",
}

NO_COMMAND = {  # why no run would judge a claim
    Reason.NOT_RUN: "the declared runs are finished and do not measure what is claimed",
    Reason.UNDERPOWERED: "the declared seeds do not suffice, and at paper scale only they count",
    Reason.RECIPE_UNSPECIFIED: "the source leaves a setting open that could change the result",
    Reason.RECIPE_DEPARTS: "the declared recipe departs from the paper's",
    Reason.DID_NOT_CONVERGE: "every declared seed counts, and a finished run is not trained again",
}


def leaderboard_cells(row: LeaderboardRow) -> dict[str, str]:
    """Return one row of the leaderboard as text."""
    spread = "" if row.top1_std is None else f" ± {row.top1_std:.2f}"
    seeds = f"{row.seeds}" + (f" (+{row.diverged} diverged)" if row.diverged else "")
    return {
        "network": row.variant + (f" [{row.departs}]" if row.departs else ""),
        "top-1 error %": percent(row.top1) + spread if row.seeds else "did not converge",
        "top-5 error %": percent(row.top5),
        "training error %": percent(row.train),
        "paper top-1 %": paper_number(row),
        "difference": difference_text(row),
        "verdict": row.verdict,
        "seeds": seeds,
        "images": f"{row.images:,}" if row.seeds else "",
        "test-set noise": "" if row.noise is None else f"± {percent(row.noise)}",
        "parameters": "" if row.parameters is None else short_number(row.parameters),
        "multiply-adds": "" if row.multiply_adds is None else short_number(row.multiply_adds),
        "time per run": "" if row.seconds is None else duration_text(row.seconds),
        "scale": row.scale,
        "data": f"{row.data}, {row.protocol}" if row.protocol else row.data,
    }


def leaderboard_table(rows: Sequence[LeaderboardRow]) -> list[dict[str, str]]:
    """Return rows of the leaderboard as text, without the columns that are empty in all of them."""
    return without_empty_columns([leaderboard_cells(row) for row in rows])


def without_empty_columns(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return rows of cells without the columns that are empty in all of them."""
    kept = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def difference_text(row: LeaderboardRow) -> str:
    """Return our error minus the paper's with its interval: "+0.31 (+0.10 to +0.52)"."""
    if row.difference is None:
        return ""
    if row.difference_interval is None:
        return f"{row.difference:+.2f}"
    low, high = row.difference_interval
    return f"{row.difference:+.2f} ({low:+.2f} to {high:+.2f})"


def short_number(number: float) -> str:
    """Return a number with three digits and a letter: "270 k", "25.6 M", "4.09 G"."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return (
                f"{number / factor:.3g} {letter}"
                if number < 999.5 * factor
                else f"{number / factor:,.0f} {letter}"
            )
    return f"{number:.0f}"


def duration_text(seconds: float) -> str:
    """Return a duration in the largest unit that fits: "42 s", "3.5 min", "7.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def published_cells(row: "PublishedResult") -> dict[str, str]:
    """Return one row of published weights as text."""
    return {
        "network": row.network,
        "weights": row.weights,
        "top-1 error %": percent(row.top1),
        "top-5 error %": percent(row.top5),
        "stated top-1 %": percent(row.stated_top1),
        "images": f"{row.images:,}",
        "noise": f"± {percent(finite_test_set_noise(row.top1, images=row.images))}",
        "assumed": row.assumed,
    }


def published_remarks(row: "PublishedResult") -> list[str]:
    """Return sentences about a row of published weights: differences, assumptions, what was not evaluated."""
    remarks = []
    if row.differs:
        remarks.append(f"{row.network} differs from its paper for these weights: {row.differs}.")
    if row.assumed:
        details = {"normalisation": row.normalisation, "class order": row.class_order}
        parts = [f"{name} ({details[name]})" if details.get(name) else name for name in row.assumed.split(", ")]
        remarks.append(
            f"Assumed for {row.weights}, since neither their publisher nor an option says it: {', '.join(parts)};"
            " set it with --normalise, --protocol, --classes."
        )
    if row.given:
        remarks.append(f"{row.network} was evaluated with {row.given}.")
    return remarks + ([f"{row.note}."] if row.note else [])


def percent(value: float | None) -> str:
    """Return a number with two decimals, "" for None."""
    return "" if value is None else f"{value:.2f}"


def paper_number(row: LeaderboardRow) -> str:
    """Return the published error, with its data set if that is not ours."""
    if row.paper is None:
        return ""
    return f"{row.paper:g}" if row.data == row.paper_data else f"{row.paper:g} ({row.paper_data})"


def verdict_cells(entry: LedgerEntry) -> dict[str, str]:
    """Return one entry of the ledger as text."""
    claim, verdict = entry.claim, entry.verdict
    rule = getattr(claim, "rule", "")
    source = claim.source if claim.by == "paper" else f"lecture; {claim.source}"
    if claim.confidence != "checked":
        source += f" ({'read from a figure' if claim.confidence == 'figure' else 'from memory'})"
    return {
        "claim": claim.id,
        "says": claim.says,
        "source": source,
        "verdict": verdict_text(verdict),
        "evidence": verdict.sentence + (f" Counting rule: {rule.rstrip('.')}." if rule else ""),
        "runs": runs_text(entry),
    }


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict with its mark: "✔ confirmed", "– cannot judge: not-run"."""
    reason = f": {verdict.reason}" if verdict.reason else ""
    return f"{MARKS[verdict.outcome]} {verdict.outcome}{reason}"


def runs_text(entry: LedgerEntry) -> str:
    """Return the scale, data, number and commits of the runs behind a verdict; "" without runs."""
    if entry.evidence is None:
        return ""
    evidence = entry.evidence
    commits = ", ".join(short_commit(commit) for commit in evidence.commits)
    members = f" (made from {len(evidence.members)} others)" if evidence.members else ""
    runs = plural(len(evidence.runs) - len(evidence.members), "run")
    return f"{evidence.scale} scale on {evidence.data}, {runs}{members}, commit {commits}"


def short_commit(commit: str) -> str:
    """Return the first 8 digits of a commit and its "-dirty"."""
    digits, dash, dirty = commit.partition("-")
    return digits[:8] + dash + dirty


def outcome_counts(entries: Sequence[LedgerEntry]) -> str:
    """Return the number of each outcome in a fixed order, with the reasons of those that cannot be judged.

    For example "3 trend supported, 31 cannot judge (30 not-run, 1 underpowered)". Give entries of one category.
    """
    outcomes = Counter(entry.verdict.outcome for entry in entries)
    reasons = Counter(entry.verdict.reason for entry in entries)
    parts = [f"{outcomes[kind]:,} {outcome_noun(kind, outcomes[kind])}" for kind in Outcome if outcomes[kind]]
    if outcomes[Outcome.CANNOT_JUDGE]:
        parts[-1] += f" ({', '.join(f'{reasons[kind]:,} {kind}' for kind in Reason if reasons[kind])})"
    return ", ".join(parts) or "no claims"


def outcome_noun(outcome: Outcome, number: int) -> str:
    """Return an outcome's word after a number: "errata" for several errata."""
    return "errata" if outcome is Outcome.ERRATUM and number > 1 else str(outcome)


def by_category(entries: Sequence[LedgerEntry]) -> dict[Category, list[LedgerEntry]]:
    """Return the entries of each category that has any."""
    found = {kind: [entry for entry in entries if category(entry.claim) == kind] for kind in MEANINGS}
    return {kind: rows for kind, rows in found.items() if rows}


def claim_counts(claims: Sequence[Claim]) -> str:
    """Return the number of claims of each category: "10 arithmetic, 5 recipe, 25 trained"."""
    found = Counter(map(category, claims))
    return ", ".join(f"{found[kind]:,} {kind}" for kind in MEANINGS if found[kind]) or "none"


def headlines(entries: Sequence[LedgerEntry]) -> list[str]:
    """Return a line for each category of claims: its outcomes and what they mean. Categories are not added up."""
    return [
        f"{kind.capitalize()}: {outcome_counts(rows)} - {MEANINGS[kind]}"
        for kind, rows in by_category(entries).items()
    ]


def next_step_text(entry: LedgerEntry) -> str:
    """Return the command that would judge a trained claim, or why none would; "" if it is judged or open."""
    reason = entry.verdict.reason
    if entry.command:
        return f"To judge it: {entry.command}"
    if reason not in NO_COMMAND or isinstance(entry.claim, OpenClaim) or category(entry.claim) != "trained":
        return ""
    return f"No command would judge it: {NO_COMMAND[reason]}."


def markdown(rows: Sequence[dict[str, str]], columns: Sequence[str] = ()) -> str:
    """Return a Markdown table; `columns` selects and orders the columns."""

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    if not rows:
        return ""
    names = list(columns or rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)
