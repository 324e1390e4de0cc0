"""Test the files that list what a paper prints."""

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.printed import PRINTED_FILE, load_printed

TEXT = """
also: [deep]
results:
  Table 2:
    ImageNet val, top-1 error %: {plain-18: 27.94, plain-34: {value: 28.54, claims: [toy/depth/plain-34]}, x: fail}
lecture:
  depth: {says: It has 152 layers.}
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "toy"
    path.mkdir()
    return path


def write(folder, text):
    (folder / PRINTED_FILE).write_text(text, encoding="utf-8")
    return load_printed(folder)


def test_cells_are_values_or_maps(folder):
    file = write(folder, TEXT)
    cells = file.results["Table 2"]["ImageNet val, top-1 error %"]
    assert (cells["plain-18"].value, cells["plain-18"].claims) == (27.94, ())
    assert (cells["plain-34"].value, cells["plain-34"].claims) == (28.54, ("toy/depth/plain-34",))
    assert cells["x"].value == "fail"
    assert file.lecture["depth"].says == "It has 152 layers."


def test_a_folder_without_the_file_prints_nothing(folder):
    assert load_printed(folder) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lecture:", "lectures:"), "toy/printed.yaml: lectures: unknown key; did you mean 'lecture'?"),
        (
            ("says: It has", "say: It has"),
            "toy/printed.yaml: lecture.depth.say: unknown key; did you mean 'says'?",
        ),
        (("results:", "results: ["), "toy/printed.yaml: invalid YAML: "),
    ],
)
def test_mistakes_are_named(folder, change, message):
    with pytest.raises(UserError) as caught:
        write(folder, TEXT.replace(*change))
    assert str(caught.value).startswith(message)
