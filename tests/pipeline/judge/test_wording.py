"""Test numbers, seeds and lists as text."""

import pytest

from pipeline.judge.wording import is_real, listed, name_seeds, rounded, show_value


@pytest.mark.parametrize(
    ("value", "text"),
    [(10.16914, "10.17"), (9.83, "9.83"), (1234567.8, "1,234,568"), (0.000123456, "0.0001235"), (0, "0")],
)  # fmt: skip
def test_measured_numbers_have_four_digits(value, text):
    assert rounded(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(61_706, "61,706"), (8.75, "8.75"), (-0.0, "0"), ([6, 28], "(6, 28)"), ("relu", "'relu'"), (None, "None")],
)
def test_declared_values_are_not_rounded(value, text):
    assert show_value(value) == text


def test_seeds_and_lists():
    assert (name_seeds([3]), name_seeds({2, 0, 1})) == ("seed 3", "seeds 0, 1 and 2")
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


def test_true_is_not_a_number():
    assert [is_real(value) for value in (1, 1.5, True, "1", None)] == [True, True, False, False, False]
