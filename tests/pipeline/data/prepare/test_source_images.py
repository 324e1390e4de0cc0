"""Source images: files, byte ranges of archives, and sets in memory."""

import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import DataError
from pipeline.data.prepare.source_images import SourceImage, source_from_named_set
from pipeline.data.sources import load_images


def test_a_source_image_takes_less_than_300_bytes_and_can_be_pickled():
    image = SourceImage(3, "n01440764_10026", "/data/ILSVRC2012_img_train.tar", 123_456_789_000, 110_000)
    own = (image, image.stem, image.offset, image.size)  # the path of the archive is shared
    assert sum(map(sys.getsizeof, own)) + 8 < 300
    assert pickle.loads(pickle.dumps(image)) == image


def test_a_byte_range_of_a_file_is_read(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    image = SourceImage(0, "n1_2", str(tmp_path / "x.tar"), 3, 4)
    assert image.read() == b"3456"
    assert image.signature()[0] == 4
    assert image.where == "x.tar, n1_2"


def test_a_truncated_range_and_a_missing_file_are_reported(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    with pytest.raises(DataError, match=r"^x.tar, n1_2 is truncated: 2 of 4 bytes; restore the archive$"):
        SourceImage(0, "n1_2", str(tmp_path / "x.tar"), 8, 4).read()
    missing = SourceImage(0, "a", str(tmp_path / "a.jpg"))
    for use in (missing.read, missing.signature):
        with pytest.raises(
            DataError, match=r"a\.jpg cannot be read \(No such file or directory\); restore or remove"
        ):
            use()


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    with (tmp_path / "film.jpg").open("wb") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises(
        DataError, match=r"film\.jpg has 1,099,511,627,776 bytes, too large for an image; remove it"
    ):
        SourceImage(0, "film", str(tmp_path / "film.jpg")).read()


def test_a_named_set_is_in_canonical_order(tmp_path):
    images, found = load_images("noise", tmp_path), source_from_named_set("noise", tmp_path)
    assert (found.name, found.source, found.classes) == (images.name, images.source, images.classes)
    for part, split in ((images.train, found.splits["train"]), (images.test, found.splits["test"])):
        assert [image.label for image in split] == part.labels.tolist()
        for index in (0, 7, len(split) - 1):
            with Image.open(io.BytesIO(split[index].read())) as image:
                assert np.array_equal(np.asarray(image), part.pixels[index].numpy())
    assert found.splits["train"][3].where == "noise, train, image 3"
    assert [image.stem for image in found.splits["test"][:2]] == ["0", "1"]


def test_an_unknown_set_is_reported_with_the_nearest_name(tmp_path):
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        source_from_named_set("mnits", Path(tmp_path))
