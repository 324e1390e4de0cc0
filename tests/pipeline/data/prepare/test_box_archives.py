"""Bounding boxes from ImageNet's archives of annotations: what is read, and which faults are refused."""

import re

import numpy as np
import pytest

from pipeline.data.boxes import read_box_manifest, with_boxes
from pipeline.data.images import DataError
from pipeline.data.prepare import devkit
from pipeline.data.prepare.annotations import AnnotatedBox, Annotation
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    TRAIN_BOXES,
    VAL_ARCHIVE,
    VAL_BOXES,
    read_stand_in_info,
)
from pipeline.data.prepare.box_archives import parse_annotation
from pipeline.data.prepare.source_archives import source_from_archives
from pipeline.data.prepare.write_boxes import boxes_text
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.shards import open_shards
from pipeline.data.store import Store
from tests.support.ilsvrc_archives import (
    CLASSES,
    assert_refused,
    list_archives,
    rewrite_archive,
    treat_as_published,
    update_checksums,
)
from tests.support.preparing import file_sums

# As in ILSVRC2012_bbox_train_v2.tar.gz, with a second object.
PUBLISHED = b"""<annotation>
\t<folder>n01440764</folder>
\t<filename>%s</filename>
\t<source><database>ILSVRC_2012</database></source>
\t<size><width>500</width><height>375</height><depth>3</depth></size>
\t<segmented>0</segmented>
\t<object><name>n01440764</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
\t\t<bndbox><xmin>9</xmin><ymin>147</ymin><xmax>491</xmax><ymax>330</ymax></bndbox></object>
\t<object><name>tench</name><bndbox><xmin>-3</xmin><ymin>0</ymin><xmax>501</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""


def test_an_annotation_as_published_is_read():
    boxes = AnnotatedBox("n01440764", 9, 147, 491, 330), AnnotatedBox("tench", -3, 0, 501, 40)
    assert parse_annotation(PUBLISHED) == Annotation(500, 375, boxes)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"</annotation>", b"", "is not XML"),
        (b"<annotation>", b'<?xml version="1.0" encoding="no-such"?><annotation>', "is not XML (unknown encoding"),
        (b"<annotation>", b'<?xml version="1.0" encoding="utf-7"?><annotation>', "is not XML (multi-byte encod"),
        (b"<xmin>9</xmin>", b"", "has no integer in object 1: bndbox/xmin, but ''"),
        (b"<ymax>40<", b"<ymax>4.5<", "has no integer in object 2: bndbox/ymax, but '4.5'"),
        (b"<width>500<", b"<width>0<", "gives its image a size of 0 x 375 pixels"),
        (b"<height>375</height>", b"", "has no integer in size/height"),
    ],
)
def test_a_faulty_annotation_names_the_fault(old, new, words):
    assert old in PUBLISHED
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_annotation(PUBLISHED.replace(old, new))


def test_the_stand_in_has_one_box_around_each_shape(stand_in_folder):
    boxes = list_archives(stand_in_folder).boxes
    assert {name: len(found) for name, found in boxes.splits.items()} == {"train": 12, "test": 8}
    assert boxes.strict
    for found in boxes.splits.values():
        for annotation in found.values():
            [box] = annotation.boxes
            assert box.name in CLASSES
            assert 0 <= box.left < box.right <= annotation.width
            assert 0 <= box.top < box.bottom <= annotation.height
            assert min(box.right - box.left, box.bottom - box.top) > 0.1 * min(annotation.width, annotation.height)


# --- archives ------------------------------------------------------------------------------------------------


def test_archives_without_boxes_are_listed_without(archives):
    for name in (TRAIN_BOXES, VAL_BOXES):
        (archives / name).unlink()
    assert list_archives(archives).boxes is None


def test_boxes_of_one_part_only_are_refused(archives):
    (archives / VAL_BOXES).unlink()
    assert_refused(archives, f"contains {TRAIN_BOXES} but not {VAL_BOXES}", "move ILSVRC2012_bbox_train_v2.tar.gz")


def test_boxes_of_missing_images_are_not_read(archives):
    for name in (VAL_ARCHIVE, DEVKIT_ARCHIVE):
        (archives / name).unlink()
    assert set(list_archives(archives).boxes.splits) == {"train"}


def test_a_damaged_archive_of_boxes_is_refused(archives):
    (archives / TRAIN_BOXES).write_bytes((archives / TRAIN_BOXES).read_bytes()[:-9])
    assert_refused(archives, TRAIN_BOXES, "bytes, expected")
    update_checksums(archives)
    assert_refused(archives, f"{TRAIN_BOXES} cannot be read")


def rename_first(new):
    """Rename the first member of an archive."""
    return lambda members: [(new, members[0][1]), *members[1:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_first("n01440764/readme.txt"), "'readme.txt' is not an annotation"),
        (lambda members: [*members, ("again/" + members[0][0].name.split("/")[1], members[0][1])], "occurs twice"),
        (lambda members: [], "contains no annotations"),
        (lambda members: [(members[0][0].name, b"<a>"), *members[1:]], "is not XML"),
        (lambda members: [(members[0][0].name, b" " * (1 << 20) + b"x")], "too large for an annotation"),
    ],
)
def test_files_that_are_no_annotations_are_refused(archives, change, words):
    rewrite_archive(archives, TRAIN_BOXES, change)
    assert_refused(archives, TRAIN_BOXES, words)


# --- faults of annotations -----------------------------------------------------------------------------------


def edit_annotation(archives, name, old, new, *, index=0):
    """Replace a pattern in one annotation of an archive."""

    def change(members):
        changed = [(member.name, content) for member, content in members]
        stem, content = changed[index]
        assert re.search(old, content)
        changed[index] = stem, re.sub(old, new, content)
        return changed

    rewrite_archive(archives, name, change)


def prepare(archives, folder):
    """Prepare the archives, and return the set with its boxes."""
    source = source_from_archives(archives, cache=folder / "cache")
    prepare_shards(source, Store(str(folder / "shards")), samples=5, workers=1)
    return with_boxes(open_shards(folder / "shards"))


def prepare_error(archives, folder):
    """The one-line message with which preparing fails, before any shard is written."""
    with pytest.raises(DataError) as caught:
        prepare(archives, folder)
    assert "\n" not in str(caught.value)
    assert not list((folder / "shards").glob("*.tar")) if (folder / "shards").exists() else True
    return str(caught.value)


FAULTS = {  # pattern and replacement in an annotation -> words of the error
    (rb"<xmin>\d+</xmin>(.*)<xmax>\d+", rb"<xmin>900</xmin>\1<xmax>950"): "outside of the image: 900,",
    (rb"<ymin>\d+</ymin>(.*)<ymax>\d+", rb"<ymin>7</ymin>\1<ymax>7"): "has an empty box",
    (rb"<name>\w+", b"<name>n01491361"): "has a box of class n01491361, but the image is of class n01440764",
}


@pytest.mark.parametrize(("fault", "words"), FAULTS.items(), ids=["outside", "empty", "class"])
def test_a_faulty_box_is_refused(archives, tmp_path, fault, words):
    edit_annotation(archives, TRAIN_BOXES, *fault)
    message = prepare_error(archives, tmp_path)
    assert words in message
    assert f"{TRAIN_BOXES}, n01440764_18.xml" in message


@pytest.mark.parametrize("fault", FAULTS, ids=["outside", "empty", "class"])
def test_a_faulty_box_of_the_published_training_images_is_left_out(archives, tmp_path, monkeypatch, fault):
    edit_annotation(archives, TRAIN_BOXES, *fault)
    boxed = as_published(archives, tmp_path, monkeypatch)
    manifest = read_box_manifest(boxed.store, boxed.plain.manifest).splits["train"]
    assert (manifest.left_out, manifest.boxes, manifest.images) == (1, 11, 11)
    assert len(boxed.train) == 11


def as_published(archives, folder, monkeypatch):
    """Prepare the archives as if they were the published ones, and return the set with its boxes."""
    info = read_stand_in_info(archives)
    numbers = dict(zip(info.numbers, CLASSES, strict=True))
    monkeypatch.setattr(devkit, "_leaves", lambda archives, content: list(numbers.items()))
    treat_as_published(archives, monkeypatch)
    return prepare(archives, folder)


def test_boxes_that_cross_the_border_are_clipped_and_reversed_ones_are_sorted(archives, tmp_path):
    edit_annotation(archives, TRAIN_BOXES, rb"<xmin>\d+", b"<xmin>-5")
    edit_annotation(
        archives, TRAIN_BOXES, rb"<ymin>(\d+)</ymin>(.*)<ymax>(\d+)", rb"<ymin>\3</ymin>\2<ymax>\1", index=1
    )
    boxed = prepare(archives, tmp_path)
    manifest = read_box_manifest(boxed.store, boxed.plain.manifest)
    assert manifest.splits["train"].clipped == 1
    assert "train: 12 in 12 images, 1 clipped to the image; test: 8 in 8 images" in boxes_text(manifest)
    assert sum(corners[0, 0] == 0 for corners in boxed.train.boxes) >= 1
    assert all((corners[:, :2] < corners[:, 2:]).all() for corners in boxed.train.boxes)


def test_all_boxes_of_an_image_are_kept(archives, tmp_path):
    edit_annotation(
        archives,
        VAL_BOXES,
        rb"(<object>.*</object>)",
        rb"\1<object><name>a fish</name><bndbox><xmin>0</xmin><ymin>1</ymin><xmax>2</xmax><ymax>4</ymax></bndbox>"
        rb"</object>",
    )
    boxed = prepare(archives, tmp_path)
    assert sorted(map(len, boxed.test.boxes)) == [1] * 7 + [2]
    [two] = [corners for corners in boxed.test.boxes if len(corners) == 2]
    index = next(i for i, corners in enumerate(boxed.test.boxes) if len(corners) == 2)
    height, width = (int(boxed.test.index[index][key]) for key in ("height", "width"))
    np.testing.assert_allclose(two[1], [0, 1 / height, 2 / width, 4 / height])


def test_a_box_is_relative_to_the_size_that_the_annotators_saw(archives, tmp_path):
    before = prepare(archives, tmp_path / "before")

    def double(members):
        def twice(found):
            return b"<%s>%d" % (found[1], 2 * int(found[2]))

        pattern = rb"<(xmin|ymin|xmax|ymax|width|height)>(\d+)"
        return [(member.name, re.sub(pattern, twice, content)) for member, content in members]

    rewrite_archive(archives, TRAIN_BOXES, double)
    after = prepare(archives, tmp_path / "after")
    for one, other in zip(before.train.boxes, after.train.boxes, strict=True):
        np.testing.assert_allclose(one, other)


def test_an_annotation_of_an_unknown_image_is_refused(archives, tmp_path):
    rewrite_archive(archives, TRAIN_BOXES, lambda members: [*members, ("n01440764/n01440764_9.xml", PUBLISHED)])
    message = prepare_error(archives, tmp_path)
    assert "n01440764_9.xml describes an image that is not in the train part" in message


def test_an_annotation_of_an_unknown_published_training_image_is_counted(archives, tmp_path, monkeypatch):
    rewrite_archive(archives, TRAIN_BOXES, lambda members: [*members, ("n01440764/n01440764_9.xml", PUBLISHED)])
    boxed = as_published(archives, tmp_path, monkeypatch)
    assert read_box_manifest(boxed.store, boxed.plain.manifest).splits["train"].unknown == 1


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: members[1:], "ILSVRC2012_val_00000001.xml is missing"),
        (
            lambda members: [
                (members[0][0].name, re.sub(rb"<object>.*</object>", b"", members[0][1])),
                *members[1:],
            ],
            "ILSVRC2012_val_00000001.xml describes no object",
        ),
    ],
)
def test_every_test_image_must_have_a_box(archives, tmp_path, monkeypatch, change, words, published):
    rewrite_archive(archives, VAL_BOXES, change)
    if published:
        with pytest.raises(DataError, match=words):
            as_published(archives, tmp_path, monkeypatch)
    else:
        assert words in prepare_error(archives, tmp_path)


def test_boxes_are_added_to_a_finished_set_without_changing_it(archives, tmp_path):
    kept = {name: (archives / name).read_bytes() for name in (TRAIN_BOXES, VAL_BOXES)}
    for name in kept:
        (archives / name).unlink()
    out = Store(str(tmp_path / "shards"))
    prepare_shards(source_from_archives(archives, cache=tmp_path / "cache"), out, samples=5, workers=1)
    before = file_sums(out)
    for name, content in kept.items():
        (archives / name).write_bytes(content)
    prepare(archives, tmp_path)
    after = file_sums(out)
    assert after.keys() - before.keys() == {"boxes.json", "train.boxes.npy", "test.boxes.npy"}
    assert {name: after[name] for name in before} == before
