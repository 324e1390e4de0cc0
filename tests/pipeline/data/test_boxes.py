"""Bounding boxes of sets in shards: files, renumbering, and coordinates in crops."""

import hashlib
import json
import re

import numpy as np
import pytest

from pipeline.data.boxes import (
    BOXES_NAME,
    BoxedShards,
    boxed_samples,
    corners_in_crop,
    target_box,
    with_boxes,
)
from pipeline.data.crops import CropSpec, crop_box, crop_image
from pipeline.data.images import DataError
from pipeline.data.jpeg import decode
from pipeline.data.manifest import manifest_of, sample_split
from pipeline.data.prepare.verify import verify_shards
from pipeline.data.shard_manifest import with_checksum
from pipeline.data.shards import open_shards
from pipeline.data.sources import load_images
from tests.support.box_sets import open_boxed_set, prepare_boxed_set


@pytest.fixture(scope="module")
def boxed_folder(tmp_path_factory):
    return prepare_boxed_set(tmp_path_factory.mktemp("boxed"))


@pytest.fixture
def folder(boxed_folder, tmp_path):
    """A copy of the shards and boxes, for a test to damage."""
    copy = tmp_path / "imagenet-standin"
    copy.mkdir()
    for file in (boxed_folder / "imagenet-standin").iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


# --- coordinates in a crop -----------------------------------------------------------------------------------


def marked_edges(image):
    """Left, top, right and bottom of the white pixels, in pixels; None if there are none."""
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        CropSpec(32, (40, 40), None, False, None, None, "nearest"),  # the image's own size
        CropSpec(32, (80, 80), None, False, None, None, "nearest"),  # twice its size
        CropSpec(32, (80, 80), 60, True, None, None, "nearest"),
    ],
)
def test_a_box_moves_with_the_pixels_that_it_surrounds(spec, flip):
    """The slow way: paint the box white, crop and flip the picture, and look where the white pixels are."""
    generator, seen = np.random.default_rng(0), 0
    for _ in range(40):
        left, top = generator.integers(0, 40), generator.integers(0, 25)
        right, bottom = generator.integers(left + 4, 61), generator.integers(top + 4, 41)
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[top:bottom, left:right] = 255
        draw = generator.random()
        cropped, _ = crop_image(spec, picture, draw)
        pixels = cropped.numpy()[:, ::-1] if flip else cropped.numpy()
        corners = np.array([[left / 60, top / 40, right / 60, bottom / 40]])
        found = corners_in_crop(corners, crop_box(spec, 40, 60, draw), (40, 60), 32, flip=flip)[0]
        expected = marked_edges(pixels[:, :, 0])
        if expected is None:
            inside = found.clip(0, 1)
            assert inside[2] <= inside[0] or inside[3] <= inside[1]
        else:
            np.testing.assert_allclose(found.clip(0, 1) * 32, expected, atol=1e-9)
            seen += 1
    assert seen > 10


def test_a_crop_by_area_stretches_the_box():
    """The middle quarter of 40 x 80 pixels, stretched to a square."""
    spec = CropSpec(20, None, None, False, (0.25, 0.25), (2.0, 2.0), "bilinear")
    crop = crop_box(spec, 40, 80, 0.3)
    top, left, height, width = crop.box
    assert (height, width) == (20, 40)
    corners = np.array([[(left + 10) / 80, (top + 5) / 40, (left + 30) / 80, (top + 15) / 40]])
    found = corners_in_crop(corners, crop, (40, 80), 20, flip=False)
    np.testing.assert_allclose(found, [[0.25, 0.25, 0.75, 0.75]])


def test_boxes_are_not_clipped_to_the_crop():
    spec = CropSpec(20, (40, 40), None, False, None, None, "bilinear")
    crop = crop_box(spec, 40, 40, 0.5)
    found = corners_in_crop(np.array([[0.0, 0.0, 1.0, 1.0]]), crop, (40, 40), 20, flip=True)
    assert found[0, 2] - found[0, 0] == found[0, 3] - found[0, 1] == 2.0  # twice the crop's side


def test_the_target_is_the_box_with_the_largest_part_in_the_crop():
    half_inside, small_inside, outside = [-1.0, 0.0, 0.5, 1.0], [0.2, 0.2, 0.4, 0.6], [2.0, 2.0, 9.0, 9.0]
    found = target_box(np.array([outside, small_inside, half_inside]))
    np.testing.assert_allclose(found, [-0.25, 0.5, 1.5, 1.0])  # centre, width, height; not clipped
    np.testing.assert_allclose(target_box(np.array([outside, outside]))[2:], [7.0, 7.0])


# --- sets with boxes -----------------------------------------------------------------------------------------


def test_the_boxes_are_those_of_the_images_that_are_read(boxed_folder):
    """A shape is brighter or darker than what surrounds it: pixels inside and outside of its box differ."""
    boxes = open_boxed_set(boxed_folder)
    assert isinstance(boxes, BoxedShards)
    for split in (boxes.train, boxes.test):
        assert len(split) == len(split.boxes) == {"train": 21, "test": 12}[split.name]
        for index in range(len(split)):
            image = decode(split.read([index])[0], split.where(index)).astype(float)
            assert image.shape[:2] == (split.index[index]["height"], split.index[index]["width"])
            [[left, top, right, bottom]] = split.boxes[index]
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1
            height, width = image.shape[:2]
            inside = np.zeros((height, width), bool)
            inside[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
            spread = [image[mask].std(0).mean() for mask in (inside, ~inside)]
            assert spread[0] > spread[1]  # the texture has more contrast than the spots of the background


def drop_boxes(folder, name, samples):
    """Remove the boxes of some samples, as in a set where not all images have boxes."""
    file, rows = folder / f"{name}.boxes.npy", np.load(folder / f"{name}.boxes.npy")
    rows = rows[~np.isin(rows["sample"], samples)]
    np.save(file, rows)

    def change(values):
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        values["splits"][name] |= {
            "boxes": len(rows),
            "images": len(np.unique(rows["sample"])),
            "sha256": sha256,
        }

    edit_boxes(folder, change)


def edit_boxes(folder, change):
    """Apply `change` to the values of boxes.json, and write it with a valid checksum."""
    values = json.loads((folder / BOXES_NAME).read_text())
    change(values)
    (folder / BOXES_NAME).write_text(with_checksum(values))


def test_only_images_with_boxes_count(folder):
    plain = open_shards(folder)
    drop_boxes(folder, "train", [0, 5])
    boxed = with_boxes(plain)
    assert len(boxed.train) == 19
    assert boxed.plain is plain
    assert boxed.train.read([0]) == plain.train.read([1])
    assert boxed.train.labels.tolist() == [plain.train.labels.tolist()[i] for i in range(21) if i not in (0, 5)]
    assert boxed.train.where(0).endswith("sample 1 of train")
    found = manifest_of(boxed)
    assert (found.train, found.test) == (19, 12)
    assert sum(found.per_class["train"]) == 19


def test_boxes_are_part_of_the_data_of_a_run_but_not_of_the_set(folder):
    plain = manifest_of(open_shards(folder)).sha256
    boxed = manifest_of(with_boxes(open_shards(folder))).sha256
    drop_boxes(folder, "train", [3])
    assert manifest_of(open_shards(folder)).sha256 == plain
    assert len({plain, boxed, manifest_of(with_boxes(open_shards(folder))).sha256}) == 3


def test_subsets_find_their_boxes(folder):
    drop_boxes(folder, "train", [0])
    boxed = with_boxes(open_shards(folder))
    training, validation = sample_split(boxed.train, train_count=4, val_count=3)
    for part in (training, validation):
        split, numbers = boxed_samples(part)
        assert split is boxed.train
        assert part.read([1]) == split.read([int(numbers[1])])


def test_images_are_loaded_with_their_boxes(boxed_folder):
    loaded = load_images("imagenet-standin", boxed_folder, sharded=True, boxes=True)
    assert isinstance(loaded, BoxedShards)
    assert not isinstance(load_images("imagenet-standin", boxed_folder, sharded=True), BoxedShards)


# --- damage --------------------------------------------------------------------------------------------------


def refused(folder):
    """The one-line message with which boxes are refused; `repro data verify` lists it too."""
    with pytest.raises(DataError) as caught:
        with_boxes(open_shards(folder))
    assert "\n" not in str(caught.value)
    if (folder / BOXES_NAME).exists():
        assert str(caught.value) in verify_shards(open_shards(folder).store, threads=1, decoding=False)
    return str(caught.value)


def test_an_undamaged_set_has_no_problems(folder):
    assert verify_shards(open_shards(folder).store, threads=1) == []


def test_a_set_without_boxes_is_refused(folder):
    (folder / BOXES_NAME).unlink()
    assert re.search(
        r"imagenet-standin has no bounding boxes .*; put the archives of boxes beside", refused(folder)
    )


def test_a_damaged_file_of_boxes_is_refused(folder):
    file = folder / "train.boxes.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "train.boxes.npy is damaged: its sha256 differs" in refused(folder)
    file.unlink()
    assert "train.boxes.npy not found" in refused(folder)


def test_boxes_of_other_images_are_refused(folder):
    edit_boxes(folder, lambda values: values.update(images="0" * 64))
    assert "boxes of other images than these" in refused(folder)


def test_an_edited_list_of_boxes_is_refused(folder):
    text = (folder / BOXES_NAME).read_text()
    (folder / BOXES_NAME).write_text(text.replace('"clipped": 0', '"clipped": 1', 1))
    assert "was edited" in refused(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows["right"].__setitem__(2, 1.5), "an empty box, or one outside of its image, in row 2"),
        (lambda rows: rows["top"].__setitem__(0, rows["bottom"][0]), "an empty box, or one outside"),
        (lambda rows: rows["sample"].__setitem__(-1, 99), "boxes of images that are not among the 21"),
        (lambda rows: rows["sample"].__setitem__(0, 4), "not in their order"),
    ],
)
def test_impossible_boxes_are_refused(folder, change, words):
    file, rows = folder / "train.boxes.npy", np.load(folder / "train.boxes.npy")
    change(rows)
    np.save(file, rows)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    edit_boxes(folder, lambda values: values["splits"]["train"].update(sha256=sha256))
    assert words in refused(folder)
