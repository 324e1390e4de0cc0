"""Photographs in class folders, one by one: their classes, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.class_folders import WNIDS_FILE, ClassFolders
from pipeline.data.images import DataError


def picture(path, size=(20, 14), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(["b/1.png", "a/2.png", "a/1.png", "c/1.jpg"]):
        picture(tmp_path / name, seed=seed)
    return tmp_path


def test_each_picture_comes_once_class_by_class(folder):
    pictures = ClassFolders(folder, 3)
    files = ["a/1.png", "a/2.png", "b/1.png", "c/1.jpg"]
    assert [pictures.where(number) for number in range(4)] == [str(folder / file) for file in files]
    assert pictures.read([3, 0]) == [(folder / files[3]).read_bytes(), (folder / files[0]).read_bytes()]
    assert pictures.labels.tolist() == [0, 0, 1, 2]


def test_some_of_ilsvrcs_classes_keep_their_numbers(tmp_path):
    wnids = WNIDS_FILE.read_text(encoding="ascii").split()
    assert (len(wnids), wnids[0], wnids[999]) == (1000, "n01440764", "n15075141")  # tench, toilet paper
    assert wnids == sorted(set(wnids))
    for number in (999, 7):
        picture(tmp_path / wnids[number] / "x.png")
    assert ClassFolders(tmp_path, 1000).labels.tolist() == [7, 999]


def test_files_that_are_no_pictures_are_counted_not_read(folder):
    (folder / "a" / "notes.txt").write_text("x")
    pictures = ClassFolders(folder, 3)
    assert [path.name for path in pictures.ignored] == ["notes.txt"]
    assert len(pictures) == 4


@pytest.mark.parametrize(
    ("change", "classes", "words"),
    [
        (lambda f: None, 5, "holds 3 classes, and the network tells 5 classes apart"),
        (
            lambda f: None,
            1000,
            "tells 1000 classes apart (or some of ILSVRC's, called as n01440764 is; 'a' is not)",
        ),
        (lambda f: (f / "d").mkdir(), 4, "d holds no picture (.jpeg, .jpg, .png, .bmp, .webp, .ppm); fill it, or"),
        (lambda f: (f / "a").rename(f / "val"), 3, "holds val; name the one that is meant: "),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(folder, change, classes, words):
    change(folder)
    with pytest.raises(DataError) as caught:
        ClassFolders(folder, classes)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


def test_no_folder_and_no_class_folders(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*/nothing; give one that holds"):
        ClassFolders(tmp_path / "nothing", 3)
    with pytest.raises(DataError, match=r"holds no class folders; a folder of pictures for each class is needed"):
        ClassFolders(tmp_path, 3)


def test_a_picture_that_is_gone_is_named(folder):
    pictures = ClassFolders(folder, 3)
    (folder / "c" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"c/1.jpg cannot be read \(No such file or directory\); restore it, or"):
        pictures.read([0, 3])
