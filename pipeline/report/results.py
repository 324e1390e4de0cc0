"""RESULTS.md: what was measured, written from the tracked runs. Nothing in it is typed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.declare.claims import ExactClaim
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.collect import judge_experiments
from pipeline.judge.counting import counted_records
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Outcome, Reason
from pipeline.report.describe import derived_text
from pipeline.report.figures import error_curves
from pipeline.report.leaderboard import build_leaderboard
from pipeline.report.publish import curves_of
from pipeline.report.text import leaderboard_cells, markdown, outcome_counts, short_commit, verdict_cells
from pipeline.track.record import Record

PREAMBLE = """# Results

Written by `repro results` from the tracked runs in `results/records.json`; nothing here is typed by hand.
± is the standard deviation over seeds; test-set noise is the standard error that the finite number of test images
alone gives. Errors are top-1 and top-5, in percent, of the last model.
"""
README_START, README_END = "<!-- leaderboard -->", "<!-- /leaderboard -->"  # README.md's own part is between them
EXACT_PREAMBLE = (
    Outcome.REPRODUCED,
    Outcome.ERRATUM,
    Outcome.NOT_REPRODUCED,
    Outcome.CANNOT_JUDGE,
)  # by arithmetic
LEFT_OUT = ("smoke", "stand-in")  # scales that show that everything runs, and nothing else


def write_results(
    experiments: Sequence[Experiment], records: Sequence[Record], tracker: Any, file: Path
) -> list[Path]:
    """Write `file`, `results/records.json` and a figure for each experiment and scale beside it."""
    kept = [
        record
        for experiment in experiments
        for scale in experiment.scales
        if scale not in LEFT_OUT
        for rows in counted_records(experiment, scale, records).values()
        for record in rows
    ]
    if not kept:
        raise UserError("there are no finished runs to report; start some with: repro run EXPERIMENT")
    folder = file.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    written = [file, folder / "records.json"]
    figures: dict[tuple[str, str], str] = {}
    for experiment, scale in sections(experiments, kept):
        here = [r for r in kept if (r.experiment, r.scale) == (experiment.name, scale)]
        curves = curves_of(here, tracker)
        if curves:
            path = folder / f"{experiment.name.replace('/', '-')}-{scale}.png"
            written.append(error_curves(experiment, scale, curves, path))
            figures[experiment.name, scale] = f"results/{path.name}"
    write_atomically(
        written[1], json.dumps([record.to_dict() for record in kept], indent=1, sort_keys=True) + "\n"
    )
    write_atomically(file, results_text(experiments, kept, figures))
    readme = file.parent / "README.md"
    if readme.is_file() and README_START in readme.read_text(encoding="utf-8"):
        write_atomically(readme, with_block(readme.read_text(encoding="utf-8"), readme_block(experiments, kept)))
        written.append(readme)
    return written


def sections(experiments: Sequence[Experiment], records: Sequence[Record]) -> list[tuple[Experiment, str]]:
    """The experiments and scales that have runs, in order."""
    have = {(record.experiment, record.scale) for record in records}
    return [(e, scale) for e in experiments for scale in e.scales if (e.name, scale) in have]


def results_text(
    experiments: Sequence[Experiment], records: Sequence[Record], figures: dict[tuple[str, str], str]
) -> str:
    """The whole file, from records alone."""
    parts = [PREAMBLE]
    for experiment, scale in sections(experiments, records):
        here = [r for r in records if (r.experiment, r.scale) == (experiment.name, scale)]
        parts.append(section(experiment, scale, here, figures.get((experiment.name, scale))))
    parts.append(exact_section(experiments))
    return "\n".join(parts)


def section(experiment: Experiment, scale: str, records: Sequence[Record], figure: str | None) -> str:
    """One experiment at one scale: how it was run, leaderboard, figure, verdicts."""
    rows = [leaderboard_cells(row) for row in build_leaderboard([experiment], records) if row.scale == scale]
    entries = judged_by_these(experiment, records, scale)
    protocols = {p for r in records for p in experiment.protocols(r.variant, scale, r.changes)[:1]}
    shown = f", {', '.join(sorted(protocols))}" if protocols else ""
    runs = [record for record in records if record.variant in experiment.variants]
    steps = [record for record in records if record.variant in experiment.derived]
    images = max(record.metrics.get("test/images", 0) for record in records)
    lines = [
        f"## {experiment.name} at {scale} scale\n",
        f"{experiment.question} {experiment.scales[scale].why}\n",
        f"- Paper: {experiment.paper.authors} {experiment.paper.year}, section {experiment.paper.section}",
        f"- Data: {records[0].data}, manifest {distinct_values(records, 'manifest', 16)}; "
        f"{images:,.0f} test images counted in each run{shown}",
        *recipes(experiment, scale, records),
        f"- Seeds: {seeds_line(runs, steps)}",
        f"- Hardware: {distinct_values(records, 'hardware')}; "
        f"torch {', '.join(dict.fromkeys(r.libraries['torch'] for r in records))}, "
        f"{'/'.join(dict.fromkeys(str(r.threads) for r in records))} thread a run",
        f"- Commit: {commit_line(runs, steps)}",
    ]
    if scale == PAPER_SCALE:
        lines += [f"- Departure: {item.what} {item.why}" for item in experiment.departures]
    lines += ["", markdown(rows), ""]
    if figure:
        lines += [f"![training and test error over the updates]({figure})", ""]
    lines += [f"Verdicts that rest on these runs: {outcome_counts(entries)}.", "", verdict_table(entries), ""]
    return "\n".join(lines)


def seeds_line(runs: Sequence[Record], steps: Sequence[Record]) -> str:
    """The seeds of the runs, how many these are, how long they took; and how many steps there are beside them."""
    said = [f"{len(steps)} steps"] if steps else []
    if not runs:
        return said[0]
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    each_took = f"{len(runs)} runs, {fmean(run.seconds for run in runs):,.0f} s each in the mean"
    return f"{seeds}; {' and '.join([each_took, *said])}"


def commit_line(runs: Sequence[Record], steps: Sequence[Record]) -> str:
    """Commits, locks and code hashes of the runs, and then those of the steps."""

    def told(records: Sequence[Record]) -> str:
        commits = ", ".join(dict.fromkeys(short_commit(record.commit) for record in records))
        return f"{commits}; lock {distinct_values(records, 'lock')}; code {distinct_values(records, 'code')}"

    parts = [told(runs)] if runs else []
    return "; ".join([*parts, f"of the steps {told(steps)}"] if steps else parts)


def recipes(experiment: Experiment, scale: str, records: Sequence[Record]) -> list[str]:
    """A line for each recipe in use; where there are several, with the variants it is for."""
    variants: dict[str, list[str]] = {}
    for variant in dict.fromkeys(record.variant for record in records if record.variant in experiment.variants):
        train = experiment.recipe(variant, scale).train
        computed = distinct_values([record for record in records if record.variant == variant], "precision")
        said = f"{train.steps:,} updates of {train.batch_size}, rate {train.lr:g}, {train.optimizer.name}"
        variants.setdefault(f"{said}, computed in {computed}", []).append(variant)
    steps = [name for name in experiment.derived if name in {record.variant for record in records}]
    done = [f"- Step {name}: {derived_text(experiment.derived_spec(name, scale))}" for name in steps]
    if len(variants) == 1:
        return [f"- Recipe: {next(iter(variants))}", *done]
    return [*(f"- Recipe of {', '.join(names)}: {said}" for said, names in variants.items()), *done]


def judged_by_these(experiment: Experiment, records: Sequence[Record], scale: str) -> list[LedgerEntry]:
    """The claims that runs at `scale` can speak about."""
    entries = judge_experiments([experiment], records, [scale], {})
    return [entry for entry in entries if entry.evidence and entry.verdict.reason is not Reason.NOT_RUN]


def readme_block(experiments: Sequence[Experiment], records: Sequence[Record]) -> str:
    """The leaderboard in short, for README.md: every experiment and scale that has runs, and its verdicts."""
    parts = []
    for experiment, scale in sections(experiments, records):
        here = [r for r in records if (r.experiment, r.scale) == (experiment.name, scale)]
        groups: dict[tuple[str, str], list[dict[str, str]]] = {}  # of what can be ranked: data and protocol
        for row in build_leaderboard([experiment], here):
            if row.scale == scale:
                groups.setdefault((row.data, row.protocol), []).append(leaderboard_cells(row))
        columns = ("network", "top-1 error %", "training error %", "paper top-1 %", "seeds", "images")
        for (data, protocol), rows in groups.items():
            shown = f", {protocol}" if protocol else ""
            parts += [f"**{experiment.name}** at {scale} scale on {data}{shown}", markdown(rows, columns)]
        verdicts = [verdict_cells(entry) for entry in judged_by_these(experiment, here, scale)]
        parts.append(markdown(verdicts, ("verdict", "says", "source")))
    return "\n\n".join(part for part in parts if part)


def with_block(text: str, block: str) -> str:
    """`text` with `block` between its markers."""
    before, _, rest = text.partition(README_START)
    _, _, after = rest.partition(README_END)
    return f"{before}{README_START}\n\n{block}\n\n{README_END}{after}"


def exact_section(experiments: Sequence[Experiment]) -> str:
    """The claims that arithmetic alone judges: how many of each experiment, and in full those that do not hold."""
    entries = [
        entry for entry in judge_experiments(experiments, [], unfinished={}) if isinstance(entry.claim, ExactClaim)
    ]
    rows = []
    for name in dict.fromkeys(entry.experiment for entry in entries):
        mine = [entry.verdict.outcome for entry in entries if entry.experiment == name]
        rows.append(
            {"experiment": name, "claims": str(len(mine))} | {o: str(mine.count(o) or "") for o in EXACT_PREAMBLE}
        )
    wrong = [entry for entry in entries if entry.verdict.outcome is not Outcome.REPRODUCED]
    return (
        f"## Judged by arithmetic\n\n{outcome_counts(entries)}. Each with its arithmetic: `repro verify EXPERIMENT`.\n\n"
        f"{markdown(rows)}\n\nThose that do not hold:\n\n{verdict_table(wrong, 'experiment')}\n"
    )


def verdict_table(entries: Sequence[LedgerEntry], *more: str) -> str:
    """Verdicts as Markdown."""
    rows = [{"experiment": entry.experiment} | verdict_cells(entry) for entry in entries]
    return markdown(rows, (*more, "verdict", "claim", "says", "source", "evidence"))


def distinct_values(records: Sequence[Record], field: str, digits: int | None = None) -> str:
    """The different values of a field."""
    return ", ".join(dict.fromkeys(str(getattr(record, field))[:digits] for record in records))
