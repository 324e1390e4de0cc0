"""Tree of the variants and derived runs that wait for others: runs that start from them, and derived runs."""

from collections.abc import Sequence

from pipeline.plan.expand import DerivedRun, Run


def order_lines(runs: Sequence[Run | DerivedRun]) -> list[str]:
    """Return the tree as text, one line per variant or derived run; empty if no run waits for another.

    A derived run made from several variants is a branch of each of them.
    """
    children: dict[str, dict[str, None]] = {}  # variant -> the variants and derived runs that wait for it
    derived: set[str] = set()
    several = len({one.experiment for run in runs for one in (run, *run.members)}) > 1
    for run in runs:
        name = node_name(run, several)
        if isinstance(run, DerivedRun):
            derived.add(name)
        for member in run.members:
            children.setdefault(node_name(member, several), {})[name] = None
    waiting = {name for names in children.values() for name in names}
    lines: list[str] = []

    def add(name: str, before: str, branch: str) -> None:
        lines.append(f"{before}{branch}{name}{' (derived)' if name in derived else ''}")
        inside = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        below = list(children.get(name, ()))
        for number, child in enumerate(below, 1):
            add(child, inside, "└─ " if number == len(below) else "├─ ")

    for name in children:
        if name not in waiting:
            add(name, "", "")
    return lines


def node_name(run: Run | DerivedRun, several: bool) -> str:
    """Return the name of a run's variant; with its experiment where there are several."""
    return f"{run.experiment} {run.variant}" if several else run.variant
