"""RESULTS.md, the leaderboard in README.md, their figures and records, all written from the tracked runs.

Data flow: records -> `collect_results` (one `ScaleResults` per experiment and scale) -> text -> files.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.common.words import plural
from pipeline.declare.claims import ExactClaim
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE, TRIAL_SCALES
from pipeline.judge.category import Category
from pipeline.judge.collect import judge_experiments
from pipeline.judge.counting import Records, counted_records, unchanged_records
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Outcome
from pipeline.report.derived_text import derived_text
from pipeline.report.deviations import deviation_lines
from pipeline.report.leaderboard import LeaderboardRow, build_leaderboard, with_verdicts
from pipeline.report.next_runs import next_runs, next_runs_block
from pipeline.report.paper_figures.figure_data import scale_runs
from pipeline.report.recorded_curves import CURVES_FILE, RecordedCurves, read_recorded
from pipeline.report.result_figures import Figures, draw_figures, figure_titles
from pipeline.report.run_files import RunFiles, unread_sentences
from pipeline.report.text import (
    OUTCOME_ORDER,
    by_category,
    headlines,
    leaderboard_cells,
    leaderboard_table,
    markdown,
    outcome_counts,
    short_commit,
    verdict_cells,
)
from pipeline.track.record import Record

PREAMBLE = """# Results

Written by `repro results` from the tracked runs in `results/records.json`; do not edit by hand.
± is the standard deviation over seeds. Test-set noise is the standard error due to the finite number of test
images. Errors are top-1 and top-5, in percent, of the last model, or of the one that the recipe selects on
held-out training images.
"""
README_START, README_END = "<!-- leaderboard -->", "<!-- /leaderboard -->"  # around the leaderboard in README.md
NEXT_START, NEXT_END = "<!-- next runs -->", "<!-- /next runs -->"  # around the table of what to run next
AGREES = {"arithmetic": Outcome.CONFIRMED, "recipe": Outcome.FOLLOWED}  # outcome of a source that is right
IN_README = (  # experiments and scales that README.md shows in full, besides those at paper scale
    ("resnet/cifar10_depth", "short"),  # all of CIFAR-10, as JPEG files
    ("resnet/cifar10_depth", "laptop"),  # `make demo`
)


@dataclass(frozen=True)
class ScaleResults:
    """Finished runs of one experiment at one scale, with their leaderboard rows and verdicts."""

    experiment: Experiment
    scale: str
    records: list[Record]
    rows: list[LeaderboardRow]
    entries: list[LedgerEntry]  # the claims that these runs can judge

    @property
    def key(self) -> tuple[str, str]:
        """Names of experiment and scale."""
        return self.experiment.name, self.scale


def write_results(
    experiments: Sequence[Experiment],
    records: Sequence[Record],
    tracker: Any,
    file: Path,
    *,
    warn: Callable[[str], None] = lambda sentence: None,
) -> list[Path]:
    """Write `file`, `results/records.json`, `results/curves.json`, the figures and README.md's table.

    Records that stand in `results/records.json`, as from another machine, are kept where they still count, with
    their curves. Returns the files written. Raises UserError if there are no finished runs. `warn` is called for
    each run whose curves are missing from the figures.
    """
    folder = file.parent / "results"
    own = {record.identity for record in records}
    earlier = [record for record in earlier_records(folder / "records.json") if record.identity not in own]
    kept = reported_records(experiments, [*records, *earlier])
    if not kept:
        raise UserError("no finished runs to report; start some with: repro run EXPERIMENT")
    results = collect_results(experiments, kept)
    entries = judge_experiments(experiments, kept, unfinished={})
    folder.mkdir(parents=True, exist_ok=True)
    files = RunFiles(tracker)
    elsewhere = {record.identity for record in earlier}
    curves = RecordedCurves(files.curve, read_recorded(folder / CURVES_FILE), elsewhere)
    runs = [scale_runs(result.experiment, result.scale, result.records) for result in results]
    written, unchanged = draw_figures(runs, curves.curve, folder, elsewhere=elsewhere, warn=warn)
    for sentence in unread_sentences(kept, files.unread):
        warn(f"Missing from the figures: {sentence}")
    relative = {key: f"{folder.name}/{path.name}" for key, path in (written | unchanged).items()}
    texts = {
        file: render_results(results, relative, entries),
        folder / "records.json": json.dumps([record.to_dict() for record in kept], indent=1, sort_keys=True)
        + "\n",
    }
    if found := curves.text({record.identity for record in kept}):
        texts[folder / CURVES_FILE] = found
    readme = file.parent / "README.md"
    updated = {}
    if readme.is_file() and README_START in (text := readme.read_text(encoding="utf-8")):
        text = with_block(text, render_readme_block(results, entries))
        if NEXT_START in text:
            missing = next_runs(experiments, entries, kept)
            text = with_block(text, next_runs_block(missing), NEXT_START, NEXT_END)
        updated[readme] = text
    for path, text in (texts | updated).items():
        write_atomically(path, text)
    return [*texts, *written.values(), *updated]


def earlier_records(path: Path) -> list[Record]:
    """Return the records in the file `path`, none if it does not exist. Raises UserError if it cannot be read."""
    if not path.is_file():
        return []
    try:
        return [Record.from_dict(raw) for raw in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} holds no records ({error}); restore it from Git, or delete it") from None


def reported_records(experiments: Sequence[Experiment], records: Sequence[Record]) -> list[Record]:
    """Return the records that count, without those of the scales in TRIAL_SCALES."""
    index = unchanged_records(records)
    return [
        record
        for experiment in experiments
        for scale in experiment.scales
        if scale not in TRIAL_SCALES
        for rows in counted_records(experiment, scale, index).values()
        for record in rows
    ]


def collect_results(experiments: Sequence[Experiment], records: Sequence[Record]) -> list[ScaleResults]:
    """Rank and judge the runs of every experiment and scale that has records, in order."""
    index = unchanged_records(records)
    by_scale: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_scale.setdefault((record.experiment, record.scale), []).append(record)
    found = []
    for experiment in experiments:
        for scale in experiment.scales:
            own = by_scale.get((experiment.name, scale))
            if own:
                entries = entries_of_runs(experiment, index, scale)
                rows = [row for row in build_leaderboard([experiment], own) if row.scale == scale]
                found.append(ScaleResults(experiment, scale, own, with_verdicts(rows, entries), entries))
    return found


def entries_of_runs(experiment: Experiment, records: Records, scale: str) -> list[LedgerEntry]:
    """Return the ledger's entries that runs at `scale` can judge."""
    entries = judge_experiments([experiment], records, [scale], {})
    return [entry for entry in entries if entry.is_judged_from_runs]


def results_text(experiments: Sequence[Experiment], records: Sequence[Record], figures: Figures) -> str:
    """Return the text of RESULTS.md for these records."""
    entries = judge_experiments(experiments, records, unfinished={})
    return render_results(collect_results(experiments, records), figures, entries)


def readme_block(experiments: Sequence[Experiment], records: Sequence[Record]) -> str:
    """Return the generated part of README.md for these records."""
    entries = judge_experiments(experiments, records, unfinished={})
    return render_readme_block(collect_results(experiments, records), entries)


def render_results(results: Sequence[ScaleResults], figures: Figures, entries: Sequence[LedgerEntry]) -> str:
    """Return RESULTS.md; `entries` are all claims of all experiments."""
    sections = [section(result, figures) for result in results]
    own = {result.experiment.name for result in results}
    if others := [entry for entry in entries if entry.is_judged_from_runs and entry.experiment not in own]:
        sections.append(reference_section(others))
    return "\n".join([PREAMBLE, headline_list(entries) + "\n", *sections, exact_section(entries)])


def headline_list(entries: Sequence[LedgerEntry]) -> str:
    """Return the headlines of all claims as a Markdown list."""
    return "\n".join(f"- {line}" for line in headlines(entries))


def section(result: ScaleResults, figures: Figures) -> str:
    """Return one section: how the runs were made, leaderboard, figures, verdicts."""
    experiment, scale, records = result.experiment, result.scale, result.records
    protocols = {p for r in records for p in experiment.protocols(r.variant, scale, r.changes)[:1]}
    protocol = f", {', '.join(sorted(protocols))}" if protocols else ""
    runs = [record for record in records if record.variant in experiment.variants]
    derived = [record for record in records if record.variant in experiment.derived]
    images = max(record.metrics.get("test/images", 0) for record in records)
    lines = [
        f"## {experiment.name} at {scale} scale\n",
        f"{experiment.question} {experiment.scales[scale].why}\n",
        f"- Paper: {experiment.paper.authors} {experiment.paper.year}, section {experiment.paper.section}",
        f"- Data: {records[0].data}, manifest {distinct_values(records, 'manifest', 16)}; "
        f"{images:,.0f} test images in each run{protocol}",
        *recipe_lines(experiment, scale, records),
        f"- Seeds: {run_counts_text(runs, derived)}",
        f"- Hardware: {distinct_values(records, 'hardware')}; "
        f"torch {', '.join(dict.fromkeys(r.libraries['torch'] for r in records))}, "
        f"threads per run: {distinct_values(records, 'threads')}",
        f"- Commit: {commit_text(runs, derived)}",
    ]
    if scale == PAPER_SCALE:
        lines += [f"- {line}" for line in deviation_lines(experiment)]
    lines += ["", markdown(leaderboard_table(result.rows)), ""]
    for end, title in figure_titles(experiment).items():
        if figure := figures.get((experiment.name, scale, end)):
            lines += [f"![{title}]({figure})", ""]
    counts = outcome_counts(result.entries)
    lines += [f"Verdicts from these runs: {counts}.", "", verdict_table(result.entries), ""]
    return "\n".join(lines)


def reference_section(entries: Sequence[LedgerEntry]) -> str:
    """Return the section of claims that are judged from the runs of other experiments alone."""
    title = f"## Claims judged from the runs of other experiments\n\n{outcome_counts(entries)}.\n"
    return f"{title}\n{verdict_table(entries, 'experiment')}\n"


def run_counts_text(runs: Sequence[Record], derived: Sequence[Record]) -> str:
    """Return the seeds and the number of runs, their mean duration, and the number of derived runs."""
    derived_count = [plural(len(derived), "derived run")] if derived else []
    if not runs:
        return derived_count[0]
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    duration = f"{plural(len(runs), 'run')}, {fmean(run.seconds for run in runs):,.0f} s each on average"
    return "; ".join([seeds, duration, *derived_count])


def commit_text(runs: Sequence[Record], derived: Sequence[Record]) -> str:
    """Return commits, lock hashes and code hashes of the runs, then of the derived runs."""

    def hashes(records: Sequence[Record]) -> str:
        commits = ", ".join(dict.fromkeys(short_commit(record.commit) for record in records))
        return f"{commits}; lock {distinct_values(records, 'lock')}; code {distinct_values(records, 'code')}"

    parts = [hashes(runs)] if runs else []
    return "; ".join([*parts, f"derived runs: {hashes(derived)}"] if derived else parts)


def recipe_lines(experiment: Experiment, scale: str, records: Sequence[Record]) -> Iterator[str]:
    """Yield a line for each recipe, with its variants if there are several recipes, and for each derived run."""
    names = dict.fromkeys(record.variant for record in records)
    variants: dict[str, list[str]] = {}  # by recipe
    for variant in (name for name in names if name in experiment.variants):
        train = experiment.recipe(variant, scale).train
        precision = distinct_values([record for record in records if record.variant == variant], "precision")
        steps = f"{train.steps:,} steps of {plural(train.batch_size, 'image')}"
        recipe = f"{steps}, learning rate {train.lr:g}, {train.optimizer.name}, {precision}"
        variants.setdefault(recipe, []).append(variant)
    for recipe, group in variants.items():
        yield f"- Recipe: {recipe}" if len(variants) == 1 else f"- Recipe of {', '.join(group)}: {recipe}"
    for name in experiment.derived:
        if name in names:
            yield f"- Derived run {name}: {derived_text(experiment.derived_spec(name, scale))}"


def render_readme_block(results: Sequence[ScaleResults], entries: Sequence[LedgerEntry]) -> str:
    """Return the text for README.md: headlines of all claims, leaderboards of some runs, counts of all others.

    In full are shown the runs at paper scale and those of IN_README.
    """
    in_full = [result for result in results if result.scale == PAPER_SCALE or result.key in IN_README]
    small = [result for result in results if result not in in_full]
    parts = ["All claims:", headline_list(entries)]
    columns = ("network", "top-1 error %", "training error %", "paper top-1 %", "seeds", "images")
    for result in in_full:
        tables: dict[tuple[str, str], list[dict[str, str]]] = {}  # data and protocol: rows that can be ranked
        for row in result.rows:
            tables.setdefault((row.data, row.protocol), []).append(leaderboard_cells(row))
        for (data, protocol), rows in tables.items():
            where = f"{data}, {protocol}" if protocol else data
            parts.append(f"**{result.experiment.name}** at {result.scale} scale on {where}")
            parts.append(markdown(rows, columns))
        parts.append(markdown([verdict_cells(entry) for entry in result.entries], ("verdict", "says", "source")))
    if small:
        parts.append("**Other runs below paper scale**: what they show, by claim, is in [RESULTS.md](RESULTS.md).")
        parts.append(markdown([outcome_row(result) for result in small]))
    return "\n\n".join(part for part in parts if part)


def outcome_row(result: ScaleResults) -> dict[str, str]:
    """Return one line about the runs of an experiment at a scale: what it asks, runs, and claims by outcome."""
    outcomes = [entry.verdict.outcome for entry in result.entries]
    counted = (Outcome.TREND, Outcome.NO_TREND, Outcome.CANNOT_JUDGE)
    return {
        "experiment": f"{result.experiment.name} at {result.scale}",
        "question": result.experiment.question,
        "runs": str(len(result.records)),
    } | {outcome: str(outcomes.count(outcome) or "") for outcome in counted}


def with_block(text: str, block: str, start: str = README_START, end: str = README_END) -> str:
    """Return `text` with `block` between its markers."""
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n\n{block}\n\n{end}{after}"


def exact_section(entries: Sequence[LedgerEntry]) -> str:
    """Return the section of the claims judged without training: arithmetic, then recipe."""
    exact = by_category([entry for entry in entries if isinstance(entry.claim, ExactClaim)])
    parts = [category_section(kind, rows) for kind, rows in exact.items()]
    return "\n".join(["## Judged without training\n", "All of them: `repro verify EXPERIMENT`.\n", *parts])


def category_section(kind: Category, entries: Sequence[LedgerEntry]) -> str:
    """Return counts of a category by experiment, and every claim whose source is wrong or not matched."""
    by_experiment: dict[str, list[Outcome]] = {}
    for entry in entries:
        by_experiment.setdefault(entry.experiment, []).append(entry.verdict.outcome)
    agrees = AGREES[kind]
    others = [outcome for outcome in OUTCOME_ORDER[kind] if outcome is not agrees]
    rows = [
        {"experiment": name, "claims": str(len(outcomes))}
        | {outcome: str(outcomes.count(outcome) or "") for outcome in (agrees, *others)}
        for name, outcomes in by_experiment.items()
    ]
    wrong = [entry for entry in entries if entry.verdict.outcome is not agrees]
    title = f"### {kind.capitalize()}\n\n{outcome_counts(entries)}.\n\n{markdown(rows)}\n"
    if not wrong:
        return title
    return f"{title}\nAll but the {agrees}:\n\n{verdict_table(wrong, 'experiment')}\n"


def verdict_table(entries: Sequence[LedgerEntry], *more: str) -> str:
    """Return verdicts as a Markdown table, with the columns `more` first."""
    rows = [{"experiment": entry.experiment} | verdict_cells(entry) for entry in entries]
    return markdown(rows, (*more, "verdict", "claim", "says", "source", "evidence"))


def distinct_values(records: Sequence[Record], field: str, digits: int | None = None) -> str:
    """Return the different values of a field, each cut to `digits` characters."""
    return ", ".join(dict.fromkeys(str(getattr(record, field))[:digits] for record in records))
