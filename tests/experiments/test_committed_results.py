"""RESULTS.md and README.md's leaderboard say what the committed records say: nothing is typed by hand."""

import json

import pytest

from pipeline.plan import ROOT
from pipeline.record import Record
from pipeline.report.results import END, START, readme_block, results_text, with_block
from pipeline.reproduce import all_experiments


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [
        Record.from_dict(row) for row in json.loads((ROOT / "results/records.json").read_text(encoding="utf-8"))
    ]


def test_results_are_written_from_the_records(records):
    experiments = all_experiments()
    figures = {
        (e.name, scale): f"results/{path.name}"
        for e in experiments
        for scale in e.scales
        if (path := ROOT / "results" / f"{e.name.replace('/', '-')}-{scale}.png").is_file()
    }
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == results_text(experiments, records, figures)


def test_the_readmes_leaderboard_is_the_records(records):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == with_block(text, readme_block(all_experiments(), records))


def test_a_number_changed_by_hand_is_noticed(records):
    block = readme_block(all_experiments(), records)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index(START)
    digit = next(i for i in range(start, text.index(END)) if text[i : i + 2] == "0.")
    forged = f"{text[:digit]}7{text[digit + 1 :]}"
    assert forged != with_block(forged, block)


def test_every_record_is_of_clean_code(records):
    assert records
    assert not [record.identity for record in records if record.commit.endswith("-dirty")]
