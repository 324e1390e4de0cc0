"""Table of the declared claims by paper and kind, which `make test` prints at its end."""

from collections import Counter

from pipeline.declare.load import load_all
from pipeline.judge.category import category

KINDS = ("arithmetic", "recipe", "metric", "bound", "ordering", "gain", "ratio", "open")


def claim_counts() -> dict[str, Counter[str]]:
    """Return paper -> kind -> number of claims; an exact claim is of kind arithmetic or recipe."""
    counts: dict[str, Counter[str]] = {}
    for experiment in load_all():
        kinds = (category(claim) if claim.kind == "exact" else claim.kind for claim in experiment.claims)
        counts.setdefault(experiment.folder, Counter()).update(kinds)
    return counts


def claims_table() -> str:
    """Return the counts as text, one line per paper, with totals."""
    counts = claim_counts()
    rows = [(paper, *(found[kind] for kind in KINDS), found.total()) for paper, found in sorted(counts.items())]
    rows.append(("all", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))))
    lines = [f"{'claims':18}" + "".join(f"{kind:>11}" for kind in (*KINDS, "all"))]
    return "\n".join(
        lines + [f"{row[0]:18}" + "".join(f"{number or '':>11}" for number in row[1:]) for row in rows]
    )
