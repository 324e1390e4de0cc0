"""The note of a paper in MLflow: what was tried, what the paper says, what we got. Pure."""

from collections.abc import Callable, Iterable, Sequence

from pipeline.common.words import plural
from pipeline.declare.experiment import Experiment
from pipeline.judge.ledger import LedgerEntry
from pipeline.report.leaderboard import LeaderboardRow
from pipeline.report.text import by_category, headlines, markdown, paper_number, percent
from pipeline.track.mlflow_notes import MAX_NOTE_LENGTH

Link = Callable[[str, str], str]  # experiment and scale -> address of its run, with tables and figures


def paper_note(
    experiments: Sequence[Experiment],
    rows: Iterable[LeaderboardRow],
    entries: Sequence[LedgerEntry],
    link: Link,
) -> str:
    """Return the note as Markdown, with fewer rows of each table where it would be longer than MLflow stores."""
    paper, own = experiments[0].paper, list(rows)
    arxiv = f", [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
    trained = by_category(entries).get("trained", [])
    most = max((sum(row.experiment == one.name for row in own) for one in experiments), default=0)
    note = ""
    for shown in range(most, -1, -1):
        parts = [
            f"# {paper.title}",
            f"{paper.authors} {paper.year}{arxiv}.",
            "\n".join(f"- {line}" for line in headlines(trained)),
            *(part for one in experiments for part in note_parts(one, own, link, shown)),
        ]
        note = "\n\n".join(filter(None, parts))
        if len(note) <= MAX_NOTE_LENGTH:
            return note
    return note[:MAX_NOTE_LENGTH]


def note_parts(experiment: Experiment, rows: Sequence[LeaderboardRow], link: Link, shown: int) -> list[str]:
    """Return heading, question, scales with links and the first `shown` rows; [] if nothing was run."""
    own = [row for row in rows if row.experiment == experiment.name]
    if not own:
        return []
    tried = []
    for scale in dict.fromkeys(row.scale for row in own):
        of_scale = [row for row in own if row.scale == scale]
        networks = plural(len({row.variant for row in of_scale}), "network")
        data = ", ".join(dict.fromkeys(row.data for row in of_scale))
        tried.append(f"[{scale} scale]({link(experiment.name, scale)}): {networks} on {data}")
    more = f"{plural(len(own) - shown, 'more row')} in the tables of these runs." if len(own) > shown else ""
    return [
        f"## {experiment.name}",
        experiment.question,
        f"Tried: {'; '.join(tried)}. The links have tables, verdicts and figures.",
        markdown([note_cells(row) for row in own[:shown]]),
        more,
    ]


def note_cells(row: LeaderboardRow) -> dict[str, str]:
    """Return one network: what the paper prints and what we got, top-1 errors in percent."""
    spread = f" ± {row.top1_std:.2f}" if row.top1_std is not None else ""
    return {
        "network": row.variant,
        "scale": row.scale,
        "paper %": paper_number(row),
        "ours %": f"{percent(row.top1)}{spread}",
        "seeds": str(row.seeds),
        "verdict": row.verdict,
    }
