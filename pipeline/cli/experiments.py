"""`repro list`, `show` and `verify`: what is declared, and the verdicts on its claims."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli import options, verdicts
from pipeline.cli.selection import collect_with_warnings, load_with_claim
from pipeline.cli.tables import TableFormat, print_rows, with_table_formats
from pipeline.cli.terminal import out, say
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.declare.claims import Claim
    from pipeline.declare.experiment import Experiment
    from pipeline.judge.ledger import LedgerEntry

LISTED = ("name", "paper", "year", "arxiv", "section", "question", "scales", "data", "variants", "claims")

CLAIM_COLUMNS = (
    *("experiment", "claim", "category", "kind", "of", "metric", "op", "claimed", "margin"),
    *("says", "source", "by", "confidence"),
)

VERDICT_COLUMNS = (*CLAIM_COLUMNS, "outcome", "reason", "sentence", "scale", "data", "runs", "command")


@with_table_formats
def list_experiments(*, shape: TableFormat) -> None:
    """List all experiments by paper, with their questions, and the scales and data that they need."""
    from pipeline.declare.load import load_all

    experiments = load_all()
    if not shape.is_text:
        print_rows([listed_experiment(experiment) for experiment in experiments], shape, LISTED)
        return
    print_experiments(experiments)
    out.print("Details: [bold]repro show EXPERIMENT[/]")


def listed_experiment(experiment: "Experiment") -> dict[str, Any]:
    """Return one experiment of `repro list` as plain data, with the columns LISTED."""
    paper = experiment.paper
    return {
        "name": experiment.name,
        "paper": paper.title,
        "year": paper.year,
        "arxiv": paper.arxiv,
        "section": paper.section,
        "question": experiment.question,
        "scales": list(experiment.scales),
        "data": {scale: experiment.data_at(scale) for scale in experiment.scales},
        "variants": [*experiment.variants, *experiment.derived],
        "claims": len(experiment.claims),
    }


def print_experiments(experiments: "list[Experiment]") -> None:
    """Print the experiments of each paper: name, scales with their data, question."""
    width = max(len(experiment.name) for experiment in experiments)
    for folder in dict.fromkeys(experiment.folder for experiment in experiments):
        own = [experiment for experiment in experiments if experiment.folder == folder]
        paper = own[0].paper
        out.print(f"[bold]{escape(paper.title)}[/] ({paper.year})", soft_wrap=not out.is_terminal)
        for experiment in own:
            say(f"{experiment.name:<{width}}  {scales_text(experiment)}", indent=2)
            say(experiment.question, indent=6)
        out.print()


def scales_text(experiment: "Experiment") -> str:
    """Return the scales of an experiment with their data: "paper on mnist; laptop, smoke on digits"."""
    if not experiment.scales:
        return "arithmetic, no training"
    if experiment.measures:
        return f"{', '.join(experiment.scales)}: timing, no training"
    by_data: dict[str, list[str]] = {}
    for scale in experiment.scales:
        by_data.setdefault(", ".join(experiment.data_at(scale)), []).append(scale)
    return "; ".join(f"{', '.join(names)} on {data}" for data, names in by_data.items())


@with_table_formats
def show(
    experiment: options.Name,
    scale: Annotated[str | None, typer.Option(help="Only this scale, with the settings of its runs.")] = None,
    variants: Annotated[
        list[str] | None, typer.Option("--variant", help="Only this variant or derived run (repeatable).")
    ] = None,
    *,
    shape: TableFormat,
) -> None:
    """Show one experiment: recipe, variants, scales, claims, and the work of each scale.

    --csv and --markdown print its claims.
    """
    from pipeline.declare.load import load_experiment
    from pipeline.report.describe import ShownPart, print_experiment

    declared = load_experiment(experiment)
    part = ShownPart(declared, scale, tuple(variants or ()))
    if not shape.is_text:
        rows = [claim_row(declared.name, claim) for claim in part.claims]
        print_rows(rows, shape, CLAIM_COLUMNS, value=part.to_dict())
        return
    print_experiment(part, collect_with_warnings().records, out, say)


def claim_row(experiment: str, claim: "Claim") -> dict[str, Any]:
    """Return a claim as plain data, with the columns CLAIM_COLUMNS; None for those that its kind does not have."""
    from pipeline.judge.category import category
    from pipeline.judge.counting import variants_of

    raw = claim.model_dump(mode="json")
    own = {"experiment": experiment, "claim": claim.id, "category": category(claim)}
    return own | {name: raw.get(name) for name in CLAIM_COLUMNS[3:]} | {"of": list(variants_of(claim))}


@with_table_formats
def verify(
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPERIMENT", help="A name from `repro list`, or EXPERIMENT/CLAIM for one claim. Default: all."
        ),
    ] = None,
    suite: options.Suite = None,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="Compare the claims with everything that the papers print. Exit 1 if one is missing.",
        ),
    ] = False,
    *,
    shape: TableFormat,
) -> None:
    """Judge every claim from the finished runs and print the verdicts.

    Exit 1 if a claim is not confirmed or not reproduced, or if a recipe departs.
    """
    from pipeline.declare.load import load_all
    from pipeline.declare.suites import check_suite

    if suite:
        check_suite(suite)
        if experiment:
            raise UserError("give an experiment or --suite, not both")
    if coverage:
        verify_coverage(experiment, shape)
        return
    from pipeline.judge.collect import judge_experiments
    from pipeline.judge.verdict import CONTRADICTIONS

    one, name = load_with_claim(experiment) if experiment else (None, None)
    entries = judge_experiments([one] if one else load_all(), collect_with_warnings().records)
    if shape.is_text:
        verdicts.print_ledger(entries, name)
    else:
        rows = map(verdict_row, entries)
        print_rows([*rows], shape, VERDICT_COLUMNS, value=[entry.to_dict() for entry in entries])
    raise typer.Exit(any(entry.verdict.outcome in CONTRADICTIONS for entry in entries))


def verdict_row(entry: "LedgerEntry") -> dict[str, Any]:
    """Return a verdict as plain data, with the columns VERDICT_COLUMNS."""
    evidence = entry.evidence
    return claim_row(entry.experiment, entry.claim) | {
        "outcome": str(entry.verdict.outcome),
        "reason": str(entry.verdict.reason) if entry.verdict.reason else None,
        "sentence": entry.verdict.sentence,
        "scale": evidence.scale if evidence else None,
        "data": evidence.data if evidence else None,
        "runs": len(evidence.runs) if evidence else None,
        "command": entry.command or None,
    }


def verify_coverage(experiment: str | None, shape: TableFormat) -> None:
    """Print which printed rows have a claim, of all papers or of an experiment's. Exit 1 if one is missing."""
    from pipeline.declare.load import load_all, load_all_printed, load_experiment
    from pipeline.judge.coverage import COVERAGE_COLUMNS, printed_rows

    printed = load_all_printed()
    if experiment:
        folder = load_experiment(experiment).folder
        if folder not in printed:
            raise UserError(f"experiments/{folder}/printed.yaml not found")
        printed = {folder: printed[folder]}
    rows = printed_rows(load_all(), printed)
    if shape.is_text:
        verdicts.print_coverage(rows)
    else:
        print_rows([row.to_dict() for row in rows], shape, COVERAGE_COLUMNS)
    raise typer.Exit(any(row.is_missing for row in rows))
