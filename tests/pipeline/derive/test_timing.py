"""Test timings: declaration, plan, measurement on small networks, verdicts from their records."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.common.errors import UserError
from pipeline.declare.derived import TimingSpec
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import load_experiment
from pipeline.derive import timing
from pipeline.derive.timing import Passes, make_timing, measure_passes, relations, timed_pass
from pipeline.judge.counting import declarations_of
from pipeline.judge.ledger import ledger
from pipeline.plan.expand import plan_runs
from pipeline.plan.task import run_from_dict, run_to_dict
from pipeline.report.leaderboard import build_leaderboard
from pipeline.schedule.tasks import make_tasks
from pipeline.track.record import Record

TEXT = """
paper: {title: Times, authors: A, year: 2016, section: "3"}
question: Do operations predict times?
data: {name: cifar10}
variants:
  small: {model: {name: resnet_cifar, depth: 8}}
  middle: {model: {name: resnet_cifar, depth: 14}}
  large: {model: {name: resnet_cifar, depth: 20}}
derived:
  forward: {kind: timing, networks: [small, middle, large], batch_sizes: [1, 2], repeats: 2,
    accuracies: {small: 60.0, middle: 75.0, large: 80.0}}
seeds: [0, 1, 2]
scales: {paper: {why: All.}, smoke: {why: One., derived: {forward: {networks: [small], batch_sizes: [1]}}}}
claims:
  - {id: line, of: forward, metric: fit/batch-1/operations/r_squared, op: ">", claimed: 0.5, source: text}
  - {id: power, of: forward, metric: power/relative_spread, op: <, claimed: 0.1, source: text}
  - {id: curve, ordering: forward > forward, metric: fit/batch-1/hyperbola/r_squared,
    rhs_metric: fit/batch-1/line/r_squared, source: text, says: A hyperbola fits better than a line}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))

    def changed(old="", new=""):
        assert old in TEXT
        (tmp_path / "toy").mkdir(exist_ok=True)
        (tmp_path / "toy/times.yaml").write_text(TEXT.replace(old, new, 1) if old else TEXT, encoding="utf-8")
        return load_experiment("toy/times", tmp_path)

    return changed


@pytest.fixture
def made(load):
    """The experiment and the record of one timing of its three networks."""
    experiment = load()
    (task, *_) = make_tasks(plan_runs(experiment, scale="paper"))
    return experiment, make_timing(task)


def record_of(experiment, seed, metrics):
    """A record of the timing with this seed, and these metrics."""
    (run,) = [run for run in plan_runs(experiment, scale="paper") if run.seed == seed]
    return Record(
        identity=f"timing-{seed}", experiment=experiment.name, scale="paper", variant="forward", seed=seed,
        status="finished", ended="", changes={}, declaration=run.declaration, manifest="m", code="c", lock="l",
        commit="0123456789", data="random pixels", metrics=metrics, precision="fp32", compiled=False, threads=1,
        hardware="one core", libraries={}, seconds=1.0, finished=f"2026-01-01T00:00:0{seed}+00:00",
    )  # fmt: skip


def test_plan_has_one_timing_per_seed_and_no_runs(load):
    planned = plan_runs(load(), scale="paper")
    assert [(run.variant, run.seed, run.members) for run in planned] == [
        ("forward", seed, ()) for seed in (0, 1, 2)
    ]
    assert list(planned[0].networks) == ["small", "middle", "large"]
    assert len(plan_runs(load(), scale="paper", seeds=5)) == 5
    assert list(plan_runs(load(), scale="smoke")[0].networks) == ["small"]
    with pytest.raises(UserError, match="toy/times measures all its networks together; leave out --variant"):
        plan_runs(load(), scale="paper", variants=["small"])


def test_changes_that_a_timing_would_ignore_are_refused(load):
    with pytest.raises(UserError, match=r"^toy/times measures untrained networks and has no setting data\.name;"):
        plan_runs(load(), scale="paper", changes={"train.precision": "bf16", "data.name": "digits"})
    assert len(plan_runs(load(), scale="paper", changes={"train.precision": "bf16"})) == 3  # of other experiments


def test_timing_beside_trained_networks_is_refused(load):
    """Its networks are variants, so the plan and the evidence could not tell trained variants from others."""
    train = "train: {steps: 4, batch_size: 2, lr: 0.1, optimizer: {name: sgd, momentum: 0.9}}\nscales:"
    pair = "derived:\n  pair: {kind: ensemble, members: {small: 2}}\n"
    for change in (("scales:", train), ("derived:\n", f"{train.removesuffix('scales:')}{pair}")):
        with pytest.raises(DeclarationError, match=r"a timing measures untrained networks; declare it in an exp"):
            load(*change)


def test_declaration_depends_on_seed_networks_and_batch_sizes(load):
    first, second, _ = plan_runs(load(), scale="paper")
    others = [
        plan_runs(load(*change), scale="paper")[0] for change in (("depth: 8", "depth: 26"), ("[1, 2]", "[1]"))
    ]
    assert len({run.declaration for run in (first, second, *others)}) == 4
    assert declarations_of(load(), "paper", "forward", {0, 7}) == {plan_runs(load(), scale="paper")[0].declaration}


def test_timing_survives_the_way_to_another_process(load):
    run = plan_runs(load(), scale="paper")[0]
    assert run_from_dict(run_to_dict(run)) == run


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("networks: [small", "networks: [smal", "networks: unknown variant 'smal'; did you mean 'small'"),
        ("{small: 60.0", "{smal: 60.0", "accuracies: unknown variant 'smal'; did you mean 'small'"),
        ("batch_sizes: [1, 2]", "batch_sizes: [1, 1]", "1 is listed twice"),
        ("fit/batch-1/operations", "fit/batch-3/operations", "unknown metric 'fit/batch-3/operations/r_squared'"),
        ('op: ">", claimed: 0.5', "claimed: 0.5, margin: 0.1", "is not an error in percent"),
        ("of: forward, metric: power", "of: small, metric: power", "small is not trained, so it has no metric"),
        ("derived:\n", "derived:\n  other: {kind: column, of: small, column: 1}\n",
         "train: this key is required if there are scales, except for timings alone"),
    ],
)  # fmt: skip
def test_impossible_timings_are_refused(load, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        load(old, new)
    assert message in str(caught.value)


def test_networks_are_measured(made):
    _, record = made
    assert (record.data, record.status, record.precision) == ("random pixels", "finished", "fp32")
    passes = {f"{name}/batch-{size}/seconds_per_image" for name in ("small", "middle", "large") for size in (1, 2)}
    assert passes <= record.metrics.keys()
    assert all(record.metrics[name] > 0 for name in passes)
    small = record.metrics
    assert small["small/batch_gain"] == pytest.approx(
        small["small/batch-1/seconds_per_image"] / small["small/batch-2/seconds_per_image"]
    )
    assert 0 <= small["fit/batch-1/operations/r_squared"] <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU reports memory and power")
def test_a_cpu_reports_neither_memory_nor_power(made):
    _, record = made
    assert not [name for name in record.metrics if name.endswith(("memory_mib", "watts", "joules_per_image"))]


def test_stop_leaves_no_record(load):
    (task, *_) = make_tasks(plan_runs(load(), scale="paper"))
    assert make_timing(task, stop=lambda: True) is None
    assert not (task.folder / "result.json").exists()


class Sleeper(nn.Module):
    """Takes a second for the first pass and a hundredth for each image of the others."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        time.sleep(0.5 if self.passes == 1 else 0.01 * len(x))
        return x


def test_first_pass_does_not_count_and_the_median_does():
    network = Sleeper()
    passes = measure_passes(network, torch.zeros(3, 1), 3)
    assert network.passes == 4
    assert 0.03 <= passes.seconds < 0.4
    assert timed_pass(network, torch.zeros(1, 1)) >= 0.01


def test_metrics_are_per_image():
    assert Passes(0.5).metrics(2) == {"seconds_per_image": 0.25}
    assert Passes(0.5, 100.0, 20.0).metrics(2) == {
        "seconds_per_image": 0.25, "memory_mib": 100.0, "watts": 20.0, "joules_per_image": 5.0
    }  # fmt: skip


def test_relations_are_those_of_the_points(load, monkeypatch):
    run = plan_runs(load(), scale="paper")[0]
    operations = {8: 1e6, 14: 2e6, 20: 3e6}
    monkeypatch.setattr(timing, "measure_network", lambda recipe, _: operations[recipe.model.args["depth"]])
    metrics = {}
    for name, seconds in (("small", 1.0), ("middle", 2.0), ("large", 3.0)):
        for size in (1, 2):
            metrics |= {
                f"{name}/batch-{size}/{key}": value for key, value in Passes(seconds, 1.0, 10.0).metrics(1).items()
            }
    found = relations(run.spec, run.networks, metrics)
    assert found["fit/batch-1/operations/r_squared"] == pytest.approx(1)  # times are 1, 2, 3
    # 60, 75, 80 against 1, 1/2, 1/3: the slope of the line through these is -30, all on it
    assert found["fit/batch-1/hyperbola/r_squared"] == pytest.approx(1)
    assert found["fit/batch-1/line/r_squared"] == pytest.approx(12 / 13)  # 1 - 50/3 / (650/3)
    assert found["energy/batch-2/rank_correlation"] == pytest.approx(1)
    assert found["power/relative_spread"] == 0
    without = {key: value for key, value in metrics.items() if key != "large/batch-2/joules_per_image"}
    assert "energy/batch-2/rank_correlation" not in relations(run.spec, run.networks, without)


def test_networks_that_do_not_differ_have_no_fits(load, monkeypatch):
    run = plan_runs(load(), scale="paper")[0]
    monkeypatch.setattr(timing, "measure_network", lambda *_: 1e6)
    metrics = {f"{name}/batch-{size}/seconds_per_image": 1.0 for name in run.spec.networks for size in (1, 2)}
    equal = run.spec.model_copy(update={"accuracies": dict.fromkeys(run.spec.networks, 70.0)})
    assert relations(equal, run.networks, metrics) == {}


def test_claims_are_judged_from_timings(load):
    experiment = load(
        "scales: {paper: {why: All.}",
        "departures: [{what: x., why: y., material: true}]\nscales: {paper: {why: All.}",
    )
    metrics = {"fit/batch-1/operations/r_squared": 0.9, "fit/batch-1/hyperbola/r_squared": 0.8}
    records = [
        record_of(experiment, seed, metrics | {"fit/batch-1/line/r_squared": 0.7 - seed / 100})
        for seed in (0, 1, 2)
    ]
    found = {entry.claim.id: entry for entry in ledger(experiment, records, lambda *_: 0)}
    assert found["line"].verdict.outcome == "reached"  # other hardware is a material departure
    assert found["curve"].verdict.outcome == "reached"
    assert (found["power"].verdict.outcome, found["power"].verdict.reason) == ("cannot judge", "no-data")
    assert "the device (one core) does not report it" in found["power"].verdict.sentence
    worse = [
        replace(record, metrics=record.metrics | {"fit/batch-1/operations/r_squared": 0.1}) for record in records
    ]
    verdict = next(e.verdict for e in ledger(experiment, worse, lambda *_: 0) if e.claim.id == "line")
    assert (verdict.outcome, verdict.reason) == ("cannot judge", "recipe-departs")
    assert build_leaderboard([experiment], records) == []


def test_missing_timing_names_its_command(load):
    entry = ledger(load(), [], lambda *_: 0)[0]
    assert entry.verdict.reason == "not-run"
    assert entry.command == "repro run toy/times --scale paper"


def test_accuracies_of_the_timing_are_those_of_the_chart():
    """Read off the same chart, they are declared in two experiments."""
    printed = load_experiment("complexity/architecture").printed
    spec = load_experiment("complexity/measurements").derived["forward"]
    assert isinstance(spec, TimingSpec)
    assert {f"top1_{name}": value for name, value in spec.accuracies.items()} == {
        name: value.value for name, value in printed.items() if name.startswith("top1_")
    }
