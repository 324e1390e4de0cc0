"""Test the suggestions of error messages about unknown names."""

import pytest

from lightning_modules.names import nearest


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("depht", ["width", "depth"], "; did you mean 'depth'?"),
        ("x", ["width", "depth"], "; known: depth, width"),
        ("x", [], "; known: none"),
        (3, ["depth"], "; known: depth"),
    ],
)
def test_the_nearest_name_or_all_names(word, known, expected):
    assert nearest(word, known) == expected


def test_another_ending_replaces_the_list_of_names():
    assert nearest("x", ["depth"], "; see the list") == "; see the list"
    assert nearest("depht", ["depth"], "; see the list") == "; did you mean 'depth'?"
    assert nearest("x", ["depth"], "") == ""
