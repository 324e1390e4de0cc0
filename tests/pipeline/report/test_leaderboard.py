"""Test the leaderboard: ranks, spreads, the paper's numbers, changed and derived runs."""

import json
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from pipeline.declare.load import load_experiment
from pipeline.judge.ledger import ledger
from pipeline.plan.expand import plan_runs
from pipeline.report.leaderboard import (
    build_leaderboard,
    only_shown_claims,
    paper_error,
    ranked,
    with_sizes,
    with_verdicts,
)
from tests.support.box_sets import BOX_EXPERIMENT

PLAIN, DEEP = [9.4, 9.5, 9.9], [10.4, 10.5, 10.6]


def only(rows):
    (row,) = rows
    return row


def test_lowest_error_is_first(experiment, seed_records):
    records = [*seed_records(experiment, "plain-20", DEEP), *seed_records(experiment, "plain-32", PLAIN)]
    assert [row.variant for row in build_leaderboard([experiment], records)] == ["plain-32", "plain-20"]


def test_scales_are_ranked_separately(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", [1.0, 1.0], scale="laptop"),
        *seed_records(experiment, "plain-20", PLAIN),
        *seed_records(experiment, "plain-32", [2.0, 2.0], scale="laptop"),
    ]
    rows = build_leaderboard([experiment], records)
    assert [(row.scale, row.variant) for row in rows] == [
        ("paper", "plain-20"), ("laptop", "plain-20"), ("laptop", "plain-32"),
    ]  # fmt: skip


def test_mean_and_spread_over_the_seeds(experiment, seed_records):
    row = only(build_leaderboard([experiment], seed_records(experiment, "plain-20", PLAIN)))
    assert row.top1 == pytest.approx(fmean(PLAIN)) == pytest.approx(9.6)
    assert row.top1_std == pytest.approx(stdev(PLAIN)) == pytest.approx((0.07) ** 0.5)  # (.04 + .01 + .09) / 2
    assert row.top5 == pytest.approx(0.96)
    assert row.train == pytest.approx(4.8)
    assert (row.seeds, row.diverged, row.images) == (3, 0, 10_000)
    assert row.noise == pytest.approx(100 * (0.096 * 0.904 / 10_000) ** 0.5)


def test_one_seed_has_no_spread(experiment, seed_records):
    assert only(build_leaderboard([experiment], seed_records(experiment, "plain-20", [9.5]))).top1_std is None


def test_diverged_seed_is_counted_and_left_out_of_the_mean(experiment, seed_records, record):
    records = [
        *seed_records(experiment, "plain-20", [9.0, 10.0]),
        record(experiment, "plain-20", 2, 0.0, status="not converged", metrics={}),
    ]
    row = only(build_leaderboard([experiment], records))
    assert (row.top1, row.seeds, row.diverged) == (9.5, 2, 1)


def test_network_without_a_converged_seed_is_last(experiment, seed_records):
    gone = seed_records(experiment, "plain-20", [0.0, 0.0], status="not converged", metrics={})
    rows = build_leaderboard([experiment], [*gone, *seed_records(experiment, "plain-32", [99.0])])
    assert [row.variant for row in rows] == ["plain-32", "plain-20"]
    assert (rows[1].top1, rows[1].top5, rows[1].noise, rows[1].seeds, rows[1].diverged) == (None, None, None, 0, 2)


def test_papers_number_has_its_data_set(experiment, seed_records):
    row = only(build_leaderboard([experiment], seed_records(experiment, "plain-20", PLAIN, scale="laptop")))
    assert (row.paper, row.paper_data, row.data) == (9.5, "cifar10", "digits")
    assert only(build_leaderboard([experiment], seed_records(experiment, "plain-32", PLAIN))).paper is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("margin: 0.5,", "margin: 0.5, statistic: best of 5,"),
        ("kind: metric, says", "kind: metric, by: lecture, says"),
        ("of: plain-20, metric: test/top1_error_pct", "of: plain-20, metric: test/top5_error_pct"),
    ],
)
def test_papers_number_is_its_mean_top_1_error(declare, old, new):
    assert paper_error(declare(), "plain-20") == 9.5
    assert paper_error(declare(old, new), "plain-20") is None


def test_difference_is_measured_at_paper_scale_on_the_papers_data_only(experiment, seed_records):
    def row(**other):
        return only(
            build_leaderboard([experiment], seed_records(experiment, "plain-20", [9.6, 9.7, 9.8], **other))
        )

    assert row().difference == pytest.approx(0.2)  # the paper's error is 9.5
    assert row().difference_interval == pytest.approx((0.2 - 0.1686, 0.2 + 0.1686), abs=1e-4)
    assert row(scale="laptop").difference is None
    assert row(changes={"train.lr": 0.05}).difference is None
    assert row(data="cifar10-jpeg").difference is None


def with_protocols(record, errors):
    metrics = {"test/images": 50_000.0, "test/top1_error_pct": 30.0, "test/top5_error_pct": 11.0}
    for protocol, error in errors.items():
        own = {"top1_error_pct": error, "top5_error_pct": error / 3, "images": 50_000.0}
        metrics |= {f"test/{protocol}/{name}": value for name, value in own.items()}
    return replace(record, metrics=metrics)


def test_each_test_protocol_has_its_row_with_the_papers_numbers(seed_records):
    vgg = load_experiment("vgg/imagenet")
    errors = {"dense-of-256": 30.0, "dense-of-224-256-288": 26.9}
    records = [with_protocols(one, errors) for one in seed_records(vgg, "vgg-16", [30.0])]
    rows = build_leaderboard([vgg], records)
    assert [(row.protocol, row.top1, row.paper, row.paper_top5) for row in rows] == [
        ("dense-of-224-256-288", 26.9, 26.6, 8.6),  # Table 4
        ("dense-of-256", 30.0, 27.0, 8.8),  # Table 3
    ]


def test_a_protocol_that_not_all_runs_have_measured_has_no_row(seed_records):
    vgg = load_experiment("vgg/imagenet")
    first, second = seed_records(vgg, "vgg-16", [30.0, 30.0])
    records = [with_protocols(first, {"dense-of-224-256-288": 26.9}), with_protocols(second, {})]
    assert [row.protocol for row in build_leaderboard([vgg], records)] == ["dense-of-256"]


def test_rows_of_all_experiments_are_ranked_by_data_protocol_and_scale(experiment, seed_records):
    rows = build_leaderboard(
        [experiment],
        [
            *seed_records(experiment, "plain-20", [9.6]),
            *seed_records(experiment, "plain-32", [9.1]),
            *seed_records(experiment, "resnet-20", [40.0], scale="laptop"),
        ],
    )
    other = [
        replace(row, experiment="other/x", runs=("x",), top1=9.3, top5=0.1)
        for row in rows
        if row.variant == "plain-20"
    ]
    groups = ranked([*rows, *other])
    assert [[(row.experiment, row.variant) for row in group] for group in groups] == [
        [("toy/depth", "plain-32"), ("other/x", "plain-20"), ("toy/depth", "plain-20")],
        [("toy/depth", "resnet-20")],
    ]
    assert ranked([*rows, *other], "top5")[0][0].experiment == "other/x"


def test_experiments_that_share_runs_have_one_row_of_all_with_the_papers_number(experiment, seed_records):
    (row,) = build_leaderboard([experiment], seed_records(experiment, "plain-20", [9.6]))
    unpublished = replace(row, experiment="another/x", paper=None)
    assert ranked([unpublished, row]) == ranked([row, unpublished]) == [[row]]


def test_rows_get_the_verdict_of_the_papers_error(experiment, seed_records):
    records = seed_records(experiment, "plain-20", [9.4, 9.5, 9.6, 9.5, 9.5])
    records += seed_records(experiment, "plain-20", [1.0, 1.1], scale="laptop")
    entries = ledger(experiment, records, lambda *_: 0)
    rows = with_verdicts(build_leaderboard([experiment], records), entries)
    assert [(row.scale, row.verdict) for row in rows] == [("paper", "reproduced"), ("laptop", "")]
    few = with_verdicts(rows, ledger(experiment, records[:2], lambda *_: 0))
    assert few[0].verdict == "cannot judge: underpowered"


def test_only_the_claims_that_rows_show_need_a_verdict(experiment, seed_records):
    records = seed_records(experiment, "plain-20", [9.4, 9.5, 9.6, 9.5, 9.5])
    records += seed_records(experiment, "plain-32", [1.0, 1.1], scale="laptop")
    rows = build_leaderboard([experiment], records)
    (shown,) = only_shown_claims([experiment], rows)
    assert [claim.id for claim in shown.claims] == ["error"]  # of plain-20; not its ordering, not its network
    entries = ledger(shown, records, lambda *_: 0, ["paper"])
    assert with_verdicts(rows, entries) == with_verdicts(rows, ledger(experiment, records, lambda *_: 0))
    assert only_shown_claims([experiment], [row for row in rows if row.scale != "paper"]) == []


def test_rows_of_variants_get_the_size_of_their_networks(experiment, seed_records):
    rows = build_leaderboard([experiment], seed_records(experiment, "plain-20", PLAIN))
    sizes = {"model/parameters": 269_722, "model/multiply_adds": 40_551_808}
    (row,) = with_sizes(rows, [experiment], lambda metric, *_: sizes[metric])
    assert (row.parameters, row.multiply_adds) == (269_722, 40_551_808)


def test_changed_runs_have_a_labelled_row(experiment, seed_records):
    changes = {"train.lr": 0.05, "train.batch_size": 64}
    records = [
        *seed_records(experiment, "plain-20", PLAIN),
        *seed_records(experiment, "plain-20", [1.0, 1.0], changes=changes),
    ]
    rows = build_leaderboard([experiment], records)
    assert [(row.departs, row.top1) for row in rows] == [
        ("train.lr=0.05, train.batch_size=64", 1.0),
        ("", pytest.approx(9.6)),
    ]


def test_each_change_has_its_row_and_of_one_kind_only(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", [1.0, 1.0], changes={"train.lr": 0.05}),
        *seed_records(experiment, "plain-20", [2.0], changes={"train.lr": 0.05}, code="old"),
        *seed_records(experiment, "plain-20", [3.0], changes={"train.lr": 0.2}),
    ]
    rows = build_leaderboard([experiment], records)
    assert [(row.departs, row.top1) for row in rows] == [("train.lr=0.05", 1.0), ("train.lr=0.2", 3.0)]


def test_changed_runs_of_an_old_declaration_have_no_row(declare, seed_records):
    old = declare()
    records = [
        *seed_records(old, "plain-20", [1.0], changes={"train.lr": 0.05}),
        *seed_records(old, "plain-20", [1.0], changes={"train.optimizer.momentum": 0.5}),
    ]
    assert len(build_leaderboard([old], records)) == 2
    # the new optimizer has no momentum
    online = "{name: sdlm, mu: 0.02, samples: 5}\n  loss: {name: map, j: 1.0, divided_by: 1.0}"
    new = declare(
        "{name: sgd, momentum: 0.9, weight_decay: 1e-4}",
        online,
        "batch_size: 128",
        "batch_size: 1",
        "train: {warmup: {lr: 0.01, train_error_below_pct: 80.0}}",
        "train: {}",
    )
    assert build_leaderboard([new], records) == []


def test_row_converts_to_json(experiment, seed_records):
    (row,) = build_leaderboard([experiment], seed_records(experiment, "plain-20", PLAIN))
    assert json.loads(json.dumps(row.to_dict()))["variant"] == "plain-20"


def test_no_runs_give_no_rows(experiment):
    assert build_leaderboard([experiment], []) == []


def test_derived_run_has_a_row(declare, seed_records):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    claimed = "of: plain-20, metric: test/top1_error_pct"
    declared = declare("scales:\n", two, claimed, "of: two, metric: test/top1_error_pct")
    alone = seed_records(declared, "plain-20", PLAIN)
    derived = [run for run in plan_runs(declared, scale="paper") if run.variant == "two"]
    metrics = alone[0].metrics | {"test/top1_error_pct": 8.5}
    ensembles = [
        replace(alone[0], variant="two", seed=run.seed, declaration=run.declaration, metrics=metrics)
        for run in derived
    ]
    rows = build_leaderboard([declared], [*alone, *ensembles])
    assert [(row.variant, row.top1, row.seeds, row.paper, row.protocol) for row in rows] == [
        ("two", 8.5, 2, 9.5, ""),
        ("plain-20", pytest.approx(9.6), 3, None, ""),
    ]
    assert rows[0].paper_data == "cifar10"


def test_networks_that_predict_boxes_have_no_row(tmp_path, record):
    file = tmp_path / "boxes.yaml"
    file.write_text(BOX_EXPERIMENT, encoding="utf-8")
    declared = load_experiment(str(file))
    error = {"metrics": {"test/localisation_error_pct": 40.0, "test/images": 12.0}}
    [derived] = [run for run in plan_runs(declared, scale="paper") if run.variant == "localised"]
    boxes = record(declared, "boxes", 0, 0.0, **error)
    records = [
        record(declared, "classes", 0, 9.0),
        boxes,
        record(declared, "boxes", 0, 0.0, changes={"train.lr": 0.5}, **error),
        replace(boxes, variant="localised", declaration=derived.declaration),
    ]
    assert [row.variant for row in build_leaderboard([declared], records)] == ["classes"]


def test_a_transfer_that_measures_only_a_score_has_no_row(declare, seed_records):
    transfer = "derived:\n  else: {kind: transfer, of: plain-20, data: cifar100, c: 1.0}\nscales:\n"
    declared = declare("scales:\n", transfer)
    alone = seed_records(declared, "plain-20", PLAIN)
    [derived, *_] = [run for run in plan_runs(declared, scale="paper") if run.variant == "else"]
    metrics = {"test/15-per-class/mean_class_recall_pct": 70.0, "test/15-per-class/images": 10.0}
    scored = replace(alone[0], variant="else", declaration=derived.declaration, metrics=metrics)
    assert {row.variant for row in build_leaderboard([declared], [*alone, scored])} == {"plain-20"}
    diverged = replace(scored, status="not converged", metrics={})
    assert {row.variant for row in build_leaderboard([declared], [*alone, diverged])} == {"plain-20", "else"}
