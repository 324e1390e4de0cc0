"""Execution settings: which are chosen from given times, how steps are timed, and that a run keeps its choice."""

import dataclasses
import json
import threading

import pytest
import torch

from lightning_modules.networks import build
from pipeline.track.run_folder import RunFolder
from pipeline.train import context, execution
from pipeline.train.context import RunContext
from pipeline.train.execution import Execution, ExecutionChoice, StepTimer, fastest, usable
from tests.support.smoke_runs import images_of, manifest_of, smoke_run, stop_after, train_in, weights

FP32 = Execution("fp32", channels_last=False, compiled=False, threads=1)
LAST = dataclasses.replace(FP32, channels_last=True)
BF16 = dataclasses.replace(LAST, precision="bf16")
COMPILED = dataclasses.replace(LAST, compiled=True)
BF16_COMPILED = dataclasses.replace(BF16, compiled=True)
# Images per second of ResNet-20 at batch 128, as measured on two processors.
AVX512 = {FP32: 395, LAST: 548, BF16: 380, COMPILED: 554, BF16_COMPILED: 396}
AMX = {FP32: 475, LAST: 647, BF16: 1107, COMPILED: 802, BF16_COMPILED: 1535}


class Clock:
    """Stands for a StepTimer: the seconds per step of each candidate follow from its images per second."""

    def __init__(self, speeds):
        self.speeds, self.asked = speeds, []

    def __call__(self, candidates):
        self.asked += candidates
        return [128 / self.speeds[one] if self.speeds[one] else 0.0 for one in candidates]


@pytest.mark.parametrize(
    ("speeds", "declared", "steps", "chosen"),
    [
        (AVX512, BF16, 440, LAST),  # bf16 is slower here
        (AVX512, BF16, 64_000, LAST),  # compiling gains 1 %
        (AMX, BF16, 440, BF16),  # two minutes of training are too short to compile
        (AMX, BF16, 64_000, BF16_COMPILED),
        (AMX, LAST, 64_000, BF16_COMPILED),
    ],
)
def test_fastest_settings_are_chosen(speeds, declared, steps, chosen):
    clock = Clock(speeds)
    choice = fastest(declared, steps, clock, bf16=True, compiler=True)
    assert choice.execution == chosen
    assert choice.step_seconds[chosen.text] == pytest.approx(128 / speeds[chosen])
    assert any(one.compiled for one in clock.asked) == (steps == 64_000)


def test_processor_without_bf16_or_compiler_is_not_asked_for_them():
    clock = Clock(AMX)
    assert fastest(FP32, 64_000, clock, bf16=False, compiler=False).execution == LAST
    assert set(clock.asked) == {FP32, LAST}


def test_settings_that_are_as_fast_stay_as_declared():
    assert fastest(FP32, 1000, Clock({FP32: 100, LAST: 104}), bf16=False, compiler=False).execution == FP32
    assert fastest(FP32, 1000, Clock({FP32: 100, LAST: 106}), bf16=False, compiler=False).execution == LAST


def test_short_runs_are_as_declared_and_time_at_most_one_candidate():
    clock = Clock(AMX)
    assert fastest(BF16, 99, clock, bf16=True, compiler=True) == ExecutionChoice(BF16, {})
    assert clock.asked == []
    assert fastest(BF16, 150, clock, bf16=True, compiler=True) == ExecutionChoice(BF16, {})  # 17 seconds
    assert clock.asked == [BF16]


def test_candidate_that_fails_is_left_out():
    choice = fastest(BF16, 64_000, Clock(AMX | {BF16_COMPILED: 0}), bf16=True, compiler=True)
    assert choice.execution == BF16
    assert BF16_COMPILED.text not in choice.step_seconds


def test_one_thread_is_used_if_several_are_not_faster():
    two = dataclasses.replace(LAST, threads=2)
    slow = dataclasses.replace(FP32, threads=2)
    speeds = {slow: 50, two: 100, LAST: 97}
    assert fastest(two, 1000, Clock(speeds), bf16=False, compiler=False).execution == LAST
    assert fastest(two, 1000, Clock(speeds | {LAST: 60}), bf16=False, compiler=False).execution == two


def test_text_names_all_settings():
    assert BF16_COMPILED.text == "bf16, channels-last, compiled, 1 thread"
    assert dataclasses.replace(FP32, threads=2).text == "fp32, 2 threads"


# --- timing --------------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build("resnet_cifar", {"depth": 8}, num_classes=10, in_channels=3)


def timer(network, cache):
    return StepTimer(network, (4, 3, 16, 16), torch.device("cpu"), key="resnet-8", cache=cache)


def test_timing_changes_neither_network_nor_random_draws_nor_threads(network, tmp_path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    seconds = timer(network, tmp_path)([FP32, dataclasses.replace(LAST, threads=2)])
    assert all(0 < value < 60 for value in seconds)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.conv1.weight.is_contiguous()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_times_are_measured_once_per_network(network, tmp_path, monkeypatch):
    first = timer(network, tmp_path)([FP32, LAST])
    monkeypatch.setattr(StepTimer, "measure", lambda *_: pytest.fail("measured again"))
    assert timer(network, tmp_path)([LAST, FP32]) == first[::-1]
    with pytest.raises(pytest.fail.Exception):  # of other images
        StepTimer(network, (8, 3, 16, 16), torch.device("cpu"), key="resnet-8", cache=tmp_path)([FP32])


def test_two_processes_measure_one_after_the_other(network, tmp_path):
    first, second, order = timer(network, tmp_path), timer(network, tmp_path), []

    def measure_second():
        with second.alone():
            order.append("second")

    other = threading.Thread(target=measure_second)
    with first.alone():
        other.start()
        other.join(0.3)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


def test_folder_that_cannot_be_written_is_no_error(network, tmp_path):
    (tmp_path / "file").touch()
    one = timer(network, tmp_path / "file")
    with one.alone():
        assert one([FP32])[0] > 0


@pytest.mark.parametrize("content", ["", "[1]", '{"fp32, 1 thread": "fast"}', "\x00"])
def test_damaged_cache_is_measured_again(network, tmp_path, content):
    one = timer(network, tmp_path)
    one([FP32])
    one.file.write_text(content, encoding="utf-8")
    assert timer(network, tmp_path)([FP32])[0] > 0
    assert json.loads(one.file.read_text(encoding="utf-8")).keys() == {FP32.text}


def test_settings_that_fail_are_named_and_not_cached(network, tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError("no such backend\nmore")

    said = []
    monkeypatch.setattr(torch, "compile", lambda module: fail)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # imports the compiler
    one = StepTimer(network, (4, 3, 16, 16), torch.device("cpu"), key="", cache=tmp_path, report=said.append)
    failed, works = one([COMPILED, LAST])
    assert (failed, works > 0) == (0.0, True)
    assert said == [f"{COMPILED.text} is not used, it fails here: no such backend"]
    assert one.read().keys() == {LAST.text}


def test_networks_with_auxiliary_classifiers_are_timed():
    """Their output in training is a tuple."""
    shape = (2, 3, 224, 224)
    googlenet = build("googlenet", {}, num_classes=10, in_channels=3)
    assert StepTimer(googlenet, shape, torch.device("cpu"), key="", cache=None)([LAST])[0] > 0


# --- a run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tunable():
    """A run that may choose its settings; declared are bf16 and channels-last."""
    return dataclasses.replace(
        smoke_run(changes={"train.precision": "bf16", "train.channels_last": True}), tunable=True
    )


@pytest.fixture
def measured(monkeypatch):
    """Processor on which contiguous fp32 is fastest; also short runs are timed."""
    monkeypatch.setattr(context, "has_bf16", lambda _: True)
    monkeypatch.setattr(execution, "SHORTEST_STEPS", 1)
    monkeypatch.setattr(execution, "SHORTEST_SECONDS", 0.0)
    speeds = {FP32: 900, LAST: 500, BF16: 100}
    monkeypatch.setattr(StepTimer, "measure", lambda _, candidates: Clock(speeds)(candidates))
    return speeds


@pytest.mark.usefixtures("measured")
def test_chosen_settings_train_and_are_recorded(tmp_path, tunable, uninterrupted):
    record = train_in(tmp_path / "run", tunable)
    assert (record.precision, record.channels_last, record.compiled, record.threads) == ("fp32", False, False, 1)
    assert record.step_seconds == {one.text: 128 / speed for one, speed in ((BF16, 100), (FP32, 900), (LAST, 500))}
    assert weights(tmp_path / "run") == weights(uninterrupted[1])  # trained in fp32 without a choice
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_run_that_may_not_choose_is_trained_as_declared(tmp_path, tunable, measured):
    fixed = dataclasses.replace(tunable, tunable=False)
    chosen = RunContext(fixed, RunFolder(tmp_path), images_of("noise"), manifest_of("noise")).choice
    assert chosen == ExecutionChoice(BF16, {})


def test_resumed_run_computes_as_it_began(tmp_path, tunable, measured, uninterrupted):
    assert train_in(tmp_path / "run", tunable, stop=stop_after(3)) is None
    measured[LAST] = 5000  # another process measures otherwise
    for file in tmp_path.glob(".cache/step-seconds/*"):
        file.unlink()
    record = train_in(tmp_path / "run", tunable)
    assert not record.channels_last
    assert weights(tmp_path / "run") == weights(uninterrupted[1])


def test_resumed_run_without_bf16_says_so(tmp_path, tunable, measured, monkeypatch):
    measured[BF16] = 5000
    train_in(tmp_path, tunable, stop=stop_after(2))
    monkeypatch.setattr(context, "has_bf16", lambda _: False)
    record = train_in(tmp_path, tunable)
    assert record.precision == "fp32"
    assert record.ended == "12 steps; precisions bf16, fp32"
    assert not record.costs  # times in two precisions do not add up


def test_machine_with_less_uses_what_it_has():
    begun = dataclasses.replace(BF16_COMPILED, threads=8)
    assert usable(begun, 2, bf16=False, compiler=False) == dataclasses.replace(LAST, threads=2)
    assert usable(begun, 16, bf16=True, compiler=True) == begun
