"""Test errors against the number of networks: beside ensembles made one by one, and greedy choices by hand."""

import itertools
from statistics import fmean, pstdev

import pytest
import torch

from pipeline.declare.derived import EnsembleSizesSpec, EnsembleSpec
from pipeline.derive import ensemble_sizes
from pipeline.derive.ensemble_sizes import choose_greedily, member_choices
from pipeline.derive.predictions import Predictions, count_in_float64
from pipeline.track.run_folder import RunFolder
from tests.support.derived_runs import ENSEMBLE, derived_of, make_in
from tests.support.smoke_runs import smoke_run, train_in

ERRORS = ("top1_error_pct", "top5_error_pct", "loss")


def sizes(count=3, **settings):
    return EnsembleSizesSpec(kind="ensemble-sizes", members={"resnet-20": count}, **settings)


def test_errors_of_each_size_are_those_of_ensembles_made_one_by_one(runs, folders, tmp_path):
    record = make_in(tmp_path / "sizes", derived_of(sizes(), runs), folders)
    whole = make_in(tmp_path / "whole", derived_of(ENSEMBLE, runs), folders)
    pair = EnsembleSpec(kind="ensemble", members={"resnet-20": 2})
    pairs = [
        make_in(tmp_path / f"{a}{b}", derived_of(pair, [runs[a], runs[b]]), [folders[a], folders[b]]).metrics
        for a, b in itertools.combinations(range(3), 2)
    ]
    alone = [folder.result().metrics for folder in folders]
    for error in ERRORS:
        assert record.metrics[f"test/{error}"] == whole.metrics[f"test/{error}"]
        assert record.metrics[f"test/of-3/{error}"] == whole.metrics[f"test/{error}"]
        assert record.metrics[f"test/of-3/{error}_std"] == 0
        for size, found in ((1, alone), (2, pairs)):
            values = [metrics[f"test/{error}"] for metrics in found]
            assert record.metrics[f"test/of-{size}/{error}"] == pytest.approx(fmean(values), rel=1e-6)
            assert record.metrics[f"test/of-{size}/{error}_std"] == pytest.approx(pstdev(values), abs=1e-6)
    assert record.metrics["test/images"] == 100
    assert record.metrics["test/of-1/loss_std"] > 0
    assert record.ended == "ensembles of 1, 2, 3 of 3 networks"


def test_only_the_declared_sizes_are_measured(runs, folders, tmp_path):
    record = make_in(tmp_path, derived_of(sizes(sizes=(2,)), runs), folders)
    assert {name for name in record.metrics if "of-" in name} == {
        f"test/of-2/{error}{end}" for error in ERRORS for end in ("", "_std")
    }


def test_recorded_metrics_are_those_that_claims_may_name(sharded_members, tmp_path):
    shards, runs, folders = sharded_members
    protocols = ("1-crop-64-of-72", "10-crop-64-of-72")
    spec = EnsembleSizesSpec(kind="ensemble-sizes", members={"resnet-18-a": 2}, test=protocols)
    record = make_in(tmp_path, derived_of(spec, runs), folders, images=shards)
    named = [f"/{protocol}" for protocol in protocols]
    errors = {f"test{by}/{error}" for by in (*named, "") for error in (*ERRORS, "images")}
    assert set(record.metrics) == {*errors, *spec.metrics([*named, ""])}
    for error in ERRORS:
        assert record.metrics[f"test/of-1/{error}"] == record.metrics[f"test/1-crop-64-of-72/of-1/{error}"]
    assert record.metrics["test/of-1/loss"] != record.metrics["test/10-crop-64-of-72/of-1/loss"]
    whole = derived_of(EnsembleSpec(kind="ensemble", members={"resnet-18-a": 2}, test=protocols), runs)
    for name, value in make_in(tmp_path / "whole", whole, folders, images=shards).metrics.items():
        assert record.metrics[name] == value


# --- choices of members --------------------------------------------------------------------------------------


def test_all_ensembles_are_chosen_if_they_are_few():
    assert member_choices(4, 2, 6, seed=0) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert member_choices(4, 4, 1, seed=0) == [(0, 1, 2, 3)]


def test_random_ensembles_are_different_and_depend_on_seed_and_size_only():
    drawn = member_choices(8, 3, 50, seed=0)
    assert len(set(drawn)) == len(drawn) == 50  # of 56
    assert all(len(set(one)) == 3 and list(one) == sorted(one) and one[0] >= 0 and one[2] < 8 for one in drawn)
    assert member_choices(8, 3, 50, seed=0) == drawn
    assert member_choices(8, 3, 20, seed=0) == drawn[:20]
    assert member_choices(8, 3, 50, seed=1) != drawn


def test_every_network_is_drawn_equally_often():
    drawn = member_choices(10, 5, 200, seed=3)  # of 252; each network is in half of them
    counts = [sum(network in one for one in drawn) for network in range(10)]
    assert sum(counts) == 1000
    assert max(abs(count - 100) for count in counts) < 20


# --- the greedy ensemble -------------------------------------------------------------------------------------


def predictions_of(*networks):
    """Predictions of networks that give class 0, always the right one, these probabilities for each image."""
    first = torch.tensor(networks, dtype=torch.float64)
    logs = torch.stack([first, 1 - first], 2).log()
    return Predictions(
        [logs], [torch.zeros(logs.shape[1], dtype=torch.int64)], count_in_float64, torch.device("cpu")
    )


def members_of(found):
    return [int(name) for name in found if name.isdigit()]


def test_networks_are_added_that_lower_the_error_most():
    # Alone: 1, 2, 1 and 3 of 4 images are wrong. Network 2 has the lower loss of the two best. With network 0 it
    # has no error left; the others only add errors.
    predictions = predictions_of(
        (0.6, 0.6, 0.6, 0.4), (0.9, 0.9, 0.1, 0.1), (0.9, 0.45, 0.9, 0.9), (0.9, 0.1, 0.1, 0.05)
    )
    found = choose_greedily(predictions)
    assert members_of(found) == [0, 2]
    assert (found["greedy/top1_error_pct"], found["greedy/images"]) == (0, 4)


def test_greedy_ensemble_is_as_small_as_its_error_allows():
    assert members_of(choose_greedily(predictions_of((0.9, 0.8), (0.7, 0.6), (0.3, 0.6)))) == [0]
    assert members_of(choose_greedily(predictions_of((0.9, 0.8), (0.9, 0.8)))) == [0]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Three runs with a validation part, and their folders."""
    path = tmp_path_factory.mktemp("held-out")
    trained = [smoke_run(seed=seed, changes={"data.val": 100}) for seed in range(3)]
    for run in trained:
        assert train_in(path / str(run.seed), run)
    return trained, [RunFolder(path / str(run.seed)) for run in trained]


def test_greedy_ensemble_has_the_errors_of_its_members(held_out, tmp_path):
    trained, folders = held_out
    record = make_in(tmp_path / "greedy", derived_of(sizes(greedy=True), trained), folders)
    count = int(record.metrics["greedy/networks"])
    chosen = [run for run in trained if run.title in record.ended.partition("; chosen on validation images: ")[2]]
    assert len(chosen) == count >= 1
    numbers = [trained.index(run) for run in chosen]
    if count == 1:
        expected = folders[numbers[0]].result().metrics
    else:
        spec = EnsembleSpec(kind="ensemble", members={"resnet-20": count})
        members = [folders[number] for number in numbers]
        expected = make_in(tmp_path / "chosen", derived_of(spec, chosen), members).metrics
    assert record.metrics["test/greedy/top1_error_pct"] == expected["test/top1_error_pct"]
    best_alone = min(folder.result().metrics["val/top1_error_pct"] for folder in folders)
    assert record.metrics["val/greedy/top1_error_pct"] <= best_alone
    assert (record.metrics["val/greedy/images"], record.metrics["test/greedy/images"]) == (100, 100)
    errors = {f"test/{error}" for error in (*ERRORS, "images")}
    assert set(record.metrics) == {*errors, *sizes(greedy=True).metrics([""])}


def test_test_images_do_not_change_the_greedy_choice(held_out, tmp_path, monkeypatch):
    trained, folders = held_out
    parts = []
    original = ensemble_sizes.choose_greedily
    predict = ensemble_sizes.predict
    monkeypatch.setattr(
        ensemble_sizes, "predict", lambda *args, **settings: parts.append(args[2]) or predict(*args, **settings)
    )
    monkeypatch.setattr(ensemble_sizes, "choose_greedily", lambda found: parts.append("choice") or original(found))
    assert make_in(tmp_path, derived_of(sizes(greedy=True), trained), folders)
    assert parts == ["val", "choice", "test"]


def test_interrupted_run_measures_only_what_is_left(held_out, tmp_path, monkeypatch):
    trained, folders = held_out
    derived = derived_of(sizes(greedy=True), trained)
    whole = make_in(tmp_path / "whole", derived, folders)
    stops = iter([False, True])
    assert make_in(tmp_path / "part", derived, folders, stop=lambda: next(stops)) is None
    monkeypatch.setattr(ensemble_sizes, "choose_greedily", None)  # its result is cached
    resumed = make_in(tmp_path / "part", derived, folders)
    assert (resumed.metrics, resumed.ended) == (whole.metrics, whole.ended)
