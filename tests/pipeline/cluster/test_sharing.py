"""Devices per run as whole numbers and as fractions of a device."""

from fractions import Fraction

import pytest

from pipeline.cluster.sharing import FreeDevices, as_number, devices_text, layout_text, parse_devices, ray_amount
from pipeline.common.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", (1, 1)),
        ("8", (8, 1)),
        ("2.0", (2, 1)),
        ("0.25", (1, 4)),
        ("1/4", (1, 4)),
        (".5", (1, 2)),
        ("1/3", (1, 3)),
    ],
)
def test_devices_per_run_are_whole_or_one_part_of_a_device(text, expected):
    assert parse_devices(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "0.3", "2/3", "-0.5", "1/0", "half", "", "nan", "1/20000"])
def test_other_numbers_are_refused(text):
    with pytest.raises(UserError) as caught:
        parse_devices(text)
    assert str(caught.value) == (
        f"--gpus-per-run {text}: must be an integer >= 1, or 1/N for N runs on each device, as in 0.5, 0.25 or 1/3"
    )


@pytest.mark.parametrize("runs", [2, 3, 4, 7, 9, 10_000])
def test_ray_is_asked_for_no_more_than_a_device(runs):
    amount = ray_amount(Fraction(1, runs))
    assert 0 < amount <= 1 / runs
    assert round(amount * 10_000) * runs <= 10_000  # Ray counts ten-thousandths
    assert amount == round(amount, 4)


def test_devices_as_text_and_numbers():
    assert [devices_text(1), devices_text(2, "GPU"), devices_text(Fraction(1, 4))] == [
        "1 device",
        "2 GPUs",
        "1/4 of a device",
    ]
    assert [layout_text(2, gpu=False), layout_text(2, gpu=True)] == ["2 processes", "2 GPUs"]
    assert [layout_text(Fraction(1, 2), gpu=gpu) for gpu in (False, True)] == ["1/2 of a CPU", "1/2 of a GPU"]
    assert [as_number(Fraction(4, 2)), as_number(Fraction(7, 4)), as_number(Fraction(2, 3))] == [2, 1.75, 0.6667]


HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)


@pytest.mark.parametrize(
    ("free", "devices", "left"),
    [
        (FreeDevices(2), 2, FreeDevices(0)),
        (FreeDevices(2, (HALF,)), 3, None),
        (FreeDevices(0, (HALF, HALF)), 1, None),  # together one device, but none for the run
        (FreeDevices(0), 0, FreeDevices(0)),
        (FreeDevices(1), QUARTER, FreeDevices(0, (Fraction(3, 4),))),
        (FreeDevices(1, (HALF, QUARTER)), QUARTER, FreeDevices(1, (HALF,))),  # the fullest with room
        (FreeDevices(1, (HALF, QUARTER)), HALF, FreeDevices(1, (QUARTER,))),
        (FreeDevices(0, (QUARTER,)), HALF, None),
    ],
)
def test_what_is_free_after_a_run_has_started(free, devices, left):
    assert free.after_start(devices) == left
    if left:
        assert left.total == free.total - devices


def test_what_is_free_for_a_run_that_does_not_fit():
    free = FreeDevices(1, (QUARTER, Fraction(1, 8)))
    assert (free.text(2), free.text(HALF)) == ("1 free", "1/4 free")
