"""Choices and departures of an experiment as text, with what they do to the verdicts."""

from collections.abc import Collection, Sequence

from pipeline.declare.claims import Deviation
from pipeline.declare.experiment import Experiment

CHOICE_EFFECT = "Material: inside the margin, reproduced with the choice listed; outside, cannot judge."
DEPARTURE_EFFECT = "Material: inside the margin, reached; outside, cannot judge."
NO_EFFECT = "Not material: no effect on verdicts."

Group = tuple[str, list[str]]  # effect on the verdicts, texts of the choices or departures


def deviation_groups(experiment: Experiment, names: Collection[str] = ()) -> dict[str, list[Group]]:
    """Return the choices and the departures under their titles, those of the same effect together.

    `names`: only those that concern one of these variants and derived runs.
    """

    def concerning(items: Sequence[Deviation]) -> list[Deviation]:
        return [item for item in items if not names or not item.of or {*item.of} & {*names}]

    found = {
        "choices where the source is silent": effect_groups(concerning(experiment.choices), CHOICE_EFFECT),
        "departures from the paper": effect_groups(concerning(experiment.departures), DEPARTURE_EFFECT),
    }
    return {title: groups for title, groups in found.items() if groups}


def effect_groups(deviations: Sequence[Deviation], effect: str) -> list[Group]:
    """Return the material ones with their effect, then all others."""
    parts = {
        effect: [deviation_text(item) for item in deviations if item.material],
        NO_EFFECT: [deviation_text(item) for item in deviations if not item.material],
    }
    return [(title, texts) for title, texts in parts.items() if texts]


def deviation_text(deviation: Deviation) -> str:
    """Return a choice or departure with its reason and, if it does not concern all variants, their names."""
    names = f" Concerns only {', '.join(deviation.of)}." if deviation.of else ""
    return f"{deviation.what} {deviation.why}{names}"


def deviation_lines(experiment: Experiment) -> list[str]:
    """Return one line for each choice and departure: "Material departure: ..."."""
    kinds = (("choice", experiment.choices), ("departure", experiment.departures))
    return [
        f"{f'Material {kind}' if item.material else kind.capitalize()}: {deviation_text(item)}"
        for kind, items in kinds
        for item in items
    ]
