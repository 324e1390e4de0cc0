"""Which output of a network each class of a set is: ILSVRC's classes, assumed orders, and orders from a file."""

import pytest

from pipeline.data.class_names import class_order, imagenet_wnids
from pipeline.data.images import DataError
from pipeline.derive.class_labels import class_labels, read_class_order

WNIDS = imagenet_wnids()


def test_subset_of_ilsvrcs_classes_keeps_its_indices():
    assert (len(WNIDS), WNIDS[0], WNIDS[999]) == (1000, "n01440764", "n15075141")  # tench, toilet paper
    labels = class_labels("val", [WNIDS[7], WNIDS[999]], 1000)
    assert (labels.numbers, labels.order, labels.is_assumed) == ((7, 999), "ILSVRC's WordNet ids", False)


@pytest.mark.parametrize("width", [1, 3])  # 0 to 999, 000 to 999
def test_numbers_from_0_are_the_outputs_and_said_to_be_assumed(width):
    names = class_order(f"{number:0{width}}" for number in range(1000))
    labels = class_labels("val", names, 1000)
    assert {int(name): number for name, number in zip(names, labels.numbers, strict=True)} == {
        number: number for number in range(1000)
    }
    assert (labels.order, labels.is_assumed) == ("numbers by value", True)


def test_the_devkits_numbers_are_refused():
    with pytest.raises(DataError) as caught:
        class_labels("val", class_order(map(str, range(1, 1001))), 1000)
    assert str(caught.value) == (
        "val holds the classes 1 to 1000, and the numbers of ILSVRC's devkit are in another order than a network's"
        " classes; give the order of the network's classes with --classes FILE, one name per line"
    )


def test_readable_names_of_ilsvrcs_classes_are_refused():
    names = class_order(["Afghan hound", *(f"class {number}" for number in range(999))])
    with pytest.raises(DataError, match="such as 'Afghan hound', so their order is not known; give the order of"):
        class_labels("val", names, 1000)


def test_a_wordnet_id_with_a_blank_at_its_end_is_that_class():
    labels = class_labels("val", ["n01443537 ", "n01440764"], 1000)
    assert (labels.numbers, labels.order, labels.is_assumed) == ((1, 0), "ILSVRC's WordNet ids", False)


def test_classes_of_another_network_are_assumed_unless_the_set_is_its_own():
    assert class_labels("pets", ["ant", "bee"], 2).is_assumed
    assert class_labels("pets", ["ant", "bee"], 2).order == "sorted names"
    assert not class_labels("pets", ["ant", "bee"], 2, known=True).is_assumed


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (5, "val holds 3 classes, but the network has 5"),
        (1000, "use all of them, or any of ILSVRC's by name, such as n01440764 ('a' is none of them), or give"),
    ],
)
def test_another_number_of_classes_is_refused(classes, text):
    with pytest.raises(DataError) as caught:
        class_labels("val", ["a", "b", "c"], classes)
    assert text in str(caught.value)


def write_lines(tmp_path, lines):
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_a_file_gives_the_order_of_the_outputs(tmp_path):
    """Output 0 is the last WordNet id: the reverse of the usual order; the folders may be some of the classes."""
    file = write_lines(tmp_path, reversed(WNIDS))
    labels = class_labels("val", [WNIDS[0], WNIDS[3]], 1000, file)
    assert (labels.numbers, labels.is_assumed) == ((999, 996), False)
    assert labels.order.startswith("classes.txt (sha256 ")


def test_a_file_gives_the_order_of_readable_names_and_numbers(tmp_path):
    file = write_lines(tmp_path, ["zebra", "caf\u00e9", "ant", ""])
    assert class_labels("val", ["ant", "cafe\u0301 ", "zebra"], 3, file).numbers == (2, 1, 0)
    file = write_lines(tmp_path, ["3", "1", "2"])
    assert class_labels("val", ["1", "2", "3"], 3, file).numbers == (1, 2, 0)


def test_the_descriptions_after_wordnet_ids_are_ignored(tmp_path):
    """As in synset_words.txt of Caffe."""
    file = write_lines(tmp_path, ["n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius auratus"])
    assert read_class_order(file, 2) == ["n01440764", "n01443537"]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["a", "b"], r"classes.txt names 2 classes, but the network has 3; give one per line"),
        (["a", "b", "a"], r"classes.txt names the class 'a' twice; give each class once"),
        (["a", "b", "x"], r"val holds the class 'c', which \S+/classes.txt does not name; add it"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, lines, text):
    with pytest.raises(DataError, match=text):
        class_labels("val", ["a", "b", "c"], 3, write_lines(tmp_path, lines))


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing.txt cannot be read \(No such file or directory\); give a text"):
        read_class_order(tmp_path / "nothing.txt", 3)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"x.txt is not UTF-8 text; give a text file with one class per line"):
        read_class_order(tmp_path / "x.txt", 3)
