"""Models for the registry: the first seed that converged, described in plain sentences."""

from dataclasses import replace

from pipeline.declare.load import load_experiment
from pipeline.report.judged_models import judged_models
from pipeline.report.leaderboard import build_leaderboard, in_protocol_order
from tests.support.fake_records import fake_record

EXPERIMENT = load_experiment("resnet/cifar10_depth")
RECORDS = [
    fake_record(EXPERIMENT, "resnet-20", 0, 99.0, status="not converged", metrics={}),
    fake_record(EXPERIMENT, "resnet-20", 1, 9.5),
    fake_record(EXPERIMENT, "resnet-20", 2, 8.5),
]
ROWS = [row for row in build_leaderboard([EXPERIMENT], RECORDS) if row.scale == "paper"]


def test_the_first_seed_that_converged_is_registered_not_the_best():
    ids = {record.identity: f"id-{record.seed}" for record in RECORDS}
    [model] = judged_models(ROWS, {"resnet-20": RECORDS}, ids)
    assert (model.record.seed, model.record.run_id) == (1, "id-1")
    assert model.name == "resnet-cifar10_depth-resnet-20"
    assert model.description == (
        "resnet/cifar10_depth resnet-20 at paper scale on cifar10, seed 1 of 2 seeds, commit 0123456789ab."
        " Top-1 error 9.50 %; mean over the seeds 9.00 %; the paper prints 8.75 % on cifar10."
        " Input: pixels 0..255, uint8 (N, C, H, W). The normalisation is part of the model."
    )


def test_runs_that_are_not_tracked_have_no_model():
    assert judged_models(ROWS, {"resnet-20": RECORDS}, {}) == []


def test_a_run_that_starts_from_another_has_a_model_and_an_ensemble_has_none():
    started = [replace(record, members=("0123456789abcdef",)) for record in RECORDS]
    ids = {record.identity: "id" for record in RECORDS}
    assert [model.variant for model in judged_models(ROWS, {"resnet-20": started}, ids)] == ["resnet-20"]
    assert judged_models(ROWS, {"resnet-20": started}, ids, derived={"resnet-20": object()}) == []


def test_errors_are_those_of_the_first_test_protocol():
    declared = load_experiment("resnet/imagenet")
    protocols = declared.protocols("resnet-50", "paper")
    assert protocols[0] != min(protocols)
    errors = ("top1_error_pct", "top5_error_pct")
    other = {f"test/{name}/{error}": 40.0 for name in protocols[1:] for error in errors}
    other |= {f"test/{name}/images": 50_000.0 for name in protocols[1:]}
    base = fake_record(declared, "resnet-50", 0, 22.5)
    record = replace(base, metrics=base.metrics | other)
    rows = in_protocol_order(declared, build_leaderboard([declared], [record]))
    [model] = judged_models(rows, {"resnet-50": [record]}, {record.identity: "id"})
    assert f"Top-1 error by {protocols[0]} 22.50 %; mean over the seeds 22.50 %" in model.description
