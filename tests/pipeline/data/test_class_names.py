"""Names of class folders: one order for every reader, and names that differ only in their spelling."""

import pytest

from pipeline.data.class_names import check_distinct, class_order, describe_order, imagenet_wnids
from pipeline.data.folders import read_folders
from pipeline.data.images import DataError
from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.derive.class_folders import ClassFolders, list_test_folder
from pipeline.derive.class_labels import class_labels
from tests.support.image_sets import write_image

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # one word in the Unicode forms NFC and NFD


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["b", "a", "B"], ["B", "a", "b"]),
        (["10", "9", "0"], ["0", "9", "10"]),
        (["010", "9", "09"], ["09", "9", "010"]),  # equal values by name
        (["10", "9", "x"], ["10", "9", "x"]),
        ([], []),
    ],
)
def test_numbers_are_sorted_by_value_and_names_by_name(names, ordered):
    assert class_order(names) == tuple(ordered)


def test_every_reader_numbers_the_same_folder_alike(tmp_path):
    """Training in memory, shards and the evaluation of weights: 12 folders, whose names sort otherwise as text."""
    for split in ("train", "test"):
        for number in range(12):
            write_image(tmp_path / "set" / split / str(number) / "0.png", number, height=20, width=20)
    expected = tuple(map(str, range(12)))
    listing = list_test_folder(tmp_path / "set" / "test")
    images = ClassFolders(listing, class_labels("set", class_order(listing.names), 12))
    assert read_folders("set", tmp_path).classes == expected
    assert source_from_folders(tmp_path / "set").classes == expected
    assert {file.parent.name: label for file, label in zip(images.files, images.labels.tolist(), strict=True)} == {
        name: int(name) for name in expected
    }


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [(COMPOSED, DECOMPOSED, "two Unicode forms"), ("cat", "cat ", "a blank at an end")],
)
def test_one_name_in_two_spellings_is_refused(tmp_path, one, other, difference):
    with pytest.raises(DataError) as caught:
        check_distinct("set", ["dog", one, other])
    assert f"{one!a} and {other!a} have one name in two spellings ({difference})" in str(caught.value)
    check_distinct("set", ["dog", one])
    for split, name in (("train", one), ("test", other)):  # not: class X has no images in the test split
        write_image(tmp_path / "set" / split / name / "0.png", 0, height=20, width=20)
    for read in (lambda: read_folders("set", tmp_path), lambda: source_from_folders(tmp_path / "set")):
        with pytest.raises(DataError, match="have one name in two spellings"):
            read()


@pytest.mark.parametrize(
    ("classes", "order"),
    [
        (imagenet_wnids()[5:8], "ILSVRC's WordNet ids"),
        (["0", "9", "10"], "numbers by value"),
        (["ant", "bee"], "sorted names"),
        (["T-shirt/top", "Trouser", "Pullover"], "the set's own order"),
    ],
)
def test_the_order_of_a_set_is_described(classes, order):
    assert describe_order(classes) == order
