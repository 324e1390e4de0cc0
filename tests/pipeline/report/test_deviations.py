"""Test the texts of choices and departures, and their effect on the verdicts."""

import pytest

from pipeline.declare.claims import Choice, Departure
from pipeline.report.deviations import deviation_groups, deviation_lines, deviation_text


def test_text_names_the_variants_concerned():
    assert deviation_text(Choice(what="No flips.", why="Silent.")) == "No flips. Silent."
    one = Departure(what="No flips.", why="Silent.", of=("a", "b"))
    assert deviation_text(one) == "No flips. Silent. Concerns only a, b."


@pytest.mark.parametrize(
    ("key", "title", "material"),
    [
        (
            "choices",
            "choices where the source is silent",
            "Material: inside the margin, reproduced with the choice listed; outside, cannot judge.",
        ),
        (
            "departures",
            "departures from the paper",
            "Material: inside the margin, reached; outside, cannot judge.",
        ),
    ],
)
def test_material_ones_come_first_with_their_effect(experiment, key, title, material):
    kind = Choice if key == "choices" else Departure
    items = tuple(kind(what=f"{name}.", why="x", material=name == "b") for name in "abc")
    changed = experiment.model_copy(update={"choices": (), "departures": (), key: items})
    none = "Not material: no effect on verdicts."
    assert deviation_groups(changed) == {title: [(material, ["b. x"]), (none, ["a. x", "c. x"])]}


def test_those_of_other_variants_are_left_out(experiment):
    items = tuple(
        Choice(what=f"{name}.", why="x", of=of) for name, of in (("a", ()), ("b", ("p",)), ("c", ("q", "p")))
    )
    changed = experiment.model_copy(update={"choices": items, "departures": ()})
    [[(_, texts)]] = deviation_groups(changed, ["q"]).values()
    assert texts == ["a. x", "c. x Concerns only q, p."]


def test_lines_are_marked(experiment):
    changed = experiment.model_copy(
        update={
            "choices": (Choice(what="A.", why="x", material=True), Choice(what="B.", why="x")),
            "departures": (Departure(what="C.", why="x", material=True), Departure(what="D.", why="x")),
        }
    )
    assert deviation_lines(changed) == [
        "Material choice: A. x",
        "Choice: B. x",
        "Material departure: C. x",
        "Departure: D. x",
    ]


def test_experiment_without_deviations_has_no_groups(experiment):
    bare = experiment.model_copy(update={"choices": (), "departures": ()})
    assert (deviation_groups(bare), deviation_lines(bare)) == ({}, [])
