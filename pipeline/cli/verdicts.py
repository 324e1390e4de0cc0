"""Verdicts as text: the ledger of experiments, the outcome of a run, and the coverage of the papers."""

from typing import TYPE_CHECKING

from rich.markup import escape

from pipeline.cli.tables import print_table
from pipeline.cli.terminal import out, say
from pipeline.common.words import plural

if TYPE_CHECKING:
    from pipeline.judge.coverage import PrintedRow
    from pipeline.judge.ledger import LedgerEntry


def print_outcome(entries: "list[LedgerEntry]", experiment: str) -> None:
    """Print the verdicts that rest on runs, and counts of all others."""
    from pipeline.judge.verdict import Reason

    trained = [entry for entry in entries if entry.evidence]
    shown = [entry for entry in trained if entry.verdict.reason is not Reason.NOT_RUN]
    if shown:
        out.print("[bold]Verdicts from these runs[/]")
    for entry in shown:
        print_entry(entry)
    if more := len(trained) - len(shown):
        say(f"{plural(more, 'more claim')} about these networks cannot be judged at this scale.")
    print_headlines(entries)
    out.print(f"All verdicts: [bold]repro verify {experiment}[/]\n")


def print_headlines(entries: "list[LedgerEntry]") -> None:
    """Print one line for each category of claims."""
    from pipeline.report.text import headlines

    for line in headlines(entries):
        say(line)


def print_ledger(entries: "list[LedgerEntry]", name: str | None) -> None:
    """Print every verdict. Claims that need runs are listed by the command that runs them.

    If `name` is None, all experiments are printed: claims that are confirmed or followed share a line each, and so
    do claims that need runs. Else it is the argument that named the experiment.
    """
    from pipeline.judge.verdict import Outcome, Reason

    for experiment in dict.fromkeys(entry.experiment for entry in entries):
        own = [entry for entry in entries if entry.experiment == experiment]
        waiting = [entry for entry in own if entry.verdict.reason is Reason.NOT_RUN]
        short = (Outcome.CONFIRMED, Outcome.FOLLOWED) if name is None else ()
        out.print(f"[bold]{experiment}[/]")
        print_counted([entry for entry in own if entry.verdict.outcome in short], experiment)
        for entry in own:
            if entry not in waiting and entry.verdict.outcome not in short:
                print_entry(entry)
        print_waiting(waiting, experiment, name)
        out.print()
    print_headlines(entries)


def print_counted(entries: "list[LedgerEntry]", experiment: str) -> None:
    """Print the number of claims of each outcome, and the command that lists them."""
    from pipeline.report.text import verdict_text

    for verdict in dict.fromkeys(verdict_text(entry.verdict) for entry in entries):
        number = sum(verdict_text(entry.verdict) == verdict for entry in entries)
        out.print(f"[green]{verdict}[/] ({plural(number, 'claim')})")
    if entries:
        say(f"Details: repro verify {experiment}", indent=4)


def print_waiting(entries: "list[LedgerEntry]", experiment: str, name: str | None) -> None:
    """Print the claims that need runs, by the command that runs them; only their names if `name` is None."""
    from pipeline.report.text import next_step_text, verdict_text

    if not entries:
        return
    out.print(f"[dim]{verdict_text(entries[0].verdict)}[/] ({plural(len(entries), 'claim')})")
    if name is None:
        say(", ".join(entry.claim.id for entry in entries), indent=4)
        say(f"The commands that would judge them: repro verify {experiment}", indent=4)
        return
    by_step: dict[str, list[str]] = {}
    for entry in entries:
        by_step.setdefault(entry.command or next_step_text(entry), []).append(entry.claim.id)
    for step, claims in by_step.items():
        say(step.replace(f"repro run {experiment} ", f"repro run {name} "), indent=4)
        say(f"judges {', '.join(claims)}" if step.startswith("repro") else ", ".join(claims), indent=8)


def print_entry(entry: "LedgerEntry") -> None:
    """Print one claim: verdict and name, statement and source, the comparison, the runs, the next step."""
    from pipeline.report.text import next_step_text, verdict_cells, verdict_text

    cells = verdict_cells(entry)
    out.print(
        f"[{verdict_colour(entry)}]{verdict_text(entry.verdict)}[/]  {escape(cells['claim'])}", soft_wrap=True
    )
    say(f"{cells['says']} ({cells['source']})", indent=4)
    say(cells["evidence"], indent=4)
    if cells["runs"]:
        say(f"Runs: {cells['runs']}", indent=4)
    if step := next_step_text(entry):
        say(step, indent=4)


def verdict_colour(entry: "LedgerEntry") -> str:
    """Return green for claims that hold, red for those that do not, yellow for errata, dim for all others."""
    from pipeline.report.text import MARKS, TONES

    return {"good": "green", "bad": "red", "note": "yellow", "open": "dim"}[TONES[MARKS[entry.verdict.outcome]]]


def print_coverage(rows: "list[PrintedRow]") -> None:
    """Print how many printed rows have a claim, by paper and kind; why some have none; and the missing ones."""
    papers = list(dict.fromkeys(row.paper for row in rows))
    print_table([coverage_cells(rows, paper) for paper in [*papers, "all"]], left=("paper",))
    say("results: the paper's own. relations: comparisons in words. lecture: its statements about the paper.")
    for why in dict.fromkeys(row.why for row in rows if row.why):
        names = [f"{row.paper}: {row.name}" for row in rows if row.why == why]
        out.print(f"\n[bold]not claimed[/] ({len(names)})", end=" ")
        say(why)
        say("; ".join(counted(names)), indent=4)
    if missing_rows := [row for row in rows if row.is_missing]:
        out.print(f"\n[bold red]missing[/] ({len(missing_rows)})")
        for row in missing_rows:
            value = "" if row.value is None else f" = {row.value}"
            say(f"{row.paper} {row.kind}: {row.name}{value} ({row.says})", indent=4)
        say("Declare a claim, or list the row under not_claimed with the reason.", indent=4)


def coverage_cells(rows: "list[PrintedRow]", paper: str) -> dict[str, str]:
    """Return one row of the table of coverage; `paper` is a folder of experiments, or "all"."""
    from pipeline.judge.coverage import KINDS

    own = [row for row in rows if paper in (row.paper, "all")]
    cells = {"paper": paper}
    for kind in KINDS:
        of_kind = [row for row in own if row.kind == kind]
        cells[kind] = f"{sum(bool(row.claims) for row in of_kind)} of {len(of_kind)}" if of_kind else ""
    counts = {"not claimed": sum(bool(row.why) for row in own), "missing": sum(row.is_missing for row in own)}
    return cells | {name: str(number) if number else "" for name, number in counts.items()}


def counted(names: list[str]) -> list[str]:
    """Return each name once, with its number where it stands several times: "Table 1: vgg-16 (2 measures)"."""
    return [
        f"{name} ({names.count(name)} measures)" if names.count(name) > 1 else name
        for name in dict.fromkeys(names)
    ]
