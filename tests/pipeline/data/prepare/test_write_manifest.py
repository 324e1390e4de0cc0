"""The manifest of a prepared set, and the check of a set that is already finished."""

import hashlib
import os

import pytest
import torch
from PIL import Image

from pipeline.data.images import DataError
from pipeline.data.order import seeded_generator
from pipeline.data.prepare.source_images import source_from_named_set
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.shard_manifest import MANIFEST_NAME
from tests.support.image_sets import write_image
from tests.support.preparing import (
    assert_prepare_refused,
    copy_folder,
    file_sums,
    prepare_folder,
)


def test_the_manifest_has_names_counts_and_checksums(source, out):
    manifest = prepare_folder(source, out)
    assert (manifest.name, manifest.classes, manifest.resized) == ("animals", ("ant", "bee"), None)
    assert {name: (split.samples, split.per_class) for name, split in manifest.splits.items()} == {
        "train": (10, (5, 5)),
        "test": (6, (3, 3)),
    }
    assert [shard.samples for shard in manifest.splits["train"].shards] == [4, 4, 2]
    assert [shard.name for shard in manifest.splits["test"].shards] == ["test-00000.tar", "test-00001.tar"]
    assert sorted(file_sums(out)) == sorted(
        [MANIFEST_NAME, "train.index.npy", "test.index.npy"]
        + [shard.name for split in manifest.splits.values() for shard in split.shards]
    )
    for split in manifest.splits.values():
        for shard in split.shards:
            content = (out.local / shard.name).read_bytes()
            assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_sha256_of_a_split_is_of_its_labels_and_images(source, out):
    manifest = prepare_folder(source, out)
    files = sorted((source / "train").rglob("*.jpg"))
    order = torch.randperm(10, generator=seeded_generator(0, "shards")).tolist()
    whole = hashlib.sha256()
    for number in order:
        label = 0 if files[number].parent.name == "ant" else 1
        whole.update(label.to_bytes(8, "little") + hashlib.sha256(files[number].read_bytes()).digest())
    assert manifest.splits["train"].sha256 == whole.hexdigest()


# --- a finished set -------------------------------------------------------------------------------------------


def test_a_finished_set_is_not_written_again(source, out):
    first = prepare_folder(source, out)
    before = {path: path.stat().st_mtime_ns for path in out.local.rglob("*")}
    again = prepare_folder(source, out, progress=lambda *_: pytest.fail("nothing to do"))
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in out.local.rglob("*")} == before


@pytest.mark.parametrize("resize", [None, 16])
def test_a_source_image_changed_later_is_noticed(source, out, tmp_path, resize):
    own = copy_folder(source, tmp_path / "mine" / "animals")
    prepare_folder(own, out, short_side=resize)
    file = own / "test" / "ant" / "ant_00001.jpg"
    write_image(file, 99)
    later = (out.local / MANIFEST_NAME).stat().st_mtime + 5
    os.utime(file, (later, later))
    assert_prepare_refused(
        f"contains a finished set, but {file} has changed since; use another folder", own, out, short_side=resize
    )


def test_a_finished_set_with_a_damaged_shard_is_refused(source, out):
    prepare_folder(source, out)
    (out.local / "test-00001.tar").write_bytes(b"")
    assert_prepare_refused("contains a finished set, but test-00001.tar is damaged", source, out)
    (out.local / "test-00001.tar").unlink()
    assert_prepare_refused("contains a finished set, but test-00001.tar is damaged", source, out)


def test_source_images_swapped_between_classes_are_noticed(source, out, tmp_path):
    own = copy_folder(source, tmp_path / "mine" / "animals")
    prepare_folder(own, out)
    moved = own / "train" / "ant" / "ant_00000.jpg"
    moved.rename(own / "train" / "bee" / "bee_99999.jpg")  # renaming keeps the modification time
    (own / "train" / "bee" / "bee_00000.jpg").rename(moved)
    assert_prepare_refused("has changed since", own, out)


def test_a_changed_pixel_of_a_small_set_is_noticed(tmp_path, out):
    source_set = source_from_named_set("noise", tmp_path)
    prepare_shards(source_set, out)
    source_set.splits["test"].images.pixels[3, 0, 0, 0] ^= 1
    with pytest.raises(DataError, match="but the test split of noise has changed since"):
        prepare_shards(source_set, out)


def test_a_set_of_images_that_are_stored_as_png_can_be_prepared_again(source, out, tmp_path):
    own = copy_folder(source, tmp_path / "mine" / "animals")
    Image.new("RGB", (24, 24), (90, 50, 50)).save(own / "train" / "ant" / "ant_00000.bmp")
    assert prepare_folder(own, out) == prepare_folder(own, out)
