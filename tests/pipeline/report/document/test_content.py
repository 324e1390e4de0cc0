"""Test the content of a report: order of papers and claims, runs of a paper, printed errors, commands."""

from dataclasses import replace

from pipeline.declare.load import experiment_names
from pipeline.declare.suites import LECTURE_ORDER, lecture_position
from pipeline.report.document.content import commands_to_judge, printed_errors
from tests.support.ledgers import DEEP, PLAIN, judge_by_id
from tests.support.reports import toy_report


def records_of(experiment, seed_records):
    return [*seed_records(experiment, "plain-20", PLAIN), *seed_records(experiment, "plain-32", DEEP)]


def test_the_lecture_s_order_has_every_folder_of_experiments():
    assert {name.partition("/")[0] for name in experiment_names()} == set(LECTURE_ORDER)
    assert sorted(["squeezenet", "mine", "lenet5"], key=lecture_position) == ["lenet5", "squeezenet", "mine"]


def test_judged_claims_come_first_then_errata(experiment, seed_records):
    report = toy_report(experiment, records_of(experiment, seed_records))
    ids = [entry.claim.id for entry in report.papers[0].entries]
    assert set(ids[:4]) == {"error", "stuck", "deeper", "ratio"}
    assert ids[4:] == ["decay", "prize", "size"]  # an erratum, an open claim, a confirmed one


def test_a_paper_has_its_runs_and_those_that_its_rows_rest_on(experiment, seed_records):
    records = records_of(experiment, seed_records)
    shared = [replace(record, experiment="other/file") for record in records[:5]]  # the same recipe, run elsewhere
    unrelated = replace(records[5], experiment="other/file", declaration="x", identity="unrelated")
    report = toy_report(experiment, [*shared, *records[5:], unrelated])
    assert {record.identity for record in report.papers[0].records} == {record.identity for record in records}
    assert report.counted == {record.identity for record in records}


def test_runs_changed_by_set_and_of_another_declaration_are_listed(experiment, seed_records):
    old = [
        replace(r, declaration="old", identity=f"old-{r.seed}") for r in records_of(experiment, seed_records)[:2]
    ]
    report = toy_report(experiment, old)
    assert len(report.papers[0].records) == 2
    assert report.counted == set()


def test_printed_errors_are_those_that_claims_name(experiment, seed_records):
    entries = judge_by_id(experiment, records_of(experiment, seed_records)).values()
    (error,) = printed_errors(entries)
    assert (error.network, error.protocol, error.top5) == ("plain-20", "", None)
    assert (error.top1.claim.claimed, round(error.top1.verdict.measured, 2)) == (9.5, 9.5)


def test_commands_are_counted_by_the_claims_they_would_judge(experiment):
    found = commands_to_judge(judge_by_id(experiment, []).values())
    assert found == {
        "repro run toy/depth --scale paper --variant plain-32 --variant plain-20": 2,
        "repro run toy/depth --scale paper --variant plain-20": 1,
        "repro run toy/depth --scale paper --variant plain-32": 1,
    }
