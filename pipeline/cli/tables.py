"""Tables and verdicts that the commands print."""

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
    """Print rows of cells as a table. The columns named in `left` are aligned left, all others right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in rows[0]:
        table.add_column(head, justify="left" if head in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    out.print(table)


def print_leaderboard(rows: "list[LeaderboardRow]") -> None:
    """Print one table per experiment, scale and data set."""
    from pipeline.report.text import leaderboard_cells

    groups: dict[tuple[str, str, str, str], list[LeaderboardRow]] = {}
    for row in rows:
        groups.setdefault((row.experiment, row.scale, row.data, row.protocol), []).append(row)
    for (experiment, scale, data, protocol), group in groups.items():
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("network", overflow="fold")
        heads = {  # column -> short name, so that the table fits in 80 characters
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
            say(f"The paper's errors are on {', '.join(sorted(other))}.")
        out.print()


def print_published(rows: "list[PublishedResult]") -> None:
    """Print the results of published weights, one table per data set and protocol."""
    from pipeline.report.text import published_cells

    for data, protocol, manifest in dict.fromkeys((row.data, row.protocol, row.manifest) for row in rows):
        group = [row for row in rows if (row.data, row.protocol, row.manifest) == (data, protocol, manifest)]
        out.print(f"[bold]published weights[/] on {escape(data)}: imported, not trained here; not a reproduction")
        print_table([published_cells(row) for row in group], left=("network", "weights"))
        say(f"Protocol: {protocol}.")
        if group[0].ignored:
            say(f"Skipped {plural(group[0].ignored, 'file')} of {data} that are not images.")
        for row in group:
            if row.differs:
                say(f"{row.network} differs from its paper for these weights: {row.differs}.")
        out.print()


def print_outcome(entries: "list[LedgerEntry]", experiment: str) -> None:
    """Print the verdicts that rest on runs, and counts of all others."""
    from pipeline.judge.verdict import Reason
    from pipeline.report.text import outcome_counts

    trained = [entry for entry in entries if entry.evidence]
    shown = [entry for entry in trained if entry.verdict.reason is not Reason.NOT_RUN]
    if shown:
        out.print("[bold]Verdicts from these runs[/]")
    for entry in shown:
        print_entry(entry)
    if more := len(trained) - len(shown):
        say(f"{plural(more, 'more claim')} about these networks can only be judged at paper scale.")
    say(f"All {plural(len(entries), 'claim')}: {outcome_counts(entries)}.")
    out.print(f"All verdicts: [bold]repro verify {experiment}[/]\n")


def print_ledger(entries: "list[LedgerEntry]", name: str | None) -> None:
    """Print every verdict. Claims that need runs share a line.

    So do claims that arithmetic confirms, if `name` is None: all experiments are printed. Else it is the argument
    that named the experiment.
    """
    from pipeline.judge.verdict import Outcome, Reason
    from pipeline.report.text import outcome_counts, verdict_text

    for experiment in dict.fromkeys(entry.experiment for entry in entries):
        own = [entry for entry in entries if entry.experiment == experiment]
        waiting = [entry for entry in own if entry.verdict.reason is Reason.NOT_RUN]
        exact = [e for e in own if e.evidence is None and e.verdict.outcome is Outcome.REPRODUCED and not name]
        out.print(f"[bold]{experiment}[/]")
        if exact:
            out.print(f"[green]{verdict_text(exact[0].verdict)}[/] by arithmetic ({plural(len(exact), 'claim')})")
            say(f"Details: repro verify {experiment}", indent=4)
        for entry in own:
            if entry not in waiting and entry not in exact:
                print_entry(entry)
        if waiting:
            out.print(f"[dim]{verdict_text(waiting[0].verdict)}[/] ({plural(len(waiting), 'claim')})")
            say(", ".join(entry.claim.id for entry in waiting), indent=4)
            say(f"They need finished runs: repro run {name or experiment} --scale paper", indent=4)
        out.print()
    say(f"All {plural(len(entries), 'claim')}: {outcome_counts(entries)}.")


def print_entry(entry: "LedgerEntry") -> None:
    """Print one claim: verdict and name, statement and source, the comparison, the runs."""
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
    """Return green for reproduced claims, red for not reproduced ones, yellow for errata, dim for all others."""
    from pipeline.report.page import CLASSES
    from pipeline.report.text import MARKS

    return {"good": "green", "bad": "red", "note": "yellow", "open": "dim"}[CLASSES[MARKS[entry.verdict.outcome]]]
