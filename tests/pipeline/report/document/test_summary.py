"""Test the counts of the summary: categories apart, zeros shown, reasons with their meaning."""

from collections import Counter

from pipeline.judge.verdict import Outcome, Reason
from pipeline.report.document.summary import (
    REASON_MEANINGS,
    outcome_counts_of,
    paper_cells,
    reason_counts,
)
from pipeline.report.text import OUTCOME_ORDER
from tests.support.ledgers import DEEP, PLAIN, judge_by_id
from tests.support.reports import toy_report


def counts(kind, entries):
    return {one.text: one.number for one in outcome_counts_of(kind, list(entries)) if one.number}


def test_outcomes_are_counted_by_category(experiment, seed_records):
    records = [*seed_records(experiment, "plain-20", PLAIN), *seed_records(experiment, "plain-32", DEEP)]
    entries = judge_by_id(experiment, records).values()
    assert counts("trained", entries) == {"reproduced": 4, "cannot judge": 1}
    assert counts("arithmetic", entries) == {"confirmed": 1}
    assert counts("recipe", entries) == {"erratum": 1}


def test_reasons_are_counted_most_first(experiment):
    rows = reason_counts("trained", list(judge_by_id(experiment, []).values()))
    assert [(row.reason, row.number) for row in rows] == [("not-run", 4), ("no-labels", 1)]
    assert rows[1].meaning == "the labels needed to evaluate are not public"


def test_every_outcome_and_reason_has_its_place():
    assert set(REASON_MEANINGS) == set(Reason)
    placed = Counter(outcome for outcomes in OUTCOME_ORDER.values() for outcome in outcomes)
    assert set(placed) == set(Outcome)
    assert OUTCOME_ORDER["arithmetic"][0] is OUTCOME_ORDER["recipe"][0] is Outcome.ERRATUM  # errata first


def test_a_paper_s_row_counts_its_claims_and_runs(experiment, seed_records):
    report = toy_report(experiment, seed_records(experiment, "plain-20", PLAIN))
    assert paper_cells(report.papers[0]) == {
        "trained claims": 5, "with runs": 1, "arithmetic": 1, "recipe": 1, "errata": 1, "runs": 5,
    }  # fmt: skip
