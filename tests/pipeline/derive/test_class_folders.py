"""Class folders of images of any size: reading, broken images, and folders that are rejected."""

import io
import random

import pytest
import simplejpeg
from PIL import Image

from pipeline.data import jpeg
from pipeline.data.class_names import class_order
from pipeline.data.images import DataError
from pipeline.derive.class_folders import ClassFolders, check_image, list_test_folder
from pipeline.derive.class_labels import class_labels
from tests.support.image_sets import write_image


@pytest.fixture
def folder(tmp_path):
    """Four images in the classes a, b and c."""
    for seed, name in enumerate(["b/1.png", "a/2.png", "a/1.png", "c/1.jpg"]):
        write_image(tmp_path / name, seed)
    return tmp_path


def open_folder(folder, classes=3):
    listing = list_test_folder(folder)
    return ClassFolders(listing, class_labels(str(folder), class_order(listing.names), classes))


def test_images_are_sorted_by_class_and_name(folder):
    images = open_folder(folder)
    files = ["a/1.png", "a/2.png", "b/1.png", "c/1.jpg"]
    assert [images.where(number) for number in range(4)] == [str(folder / file) for file in files]
    assert images.read([3, 0]) == [(folder / files[3]).read_bytes(), (folder / files[0]).read_bytes()]
    assert images.labels.tolist() == [0, 0, 1, 2]


def test_a_class_may_be_called_like_a_split(folder):
    write_image(folder / "train" / "1.png", 9)
    assert [*list_test_folder(folder).names] == ["a", "b", "c", "train"]


def test_images_in_formats_that_are_not_read_are_refused(folder):
    (folder / "a" / "3.avif").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a/3.avif is an image in a format that is not read \(convert it"):
        list_test_folder(folder)


def test_other_files_are_listed_and_not_read(folder):
    (folder / "a" / "notes.txt").write_text("x")
    (folder / ".git").mkdir()
    images = open_folder(folder)
    assert images.skipped == [f"{folder}/.git", f"{folder}/a/notes.txt"]
    assert len(images) == 4


def test_images_of_more_formats_are_read(folder):
    for suffix in ("tif", "gif", "webp", "bmp"):
        Image.new("RGB", (9, 8), (200, 40, 7)).save(folder / "c" / f"2.{suffix}")
    images = open_folder(folder)
    assert len(images) == 8
    images.check(threads=2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda f: [(f / name).mkdir() for name in "de"],
            "no images in the class folders {f}/d, {f}/e; add some or",
        ),
        (
            lambda f: [(f / "val").mkdir(), (f / "a").rename(f / "val" / "a")],
            "{f} holds the splits val; pass one of them, such as {f}/val",
        ),
    ],
)
def test_folder_that_does_not_fit_is_rejected(folder, change, text):
    change(folder)
    with pytest.raises(DataError) as caught:
        list_test_folder(folder)
    assert text.format(f=folder) in str(caught.value)


def test_missing_folder_and_missing_class_folders_are_rejected(tmp_path):
    with pytest.raises(DataError, match=r"folder .*/nothing not found; pass a folder that holds"):
        list_test_folder(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no class folders; it must hold one folder of images per class"):
        list_test_folder(tmp_path)


def test_missing_image_is_named(folder):
    images = open_folder(folder)
    (folder / "c" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"c/1.jpg cannot be read \(No such file or directory\); restore or"):
        images.read([0, 3])


def test_all_broken_images_are_named_with_their_paths(folder):
    open_folder(folder).check(threads=2)
    content = (folder / "c" / "1.jpg").read_bytes()
    (folder / "c" / "1.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"^\S+/c/1.jpg is not a readable image .*; restore or remove it$"):
        open_folder(folder).check(threads=0)
    (folder / "a" / "3.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_folder(folder).check(threads=2)
    expected = (
        f"2 images in {folder} cannot be decoded; restore or remove them: {folder}/a/3.jpg, {folder}/c/1.jpg ("
    )
    assert str(caught.value).startswith(expected)


def test_the_hash_depends_on_names_and_contents(folder):
    file = folder / "c" / "2.bmp"
    found = []
    for colour in ((200, 40, 7), (200, 40, 8)):  # of the same size in bytes
        Image.new("RGB", (9, 8), colour).save(file)
        found.append(open_folder(folder).check(threads=2))
    assert open_folder(folder).check(threads=1) == found[-1]
    file.rename(folder / "c" / "3.bmp")
    found.append(open_folder(folder).check(threads=2))
    assert len({*found}) == 3


def reason(read, content):
    """Return the message of the DataError that `read` raises for a file; "" for a readable one."""
    try:
        read(content, "file")
    except DataError as error:
        return str(error)
    return ""


def test_the_check_rejects_the_images_that_decoding_rejects(tmp_path):
    """Cut and damaged JPEGs in colour, in grey, progressive and with restart markers: the same errors."""
    draw, outcomes = random.Random(3), set()
    noise = Image.effect_noise((83, 61), 90)
    colours = Image.merge("RGB", (noise, noise.rotate(90).resize(noise.size), noise))
    for image, options in (
        (colours, {}),
        (noise, {}),
        (colours, {"progressive": True}),
        (colours.convert("CMYK"), {}),
    ):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80, **options)
        whole = file.getvalue()
        assert reason(check_image, whole) == ""
        for _ in range(60):
            content = bytearray(whole[: draw.randrange(2, len(whole) + 1)] if draw.random() < 0.3 else whole)
            for _ in range(draw.randrange(3)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            found = reason(check_image, bytes(content))
            assert found == reason(jpeg.decode, bytes(content))
            outcomes.add(bool(found))
    assert outcomes == {False, True}


def test_the_check_does_not_decode_a_good_jpeg_to_its_full_size(folder, monkeypatch):
    content = (folder / "c" / "1.jpg").read_bytes()
    decoded = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kw: decoded.append(decode(*args, **kw)))
    check_image(content, "file")
    height, width = Image.open(io.BytesIO(content)).size[::-1]
    assert [one.shape[:2] for one in decoded] == [(-(-height // 8), -(-width // 8))]
