"""Test what the next hours of a GPU would buy, against products of printed numbers."""

from dataclasses import replace

import pytest

from pipeline.judge.collect import judge_experiments
from pipeline.plan.expand import plan_runs
from pipeline.report.next_runs import ASSUMED_RATE, NextRuns, next_runs, next_runs_block
from pipeline.report.results import NEXT_END, NEXT_START, README_END, README_START, write_results
from pipeline.track.record import FINISHED

CONVOLUTION = 16 * 16 * 9 * 32 * 32  # multiply-adds of one with equally many maps in and out, in every stage
OF_20_LAYERS = 3 * 16 * 9 * 32 * 32 + 16 * CONVOLUTION + 2 * CONVOLUTION // 2 + 64 * 10


@pytest.fixture
def waiting(experiment):
    """The claims of the toy experiment without any run."""
    return judge_experiments([experiment], [], unfinished={})


def one(name="a/b", claims=1, hours=1.0):
    return NextRuns(name, claims, 3, ("cifar10",), {name: hours * 3600 * ASSUMED_RATE})


def test_work_is_three_passes_over_every_training_image(experiment, waiting):
    (found,) = next_runs([experiment], waiting, [])
    assert (found.experiment, found.runs, found.data) == ("toy/depth", 3 * 5, ("cifar10",))
    of_variants = 3 * OF_20_LAYERS + 12 * CONVOLUTION  # plain-20, plain-32 and resnet-20
    assert found.multiply_adds == 3 * of_variants * 5 * 64_000 * 128
    assert found.hours == pytest.approx(found.multiply_adds / 1e13 / 3600)
    assert found.claims == 4  # error, stuck, deeper and ratio; the open claim waits for no run


def test_finished_runs_cost_nothing_more(experiment, waiting, seed_records):
    runs = plan_runs(experiment, scale="paper")
    records = seed_records(experiment, runs[0].variant, [9.4, 9.5, 9.6], status=FINISHED)
    before, after = (next_runs([experiment], waiting, found)[0] for found in ([], records))
    assert after.runs == before.runs - len(records)
    assert after.multiply_adds < before.multiply_adds


def test_experiments_without_waiting_claims_are_left_out(experiment, waiting):
    assert next_runs([experiment], [replace(entry, command="") for entry in waiting], []) == []
    assert next_runs_block([]) == "No claim waits for runs at paper scale."


def test_block_counts_what_fits_into_the_first_hour_and_stops_at_a_day():
    block = next_runs_block([one("a/b", 4, 0.25), one("a/c", 2, 0.75), one("a/d", 1, 20.0), one("a/e", 1, 4.0)])
    assert "the first hour gives 6 claims their runs" in block
    assert "| `repro run a/c --scale paper` | 2 | cifar10 | 3 | 2.7e+16 | 0.8 | 1.0 |" in block
    assert "a/d" in block
    assert "a/e" not in block  # 25 hours in total
    assert "The 4 experiments with claims that no run has judged would take 25 hours." in block


def test_a_run_of_two_experiments_counts_once_in_the_total():
    shared = {"shared run": 0.5 * 3600 * ASSUMED_RATE}
    first = NextRuns("a/b", 1, 1, ("cifar10",), shared)
    second = NextRuns("a/c", 1, 2, ("cifar10",), shared | one("own run", hours=0.5).work)
    block = next_runs_block([first, second])
    assert "| 0.5 | 0.5 |" in block
    assert "| 1.0 | 1.0 |" in block
    assert "The 2 experiments with claims that no run has judged would take 1.0 hours." in block


def test_the_experiment_that_costs_least_for_each_claim_is_first(experiment, declare_other):
    both = [declare_other(), experiment]
    found = next_runs(both, judge_experiments(both, [], unfinished={}), [])
    costs = [each.multiply_adds / each.claims for each in found]
    assert sorted(each.experiment for each in found) == ["toy/depth", "toy/wide"]
    assert costs == sorted(costs)
    assert costs[0] < costs[1]


def test_readme_gets_both_blocks(experiment, seed_records, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        f"# Toy\n\n{README_START}\n{README_END}\n\n{NEXT_START}\nold\n{NEXT_END}\nend\n", encoding="utf-8"
    )

    class NoCurves:
        def curves(self, run_id, metric):
            return []

    write_results(
        [experiment], seed_records(experiment, "plain-20", [9.4, 9.5, 9.6]), NoCurves(), tmp_path / "RESULTS.md"
    )
    text = readme.read_text(encoding="utf-8")
    assert "`repro run toy/depth --scale paper`" in text.partition(NEXT_START)[2]
    assert "old" not in text
    assert text.endswith(f"{NEXT_END}\nend\n")
