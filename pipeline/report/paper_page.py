"""A page for each paper, as Markdown: claims and verdicts, what a rerun costs, choices and departures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from pipeline.common.words import plural
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.coverage import KINDS, PrintedRow
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Outcome
from pipeline.plan.expand import DerivedRun, Run, plan_runs, run_declarations
from pipeline.report.describe import training_multiply_adds
from pipeline.report.deviations import deviation_groups
from pipeline.report.text import by_category, headlines, markdown, verdict_cells
from pipeline.track.record import FINISHED, Record

Rates = Mapping[str, float]  # hardware -> multiply-adds of training per second

HOURS = (
    "Multiply-adds: of all trainings, forward and backward. Hours: of one run after the other, at the rate of the"
    " runs recorded so far, on the hardware of these runs; a rough guide for other networks."
)


def paper_page(
    experiments: Sequence[Experiment], entries: Sequence[LedgerEntry], rates: Rates, printed: Sequence[PrintedRow]
) -> str:
    """Return the page of one paper from its experiments, their ledger, measured rates and its printed rows."""
    paper = experiments[0].paper
    folder = experiments[0].folder
    arxiv = f", [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
    parts = [
        f"# {paper.title}",
        f"{paper.authors} {paper.year}{arxiv}. Declared in `experiments/{folder}/`.",
        "## Verdicts",
        "\n".join(f"- {line}" for line in headlines(entries)),
        coverage_text(printed),
        *(part for experiment in experiments for part in experiment_parts(experiment, entries, rates)),
    ]
    errata = [entry for entry in entries if entry.verdict.outcome is Outcome.ERRATUM]
    if errata:
        parts += [
            "## Errata",
            markdown([verdict_cells(entry) for entry in errata], ("says", "source", "evidence")),
        ]
    if reasons := not_claimed_lines(printed):
        parts += ["## Printed, but not claimed", "\n".join(reasons)]
    return "\n\n".join(filter(None, parts)) + "\n"


def coverage_text(rows: Sequence[PrintedRow]) -> str:
    """Return how many of the paper's printed rows have a claim, in one sentence; "" if none are listed."""
    names = {"results": "results", "relations": "comparisons", "lecture": "statements of the lecture about it"}
    counts = []
    for kind in KINDS:
        own = [row for row in rows if row.kind == kind]
        if own:
            counts.append(f"{sum(bool(row.claims) for row in own)} of {len(own)} {names[kind]}")
    return f"Claims cover {', '.join(counts)}." if counts else ""


def not_claimed_lines(rows: Sequence[PrintedRow]) -> list[str]:
    """Return one list item for each reason why printed rows have no claim."""
    reasons = dict.fromkeys(row.why for row in rows if row.why)
    return [f"- {why}: {'; '.join(row.name for row in rows if row.why == why)}" for why in reasons]


def experiment_parts(experiment: Experiment, entries: Sequence[LedgerEntry], rates: Rates) -> Iterator[str]:
    """Return heading, question, scales with their cost, claims, choices and departures of one experiment."""
    yield f"## {experiment.name}"
    yield f"{experiment.question} `repro show {experiment.name}` prints the recipe."
    if experiment.scales:
        yield markdown([scale_cells(experiment, scale, rates) for scale in experiment.scales])
        yield HOURS
    else:
        yield f"Judged by arithmetic, without training: `repro verify {experiment.name}`."
    own = [entry for entry in entries if entry.experiment == experiment.name]
    if trained := by_category(own).get("trained"):
        yield markdown([verdict_cells(entry) for entry in trained], ("says", "source", "verdict"))
    for title, groups in deviation_groups(experiment).items():
        yield f"**{title.capitalize()}**"
        for effect, texts in groups:
            yield effect + "\n\n" + "\n".join(f"- {text}" for text in texts)


def scale_cells(experiment: Experiment, scale: str, rates: Rates) -> dict[str, str]:
    """Return one scale as a row: its data, runs, work, and the hours that it takes at each measured rate."""
    planned = plan_runs(experiment, scale=scale)
    runs = [run for run in planned if isinstance(run, Run)]
    derived = sum(isinstance(run, DerivedRun) for run in planned)
    of_network = {(run.experiment, run.variant): run for run in runs}  # its seeds take the same
    each = {network: training_multiply_adds(run) for network, run in of_network.items()}
    work = [each[run.experiment, run.variant] for run in runs]
    known = [one for one in work if one is not None]
    total = sum(known) if len(known) == len(work) else None
    cells = {
        "scale": f"`{scale}`",
        "data": ", ".join(experiment.data_at(scale)),
        "runs": plural(len(runs), "run") + (f", {derived} derived" if derived else ""),
        "training images": f"{sum(run.recipe.train.steps * run.recipe.train.batch_size for run in runs):,}",
        "multiply-adds": "" if total is None else f"{total:.1e}",
    }
    hours = {f"hours on {hardware}": total and total / rate / 3600 for hardware, rate in rates.items()}
    return cells | {head: hours_text(value) if value else "" for head, value in hours.items()}


def hours_text(hours: float) -> str:
    """Return a number of hours with the digits that an estimate has: "< 0.1", "2.5", "1,200"."""
    return "< 0.1" if hours < 0.1 else f"{hours:.1f}" if hours < 10 else f"{hours:,.0f}"


def measured_rates(experiments: Iterable[Experiment], records: Sequence[Record]) -> dict[str, float]:
    """Return hardware and threads -> multiply-adds of training per second, the median over finished runs.

    Small networks and images use hardware less well than large ones, so hours by this rate are a rough guide.
    """
    recorded = {record.experiment for record in records}
    runs: dict[str, Run] = {}
    for experiment in (one for one in experiments if one.name in recorded):
        for scale in sorted(experiment.scales, key=lambda name: name != PAPER_SCALE):
            planned = [run for run in plan_runs(experiment, scale=scale) if isinstance(run, Run)]
            runs |= dict(zip(run_declarations(planned), planned, strict=True))
    found: dict[str, list[float]] = {}
    works: dict[tuple[str, str, str], float | None] = {}  # of the runs of a variant at a scale, which do the same
    for record in records:
        run = runs.get(record.declaration)
        if not run or record.status != FINISHED or record.seconds <= 0:
            continue
        key = run.experiment, run.scale, run.variant
        if key not in works:
            works[key] = training_multiply_adds(run)
        if work := works[key]:
            device = f"{record.hardware} ({plural(record.threads, 'thread')})"
            found.setdefault(device, []).append(work / record.seconds)
    return {hardware: median(rates) for hardware, rates in found.items()}
