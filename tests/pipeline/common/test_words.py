"""Numbers, durations and errors as text."""

import pytest

from pipeline.common.words import duration, first_line, plural


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 hours"),
        (1, "1 hour"),
        (20_000, "20,000 hours"),
        (2.5, "2.5 hours"),
        (8 / 3600, "0.00222222 hours"),
        (1.0, "1 hour"),
    ],
)
def test_a_noun_is_plural_except_after_1(number, text):
    assert plural(number, "hour") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.2, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3571, "1.0 h"),
        (12_240, "3.4 h"),
        (4_464_000, "1,240 h"),
    ],
)
def test_a_duration_is_rounded_to_its_unit(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one \ntwo"), "one "),
        (ValueError(""), "ValueError('')"),
        (KeyError(), "KeyError()"),
        (ValueError("x" * 400), "x" * 300),
    ],
)
def test_the_first_line_of_an_error_is_its_message_without_further_lines(error, text):
    assert first_line(error) == text


def test_the_first_line_of_an_error_has_a_limit():
    assert first_line(ValueError("abcdef"), 4) == "abcd"
