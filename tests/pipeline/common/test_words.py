"""How numbers are said."""

import pytest

from pipeline.common.words import duration, plural


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 hours"),
        (1, "1 hour"),
        (20_000, "20,000 hours"),
        (2.5, "2.5 hours"),
        (8 / 3600, "0.00222222 hours"),
        (1.0, "1 hour"),
    ],
)
def test_nouns_are_in_the_number_of_their_number(number, said):
    assert plural(number, "hour") == said


@pytest.mark.parametrize(
    ("seconds", "said"),
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
def test_durations_are_of_two_digits_or_so(seconds, said):
    assert duration(seconds) == said
