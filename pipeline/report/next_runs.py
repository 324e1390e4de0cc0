"""What the next hours of a GPU would buy: experiments with missing runs, the cheapest per claim first."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.common.words import plural
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Reason
from pipeline.plan.expand import Run, plan_runs
from pipeline.report.describe import training_multiply_adds
from pipeline.report.paper_page import hours_text
from pipeline.report.text import markdown
from pipeline.track.record import Record

ASSUMED_RATE = 1e13  # multiply-adds of training per second: 20 TFLOP/s
SHOWN_HOURS = 24.0  # of a GPU, in the table


@dataclass(frozen=True)
class NextRuns:
    """The missing runs of an experiment at paper scale."""

    experiment: str
    claims: int  # that wait for these runs
    runs: int
    data: tuple[str, ...]
    work: Mapping[str, float]  # declaration hash of a run -> multiply-adds of its training, forward and backward

    @property
    def multiply_adds(self) -> float:
        """Multiply-adds of all missing runs."""
        return sum(self.work.values())

    @property
    def hours(self) -> float:
        """Hours of a GPU at ASSUMED_RATE."""
        return hours_of(self.work)


def next_runs(
    experiments: Iterable[Experiment], entries: Iterable[LedgerEntry], records: Iterable[Record]
) -> list[NextRuns]:
    """Return the experiments with claims that wait for runs at paper scale, the cheapest per claim first.

    `entries` are the claims of all experiments. Left out are experiments without missing training runs, and those
    whose cost is not known because the size of their images is not.
    """
    waiting = Counter(
        entry.experiment for entry in entries if entry.verdict.reason is Reason.NOT_RUN and entry.command
    )
    finished = {record.declaration for record in records}
    found = []
    for experiment in experiments:
        if PAPER_SCALE not in experiment.scales or not waiting[experiment.name]:
            continue
        planned = [run for run in plan_runs(experiment, scale=PAPER_SCALE) if isinstance(run, Run)]
        runs = [run for run in planned if run.declaration not in finished]
        known = {run.declaration: work for run in runs if (work := training_multiply_adds(run)) is not None}
        if runs and len(known) == len(runs):
            data = tuple(dict.fromkeys(run.recipe.data.name for run in runs))
            found.append(NextRuns(experiment.name, waiting[experiment.name], len(runs), data, known))
    return sorted(found, key=lambda one: (one.multiply_adds / one.claims, one.experiment))


def next_runs_block(found: Sequence[NextRuns]) -> str:
    """Return the table for README.md: what fits into SHOWN_HOURS, with running totals, and what all would take."""
    if not found:
        return "No claim waits for runs at paper scale."
    in_an_hour = [one for one, hours in with_total_hours(found) if hours <= 1]
    total = [hours for _, hours in with_total_hours(found)][-1]
    first = f"the first hour gives {sum(one.claims for one in in_an_hour)} claims their runs" if in_an_hour else ""
    parts = [
        "What the next hours of one GPU would buy: experiments at paper scale, those first that cost least for"
        f" each claim that waits for them{'; ' + first if first else ''}."
        " `repro launch EXPERIMENT… --scale paper` runs them on a cluster, and `--max-gpu-hours` limits them.",
        markdown([cells(one, hours) for one, hours in with_total_hours(found) if hours <= SHOWN_HOURS]),
        f"Hours are the multiply-adds of training at {ASSUMED_RATE:.0e} per second (20 TFLOP/s). This is an"
        " assumption: no GPU was measured, and a small network reaches it only if several runs share the GPU"
        " (`--gpus-per-run`). Evaluation and derived runs, such as ensembles and retraining after pruning, are not"
        f" counted; runs that two experiments share are counted once. The {plural(len(found), 'experiment')} with"
        f" claims that no run has judged would take {hours_text(total)} hours.",
    ]
    return "\n\n".join(part for part in parts if part)


def with_total_hours(found: Sequence[NextRuns]) -> Iterator[tuple[NextRuns, float]]:
    """Yield each entry with the hours of all entries up to it. A run that two of them share counts once."""
    seen: dict[str, float] = {}
    for one in found:
        seen |= one.work
        yield one, hours_of(seen)


def hours_of(work: Mapping[str, float]) -> float:
    """Return the hours of a GPU that these multiply-adds take at ASSUMED_RATE."""
    return sum(work.values()) / ASSUMED_RATE / 3600


def cells(one: NextRuns, total_hours: float) -> dict[str, str]:
    """Return one row of the table."""
    return {
        "command": f"`repro run {one.experiment} --scale paper`",
        "claims": str(one.claims),
        "data": ", ".join(one.data),
        "runs": str(one.runs),
        "multiply-adds": f"{one.multiply_adds:.1e}",
        "GPU hours": hours_text(one.hours),
        "in total": hours_text(total_hours),
    }
