"""Tables that the commands print."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from pipeline.cli.terminal import out, say
from pipeline.common.words import plural

if TYPE_CHECKING:
    from pipeline.judge.ledger import LedgerEntry
    from pipeline.report.leaderboard import LeaderboardRow
    from pipeline.track.published_results import PublishedResult


def print_table(rows: list[dict[str, str]], left: tuple[str, ...]) -> None:
    """Cells as a table; numbers to the right, `left` columns to the left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in rows[0]:
        table.add_column(head, justify="left" if head in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    out.print(table)


def print_leaderboard(rows: "list[LeaderboardRow]") -> None:
    """One table for each experiment, scale and data set."""
    from pipeline.report.text import leaderboard_cells

    groups: dict[tuple[str, str, str, str], list[LeaderboardRow]] = {}
    for row in rows:
        groups.setdefault((row.experiment, row.scale, row.data, row.protocol), []).append(row)
    for (experiment, scale, data, protocol), group in groups.items():
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("network", overflow="fold")
        heads = {  # column -> its short name, since eight have to fit in 80 characters
            "top-1 error %": "top-1 error %",
            "top-5 error %": "top-5 %",
            "training error %": "training %",
            "paper top-1 %": "paper %",
            "seeds": "seeds",
            "test-set noise": "noise",
        }
        for head in heads.values():
            table.add_column(head, justify="right")
        for row in group:
            cells = leaderboard_cells(row)
            cells["paper top-1 %"] = "" if row.paper is None else f"{row.paper:g}"
            table.add_row(escape(cells["network"]), *(cells[name] for name in heads))
        images = ", ".join(sorted({f"{row.images:,}" for row in group if row.images}))
        shown = f", {protocol}" if protocol else ""
        out.print(f"[bold]{experiment} at {scale} scale on {data}[/] ({images or 'no'} test images{shown})")
        out.print(table)
        other = {row.paper_data for row in group if row.paper is not None} - {data}
        if other:
            say(f"The paper's errors are for {', '.join(sorted(other))}.")
        out.print()


def print_published(rows: "list[PublishedResult]") -> None:
    """Weights of others, one table for each data set; what they are is said with every table."""
    from pipeline.report.text import published_cells

    for data, protocol, manifest in dict.fromkeys((row.data, row.protocol, row.manifest) for row in rows):
        group = [row for row in rows if (row.data, row.protocol, row.manifest) == (data, protocol, manifest)]
        out.print(f"[bold]published weights[/] on {escape(data)}: imported, not trained here, and no reproduction")
        print_table([published_cells(row) for row in group], left=("network", "weights"))
        say(f"Protocol: {protocol}.")
        if group[0].ignored:
            say(f"Files of {data} that are no pictures and were left out: {group[0].ignored:,}.")
        for row in group:
            if row.differs:
                say(f"{row.network} departs from its paper for these weights: {row.differs}.")
        out.print()


def print_outcome(entries: "list[LedgerEntry]", experiment: str) -> None:
    """After training: the verdicts that rest on runs, and a line about the others."""
    from pipeline.judge.verdict import Reason
    from pipeline.report.text import outcome_counts

    trained = [entry for entry in entries if entry.evidence]
    shown = [entry for entry in trained if entry.verdict.reason is not Reason.NOT_RUN]
    if shown:
        out.print("[bold]Verdicts that rest on these runs[/]")
    for entry in shown:
        print_entry(entry)
    if more := len(trained) - len(shown):
        say(f"{plural(more, 'more claim')} about these networks can be judged at paper scale only.")
    say(f"All {plural(len(entries), 'claim')}: {outcome_counts(entries)}.")
    out.print(f"The whole ledger: [bold]repro verify {experiment}[/]\n")


def print_ledger(entries: "list[LedgerEntry]", asked: str | None) -> None:
    """Every verdict; in a line: claims that wait for runs and, if no experiment was asked for, what arithmetic
    confirms.
    """
    from pipeline.judge.verdict import Outcome, Reason
    from pipeline.report.text import outcome_counts, verdict_text

    for experiment in dict.fromkeys(entry.experiment for entry in entries):
        mine = [entry for entry in entries if entry.experiment == experiment]
        waiting = [entry for entry in mine if entry.verdict.reason is Reason.NOT_RUN]
        holds = [e for e in mine if e.evidence is None and e.verdict.outcome is Outcome.REPRODUCED and not asked]
        out.print(f"[bold]{experiment}[/]")
        if holds:
            out.print(f"[green]{verdict_text(holds[0].verdict)}[/] by arithmetic ({plural(len(holds), 'claim')})")
            say(f"Each of them: repro verify {experiment}", indent=4)
        for entry in mine:
            if entry not in waiting and entry not in holds:
                print_entry(entry)
        if waiting:
            out.print(f"[dim]{verdict_text(waiting[0].verdict)}[/] ({plural(len(waiting), 'claim')})")
            say(", ".join(entry.claim.id for entry in waiting), indent=4)
            say(f"They need finished runs: repro run {asked or experiment} --scale paper", indent=4)
        out.print()
    say(f"All {plural(len(entries), 'claim')}: {outcome_counts(entries)}.")


def print_entry(entry: "LedgerEntry") -> None:
    """One claim: verdict and name, statement and source, what was compared, the runs behind it."""
    from pipeline.report.text import verdict_cells, verdict_text

    cells = verdict_cells(entry)
    out.print(
        f"[{verdict_colour(entry)}]{verdict_text(entry.verdict)}[/]  {escape(cells['claim'])}", soft_wrap=True
    )
    say(f"{cells['says']} ({cells['source']})", indent=4)
    say(cells["evidence"], indent=4)
    if cells["runs"]:
        say(f"Runs: {cells['runs']}", indent=4)


def verdict_colour(entry: "LedgerEntry") -> str:
    """Green for what holds, red for what does not, yellow for the source's errors."""
    from pipeline.report.page import CLASSES
    from pipeline.report.text import MARKS

    return {"good": "green", "bad": "red", "note": "yellow", "open": "dim"}[CLASSES[MARKS[entry.verdict.outcome]]]
