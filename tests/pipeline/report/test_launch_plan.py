"""Table and summary of a launch plan."""

from dataclasses import replace

import pytest

from pipeline.report.launch_plan import estimate_sources, plan_rows, plan_summary
from pipeline.track.run_folder import RunFolder
from tests.support.launch_tasks import declare_only, plan_of, set_home, tasks_of


@pytest.fixture
def tasks(monkeypatch, tmp_path, experiment):
    """Three seeds of plain-20 and resnet-20, with 12 steps of 128 images each."""
    return tasks_of(experiment, set_home(monkeypatch, tmp_path))


@pytest.fixture(autouse=True)
def declared(monkeypatch, experiment):
    """The small experiment, as the only declared one."""
    return declare_only(monkeypatch, experiment)


def test_a_plan_with_a_price_shows_times_costs_and_the_budget(declared, tasks, record):
    seconds = 12 * 128 * 10.0  # ten seconds per image
    ended = [record(declared, v, 0, 9.0, scale="smoke", seconds=seconds) for v in ("plain-20", "resnet-20")]
    plan = plan_of(tasks, ended, price=2.5, max_device_hours=100.0)
    assert plan_rows(plan.variants, 2.5)[0] == {
        "variant": "plain-20",
        "runs": "3 runs",
        "devices": "1",
        "images": "4,608",
        "device time": "12.8 h",
        "cost": "32.00",
    }
    assert plan_summary(plan) == [
        "6 runs: 0 finished, 6 to do; 9,216 images to train on, 25.6 h of device time, cost 64.00 at 2.5 per"
        " device hour.",
        "Estimated from 1 run each on one core: plain-20, resnet-20.",
        "--max-gpu-hours 100: the estimate uses 26 % of it.",
    ]
    assert plan_summary(plan_of(tasks, ended, max_device_hours=12.8))[-1] == (
        "--max-gpu-hours 12.8: 50 % of the estimate; runs stop resumable when the budget is used up."
    )


def test_a_plan_without_an_estimate_says_so(declared, tasks, record):
    plan = plan_of(tasks, price=1.0, max_device_hours=1.0)
    assert "cost" in plan_rows(plan.variants, 1.0)[0]
    assert plan_rows(plan.variants, 1.0)[0]["device time"] == "no estimate"
    assert plan_summary(plan) == [
        "6 runs: 0 finished, 6 to do; 9,216 images to train on, no estimate of the device time yet.",
        "--max-gpu-hours 1: no estimate yet; runs stop resumable when the budget is used up.",
    ]
    ended = [record(declared, "plain-20", 0, 9.0, scale="smoke", seconds=1536.0)]
    assert plan_summary(plan_of(tasks, ended, max_device_hours=4.0)) == [
        "6 runs: 0 finished, 6 to do; 9,216 images to train on, at least 1.3 h of device time.",
        "Estimated from 1 run on one core: plain-20.",
        "No estimate yet: toy/depth resnet-20.",
        "--max-gpu-hours 4: the estimate uses at least 32 % of it.",
    ]


def test_runs_that_are_almost_finished_have_an_estimate(declared, tasks, record):
    ended = [record(declared, v, 0, 9.0, scale="smoke", seconds=1.0) for v in ("plain-20", "resnet-20")]
    for task in tasks:
        RunFolder(task.folder).save_checkpoint(12, lambda path: path.write_bytes(b"weights"))
    first, *others = plan_summary(plan_of(tasks, ended, price=2.0, max_device_hours=1.0))
    assert first.endswith("; 0 images to train on, 0 s of device time, cost 0.00 at 2 per device hour.")
    assert others == [
        "Estimated from 1 run each on one core: plain-20, resnet-20.",
        "--max-gpu-hours 1: the estimate uses 0 % of it.",
    ]


def test_without_a_price_there_is_no_cost_column(tasks):
    names = ["variant", "runs", "devices", "images", "device time"]
    assert list(plan_rows(plan_of(tasks).variants, None)[0]) == names


def test_variants_with_the_same_source_share_a_sentence(declared, tasks, record):
    ended = [record(declared, "plain-20", seed, 9.0, scale="smoke", identity=f"x{seed}") for seed in range(3)]
    assert estimate_sources(plan_of(tasks, ended).variants) == ["Estimated from 3 runs on one core: plain-20."]


def test_skipped_experiments_and_runs_of_earlier_launches_are_named(tasks):
    plan = replace(
        plan_of(tasks),
        without_scale=["vgg/imagenet"],
        shared=2,
        left_out=[(tasks[0], "needs plain-20 seed 0, which has not been trained on this machine")],
    )
    assert plan_summary(plan)[1:] == [
        "2 of them are also part of an earlier launch; each is done once.",
        "Skipped: toy/depth plain-20 seed 0 needs plain-20 seed 0, which has not been trained on this machine.",
        "Skipped, no scale 'smoke': vgg/imagenet.",
    ]


def test_derived_runs_are_counted_beside_runs(tasks):
    plan = plan_of(tasks)
    derived = replace(plan.variants[0], kind="derived run", runs=1, finished=0, images=0)
    assert plan_summary(replace(plan, variants=[*plan.variants, derived]))[0].startswith(
        "6 runs and 1 derived run: 0 finished, 7 to do;"
    )


def test_a_plan_of_runs_that_share_devices_shows_the_part_and_the_memory(declared, tasks, record):
    ended = [record(declared, "plain-20", 0, 9.0, scale="smoke", seconds=4 * 1536.0, runs_per_device=4)]
    plan = plan_of(tasks, ended, runs_per_device=4)
    first = plan_rows(plan.variants, None)[0]
    assert (first["devices"], first["device time"]) == ("1/4", "1.3 h")  # 3 runs of 1,536 s on a whole device
    assert (
        "4 runs share each device; on a GPU each gets 1/4 of its memory. Where that is too little, use a larger"
        " fraction or --device-batch. Times measured on a shared device compare only with each other."
    ) in plan_summary(plan)
