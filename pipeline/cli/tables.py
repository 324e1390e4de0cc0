"""Tables and verdicts that the commands print."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from pipeline.cli.terminal import out, say
from pipeline.common.words import plural

if TYPE_CHECKING:
    from pipeline.declare.experiment import Experiment
    from pipeline.judge.coverage import PrintedRow
    from pipeline.judge.ledger import LedgerEntry
    from pipeline.report.leaderboard import Error, LeaderboardRow
    from pipeline.track.published_results import PublishedResult


def print_table(rows: list[dict[str, str]], left: tuple[str, ...]) -> None:
    """Print rows of cells as a table. The columns named in `left` are aligned left, all others right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in rows[0]:
        table.add_column(head, justify="left" if head in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    out.print(table)


def print_experiments(experiments: "list[Experiment]") -> None:
    """Print the experiments of each paper: name, scales with their data, question."""
    width = max(len(experiment.name) for experiment in experiments)
    for folder in dict.fromkeys(experiment.folder for experiment in experiments):
        own = [experiment for experiment in experiments if experiment.folder == folder]
        paper = own[0].paper
        out.print(f"[bold]{escape(paper.title)}[/] ({paper.year})", soft_wrap=not out.is_terminal)
        for experiment in own:
            by_data: dict[str, list[str]] = {}
            for scale in experiment.scales:
                by_data.setdefault(", ".join(experiment.data_at(scale)), []).append(scale)
            scales = "; ".join(f"{', '.join(names)} on {data}" for data, names in by_data.items())
            say(f"{experiment.name:<{width}}  {scales or 'arithmetic, no training'}", indent=2)
            say(experiment.question, indent=6)
        out.print()


HEADS = {  # column of the leaderboard -> short name, so that the table fits in 80 characters
    "network": "network",
    "experiment": "experiment",
    "top-1 error %": "top-1 error %",
    "top-5 error %": "top-5 %",
    "training error %": "training %",
    "paper top-1 %": "paper %",
    "difference": "difference",
    "verdict": "verdict",
    "seeds": "seeds",
    "test-set noise": "noise",
    "parameters": "parameters",
    "multiply-adds": "multiply-adds",
    "time per run": "time",
}

ONLY_WIDE = ("parameters", "multiply-adds", "time per run")  # columns that are left out on a narrow terminal

WIDE = 120  # columns


def print_leaderboard(rows: "list[LeaderboardRow]", by: "Error" = "top1") -> None:
    """Print one table per data set, test protocol and scale, ranked by top-1 or top-5 error."""
    from pipeline.report.leaderboard import ranked

    for group in ranked(rows, by):
        print_ranked(group, by)


def print_ranked(rows: "list[LeaderboardRow]", by: "Error") -> None:
    """Print one table of the leaderboard. The rows have one data set, test protocol and scale."""
    from pipeline.report.text import leaderboard_cells, without_empty_columns

    data, protocol, scale = rows[0].group
    experiments = {row.experiment for row in rows}
    cells = []
    for row in rows:
        own = leaderboard_cells(row) | {"experiment": row.experiment if len(experiments) > 1 else ""}
        paper = row.paper_top5 if by == "top5" else row.paper
        own["paper top-1 %"] = "" if paper is None else f"{paper:g}"
        cells.append({column: own[column] for column in HEADS})
    cells = without_empty_columns(cells)
    crowded = ("training error %", "test-set noise") if {"difference", "experiment"} & set(cells[0]) else ()
    left_out = () if out.width >= WIDE else (*ONLY_WIDE, *crowded)
    images = ", ".join(sorted({f"{row.images:,}" for row in rows if row.images}))
    shown = f", {protocol}" if protocol else ""
    where = f"at {scale} scale on {data}" if len(experiments) == 1 else f"{data} at {scale} scale"
    title = f"{rows[0].experiment} {where}" if len(experiments) == 1 else where
    out.print(f"[bold]{title}[/] ({images or 'no'} test images{shown})", soft_wrap=not out.is_terminal)
    print_table(
        [{HEADS[name]: text for name, text in one.items() if name not in left_out} for one in cells],
        left=("network", "experiment", "verdict"),
    )
    other = {row.paper_data for row in rows if row.paper is not None} - {data}
    if other:
        say(f"The paper's errors are on {', '.join(sorted(other))}.")
    out.print()


def print_published(rows: "list[PublishedResult]") -> None:
    """Print the results of published weights, one table per data set and protocol."""
    from pipeline.report.text import published_cells, published_remarks, without_empty_columns

    for data, protocol, manifest in dict.fromkeys((row.data, row.protocol, row.manifest) for row in rows):
        group = [row for row in rows if (row.data, row.protocol, row.manifest) == (data, protocol, manifest)]
        out.print(f"[bold]published weights[/] on {escape(data)}: imported, not trained here; not a reproduction")
        cells = without_empty_columns([published_cells(row) for row in group])
        print_table(cells, left=("network", "weights", "assumed"))
        say(f"Protocol: {protocol}.")
        if group[0].ignored:
            named = f": {group[0].skipped}" if group[0].skipped else ""
            say(f"Skipped {plural(group[0].ignored, 'file')} of {data} that are not images{named}.")
        for row in group:
            for line in published_remarks(row):
                say(line)
        out.print()


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
        say(f"{plural(more, 'more claim')} about these networks can only be judged at paper scale.")
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
    from pipeline.judge.coverage import KINDS

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("paper")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    table.add_column("not claimed", justify="right")
    table.add_column("missing", justify="right")
    papers = list(dict.fromkeys(row.paper for row in rows))
    for paper in [*papers, "all"]:
        own = [row for row in rows if paper in (row.paper, "all")]
        cells = []
        for kind in KINDS:
            of_kind = [row for row in own if row.kind == kind]
            cells.append(f"{sum(bool(row.claims) for row in of_kind)} of {len(of_kind)}" if of_kind else "")
        reasons, missing = sum(bool(row.why) for row in own), sum(row.is_missing for row in own)
        table.add_row(paper, *cells, *(str(number) if number else "" for number in (reasons, missing)))
    out.print(table)
    say("results: the paper's own. relations: comparisons in words. lecture: its statements about the paper.")
    for why in dict.fromkeys(row.why for row in rows if row.why):
        names = [f"{row.paper}: {row.name}" for row in rows if row.why == why]
        out.print(f"\n[bold]not claimed[/] ({len(names)})", end=" ")
        say(why)
        say("; ".join(names), indent=4)
    if missing_rows := [row for row in rows if row.is_missing]:
        out.print(f"\n[bold red]missing[/] ({len(missing_rows)})")
        for row in missing_rows:
            value = "" if row.value is None else f" = {row.value}"
            say(f"{row.paper} {row.kind}: {row.name}{value} ({row.says})", indent=4)
        say("Declare a claim, or list the row under not_claimed with the reason.", indent=4)
